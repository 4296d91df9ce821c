// Training: threads, instruction sets, and what there is once per channel.

#include "training.hpp"

#include <cmath>

#include "parallel.hpp"

namespace bnn {
namespace {

constexpr int64_t PARTS = 32;  // rows are summed in so many parts, whatever the threads: results do not depend on their number
constexpr int64_t PART = 1 << 14;  // values that a part has at least

// Items in ranges of body(first, last), on several threads where it is worth it.
template <class Body>
void ranges(int64_t items, int64_t values, int64_t threads, const Body& body) {
  parallel(items, values < 2 * PART ? 1 : threads, body);
}

// The sum over all items of what body(first, last, totals) adds to `width` totals.
template <class Body>
std::vector<double> summed(int64_t items, int64_t values, int64_t threads, int64_t width, const Body& body) {
  const int64_t parts = std::max<int64_t>(1, std::min({PARTS, items, values / PART}));
  std::vector<double> partial(parts * width);
  parallel(parts, parts == 1 ? 1 : threads, [&](int64_t from, int64_t to) {
    for (int64_t part = from; part < to; part++)
      body(items * part / parts, items * (part + 1) / parts, partial.data() + part * width);
  });
  for (int64_t part = 1; part < parts; part++)
    for (int64_t i = 0; i < width; i++) partial[i] += partial[part * width + i];
  partial.resize(width);
  return partial;
}

double at(const float* p, int64_t i, double otherwise) { return p ? p[i] : otherwise; }

template <class Norm>
Affine affine_of(const Norm& p, const double* statistics) {
  Affine affine{std::vector<float>(p.width), std::vector<float>(p.width)};
  for (int64_t c = 0; c < p.width; c++) {
    const double factor = statistics[3 * p.width + c] * at(p.weight, c, 1);
    affine.factor[c] = static_cast<float>(factor * at(p.scale, c % p.outputs, 1));
    affine.offset[c] = static_cast<float>(at(p.bias, c, 0) - statistics[2 * p.width + c] * factor);
  }
  return affine;
}

}  // namespace

const TrainingKernel& training_kernel_of([[maybe_unused]] int64_t isa) {
#if defined(__x86_64__)
  if (isa == AVX2) return training_avx2;
  if (isa == AVX512 || isa == AMX) return training_avx512;
#endif
  return training_portable;
}

void operand(int64_t isa, const Operand& p) {
  const TrainingKernel& kernel = training_kernel_of(isa);
  const int64_t values = p.samples * p.rows * p.channels;
  if (!p.statistics)
    return ranges(p.samples * p.rows, values, p.threads,
                  [&](int64_t first, int64_t last) { kernel.operand(p, first, last, nullptr); });
  const double count = static_cast<double>(p.rows * p.channels);
  ranges(p.samples, values, p.threads, [&](int64_t first, int64_t last) {
    for (int64_t sample = first; sample < last; sample++) {
      double totals[2] = {};
      kernel.operand(p, sample * p.rows, (sample + 1) * p.rows, totals);
      const double mean = totals[0] / count, squares = std::max(0.0, totals[1] - totals[0] * mean);
      p.statistics[sample] = mean;
      p.statistics[p.samples + sample] = 1 / std::sqrt(squares / (count - 1) + p.eps);
    }
  });
}

void norm_sums(int64_t isa, const NormSums& p) {
  conv2d_int16(*p.conv, p.words, p.prepared, p.sums, training_kernel_of(isa).narrow, p.totals);
}

void norm_forward(int64_t isa, const NormForward& p) {
  const TrainingKernel& kernel = training_kernel_of(isa);
  const double rows = static_cast<double>(p.rows);
  for (int64_t c = 0; c < p.width; c++) {
    const int64_t o = c % p.outputs;
    const double sum = static_cast<double>(p.totals[o]), squares = static_cast<double>(p.totals[p.outputs + o]);
    const double scale = at(p.scale, o, 1), mean_sum = sum / rows;
    double mean = scale * mean_sum, var = scale * scale * std::max(0.0, squares / rows - mean_sum * mean_sum);
    if (p.frozen) {
      mean = p.running_mean[c], var = p.running_var[c];
    } else if (p.running_mean) {
      p.running_mean[c] += static_cast<float>(p.momentum * (mean - p.running_mean[c]));
      p.running_var[c] += static_cast<float>(p.momentum * (var * rows / (rows - 1) - p.running_var[c]));
    }
    p.statistics[c] = sum;
    p.statistics[p.width + c] = squares;
    p.statistics[2 * p.width + c] = mean;
    p.statistics[3 * p.width + c] = 1 / std::sqrt(var + p.eps);
  }
  const Affine affine = affine_of(p, p.statistics);
  ranges(p.rows, p.rows * p.width, p.threads,
         [&](int64_t first, int64_t last) { kernel.norm_forward(p, affine, first, last); });
}

// With z = (scale * s - mean) * inverse, y = act(weight * z + bias + shortcut) and g the gradient of what the act takes:
// d_bias = sum(g), d_weight = sum(g z), d(scale * s) = weight * inverse * (g - mean(g) - z * mean(g z)); frozen statistics are
// constants, and only the first of the three terms is left.
GradAffine norm_gradients(int64_t isa, const NormBackward& p) {
  const TrainingKernel& kernel = training_kernel_of(isa);
  const Affine affine = affine_of(p, p.statistics);
  const int64_t width = p.width;
  const std::vector<double> totals = summed(
      p.rows, p.rows * width, p.threads, NORM_TOTALS * width,
      [&](int64_t first, int64_t last, double* sums) { kernel.norm_backward_totals(p, affine, first, last, sums); });
  const double rows = static_cast<double>(p.rows);
  GradAffine grad{std::vector<float>(width), std::vector<float>(width), std::vector<float>(width)};
  std::vector<double> to_sums(p.outputs), offset(p.outputs), d_scale(p.outputs);
  for (int64_t c = 0; c < width; c++) {
    const int64_t o = c % p.outputs;
    const double scale = at(p.scale, o, 1), mean = p.statistics[2 * width + c], inverse = p.statistics[3 * width + c];
    const double g = totals[c], g_sums = totals[width + c], g_z = inverse * (scale * g_sums - mean * g);
    const double factor = at(p.weight, c, 1) * inverse, mean_g = p.frozen ? 0 : g / rows, mean_gz = p.frozen ? 0 : g_z / rows;
    const double sum = p.statistics[c], squares = p.statistics[width + c];
    grad.to_grad[c] = static_cast<float>(factor * scale);
    to_sums[o] -= factor * scale * mean_gz * inverse * scale;
    offset[o] += factor * scale * (mean_gz * inverse * mean - mean_g);
    d_scale[o] += factor * (g_sums - mean_g * sum - mean_gz * inverse * (scale * squares - mean * sum));
    if (p.d_weight) p.d_weight[c] = static_cast<float>(g_z);
    if (p.d_bias) p.d_bias[c] = static_cast<float>(g);
    if (p.d_gamma) p.d_gamma[c] = static_cast<float>(-g);
    if (p.d_slope) p.d_slope[c] = static_cast<float>(totals[2 * width + c]);
    if (p.d_zeta) p.d_zeta[c] = static_cast<float>(totals[3 * width + c]);
  }
  for (int64_t o = 0; o < p.outputs; o++) {
    grad.to_sums[o] = static_cast<float>(to_sums[o]);
    grad.offset[o] = static_cast<float>(offset[o]);
    if (p.d_scale) p.d_scale[o] = static_cast<float>(d_scale[o]);
  }
  return grad;
}

void norm_backward(int64_t isa, const NormBackward& p) {
  const GradAffine grad = norm_gradients(isa, p);
  ranges(p.rows, p.rows * p.width, p.threads,
         [&](int64_t first, int64_t last) { training_kernel_of(isa).norm_backward_sums(p, grad, first, last); });
}

void sign_backward(int64_t isa, const SignBackward& p) {
  const TrainingKernel& kernel = training_kernel_of(isa);
  const int64_t rows = p.samples * p.rows;
  const std::vector<double> d_shift =
      summed(p.statistics ? p.samples : rows, rows * p.channels, p.threads, p.channels,
             [&](int64_t first, int64_t last, double* shift) {
               if (!p.d_shift) shift = nullptr;
               if (!p.statistics) return kernel.sign_backward(p, 0, first, last, shift);
               for (int64_t sample = first; sample < last; sample++)
                 kernel.sign_backward(p, sample, sample * p.rows, (sample + 1) * p.rows, shift);
             });
  if (p.d_shift)
    for (int64_t c = 0; c < p.channels; c++) p.d_shift[c] = static_cast<float>(d_shift[c]);
}

void latent_backward(int64_t isa, const LatentBackward& p) {
  const TrainingKernel& kernel = training_kernel_of(isa);
  ranges(p.filters, p.filters * p.size, p.threads, [&](int64_t first, int64_t last) { kernel.latent_backward(p, first, last); });
}

void unpack_signs(int64_t isa, const Signs2Float& p) {
  const TrainingKernel& kernel = training_kernel_of(isa);
  ranges(p.rows, p.rows * p.channels, p.threads, [&](int64_t first, int64_t last) { kernel.unpack_signs(p, first, last); });
}

}  // namespace bnn
