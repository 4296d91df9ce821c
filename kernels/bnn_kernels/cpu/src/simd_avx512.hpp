// 512-bit vectors. Include it behind BNN_TARGET.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "simd_avx2.hpp"

namespace bnn {
namespace {

struct Avx512 {
  using Rest = Avx2;  // for fewer numbers
  static constexpr int lanes = 16;
  static constexpr int pixels = 6, panels = 4;
  using Float = __m512;
  using Word = __m512i;

  static Float load(const float* p) { return _mm512_loadu_ps(p); }
  static Float load_bfloat16(const uint16_t* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
  }
  static Float load_float16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
  static Float from_int(const int32_t* p) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(p)); }
  static void store(float* p, Float v) { _mm512_storeu_ps(p, v); }
  // Not the instruction of AVX512_BF16: it takes subnormal numbers for zero.
  static Float store_bfloat16(uint16_t* p, Float v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
    return _mm512_castsi512_ps(_mm512_and_si512(rounded, _mm512_set1_epi32(-65536)));
  }
  static Float store_float16(uint16_t* p, Float v) {
    const __m256i half = _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_storeu_si256((__m256i*)p, half);
    return _mm512_cvtph_ps(half);
  }

  // Whole numbers nearest to v, plus zero, in one byte each.
  static void store_bytes(uint8_t* p, Float v, int32_t zero) {
    const __m512i numbers = _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(zero));
    _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(numbers));
  }

  static void keep(Float& v) { asm volatile("" : "+v"(v)); }  // as if v were used and changed

  static Float set(float v) { return _mm512_set1_ps(v); }
  static Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float add_neighbours(Float a, Float b) {  // sums of two, of a and then of b
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    return add(_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b));
  }
  static Float sub(Float a, Float b) { return _mm512_sub_ps(a, b); }
  static Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float div(Float a, Float b) { return _mm512_div_ps(a, b); }
  // v times 2 to the power of what the lowest bits of `steps` say.
  static Float times_power_of_two(Float v, Float steps) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), _mm512_slli_epi32(_mm512_castps_si512(steps), 23)));
  }
  static Float multiply_add(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
  static Float scale_unless_positive(Float v, Float factor) {  // NaN is scaled
    return _mm512_mask_mul_ps(v, _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NGT_UQ), factor, v);
  }
  static Float at_least(float low, Float v) { return _mm512_max_ps(set(low), v); }  // the second operand where one is NaN
  static Float at_most(float high, Float v) { return _mm512_min_ps(set(high), v); }
  static Float cut(Float low, Float v, Float high) { return _mm512_min_ps(_mm512_max_ps(v, low), high); }  // NaN becomes low
  static Float larger(Float most, Float v) {  // NaN stays, in whichever it is
    return _mm512_mask_max_ps(most, _mm512_cmp_ps_mask(most, most, _CMP_ORD_Q), most, v);
  }
  static uint32_t mask_ge(Float a, Float b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static uint32_t mask_ge(const int32_t* a, const int32_t* b) {
    return _mm512_cmpge_epi32_mask(_mm512_loadu_si512(a), _mm512_loadu_si512(b));
  }

  static Word zero() { return _mm512_setzero_si512(); }
  static Word set_bits(Word words, Float a, Float b, uint32_t bit) {
    return _mm512_mask_or_epi32(words, _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ), words, _mm512_set1_epi32((int32_t)bit));
  }
  static void store_words(uint32_t* p, Word v) { _mm512_storeu_si512(p, v); }
};

}  // namespace
}  // namespace bnn
