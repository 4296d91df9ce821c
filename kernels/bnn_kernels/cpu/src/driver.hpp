// The operators, on checked arguments.
#pragma once

#include "engine.hpp"

namespace bnn {

void conv2d(const Conv& conv, const void* x, const void* prepared, int32_t* y);  // y [N][H'][W'][O]
void conv2d_sign(const Conv& conv, const void* x, const void* prepared, const Signs& signs);
void block2d(const Conv& conv, const void* x, const void* prepared, const Fused& fused);

// Rows of int32 sums, `stride` apart, to int16 ones, `outputs` apart; adds to the totals over rows of `count` channels: of the sums
// from totals[0] on, of their squares from totals[outputs] on, both whole numbers. `totals` may be null.
using Narrow = void (*)(const int32_t* rows, int64_t stride, int64_t pixels, int64_t count, int16_t* to, int64_t outputs,
                        double* totals);
void conv2d_int16(const Conv& conv, const void* x, const void* prepared, int16_t* y, Narrow narrow, int64_t* totals);

void pack(const Kernel& kernel, const Packing& packing, int64_t threads);
void downsample(const Kernel& kernel, const Downsample& downsample, int64_t threads);
void pooled2d(const Conv& conv, const void* x, const void* prepared, const Fused& fused, const Windows& windows);
void quantize(const Kernel& kernel, const Quantizing& quantizing, int64_t threads);
void pool2d(const Kernel& kernel, const Pool& pool, int64_t threads);
void planes(const Planes& planes, int64_t threads);
// Also packs the pixels of the result, which `packing` describes but for x, where it has words.
void concat(const Kernel& kernel, const Concat& concat, const Packing& packing, int64_t threads);
void weighted_sum(const Kernel& kernel, const WeightedSum& sum, const Fused& fused, int64_t threads);
void stem(const Kernel& kernel, const Stem& stem, const Fused& fused, int64_t threads);

enum Operation : int64_t { CONV2D, CONV2D_SIGN, BLOCK2D, PACK, DOWNSAMPLE, STEM, QUANTIZE, POOLED2D, POOL2D, PLANES, CONCAT, WEIGHTED_SUM };  // as in calls.py

// code[place] = bases[base] + offset, in bytes.
struct Link {
  int64_t place, base, offset;
};

// Runs records [int64 of the record][Operation][arguments as program.cpp reads them; structs with all their fields] one after another.
void run(const int64_t* code, int64_t words, const Link* links, int64_t count, const int64_t* bases);

}  // namespace bnn
