// The 1x1 convolution of the downsample in AMX tiles of bfloat16, as exact as in float32: a float is the sum of three bfloat16,
// and six of the nine products of two such sums matter; the others are below the last bit of the float32 sum.
//
// For a T with tiles as in amx.hpp and T::multiply_add_bfloat16, and the instruction set S around them.
#pragma once

#include <algorithm>
#include <cstring>

#include "amx.hpp"
#include "downsample.hpp"

namespace bnn {
namespace {

constexpr int64_t PARTS = 3, PART_TERMS = 32;  // bfloat16 of a row of a tile
constexpr int64_t DOWNSAMPLE_PIXELS = MOST_TILES * ROWS;

inline int64_t part_steps(int64_t channels) { return divide_up(channels, PART_TERMS); }

inline int64_t amx_downsample_bytes(int64_t channels, int64_t outputs) {
  return divide_up(outputs, PANEL) * part_steps(channels) * PARTS * TILE_BYTES;
}

// [panel][step][part][16 pairs of channels][16 outputs][2] bfloat16.
inline void amx_prepare_downsample(int64_t channels, int64_t outputs, const float* weight, void* prepared) {
  uint16_t* to = static_cast<uint16_t*>(prepared);
  for (int64_t o = 0; o < outputs; o++) {
    for (int64_t c = 0; c < channels; c++) {
      float rest = weight[o * channels + c];
      const int64_t tile = (o / PANEL * part_steps(channels) + c / PART_TERMS) * PARTS;
      const int64_t at = c % PART_TERMS / 2 * 2 * PANEL + o % PANEL * 2 + c % 2;
      for (int64_t part = 0; part < PARTS; part++) {
        const uint16_t half = float_to_bfloat16(rest);
        to[(tile + part) * TILE_BYTES / 2 + at] = half;
        rest -= bfloat16_to_float(half);
      }
    }
  }
}

// A row of floats as three rows of bfloat16, `stride` bfloat16 apart, with zeros up to `width`.
template <class S>
void split(const float* row, int64_t channels, int64_t width, uint16_t* to, int64_t stride) {
  for (int64_t c = 0; c < width; c += S::lanes) {
    alignas(ALIGNMENT) float last[S::lanes] = {};
    const int64_t left = std::clamp<int64_t>(channels - c, 0, S::lanes);
    if (left < S::lanes) std::copy_n(row + c, left, last);
    typename S::Float rest = S::load(left < S::lanes ? last : row + c);
    for (int64_t part = 0; part < PARTS; part++) rest = S::sub(rest, S::store_bfloat16(to + part * stride + c, rest));
  }
}

template <class T, class S, int TILES>
void multiply_parts(const Downsample& d, const uint16_t* parts, int64_t stride, int64_t pixel, int64_t pixels) {
  const int64_t steps = part_steps(d.channels), row = steps * PART_TERMS * 2;
  const int8_t* weight = static_cast<const int8_t*>(d.weight);
  for (int64_t channel = 0; channel < d.outputs; channel += PANEL) {
    T::template zero<0>();
    if constexpr (TILES > 1) T::template zero<1>();
    if constexpr (TILES > 2) T::template zero<2>();
    if constexpr (TILES > 3) T::template zero<3>();
    for (int64_t step = 0; step < steps; step++, weight += PARTS * TILE_BYTES) {
      T::template load<5>(weight, DEPTH);
      T::template load<6>(weight + TILE_BYTES, DEPTH);
      T::template load<7>(weight + 2 * TILE_BYTES, DEPTH);
      // The smallest products first: the last part of the activations with the first of the weights, and so on.
      const auto products = [&]<int TILE>(std::integral_constant<int, TILE>) {
        const uint16_t* at = parts + step * PART_TERMS + TILE * ROWS * row / 2;
        T::template load<4>(at + 2 * stride, row);
        T::template multiply_add_bfloat16<TILE, 4, 5>();
        T::template load<4>(at + stride, row);
        T::template multiply_add_bfloat16<TILE, 4, 6>();
        T::template multiply_add_bfloat16<TILE, 4, 5>();
        T::template load<4>(at, row);
        T::template multiply_add_bfloat16<TILE, 4, 7>();
        T::template multiply_add_bfloat16<TILE, 4, 6>();
        T::template multiply_add_bfloat16<TILE, 4, 5>();
      };
      products(std::integral_constant<int, 0>{});
      if constexpr (TILES > 1) products(std::integral_constant<int, 1>{});
      if constexpr (TILES > 2) products(std::integral_constant<int, 2>{});
      if constexpr (TILES > 3) products(std::integral_constant<int, 3>{});
    }
    alignas(ALIGNMENT) float sums[TILES * ROWS][PANEL];
    T::template store<0>(sums[0], DEPTH);
    if constexpr (TILES > 1) T::template store<1>(sums[ROWS], DEPTH);
    if constexpr (TILES > 2) T::template store<2>(sums[2 * ROWS], DEPTH);
    if constexpr (TILES > 3) T::template store<3>(sums[3 * ROWS], DEPTH);
    for (int64_t p = 0; p < pixels; p++) {
      for (int64_t i = 0; i < PANEL; i += S::lanes)
        S::store(sums[p] + i, S::add(S::load(sums[p] + i), S::load(d.bias + channel + i)));
      write<S>(d, pixel + p, channel, sums[p]);
    }
  }
}

template <class T, class S>
void amx_downsample(const Downsample& d, int64_t pixel, int64_t pixels, float* room) {
  const int64_t width = part_steps(d.channels) * PART_TERMS, stride = DOWNSAMPLE_PIXELS * width;
  uint16_t* parts = reinterpret_cast<uint16_t*>(room + DOWNSAMPLE_PIXELS * width);
  pool<S>(d, pixel, pixels, room);
  for (int64_t p = 0; p < pixels; p++) split<S>(room + p * d.channels, d.channels, width, parts + p * width, stride);
  const typename T::Configuration configuration;
  switch (divide_up(pixels, ROWS)) {
    case 1: return multiply_parts<T, S, 1>(d, parts, stride, pixel, pixels);
    case 2: return multiply_parts<T, S, 2>(d, parts, stride, pixel, pixels);
    case 3: return multiply_parts<T, S, 3>(d, parts, stride, pixel, pixels);
    default: return multiply_parts<T, S, 4>(d, parts, stride, pixel, pixels);
  }
}

}  // namespace
}  // namespace bnn
