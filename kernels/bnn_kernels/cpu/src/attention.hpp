// Attention on bits, for an instruction set S: bnn_kernels/attention.py row by row of queries.
//
// A row of scores (differing signs, one byte per key) stays in the first cache: it gives the row's least count, for the elastic
// rule the sum of exponentials, and the attention bits of each plane. The bits of a few rows then meet the values, which are
// packed along the keys. Keys and values of a head are transposed once per thread.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "sequence.hpp"

namespace bnn {
namespace {

// Memory whose start is aligned.
template <class T>
class Aligned {
 public:
  explicit Aligned(int64_t size) : bytes_(size * sizeof(T) + ALIGNMENT) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(bytes_.data());
    data_ = reinterpret_cast<T*>(bytes_.data() + (round_up(static_cast<int64_t>(at), ALIGNMENT) - static_cast<int64_t>(at)));
  }
  T* get() const { return data_; }

 private:
  std::vector<char> bytes_;
  T* data_;
};

// The exponentials of one head, in the forms that an instruction set may want.
struct Table {
  int64_t entries;
  const int32_t* units;
  double exact[MOST_FEATURES + 1];
  alignas(ALIGNMENT) uint8_t bytes[4][64];  // byte i of the first 64 entries

  void fill(const int32_t* row, int64_t count) {
    entries = count;
    units = row;
    std::memset(bytes, 0, sizeof(bytes));
    for (int64_t n = 0; n < count; n++) {
      exact[n] = row[n];
      for (int64_t i = 0; i < 4 && n < 64; i++) bytes[i][n] = static_cast<uint8_t>(static_cast<uint32_t>(row[n]) >> 8 * i);
    }
  }
  int64_t larger_than(double bound) const {
    int64_t count = 0;
    for (int64_t n = 0; n < entries; n++) count += exact[n] > bound;
    return count;
  }
};

// The sum of entries m - least over the keys of `mask`.
inline int64_t table_sum(const Table& table, const uint8_t* m, const uint32_t* mask, int64_t words, int64_t least) {
  int64_t total = 0;
  const int32_t* units = table.units - least;
  for (int64_t w = 0; w < words; w++, m += WORD_BITS) {
    if (mask[w] == ~0U)
      for (int64_t i = 0; i < WORD_BITS; i++) total += units[m[i]];
    else
      for (uint32_t left = mask[w]; left; left &= left - 1) total += units[m[std::countr_zero(left)]];
  }
  return total;
}

template <class S>
class Attend {
 public:
  explicit Attend(const Attention& p)
      : p_(p), bytes_(divide_up(p.features, 8)), key_blocks_(divide_up(p.keys, S::byte_lanes)),
        row_words_(key_blocks_ * S::byte_lanes / WORD_BITS), value_row_(round_up(p.values, S::lanes)),
        keys_(key_blocks_ * bytes_ * S::byte_lanes), values_(p.key_words() * value_row_), query_(PAIR * bytes_ * S::byte_lanes),
        scores_(PAIR * key_blocks_ * S::byte_lanes), mask_(row_words_), bits_(p.planes * S::rows * row_words_),
        ones_(p.planes * S::rows), sums_(S::rows * VECTORS * S::lanes) {
    for (int64_t plane = 0; plane < p.planes; plane++) relative_ |= p.rules[plane] != BOOL;
  }

  // Blocks of S::rows queries, counted over batch and heads.
  void run(int64_t first, int64_t last) {
    const int64_t blocks = divide_up(p_.queries, S::rows);
    for (int64_t item = first; item < last; item++) {
      const int64_t head = item / blocks, from = item % blocks * S::rows;
      if (item == first || item % blocks == 0) enter(head / p_.heads, head % p_.heads);
      block(from, std::min<int64_t>(p_.queries, from + S::rows));
    }
  }

 private:
  static constexpr int PAIR = 2, VECTORS = 4;
  using Byte = typename S::Byte;

  void enter(int64_t batch, int64_t head) {
    batch_ = batch;
    head_ = head;
    const int64_t words = p_.words(), key_words = p_.key_words();
    std::memset(keys_.get(), 0, key_blocks_ * bytes_ * S::byte_lanes);
    for (int64_t j = 0; j < p_.keys; j++) {
      const uint32_t* key = p_.k + ((batch * p_.keys + j) * p_.heads + head) * words;
      uint8_t* to = keys_.get() + j / S::byte_lanes * bytes_ * S::byte_lanes + j % S::byte_lanes;
      for (int64_t i = 0; i < bytes_; i++) to[i * S::byte_lanes] = byte_of(key, i);
    }
    const uint32_t* value = p_.v + (batch * p_.heads + head) * p_.values * key_words;
    for (int64_t w = 0; w < key_words; w++)
      for (int64_t c = 0; c < value_row_; c++) values_.get()[w * value_row_ + c] = c < p_.values ? value[c * key_words + w] : 0;
    if (p_.table) table_.fill(p_.table + (p_.table_heads ? head : 0) * (p_.features + 1), p_.features + 1);
    if (!p_.mask_queries) set_mask(0);
  }

  static uint8_t byte_of(const uint32_t* words, int64_t i) { return static_cast<uint8_t>(words[i / 4] >> 8 * (i % 4)); }

  // Bits of the keys that take part in the row of `query`; those behind the last key do not.
  void set_mask(int64_t query) {
    const int64_t words = p_.key_words(), rest = p_.keys % WORD_BITS;
    const int64_t row = (p_.mask_batch ? batch_ : 0) * (p_.mask_queries ? p_.queries : 1) + query;
    std::memset(mask_.get(), 0, row_words_ * sizeof(uint32_t));
    for (int64_t w = 0; w < words; w++) mask_.get()[w] = p_.mask ? p_.mask[row * words + w] : ~0U;
    if (rest) mask_.get()[words - 1] &= (1U << rest) - 1;
  }

  void block(int64_t from, int64_t to) {
    for (int64_t n = from; n < to;) {
      const bool pair = n + 1 < to && !p_.mask_queries;
      int64_t least[PAIR], most[PAIR];
      if (p_.mask_queries) set_mask(n);
      if (pair) scores<2>(n, least, most);
      else scores<1>(n, least, most);
      for (int64_t i = 0; i <= pair; i++, n++)
        for (int64_t plane = 0; plane < p_.planes; plane++)
          ones_.get()[plane * S::rows + n - from] =
              decide(plane, scores_.get() + i * key_blocks_ * S::byte_lanes, least[i], most[i], row(plane, n - from));
    }
    for (int64_t plane = 0; plane < p_.planes; plane++) {
      const uint32_t* rows[S::rows];
      for (int64_t n = from; n < to; n++) rows[n - from] = row(plane, n - from);
      for (int64_t c = 0; c < value_row_; c += VECTORS * S::lanes) {
        const int64_t vectors = std::min<int64_t>(VECTORS, (value_row_ - c) / S::lanes), stride = VECTORS * S::lanes;
        multiply(vectors, to - from, rows, values_.get() + c, stride);
        for (int64_t n = from; n < to; n++)
          result(plane, n, c, std::min(p_.values - c, vectors * S::lanes), sums_.get() + (n - from) * stride,
                 ones_.get()[plane * S::rows + n - from]);
      }
    }
  }

  uint32_t* row(int64_t plane, int64_t n) const { return bits_.get() + (plane * S::rows + n) * row_words_; }

  // Differing signs of queries n, n + 1, ... with every key; where a rule wants them, the least and the most of each row.
  template <int QUERIES>
  void scores(int64_t n, int64_t* least, int64_t* most) {
    if (bytes_ == 8) return relative_ ? scores<QUERIES, 8, true>(n, least, most) : scores<QUERIES, 8, false>(n, least, most);
    if (bytes_ == 4) return scores<QUERIES, 4, true>(n, least, most);
    return scores<QUERIES, 0, true>(n, least, most);
  }

  // BYTES: of a key, 0 for any number.
  template <int QUERIES, int BYTES, bool RELATIVE>
  [[gnu::noinline]] void scores(int64_t n, int64_t* least, int64_t* most) {
    const int64_t bytes = BYTES ? BYTES : bytes_;
    for (int q = 0; q < QUERIES; q++) {
      const uint32_t* words = p_.q + ((batch_ * p_.queries + n + q) * p_.heads + head_) * p_.words();
      for (int64_t i = 0; i < bytes; i++)
        S::store_bytes(query_.get() + (i * QUERIES + q) * S::byte_lanes, S::set_byte(byte_of(words, i)));
    }
    const int64_t row = key_blocks_ * S::byte_lanes;
    Byte low[QUERIES], high[QUERIES];
    for (int q = 0; q < QUERIES; q++) low[q] = S::set_byte(255), high[q] = S::set_byte(0);
    const uint8_t* key = keys_.get();
    for (int64_t b = 0; b < key_blocks_; b++) {
      Byte sum[QUERIES];
      for (int q = 0; q < QUERIES; q++) sum[q] = S::set_byte(0);
      const uint8_t* query = query_.get();
#pragma GCC unroll 8
      for (int64_t i = 0; i < bytes; i++, key += S::byte_lanes) {
        const Byte signs = S::load_bytes(key);
#pragma GCC unroll 2
        for (int q = 0; q < QUERIES; q++, query += S::byte_lanes)
          sum[q] = S::add_bytes(sum[q], S::count_bytes(S::xor_bytes(signs, S::load_bytes(query))));
      }
      const auto mask = S::load_mask(mask_.get() + b * S::byte_lanes / WORD_BITS);
#pragma GCC unroll 2
      for (int q = 0; q < QUERIES; q++) {
        S::store_bytes(scores_.get() + q * row + b * S::byte_lanes, sum[q]);
        if (!RELATIVE) continue;
        high[q] = S::max_bytes(high[q], S::where_mask(mask, sum[q], S::set_byte(0)));
        low[q] = S::min_bytes(low[q], S::where_mask(mask, sum[q], S::set_byte(255)));
      }
    }
    for (int q = 0; q < QUERIES; q++) {
      least[q] = S::least_byte(low[q]);
      most[q] = 255 - S::least_byte(S::xor_bytes(high[q], S::set_byte(255)));
    }
  }

  // The attention bits of one row, m < base + n of attention.py, and how many there are.
  int32_t decide(int64_t plane, const uint8_t* m, int64_t least, int64_t most, uint32_t* bits) {
    const double limit = p_.limit[plane * p_.heads + head_];
    int64_t below = 0;
    if (p_.rules[plane] == BOOL) below = whole((static_cast<double>(p_.features) - limit) / 2);
    else if (p_.rules[plane] == MAX_RELATIVE) below = least + whole(limit / 2);
    else {
      const int64_t total = S::table_sum(table_, m, mask_.get(), row_words_, least, most);
      below = least + table_.larger_than(limit * static_cast<double>(total));
    }
    if (below <= 0) {
      std::memset(bits, 0, row_words_ * sizeof(uint32_t));
      return 0;
    }
    const Byte top = S::set_byte(static_cast<uint8_t>(std::min<int64_t>(below - 1, 255)));
    const uint32_t* mask = mask_.get();
    int32_t ones = 0;
    constexpr int64_t step = S::byte_lanes / WORD_BITS;
    for (int64_t b = 0; b < key_blocks_; b++, m += S::byte_lanes, bits += step, mask += step) {
      const auto found = S::mask_le(S::load_bytes(m), top) & S::load_mask(mask);
      S::store_mask(bits, found);
      ones += std::popcount(found);
    }
    return ones;
  }

  // How many counts m >= 0 are at most `level`, 256 at most.
  static int64_t whole(double level) { return level >= 256 ? 256 : level >= 0 ? static_cast<int64_t>(level) + 1 : 0; }

  void multiply(int64_t vectors, int64_t count, const uint32_t* const* rows, const uint32_t* values, int64_t stride) {
    const int64_t words = p_.key_words();
    if (vectors == 4) S::template count<true, 4>(count, rows, words, values, value_row_, sums_.get(), stride);
    else if (vectors == 3) S::template count<true, 3>(count, rows, words, values, value_row_, sums_.get(), stride);
    else if (vectors == 2) S::template count<true, 2>(count, rows, words, values, value_row_, sums_.get(), stride);
    else S::template count<true, 1>(count, rows, words, values, value_row_, sums_.get(), stride);
  }

  // Values c <= v < c + count of query n from `sum` common bits.
  void result(int64_t plane, int64_t n, int64_t c, int64_t count, const int32_t* sum, int32_t ones) const {
    const int64_t at = ((batch_ * p_.queries + n) * p_.heads + head_) * p_.values + c;
    if (!p_.scale) {
      int32_t* y = static_cast<int32_t*>(p_.y) + at;
      for (int64_t v = 0; v < count; v++) y[v] = 2 * sum[v] - ones;
      return;
    }
    float* y = static_cast<float*>(p_.y) + at;
    const float scale = p_.scale[plane * p_.heads + head_];
    if (plane == 0)
      for (int64_t v = 0; v < count; v++) y[v] = static_cast<float>(2 * sum[v] - ones) * scale;
    else
      for (int64_t v = 0; v < count; v++) y[v] += static_cast<float>(2 * sum[v] - ones) * scale;
  }

  const Attention& p_;
  const int64_t bytes_, key_blocks_, row_words_, value_row_;
  int64_t batch_ = 0, head_ = 0;
  bool relative_ = false;  // a rule compares with the row's least count
  Aligned<uint8_t> keys_;  // [blocks of keys][bytes][lanes]
  Aligned<uint32_t> values_;  // [key words][values, filled up]
  Aligned<uint8_t> query_;  // [bytes][queries][lanes], each byte in all lanes
  Aligned<uint8_t> scores_;  // [PAIR][keys, filled up]
  Aligned<uint32_t> mask_, bits_;  // bits of the keys; [planes][rows]
  Aligned<int32_t> ones_;  // of the rows of bits_
  Aligned<int32_t> sums_;
  Table table_;
};

template <class S>
void attend(const Attention& p, int64_t first, int64_t last) {
  Attend<S>(p).run(first, last);
}

}  // namespace
}  // namespace bnn
