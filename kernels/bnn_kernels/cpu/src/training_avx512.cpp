// Training with AVX-512.
#if defined(__x86_64__)

#include <algorithm>
#include <cstring>

#include <immintrin.h>

#include "training.hpp"
#include "target.hpp"

BNN_TARGET("avx2,fma,f16c,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512dq")

#include "simd_avx512.hpp"
#include "training_loops.hpp"

namespace bnn {
namespace {

struct Training512 : Avx512 {
  static Float where(uint32_t mask, Float yes, Float no) {
    return _mm512_mask_mov_ps(no, static_cast<__mmask16>(mask), yes);
  }
};

}  // namespace

const TrainingKernel training_avx512 = training_kernel<Training512>;

}  // namespace bnn

BNN_TARGET_END

#endif
