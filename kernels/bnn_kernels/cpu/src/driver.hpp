// The operators, on checked arguments.
#pragma once

#include "engine.hpp"

namespace bnn {

void conv2d(const Conv& conv, const uint32_t* x, const void* prepared, int32_t* y);  // y [N][H'][W'][O]
void conv2d_sign(const Conv& conv, const uint32_t* x, const void* prepared, const Signs& signs);
void block2d(const Conv& conv, const uint32_t* x, const void* prepared, const Fused& fused);
void pack(const Kernel& kernel, const Packing& packing, int64_t threads);
void downsample(const Kernel& kernel, const Downsample& downsample, int64_t threads);
void stem(const Kernel& kernel, const Stem& stem, const Fused& fused, int64_t threads);

}  // namespace bnn
