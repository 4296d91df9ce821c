// The convolution for AMX: bytes, 16 pixels x 64 terms times 64 terms x 16 channels in one instruction.
//
// Activations are copied once per block (`stage`), and for those outside the image a value that does not count. They lie in dense
// planes: one per group and per residue of the input position, so that under any stride, and in a transposed convolution, a tile
// of 16 output positions reads 16 pixels that follow each other. Output positions are numbered along a plane, across the ends of its rows: a few of them belong to no
// pixel, but tiles are full, and the time of an instruction does not depend on how many of its rows are used.
//
// What follows the sums (`stream`) runs between the multiplications: those keep the tiles' own unit busy, and the processor has
// room for a few other instructions in the meantime. So the sums of 64 positions go to the sink piece by piece, while the next
// 64 are computed.
//
// E says how activations and weights become bytes: signs (amx_signs.hpp), or bytes already (amx_bytes.hpp).
//
// T holds eight tiles of 16 x 64 bytes and the instructions on them; T::signs expands 64 bits to bytes. isa_amx.cpp has the
// processor's, isa_amx_emulated.cpp the same in plain C++, with which every machine can test this file.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "amx_bytes.hpp"
#include "amx_signs.hpp"

namespace bnn {
namespace {

constexpr int64_t PIECE = 8;  // pixels that a sink takes at a time, or more where there are few steps

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

template <class T, class E>
struct Amx {
  static int64_t scratch_bytes(const Plan& plan) {
    const Conv& c = plan.conv;
    const Layout& layout = remembered<Layout>(c);
    const Axis &y = layout.vertical, &x = layout.horizontal;
    const int64_t rows = most_outputs(most_rows(c), c.stride_h, c.transposed) + y.most - y.least;
    const int64_t columns = most_outputs(most_columns(c), c.stride_w, c.transposed) + x.most - x.least;
    // The last tile reads on behind the last plane.
    return layout.offsets_bytes() + E::kept(layout) + (c.groups * layout.planes * rows * columns + ROWS) * layout.pitch + layout.depth;
  }

  static void stage(const Plan& plan, const Block& block, const void* image, void* scratch) {
    const Layout& layout = remembered<Layout>(plan.conv);
    const Frame frame = layout.frame(block);
    write_offsets(layout, frame, static_cast<int64_t*>(scratch));
    const typename E::template Outside<T> outside(layout, scratch);
    int8_t* bytes = planes_in(layout, scratch);
    for (int64_t group = 0; group < plan.conv.groups; group++)
      for (size_t y = 0; y < layout.vertical.starts.size(); y++)
        for (size_t x = 0; x < layout.horizontal.starts.size(); x++, bytes += layout.plane_bytes(frame))
          write_plane(layout, frame, image, group, y, x, outside, E::row_in(layout, scratch), bytes);
  }

  static void accumulate(const Plan& plan, const Block& block, const Chunk& chunk, const void*, const void* prepared,
                         const void* scratch, int32_t* tile, int64_t stride) {
    const Layout& layout = remembered<Layout>(plan.conv);
    const Frame frame = layout.frame(block);
    const Axis &vertical = layout.vertical, &horizontal = layout.horizontal;
    const int64_t* offsets = static_cast<const int64_t*>(scratch);
    const int8_t* group = group_in(layout, frame, chunk.group, scratch);
    int64_t first_tile = chunk.group * layout.tiles * layout.steps;
    int64_t first_sum = (chunk.group * vertical.step * horizontal.step * layout.tiles + chunk.first / ROWS) * ROWS;
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
            E::template with_weights<T>(layout, prepared, scratch, first_tile + chunk.first / ROWS * steps, chunk.count, steps,
                                        [&](auto& weights) {
              positions(group + first * layout.pitch, layout.pitch, offsets, steps, weights,
                        E::first_sums(layout, prepared) + first_sum, chunk.count, target);
            });
          }
        }
        offsets += steps;
        first_tile += layout.tiles * steps;
        first_sum += layout.tiles * ROWS;
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
      const int32_t* sums = E::first_sums(layout, prepared) + (chunk.group * layout.tiles + chunk.first / ROWS) * ROWS;
      E::template with_weights<T>(layout, prepared, scratch, first_tile, chunk.count, steps, [&](auto& weights) {
        for (int64_t position = 0; position < count; position += GROUP) {
          for (int64_t channel = 0; channel < chunk.count; channel += ROWS)
            multiply(divide_up(count - position, ROWS), bytes + position * layout.pitch, layout.pitch, offsets, steps, weights,
                     sums + channel, [&] { pending.step(); }, Rows{halves[0] + channel});
          pending.start(chunk, halves[0], position, std::min(count, position + GROUP), divide_up(chunk.count, ROWS) * steps);
          std::swap(halves[0], halves[1]);
        }
      });
    }
    pending.finish();
  }

 private:
  static int8_t* planes_in(const Layout& layout, void* scratch) { return layout.kept_in(scratch) + E::kept(layout); }
  static const int8_t* group_in(const Layout& layout, const Frame& frame, int64_t group, const void* scratch) {
    return planes_in(layout, const_cast<void*>(scratch)) + group * layout.planes * layout.plane_bytes(frame);
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
              *offsets++ = plane * layout.plane_bytes(frame) + pixel * layout.pitch + step;
          }
  }

  // One plane of a group; `image` points to pixel (0, 0). Pixels that follow each other in a plane are `step` apart in the image,
  // except where the taps of a row are one. `compact`: room for a row whose positions are copied apart.
  static void write_plane(const Layout& layout, const Frame& frame, const void* image, int64_t group, size_t plane_y, size_t plane_x,
                          const typename E::template Outside<T>& outside, int8_t* compact, int8_t* bytes) {
    const Conv& c = layout.conv;
    const Axis &vertical = layout.vertical, &horizontal = layout.horizontal;
    const int64_t pixels = layout.apart        ? (frame.columns - 1) * c.stride_w + c.kernel_w
                           : layout.whole_rows ? frame.columns * c.stride_w
                                               : frame.columns;
    const int64_t pitch = layout.whole_rows ? c.channels : layout.pitch;
    // The pixels from first to last - 1 lie inside the image: x = x0 + pixel * step.
    const int64_t x0 = frame.first_column * horizontal.source_step + horizontal.starts[plane_x];
    const int64_t step = layout.whole_rows ? 1 : horizontal.source_step;
    const int64_t first = std::clamp<int64_t>(floor_divide(step - 1 - x0, step), 0, pixels);
    const int64_t last = std::clamp<int64_t>(floor_divide(c.width + step - 1 - x0, step), first, pixels);
    const int64_t parts = layout.apart ? c.kernel_h : 1;  // rows of the image that a row of positions is made of
    for (int64_t row = 0; row < frame.rows; row++, bytes += frame.columns * layout.pitch) {
      if (!vertical.reads(plane_y, frame.first_row + row, frame.outputs_y)) continue;
      for (int64_t part = 0; part < parts; part++) {
        int8_t* to = layout.apart ? compact : bytes;
        const int64_t y = (frame.first_row + row) * vertical.source_step + vertical.starts[plane_y] + part * c.dilation_h;
        if (y < 0 || y >= c.height) {
          outside.write(group, pixels, to);
        } else {
          outside.write(group, first, to);
          E::template write_pixels<T>(layout, image, group, y * c.width + x0 + first * step, step, last - first, to + first * pitch);
          outside.write(group, pixels - last, to + last * pitch);
        }
        if (layout.apart)
          copy_apart(to, c.stride_w * c.channels, layout.row_bytes(), frame.columns, bytes + part * layout.row_bytes(), layout.depth);
      }
    }
  }

  // `size` bytes of each of `count` positions, and some more that the next row or nothing reads.
  static void copy_apart(const int8_t* from, int64_t from_step, int64_t size, int64_t count, int8_t* to, int64_t to_step) {
    for (int64_t i = 0; i < count; i++, from += from_step, to += to_step)
      for (int64_t k = 0; k < size; k += COPIED) std::memcpy(to + k, from + k, COPIED);
  }

  // All channels of a chunk for all positions of a residue.
  template <class Weights>
  static void positions(const int8_t* first, int64_t pitch, const int64_t* offsets, int64_t steps, Weights& weights,
                        const int32_t* sums, int64_t channels, const Target& target) {
    const int64_t count = (target.rows - 1) * target.pitch + target.columns;
    for (int64_t position = 0; position < count; position += GROUP)
      for (int64_t channel = 0; channel < channels; channel += ROWS)
        multiply(divide_up(count - position, ROWS), first + position * pitch, pitch, offsets, steps, weights, sums + channel, [] {},
                 Pixels{target, position, channel});
  }

  // Outputs of a transposed convolution that no tap reaches.
  static void zeros(int64_t channels, const Target& target) {
    for (int64_t y = 0; y < target.rows; y++)
      for (int64_t x = 0; x < target.columns; x++)
        std::fill_n(target.tile + y * target.row_stride + x * target.column_stride, round_up(channels, ROWS), 0);
  }

  // `tiles` * 16 positions, four tiles at most, times 16 channels, whose sums begin with `sums`. between() is called in each step.
  template <class Weights, class Between, class Out>
  static void multiply(int64_t tiles, const int8_t* bytes, int64_t pitch, const int64_t* offsets, int64_t steps,
                       Weights& weights, const int32_t* sums, const Between& between, const Out& out) {
    switch (tiles) {
      case 1: return multiply<1>(bytes, pitch, offsets, steps, weights, sums, between, out);
      case 2: return multiply<2>(bytes, pitch, offsets, steps, weights, sums, between, out);
      case 3: return multiply<3>(bytes, pitch, offsets, steps, weights, sums, between, out);
      default: return multiply<4>(bytes, pitch, offsets, steps, weights, sums, between, out);
    }
  }

  // Tiles 0 to 3 hold the sums, 4 and 5 activations, 6 weights.
  template <int TILES, class Weights, class Between, class Out>
  static void multiply(const int8_t* bytes, int64_t pitch, const int64_t* offsets, int64_t steps, Weights& weights,
                       const int32_t* sums, const Between& between, const Out& out) {
    alignas(ALIGNMENT) int8_t unused[TILE_BYTES];
    E::template start<T, 0>(sums);
    if constexpr (TILES > 1) E::template start<T, 1>(sums);
    if constexpr (TILES > 2) E::template start<T, 2>(sums);
    if constexpr (TILES > 3) E::template start<T, 3>(sums);
    for (int64_t step = 0; step < steps; step++) {
      const int8_t* at = bytes + offsets[step];
      T::template load<6>(weights.tile(), DEPTH);
      T::template load<4>(at, pitch);
      E::template multiply_add<T, 0, 4, 6>();
      if constexpr (TILES > 1) {
        T::template load<5>(at + ROWS * pitch, pitch);
        E::template multiply_add<T, 1, 5, 6>();
      }
      weights.advance();
      if constexpr (TILES > 2) {
        T::template load<4>(at + 2 * ROWS * pitch, pitch);
        E::template multiply_add<T, 2, 4, 6>();
      }
      if constexpr (TILES > 3) {
        T::template load<5>(at + 3 * ROWS * pitch, pitch);
        E::template multiply_add<T, 3, 5, 6>();
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

template <class T, class E>
constexpr Accumulator amx_accumulator = {
    .lanes = ROWS,
    .prepared_bytes = E::prepared_bytes,
    .prepare = E::prepare,
    .scratch_bytes = Amx<T, E>::scratch_bytes,
    .begin = E::template begin<T>,
    .stage = Amx<T, E>::stage,
    .accumulate = Amx<T, E>::accumulate,
    .stream = Amx<T, E>::stream,
};

}  // namespace
}  // namespace bnn
