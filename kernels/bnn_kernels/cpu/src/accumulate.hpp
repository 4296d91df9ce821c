// The popcount convolution for an instruction set, given by T: T::tile counts for at most T::pixels pixels, one 32-bit lane per
// output channel, T::lanes of them in a vector.
//
// Pixels are grouped by the taps that lie inside the image, so that a tile of pixels runs over these taps only: what is outside
// is not computed, and a sum is K - 2 popcount(x ^ w) over what is inside. With pad_value -1 and +1 the taps outside add a
// constant per channel, taken from the number of +1 weights of each tap.
//
// Prepared weights, per group: [taps][outputs, rounded up to lanes] int32 number of +1 weights, then per chunk
// [taps][words][channels of the chunk, rounded up to lanes] words.
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

// `pixels` pixels whose words start `offsets` from x, and `vectors` vectors of channels:
// out[pixel][channel] = base[channel] - 2 popcount(x ^ w).
struct Tile {
  int64_t pixels, vectors;
  const uint32_t* x;
  const int64_t* offsets;
  const std::vector<Segment>& segments;
  const uint32_t* w;
  const int32_t* base;
  int32_t* const* out;
};

template <class T>
struct Popcount {

  static int64_t rounded(int64_t channels) { return round_up(channels, T::lanes); }
  static int64_t group_words(const Conv& c) { return rounded(c.group_outputs()) * c.taps() * (c.words() + 1); }

  static int64_t prepared_bytes(const Conv& c) { return c.groups * group_words(c) * 4; }

  static void prepare(const Conv& c, const uint32_t* weight, void* prepared) {
    const int64_t outputs = c.group_outputs(), words = c.words(), taps = c.taps();
    for (int64_t group = 0; group < c.groups; group++) {
      uint32_t* ones = static_cast<uint32_t*>(prepared) + group * group_words(c);
      uint32_t* chunk = ones + taps * rounded(outputs);
      for (int64_t first = 0; first < outputs; first += CHUNK) {
        const int64_t count = std::min(CHUNK, outputs - first), row = rounded(count);
        for (int64_t i = 0; i < count; i++) {
          const uint32_t* source = weight + (group * outputs + first + i) * taps * words;
          for (int64_t k = 0; k < taps * words; k++) {
            chunk[k * row + i] = source[k];
            ones[k / words * rounded(outputs) + first + i] += std::popcount(source[k]);
          }
        }
        chunk += taps * words * row;
      }
    }
  }

  static void accumulate(const Plan& plan, const Block& block, const Chunk& chunk, const uint32_t* image, const void* prepared,
                         const void*, int32_t* tile, int64_t stride) {
    const Conv& c = plan.conv;
    const int64_t row = rounded(chunk.count), vectors = row / T::lanes;
    const int64_t all = rounded(c.group_outputs());
    const uint32_t* ones = static_cast<const uint32_t*>(prepared) + chunk.group * group_words(c);
    const uint32_t* weight = ones + c.taps() * (all + c.words() * chunk.first);
    const uint32_t* x = image + chunk.group * c.words();
    thread_local std::vector<Segment> segments;
    for (const Run& vertical : plan.rows) {
      const Piece ys = piece(vertical, block.y0, block.y1);
      if (ys.from >= ys.to) continue;
      for (const Run& horizontal : plan.columns) {
        const Piece xs = piece(horizontal, block.x0, block.x1);
        if (xs.from >= xs.to) continue;
        alignas(ALIGNMENT) int32_t base[CHUNK];
        collect(c, vertical, horizontal, row, segments);
        constants(c, vertical, horizontal, reinterpret_cast<const int32_t*>(ones) + chunk.first, all, row, base);
        rectangle(plan, block, vertical, ys, horizontal, xs, segments, x, weight, base, vectors, tile, stride);
      }
    }
  }

 private:
  static void collect(const Conv& c, const Run& vertical, const Run& horizontal, int64_t row, std::vector<Segment>& segments) {
    const int64_t words = c.words();
    segments.clear();
    for (size_t i = 0; i < vertical.taps.size(); i++) {
      for (size_t j = 0; j < horizontal.taps.size(); j++) {
        const int64_t x = (vertical.offsets[i] * c.width + horizontal.offsets[j]) * c.pixel_words();
        const int64_t w = (vertical.taps[i] * c.kernel_w + horizontal.taps[j]) * words * row;
        if (!segments.empty() && segments.back().x + segments.back().length == x &&
            segments.back().w + segments.back().length * row == w)
          segments.back().length += words;
        else
          segments.push_back({x, w, words});
      }
    }
  }

  // What a sum is where all signs agree, taps outside included.
  static void constants(const Conv& c, const Run& vertical, const Run& horizontal, const int32_t* ones, int64_t ones_row,
                        int64_t row, int32_t* base) {
    const int32_t terms = static_cast<int32_t>(c.group_channels());
    std::fill(base, base + row, terms * static_cast<int32_t>(vertical.taps.size() * horizontal.taps.size()));
    if (c.pad_value == 0) return;
    for (int64_t i = 0; i < c.kernel_h; i++) {
      const bool row_inside = std::binary_search(vertical.taps.begin(), vertical.taps.end(), i);
      for (int64_t j = 0; j < c.kernel_w; j++) {
        if (row_inside && std::binary_search(horizontal.taps.begin(), horizontal.taps.end(), j)) continue;
        const int32_t* tap = ones + (i * c.kernel_w + j) * ones_row;
        for (int64_t o = 0; o < row; o++) base[o] += static_cast<int32_t>(c.pad_value) * (2 * tap[o] - terms);
      }
    }
  }

  static void rectangle(const Plan& plan, const Block& block, const Run& vertical, Piece ys, const Run& horizontal, Piece xs,
                        const std::vector<Segment>& segments, const uint32_t* x, const uint32_t* weight, const int32_t* base,
                        int64_t vectors, int32_t* tile, int64_t stride) {
    const Conv& c = plan.conv;
    const int64_t pixels = (ys.to - ys.from) * (xs.to - xs.from);
    const int64_t tiles = divide_up(pixels, T::pixels);
    int64_t i = ys.from, j = xs.from;
    for (int64_t n = 0; n < tiles; n++) {  // tiles of equal size, give or take one pixel
      const int64_t size = pixels * (n + 1) / tiles - pixels * n / tiles;
      int64_t offsets[T::pixels];
      int32_t* out[T::pixels];
      for (int64_t p = 0; p < size; p++) {
        const int64_t row = vertical.source + i * vertical.source_step, column = horizontal.source + j * horizontal.source_step;
        const int64_t y = vertical.first + i * vertical.step, at = horizontal.first + j * horizontal.step;
        offsets[p] = (row * c.width + column) * c.pixel_words();
        out[p] = tile + ((y - block.y0) * (block.x1 - block.x0) + at - block.x0) * stride;
        if (++j == xs.to) j = xs.from, i++;
      }
      T::tile({size, vectors, x, offsets, segments, weight, base, out});
    }
  }
};

}  // namespace
}  // namespace bnn
