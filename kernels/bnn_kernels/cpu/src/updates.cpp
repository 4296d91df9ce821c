#include "updates.hpp"

#include <algorithm>
#include <cmath>

#include "parallel.hpp"

namespace bnn {
namespace {

constexpr int64_t PART = 1 << 16;  // values that are worth a thread

// Calls body(tensor, first, last) for the units of all tensors, about as many values in each thread.
template <class Body>
void each(const Tensors& list, const Body& body) {
  int64_t values = 0;
  for (int64_t i = 0; i < list.count; i++) values += list.units[i] * list.lengths[i];
  const int64_t threads = std::max<int64_t>(1, std::min(list.threads, values / PART));
  parallel(threads, threads, [&](int64_t from, int64_t to) {
    const int64_t begin = values * from / threads, end = values * to / threads;
    int64_t start = 0;
    for (int64_t i = 0; i < list.count; i++) {
      const int64_t units = list.units[i], length = list.lengths[i];
      const auto unit = [&](int64_t value) { return std::clamp<int64_t>((value - start + length - 1) / length, 0, units); };
      if (units * length) {
        const int64_t first = begin > start ? unit(begin) : 0, last = end > start ? unit(end) : 0;
        if (first < last) body(i, first, last);
      }
      start += units * length;
    }
  });
}

constexpr int LANES = 16;

float norm(const float* x, int64_t length) {
  float sums[LANES] = {};
  int64_t i = 0;
  for (; i + LANES <= length; i += LANES)
    for (int lane = 0; lane < LANES; lane++) sums[lane] += x[i + lane] * x[i + lane];
  for (; i < length; i++) sums[0] += x[i] * x[i];
  float sum = 0;
  for (float part : sums) sum += part;
  return std::sqrt(sum);
}

}  // namespace

void clip(const Tensors& list, float* const* x, double limit) {
  const float high = static_cast<float>(limit), low = -high;
  each(list, [&](int64_t i, int64_t first, int64_t last) {
    float* const values = x[i];
    const int64_t end = last * list.lengths[i];
    for (int64_t j = first * list.lengths[i]; j < end; j++) {
      const float v = high < values[j] ? high : values[j];  // in this order a minimum of vectors, which keeps NaN
      values[j] = low > v ? low : v;
    }
  });
}

void count_flips(const Tensors& list, const float* const* x, int8_t* const* last_signs, float* const* shares) {
  each(list, [&](int64_t i, int64_t first, int64_t last) {
    const int64_t length = list.lengths[i];
    for (int64_t unit = first; unit < last; unit++) {
      const float* const values = x[i] + unit * length;
      int8_t* const signs = last_signs[i] + unit * length;
      int32_t flips = 0;
      for (int64_t j = 0; j < length; j++) {
        const int8_t sign = values[j] >= 0 ? 1 : -1;
        flips += signs[j] == -sign;
        signs[j] = sign;
      }
      shares[i][unit] = static_cast<float>(flips) / static_cast<float>(length);
    }
  });
}

void flip(const Tensors& list, float* const* x, const float* const* grad, float* const* momentum, double gamma,
          double threshold) {
  const float share = static_cast<float>(gamma), above = static_cast<float>(threshold);
  each(list, [&](int64_t i, int64_t first, int64_t last) {
    float* const values = x[i];
    float* const mean = momentum[i];
    const float* const g = grad[i];
    const int64_t end = last * list.lengths[i];
    for (int64_t j = first * list.lengths[i]; j < end; j++) {
      const float step = g[j] - mean[j];
      mean[j] = share < 0.5F ? mean[j] + share * step : g[j] - step * (1 - share);  // as torch's lerp
      values[j] = values[j] * mean[j] > above ? -values[j] : values[j];
    }
  });
}

void clip_units(const Tensors& list, const float* const* x, float* const* grad, double ratio, double eps) {
  const float share = static_cast<float>(ratio), least = static_cast<float>(eps);
  each(list, [&](int64_t i, int64_t first, int64_t last) {
    const int64_t length = list.lengths[i];
    for (int64_t unit = first; unit < last; unit++) {
      float* const g = grad[i] + unit * length;
      const float limit = share * std::max(norm(x[i] + unit * length, length), least), size = norm(g, length);
      if (!(size > limit)) continue;
      const float factor = limit / std::max(size, 1e-30F);
      for (int64_t j = 0; j < length; j++) g[j] *= factor;
    }
  });
}

}  // namespace bnn
