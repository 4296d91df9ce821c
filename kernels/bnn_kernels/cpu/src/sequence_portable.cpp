// Recurrent networks and attention on any processor.

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "attention.hpp"
#include "lstm.hpp"
#include "normalized.hpp"
#include "simd_portable.hpp"

namespace bnn {
namespace {

struct SequencePortable : Portable {
  static constexpr int rows = 1, together = 2;

  // out[i] = differing (or, with AND, common) bits of the words with lane i of the weights [words][stride],
  // 0 <= i < VECTORS * lanes.
  template <bool AND, int VECTORS>
  static void count(int64_t, const uint32_t* const* x, int64_t words, const uint32_t* w, int64_t stride, int32_t* out, int64_t) {
    int32_t sum[VECTORS * lanes] = {};
    for (int64_t k = 0; k < words; k++, w += stride)
      for (int i = 0; i < VECTORS * lanes; i++) sum[i] += std::popcount(AND ? x[0][k] & w[i] : x[0][k] ^ w[i]);
    std::memcpy(out, sum, sizeof(sum));
  }

  static Float part(const float* p, int64_t count) {
    Float v = {};
    std::memcpy(&v, p, std::min<int64_t>(count, lanes) * sizeof(float));
    return v;
  }
  static Float part_of_int(const int32_t* p, int64_t count) {
    Int v = {};
    std::memcpy(&v, p, std::min<int64_t>(count, lanes) * sizeof(int32_t));
    return __builtin_convertvector(v, Float);
  }
  static void store_part(float* p, Float v, int64_t count) { std::memcpy(p, &v, std::min<int64_t>(count, lanes) * sizeof(float)); }
  static Float sum_of(const int32_t* differing, int32_t terms) {
    return __builtin_convertvector(terms - 2 * copy<Int>(differing), Float);
  }
  static Float where_ge(Float a, Float b, Float yes, Float no) { return a >= b ? yes : no; }
  static Float times_power(Float v, Float shifted) { return (Float)((Word)v + ((Word)shifted << 23)); }
  static Float reciprocal_guess(Float d) { return (Float)(0x7EF311C7U - (Word)d); }

  static constexpr int byte_lanes = 32;
  struct Byte {
    uint8_t at[byte_lanes];
  };
  template <class Function>
  static Byte each_byte(const Byte& a, const Byte& b, const Function& function) {
    Byte v;
    for (int i = 0; i < byte_lanes; i++) v.at[i] = static_cast<uint8_t>(function(a.at[i], b.at[i]));
    return v;
  }
  static Byte load_bytes(const uint8_t* p) { return copy<Byte>(p); }
  static void store_bytes(uint8_t* p, const Byte& v) { std::memcpy(p, &v, sizeof(v)); }
  static Byte set_byte(uint8_t v) {
    Byte bytes;
    std::memset(&bytes, v, sizeof(bytes));
    return bytes;
  }
  static Byte xor_bytes(const Byte& a, const Byte& b) {
    return each_byte(a, b, [](uint8_t x, uint8_t y) { return x ^ y; });
  }
  static Byte count_bytes(const Byte& a) {
    return each_byte(a, a, [](uint8_t v, uint8_t) {
      v = static_cast<uint8_t>(v - (v >> 1 & 0x55));
      v = static_cast<uint8_t>((v & 0x33) + (v >> 2 & 0x33));
      return (v + (v >> 4)) & 0x0f;
    });
  }
  static Byte add_bytes(const Byte& a, const Byte& b) {
    return each_byte(a, b, [](uint8_t x, uint8_t y) { return x + y; });
  }
  static Byte min_bytes(const Byte& a, const Byte& b) {
    return each_byte(a, b, [](uint8_t x, uint8_t y) { return std::min(x, y); });
  }
  static Byte max_bytes(const Byte& a, const Byte& b) {
    return each_byte(a, b, [](uint8_t x, uint8_t y) { return std::max(x, y); });
  }
  static int64_t least_byte(const Byte& v) { return *std::min_element(v.at, v.at + byte_lanes); }
  static uint32_t load_mask(const uint32_t* words) { return *words; }
  static void store_mask(uint32_t* words, uint32_t mask) { *words = mask; }
  static Byte where_mask(uint32_t mask, const Byte& yes, const Byte& no) {
    Byte v;
    for (int i = 0; i < byte_lanes; i++) v.at[i] = (mask >> i & 1) != 0 ? yes.at[i] : no.at[i];
    return v;
  }
  static uint32_t mask_le(const Byte& a, const Byte& b) {
    uint32_t mask = 0;
    for (int i = 0; i < byte_lanes; i++) mask |= static_cast<uint32_t>(a.at[i] <= b.at[i]) << i;
    return mask;
  }

  static int64_t table_sum(const Table& table, const uint8_t* m, const uint32_t* mask, int64_t words, int64_t least, int64_t) {
    return bnn::table_sum(table, m, mask, words, least);
  }
};

}  // namespace

const SequenceKernel sequence_portable = {SequencePortable::lanes, SequencePortable::rows, scan<SequencePortable>,
                                          attend<SequencePortable>, pack_normalized<SequencePortable>};

}  // namespace bnn
