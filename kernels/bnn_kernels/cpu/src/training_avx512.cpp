// Training with AVX-512.
#if defined(__x86_64__)

#include <algorithm>
#include <cstring>

#include <immintrin.h>

#include "training.hpp"
#include "target.hpp"

BNN_TARGET("avx2,fma,f16c,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512dq")

#include "simd_avx512.hpp"
#include "training_avx2.hpp"

namespace bnn {
namespace {

struct Training512 : Avx512 {
  using Rest = Training256;

  static Float from_int16(const int16_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i*)p)));
  }
  static void store_int16(int16_t* p, const int32_t* v) {
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_loadu_si512(v)));
  }
  static Float where(uint32_t mask, Float yes, Float no) {
    return _mm512_mask_mov_ps(no, static_cast<__mmask16>(mask), yes);
  }
};

}  // namespace

const TrainingKernel training_avx512 = training_kernel<Training512>;

}  // namespace bnn

BNN_TARGET_END

#endif
