// The convolution for AMX: signs as int8, 16 pixels x 64 terms times 64 terms x 16 channels in one instruction.
//
// Activations become bytes once per block (`stage`): +1, -1, and 0 for what is outside the image with pad_value 0 and for the
// channels that fill up 64, so that neither counts. They lie in dense planes: one per group and per residue of the input
// position, so that under any stride, and in a transposed convolution, a tile of 16 output positions reads 16 pixels that
// follow each other. Output positions are numbered along a plane, across the ends of its rows: a few of them belong to no
// pixel, but tiles are full, and the time of an instruction does not depend on how many of its rows are used.
//
// Weights are kept as bits, an eighth of the memory. Where the bytes of all of them fit into the cache beside the activations,
// they are expanded once for a call (`begin`). Else a tile of them is expanded two steps ahead into a ring that lives in L1,
// which hides behind the multiplications, more or less.
//
// What follows the sums (`stream`) runs between the multiplications: those keep the tiles' own unit busy, and the processor has
// room for a few other instructions in the meantime. So the sums of 64 positions go to the sink piece by piece, while the next
// 64 are computed.
//
// T holds eight tiles of 16 x 64 bytes and the instructions on them; T::signs expands 64 bits to bytes. isa_amx.cpp has the
// processor's, isa_amx_emulated.cpp the same in plain C++, with which every machine can test this file.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
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
constexpr int64_t RESIDENT_BYTES = 160 << 10;  // of expanded weights at most
constexpr int64_t PIECE = 8;  // pixels that a sink takes at a time, or more where there are few steps

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
  Axis vertical, horizontal;
  int64_t depth;  // bytes of a pixel in its plane
  int64_t planes;  // of one group
  int64_t steps;  // of one output, over the taps of all residues
  int64_t tiles;  // of channels of one group

  explicit Layout(const Conv& c)
      : conv(c),
        vertical(c.kernel_h, c.stride_h, c.pad_h, c.dilation_h, c.transposed,
                 most_outputs(most_rows(c), c.stride_h, c.transposed)),
        horizontal(c.kernel_w, c.stride_w, c.pad_w, c.dilation_w, c.transposed,
                   most_outputs(most_columns(c), c.stride_w, c.transposed)),
        depth(round_up(c.group_channels(), DEPTH)),
        planes(vertical.starts.size() * horizontal.starts.size()),
        steps(c.taps() * depth / DEPTH),
        tiles(divide_up(c.group_outputs(), ROWS)) {}

  Frame frame(const Block& block) const {
    const Span y{floor_divide(block.y0, vertical.step), floor_divide(block.y1 - 1, vertical.step) + 1};
    const Span x{floor_divide(block.x0, horizontal.step), floor_divide(block.x1 - 1, horizontal.step) + 1};
    return {y, x, y.first + vertical.least, x.first + horizontal.least, y.last - y.first + vertical.most - vertical.least,
            x.last - x.first + horizontal.most - horizontal.least};
  }
  int64_t plane_bytes(const Frame& frame) const { return frame.rows * frame.columns * depth; }
  int64_t offsets_bytes() const { return round_up(steps * static_cast<int64_t>(sizeof(int64_t)), ALIGNMENT); }
  int64_t weight_tiles() const { return conv.groups * tiles * steps; }
  bool resident() const { return weight_tiles() * TILE_BYTES <= RESIDENT_BYTES; }
  int64_t resident_bytes() const { return resident() ? weight_tiles() * TILE_BYTES : 0; }

  // Scratch: for each residue and tap, where a step's bytes begin; then the resident weights; then [group][plane][row][column]
  // [depth] bytes.
  int8_t* weights_in(void* scratch) const { return static_cast<int8_t*>(scratch) + offsets_bytes(); }
  int8_t* planes_in(void* scratch) const { return weights_in(scratch) + resident_bytes(); }
};

inline uint64_t channel_bits(int64_t channels) { return channels >= DEPTH ? ~uint64_t{0} : (uint64_t{1} << channels) - 1; }

inline uint64_t two_words(const uint32_t* words, int64_t count) {
  return count > 1 ? words[0] | static_cast<uint64_t>(words[1]) << WORD_BITS : words[0];
}

template <class T>
void expand(const uint64_t* bits, int8_t* tile) {
  for (int64_t row = 0; row < ROWS; row++) T::signs(bits[row], ~uint64_t{0}, tile + row * DEPTH);
}

// Weight tiles as bytes, two steps ahead of their use. `count` of them follow each other again and again.
template <class T>
class Ring {
 public:
  Ring(const uint64_t* first, int64_t count) : first_(first), last_(first + count * ROWS), next_(first) {
    fill(0);
    fill(1);
  }
  const int8_t* tile() const { return slots_[slot_]; }
  void advance() {
    fill((slot_ + 2) % SLOTS);
    slot_ = (slot_ + 1) % SLOTS;
  }

 private:
  static constexpr int64_t SLOTS = 4;

  void fill(int64_t slot) {
    expand<T>(next_, slots_[slot]);
    next_ += ROWS;
    if (next_ == last_) next_ = first_;
  }

  alignas(ALIGNMENT) int8_t slots_[SLOTS][TILE_BYTES];
  const uint64_t *first_, *last_, *next_;
  int64_t slot_ = 0;
};

// The same from tiles that were expanded before.
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

// Sums of some positions of a plane on their way to a sink, a few pixels per step of the next ones.
class Pending {
 public:
  Pending(const Sink& sink, int64_t pitch, int64_t columns) : sink_(sink), pitch_(pitch), columns_(columns) {}

  // Positions from `first` to `last` - 1 with a row of CHUNK sums each; `steps` follow before the next start().
  void start(const Chunk& chunk, const int32_t* rows, int64_t first, int64_t last, int64_t steps) {
    while (left_ > 0) take(left_);
    chunk_ = chunk, rows_ = rows, left_ = last - first;
    y_ = first / pitch_, x_ = first % pitch_;
    piece_ = std::max(PIECE, divide_up(GROUP, steps));
    period_ = until_ = std::max<int64_t>(1, steps * PIECE / GROUP);
  }
  void finish() {
    while (left_ > 0) take(left_);
  }
  void step() {
    if (left_ > 0 && --until_ == 0) {
      until_ = period_;
      take(piece_);
    }
  }

 private:
  void take(int64_t most) {
    if (x_ >= columns_) skip(pitch_ - x_);
    const int64_t pixels = std::min({most, columns_ - x_, left_});
    if (pixels <= 0) return;
    sink_.take(chunk_, rows_, CHUNK, y_ * columns_ + x_, pixels);
    skip(pixels);
  }
  void skip(int64_t positions) {
    rows_ += positions * CHUNK, left_ -= positions, x_ += positions;
    if (x_ >= pitch_) x_ -= pitch_, y_++;
  }

  const Sink& sink_;
  const int64_t pitch_, columns_;
  Chunk chunk_{};
  const int32_t* rows_ = nullptr;
  int64_t left_ = 0, y_ = 0, x_ = 0, piece_ = 0, period_ = 0, until_ = 0;
};

// Where the sums of a residue's positions go: pixels of the block, along the rows of a plane of `pitch` columns.
struct Target {
  int32_t* tile;  // of the residue's first pixel and the first channel
  int64_t row_stride, column_stride;  // int32 from one position to the next
  int64_t rows, columns, pitch;
};

template <class T>
struct Amx {
  static int64_t prepared_bytes(const Conv& c) {
    const Layout layout(c);
    return c.groups * layout.tiles * layout.steps * ROWS * static_cast<int64_t>(sizeof(uint64_t));
  }

  // [group][residue][tile of 16 channels][step][4 terms] uint64: bit 4 n + i is term i of the four, channel n of the sixteen.
  static void prepare(const Conv& c, const uint32_t* weight, void* prepared) {
    const Layout layout(c);
    const int64_t words = c.words(), outputs = c.group_outputs();
    uint64_t* rows = static_cast<uint64_t*>(prepared);
    const auto tile_of_tap = [&](const uint32_t* tap, int64_t channels) {
      for (int64_t word = 0; word < layout.depth / WORD_BITS; word++)
        for (int64_t four = 0; four < WORD_BITS / 4; four++, rows++)
          for (int64_t n = 0; n < channels && word < words; n++)
            *rows |= static_cast<uint64_t>(tap[n * c.taps() * words + word] >> 4 * four & 15) << 4 * n;
    };
    for (int64_t group = 0; group < c.groups; group++)
      for (const auto& vertical : layout.vertical.residues)
        for (const auto& horizontal : layout.horizontal.residues)
          for (int64_t first = 0; first < outputs; first += ROWS)
            for (const Axis::Tap& y : vertical)
              for (const Axis::Tap& x : horizontal)
                tile_of_tap(weight + ((group * outputs + first) * c.taps() + y.tap * c.kernel_w + x.tap) * words,
                            std::min(ROWS, outputs - first));
  }

  static int64_t scratch_bytes(const Plan& plan) {
    const Conv& c = plan.conv;
    const Layout& layout = remembered<Layout>(c);
    const Axis &y = layout.vertical, &x = layout.horizontal;
    const int64_t rows = most_outputs(most_rows(c), c.stride_h, c.transposed) + y.most - y.least;
    const int64_t columns = most_outputs(most_columns(c), c.stride_w, c.transposed) + x.most - x.least;
    // The last tile reads on behind the last plane.
    return layout.offsets_bytes() + layout.resident_bytes() + (c.groups * layout.planes * rows * columns + ROWS) * layout.depth;
  }

  static void begin(const Plan& plan, const void* prepared, void* scratch) {
    const Layout& layout = remembered<Layout>(plan.conv);
    if (!layout.resident()) return;
    const uint64_t* bits = static_cast<const uint64_t*>(prepared);
    for (int64_t tile = 0; tile < layout.weight_tiles(); tile++)
      expand<T>(bits + tile * ROWS, layout.weights_in(scratch) + tile * TILE_BYTES);
  }

  static void stage(const Plan& plan, const Block& block, const uint32_t* image, void* scratch) {
    const Layout& layout = remembered<Layout>(plan.conv);
    const Frame frame = layout.frame(block);
    write_offsets(layout, frame, static_cast<int64_t*>(scratch));
    int8_t* bytes = layout.planes_in(scratch);
    for (int64_t group = 0; group < plan.conv.groups; group++)
      for (size_t y = 0; y < layout.vertical.starts.size(); y++)
        for (size_t x = 0; x < layout.horizontal.starts.size(); x++, bytes += layout.plane_bytes(frame))
          write_plane(layout, frame, image + group * plan.conv.words(), y, x, bytes);
  }

  static void accumulate(const Plan& plan, const Block& block, const Chunk& chunk, const uint32_t*, const void* prepared,
                         const void* scratch, int32_t* tile, int64_t stride) {
    const Layout& layout = remembered<Layout>(plan.conv);
    const Frame frame = layout.frame(block);
    const Axis &vertical = layout.vertical, &horizontal = layout.horizontal;
    const int64_t* offsets = static_cast<const int64_t*>(scratch);
    const int8_t* group = group_in(layout, frame, chunk.group, scratch);
    int64_t first_tile = chunk.group * layout.tiles * layout.steps;
    const typename T::Configuration configuration;
    for (int64_t y = 0; y < vertical.step; y++) {
      for (int64_t x = 0; x < horizontal.step; x++) {
        const int64_t taps = vertical.residues[y].size() * horizontal.residues[x].size(), steps = taps * layout.depth / DEPTH;
        const Span ys = vertical.positions(y, block.y0, block.y1), xs = horizontal.positions(x, block.x0, block.x1);
        if (ys.first < ys.last && xs.first < xs.last) {
          const int64_t width = block.x1 - block.x0;
          const int64_t first_y = y + ys.first * vertical.step, first_x = x + xs.first * horizontal.step;
          const Target target{tile + ((first_y - block.y0) * width + first_x - block.x0) * stride,
                              vertical.step * width * stride, horizontal.step * stride, ys.last - ys.first, xs.last - xs.first,
                              frame.columns};
          const int64_t first = (ys.first - frame.outputs_y.first) * frame.columns + xs.first - frame.outputs_x.first;
          if (steps == 0) {
            zeros(chunk.count, target);
          } else {
            with_weights(layout, prepared, scratch, first_tile + chunk.first / ROWS * steps, chunk.count, steps, [&](auto& weights) {
              positions(group + first * layout.depth, layout.depth, offsets, steps, weights, chunk.count, target);
            });
          }
        }
        offsets += steps;
        first_tile += layout.tiles * steps;
      }
    }
  }

  static void stream(const Plan& plan, const Block& block, int64_t first, int64_t last, const void* prepared,
                     const void* scratch, int32_t* tile, const Sink& sink) {
    const Layout& layout = remembered<Layout>(plan.conv);
    const Frame frame = layout.frame(block);
    const int64_t* offsets = static_cast<const int64_t*>(scratch);
    const int64_t columns = block.x1 - block.x0, pitch = frame.columns, steps = layout.steps;
    const int64_t count = (block.y1 - block.y0 - 1) * pitch + columns;
    Pending pending(sink, pitch, columns);
    int32_t* halves[] = {tile, tile + GROUP * CHUNK};
    const typename T::Configuration configuration;
    for (int64_t number = first; number < last; number++) {
      const Chunk chunk = chunk_at(layout.conv, number);
      const int8_t* bytes = group_in(layout, frame, chunk.group, scratch);
      const int64_t first_tile = (chunk.group * layout.tiles + chunk.first / ROWS) * steps;
      with_weights(layout, prepared, scratch, first_tile, chunk.count, steps, [&](auto& weights) {
        for (int64_t position = 0; position < count; position += GROUP) {
          for (int64_t channel = 0; channel < chunk.count; channel += ROWS)
            multiply(divide_up(count - position, ROWS), bytes + position * layout.depth, layout.depth, offsets, steps, weights,
                     [&] { pending.step(); }, Rows{halves[0] + channel});
          pending.start(chunk, halves[0], position, std::min(count, position + GROUP), divide_up(chunk.count, ROWS) * steps);
          std::swap(halves[0], halves[1]);
        }
      });
    }
    pending.finish();
  }

 private:
  static const int8_t* group_in(const Layout& layout, const Frame& frame, int64_t group, const void* scratch) {
    return layout.planes_in(const_cast<void*>(scratch)) + group * layout.planes * layout.plane_bytes(frame);
  }

  // Calls body(weights) with the tiles of `channels` channels from tile `first` on.
  template <class Body>
  static void with_weights(const Layout& layout, const void* prepared, const void* scratch, int64_t first, int64_t channels,
                           int64_t steps, const Body& body) {
    const int64_t count = divide_up(channels, ROWS) * steps;
    if (layout.resident()) {
      Resident weights(layout.weights_in(const_cast<void*>(scratch)) + first * TILE_BYTES, count);
      return body(weights);
    }
    Ring<T> weights(static_cast<const uint64_t*>(prepared) + first * ROWS, count);
    body(weights);
  }

  static void write_offsets(const Layout& layout, const Frame& frame, int64_t* offsets) {
    const Axis &vertical = layout.vertical, &horizontal = layout.horizontal;
    for (const auto& ys : vertical.residues)
      for (const auto& xs : horizontal.residues)
        for (const Axis::Tap& y : ys)
          for (const Axis::Tap& x : xs) {
            const int64_t plane = y.plane * static_cast<int64_t>(horizontal.starts.size()) + x.plane;
            const int64_t pixel = (y.shift - vertical.least) * frame.columns + x.shift - horizontal.least;
            for (int64_t step = 0; step < layout.depth; step += DEPTH)
              *offsets++ = plane * layout.plane_bytes(frame) + pixel * layout.depth + step;
          }
  }

  // One plane from `image`, which points to the first word of the group in pixel (0, 0).
  static void write_plane(const Layout& layout, const Frame& frame, const uint32_t* image, size_t plane_y, size_t plane_x,
                          int8_t* bytes) {
    const Conv& c = layout.conv;
    const Axis &vertical = layout.vertical, &horizontal = layout.horizontal;
    // The columns from first to last - 1 lie inside the image: x = x0 + column * source_step.
    const int64_t x0 = frame.first_column * horizontal.source_step + horizontal.starts[plane_x], step = horizontal.source_step;
    const int64_t first = std::clamp<int64_t>(floor_divide(step - 1 - x0, step), 0, frame.columns);
    const int64_t last = std::clamp<int64_t>(floor_divide(c.width + step - 1 - x0, step), first, frame.columns);
    for (int64_t row = 0; row < frame.rows; row++, bytes += frame.columns * layout.depth) {
      if (!vertical.reads(plane_y, frame.first_row + row, frame.outputs_y)) continue;
      const int64_t y = (frame.first_row + row) * vertical.source_step + vertical.starts[plane_y];
      if (y < 0 || y >= c.height) {
        write_outside(c, frame.columns, layout.depth, bytes);
        continue;
      }
      write_outside(c, first, layout.depth, bytes);
      const uint32_t* pixel = image + (y * c.width + x0 + first * step) * c.pixel_words();
      write_pixels(c, pixel, step, last - first, bytes + first * layout.depth);
      write_outside(c, frame.columns - last, layout.depth, bytes + last * layout.depth);
    }
  }

  static void write_pixels(const Conv& c, const uint32_t* pixel, int64_t step, int64_t pixels, int8_t* bytes) {
    // Locals: writing bytes might change c, to the compiler.
    const int64_t whole = c.group_channels() / DEPTH, rest = c.group_channels() % DEPTH;
    const int64_t rest_words = divide_up(rest, WORD_BITS), pixel_words = step * c.pixel_words();
    for (int64_t i = 0; i < pixels; i++, pixel += pixel_words) {
      const uint32_t* words = pixel;
      for (int64_t k = 0; k < whole; k++, words += 2, bytes += DEPTH) T::signs(two_words(words, 2), ~uint64_t{0}, bytes);
      if (rest == 0) continue;
      T::signs(two_words(words, rest_words), channel_bits(rest), bytes);
      bytes += DEPTH;
    }
  }

  static void write_outside(const Conv& c, int64_t pixels, int64_t depth, int8_t* bytes) {
    if (c.pad_value == 0) {
      std::memset(bytes, 0, pixels * depth);
      return;
    }
    for (int64_t i = 0; i < pixels; i++)
      for (int64_t channel = 0; channel < c.group_channels(); channel += DEPTH, bytes += DEPTH)
        T::signs(c.pad_value == 1 ? ~uint64_t{0} : 0, channel_bits(c.group_channels() - channel), bytes);
  }

  // All channels of a chunk for all positions of a residue.
  template <class Weights>
  static void positions(const int8_t* first, int64_t depth, const int64_t* offsets, int64_t steps, Weights& weights,
                        int64_t channels, const Target& target) {
    const int64_t count = (target.rows - 1) * target.pitch + target.columns;
    for (int64_t position = 0; position < count; position += GROUP)
      for (int64_t channel = 0; channel < channels; channel += ROWS)
        multiply(divide_up(count - position, ROWS), first + position * depth, depth, offsets, steps, weights, [] {},
                 Pixels{target, position, channel});
  }

  // Outputs of a transposed convolution that no tap reaches.
  static void zeros(int64_t channels, const Target& target) {
    for (int64_t y = 0; y < target.rows; y++)
      for (int64_t x = 0; x < target.columns; x++)
        std::fill_n(target.tile + y * target.row_stride + x * target.column_stride, round_up(channels, ROWS), 0);
  }

  // `tiles` * 16 positions, four tiles at most, times 16 channels. between() is called in each step.
  template <class Weights, class Between, class Out>
  static void multiply(int64_t tiles, const int8_t* bytes, int64_t depth, const int64_t* offsets, int64_t steps,
                       Weights& weights, const Between& between, const Out& out) {
    switch (tiles) {
      case 1: return multiply<1>(bytes, depth, offsets, steps, weights, between, out);
      case 2: return multiply<2>(bytes, depth, offsets, steps, weights, between, out);
      case 3: return multiply<3>(bytes, depth, offsets, steps, weights, between, out);
      default: return multiply<4>(bytes, depth, offsets, steps, weights, between, out);
    }
  }

  // Tiles 0 to 3 hold the sums, 4 and 5 activations, 6 weights.
  template <int TILES, class Weights, class Between, class Out>
  static void multiply(const int8_t* bytes, int64_t depth, const int64_t* offsets, int64_t steps, Weights& weights,
                       const Between& between, const Out& out) {
    alignas(ALIGNMENT) int8_t unused[TILE_BYTES];
    T::template zero<0>();
    if constexpr (TILES > 1) T::template zero<1>();
    if constexpr (TILES > 2) T::template zero<2>();
    if constexpr (TILES > 3) T::template zero<3>();
    for (int64_t step = 0; step < steps; step++) {
      const int8_t* at = bytes + offsets[step];
      T::template load<6>(weights.tile(), DEPTH);
      T::template load<4>(at, depth);
      T::template multiply_add<0, 4, 6>();
      if constexpr (TILES > 1) {
        T::template load<5>(at + ROWS * depth, depth);
        T::template multiply_add<1, 5, 6>();
      }
      weights.advance();
      if constexpr (TILES > 2) {
        T::template load<4>(at + 2 * ROWS * depth, depth);
        T::template multiply_add<2, 4, 6>();
      }
      if constexpr (TILES > 3) {
        T::template load<5>(at + 3 * ROWS * depth, depth);
        T::template multiply_add<3, 5, 6>();
      }
      between();
      // The path of stores falls asleep after some 640 ns, and waking it takes 280 ns.
      if (step % 16 == 15) T::template store<7>(unused, DEPTH);
    }
    out.template put<0>();
    if constexpr (TILES > 1) out.template put<1>();
    if constexpr (TILES > 2) out.template put<2>();
    if constexpr (TILES > 3) out.template put<3>();
  }

  // Sums of positions that follow each other, in rows of CHUNK.
  struct Rows {
    int32_t* first;

    template <int TILE>
    void put() const {
      T::template store<TILE>(first + TILE * ROWS * CHUNK, CHUNK * sizeof(int32_t));
    }
  };

  // Sums to where their pixels are.
  struct Pixels {
    const Target& target;
    int64_t position, channel;

    template <int TILE>
    void put() const {
      const int64_t at = position + TILE * ROWS;
      int64_t y = at / target.pitch, x = at % target.pitch;
      int32_t* out = target.tile + y * target.row_stride + x * target.column_stride + channel;
      if (x + ROWS <= target.columns) return T::template store<TILE>(out, target.column_stride * sizeof(int32_t));
      alignas(ALIGNMENT) int32_t sums[ROWS][ROWS];
      T::template store<TILE>(sums, sizeof(sums[0]));
      for (int64_t row = 0; row < ROWS && y < target.rows; row++) {
        if (x < target.columns)
          std::memcpy(target.tile + y * target.row_stride + x * target.column_stride + channel, sums[row], sizeof(sums[0]));
        if (++x == target.pitch) x = 0, y++;
      }
    }
  };
};

}  // namespace
}  // namespace bnn
