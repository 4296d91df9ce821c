// The engine's inside: what a convolution is, how it is cut into blocks, and what each instruction set contributes.
//
// A call runs in one loop (driver.cpp): for each block of output pixels, `stage` once, then for each chunk of at most 64 output
// channels of one group `accumulate` into an int32 tile that stays in cache, and hand the tile to an epilogue. Accumulate
// kernels know nothing of epilogues and the other way round; `stream` hands over a few pixels at a time, while it multiplies
// for the next. To add an instruction set, fill a `Kernel` and list it in isa.cpp.
//
// Words are uint32, as in bnn_kernels/layout.py: activations [N][H][W][groups * words], weights [O][kH][kW][words].
//
// Real layers in int8 (bnn_kernels/int8_reference.py) take the same way. A word is then four values of eight bits: activations
// come as bytes [N][H][W][C], weights in words, and `Kernel` has an `Accumulator` for them beside that for signs. Kernels see
// unsigned activations q, int8 ones plus 128, and sum (q - zero) * weight over the taps inside the image.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

namespace bnn {

constexpr int64_t WORD_BITS = 32;
constexpr int64_t WORD_BYTES = 4;
constexpr int64_t CHUNK = 64;  // output channels that one accumulate call computes at most, all of one group
constexpr int64_t ALIGNMENT = 64;  // bytes; of prepared weights, scratch and tiles

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// Words of a pixel. Most have one group, and divisions take as long as the epilogue of a pixel.
inline int64_t packed_words(int64_t width, int64_t groups) {
  return groups == 1 ? divide_up(width, WORD_BITS) : groups * divide_up(width / groups, WORD_BITS);
}

// One convolution. Python fills it in, as all structs that layout.hpp lists: every field has eight bytes, and after a change
// layout.hpp follows and bnn_version is raised.
struct Conv {
  int64_t isa, threads;
  int64_t batch, height, width, channels, groups;  // input; channels of all groups together
  int64_t outputs, kernel_h, kernel_w, out_h, out_w;
  int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t pad_value;  // what taps outside the image hold: -1, 0 (they do not count) or +1
  int64_t transposed;  // 1: transposed convolution
  int64_t bytes;  // 1: activations are bytes, weights int8; 0: signs
  int64_t is_signed;  // of bytes: int8, not uint8

  int64_t group_channels() const { return channels / groups; }
  int64_t group_outputs() const { return outputs / groups; }
  int64_t words() const { return divide_up(group_channels(), bytes ? WORD_BYTES : WORD_BITS); }
  int64_t pixel_words() const { return groups * words(); }
  int64_t pixel_bytes() const { return bytes ? channels : pixel_words() * WORD_BYTES; }  // as it comes
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
  Conv conv;
  std::vector<Run> rows, columns;
  explicit Plan(const Conv& conv);
};

// What is made of a convolution, kept by this thread for its next calls. It lives until the thread asks for another one.
template <class Made>
const Made& remembered(const Conv& c) {
  constexpr size_t MOST = 64;
  thread_local std::vector<std::pair<Conv, std::unique_ptr<Made>>> all;
  for (const auto& [conv, made] : all)
    if (std::memcmp(&conv, &c, sizeof(Conv)) == 0) return *made;
  if (all.size() == MOST) all.clear();
  all.emplace_back(c, std::make_unique<Made>(c));
  return *all.back().second;
}

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
inline Chunk chunk_at(const Conv& c, int64_t number) {  // of all groups
  const int64_t first = number % c.chunks() * CHUNK;
  return {number / c.chunks(), first, std::min(CHUNK, c.group_outputs() - first)};
}

// Takes `pixels` rows of sums, `stride` int32 apart, that are complete for a chunk; the first is pixel `pixel` of the block.
class Sink {
 public:
  virtual void take(const Chunk& chunk, const int32_t* rows, int64_t stride, int64_t pixel, int64_t pixels) const = 0;

 protected:
  ~Sink() = default;
};

enum Act : int64_t { IDENTITY, RELU, HARDTANH, PRELU, SILU };
enum Dtype : int64_t { NONE = -1, FLOAT32, BFLOAT16, FLOAT16, UINT8, INT8 };

inline int64_t element_bytes(int64_t dtype) { return dtype == FLOAT32 ? 4 : dtype < UINT8 ? 2 : 1; }

// Float epilogue of bnn_kernels/epilogue.py and int8_reference.py. Vectors hold `width` = replicas * O elements, one per output
// channel.
struct Fused {
  int64_t width, out_groups, act, dtype, shortcut_dtype;  // shortcut_dtype NONE: no shortcut
  const float *scale, *bias, *gamma, *slope, *zeta, *threshold;  // null where there is none
  const void* shortcut;  // [pixels of the batch][width]
  void* stream;  // [pixels][width] of dtype, or null where it is not kept; may be the shortcut
  uint32_t* words;  // [pixels][out_groups * words], or null
  int64_t stream_first;  // pixel of the batch that is row 0 of `stream`: 0, or that of a scratch row
  const float* out_scale = nullptr;  // [1], and the stored value that means 0: where dtype is UINT8 or INT8
  const void* out_zero = nullptr;
  int64_t shortcut_width = 0;  // 0: as `width`; else a divisor of it and a multiple of CHUNK: channel j takes j % shortcut_width
  int64_t fold = 1;  // of neighbours whose mean is one channel of the stream, a power of 2
};

// Floats to bytes as in int8_reference.py.
struct Quantizing {
  int64_t count, dtype, out_dtype;
  const void* x;
  const float* scale;  // [1]
  const void* zero;  // [1] of out_dtype
  void* y;
};

// Integer epilogue: bit = (sum >= threshold) != flip.
struct Signs {
  int64_t width, out_groups;
  const int32_t* threshold;
  const int32_t* flip;  // 0 or 1
  uint32_t* words;
};

// bit = x >= threshold.
struct Packing {
  int64_t pixels, channels, groups, dtype;
  int64_t plane;  // 0: x is [pixels][channels]; else the pixels of a plane, x is [pixels / plane][channels][plane]
  const void* x;
  const float* threshold;  // [channels], or null: 0
  uint32_t* words;  // [pixels][groups * words]
};

// Average pooling and a 1x1 convolution in float32.
struct Downsample {
  int64_t batch, height, width, channels, outputs, pool, dtype;
  const void* x;  // [batch][height][width][channels]
  const void* weight;  // prepared
  const float* bias;  // [panels * PANEL]
  void* y;  // [batch][out_h][out_w][outputs]

  int64_t out_h() const { return divide_up(height, pool); }
  int64_t out_w() const { return divide_up(width, pool); }
};
constexpr int64_t PANEL = 16;
constexpr int64_t DOWNSAMPLE_ROOM = 3;

// Windows of a map and what becomes of each: y = largest or mean of x in it, plus the shortcut.
struct Pool {
  int64_t images, height, width, channels, fold;  // a pixel of x has fold * channels, of which those `channels` apart are one
  int64_t out_h, out_w, dtype, largest;
  const int64_t *rows, *columns;  // [out_h][2], [out_w][2]: the first position of a window, and that behind its last
  const void *x, *shortcut;  // shortcut as y, or null
  void* y;  // [images][out_h][out_w][channels]
};

// Pixels side by side to planes.
struct Planes {
  int64_t images, pixels, channels, bytes;  // bytes of an element: 2 or 4
  const void* x;
  void* y;  // [images][channels][pixels]
};

// Maps of the same size side by side: a pixel of y has the channels of the first, then those of the second, ...
constexpr int64_t MOST_MAPS = 8;
struct Concat {
  int64_t pixels, channels, dtype, maps;  // channels: of all maps
  int64_t widths[MOST_MAPS];  // channels of each
  const void* x[MOST_MAPS];  // [pixels][width]
  void* y;  // [pixels][channels], or null where it is not kept
};

// Maps added, x[0] * gate first, each times a vector: the sums of an epilogue without a shortcut.
struct WeightedSum {
  int64_t images, height, width, channels, dtype, maps;
  int64_t spread[MOST_MAPS], gate_spread;  // a pixel of a map stands for as many rows and columns
  const void *x[MOST_MAPS], *gate;  // [images][height / spread, rounded up][width / spread, too][channels]; gate null: 1
  const float* weight;  // [maps][channels], or null: 1
};

// Windows over the sums of a convolution, before its epilogue.
struct Windows {
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, out_h, out_w;
};

// A convolution of an image in float32 and max pooling.
struct Stem {
  int64_t batch, channels, height, width;
  int64_t image_step, channel_step, row_step, pixel_step, dtype;  // of x, in elements
  int64_t outputs, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, out_h, out_w;
  int64_t pool_h, pool_w, pool_stride_h, pool_stride_w, pool_pad_h, pool_pad_w, pooled_h, pooled_w;
  const void* x;
  const float* weight;  // [panels][channels][kernel_h][kernel_w][PANEL], zeros behind the last output

  int64_t ring() const { return std::min(pool_h, out_h); }  // rows of the convolution that are kept
};

// Epilogues take `pixels` rows of a tile whose first row is pixel `pixel` of the batch, and `count` of its columns, which are
// the output channels from `channel` on. Where words are written, `channel` is a multiple of 32 and starts word channel / 32.
template <class Parameters, class Sum = int32_t>
using Epilogue = void (*)(const Parameters&, const Sum* tile, int64_t stride, int64_t pixel, int64_t pixels, int64_t channel,
                          int64_t count);

// How an instruction set sums up, signs or bytes.
struct Accumulator {
  int64_t lanes;  // accumulate writes whole multiples of `lanes` channels: the tile's rows have room for them

  // Weights as this instruction set wants them, made once per weight. `prepared` is aligned and zero-filled. `zeros`: of bytes,
  // the activation that means 0, [groups][words * 4].
  int64_t (*prepared_bytes)(const Conv&);
  void (*prepare)(const Conv&, const uint32_t* weight, const uint8_t* zeros, void* prepared);

  // Optional (null): input pixels that the block reads, as this instruction set wants them, into scratch of the thread.
  int64_t (*scratch_bytes)(const Plan&) = nullptr;
  void (*begin)(const Plan&, const void* prepared, void* scratch) = nullptr;  // once for all blocks of the thread
  void (*stage)(const Plan&, const Block&, const void* image, void* scratch) = nullptr;

  // tile[pixel * stride + channel] = the exact sum, padding included. `image` points to pixel (0, 0) of the block's image.
  void (*accumulate)(const Plan&, const Block&, const Chunk&, const void* image, const void* prepared, const void* scratch,
                     int32_t* tile, int64_t stride);

  // Optional (null), not for transposed convolutions: the chunks from `first` to `last` - 1 of all groups, with the work of the
  // sink between the multiplications. `tile` has room for block_pixels * CHUNK int32.
  void (*stream)(const Plan&, const Block&, int64_t first, int64_t last, const void* prepared, const void* scratch, int32_t* tile,
                 const Sink& sink) = nullptr;
};

// What one instruction set contributes.
struct Kernel {
  const char* name;
  int64_t block_pixels;  // pixels of a block at most: the tile holds block_pixels * CHUNK int32
  Accumulator binary, int8;
  const Accumulator& accumulator(const Conv& c) const { return c.bytes ? int8 : binary; }

  Epilogue<Fused> (*fused)(const Fused&);  // the one for these parameters
  Epilogue<Signs> signs;

  void (*quantize)(const Quantizing&, int64_t first, int64_t last);

  // Both take output pixels `pixel` ... pixel + pixels - 1 of the batch. The downsample takes `downsample_pixels` at most, its
  // weights [outputs][channels] as this instruction set wants them, zero-filled before, and room for DOWNSAMPLE_ROOM floats per
  // pixel and channel, rounded up to 32 channels.
  void (*pack)(const Packing&, int64_t pixel, int64_t pixels);
  int64_t downsample_pixels;
  int64_t (*downsample_bytes)(int64_t channels, int64_t outputs);
  void (*prepare_downsample)(int64_t channels, int64_t outputs, const float* weight, void* prepared);
  void (*downsample)(const Downsample&, int64_t pixel, int64_t pixels, float* room);

  // Rows `first` to `last` - 1 of the maps of all images.
  void (*pool_rows)(const Pool&, int64_t first, int64_t last);
  // Pixels `pixel` ... pixel + pixels - 1; `room` for their channels.
  void (*weighted_sum)(const WeightedSum&, const Fused&, int64_t pixel, int64_t pixels, float* room);
  // Means of `fold` neighbouring values of rows of dtype: [pixels][width] -> [pixels][width / fold].
  void (*fold)(const void* rows, int64_t dtype, int64_t pixels, int64_t width, int64_t fold, void* y);
  // Of the numbers first, first + step, ... before `last` of each of `count` rows; `step` of them, which are whole lines, at a time.
  void (*largest)(int32_t* to, const int32_t* const* rows, int64_t count, int64_t first, int64_t last, int64_t step);

  // Rows `first` to `last` - 1 of the pooled maps of the batch, to a stream that is there. `room` has stem_room floats.
  int64_t (*stem_room)(const Stem&);
  void (*stem)(const Stem&, const Fused&, int64_t first, int64_t last, float* room);

  // Measure, each in less than half a second: multiply-accumulates per second of one core, 1-bit and float32.
  double (*binary_ceiling)();
  double (*float_ceiling)();
};

#if defined(__x86_64__) && defined(__linux__)
#define BNN_AMX
#endif

enum Isa : int64_t { PORTABLE, NEON, AVX2, AVX512, AMX, AMX_EMULATED, ISAS };

// The kernel of an instruction set, or null where this processor lacks it.
const Kernel* kernel(int64_t isa);

}  // namespace bnn
