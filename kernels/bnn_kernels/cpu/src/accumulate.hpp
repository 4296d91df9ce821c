// The convolution word by word, for an instruction set given by T:
//   T::lanes      channels that it always computes together; T::pixels: pixels of a tile at most
//   T::Word       what the channels of a word of one pixel are to it, and T::Weight what they are in the weights; T::per_word of
//                 the latter
//   T::put        writes the weights of one word of one output channel
//   T::worth      what the weights of one word add to the number that is kept of each tap and channel
//   T::constants  where sums begin, by these numbers
//   T::source     finds the words of a block's input
//   T::tile       adds up a tile of pixels
//
// Pixels are grouped by the taps that lie inside the image, so that a tile runs over these taps only: what is outside is not
// computed. Signs: a sum is K - 2 popcount(x ^ w) over what is inside, and with pad_value -1 and +1 the taps outside add a
// constant per channel, from the number of +1 weights of each tap. Bytes: bytes.hpp.
//
// Prepared weights, per group: [taps][outputs, rounded up to lanes] int32 numbers, then per chunk
// [taps][words][T::per_word][channels of the chunk, rounded up to lanes] weights.
#pragma once

#include <algorithm>
#include <bit>
#include <vector>

#include "engine.hpp"

namespace bnn {
namespace {

struct Segment {  // words that follow each other, from x[x] in the input and from w[w] in the prepared weights
  int64_t x, w, length;
};

// `pixels` pixels whose words start `offsets` from x, and `row` channels: out[pixel][channel] = base[channel] - 2 differing signs, or plus products.
template <class T>
struct Tile {
  int64_t pixels, row;
  const typename T::Word* x;
  const int64_t* offsets;
  const std::vector<Segment>& segments;
  const typename T::Weight* w;
  const int32_t* base;
  int32_t* const* out;
};

// Words of an image: pixel (y, x) starts at origin + y * pitch + x * pixel_words, for those pixels that the block reads.
template <class Word>
struct Source {
  const Word* origin;
  int64_t pitch;
};

// Where a block's input lies that was copied for it, row by row: [rows][columns][pixel_words].
struct Staged {
  Span rows, columns;
  int64_t pixel_words, pitch;

  Staged(const Plan& plan, const Block& block)
      : rows(reach(plan.rows, block.y0, block.y1)), columns(reach(plan.columns, block.x0, block.x1)),
        pixel_words(plan.conv.pixel_words()), pitch((columns.last - columns.first) * pixel_words) {}

  template <class Word>
  Source<Word> source(const Word* first) const {
    return {first - (rows.first * pitch + columns.first * pixel_words), pitch};
  }
};
inline int64_t staged_words(const Plan& plan) { return plan.conv.height * plan.conv.width * plan.conv.pixel_words(); }

template <class T>
struct Counting {
  using Weight = typename T::Weight;

  static int64_t rounded(int64_t channels) { return round_up(channels, T::lanes); }
  static int64_t numbers_bytes(const Conv& c) { return c.taps() * rounded(c.group_outputs()) * static_cast<int64_t>(sizeof(int32_t)); }
  static int64_t chunk_bytes(const Conv& c, int64_t channels) {
    return c.taps() * c.words() * T::per_word * rounded(channels) * static_cast<int64_t>(sizeof(Weight));
  }
  static int64_t group_bytes(const Conv& c) { return round_up(numbers_bytes(c) + chunk_bytes(c, c.group_outputs()), ALIGNMENT); }
  static int64_t prepared_bytes(const Conv& c) { return c.groups * group_bytes(c); }

  static void prepare(const Conv& c, const uint32_t* weight, const uint8_t* zeros, void* prepared) {
    const int64_t outputs = c.group_outputs(), words = c.words();
    for (int64_t group = 0; group < c.groups; group++, zeros += words * WORD_BYTES) {
      char* start = static_cast<char*>(prepared) + group * group_bytes(c);
      int32_t* numbers = reinterpret_cast<int32_t*>(start);
      for (int64_t o = 0; o < outputs; o++) {
        const int64_t first = o / CHUNK * CHUNK, row = rounded(std::min(CHUNK, outputs - first));
        Weight* chunk = reinterpret_cast<Weight*>(start + numbers_bytes(c) + chunk_bytes(c, first));
        for (int64_t k = 0; k < c.taps() * words; k++) {
          const uint32_t word = *weight++;
          T::put(word, chunk + k * T::per_word * row + o - first, row);
          numbers[k / words * rounded(outputs) + o] += T::worth(word, zeros + k % words * WORD_BYTES);
        }
      }
    }
  }

  static void accumulate(const Plan& plan, const Block& block, const Chunk& chunk, const void* image, const void* prepared,
                         const void* scratch, int32_t* tile, int64_t stride) {
    const Conv& c = plan.conv;
    const int64_t row = rounded(chunk.count);
    const char* start = static_cast<const char*>(prepared) + chunk.group * group_bytes(c);
    const Weight* weight = reinterpret_cast<const Weight*>(start + numbers_bytes(c) + chunk_bytes(c, chunk.first));
    const int32_t* numbers = reinterpret_cast<const int32_t*>(start) + chunk.first;
    Source<typename T::Word> source = T::source(plan, block, image, scratch);
    source.origin += chunk.group * c.words();
    thread_local std::vector<Segment> segments;
    for (const Run& vertical : plan.rows) {
      const Piece ys = piece(vertical, block.y0, block.y1);
      if (ys.from >= ys.to) continue;
      for (const Run& horizontal : plan.columns) {
        const Piece xs = piece(horizontal, block.x0, block.x1);
        if (xs.from >= xs.to) continue;
        alignas(ALIGNMENT) int32_t base[CHUNK];
        collect(c, vertical, horizontal, source.pitch, row, segments);
        T::constants(c, vertical, horizontal, numbers, rounded(c.group_outputs()), row, base);
        rectangle(c, block, vertical, ys, horizontal, xs, segments, source, weight, base, row, tile, stride);
      }
    }
  }

 private:
  static void collect(const Conv& c, const Run& vertical, const Run& horizontal, int64_t pitch, int64_t row,
                      std::vector<Segment>& segments) {
    const int64_t words = c.words(), step = T::per_word * row;
    segments.clear();
    for (size_t i = 0; i < vertical.taps.size(); i++) {
      for (size_t j = 0; j < horizontal.taps.size(); j++) {
        const int64_t x = vertical.offsets[i] * pitch + horizontal.offsets[j] * c.pixel_words();
        const int64_t w = (vertical.taps[i] * c.kernel_w + horizontal.taps[j]) * words * step;
        if (!segments.empty() && segments.back().x + segments.back().length == x &&
            segments.back().w + segments.back().length * step == w)
          segments.back().length += words;
        else
          segments.push_back({x, w, words});
      }
    }
  }

  static void rectangle(const Conv& c, const Block& block, const Run& vertical, Piece ys, const Run& horizontal, Piece xs,
                        const std::vector<Segment>& segments, const Source<typename T::Word>& source, const Weight* weight,
                        const int32_t* base, int64_t row, int32_t* tile, int64_t stride) {
    const int64_t width = xs.to - xs.from, pixels = (ys.to - ys.from) * width;
    const int64_t tiles = divide_up(pixels, T::pixels), size = pixels / tiles, larger = pixels % tiles;
    // From one pixel to the next, and from the end of a row to the start of the next.
    const int64_t x_step = horizontal.source_step * c.pixel_words();
    const int64_t x_turn = vertical.source_step * source.pitch - width * x_step;
    const int64_t out_step = horizontal.step * stride;
    const int64_t out_turn = vertical.step * (block.x1 - block.x0) * stride - width * out_step;
    const typename T::Word* x = source.origin + (vertical.source + ys.from * vertical.source_step) * source.pitch +
                                (horizontal.source + xs.from * horizontal.source_step) * c.pixel_words();
    tile += ((vertical.first + ys.from * vertical.step - block.y0) * (block.x1 - block.x0) + horizontal.first +
             xs.from * horizontal.step - block.x0) * stride;
    int64_t left = width, offset = 0;
    for (int64_t n = 0; n < tiles; n++) {  // tiles of equal size, give or take one pixel
      int64_t offsets[T::pixels];
      int32_t* out[T::pixels];
      const int64_t count = size + (n < larger);
      for (int64_t p = 0; p < count; p++) {
        offsets[p] = offset;
        out[p] = tile;
        offset += x_step;
        tile += out_step;
        if (--left == 0) {
          left = width;
          offset += x_turn;
          tile += out_turn;
        }
      }
      T::tile({count, row, x, offsets, segments, weight, base, out});
    }
  }
};

struct SignsBase {
  static int32_t worth(uint32_t word, const uint8_t*) { return std::popcount(word); }

  // What a sum is where all signs agree, taps outside included.
  static void constants(const Conv& c, const Run& vertical, const Run& horizontal, const int32_t* ones, int64_t outputs,
                        int64_t row, int32_t* base) {
    const int32_t terms = static_cast<int32_t>(c.group_channels());
    std::fill(base, base + row, terms * static_cast<int32_t>(vertical.taps.size() * horizontal.taps.size()));
    if (c.pad_value == 0) return;
    for (int64_t i = 0; i < c.kernel_h; i++) {
      const bool row_inside = std::binary_search(vertical.taps.begin(), vertical.taps.end(), i);
      for (int64_t j = 0; j < c.kernel_w; j++) {
        if (row_inside && std::binary_search(horizontal.taps.begin(), horizontal.taps.end(), j)) continue;
        const int32_t* tap = ones + (i * c.kernel_w + j) * outputs;
        for (int64_t o = 0; o < row; o++) base[o] += static_cast<int32_t>(c.pad_value) * (2 * tap[o] - terms);
      }
    }
  }
};

// For instruction sets that count the words as they are.
struct PlainWords : SignsBase {
  using Word = uint32_t;
  using Weight = uint32_t;
  static constexpr int64_t per_word = 1;

  static void put(uint32_t word, uint32_t* weight, int64_t) { *weight = word; }
  static Source<uint32_t> source(const Plan& plan, const Block&, const void* image, const void*) {
    return {static_cast<const uint32_t*>(image), plan.conv.width * plan.conv.pixel_words()};
  }
};

}  // namespace
}  // namespace bnn
