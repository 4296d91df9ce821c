// The engine's inside: what a convolution is, how it is cut into blocks, and what each instruction set contributes.
//
// A call runs in one loop (driver.cpp): for each block of output pixels, `stage` once, then for each chunk of at most 64 output
// channels of one group `accumulate` into an int32 tile that stays in cache, and hand the tile to an epilogue. Accumulate
// kernels know nothing of epilogues and the other way round. To add an instruction set, fill a `Kernel` and list it in isa.cpp.
//
// Words are uint32, as in bnn_kernels/layout.py: activations [N][H][W][groups * words], weights [O][kH][kW][words].
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace bnn {

constexpr int64_t WORD_BITS = 32;
constexpr int64_t CHUNK = 64;  // output channels that one accumulate call computes at most, all of one group
constexpr int64_t ALIGNMENT = 64;  // bytes; of prepared weights, scratch and tiles

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// One convolution. Filled by engine.py, same order, all int64: keep both in step and raise bnn_version.
struct Conv {
  int64_t isa, threads;
  int64_t batch, height, width, channels, groups;  // input; channels of all groups together
  int64_t outputs, kernel_h, kernel_w, out_h, out_w;
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t pad_value;  // what taps outside the image hold: -1, 0 (they do not count) or +1
  int64_t transposed;  // 1: transposed convolution

  int64_t group_channels() const { return channels / groups; }
  int64_t group_outputs() const { return outputs / groups; }
  int64_t words() const { return divide_up(group_channels(), WORD_BITS); }
  int64_t pixel_words() const { return groups * words(); }
  int64_t taps() const { return kernel_h * kernel_w; }
  int64_t chunks() const { return divide_up(group_outputs(), CHUNK); }  // of one group
};

// Along one axis: `count` output positions first, first + step, ... that see the same taps of the kernel inside the image.
// Tap `taps[i]` of the output at first + n * step reads input position source + n * source_step + offsets[i].
struct Run {
  int64_t first, step, count, source, source_step;
  std::vector<int64_t> taps, offsets;
};

// Every output position of an axis lies in exactly one run.
std::vector<Run> runs(int64_t out, int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, bool transposed);

// The positions of a run that fall into first <= position < last: numbers from <= n < to.
struct Piece {
  int64_t from, to;
};
Piece piece(const Run& run, int64_t first, int64_t last);

struct Plan {
  const Conv& conv;
  std::vector<Run> rows, columns;
  explicit Plan(const Conv& conv);
};

// Output pixels y0 <= y < y1, x0 <= x < x1 of one image: either whole rows or a piece of one row, so that they follow each
// other in memory. Pixel (y, x) is number (y - y0) * (x1 - x0) + x - x0 of the block.
struct Block {
  int64_t image, y0, y1, x0, x1;
  int64_t pixels() const { return (y1 - y0) * (x1 - x0); }
};

// Input positions that a block reads: first <= i < last, clipped to the image. Empty where every tap lies outside.
struct Span {
  int64_t first, last;
};
Span reach(const std::vector<Run>& axis, int64_t first, int64_t last);

// A chunk: output channels `first` ... first + count - 1 of `group`, counted within the group; first is a multiple of CHUNK.
struct Chunk {
  int64_t group, first, count;
};

enum Act : int64_t { IDENTITY, RELU, HARDTANH, PRELU };
enum Dtype : int64_t { NONE = -1, FLOAT32, BFLOAT16, FLOAT16 };

// Float epilogue of bnn_kernels/epilogue.py. Vectors hold `width` = replicas * O elements, one per output channel.
// Filled by engine.py, same order.
struct Fused {
  int64_t width, out_groups, act, dtype, shortcut_dtype;  // shortcut_dtype NONE: no shortcut
  const float *scale, *bias, *gamma, *slope, *zeta, *threshold;  // null where there is none
  const void* shortcut;  // [pixels of the batch][width]
  void* stream;  // [pixels][width] of dtype, or null where it is not kept; may be the shortcut
  uint32_t* words;  // [pixels][out_groups * words], or null
  int64_t stream_first;  // pixel of the batch that is row 0 of `stream`: 0, or that of a scratch row
};

// Integer epilogue: bit = (sum >= threshold) != flip. Filled by engine.py, same order.
struct Signs {
  int64_t width, out_groups;
  const int32_t* threshold;
  const int32_t* flip;  // 0 or -1
  uint32_t* words;
};

// bit = x >= threshold. Filled by engine.py, same order.
struct Packing {
  int64_t pixels, channels, groups, dtype;
  int64_t plane;  // 0: x is [pixels][channels]; else the pixels of a plane, x is [pixels / plane][channels][plane]
  const void* x;
  const float* threshold;  // [channels], or null: 0
  uint32_t* words;  // [pixels][groups * words]
};

// Average pooling and a 1x1 convolution in float32. Filled by engine.py, same order.
struct Downsample {
  int64_t batch, height, width, channels, outputs, pool, dtype;
  const void* x;  // [batch][height][width][channels]
  const float* weight;  // [panels][channels][PANEL]: PANEL output channels side by side, zeros behind the last
  const float* bias;  // [panels * PANEL]
  void* y;  // [batch][out_h][out_w][outputs]

  int64_t out_h() const { return divide_up(height, pool); }
  int64_t out_w() const { return divide_up(width, pool); }
};
constexpr int64_t PANEL = 16;

// What one instruction set contributes.
struct Kernel {
  const char* name;
  int64_t block_pixels;  // pixels of a block at most: the tile holds block_pixels * CHUNK int32
  int64_t lanes;  // accumulate writes whole multiples of `lanes` channels: the tile's rows have room for them

  // Weights as this instruction set wants them, made once per weight. `prepared` is aligned and zero-filled.
  int64_t (*prepared_bytes)(const Conv&);
  void (*prepare)(const Conv&, const uint32_t* weight, void* prepared);

  // Optional (null): input pixels that the block reads, as this instruction set wants them, into scratch of the thread.
  int64_t (*scratch_bytes)(const Plan&);
  void (*stage)(const Plan&, const Block&, const uint32_t* image, void* scratch);

  // tile[pixel * stride + channel] = the exact sum, padding included. `image` points to pixel (0, 0) of the block's image.
  void (*accumulate)(const Plan&, const Block&, const Chunk&, const uint32_t* image, const void* prepared, const void* scratch,
                     int32_t* tile, int64_t stride);

  // Epilogues take `pixels` rows of a tile whose first row is pixel `pixel` of the batch, and `count` of its columns, which are
  // the output channels from `channel` on. Where words are written, `channel` is a multiple of 32 and starts word channel / 32.
  void (*fused)(const Fused&, const int32_t* tile, int64_t stride, int64_t pixel, int64_t pixels, int64_t channel, int64_t count);
  void (*signs)(const Signs&, const int32_t* tile, int64_t stride, int64_t pixel, int64_t pixels, int64_t channel, int64_t count);

  // Both take output pixels `pixel` ... pixel + pixels - 1 of the batch. `pooled`: room for pixels * channels floats.
  void (*pack)(const Packing&, int64_t pixel, int64_t pixels);
  void (*downsample)(const Downsample&, int64_t pixel, int64_t pixels, float* pooled);

  // Measure, each in less than half a second: multiply-accumulates per second of one core, 1-bit and float32.
  double (*binary_ceiling)();
  double (*float_ceiling)();
};

enum Isa : int64_t { PORTABLE, AVX2, AVX512, AMX, AMX_EMULATED, ISAS };

// The kernel of an instruction set, or null where this processor lacks it.
const Kernel* kernel(int64_t isa);

}  // namespace bnn
