// Training: what surrounds the products of a binary layer, forward and backward, in passes over channels-last memory.
//
// These passes wait for memory, not for arithmetic, so each reads and writes as little as it can. The sums of a convolution are
// integers: they are written as int16, with what a batch norm needs of them, and not kept for the backward pass, which counts
// them again from the bits. training_loops.hpp holds the loops; a file training_*.cpp per instruction set compiles them;
// training.cpp shares rows among threads and computes what there is once per channel, in double.
#pragma once

#include "driver.hpp"

namespace bnn {

// Of an input, in one pass: bit = x + shift >= 0; where |x + shift| <= limit; mean and 1 / sqrt(var + eps) of each sample, the
// variance divided by count - 1.
struct Operand {
  int64_t threads, samples, rows, channels, groups;
  double limit, eps;
  const float* x;  // [samples][rows][channels]
  const float* shift;  // [channels], or null
  uint32_t* words;  // [samples * rows][groups * words]
  uint32_t* inside;  // [samples * rows][words of channels], or null
  double* statistics;  // [2][samples], or null
};

// The sums of a convolution of at most 2^15 - 1 terms.
struct NormSums {
  int64_t threads;
  const Conv* conv;
  const uint32_t* words;
  const void* prepared;
  int16_t* sums;  // [rows][outputs]
  int64_t* totals;  // [2][outputs] of zeros: becomes the sums over rows, of the sums and of their squares; or null
};

// y = act(norm(scale * sums) + shortcut), a batch norm. Channel c reads sum c % outputs.
struct NormForward {
  int64_t threads, rows, outputs, width;
  int64_t act;  // enum Act
  int64_t frozen;  // 1: mean and deviation are those in `running_*`, which stay; 0: the batch's, which move them
  double eps, momentum;
  const int16_t* sums;  // [rows][outputs]
  const int64_t* totals;  // as NormSums writes them
  const float* scale;  // [outputs], or null: 1
  const float *weight, *bias;  // [width], or null
  const float* shortcut;  // [rows][width], or null
  const float *gamma, *slope, *zeta;  // [width], or null
  float *running_mean, *running_var;  // [width], or null
  double* statistics;  // [4][width]: sum and sum of squares of the sums, mean and inverse deviation of scale * sums; written
  float* y;  // [rows][width]
  uint32_t* inside;  // [rows][words of width], or null: which values' gradients pass RELU or HARDTANH; written
};

// Its gradients. `shortcut` and the act's vectors are read for PRELU, `inside` for RELU and HARDTANH.
struct NormBackward {
  int64_t threads, rows, outputs, width, act, frozen;
  int64_t dtype;  // of d_sums: FLOAT32 or BFLOAT16
  const int16_t* sums;
  const float *scale, *weight, *bias, *shortcut, *gamma, *slope;
  const double* statistics;
  const uint32_t* inside;
  const float* grad;  // [rows][width], of y
  float* d_input;  // [rows][width], of what the act takes: the shortcut's; null, not for PRELU: not written
  void* d_sums;  // [rows][outputs]
  float* d_scale;  // [outputs], or null
  float *d_weight, *d_bias, *d_gamma, *d_slope, *d_zeta;  // [width], or null
};

// d_x = grad * surrogate(v) + residual. The surrogate is `peak * max(1 - steepness |v|, 0)` where |v| <= limit, of v = x + shift or,
// with statistics, of v = x * inverse deviation of the sample, through which the gradient goes on; or what `inside` or `factor` say.
struct SignBackward {
  int64_t threads, samples, rows, channels;
  int64_t dtype;  // of grad: FLOAT32 or BFLOAT16
  double peak, steepness, limit;
  const void* grad;  // [samples][rows][channels]
  const float* x;  // the same shape, or null with `inside`, `factor` or neither: a surrogate of `peak` everywhere
  const uint32_t* inside;  // as Operand writes it, or null
  const float* factor;  // the surrogate itself, or null
  const float* shift;  // [channels], or null
  const double* statistics;  // [2][samples], or null
  const float* residual;  // the same shape, or null
  const uint32_t* residual_inside;  // which of its values count, as NormForward writes it; null: all
  float* d_x;
  float* d_shift;  // [channels], or null
};

// Of the signs of latent weights to those of the latents, in place: grad *= surrogate(latent) / scale. The surrogate is as above.
struct LatentBackward {
  int64_t threads, filters, size;
  double peak, steepness, limit;
  const float* latents;  // [filters][size], or null with `inside`, or neither: a surrogate of `peak` everywhere
  const uint32_t* inside;  // [filters][words of size], as Operand writes it; or null
  const float* scale;  // [filters]: by which the gradient was multiplied and shall not be; or null
  float* grad;  // [filters][size]
};

// Bits to -1 and +1.
struct Signs2Float {
  int64_t threads, rows, channels, groups, dtype;
  const uint32_t* words;  // [rows][groups * words]
  void* y;  // [rows][channels]
};

void operand(int64_t isa, const Operand& p);
void norm_sums(int64_t isa, const NormSums& p);
void norm_forward(int64_t isa, const NormForward& p);
void norm_backward(int64_t isa, const NormBackward& p);
void sign_backward(int64_t isa, const SignBackward& p);
void latent_backward(int64_t isa, const LatentBackward& p);
void unpack_signs(int64_t isa, const Signs2Float& p);

// Per-channel numbers of a norm.
struct Affine {
  std::vector<float> factor, offset;  // y = act(sums * factor + offset + shortcut)
};

// d_sums = to_grad * d_input + to_sums * sums + offset, the last two added up over the channels of a sum.
struct GradAffine {
  std::vector<float> to_grad, to_sums, offset;
};

constexpr int NORM_TOTALS = 4;  // of d_input, of d_input * sums, of grad * min(v, 0), of grad; [4][width]

// What one instruction set contributes: rows first <= row < last. Totals are added to.
struct TrainingKernel {
  void (*operand)(const Operand&, int64_t first, int64_t last, double* totals);  // rows of one sample; [2] or null
  Narrow narrow;
  void (*norm_forward)(const NormForward&, const Affine&, int64_t first, int64_t last);
  void (*norm_backward_totals)(const NormBackward&, const Affine&, int64_t first, int64_t last, double* totals);
  void (*norm_backward_sums)(const NormBackward&, const GradAffine&, int64_t first, int64_t last);
  void (*sign_backward)(const SignBackward&, int64_t sample, int64_t first, int64_t last, double* d_shift);  // rows of a sample
  void (*latent_backward)(const LatentBackward&, int64_t first, int64_t last);
  void (*unpack_signs)(const Signs2Float&, int64_t first, int64_t last);
};

const TrainingKernel& training_kernel_of(int64_t isa);

// All but d_sums, and how each of those follows.
GradAffine norm_gradients(int64_t isa, const NormBackward& p);

extern const TrainingKernel training_portable;
#if defined(__x86_64__)
extern const TrainingKernel training_avx2, training_avx512;
#endif

}  // namespace bnn
