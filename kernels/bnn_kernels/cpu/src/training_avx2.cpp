// Training with AVX2.
#if defined(__x86_64__)

#include <algorithm>
#include <cstring>

#include <immintrin.h>

#include "training.hpp"
#include "target.hpp"

BNN_TARGET("avx2,fma,f16c,popcnt")

#include "training_avx2.hpp"

namespace bnn {

const TrainingKernel training_avx2 = training_kernel<Training256>;

}  // namespace bnn

BNN_TARGET_END

#endif
