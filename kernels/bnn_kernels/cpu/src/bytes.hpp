// Real layers in int8 word by word (accumulate.hpp): a word is four channels. Activations of a block are copied, unsigned and in
// whole words. As taps outside the image are left out, a sum begins with minus the products of what means 0 over those inside.
#pragma once

#include "accumulate.hpp"

namespace bnn {
namespace {

// `Word` is what a copied word is; `widen` makes `words` of them from bytes with `flip` turned.
template <class T, class CopiedWord>
struct BytesBase {
  using Word = CopiedWord;

  static int32_t worth(uint32_t word, const uint8_t* zeros) {
    int32_t sum = 0;
    for (int i = 0; i < WORD_BYTES; i++) sum += zeros[i] * static_cast<int8_t>(word >> 8 * i);
    return sum;
  }

  static void constants(const Conv& c, const Run& vertical, const Run& horizontal, const int32_t* zeros, int64_t outputs,
                        int64_t row, int32_t* base) {
    std::fill_n(base, row, 0);
    for (int64_t y : vertical.taps)
      for (int64_t x : horizontal.taps)
        for (int64_t o = 0; o < row; o++) base[o] -= zeros[(y * c.kernel_w + x) * outputs + o];
  }

  // Pixels of less than a word: each is read with what follows it, which is taken off, but for the last ones.
  static void widen_few(const uint8_t* from, int64_t channels, uint8_t flip, int64_t pixels, Word* to) {
    constexpr int64_t STEP = 64;
    const uint32_t mask = (1U << 8 * channels) - 1;
    uint32_t buffer[STEP];
    for (int64_t count; pixels > 0; pixels -= count, to += count) {
      count = std::min(STEP, pixels);
      int64_t i = 0;
      for (; i + divide_up(WORD_BYTES, channels) <= count; i++, from += channels) {
        std::memcpy(buffer + i, from, WORD_BYTES);
        buffer[i] &= mask;
      }
      for (; i < count; i++, from += channels) {
        buffer[i] = 0;
        std::memcpy(buffer + i, from, channels);
      }
      T::widen(reinterpret_cast<const uint8_t*>(buffer), flip, count, to);
    }
  }

  static int64_t scratch_bytes(const Plan& plan) { return staged_words(plan) * static_cast<int64_t>(sizeof(Word)); }

  static void stage(const Plan& plan, const Block& block, const void* image, void* scratch) {
    const Conv& c = plan.conv;
    const Staged staged(plan, block);
    const int64_t channels = c.group_channels(), words = c.words(), columns = staged.columns.last - staged.columns.first;
    const uint8_t flip = c.is_signed ? 0x80 : 0;
    Word* to = static_cast<Word*>(scratch);
    for (int64_t y = staged.rows.first; y < staged.rows.last; y++) {
      const uint8_t* from = static_cast<const uint8_t*>(image) + (y * c.width + staged.columns.first) * c.channels;
      if (channels % WORD_BYTES == 0) {
        T::widen(from, flip, staged.pitch, to);
        to += staged.pitch;
        continue;
      }
      if (channels < WORD_BYTES) {  // an image, for example
        widen_few(from, channels, flip, columns * c.groups, to);
        to += columns * c.groups;
        continue;
      }
      for (int64_t i = 0; i < columns * c.groups; i++, from += channels, to += words) {
        T::widen(from, flip, channels / WORD_BYTES, to);
        uint8_t rest[WORD_BYTES] = {};
        std::copy_n(from + channels / WORD_BYTES * WORD_BYTES, channels % WORD_BYTES, rest);
        T::widen(rest, flip, 1, to + words - 1);
      }
    }
  }

  static Source<Word> source(const Plan& plan, const Block& block, const void*, const void* scratch) {
    return Staged(plan, block).source(static_cast<const Word*>(scratch));
  }
};

// Words as they are.
template <class T>
struct BytesInWords : BytesBase<T, uint32_t> {
  static void widen(const uint8_t* from, uint8_t flip, int64_t words, uint32_t* to) {
    std::memcpy(to, from, words * WORD_BYTES);
    const uint32_t flips = 0x01010101U * flip;
    if (flip)
      for (int64_t i = 0; i < words; i++) to[i] ^= flips;
  }
};

// For compilers to vectorise.
struct PortableBytes : BytesInWords<PortableBytes> {
  using Tile = bnn::Tile<PortableBytes>;
  using Weight = int8_t;
  static constexpr int64_t per_word = WORD_BYTES;
  static constexpr int lanes = 16, pixels = 1;

  static void put(uint32_t word, int8_t* weight, int64_t row) {
    for (int i = 0; i < WORD_BYTES; i++) weight[i * row] = static_cast<int8_t>(word >> 8 * i);
  }

  static void tile(const Tile& t) {
    for (int64_t first = 0; first < t.row; first += lanes) {
      uint32_t sum[lanes];  // unsigned: only the whole sum fits
      for (int i = 0; i < lanes; i++) sum[i] = static_cast<uint32_t>(t.base[first + i]);
      for (const Segment& segment : t.segments) {
        const uint32_t* x = t.x + segment.x + t.offsets[0];
        const int8_t* w = t.w + segment.w + first;
        for (const uint32_t* end = x + segment.length; x != end; x++)
          for (int byte = 0; byte < WORD_BYTES; byte++, w += t.row) {
            const int16_t value = static_cast<int16_t>(*x >> 8 * byte & 0xff);
            for (int i = 0; i < lanes; i++) sum[i] += static_cast<uint32_t>(value * w[i]);
          }
      }
      for (int i = 0; i < lanes; i++) t.out[0][first + i] = static_cast<int32_t>(sum[i]);
    }
  }
};

template <class T>
constexpr Accumulator bytes_accumulator = {
    .lanes = T::lanes,
    .prepared_bytes = Counting<T>::prepared_bytes,
    .prepare = Counting<T>::prepare,
    .scratch_bytes = T::scratch_bytes,
    .stage = T::stage,
    .accumulate = Counting<T>::accumulate,
};

}  // namespace
}  // namespace bnn
