// What training_loops.hpp needs of 256-bit vectors. Include it behind BNN_TARGET.
#pragma once

#include "simd_avx2.hpp"
#include "training_loops.hpp"

namespace bnn {
namespace {

struct Training256 : Avx2 {
  using Rest = Single;

  static Float from_int16(const int16_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)p)));
  }
  static void store_int16(int16_t* p, const int32_t* v) {
    const __m256i sums = _mm256_loadu_si256((const __m256i*)v);
    _mm_storeu_si128((__m128i*)p, _mm_packs_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1)));
  }
  static Float where(uint32_t mask, Float yes, Float no) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int32_t>(mask)), bit);
    return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, bit)));
  }
};

}  // namespace
}  // namespace bnn
