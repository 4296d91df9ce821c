// Plain C++, for compilers to vectorise. Also what the last channels of a row run on, where they do not fill a vector.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace bnn {
namespace {

inline float float_of_bits(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t bits_of_float(float v) { return std::bit_cast<uint32_t>(v); }

inline float bfloat16_to_float(uint16_t h) { return float_of_bits(static_cast<uint32_t>(h) << 16); }

// Round to nearest even; NaN becomes the quiet NaN that torch writes.
inline uint16_t float_to_bfloat16(float v) {
  if (v != v) return 0x7fc0;
  const uint32_t bits = bits_of_float(v);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float float16_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3ff;
  if (exponent == 31) return float_of_bits(sign | 0x7f800000 | mantissa << 13);
  if (exponent == 0) return float_of_bits(sign | bits_of_float(static_cast<float>(mantissa) * 0x1p-24F));
  return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

inline uint16_t float_to_float16(float v) {
  const uint32_t bits = bits_of_float(v), magnitude = bits & 0x7fffffff;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // 65520 and above round to infinity
  if (magnitude < 0x38800000)  // subnormal: adding 0.5 leaves the rounded mantissa in the last bits
    return sign | static_cast<uint16_t>(bits_of_float(float_of_bits(magnitude) + 0.5F) - 0x3f000000);
  return sign | static_cast<uint16_t>((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

struct Scalar {
  static constexpr int lanes = 1;
  using Float = float;
  using Word = uint32_t;

  static Float load(const float* p) { return *p; }
  static Float load_bfloat16(const uint16_t* p) { return bfloat16_to_float(*p); }
  static Float load_float16(const uint16_t* p) { return float16_to_float(*p); }
  static Float from_int(const int32_t* p) { return static_cast<float>(*p); }
  static void store(float* p, Float v) { *p = v; }
  // Store what is rounded, return it as float.
  static Float store_bfloat16(uint16_t* p, Float v) { return bfloat16_to_float(*p = float_to_bfloat16(v)); }
  static Float store_float16(uint16_t* p, Float v) { return float16_to_float(*p = float_to_float16(v)); }

  // The whole number nearest to v, plus zero, in a byte: adding 1.5 * 2^23 rounds what is smaller than 2^22.
  static void store_bytes(uint8_t* p, Float v, int32_t zero) {
    *p = static_cast<uint8_t>(static_cast<int32_t>((v + 0x1.8p23F) - 0x1.8p23F) + zero);
  }

  static Float set(float v) { return v; }
  static Float add(Float a, Float b) { return a + b; }
  static Float sub(Float a, Float b) { return a - b; }
  static Float mul(Float a, Float b) { return a * b; }
  static Float div(Float a, Float b) { return a / b; }
  // v times 2 to the power of what the lowest bits of `steps` say.
  static Float times_power_of_two(Float v, Float steps) { return float_of_bits(bits_of_float(v) + (bits_of_float(steps) << 23)); }
  static Float multiply_add(Float a, Float b, Float c) { return a * b + c; }
  static Float positive(Float v, Float otherwise) { return v > 0 ? v : otherwise; }  // NaN takes the other
  static Float scale_unless_positive(Float v, Float factor) { return positive(v, mul(factor, v)); }
  static Float at_least(float low, Float v) { return v < low ? low : v; }  // NaN stays
  static Float at_most(float high, Float v) { return v > high ? high : v; }
  static Float cut(Float low, Float v, Float high) { return at_most(high, v > low ? v : low); }  // NaN becomes low
  static Float larger(Float most, Float v) { return (most >= v) | (most != most) ? most : v; }  // NaN stays
  static uint32_t mask_ge(Float a, Float b) { return a >= b; }  // bit of each lane
  static uint32_t mask_ge(const int32_t* a, const int32_t* b) { return *a >= *b; }

  static Word zero() { return 0; }
  static Word set_bits(Word words, Float a, Float b, uint32_t bit) { return words | (a >= b ? bit : 0); }
  static void store_words(uint32_t* p, Word v) { *p = v; }
};

// 128-bit vectors of GCC and clang: SSE2, NEON, or whatever the target has.
struct Portable {
  using Rest = Scalar;  // for fewer numbers
  static constexpr int lanes = 4;
  static constexpr int pixels = 2, panels = 1;  // of a tile of the downsample
  typedef float Float __attribute__((vector_size(16)));
  typedef uint32_t Word __attribute__((vector_size(16)));
  typedef int32_t Int __attribute__((vector_size(16)));

  template <class To, class From>
  static To copy(const From* p) {
    To v;
    std::memcpy(&v, p, sizeof(To));
    return v;
  }
  static Float load(const float* p) { return copy<Float>(p); }
  static Float load_bfloat16(const uint16_t* p) { return each(p, bfloat16_to_float); }
  static Float load_float16(const uint16_t* p) { return each(p, float16_to_float); }
  static Float each(const uint16_t* p, float (*convert)(uint16_t)) {
    return Float{convert(p[0]), convert(p[1]), convert(p[2]), convert(p[3])};
  }
  static Float from_int(const int32_t* p) { return __builtin_convertvector(copy<Int>(p), Float); }
  static void store(float* p, Float v) { std::memcpy(p, &v, sizeof(v)); }
  static Float store_bfloat16(uint16_t* p, Float v) {
    for (int i = 0; i < lanes; i++) v[i] = Scalar::store_bfloat16(p + i, v[i]);
    return v;
  }
  static Float store_float16(uint16_t* p, Float v) {
    for (int i = 0; i < lanes; i++) v[i] = Scalar::store_float16(p + i, v[i]);
    return v;
  }
  static void store_bytes(uint8_t* p, Float v, int32_t zero) {
    const Int numbers = __builtin_convertvector((v + 0x1.8p23F) - 0x1.8p23F, Int) + zero;
    for (int i = 0; i < lanes; i++) p[i] = static_cast<uint8_t>(numbers[i]);
  }

#if defined(__x86_64__)
  static void keep(Float& v) { asm volatile("" : "+x"(v)); }  // as if v were used and changed
#elif defined(__aarch64__)
  static void keep(Float& v) { asm volatile("" : "+w"(v)); }
#else
  static void keep(Float& v) { asm volatile("" : "+m"(v)); }
#endif

  static Float set(float v) { return Float{v, v, v, v}; }
  static Float add(Float a, Float b) { return a + b; }
  static Float add_neighbours(Float a, Float b) {  // sums of two, of a and then of b
    return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
  }
  static Float sub(Float a, Float b) { return a - b; }
  static Float mul(Float a, Float b) { return a * b; }
  static Float div(Float a, Float b) { return a / b; }
  // v times 2 to the power of what the lowest bits of `steps` say.
  static Float times_power_of_two(Float v, Float steps) { return (Float)((Word)v + ((Word)steps << 23)); }
  static Float multiply_add(Float a, Float b, Float c) { return a * b + c; }
  static Float positive(Float v, Float otherwise) { return v > 0.0F ? v : otherwise; }
  static Float scale_unless_positive(Float v, Float factor) { return positive(v, mul(factor, v)); }
  static Float at_least(float low, Float v) { return v < low ? set(low) : v; }
  static Float at_most(float high, Float v) { return v > high ? set(high) : v; }
  static Float cut(Float low, Float v, Float high) {  // NaN becomes low
    v = v > low ? v : low;
    return v < high ? v : high;
  }
  static Float larger(Float most, Float v) { return (most >= v) | (most != most) ? most : v; }  // NaN stays
  static uint32_t bits(Int mask) {
    mask &= Int{1, 2, 4, 8};
    return static_cast<uint32_t>(mask[0] | mask[1] | mask[2] | mask[3]);
  }
  static uint32_t mask_ge(Float a, Float b) { return bits(a >= b); }
  static uint32_t mask_ge(const int32_t* a, const int32_t* b) { return bits(copy<Int>(a) >= copy<Int>(b)); }

  static Word zero() { return Word{}; }
  static Word set_bits(Word words, Float a, Float b, uint32_t bit) { return words | (static_cast<Word>(a >= b) & bit); }
  static void store_words(uint32_t* p, Word v) { std::memcpy(p, &v, sizeof(v)); }
};

}  // namespace
}  // namespace bnn
