// The real-valued stem of a network for an instruction set S: a convolution of an image in float32, max pooling, the float
// epilogue. As in the downsample, multiply and add may be fused; the epilogue rounds as everywhere.
//
// Row by row: the rows of the image that a row of the convolution reads, and the rows of the convolution that a pooled row reads,
// lie in two rings, so that each is made once and nothing but the result leaves the cache.
#pragma once

#include <algorithm>
#include <cstring>

#include "engine.hpp"
#include "epilogue.hpp"

namespace bnn {
namespace {

// Pixels of a tile of PANELS panels: sums that fill the registers.
template <class S, int PANELS>
constexpr int stem_pixels = S::pixels * std::min(2, S::panels / PANELS);

// A row of the convolution in memory: tiles may run over its end.
template <class S>
int64_t stem_pitch(const Stem& s) {
  return round_up(s.out_w, stem_pixels<S, 1>);
}

// An image's row in memory, of one channel, with its padding: what such a row reads.
template <class S>
int64_t stem_length(const Stem& s) {
  return (stem_pitch<S>(s) - 1) * s.stride_w + s.kernel_w;
}

template <class S>
int64_t stem_room(const Stem& s) {
  const int64_t channels = divide_up(s.outputs, PANEL) * PANEL;
  return s.kernel_h * s.channels * round_up(stem_length<S>(s), PANEL) + (s.ring() * stem_pitch<S>(s) + s.pooled_w) * channels;
}

inline void prefetch(int64_t dtype, const void* x, int64_t i) {
  __builtin_prefetch(static_cast<const char*>(x) + i * (dtype == FLOAT32 ? 4 : 2));
}

// Row `y` of an image, which may lie outside, between zeros.
template <class S>
void stem_stage(const Stem& s, int64_t image, int64_t y, int64_t pitch, float* to) {
  const int64_t length = stem_length<S>(s), left = std::min(length, s.pad_w), count = std::min(length - left, s.width);
  for (int64_t c = 0; c < s.channels; c++, to += pitch) {
    if (y < 0 || y >= s.height) {
      std::fill_n(to, length, 0.0F);
      continue;
    }
    const int64_t from = image * s.image_step + c * s.channel_step + y * s.row_step;
    const int64_t next = y + s.stride_h < s.height ? from + s.stride_h * s.row_step : from;  // that is read a row later
    float* row = to + left;
    std::fill_n(to, left, 0.0F);
    int64_t x = 0;
    if (s.pixel_step == 1)
      for (; x + S::lanes <= count; x += S::lanes) {
        S::store(row + x, load<S>(s.dtype, s.x, from + x));
        prefetch(s.dtype, s.x, next + x);
      }
    for (; x < count; x++) row[x] = load<Scalar>(s.dtype, s.x, from + x * s.pixel_step);
    std::fill_n(row + count, length - left - count, 0.0F);
  }
}

// One tile of a row: stem_pixels pixels, of which the first reads `rows` from `x` on, times PANELS panels of channels. `slot` is
// where the ring has the first row. Not inline: the loop needs all registers for itself.
template <class S, int PANELS>
[[gnu::noinline]] void stem_tile(const Stem& s, const float* rows, int64_t pitch, int64_t slot, int64_t x, int64_t panel, float* to,
                                 int64_t stride) {
  constexpr int PIXELS = stem_pixels<S, PANELS>, VECTORS = PANELS * (PANEL / S::lanes);
  const int64_t taps = s.channels * s.kernel_h * s.kernel_w, kernel_w = s.kernel_w, step = s.stride_w;
  const float* weight = s.weight + panel * taps * PANEL;
  typename S::Float sum[PIXELS][VECTORS];
#pragma GCC unroll 16
  for (int p = 0; p < PIXELS; p++)
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; v++) sum[p][v] = S::set(0.0F);
  for (int64_t c = 0; c < s.channels; c++) {
    for (int64_t y = 0; y < s.kernel_h; y++) {
      const int64_t place = slot + y < s.kernel_h ? slot + y : slot + y - s.kernel_h;
      const float* pixel[PIXELS];
#pragma GCC unroll 16
      for (int p = 0; p < PIXELS; p++) pixel[p] = rows + (place * s.channels + c) * pitch + x + p * step;
      for (int64_t k = 0; k < kernel_w; k++, weight += PANEL) {
        typename S::Float w[VECTORS];
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; v++) w[v] = S::load(weight + v * S::lanes / PANEL * taps * PANEL + v * S::lanes % PANEL);
#pragma GCC unroll 16
        for (int p = 0; p < PIXELS; p++) {
          const typename S::Float value = S::set(pixel[p][k]);
#pragma GCC unroll 16
          for (int v = 0; v < VECTORS; v++) sum[p][v] = S::multiply_add(value, w[v], sum[p][v]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < PIXELS; p++)
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; v++) S::store(to + p * stride + v * S::lanes, sum[p][v]);
}

// PANELS panels of all pixels of a pooled row: the largest value of each window, NaN where it holds one.
template <class S, int PANELS>
void stem_pool(const Stem& s, const float* ring, int64_t pitch, int64_t y, int64_t panel, float* to, int64_t stride) {
  constexpr int VECTORS = PANELS * (PANEL / S::lanes);
  const int64_t y0 = std::max<int64_t>(0, y * s.pool_stride_h - s.pool_pad_h);
  const int64_t y1 = std::min(s.out_h, y * s.pool_stride_h - s.pool_pad_h + s.pool_h);
  for (int64_t x = 0; x < s.pooled_w; x++) {
    const int64_t x0 = std::max<int64_t>(0, x * s.pool_stride_w - s.pool_pad_w);
    const int64_t x1 = std::min(s.out_w, x * s.pool_stride_w - s.pool_pad_w + s.pool_w);
    typename S::Float most[VECTORS];
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; v++) most[v] = S::set(-std::numeric_limits<float>::infinity());
    for (int64_t i = y0; i < y1; i++) {
      const float* row = ring + (i % s.ring() * pitch + x0) * stride + panel * PANEL;
      for (const float* end = row + (x1 - x0) * stride; row != end; row += stride)
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; v++) most[v] = S::larger(most[v], S::load(row + v * S::lanes));
    }
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; v++) S::store(to + x * stride + panel * PANEL + v * S::lanes, most[v]);
  }
}

// Calls one(panels, first) for all panels, as many at once as the registers hold.
template <class S, class One>
void for_panels(int64_t panels, const One& one) {
  int64_t first = 0;
  for (; first + S::panels <= panels; first += S::panels) one(std::integral_constant<int, S::panels>{}, first);
  if constexpr (S::panels > 2)
    for (; first + 2 <= panels; first += 2) one(std::integral_constant<int, 2>{}, first);
  for (; first < panels; first++) one(std::integral_constant<int, 1>{}, first);
}

template <class S>
void stem(const Stem& s, const Fused& f, int64_t first, int64_t last, float* room) {
  const int64_t panels = divide_up(s.outputs, PANEL), channels = panels * PANEL;
  const int64_t length = round_up(stem_length<S>(s), PANEL), pitch = stem_pitch<S>(s);
  const bool pools = s.pool_h != 1 || s.pool_w != 1 || s.pool_stride_w != 1;
  float *rows = room, *ring = rows + s.kernel_h * s.channels * length, *pooled = ring + s.ring() * pitch * channels;
  const bool direct = (f.out_groups == 1 || f.width / f.out_groups % WORD_BITS == 0) &&
                      (f.width == s.outputs || s.outputs % WORD_BITS == 0);
  Fused values = f;
  if (!direct) values.words = nullptr;
  const Epilogue<Fused, float> epilogue = fused_floats<S>(values);
  int64_t staged = 0, made = 0;  // rows before these are in the rings, as far as they may be read again
  for (int64_t i = first; i < last; i++) {
    const int64_t image = i / s.pooled_h, y = i % s.pooled_h, top = y * s.pool_stride_h - s.pool_pad_h;
    if (y == 0 || i == first) staged = -s.pad_h, made = 0;
    for (made = std::max({made, top, int64_t{0}}); made < std::min(s.out_h, top + s.pool_h); made++) {
      const int64_t reads = made * s.stride_h - s.pad_h;
      for (staged = std::max(staged, reads); staged < reads + s.kernel_h; staged++)
        stem_stage<S>(s, image, staged, length, rows + (staged + s.pad_h) % s.kernel_h * s.channels * length);
      for_panels<S>(panels, [&]<int PANELS>(std::integral_constant<int, PANELS>, int64_t panel) {
        for (int64_t x = 0; x < s.out_w; x += stem_pixels<S, PANELS>)
          stem_tile<S, PANELS>(s, rows, length, made * s.stride_h % s.kernel_h, x * s.stride_w, panel,
                               ring + (made % s.ring() * pitch + x) * channels + panel * PANEL, channels);
      });
    }
    if (pools)
      for_panels<S>(panels, [&]<int PANELS>(std::integral_constant<int, PANELS>, int64_t panel) {
        stem_pool<S, PANELS>(s, ring, pitch, y, panel, pooled, channels);
      });
    for (int64_t channel = 0; channel < f.width; channel += s.outputs)
      epilogue(values, pools ? pooled : ring, channels, i * s.pooled_w, s.pooled_w, channel, s.outputs);
    if (f.words && !direct)
      pack<S>({s.batch * s.pooled_h * s.pooled_w, f.width, f.out_groups, f.dtype, 0, f.stream, f.threshold, f.words},
              i * s.pooled_w, s.pooled_w);
  }
}

}  // namespace
}  // namespace bnn
