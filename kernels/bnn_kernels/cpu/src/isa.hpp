// One kernel per instruction set, each in a file of its own.
#pragma once

#include "engine.hpp"

namespace bnn {

extern const Kernel portable, amx_emulated;
#if defined(__aarch64__)
extern const Kernel neon;
#endif
#if defined(__x86_64__)
extern const Kernel avx2;
extern const Kernel avx512;
bool has_avx2();
bool has_avx512();
#endif
#if defined(BNN_AMX)
extern const Kernel amx;
bool has_amx();
#endif

}  // namespace bnn
