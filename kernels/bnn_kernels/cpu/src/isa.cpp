// The instruction sets, and which of them this processor has.

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "isa.hpp"

namespace bnn {

const Kernel* kernel(int64_t isa) {
  switch (isa) {
    case PORTABLE:
      return &portable;
#if defined(__aarch64__)
    case NEON:
      return &neon;
#endif
#if defined(__x86_64__)
    case AVX2:
      return has_avx2() ? &avx2 : nullptr;
    case AVX512:
      return has_avx512() ? &avx512 : nullptr;
#endif
#if defined(BNN_AMX)
    case AMX:
      return has_amx() ? &amx : nullptr;
#endif
    case AMX_EMULATED:
      return &amx_emulated;
    default:
      return nullptr;
  }
}

#if defined(__x86_64__)
static bool find_f16c() {  // clang 14 does not know its name
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

bool has_avx2() {
  static const bool has_f16c = find_f16c();  // asked once: in a virtual machine the instruction takes microseconds
  return has_f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt");
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vpopcntdq") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bitalg") && __builtin_cpu_supports("avx512vbmi");
}
#endif

}  // namespace bnn
