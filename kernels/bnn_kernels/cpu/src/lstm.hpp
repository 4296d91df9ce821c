// The recurrence of a binary LSTM, for an instruction set S with the vectors of simd_*.hpp and those of sequence_simd.hpp.
//
// Every float operation rounds by itself, in the order of bnn_kernels/recurrence.py.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "sequence.hpp"

namespace bnn {
namespace {

constexpr float ROUND = 12582912.0F;  // constants of recurrence.py
constexpr float LOG2_E = 1.4426950408889634F, LN2_HIGH = 0.693359375F, LN2_LOW = -2.12194440e-4F;
constexpr float SIGMOID_LIMIT = 80.0F, TANH_LIMIT = 8.2F, CELL_LIMIT = 127.0F;
constexpr float EXP[] = {0.00831247779523844F, 0.04189055063729718F, 0.1666711631480337F, 0.49999228820964164F, 1.0F, 1.0F};
constexpr float TANH_ABOVE[] = {1.4840558508376359e-08F, 2.1637274216358567e-05F, 0.0035566862207405915F, 0.1343212282719945F,
                                0.9999999917359085F};
constexpr float TANH_BELOW[] = {8.370603986532087e-07F, 0.0003386440989432317F, 0.026108298066108204F, 0.46765448565907247F, 1.0F};

// N vectors of S as one: a chain of operations takes its time, so that several run side by side.
template <class S, int N>
struct Wide {
  struct Float {
    typename S::Float at[N];
  };
  template <class Function>
  [[gnu::always_inline]] static Float each(const Function& function) {
    Float v;
#pragma GCC unroll 8
    for (int i = 0; i < N; i++) v.at[i] = function(i);
    return v;
  }
  [[gnu::always_inline]] static Float set(float v) {
    return each([&](int) { return S::set(v); });
  }
  [[gnu::always_inline]] static Float add(const Float& a, const Float& b) {
    return each([&](int i) { return S::add(a.at[i], b.at[i]); });
  }
  [[gnu::always_inline]] static Float sub(const Float& a, const Float& b) {
    return each([&](int i) { return S::sub(a.at[i], b.at[i]); });
  }
  [[gnu::always_inline]] static Float mul(const Float& a, const Float& b) {
    return each([&](int i) { return S::mul(a.at[i], b.at[i]); });
  }
  [[gnu::always_inline]] static Float at_least(float low, const Float& v) {
    return each([&](int i) { return S::at_least(low, v.at[i]); });
  }
  [[gnu::always_inline]] static Float at_most(float high, const Float& v) {
    return each([&](int i) { return S::at_most(high, v.at[i]); });
  }
  [[gnu::always_inline]] static Float where_ge(const Float& a, const Float& b, const Float& yes, const Float& no) {
    return each([&](int i) { return S::where_ge(a.at[i], b.at[i], yes.at[i], no.at[i]); });
  }
  [[gnu::always_inline]] static Float times_power(const Float& v, const Float& shifted) {
    return each([&](int i) { return S::times_power(v.at[i], shifted.at[i]); });
  }
  [[gnu::always_inline]] static Float reciprocal_guess(const Float& d) {
    return each([&](int i) { return S::reciprocal_guess(d.at[i]); });
  }
};

template <class S, size_t N>
[[gnu::always_inline]] inline typename S::Float horner(typename S::Float x, const float (&coefficients)[N]) {
  typename S::Float y = S::set(coefficients[0]);
#pragma GCC unroll 8
  for (size_t i = 1; i < N; i++) y = S::add(S::mul(y, x), S::set(coefficients[i]));
  return y;
}

template <class S>
[[gnu::always_inline]] inline typename S::Float reciprocal(typename S::Float d) {
  typename S::Float y = S::reciprocal_guess(d);
#pragma GCC unroll 3
  for (int i = 0; i < 3; i++) y = S::mul(y, S::sub(S::set(2.0F), S::mul(d, y)));
  return y;
}

template <class S>
[[gnu::always_inline]] inline typename S::Float clamp(typename S::Float x, float limit) {
  return S::at_most(limit, S::at_least(-limit, x));
}

template <class S>
[[gnu::always_inline]] inline typename S::Float sigmoid(typename S::Float x) {
  x = S::sub(S::set(0.0F), clamp<S>(x, SIGMOID_LIMIT));
  const typename S::Float shifted = S::add(S::mul(x, S::set(LOG2_E)), S::set(ROUND)), n = S::sub(shifted, S::set(ROUND));
  typename S::Float r = S::sub(x, S::mul(n, S::set(LN2_HIGH)));
  r = S::sub(r, S::mul(n, S::set(LN2_LOW)));
  return reciprocal<S>(S::add(S::times_power(horner<S>(r, EXP), shifted), S::set(1.0F)));
}

template <class S>
[[gnu::always_inline]] inline typename S::Float tanh(typename S::Float x) {
  x = clamp<S>(x, TANH_LIMIT);
  const typename S::Float square = S::mul(x, x);
  return S::mul(S::mul(x, horner<S>(square, TANH_ABOVE)), reciprocal<S>(horner<S>(square, TANH_BELOW)));
}

// Bits 0 <= i < count of `mask` to bits `place` + i of a row that is zero there.
inline void put_bits(uint32_t* row, int64_t place, uint32_t mask, int64_t count) {
  const int64_t word = place / WORD_BITS, bit = place % WORD_BITS;
  if (count < WORD_BITS) mask &= (1U << count) - 1;
  row[word] |= mask << bit;
  if (bit + count > WORD_BITS) row[word + 1] |= mask >> (WORD_BITS - bit);
}

template <class S>
class Scan {
 public:
  Scan(const Lstm& p, int64_t direction, int64_t first, int64_t last)
      : p_(p), d_(direction), first_(first), rows_(last - first), chunks_(divide_up(p.outputs, S::lanes)),
        block_(p.normalize ? chunks_ : std::min(chunks_, divide_up(BLOCK_UNITS, S::lanes))), padded_(p.replicas() * chunks_ * S::lanes),
        bits_(2 * rows_ * p.words()), cell_(rows_ * padded_), sums_(S::rows * block_ * GATES * S::lanes + ALIGNMENT / 4) {
    void* start = sums_.data();  // aligned, so that no vector crosses a cache line
    sum_ = reinterpret_cast<int32_t*>((reinterpret_cast<uintptr_t>(start) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
  }

  void run() {
    const int64_t words = p_.words();
    const uint32_t* h_first = p_.h_first + (d_ * p_.batch + first_) * words;
    std::copy(h_first, h_first + rows_ * words, bits_.data());
    each_cell([&](int64_t at, float& cell) {
      cell = p_.integer_cell ? static_cast<const int8_t*>(p_.cell_first)[at] : static_cast<const float*>(p_.cell_first)[at];
    });
    uint32_t *before = bits_.data(), *after = before + rows_ * words;
    for (int64_t s = 0; s < p_.steps; s++, std::swap(before, after)) step(s, before, after);
    std::copy(before, before + rows_ * words, p_.h_last + (d_ * p_.batch + first_) * words);
    each_cell([&](int64_t at, float& cell) {
      if (p_.integer_cell) static_cast<int8_t*>(p_.cell_last)[at] = static_cast<int8_t>(cell);
      else static_cast<float*>(p_.cell_last)[at] = cell;
    });
  }

 private:
  using Float = typename S::Float;
  static constexpr int64_t BLOCK_UNITS = 64;  // their weights stay in the first cache while all rows pass

  // Calls body(place in [directions][batch][units], cell) for every cell.
  template <class Body>
  void each_cell(const Body& body) {
    for (int64_t n = 0; n < rows_; n++)
      for (int64_t u = 0; u < p_.units; u++)
        body((d_ * p_.batch + first_ + n) * p_.units + u,
             cell_[n * padded_ + u / p_.outputs * chunks_ * S::lanes + u % p_.outputs]);
  }

  int64_t length(int64_t n) const {
    return p_.lengths ? std::clamp<int64_t>(p_.lengths[first_ + n], 0, p_.steps) : p_.steps;
  }

  void step(int64_t s, const uint32_t* before, uint32_t* after) {
    const int64_t words = p_.words(), tiles = divide_up(rows_, S::rows);
    std::fill(after, after + rows_ * words, 0);
    for (int64_t chunk = 0; chunk < chunks_; chunk += block_) {
      const int64_t last = std::min(chunks_, chunk + block_);
      for (int64_t i = 0; i < tiles; i++) tile(s, rows_ * i / tiles, rows_ * (i + 1) / tiles, chunk, last, before, after);
    }
    for (int64_t n = 0; n < rows_; n++) {
      const bool runs = s < length(n);
      if (!runs) std::copy(before + n * words, before + (n + 1) * words, after + n * words);
      const int64_t at = place(runs ? time(s, n) : s, n);
      if (p_.bits) {
        if (runs) std::copy(after + n * words, after + (n + 1) * words, p_.bits + at * words);
        else std::fill(p_.bits + at * words, p_.bits + (at + 1) * words, 0);
      }
      if (p_.h && !runs) std::fill(p_.h + at * p_.units, p_.h + (at + 1) * p_.units, 0.0F);
    }
  }

  int64_t time(int64_t s, int64_t n) const { return d_ == 0 ? s : length(n) - 1 - s; }
  int64_t place(int64_t t, int64_t n) const { return (t * p_.batch + first_ + n) * p_.directions + d_; }

  // Rows first <= n < last, chunks from <= chunk < to of one step.
  void tile(int64_t s, int64_t first, int64_t last, int64_t from, int64_t to, const uint32_t* before, uint32_t* after) {
    constexpr int64_t side = GATES * S::lanes;
    const int64_t words = p_.words(), stride = block_ * side;
    const uint32_t* rows[S::rows];
    for (int64_t n = first; n < last; n++) {
      rows[n - first] = before + n * words;
      if (s + 1 < length(n)) fetch(place(time(s + 1, n), n), from, to);
    }
    for (int64_t chunk = from; chunk < to; chunk++)
      S::template count<false, GATES>(last - first, rows, words, p_.weight + (d_ * chunks_ + chunk) * words * side, side,
                                      sum_ + (chunk - from) * side, stride);
    for (int64_t n = first; n < last; n++) {
      if (s >= length(n)) continue;
      int32_t* sums = sum_ + (n - first) * stride;
      float mean[GATES] = {}, rstd[GATES];
      if (p_.normalize) statistics(sums, mean, rstd);
      const int64_t at = place(time(s, n), n);
      for (int64_t replica = 0; replica < p_.replicas(); replica++)
        for (int64_t chunk = from; chunk < to;) {
          const auto run = [&](auto number) {
            update<number()>(sums + (chunk - from) * side, mean, rstd, at, replica, chunk, cell_.data() + n * padded_,
                             after + n * words);
            chunk += number();
          };
          if (chunk + S::together <= to) run(std::integral_constant<int, S::together>());
          else run(std::integral_constant<int, 1>());
        }
    }
  }

  // Asks for the input part of these chunks one step before it is needed: it is read once, and lies in many places.
  void fetch(int64_t at, int64_t from, int64_t to) const {
    constexpr int64_t line = ALIGNMENT / 4;
    const int32_t* x = static_cast<const int32_t*>(p_.x) + at * GATES * p_.inputs;  // float32 has the same size
    for (int64_t gate = 0; gate < GATES; gate++)
      for (int64_t i = from * S::lanes; i < std::min(to * S::lanes, p_.outputs); i += line)
        __builtin_prefetch(x + gate * p_.inputs + i, 0, 2);
  }

  // Mean and reciprocal deviation of each gate; needs the sums of all chunks. `sums` are differing signs.
  void statistics(const int32_t* sums, float* mean, float* rstd) const {
    const double count = static_cast<double>(p_.outputs);
    for (int64_t gate = 0; gate < GATES; gate++) {
      int64_t total = 0, squares = 0;
      for (int64_t o = 0; o < p_.outputs; o++) {
        const int64_t sum = p_.units - 2 * sums[(o / S::lanes * GATES + gate) * S::lanes + o % S::lanes];
        total += sum;
        squares += sum * sum;
      }
      const double variance = static_cast<double>(p_.outputs * squares - total * total) / (count * count);
      mean[gate] = static_cast<float>(static_cast<double>(total) / count);
      rstd[gate] = static_cast<float>(1 / std::sqrt(variance + p_.eps));
    }
  }

  // N chunks of one row from `chunk` on; `differing`: [chunks][4][lanes] differing signs.
  template <int N>
  void update(const int32_t* differing, const float* mean, const float* rstd, int64_t at, int64_t replica, int64_t chunk,
              float* cells, uint32_t* bits) const {
    using W = Wide<S, N>;
    using Floats = typename W::Float;
    const int64_t vector = (d_ * p_.replicas() + replica) * chunks_ + chunk, unit = replica * p_.outputs + chunk * S::lanes;
    const int64_t input = at * GATES * p_.inputs + (p_.inputs == p_.units ? unit : chunk * S::lanes);
    const auto count = [&](int i) { return std::min<int64_t>(S::lanes, p_.outputs - (chunk + i) * S::lanes); };
    const auto vectors = [&](const float* of, int64_t gate) {
      return W::each([&](int i) { return S::load(of + ((vector + i) * GATES + gate) * S::lanes); });
    };
    Floats z[GATES];
#pragma GCC unroll 4
    for (int64_t gate = 0; gate < GATES; gate++) {
      const int64_t x = input + gate * p_.inputs;
      Floats zx = p_.integer_x ? W::each([&](int i) {
        return S::part_of_int(static_cast<const int32_t*>(p_.x) + x + i * S::lanes, count(i));
      }) : W::each([&](int i) { return S::part(static_cast<const float*>(p_.x) + x + i * S::lanes, count(i)); });
      if (p_.scale_x) zx = W::mul(zx, vectors(p_.scale_x, gate));
      if (p_.bias) zx = W::add(zx, vectors(p_.bias, gate));
      Floats zh = W::each([&](int i) {
        return S::sum_of(differing + (i * GATES + gate) * S::lanes, static_cast<int32_t>(p_.units));
      });
      if (p_.normalize) zh = W::mul(W::sub(zh, W::set(mean[gate])), W::set(rstd[gate]));
      z[gate] = W::add(zx, W::mul(zh, vectors(p_.scale, gate)));
    }
    const Floats zero = W::set(0.0F), one = W::set(1.0F);
    const Floats i = p_.gates == SOFT ? sigmoid<W>(z[0]) : W::where_ge(z[0], zero, one, zero);
    const Floats f = p_.gates == SOFT ? sigmoid<W>(z[1]) : W::where_ge(z[1], zero, one, zero);
    const Floats g = p_.sign_candidate ? W::where_ge(z[2], zero, one, W::set(-1.0F)) : tanh<W>(z[2]);
    const Floats o = p_.gates == BINARY ? W::where_ge(z[3], zero, one, zero) : sigmoid<W>(z[3]);
    float* at_cell = cells + (replica * chunks_ + chunk) * S::lanes;
    Floats c = W::add(W::mul(f, W::each([&](int n) { return S::load(at_cell + n * S::lanes); })), W::mul(i, g));
    if (p_.integer_cell) c = clamp<W>(c, CELL_LIMIT);
    const Floats h = W::mul(o, p_.cell_readout ? c : tanh<W>(c));
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) {
      S::store(at_cell + n * S::lanes, c.at[n]);
      if (p_.h) S::store_part(p_.h + at * p_.units + unit + n * S::lanes, h.at[n], count(n));
      const Float threshold = p_.threshold ? S::load(p_.threshold + (vector + n) * S::lanes) : S::set(0.0F);
      const uint32_t mask = p_.and_feedback ? S::mask_ge(c.at[n], threshold) & S::mask_ge(o.at[n], S::set(1.0F))
                                            : S::mask_ge(h.at[n], threshold);
      put_bits(bits, unit + n * S::lanes, mask, count(n));
    }
  }

  const Lstm& p_;
  const int64_t d_, first_, rows_, chunks_, block_, padded_;
  std::vector<uint32_t> bits_;
  std::vector<float> cell_;
  std::vector<int32_t> sums_;
  int32_t* sum_;
};

template <class S>
void scan(const Lstm& p, int64_t direction, int64_t first, int64_t last) {
  Scan<S>(p, direction, first, last).run();
}

}  // namespace
}  // namespace bnn
