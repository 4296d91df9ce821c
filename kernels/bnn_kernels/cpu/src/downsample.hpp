// Average pooling and a 1x1 convolution in float32, for an instruction set S: the one file that may fuse multiply and add.
#pragma once

#include <algorithm>

#include "engine.hpp"
#include "epilogue.hpp"

namespace bnn {
namespace {

// A tile: as many sums as S has room for, in few panels, so that their weights of 256 channels fit into L1.
template <class S>
constexpr int TILE_PANELS = std::max(1, S::panels / 2);
template <class S>
constexpr int TILE_PIXELS = S::pixels * S::panels / TILE_PANELS<S>;

// Weights: [panels][channels][PANEL], PANEL output channels side by side, zeros behind the last.
inline int64_t downsample_bytes(int64_t channels, int64_t outputs) {
  return divide_up(outputs, PANEL) * channels * PANEL * static_cast<int64_t>(sizeof(float));
}

inline void prepare_downsample(int64_t channels, int64_t outputs, const float* weight, void* prepared) {
  float* to = static_cast<float*>(prepared);
  for (int64_t o = 0; o < outputs; o++)
    for (int64_t c = 0; c < channels; c++) to[(o / PANEL * channels + c) * PANEL + o % PANEL] = weight[o * channels + c];
}

// The average of a window, rows of `row` and pixels of d.channels elements apart, of one T::lanes of its channels from `at` on.
template <class T, int64_t DTYPE>
void average(const Downsample& d, int64_t at, int64_t row, int64_t rows, int64_t columns, float* to) {
  const auto term = [&](int64_t y, int64_t x) { return load<T>(DTYPE, d.x, at + y * row + x * d.channels); };
  typename T::Float sum;
  if (rows == 2 && columns == 2) {  // what networks have, without the loop
    sum = T::add(T::add(term(0, 0), term(0, 1)), T::add(term(1, 0), term(1, 1)));
  } else {
    sum = T::set(0.0F);
    for (int64_t y = 0; y < rows; y++)
      for (int64_t x = 0; x < columns; x++) sum = T::add(sum, term(y, x));
  }
  T::store(to, T::mul(sum, T::set(1.0F / static_cast<float>(rows * columns))));
}

template <class S, int64_t DTYPE>
void pool_of(const Downsample& d, int64_t pixel, int64_t pixels, float* pooled) {
  const int64_t out_w = d.out_w(), out_h = d.out_h(), row = d.width * d.channels;
  int64_t x = pixel % out_w, y = pixel / out_w % out_h, image = pixel / out_w / out_h;
  for (int64_t p = 0; p < pixels; p++, pooled += d.channels) {
    const int64_t at = ((image * d.height + y * d.pool) * d.width + x * d.pool) * d.channels;
    const int64_t rows = std::min(d.pool, d.height - y * d.pool), columns = std::min(d.pool, d.width - x * d.pool);
    int64_t c = 0;
    for (; c + S::lanes <= d.channels; c += S::lanes) average<S, DTYPE>(d, at + c, row, rows, columns, pooled + c);
    for (; c < d.channels; c++) average<Scalar, DTYPE>(d, at + c, row, rows, columns, pooled + c);
    if (++x == out_w) x = 0, y++;
    if (y == out_h) y = 0, image++;
  }
}

// Averages of `pixels` output pixels into rows of `channels` floats. Windows are cut at the border and average what they hold.
template <class S>
void pool(const Downsample& d, int64_t pixel, int64_t pixels, float* pooled) {
  if (d.dtype == FLOAT32) pool_of<S, FLOAT32>(d, pixel, pixels, pooled);
  else if (d.dtype == BFLOAT16) pool_of<S, BFLOAT16>(d, pixel, pixels, pooled);
  else pool_of<S, FLOAT16>(d, pixel, pixels, pooled);
}

template <class S>
void write(const Downsample& d, int64_t pixel, int64_t channel, const float* sums) {
  const int64_t at = pixel * d.outputs + channel, size = std::min(PANEL, d.outputs - channel);
  const auto one = [&]<class T>(T, int64_t j) {
    const typename T::Float v = T::load(sums + j);
    if (d.dtype == FLOAT32) store<T, FLOAT32>(d.y, at + j, v);
    else if (d.dtype == BFLOAT16) store<T, BFLOAT16>(d.y, at + j, v);
    else store<T, FLOAT16>(d.y, at + j, v);
  };
  int64_t j = 0;
  for (; j + S::lanes <= size; j += S::lanes) one(S{}, j);
  for (; j < size; j++) one(Scalar{}, j);
}

// PIXELS pixels times PANELS panels of channels; `ahead` is a panel of weights that is wanted soon.
template <class S, int PIXELS, int PANELS>
void matmul_tile(const Downsample& d, const float* pooled, int64_t pixel, int64_t panel, const float* ahead) {
  constexpr int VECTORS = PANELS * (PANEL / S::lanes);
  typename S::Float sum[PIXELS][VECTORS];
  const float* weight[PANELS];
#pragma GCC unroll 12
  for (int v = 0; v < PANELS; v++) weight[v] = static_cast<const float*>(d.weight) + (panel + v) * d.channels * PANEL;
#pragma GCC unroll 12
  for (int p = 0; p < PIXELS; p++)
#pragma GCC unroll 12
    for (int v = 0; v < VECTORS; v++) sum[p][v] = S::load(d.bias + panel * PANEL + v * S::lanes);
  for (int64_t c = 0; c < d.channels; c++) {
    __builtin_prefetch(ahead + c * PANEL, 0, 2);
    typename S::Float w[VECTORS];
#pragma GCC unroll 12
    for (int v = 0; v < VECTORS; v++) w[v] = S::load(weight[v * S::lanes / PANEL] + c * PANEL + v * S::lanes % PANEL);
#pragma GCC unroll 12
    for (int p = 0; p < PIXELS; p++) {
      const typename S::Float x = S::set(pooled[p * d.channels + c]);
#pragma GCC unroll 12
      for (int v = 0; v < VECTORS; v++) sum[p][v] = S::multiply_add(x, w[v], sum[p][v]);
    }
  }
  if (d.dtype == FLOAT32 && (panel + PANELS) * PANEL <= d.outputs) {  // from registers
    float* to = static_cast<float*>(d.y) + pixel * d.outputs + panel * PANEL;
#pragma GCC unroll 12
    for (int p = 0; p < PIXELS; p++, to += d.outputs)
#pragma GCC unroll 12
      for (int v = 0; v < VECTORS; v++) S::store(to + v * S::lanes, sum[p][v]);
    return;
  }
  for (int p = 0; p < PIXELS; p++) {
    alignas(ALIGNMENT) float row[PANELS * PANEL];
    for (int v = 0; v < VECTORS; v++) S::store(row + v * S::lanes, sum[p][v]);
    for (int v = 0; v < PANELS; v++) write<S>(d, pixel + p, (panel + v) * PANEL, row + v * PANEL);
  }
}

// matmul_tile of `pixels` <= PIXELS.
template <class S, int PIXELS, int PANELS>
void matmul_pixels(const Downsample& d, const float* pooled, int64_t pixel, int64_t pixels, int64_t panel, const float* ahead) {
  if constexpr (PIXELS > 1)
    if (pixels < PIXELS) return matmul_pixels<S, PIXELS - 1, PANELS>(d, pooled, pixel, pixels, panel, ahead);
  matmul_tile<S, PIXELS, PANELS>(d, pooled, pixel, panel, ahead);
}

// Tiles of equal size, because a small one waits for its sums. The first ones fetch the next panels, which may be in no cache.
template <class S, int PANELS>
void matmul_panels(const Downsample& d, const float* pooled, int64_t pixel, int64_t pixels, int64_t panel) {
  const int64_t tiles = divide_up(pixels, TILE_PIXELS<S>);
  for (int64_t tile = 0; tile < tiles; tile++) {
    const int64_t first = pixels * tile / tiles, last = pixels * (tile + 1) / tiles;
    const int64_t next = std::min(panel + PANELS + tile % PANELS, divide_up(d.outputs, PANEL) - 1);
    matmul_pixels<S, TILE_PIXELS<S>, PANELS>(d, pooled + first * d.channels, pixel + first, last - first, panel,
                                        static_cast<const float*>(d.weight) + next * d.channels * PANEL);
  }
}

template <class S>
void downsample(const Downsample& d, int64_t pixel, int64_t pixels, float* pooled) {
  pool<S>(d, pixel, pixels, pooled);
  const int64_t panels = divide_up(d.outputs, PANEL);
  int64_t panel = 0;
  for (; panel + TILE_PANELS<S> <= panels; panel += TILE_PANELS<S>)
    matmul_panels<S, TILE_PANELS<S>>(d, pooled, pixel, pixels, panel);
  for (; panel < panels; panel++) matmul_panels<S, 1>(d, pooled, pixel, pixels, panel);
}

}  // namespace
}  // namespace bnn
