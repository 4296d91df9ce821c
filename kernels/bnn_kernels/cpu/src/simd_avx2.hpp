// 256-bit vectors, with FMA and F16C. Include it behind BNN_TARGET.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "simd_portable.hpp"

namespace bnn {
namespace {

struct Avx2 {
  using Rest = Portable;  // for fewer numbers
  static constexpr int lanes = 8;
  static constexpr int pixels = 6, panels = 1;  // of a tile of the downsample
  using Float = __m256;
  using Word = __m256i;

  static __m128i load_half(const uint16_t* p) { return _mm_loadu_si128((const __m128i*)p); }
  static void store_half(uint16_t* p, __m128i v) { _mm_storeu_si128((__m128i*)p, v); }

  static Float load(const float* p) { return _mm256_loadu_ps(p); }
  static Float load_bfloat16(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_half(p)), 16));
  }
  static Float load_float16(const uint16_t* p) { return _mm256_cvtph_ps(load_half(p)); }
  static Float from_int(const int32_t* p) { return _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i*)p)); }
  static void store(float* p, Float v) { _mm256_storeu_ps(p, v); }
  static Float store_bfloat16(uint16_t* p, Float v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan);
    const __m256i high = _mm256_srli_epi32(rounded, 16);
    store_half(p, _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
    return _mm256_castsi256_ps(_mm256_and_si256(rounded, _mm256_set1_epi32(-65536)));
  }
  static Float store_float16(uint16_t* p, Float v) {
    const __m128i half = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    store_half(p, half);
    return _mm256_cvtph_ps(half);
  }

  // Whole numbers nearest to v, plus zero, in one byte each.
  static void store_bytes(uint8_t* p, Float v, int32_t zero) {
    const __m256i numbers = _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(zero));
    const __m256i low = _mm256_set1_epi32(0x0c080400);
    const __m256i fours = _mm256_shuffle_epi8(numbers, low);
    _mm_storel_epi64((__m128i*)p, _mm_unpacklo_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1)));
  }

  static void keep(Float& v) { asm volatile("" : "+x"(v)); }  // as if v were used and changed

  static Float set(float v) { return _mm256_set1_ps(v); }
  static Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float add_neighbours(Float a, Float b) {  // sums of two, of a and then of b
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_hadd_ps(a, b)), 0xd8));
  }
  static Float sub(Float a, Float b) { return _mm256_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm256_div_ps(a, b); }
  // v times 2 to the power of what the lowest bits of `steps` say.
  static Float times_power_of_two(Float v, Float steps) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), _mm256_slli_epi32(_mm256_castps_si256(steps), 23)));
  }
  static Float multiply_add(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
  static Float positive(Float v, Float otherwise) {
    return _mm256_blendv_ps(otherwise, v, _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_GT_OQ));
  }
  static Float scale_unless_positive(Float v, Float factor) { return positive(v, mul(factor, v)); }
  static Float at_least(float low, Float v) { return _mm256_max_ps(set(low), v); }  // the second operand where one is NaN
  static Float at_most(float high, Float v) { return _mm256_min_ps(set(high), v); }
  static Float cut(Float low, Float v, Float high) { return _mm256_min_ps(_mm256_max_ps(v, low), high); }  // NaN becomes low
  static Float larger(Float most, Float v) {  // NaN stays, in whichever it is
    return _mm256_blendv_ps(_mm256_max_ps(most, v), most, _mm256_cmp_ps(most, most, _CMP_UNORD_Q));
  }
  static Float ge(Float a, Float b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
  static uint32_t mask_ge(Float a, Float b) { return (uint32_t)_mm256_movemask_ps(ge(a, b)); }
  static uint32_t mask_ge(const int32_t* a, const int32_t* b) {
    const __m256i less = _mm256_cmpgt_epi32(_mm256_loadu_si256((const __m256i*)b), _mm256_loadu_si256((const __m256i*)a));
    return (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(less)) ^ 0xff;
  }

  static Word zero() { return _mm256_setzero_si256(); }
  static Word set_bits(Word words, Float a, Float b, uint32_t bit) {
    const __m256i mask = _mm256_castps_si256(ge(a, b));
    return _mm256_or_si256(words, _mm256_and_si256(mask, _mm256_set1_epi32((int32_t)bit)));
  }
  static void store_words(uint32_t* p, Word v) { _mm256_storeu_si256((__m256i*)p, v); }
};

}  // namespace
}  // namespace bnn
