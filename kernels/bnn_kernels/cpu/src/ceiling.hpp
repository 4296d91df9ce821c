// What one core could do if nothing but the arithmetic took time: the inner step of a kernel, from registers.
#pragma once

#include <time.h>

#include <algorithm>

#include "engine.hpp"

namespace bnn {
namespace {

inline double thread_seconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Multiply-accumulates per second of run(steps), which does `work` of them per step. The best of many short runs, because a
// busy machine only ever slows one down.
template <class Run>
double rate(double work, const Run& run) {
  constexpr int64_t STEPS = 20000;
  double best = 1;
  for (int i = 0; i < 100; i++) {
    const double start = thread_seconds();
    run(STEPS);
    best = std::min(best, thread_seconds() - start);
  }
  return work * STEPS / best;
}

// The float multiply-add of the downsample.
template <class S>
double multiply_add_ceiling() {
  constexpr int CHAINS = 12;
  return rate(CHAINS * S::lanes, [](int64_t steps) {
    typename S::Float x = S::set(0.5F), sum[CHAINS];
    S::keep(x);
#pragma GCC unroll 12
    for (int n = 0; n < CHAINS; n++) S::keep(sum[n] = x);
    for (int64_t i = 0; i < steps; i++) {
#pragma GCC unroll 12
      for (int n = 0; n < CHAINS; n++) sum[n] = S::multiply_add(sum[n], x, x);
    }
#pragma GCC unroll 12
    for (int n = 0; n < CHAINS; n++) S::keep(sum[n]);
  });
}

}  // namespace
}  // namespace bnn
