// The loops of products.hpp, for tiles T as in amx.hpp. Plain C++ but for the tiles: compilers turn these loops into vectors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "products.hpp"

namespace bnn {
namespace {

float of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// The nearest bfloat16, to even; not-a-number stays.
uint32_t rounded_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

template <class T>
struct Products {
  static void gather(const Line& line, const SignProducts& p, int64_t first, int64_t last, const Workspace& workspace) {
    const Conv& c = line.conv;
    const int64_t depth = line.depth, halves = piece_halves(line);
    for (int64_t piece = 0; piece < line.pieces; piece++)
      std::memset(workspace.gradients + piece * halves + line.lead * depth, 0, line.positions * depth * sizeof(uint16_t));
    // Pixels that follow each other here as they do there.
    const int64_t pixels = c.stride_w == 1 && depth == c.outputs ? c.out_w : 1;
    for (int64_t image = first; image < last; image++)
      for (int64_t y = 0; y < c.out_h; y++)
        for (int64_t x = 0; x < c.out_w; x += pixels) {
          const int64_t from = ((image * c.out_h + y) * c.out_w + x) * c.outputs;
          const int64_t at = (image - first) * line.image + y * c.stride_h * line.columns + x * c.stride_w;
          uint16_t* to = workspace.gradients + (line.lead + at) * depth;
          if (p.dtype == FLOAT32) split(static_cast<const float*>(p.d_sums) + from, pixels * c.outputs, to, halves);
          else std::memcpy(to, static_cast<const uint16_t*>(p.d_sums) + from, pixels * c.outputs * sizeof(uint16_t));
        }
    if (!p.d_weight) return;
    for (int64_t piece = 0; piece < line.pieces; piece++) {
      const uint16_t* from = workspace.gradients + piece * halves + line.lead * depth;
      uint16_t* to = workspace.pairs + piece * line.positions * depth;
      for (int64_t pair = 0; pair < line.positions / 2; pair++, from += 2 * depth, to += 2 * depth)
        for (int64_t i = 0; i < depth; i += SIDE) {
          uint32_t both[SIDE];
          for (int64_t n = 0; n < SIDE; n++) both[n] = from[i + n] | static_cast<uint32_t>(from[depth + i + n]) << 16;
          std::memcpy(to + 2 * i, both, sizeof(both));
        }
    }
  }

  // What bfloat16 leaves of a number, twice.
  static void split(const float* __restrict from, int64_t count, uint16_t* __restrict to, int64_t step) {
    uint16_t *__restrict second = to + step, *__restrict third = to + 2 * step;
    for (int64_t i = 0; i < count; i++) {
      const uint32_t a = rounded_bits(from[i]);
      const float rest = from[i] - of_bits(a << 16);
      const uint32_t b = rounded_bits(rest);
      to[i] = static_cast<uint16_t>(a);
      second[i] = static_cast<uint16_t>(b);
      third[i] = static_cast<uint16_t>(rounded_bits(rest - of_bits(b << 16)));
    }
  }

  static void levels(const Line& line, const SignProducts& p, int64_t first, int64_t last, const Workspace& workspace) {
    constexpr uint32_t minus_one = 0xbf80;
    const Conv& c = line.conv;
    const int64_t pixel_words = c.words(), count = line.plane;
    const uint32_t outside = c.pad_value > 0 ? ~uint32_t{0} : 0;
    std::fill_n(workspace.inside, count, static_cast<uint16_t>(c.pad_value == 0 ? 0 : 0xffff));
    for (int64_t word = 0; word < pixel_words; word++) {
      std::fill_n(workspace.words, count, outside);
      for (int64_t image = first; image < last; image++)
        for (int64_t y = 0; y < c.height; y++) {
          const int64_t at = (image - first) * line.image + (y + c.pad_h) * line.columns + c.pad_w;
          const uint32_t* from = p.words + (image * c.height + y) * c.width * pixel_words + word;
          for (int64_t x = 0; x < c.width; x++) workspace.words[at + x] = from[x * pixel_words];
          std::fill_n(workspace.inside + at, c.width, static_cast<uint16_t>(0xffff));
        }
      const uint32_t* __restrict words = workspace.words;
      const uint16_t* __restrict inside = workspace.inside;
      for (int64_t bit = 0; bit < std::min(WORD_BITS, c.channels - word * WORD_BITS); bit++) {
        uint16_t* __restrict to = workspace.levels + (word * WORD_BITS + bit) * count;
        for (int64_t i = 0; i < count; i++)
          to[i] = static_cast<uint16_t>((minus_one ^ (words[i] >> bit & 1) << 15) & inside[i]);
      }
    }
  }

  static void d_levels(const Line& line, const uint16_t* weight, const Workspace& workspace) {
    const typename T::Configuration configuration;
    const int64_t tile_steps = line.runs * line.run_steps * TILE_HALVES;
    int64_t channel = 0;
    for (; channel + 2 * SIDE <= line.channels; channel += 2 * SIDE)
      for (int64_t at = 0; at < line.positions; at += 2 * SIDE)
        d_levels_at<2, 2>(line, weight + channel / SIDE * tile_steps, tile_steps, workspace, at, channel);
    if (channel < line.channels)
      for (int64_t at = 0; at < line.positions; at += 4 * SIDE)
        d_levels_at<4, 1>(line, weight + channel / SIDE * tile_steps, tile_steps, workspace, at, channel);
  }

  template <int M, int N>
  static void d_levels_at(const Line& line, const uint16_t* weight, int64_t tile_steps, const Workspace& workspace, int64_t at,
                          int64_t channel) {
    const Conv& c = line.conv;
    const int64_t pitch = line.depth * static_cast<int64_t>(sizeof(uint16_t));
    start<M * N>();
    for (int64_t piece = 0; piece < line.pieces; piece++) {
      const uint16_t* tile = weight;
      for (int64_t run = 0; run < line.runs; run++) {
        const int64_t back = line.whole_rows ? line.offset(run, c.kernel_w - 1) : line.offset(run / c.kernel_w, run % c.kernel_w);
        const uint16_t* from = workspace.gradients + piece * piece_halves(line) + (line.lead + at - back) * line.depth;
        for (int64_t step = 0; step < line.run_steps; step++, from += TERMS, tile += TILE_HALVES)
          multiply<M, N>([&](int m) { return from + m * SIDE * line.depth; }, pitch, tile, tile + tile_steps, 64);
      }
    }
    float* to = workspace.d_levels + at * line.channels + channel;
    finish<M, N>([&](int m, int n) { return to + m * SIDE * line.channels + n * SIDE; }, line.channels * sizeof(float));
  }

  static void d_weight(const Line& line, const Workspace& workspace, float* sums) {
    const typename T::Configuration configuration;
    int64_t output = 0;
    for (; output + 2 * SIDE <= line.depth; output += 2 * SIDE) d_weight_of<2, 2>(line, workspace, output, sums);
    if (output < line.depth) d_weight_of<4, 1>(line, workspace, output, sums);
  }

  // M tiles of channels, of one tap or several.
  template <int M, int N>
  static void d_weight_of(const Line& line, const Workspace& workspace, int64_t output, float* sums) {
    const int64_t tiles = line.channels / SIDE, items = line.conv.taps() * tiles;
    const int64_t pitch = line.depth * 2 * static_cast<int64_t>(sizeof(uint16_t));
    alignas(ALIGNMENT) float unused[N * TILE_FLOATS] = {};
    for (int64_t item = 0; item < items; item += M) {
      const uint16_t* from[M];
      float* to[M];
      for (int m = 0; m < M; m++) {
        const int64_t number = std::min(item + m, items - 1), tap = number / tiles;
        from[m] = workspace.levels + number % tiles * SIDE * line.plane +
                  line.offset(tap / line.conv.kernel_w, tap % line.conv.kernel_w);
        to[m] = item + m < items ? sums + (number * (line.depth / SIDE) + output / SIDE) * TILE_FLOATS : unused;
      }
      resume<M, N>(to);
      for (int64_t piece = 0; piece < line.pieces; piece++)
        for (int64_t at = 0; at < line.positions; at += TERMS) {
          const uint16_t* pairs = workspace.pairs + (piece * line.positions + at) * line.depth + output * 2;
          multiply<M, N>([&](int m) { return from[m] + at; }, line.plane * static_cast<int64_t>(sizeof(uint16_t)), pairs,
                         pairs + 2 * SIDE, pitch);
        }
      finish<M, N>([&](int m, int n) { return to[m] + n * TILE_FLOATS; }, 64);
    }
  }

  // Tiles 0 to 3 are sums [M][N], 4 and 5 hold rows of A in turn, 6 and 7 are B.
  template <int COUNT, int TILE = 0>
  static void start() {
    T::template zero<TILE>();
    if constexpr (TILE + 1 < COUNT) start<COUNT, TILE + 1>();
  }

  template <int M, int N, int I = 0>
  static void resume(float* const (&to)[M]) {
    T::template load<I>(to[I / N] + I % N * TILE_FLOATS, 64);
    if constexpr (I + 1 < M * N) resume<M, N, I + 1>(to);
  }

  template <int M, int N, class Rows>
  static void multiply(const Rows& rows, int64_t pitch, const uint16_t* b0, const uint16_t* b1, int64_t b_pitch) {
    T::template load<6>(b0, b_pitch);
    if constexpr (N == 2) T::template load<7>(b1, b_pitch);
    multiply_rows<M, N, 0>(rows, pitch);
  }
  template <int M, int N, int I, class Rows>
  static void multiply_rows(const Rows& rows, int64_t pitch) {
    constexpr int a = 4 + I % 2;
    T::template load<a>(rows(I), pitch);
    T::template multiply_add_bfloat16<I * N, a, 6>();
    if constexpr (N == 2) T::template multiply_add_bfloat16<I * N + 1, a, 7>();
    if constexpr (I + 1 < M) multiply_rows<M, N, I + 1>(rows, pitch);
  }

  template <int M, int N, int I = 0, class To>
  static void finish(const To& to, int64_t pitch) {
    T::template store<I>(to(I / N, I % N), pitch);
    if constexpr (I + 1 < M * N) finish<M, N, I + 1>(to, pitch);
  }
};

template <class T>
constexpr ProductKernel product_kernel_for = {Products<T>::gather, Products<T>::levels, Products<T>::d_levels, Products<T>::d_weight};

}  // namespace
}  // namespace bnn
