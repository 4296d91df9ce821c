// Epilogues and packing, for an instruction set S; Scalar takes the channels that do not fill a word.
//
// Every float operation rounds by itself, in the order of bnn_kernels/epilogue.py: these files are compiled with
// -ffp-contract=off.
#pragma once

#include <algorithm>
#include <cstring>

#include "engine.hpp"
#include "simd_portable.hpp"

namespace bnn {
namespace {

template <class S>
typename S::Float load(int64_t dtype, const void* x, int64_t i) {
  if (dtype == FLOAT32) return S::load(static_cast<const float*>(x) + i);
  if (dtype == BFLOAT16) return S::load_bfloat16(static_cast<const uint16_t*>(x) + i);
  return S::load_float16(static_cast<const uint16_t*>(x) + i);
}

// Rounds to the dtype, stores where there is memory, returns what was rounded.
template <class S, int64_t DTYPE>
typename S::Float store(void* y, int64_t i, typename S::Float v) {
  uint16_t unused[S::lanes];
  if constexpr (DTYPE == FLOAT32) {
    if (y) S::store(static_cast<float*>(y) + i, v);
    return v;
  } else {
    uint16_t* half = y ? static_cast<uint16_t*>(y) + i : unused;
    return DTYPE == BFLOAT16 ? S::store_bfloat16(half, v) : S::store_float16(half, v);
  }
}

// Floats as bytes.
template <class S>
struct Codes {
  int32_t zero;
  typename S::Float inverse, low, high;

  Codes(int64_t dtype, const float* scale, const void* zero_point)
      : zero(dtype == UINT8 ? *static_cast<const uint8_t*>(zero_point) : *static_cast<const int8_t*>(zero_point)),
        inverse(S::set(1.0F / *scale)),
        low(S::set(static_cast<float>((dtype == UINT8 ? 0 : -128) - zero))),
        high(S::set(static_cast<float>((dtype == UINT8 ? 255 : 127) - zero))) {}

  void store(void* y, int64_t i, typename S::Float v) const {
    S::store_bytes(static_cast<uint8_t*>(y) + i, S::cut(low, S::mul(v, inverse), high), zero);
  }
};

// x / (1 + exp(-x)), operation by operation as in epilogue.py.
template <class S>
typename S::Float silu(typename S::Float v) {
  const auto set = S::set;
  const typename S::Float x = S::at_most(88.0F, S::at_least(-87.0F, S::sub(set(0.0F), v)));
  const typename S::Float steps = S::add(S::mul(x, set(0x1.715476p+0F)), set(0x1.8p+23F));
  const typename S::Float whole = S::sub(steps, set(0x1.8p+23F));
  typename S::Float rest = S::sub(x, S::mul(whole, set(0x1.63p-1F)));
  rest = S::sub(rest, S::mul(whole, set(-0x1.bd0106p-13F)));
  typename S::Float power = set(0x1.a0d2cep-13F);
  for (const float factor : {0x1.6e879cp-10F, 0x1.11121p-7F, 0x1.555382p-5F, 0x1.555554p-3F, 0x1p-1F})
    power = S::add(S::mul(power, rest), set(factor));
  power = S::add(S::add(S::mul(power, S::mul(rest, rest)), rest), set(1.0F));
  return S::div(v, S::add(set(1.0F), S::times_power_of_two(power, steps)));
}

template <class S>
typename S::Float as_float(const int32_t* sum) { return S::from_int(sum); }
template <class S>
typename S::Float as_float(const float* sum) { return S::load(sum); }

// The epilogue of VECTORS * lanes channels, one or two words of them or a piece of one, of all pixels. Bits go to `bit` and above
// of each pixel's word.
template <class S, int VECTORS, int64_t ACT, int64_t DTYPE, int64_t SHORTCUT, class Sum>
void fuse(const Fused& f, const Sum* tile, int64_t stride, int64_t pixel, int64_t pixels, int64_t channel, int bit) {
  typename S::Float scale[VECTORS], bias[VECTORS], gamma[VECTORS], slope[VECTORS], zeta[VECTORS], threshold[VECTORS];
#pragma GCC unroll 8
  for (int v = 0; v < VECTORS; v++) {
    const int64_t c = channel + v * S::lanes;
    scale[v] = S::load(f.scale + c);
    bias[v] = S::load(f.bias + c);
    if constexpr (ACT == PRELU) {
      gamma[v] = f.gamma ? S::load(f.gamma + c) : S::set(0.0F);
      slope[v] = S::load(f.slope + c);
      zeta[v] = f.zeta ? S::load(f.zeta + c) : S::set(-0.0F);
    }
    threshold[v] = f.threshold ? S::load(f.threshold + c) : S::set(0.0F);
  }
  // Nothing of `f` is read in the loop: the compiler could not know that stores leave it alone.
  const int64_t width = f.width, words = packed_words(width, f.out_groups);
  const int64_t shortcut_width = f.shortcut_width ? f.shortcut_width : width;
  const void* shortcut = f.shortcut;
  void* stream = f.stream;
  const auto codes = [&] {
    if constexpr (DTYPE == UINT8) return Codes<S>(f.dtype, f.out_scale, f.out_zero);
    else return 0;
  }();
  uint32_t* word = f.words ? f.words + pixel * words + channel / WORD_BITS : nullptr;
  int64_t from = pixel * shortcut_width + channel % shortcut_width, to = (pixel - f.stream_first) * width + channel;
  for (int64_t p = 0; p < pixels; p++, tile += stride, from += shortcut_width, to += width) {
    // Operation by operation, not vector by vector: what follows each other is independent then, and fewer instructions wait.
    typename S::Float x[VECTORS];
    const auto each = [&](const auto& one) {
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v++) one(v);
    };
    each([&](int v) { x[v] = as_float<S>(tile + v * S::lanes); });
    each([&](int v) { x[v] = S::mul(x[v], scale[v]); });
    each([&](int v) { x[v] = S::add(x[v], bias[v]); });
    if constexpr (SHORTCUT != NONE) each([&](int v) { x[v] = S::add(x[v], load<S>(SHORTCUT, shortcut, from + v * S::lanes)); });
    if constexpr (ACT == PRELU) {
      each([&](int v) { x[v] = S::sub(x[v], gamma[v]); });
      each([&](int v) { x[v] = S::scale_unless_positive(x[v], slope[v]); });
      each([&](int v) { x[v] = S::add(x[v], zeta[v]); });
    } else if constexpr (ACT == RELU) {
      each([&](int v) { x[v] = S::at_least(0.0F, x[v]); });
    } else if constexpr (ACT == HARDTANH) {
      each([&](int v) { x[v] = S::at_most(1.0F, S::at_least(-1.0F, x[v])); });
    } else if constexpr (ACT == SILU) {
      each([&](int v) { x[v] = silu<S>(x[v]); });
    }
    if constexpr (DTYPE != UINT8) each([&](int v) { x[v] = store<S, DTYPE>(stream, to + v * S::lanes, x[v]); });
    else if (stream) each([&](int v) { codes.store(stream, to + v * S::lanes, x[v]); });
    if (!word) continue;
    if constexpr (S::lanes == 16 && VECTORS > 1) {  // half a word per vector, from the mask register to memory
      each([&](int v) {
        const uint16_t half = static_cast<uint16_t>(S::mask_ge(x[v], threshold[v]));
        std::memcpy(reinterpret_cast<char*>(word) + v * sizeof(half), &half, sizeof(half));
      });
    } else {
      uint32_t bits = 0;
      each([&](int v) { bits |= S::mask_ge(x[v], threshold[v]) << v * S::lanes; });
      *word = bit == 0 ? bits : *word | bits << bit;
    }
    word += words;
  }
}

// Less than a word of channels, as wide as it goes.
template <class S, int64_t ACT, int64_t DTYPE, int64_t SHORTCUT, class Sum>
void fuse_rest(const Fused& f, const Sum* tile, int64_t stride, int64_t pixel, int64_t pixels, int64_t channel, int64_t count,
               int bit) {
  for (; count >= S::lanes; tile += S::lanes, channel += S::lanes, count -= S::lanes, bit += S::lanes)
    fuse<S, 1, ACT, DTYPE, SHORTCUT>(f, tile, stride, pixel, pixels, channel, bit);
  if constexpr (S::lanes > 1) fuse_rest<typename S::Rest, ACT, DTYPE, SHORTCUT>(f, tile, stride, pixel, pixels, channel, count, bit);
}

template <class S, int64_t ACT, int64_t DTYPE, int64_t SHORTCUT, class Sum>
void fuse_all(const Fused& f, const Sum* tile, int64_t stride, int64_t pixel, int64_t pixels, int64_t channel, int64_t count) {
  int64_t i = 0;
  if constexpr (S::lanes == 16)  // enough registers for the vectors of two words
    for (; i + 2 * WORD_BITS <= count; i += 2 * WORD_BITS)
      fuse<S, 2 * WORD_BITS / S::lanes, ACT, DTYPE, SHORTCUT>(f, tile + i, stride, pixel, pixels, channel + i, 0);
  for (; i + WORD_BITS <= count; i += WORD_BITS)
    fuse<S, WORD_BITS / S::lanes, ACT, DTYPE, SHORTCUT>(f, tile + i, stride, pixel, pixels, channel + i, 0);
  fuse_rest<S, ACT, DTYPE, SHORTCUT>(f, tile + i, stride, pixel, pixels, channel + i, count - i, 0);
}

template <class S, int64_t ACT, int64_t DTYPE>
Epilogue<Fused> choose_shortcut(int64_t shortcut) {
  constexpr Epilogue<Fused> all[] = {fuse_all<S, ACT, DTYPE, NONE>, fuse_all<S, ACT, DTYPE, FLOAT32>, fuse_all<S, ACT, DTYPE, BFLOAT16>,
                             fuse_all<S, ACT, DTYPE, FLOAT16>};
  return all[shortcut - NONE];
}

template <class S, int64_t ACT>
Epilogue<Fused> choose_dtype(int64_t dtype, int64_t shortcut) {
  if (dtype == FLOAT32) return choose_shortcut<S, ACT, FLOAT32>(shortcut);
  if (dtype == BFLOAT16) return choose_shortcut<S, ACT, BFLOAT16>(shortcut);
  if (dtype >= UINT8) return choose_shortcut<S, ACT, UINT8>(shortcut);
  return choose_shortcut<S, ACT, FLOAT16>(shortcut);
}

template <class S>
Epilogue<Fused> fused(const Fused& f) {
  if (f.act == PRELU) return choose_dtype<S, PRELU>(f.dtype, f.shortcut_dtype);
  if (f.act == RELU) return choose_dtype<S, RELU>(f.dtype, f.shortcut_dtype);
  if (f.act == HARDTANH) return choose_dtype<S, HARDTANH>(f.dtype, f.shortcut_dtype);
  if (f.act == SILU) return choose_dtype<S, SILU>(f.dtype, f.shortcut_dtype);
  return choose_dtype<S, IDENTITY>(f.dtype, f.shortcut_dtype);
}

// The same for sums in float32, which have no shortcut.
template <class S, int64_t ACT>
Epilogue<Fused, float> choose_dtype_of_floats(int64_t dtype) {
  if (dtype == FLOAT32) return fuse_all<S, ACT, FLOAT32, NONE>;
  return dtype == BFLOAT16 ? fuse_all<S, ACT, BFLOAT16, NONE, float> : fuse_all<S, ACT, FLOAT16, NONE, float>;
}

template <class S>
Epilogue<Fused, float> fused_floats(const Fused& f) {
  if (f.act == PRELU) return choose_dtype_of_floats<S, PRELU>(f.dtype);
  if (f.act == RELU) return choose_dtype_of_floats<S, RELU>(f.dtype);
  if (f.act == HARDTANH) return choose_dtype_of_floats<S, HARDTANH>(f.dtype);
  if (f.act == SILU) return choose_dtype_of_floats<S, SILU>(f.dtype);
  return choose_dtype_of_floats<S, IDENTITY>(f.dtype);
}

template <class S, int64_t DTYPE>
void quantize_floats(const Quantizing& q, int64_t first, int64_t last) {
  const Codes<S> codes(q.out_dtype, q.scale, q.zero);
  void* y = q.y;
  int64_t i = first;
  for (; i + S::lanes <= last; i += S::lanes) codes.store(y, i, load<S>(DTYPE, q.x, i));
  const Codes<Scalar> rest(q.out_dtype, q.scale, q.zero);
  for (; i < last; i++) rest.store(y, i, load<Scalar>(DTYPE, q.x, i));
}

template <class S>
void quantize(const Quantizing& q, int64_t first, int64_t last) {
  if (q.dtype == FLOAT32) quantize_floats<S, FLOAT32>(q, first, last);
  else if (q.dtype == BFLOAT16) quantize_floats<S, BFLOAT16>(q, first, last);
  else quantize_floats<S, FLOAT16>(q, first, last);
}

template <class S>
void signs(const Signs& s, const int32_t* tile, int64_t stride, int64_t pixel, int64_t pixels, int64_t channel, int64_t count) {
  const int64_t words = packed_words(s.width, s.out_groups);
  for (int64_t i = 0; i < count; i += WORD_BITS) {
    const int64_t c = channel + i, size = std::min(WORD_BITS, count - i);
    int32_t ones[S::lanes];
    std::fill_n(ones, S::lanes, 1);
    uint32_t flip = 0;
    int64_t n = 0;
    for (; n + S::lanes <= size; n += S::lanes) flip |= S::mask_ge(s.flip + c + n, ones) << n;
    for (; n < size; n++) flip |= static_cast<uint32_t>(s.flip[c + n] != 0) << n;
    for (int64_t p = 0; p < pixels; p++) {
      const int32_t* row = tile + p * stride + i;
      uint32_t bits = 0;
      int64_t j = 0;
      for (; j + S::lanes <= size; j += S::lanes) bits |= S::mask_ge(row + j, s.threshold + c + j) << j;
      for (; j < size; j++) bits |= Scalar::mask_ge(row + j, s.threshold + c + j) << j;
      s.words[(pixel + p) * words + c / WORD_BITS] = bits ^ flip;
    }
  }
}

template <class S>
typename S::Float threshold_of(const Packing& a, int64_t channel) {
  return a.threshold ? S::load(a.threshold + channel) : S::set(0.0F);
}

// Rows of channels side by side, in whole words.
template <class S, int64_t DTYPE, bool THRESHOLD>
void pack_words(const Packing& a, int64_t pixel, int64_t pixels) {
  const int64_t channels = a.channels;
  const float* threshold = a.threshold;
  const void* x = a.x;
  uint32_t* word = a.words + pixel * channels / WORD_BITS;
  for (int64_t first = pixel * channels; first < (pixel + pixels) * channels; first += channels) {
    for (int64_t c = 0; c < channels; c += WORD_BITS) {
      uint32_t bits = 0;
#pragma GCC unroll 8
      for (int64_t j = 0; j < WORD_BITS; j += S::lanes)
        bits |= S::mask_ge(load<S>(DTYPE, x, first + c + j), THRESHOLD ? S::load(threshold + c + j) : S::set(0.0F)) << j;
      *word++ = bits;
    }
  }
}

// Rows of few channels side by side, of whole vectors: a word each.
template <class S, int64_t DTYPE>
void pack_short_rows(const Packing& a, int64_t pixel, int64_t pixels) {
  const int64_t channels = a.channels;
  const void* x = a.x;
  uint32_t* words = a.words;
  for (int64_t c = 0; c < channels; c += S::lanes) {
    const typename S::Float threshold = a.threshold ? S::load(a.threshold + c) : S::set(0.0F);
    for (int64_t p = pixel; p < pixel + pixels; p++) {
      const uint32_t bits = S::mask_ge(load<S>(DTYPE, x, p * channels + c), threshold) << c;
      words[p] = c == 0 ? bits : words[p] | bits;
    }
  }
}

// Rows of channels side by side.
template <class S, int64_t DTYPE>
void pack_rows(const Packing& a, int64_t pixel, int64_t pixels) {
  if (a.groups == 1 && a.channels % WORD_BITS == 0)
    return (a.threshold ? pack_words<S, DTYPE, true> : pack_words<S, DTYPE, false>)(a, pixel, pixels);
  if (a.groups == 1 && a.channels < WORD_BITS && a.channels % S::lanes == 0) return pack_short_rows<S, DTYPE>(a, pixel, pixels);
  const int64_t channels = a.channels / a.groups, words = divide_up(channels, WORD_BITS);
  for (int64_t p = pixel; p < pixel + pixels; p++) {
    for (int64_t group = 0; group < a.groups; group++) {
      for (int64_t w = 0; w < words; w++) {
        const int64_t size = std::min(WORD_BITS, channels - w * WORD_BITS);
        uint32_t bits = 0;
        int64_t j = 0;
        const int64_t first = group * channels + w * WORD_BITS;
        for (; j + S::lanes <= size; j += S::lanes)
          bits |= S::mask_ge(load<S>(DTYPE, a.x, p * a.channels + first + j), threshold_of<S>(a, first + j)) << j;
        for (; j < size; j++)
          bits |= Scalar::mask_ge(load<Scalar>(DTYPE, a.x, p * a.channels + first + j), threshold_of<Scalar>(a, first + j)) << j;
        a.words[(p * a.groups + group) * words + w] = bits;
      }
    }
  }
}

// Planes of pixels side by side: as many pixels as there are lanes at a time, one word each.
template <class S, int64_t DTYPE>
void pack_lanes(const Packing& a, int64_t pixel, int64_t group) {
  const int64_t channels = a.channels / a.groups, words = divide_up(channels, WORD_BITS);
  const int64_t x = pixel / a.plane * a.channels * a.plane + pixel % a.plane;
  for (int64_t w = 0; w < words; w++) {
    typename S::Word bits = S::zero();
    const int64_t first = group * channels + w * WORD_BITS, size = std::min(WORD_BITS, channels - w * WORD_BITS);
    for (int64_t j = 0; j < size; j++)
      bits = S::set_bits(bits, load<S>(DTYPE, a.x, x + (first + j) * a.plane), S::set(threshold_of<Scalar>(a, first + j)), 1U << j);
    uint32_t lanes[S::lanes];
    S::store_words(lanes, bits);
    for (int64_t p = 0; p < S::lanes; p++) a.words[((pixel + p) * a.groups + group) * words + w] = lanes[p];
  }
}

template <class S, int64_t DTYPE>
void pack_planes(const Packing& a, int64_t pixel, int64_t pixels) {
  for (int64_t p = pixel; p < pixel + pixels;) {
    const bool fits = p + S::lanes <= pixel + pixels && p % a.plane + S::lanes <= a.plane;
    for (int64_t group = 0; group < a.groups; group++) fits ? pack_lanes<S, DTYPE>(a, p, group) : pack_lanes<Scalar, DTYPE>(a, p, group);
    p += fits ? S::lanes : 1;
  }
}

template <class S>
void pack(const Packing& a, int64_t pixel, int64_t pixels) {
  if (a.dtype == FLOAT32) (a.plane ? pack_planes<S, FLOAT32> : pack_rows<S, FLOAT32>)(a, pixel, pixels);
  else if (a.dtype == BFLOAT16) (a.plane ? pack_planes<S, BFLOAT16> : pack_rows<S, BFLOAT16>)(a, pixel, pixels);
  else (a.plane ? pack_planes<S, FLOAT16> : pack_rows<S, FLOAT16>)(a, pixel, pixels);
}

}  // namespace
}  // namespace bnn
