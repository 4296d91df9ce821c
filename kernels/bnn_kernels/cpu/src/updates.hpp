// What follows the backward pass, for many tensors in one call: each is dense, of units[i] rows of lengths[i] values.
#pragma once

#include <cstdint>

namespace bnn {

struct Tensors {
  int64_t threads, count;
  const int64_t* units;
  const int64_t* lengths;
};

// x, clipped to [-limit, limit]; NaN stays.
void clip(const Tensors& list, float* const* x, double limit);

// The share of the signs of each unit that differ from the last ones (0: there were none), which are then those of x.
void count_flips(const Tensors& list, const float* const* x, int8_t* const* last, float* const* shares);

// Bop (arXiv 1906.02107, algorithm 1): momentum <- momentum + gamma (grad - momentum), x <- -x where x * momentum > threshold.
void flip(const Tensors& list, float* const* x, const float* const* grad, float* const* momentum, double gamma, double threshold);

// Adaptive clipping (arXiv 2102.06171, eq. 3): grad of a unit of x whose norm is above limit = ratio * max(|x|, eps), to that norm.
void clip_units(const Tensors& list, const float* const* x, float* const* grad, double ratio, double eps);

}  // namespace bnn
