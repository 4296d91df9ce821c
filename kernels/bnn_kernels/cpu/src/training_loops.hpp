// The loops of training.hpp, for an instruction set S.
//
// A few rows at a time, which stay in the cache, and of them one vector of channels after the other: what belongs to a channel is
// in registers then. Sums over rows are float32 within such a block and double beyond it.
#pragma once

#include <algorithm>
#include <cstring>

#include "epilogue.hpp"
#include "training.hpp"

namespace bnn {
namespace {

struct Single : Scalar {
  static Float from_int16(const int16_t* p) { return static_cast<float>(*p); }
  static void store_int16(int16_t* p, const int32_t* v) { *p = static_cast<int16_t>(*v); }
  static Float where(uint32_t mask, Float yes, Float no) { return (mask & 1) != 0 ? yes : no; }
};

// body<V>(channel) for vectors V of channels; narrower ones, S::Rest and so on, take what is left.
template <class S, class Body>
void each_channel(int64_t channels, const Body& body, int64_t c = 0) {
  for (; c + S::lanes <= channels; c += S::lanes) body.template operator()<S>(c);
  if constexpr (S::lanes > 1) each_channel<typename S::Rest>(channels, body, c);
}

// body(first, last) for blocks of rows of so many channels.
template <class Body>
void each_block(int64_t first, int64_t last, int64_t channels, const Body& body) {
  const int64_t rows = std::clamp<int64_t>(4096 / channels, 4, 256);
  for (int64_t row = first; row < last; row += rows) body(row, std::min(last, row + rows));
}

// body<ACT>() for the act that is known at run time only.
template <class Body>
void with_act(int64_t act, const Body& body) {
  switch (act) {
    case RELU: return body.template operator()<RELU>();
    case HARDTANH: return body.template operator()<HARDTANH>();
    case PRELU: return body.template operator()<PRELU>();
    default: return body.template operator()<IDENTITY>();
  }
}

template <class V>
void put_bits(uint32_t* words, int64_t channel, uint32_t bits) {
  uint32_t* word = words + channel / WORD_BITS;
  const int64_t shift = channel % WORD_BITS;
  *word |= bits << shift;
  if (V::lanes > 1 && shift + V::lanes > WORD_BITS) word[1] |= bits >> (WORD_BITS - shift);
}

template <class V>
uint32_t get_bits(const uint32_t* words, int64_t channel) {
  constexpr uint32_t all = (1U << V::lanes) - 1;
  const uint32_t* word = words + channel / WORD_BITS;
  const int64_t shift = channel % WORD_BITS;
  uint32_t bits = *word >> shift;
  if (V::lanes > 1 && shift + V::lanes > WORD_BITS) bits |= word[1] << (WORD_BITS - shift);
  return bits & all;
}

template <class V>
typename V::Float load_or(const float* p, int64_t i, float otherwise) {
  return p ? V::load(p + i) : V::set(otherwise);
}

template <class V>
typename V::Float absolute(typename V::Float v) {
  const typename V::Float negative = V::sub(V::set(0.0F), v);
  return V::where(V::mask_ge(v, negative), v, negative);
}

template <class V>
void add_total(double* total, typename V::Float sum) {
  float part[V::lanes];
  V::store(part, sum);
  for (int i = 0; i < V::lanes; i++) total[i] += part[i];
}

template <class V>
void store_as(int64_t dtype, void* y, int64_t i, typename V::Float v) {
  if (dtype == FLOAT32) V::store(static_cast<float*>(y) + i, v);
  else V::store_bfloat16(static_cast<uint16_t*>(y) + i, v);
}

template <class S>
void narrow(const int32_t* rows, int64_t stride, int64_t pixels, int64_t count, int16_t* to, int64_t outputs, double* totals) {
  each_channel<S>(count, [&]<class V>(int64_t o) {
    typename V::Float sum = V::set(0.0F), squares = sum;
    for (int64_t pixel = 0; pixel < pixels; pixel++) {
      const int32_t* from = rows + pixel * stride + o;
      V::store_int16(to + pixel * outputs + o, from);
      if (!totals) continue;
      const typename V::Float s = V::from_int(from);
      sum = V::add(sum, s);
      squares = V::multiply_add(s, s, squares);
    }
    if (!totals) return;
    add_total<V>(totals + o, sum);
    add_total<V>(totals + outputs + o, squares);
  });
}

// What the act takes, but for the shift of RPReLU.
template <class V>
typename V::Float before_act(const int16_t* sums, const float* shortcut, typename V::Float factor, typename V::Float offset) {
  const typename V::Float v = V::multiply_add(V::from_int16(sums), factor, offset);
  return shortcut ? V::add(v, V::load(shortcut)) : v;
}

template <class S, int64_t ACT>
void norm_forward_as(const NormForward& p, const Affine& affine, int64_t first, int64_t last) {
  const int64_t words = divide_up(p.width, WORD_BITS);
  each_block(first, last, p.width, [&](int64_t from, int64_t to) {
    if (p.inside) std::memset(p.inside + from * words, 0, (to - from) * words * sizeof(uint32_t));
    for (int64_t copy = 0; copy < p.width; copy += p.outputs)
      each_channel<S>(p.outputs, [&]<class V>(int64_t o) {
        const int64_t c = copy + o;
        const typename V::Float factor = V::load(affine.factor.data() + c), offset = V::load(affine.offset.data() + c);
        const typename V::Float gamma = load_or<V>(p.gamma, c, 0), slope = load_or<V>(p.slope, c, 0),
                                zeta = load_or<V>(p.zeta, c, 0), one = V::set(1.0F), zero = V::set(0.0F);
        const float* shortcut = p.shortcut;
        uint32_t* inside = p.inside;
        const int16_t* sums = p.sums + o;
        float* y = p.y + c;
        const int64_t width = p.width, outputs = p.outputs;
        for (int64_t row = from; row < to; row++) {
          typename V::Float v = before_act<V>(sums + row * outputs, shortcut ? shortcut + row * width + c : nullptr, factor, offset);
          if constexpr (ACT == PRELU) {
            v = V::add(V::scale_unless_positive(V::sub(v, gamma), slope), zeta);
          } else if constexpr (ACT == RELU) {
            if (inside) put_bits<V>(inside + row * words, c, ~V::mask_ge(zero, v) & ((1U << V::lanes) - 1));
            v = V::at_least(0.0F, v);
          } else if constexpr (ACT == HARDTANH) {
            if (inside) {
              const uint32_t outside = V::mask_ge(v, one) | V::mask_ge(V::sub(zero, one), v);
              put_bits<V>(inside + row * words, c, ~outside & ((1U << V::lanes) - 1));
            }
            v = V::at_most(1.0F, V::at_least(-1.0F, v));
          }
          V::store(y + row * width, v);
        }
      });
  });
}

template <class S>
void norm_forward(const NormForward& p, const Affine& affine, int64_t first, int64_t last) {
  with_act(p.act, [&]<int64_t ACT>() { norm_forward_as<S, ACT>(p, affine, first, last); });
}

template <class S, int64_t ACT>
void norm_backward_totals_as(const NormBackward& p, const Affine& affine, int64_t first, int64_t last, double* totals) {
  const int64_t words = divide_up(p.width, WORD_BITS);
  each_block(first, last, p.width, [&](int64_t from, int64_t to) {
    for (int64_t copy = 0; copy < p.width; copy += p.outputs)
      each_channel<S>(p.outputs, [&]<class V>(int64_t o) {
        const int64_t c = copy + o, width = p.width, outputs = p.outputs;
        const typename V::Float factor = V::load(affine.factor.data() + c), offset = V::load(affine.offset.data() + c);
        const typename V::Float gamma = load_or<V>(p.gamma, c, 0), slope = load_or<V>(p.slope, c, 0), zero = V::set(0.0F);
        const float *grad = p.grad + c, *shortcut = p.shortcut;
        const int16_t* sums = p.sums + o;
        const uint32_t* inside = p.inside;
        const bool zero_is_negative = p.gamma == nullptr;  // of PReLU, not of RPReLU
        float* d_input = p.d_input;
        typename V::Float total = zero, with_sums = zero, with_negative = zero, of_grad = zero;
        for (int64_t row = from; row < to; row++) {
          typename V::Float g = V::load(grad + row * width);
          if constexpr (ACT == PRELU) {
            const typename V::Float v =
                V::sub(before_act<V>(sums + row * outputs, shortcut ? shortcut + row * width + c : nullptr, factor, offset), gamma);
            of_grad = V::add(of_grad, g);
            with_negative = V::multiply_add(g, V::at_most(0.0F, v), with_negative);
            const typename V::Float scaled = V::mul(g, slope);
            g = zero_is_negative ? V::where(V::mask_ge(zero, v), scaled, g) : V::where(V::mask_ge(v, zero), g, scaled);
          } else if constexpr (ACT == RELU || ACT == HARDTANH) {
            g = V::where(get_bits<V>(inside + row * words, c), g, zero);
          }
          if (d_input) V::store(d_input + row * width + c, g);
          total = V::add(total, g);
          with_sums = V::multiply_add(g, V::from_int16(sums + row * outputs), with_sums);
        }
        add_total<V>(totals + c, total);
        add_total<V>(totals + width + c, with_sums);
        if constexpr (ACT == PRELU) {
          add_total<V>(totals + 2 * width + c, with_negative);
          add_total<V>(totals + 3 * width + c, of_grad);
        }
      });
  });
}

template <class S>
void norm_backward_totals(const NormBackward& p, const Affine& affine, int64_t first, int64_t last, double* totals) {
  with_act(p.act, [&]<int64_t ACT>() { norm_backward_totals_as<S, ACT>(p, affine, first, last, totals); });
}

template <class S>
void norm_backward_sums(const NormBackward& p, const GradAffine& affine, int64_t first, int64_t last) {
  const float* d_input = p.d_input ? p.d_input : p.grad;
  const uint32_t* inside = p.d_input ? nullptr : p.inside;
  const int64_t width = p.width, outputs = p.outputs, dtype = p.dtype, words = divide_up(width, WORD_BITS);
  each_block(first, last, width, [&](int64_t from, int64_t to) {
    each_channel<S>(outputs, [&]<class V>(int64_t o) {
      const typename V::Float to_sums = V::load(affine.to_sums.data() + o), offset = V::load(affine.offset.data() + o);
      const typename V::Float zero = V::set(0.0F);
      const float* to_grad = affine.to_grad.data();
      const int16_t* sums = p.sums;
      void* d_sums = p.d_sums;
      for (int64_t row = from; row < to; row++) {
        typename V::Float g = V::multiply_add(V::from_int16(sums + row * outputs + o), to_sums, offset);
        for (int64_t c = o; c < width; c += outputs) {
          typename V::Float d = V::load(d_input + row * width + c);
          if (inside) d = V::where(get_bits<V>(inside + row * words, c), d, zero);
          g = V::multiply_add(d, V::load(to_grad + c), g);
        }
        store_as<V>(dtype, d_sums, row * outputs + o, g);
      }
    });
  });
}

template <class S>
void operand(const Operand& p, int64_t first, int64_t last, double* totals) {
  const int64_t size = p.channels / p.groups, group_words = divide_up(size, WORD_BITS), words = p.groups * group_words,
                inside_words = divide_up(p.channels, WORD_BITS), channels = p.channels;
  const float most = static_cast<float>(p.limit);
  uint32_t* inside = p.inside;
  each_block(first, last, channels, [&](int64_t from, int64_t to) {
    std::memset(p.words + from * words, 0, (to - from) * words * sizeof(uint32_t));
    if (inside) std::memset(inside + from * inside_words, 0, (to - from) * inside_words * sizeof(uint32_t));
    for (int64_t group = 0; group < p.groups; group++)
      each_channel<S>(size, [&]<class V>(int64_t c) {
        const int64_t channel = group * size + c;
        const typename V::Float shift = load_or<V>(p.shift, channel, 0), limit = V::set(most), zero = V::set(0.0F);
        const float* x = p.x + channel;
        uint32_t* word = p.words + group * group_words;
        typename V::Float sum = zero, squares = zero;
        for (int64_t row = from; row < to; row++) {
          const typename V::Float v = V::add(V::load(x + row * channels), shift);
          put_bits<V>(word + row * words, c, V::mask_ge(v, zero));
          if (inside) put_bits<V>(inside + row * inside_words, channel, V::mask_ge(limit, absolute<V>(v)));
          if (totals) {
            sum = V::add(sum, v);
            squares = V::multiply_add(v, v, squares);
          }
        }
        if (!totals) return;
        double lanes[2][V::lanes] = {};
        add_total<V>(lanes[0], sum);
        add_total<V>(lanes[1], squares);
        for (int l = 0; l < V::lanes; l++) totals[0] += lanes[0][l], totals[1] += lanes[1][l];
      });
  });
}

// peak + drop * |v|, not below 0, where |v| <= limit.
template <class V>
typename V::Float triangle(typename V::Float v, typename V::Float peak, typename V::Float drop, typename V::Float limit, bool bounded) {
  v = absolute<V>(v);
  const typename V::Float slope = V::at_least(0.0F, V::multiply_add(v, drop, peak));
  return bounded ? V::where(V::mask_ge(limit, v), slope, V::set(0.0F)) : slope;
}

// One row block of grad * surrogate(v), as store(row, c, value).
template <class S, class Store>
void surrogates(const SignBackward& p, double deviation, int64_t from, int64_t to, const Store& finish) {
  const int64_t words = divide_up(p.channels, WORD_BITS), channels = p.channels, dtype = p.dtype;
  const float *x = p.x, *factor = p.factor;
  const uint32_t* inside = p.inside;
  const void* grad = p.grad;
  const bool bounded = p.limit < std::numeric_limits<float>::max();
  each_channel<S>(channels, [&]<class V>(int64_t c) {
    const typename V::Float shift = load_or<V>(p.shift, c, 0), peak = V::set(static_cast<float>(p.peak)), zero = V::set(0.0F);
    const typename V::Float drop = V::set(static_cast<float>(-p.peak * p.steepness)), limit = V::set(static_cast<float>(p.limit));
    const typename V::Float inverse = V::set(static_cast<float>(deviation));
    auto write = finish.template operator()<V>(c);
    for (int64_t row = from; row < to; row++) {
      const int64_t i = row * channels + c;
      typename V::Float g = load<V>(dtype, grad, i);
      if (inside) {
        g = V::where(get_bits<V>(inside + row * words, c), V::mul(g, peak), zero);
      } else if (factor) {
        g = V::mul(g, V::load(factor + i));
      } else if (x) {
        g = V::mul(g, triangle<V>(V::mul(V::add(V::load(x + i), shift), inverse), peak, drop, limit, bounded));
      } else {
        g = V::mul(g, peak);
      }
      write.add(row, i, g);
    }
    write.end();
  });
}

// Adds g * x up over a sample.
template <class V>
struct Along {
  const float* x;
  double* total;
  typename V::Float sum = V::set(0.0F);
  void add(int64_t, int64_t i, typename V::Float g) { sum = V::multiply_add(g, V::load(x + i), sum); }
  void end() {
    float part[V::lanes];
    V::store(part, sum);
    for (int l = 0; l < V::lanes; l++) *total += part[l];
  }
};

// d_x = g * inverse + x * along + offset + residual.
template <class V>
struct Write {
  const SignBackward& p;
  int64_t channel, words;
  double* d_shift;
  typename V::Float inverse, along, offset;
  typename V::Float sum = V::set(0.0F);
  void add(int64_t row, int64_t i, typename V::Float g) {
    sum = V::add(sum, g);
    if (p.statistics) g = V::multiply_add(g, inverse, V::multiply_add(V::load(p.x + i), along, offset));
    if (p.residual) {
      typename V::Float residual = V::load(p.residual + i);
      if (p.residual_inside) residual = V::where(get_bits<V>(p.residual_inside + row * words, channel), residual, V::set(0.0F));
      g = V::add(g, residual);
    }
    V::store(p.d_x + i, g);
  }
  void end() {
    if (d_shift) add_total<V>(d_shift, sum);
  }
};

template <class S>
void sign_backward(const SignBackward& p, int64_t sample, int64_t first, int64_t last, double* d_shift) {
  double mean = 0, inverse = 1, along = 0;
  if (p.statistics) {
    mean = p.statistics[sample], inverse = p.statistics[p.samples + sample];
    each_block(first, last, p.channels, [&](int64_t from, int64_t to) {
      surrogates<S>(p, inverse, from, to, [&]<class V>(int64_t) { return Along<V>{p.x, &along}; });
    });
    // The inverse deviation depends on each x: its derivative is -inverse^3 (x - mean) / (count - 1).
    along *= -inverse * inverse * inverse / static_cast<double>(p.rows * p.channels - 1);
  }
  each_block(first, last, p.channels, [&](int64_t from, int64_t to) {
    surrogates<S>(p, inverse, from, to, [&]<class V>(int64_t c) {
      return Write<V>{p, c, divide_up(p.channels, WORD_BITS), d_shift ? d_shift + c : nullptr, V::set(static_cast<float>(inverse)), V::set(static_cast<float>(along)),
                      V::set(static_cast<float>(-along * mean))};
    });
  });
}

template <class S>
void latent_backward(const LatentBackward& p, int64_t first, int64_t last) {
  const bool bounded = p.limit < std::numeric_limits<float>::max();
  for (int64_t filter = first; filter < last; filter++) {
    const double scale = p.scale ? std::max(p.scale[filter], std::numeric_limits<float>::min()) : 1.0F, top = p.peak / scale;
    const float* latents = p.latents ? p.latents + filter * p.size : nullptr;
    const uint32_t* inside = p.inside ? p.inside + filter * divide_up(p.size, WORD_BITS) : nullptr;
    float* grad = p.grad + filter * p.size;
    each_channel<S>(p.size, [&]<class V>(int64_t i) {
      const typename V::Float peak = V::set(static_cast<float>(top)), drop = V::set(static_cast<float>(-top * p.steepness)),
                              limit = V::set(static_cast<float>(p.limit));
      const typename V::Float slope = inside    ? V::where(get_bits<V>(inside, i), peak, V::set(0.0F))
                                      : latents ? triangle<V>(V::load(latents + i), peak, drop, limit, bounded)
                                                : peak;
      V::store(grad + i, V::mul(V::load(grad + i), slope));
    });
  }
}

template <class S>
void unpack_signs(const Signs2Float& p, int64_t first, int64_t last) {
  const int64_t size = p.channels / p.groups, words = divide_up(size, WORD_BITS);
  for (int64_t row = first; row < last; row++)
    for (int64_t g = 0; g < p.groups; g++) {
      const uint32_t* word = p.words + (row * p.groups + g) * words;
      const int64_t to = row * p.channels + g * size;
      each_channel<S>(size, [&]<class V>(int64_t c) {
        store_as<V>(p.dtype, p.y, to + c, V::where(get_bits<V>(word, c), V::set(1.0F), V::set(-1.0F)));
      });
    }
}

template <class S>
constexpr TrainingKernel training_kernel = {operand<S>,  narrow<S>,       norm_forward<S>, norm_backward_totals<S>, norm_backward_sums<S>,
                                            sign_backward<S>, latent_backward<S>, unpack_signs<S>};

}  // namespace
}  // namespace bnn
