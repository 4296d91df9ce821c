// The convolution for AMX (amx.hpp): how activations lie in planes, and weights in tiles.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "engine.hpp"

namespace bnn {
namespace {

constexpr int64_t ROWS = 16;  // pixels of a tile of activations; channels of a tile of weights
constexpr int64_t DEPTH = 64;  // terms of one step
constexpr int64_t TILE_BYTES = ROWS * DEPTH;
constexpr int64_t MOST_TILES = 4;  // of pixels, that share one tile of weights
constexpr int64_t GROUP = MOST_TILES * ROWS;
constexpr int64_t BLOCK_PIXELS = 512;
constexpr int64_t COPIED = 32;  // bytes at a time

int64_t floor_divide(int64_t a, int64_t b) { return (a - (a % b + b) % b) / b; }

// One axis as dense planes. Output residue + n * step, tap t, reads input source_step * (n + shift) + starts[plane].
struct Axis {
  struct Tap {
    int64_t tap, plane, shift;
  };

  int64_t step, source_step, least, most;  // the smallest and the largest shift
  std::vector<std::vector<Tap>> residues;  // step of them
  std::vector<int64_t> starts;

  // `outputs`: n of a block at most.
  Axis(int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, bool transposed, int64_t outputs)
      : step(transposed ? stride : 1), source_step(transposed ? 1 : stride) {
    collect(kernel, stride, pad, dilation, transposed, false);
    // Under a wide dilation the taps share little of a plane, and most of it would be read by none: then each has its own.
    if (most - least > kernel * outputs) collect(kernel, stride, pad, dilation, transposed, true);
  }

  void collect(int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, bool transposed, bool apart) {
    residues.assign(step, {});
    starts.clear();
    least = INT64_MAX, most = INT64_MIN;
    for (int64_t residue = 0; residue < step; residue++) {
      for (int64_t tap = 0; tap < kernel; tap++) {
        const int64_t at = transposed ? residue + pad - tap * dilation : tap * dilation - pad;
        const int64_t whole = floor_divide(at, stride), rest = at - whole * stride;
        if (transposed && rest != 0) continue;
        const int64_t shift = apart ? 0 : whole, start = !apart ? rest : transposed ? whole : at;
        const auto found = std::find(starts.begin(), starts.end(), start);
        residues[residue].push_back({tap, found - starts.begin(), shift});
        if (found == starts.end()) starts.push_back(start);
        least = std::min(least, shift);
        most = std::max(most, shift);
      }
    }
  }

  // n of the outputs first <= residue + n * step < last.
  Span positions(int64_t residue, int64_t first, int64_t last) const {
    return {floor_divide(first - residue + step - 1, step), floor_divide(last - residue + step - 1, step)};
  }

  bool reads(int64_t plane, int64_t position, Span outputs) const {
    for (const auto& taps : residues)
      for (const Tap& tap : taps)
        if (tap.plane == plane && outputs.first <= position - tap.shift && position - tap.shift < outputs.last) return true;
    return false;
  }
};

// What of a plane a block needs: rows and columns from positions first_row and first_column on.
struct Frame {
  Span outputs_y, outputs_x;  // n of all residues
  int64_t first_row, first_column, rows, columns;
};

// Of a block; `driver.cpp` cuts it.
int64_t most_rows(const Conv& c) { return std::min(c.out_h, std::max<int64_t>(1, BLOCK_PIXELS / c.out_w)); }
int64_t most_columns(const Conv& c) { return std::min(c.out_w, BLOCK_PIXELS); }

// n of `pixels` neighbours: in a transposed convolution one more where they begin within a step.
int64_t most_outputs(int64_t pixels, int64_t stride, bool transposed) {
  return transposed ? divide_up(pixels, stride) + 1 : pixels;
}

struct Layout {
  Conv conv;
  // The taps of a row as one, over bytes that follow each other: where neither groups nor dilation are between them, and where that
  // takes fewer steps than to fill up the channels of each tap.
  bool whole_rows;
  // Positions then overlap. Where they begin few bytes apart, each gets a copy of all that it reads, row after row: most loads of
  // 64 bytes would cross a cache line, and the rows of a kernel together fill up 64 bytes once.
  bool apart;
  Axis vertical, horizontal;
  int64_t depth;  // bytes of a tap, of which a position reads as many for each
  int64_t pitch;  // bytes from a position in its plane to the next
  int64_t planes;  // of one group
  int64_t steps;  // of one output, over the taps of all residues
  int64_t tiles;  // of channels of one group

  explicit Layout(const Conv& c)
      : conv(c),
        whole_rows(c.bytes && !c.transposed && c.groups == 1 && c.dilation_w == 1 &&
                   round_up(c.kernel_w * c.channels, DEPTH) < c.kernel_w * round_up(c.channels, DEPTH)),
        apart(whole_rows && c.stride_w * c.channels < WORD_BITS),
        vertical(apart ? 1 : c.kernel_h, c.stride_h, c.pad_h, c.dilation_h, c.transposed,
                 most_outputs(most_rows(c), c.stride_h, c.transposed)),
        horizontal(whole_rows ? 1 : c.kernel_w, c.stride_w, c.pad_w, c.dilation_w, c.transposed,
                   most_outputs(most_columns(c), c.stride_w, c.transposed)),
        depth(round_up(apart ? (c.kernel_h - 1) * row_bytes() + round_up(row_bytes(), COPIED) : row_bytes(), DEPTH)),
        pitch(whole_rows && !apart ? c.stride_w * c.channels : depth),
        planes(vertical.starts.size() * horizontal.starts.size()),
        steps((apart ? 1 : c.kernel_h) * (whole_rows ? 1 : c.kernel_w) * depth / DEPTH),
        tiles(divide_up(c.group_outputs(), ROWS)) {
    if (whole_rows && !apart) horizontal.most += divide_up(c.kernel_w, c.stride_w) - 1;  // columns behind the last position
  }

  // Bytes of a row of a kernel that follow each other.
  int64_t row_bytes() const { return (whole_rows ? conv.kernel_w : 1) * conv.group_channels(); }
  // Products that a step's taps have together.
  int64_t terms() const { return (apart ? conv.kernel_h : 1) * row_bytes(); }

  Frame frame(const Block& block) const {
    const Span y{floor_divide(block.y0, vertical.step), floor_divide(block.y1 - 1, vertical.step) + 1};
    const Span x{floor_divide(block.x0, horizontal.step), floor_divide(block.x1 - 1, horizontal.step) + 1};
    return {y, x, y.first + vertical.least, x.first + horizontal.least, y.last - y.first + vertical.most - vertical.least,
            x.last - x.first + horizontal.most - horizontal.least};
  }
  int64_t plane_bytes(const Frame& frame) const { return frame.rows * frame.columns * pitch; }
  int64_t offsets_bytes() const { return round_up(steps * static_cast<int64_t>(sizeof(int64_t)), ALIGNMENT); }
  int64_t weight_tiles() const { return conv.groups * tiles * steps; }
  // Of residues, each of which has sums of its own.
  int64_t sums() const { return conv.groups * vertical.step * horizontal.step * tiles * ROWS; }

  // Scratch: for each residue and tap, where a step's bytes begin; then what `kept` says; then [group][plane][row][column] bytes.
  int8_t* kept_in(void* scratch) const { return static_cast<int8_t*>(scratch) + offsets_bytes(); }
};

// Tiles of weights one after another, again and again.
class Resident {
 public:
  Resident(const int8_t* first, int64_t count) : first_(first), last_(first + count * TILE_BYTES), next_(first) {}
  const int8_t* tile() const { return next_; }
  void advance() {
    next_ += TILE_BYTES;
    if (next_ == last_) next_ = first_;
  }

 private:
  const int8_t *first_, *last_, *next_;
};

}  // namespace
}  // namespace bnn
