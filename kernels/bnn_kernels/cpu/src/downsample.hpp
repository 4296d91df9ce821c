// Average pooling and a 1x1 convolution in float32, for an instruction set S: the one file that may fuse multiply and add.
#pragma once

#include <algorithm>

#include "engine.hpp"
#include "epilogue.hpp"

namespace bnn {
namespace {

// Weights: [panels][channels][PANEL], PANEL output channels side by side, zeros behind the last.
inline int64_t downsample_bytes(int64_t channels, int64_t outputs) {
  return divide_up(outputs, PANEL) * channels * PANEL * static_cast<int64_t>(sizeof(float));
}

inline void prepare_downsample(int64_t channels, int64_t outputs, const float* weight, void* prepared) {
  float* to = static_cast<float*>(prepared);
  for (int64_t o = 0; o < outputs; o++)
    for (int64_t c = 0; c < channels; c++) to[(o / PANEL * channels + c) * PANEL + o % PANEL] = weight[o * channels + c];
}

// Averages of `pixels` output pixels into rows of `channels` floats. Windows are cut at the border and average what they hold.
template <class S>
void pool(const Downsample& d, int64_t pixel, int64_t pixels, float* pooled) {
  for (int64_t p = 0; p < pixels; p++) {
    const int64_t image = (pixel + p) / (d.out_h() * d.out_w()), within = (pixel + p) % (d.out_h() * d.out_w());
    const int64_t y0 = within / d.out_w() * d.pool, x0 = within % d.out_w() * d.pool;
    const int64_t y1 = std::min(d.height, y0 + d.pool), x1 = std::min(d.width, x0 + d.pool);
    const float area = static_cast<float>((y1 - y0) * (x1 - x0));
    const auto average = [&]<class T>(T, int64_t c) {
      typename T::Float sum = T::set(0.0F);
      for (int64_t y = y0; y < y1; y++)
        for (int64_t x = x0; x < x1; x++)
          sum = T::add(sum, load<T>(d.dtype, d.x, ((image * d.height + y) * d.width + x) * d.channels + c));
      T::store(pooled + p * d.channels + c, T::mul(sum, T::set(1.0F / area)));
    };
    int64_t c = 0;
    for (; c + S::lanes <= d.channels; c += S::lanes) average(S{}, c);
    for (; c < d.channels; c++) average(Scalar{}, c);
  }
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

// PIXELS pixels times PANELS panels of channels.
template <class S, int PIXELS, int PANELS>
void matmul_tile(const Downsample& d, const float* pooled, int64_t pixel, int64_t panel) {
  constexpr int VECTORS = PANELS * (PANEL / S::lanes);
  typename S::Float sum[PIXELS][VECTORS];
  const float* weight[PANELS];
#pragma GCC unroll 8
  for (int v = 0; v < PANELS; v++) weight[v] = static_cast<const float*>(d.weight) + (panel + v) * d.channels * PANEL;
#pragma GCC unroll 8
  for (int p = 0; p < PIXELS; p++)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) sum[p][v] = S::load(d.bias + panel * PANEL + v * S::lanes);
  for (int64_t c = 0; c < d.channels; c++) {
    typename S::Float w[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) w[v] = S::load(weight[v * S::lanes / PANEL] + c * PANEL + v * S::lanes % PANEL);
#pragma GCC unroll 8
    for (int p = 0; p < PIXELS; p++) {
      const typename S::Float x = S::set(pooled[p * d.channels + c]);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v++) sum[p][v] = S::multiply_add(x, w[v], sum[p][v]);
    }
  }
  for (int p = 0; p < PIXELS; p++) {
    alignas(ALIGNMENT) float row[PANELS * PANEL];
    for (int v = 0; v < VECTORS; v++) S::store(row + v * S::lanes, sum[p][v]);
    for (int v = 0; v < PANELS; v++) write<S>(d, pixel + p, (panel + v) * PANEL, row + v * PANEL);
  }
}

template <class S, int PANELS>
void matmul_panels(const Downsample& d, const float* pooled, int64_t pixel, int64_t pixels, int64_t panel) {
  int64_t p = 0;
  for (; p + S::pixels <= pixels; p += S::pixels) matmul_tile<S, S::pixels, PANELS>(d, pooled + p * d.channels, pixel + p, panel);
  for (; p < pixels; p++) matmul_tile<S, 1, PANELS>(d, pooled + p * d.channels, pixel + p, panel);
}

template <class S>
void downsample(const Downsample& d, int64_t pixel, int64_t pixels, float* pooled) {
  pool<S>(d, pixel, pixels, pooled);
  const int64_t panels = divide_up(d.outputs, PANEL);
  int64_t panel = 0;
  for (; panel + S::panels <= panels; panel += S::panels) matmul_panels<S, S::panels>(d, pooled, pixel, pixels, panel);
  for (; panel < panels; panel++) matmul_panels<S, 1>(d, pooled, pixel, pixels, panel);
}

}  // namespace
}  // namespace bnn
