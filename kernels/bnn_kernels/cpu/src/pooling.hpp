// Windows of maps, for an instruction set S: pooling, enlargement, groups of channels that become one, and a sum behind them.
#pragma once

#include <algorithm>
#include <limits>

#include "engine.hpp"
#include "epilogue.hpp"

namespace bnn {
namespace {

// T::lanes channels of one output pixel, from `at` on in the first pixel of its window.
template <class T, int64_t DTYPE>
void pool_lanes(const Pool& p, int64_t at, int64_t rows, int64_t columns, float share, int64_t to) {
  const int64_t step = p.fold * p.channels, row = p.width * step;
  typename T::Float v = p.largest ? T::set(-std::numeric_limits<float>::infinity()) : T::set(0.0F);
  for (int64_t group = 0; group < p.fold; group++, at += p.channels)
    for (int64_t y = 0; y < rows; y++)
      for (int64_t x = 0; x < columns; x++) {
        const typename T::Float term = load<T>(DTYPE, p.x, at + y * row + x * step);
        v = p.largest ? T::larger(v, term) : T::add(v, term);
      }
  if (!p.largest) v = T::mul(v, T::set(share));
  if (p.shortcut) v = T::add(v, load<T>(DTYPE, p.shortcut, to));
  store<T, DTYPE>(p.y, to, v);
}

template <class S, int64_t DTYPE>
void pool_rows_of(const Pool& p, int64_t first, int64_t last) {
  const int64_t step = p.fold * p.channels;
  for (int64_t i = first; i < last; i++) {
    const int64_t *row = p.rows + 2 * (i % p.out_h), rows = row[1] - row[0];
    for (int64_t x = 0; x < p.out_w; x++) {
      const int64_t *column = p.columns + 2 * x, columns = column[1] - column[0];
      const int64_t at = ((i / p.out_h * p.height + row[0]) * p.width + column[0]) * step, to = (i * p.out_w + x) * p.channels;
      const float share = 1.0F / static_cast<float>(p.fold * rows * columns);
      int64_t c = 0;
      for (; c + S::lanes <= p.channels; c += S::lanes) pool_lanes<S, DTYPE>(p, at + c, rows, columns, share, to + c);
      for (; c < p.channels; c++) pool_lanes<Scalar, DTYPE>(p, at + c, rows, columns, share, to + c);
    }
  }
}

template <class S>
void pool_rows(const Pool& p, int64_t first, int64_t last) {
  if (p.dtype == FLOAT32) pool_rows_of<S, FLOAT32>(p, first, last);
  else if (p.dtype == BFLOAT16) pool_rows_of<S, BFLOAT16>(p, first, last);
  else pool_rows_of<S, FLOAT16>(p, first, last);
}

// T::lanes means of FOLD neighbours.
template <class T, int64_t DTYPE, int FOLD>
typename T::Float neighbours(const void* x, int64_t at) {
  if constexpr (FOLD == 1) return load<T>(DTYPE, x, at);
  else return T::add_neighbours(neighbours<T, DTYPE, FOLD / 2>(x, at), neighbours<T, DTYPE, FOLD / 2>(x, at + T::lanes * FOLD / 2));
}

template <int64_t DTYPE>
float neighbours(const void* x, int64_t at, int64_t fold) {
  return fold == 1 ? load<Scalar>(DTYPE, x, at) : neighbours<DTYPE>(x, at, fold / 2) + neighbours<DTYPE>(x, at + fold / 2, fold / 2);
}

template <class S, int64_t DTYPE>
void fold_of(const void* rows, int64_t count, int64_t fold, void* y) {
  const float share = 1.0F / static_cast<float>(fold);
  int64_t i = 0;
  const auto vectors = [&](const auto& sums) {
    for (; i + S::lanes <= count; i += S::lanes) store<S, DTYPE>(y, i, S::mul(sums(rows, i * fold), S::set(share)));
  };
  if (fold == 2) vectors(neighbours<S, DTYPE, 2>);
  if (fold == 4) vectors(neighbours<S, DTYPE, 4>);
  if (fold == 8) vectors(neighbours<S, DTYPE, 8>);
  for (; i < count; i++) store<Scalar, DTYPE>(y, i, neighbours<DTYPE>(rows, i * fold, fold) * share);
}

template <class S>
void fold(const void* rows, int64_t dtype, int64_t pixels, int64_t width, int64_t fold, void* y) {
  const int64_t count = pixels * width / fold;
  if (dtype == FLOAT32) fold_of<S, FLOAT32>(rows, count, fold, y);
  else if (dtype == BFLOAT16) fold_of<S, BFLOAT16>(rows, count, fold, y);
  else fold_of<S, FLOAT16>(rows, count, fold, y);
}

// T::lanes channels of one pixel of the sum, from `c` on.
template <class T, int64_t DTYPE>
typename T::Float sum_of(const WeightedSum& s, const int64_t* at, int64_t gate, int64_t c) {
  typename T::Float v = load<T>(DTYPE, s.x[0], at[0] + c);
  if (s.gate) v = T::mul(v, load<T>(DTYPE, s.gate, gate + c));
  if (s.weight) v = T::mul(v, T::load(s.weight + c));
  for (int64_t map = 1; map < s.maps; map++) {
    typename T::Float term = load<T>(DTYPE, s.x[map], at[map] + c);
    if (s.weight) term = T::mul(term, T::load(s.weight + map * s.channels + c));
    v = T::add(v, term);
  }
  return v;
}

template <class S, int64_t DTYPE>
void sum_rows(const WeightedSum& s, int64_t pixel, int64_t pixels, float* to) {
  const int64_t channels = s.channels;
  int64_t at[MOST_MAPS];
  for (int64_t p = pixel; p < pixel + pixels; p++, to += channels) {
    const int64_t image = p / (s.height * s.width), y = p / s.width % s.height, x = p % s.width;
    const auto place = [&](int64_t spread) {
      if (spread == 1) return p * channels;
      return ((image * divide_up(s.height, spread) + y / spread) * divide_up(s.width, spread) + x / spread) * channels;
    };
    for (int64_t map = 0; map < s.maps; map++) at[map] = place(s.spread[map]);
    const int64_t gate = place(s.gate_spread);
    int64_t c = 0;
    for (; c + S::lanes <= channels; c += S::lanes) S::store(to + c, sum_of<S, DTYPE>(s, at, gate, c));
    for (; c < channels; c++) to[c] = sum_of<Scalar, DTYPE>(s, at, gate, c);
  }
}

template <class S>
void weighted_sum(const WeightedSum& s, const Fused& fused, int64_t pixel, int64_t pixels, float* room) {
  const bool there = s.maps == 1 && s.dtype == FLOAT32 && s.spread[0] == 1 && !s.gate && !s.weight;
  if (there) room = static_cast<float*>(const_cast<void*>(s.x[0])) + pixel * s.channels;  // read only
  else if (s.dtype == FLOAT32) sum_rows<S, FLOAT32>(s, pixel, pixels, room);
  else if (s.dtype == BFLOAT16) sum_rows<S, BFLOAT16>(s, pixel, pixels, room);
  else sum_rows<S, FLOAT16>(s, pixel, pixels, room);
  fused_floats<S>(fused)(fused, room, s.channels, pixel, pixels, 0, s.channels);
}

template <class S>
void largest(int32_t* to, const int32_t* const* rows, int64_t count, int64_t first, int64_t last, int64_t step) {
  typedef int32_t Line __attribute__((vector_size(ALIGNMENT)));
  for (int64_t c = 0; c < step; c += ALIGNMENT / sizeof(int32_t)) {
    Line most, next;
    std::memcpy(&most, rows[0] + first + c, sizeof(most));
    for (int64_t y = 0; y < count; y++)
      for (int64_t at = first; at < last; at += step) {
        std::memcpy(&next, rows[y] + at + c, sizeof(next));
        most = most > next ? most : next;
      }
    std::memcpy(to + c, &most, sizeof(most));
  }
}

}  // namespace
}  // namespace bnn
