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
