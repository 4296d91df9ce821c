// LayerNorm and sign in one comparison, for an instruction set S.
#pragma once

#include "epilogue.hpp"
#include "sequence.hpp"

namespace bnn {
namespace {

template <class S>
uint32_t compare(const Normalized& a, int64_t row, int64_t channel, uint32_t flip) {
  const typename S::Float x = load<S>(a.dtype, a.x, row * a.channels + channel);
  const typename S::Float level = S::add(S::set(a.mean[row]), S::mul(S::set(a.std[row]), S::load(a.threshold + channel)));
  return (S::mask_ge(x, level) & ~flip) | (S::mask_ge(level, x) & flip);
}

template <class S>
void pack_normalized(const Normalized& a, int64_t first, int64_t last) {
  const int64_t words = divide_up(a.channels, WORD_BITS);
  for (int64_t row = first; row < last; row++) {
    for (int64_t w = 0; w < words; w++) {
      const int64_t size = std::min(WORD_BITS, a.channels - w * WORD_BITS);
      uint32_t bits = 0;
      int64_t j = 0;
      for (; j + S::lanes <= size; j += S::lanes) bits |= compare<S>(a, row, w * WORD_BITS + j, a.flip[w] >> j) << j;
      for (; j < size; j++) bits |= (compare<Scalar>(a, row, w * WORD_BITS + j, a.flip[w] >> j) & 1) << j;
      a.words[row * words + w] = bits;
    }
  }
}

}  // namespace
}  // namespace bnn
