// The two products of a convolution's backward pass, gradients times signs, on tiles of bfloat16.
//
// The padded images, one after another, are a line of positions, and the gradient of a sum stands where the first tap of its window
// does, between zeros. Then both products are those of a line, whatever stride, padding and dilation are: with a tap `offset`
// positions behind the first,
//   d_level[i] = sum over taps of d_sums[i - offset] * weight[tap],   d_weight[tap] = sum over i of d_sums[i] * level[i + offset].
// Where a tap would leave its image, d_sums is zero.
//
// bfloat16 holds signs exactly, and a float32 gradient as the sum of three; sums are float32. The processor takes subnormal numbers
// for zero.
#pragma once

#include "training.hpp"

namespace bnn {

// Of a convolution with one group. The surrogate and what is added behind it follow each image at once.
struct SignProducts {
  int64_t threads;
  const Conv* conv;
  int64_t dtype;  // of d_sums: FLOAT32 or BFLOAT16
  const void* d_sums;  // [batch][out_h][out_w][outputs], or null with `norm`
  const NormBackward* norm;  // behind the sums, whose gradients it makes image by image: its own `d_sums` is not written; or null
  const uint32_t* words;  // signs of the input
  const uint32_t* weight;  // [outputs][kernel_h][kernel_w][words]: signs
  const SignBackward* input;  // from the gradient of the input's signs on, which takes the place of `grad`; or null
  int64_t channels_last;  // of d_weight: [outputs][kernel_h][kernel_w][channels], else [outputs][channels][kernel_h][kernel_w]
  float* d_weight;  // or null
};

constexpr int64_t SIDE = 16;  // rows of a tile, and its columns of float32
constexpr int64_t TERMS = 32;  // of one step
constexpr int64_t TILE_FLOATS = SIDE * SIDE, TILE_HALVES = SIDE * TERMS;
constexpr int64_t UNIT = 64;  // positions come in multiples of it
constexpr int64_t PIECES = 3;  // bfloat16 that make up a float32

struct Line {
  explicit Line(const SignProducts& p)
      : conv(*p.conv), columns(conv.width + 2 * conv.pad_w), image((conv.height + 2 * conv.pad_h) * columns),
        span((conv.kernel_h - 1) * conv.dilation_h * columns + (conv.kernel_w - 1) * conv.dilation_w),
        pieces(p.dtype == FLOAT32 ? PIECES : 1), depth(round_up(conv.outputs, SIDE)), channels(round_up(conv.channels, SIDE)),
        whole_rows(conv.dilation_w == 1), runs(whole_rows ? conv.kernel_h : conv.taps()),
        run_steps(divide_up((whole_rows ? conv.kernel_w : 1) * depth, TERMS)),
        images(std::clamp<int64_t>(MOST_POSITIONS / image, 1, conv.batch)), positions(round_up(images * image, UNIT)),
        lead(round_up(span, UNIT)), plane(positions + lead + UNIT / 2) {}

  int64_t offset(int64_t y, int64_t x) const { return y * conv.dilation_h * columns + x * conv.dilation_w; }

  static constexpr int64_t MOST_POSITIONS = 1024;  // of images that are taken together, but for a larger one

  const Conv& conv;
  int64_t columns, image;  // positions of a padded row and of a padded image
  int64_t span;  // the largest offset
  int64_t pieces, depth, channels;  // outputs and channels, rounded up to whole tiles
  bool whole_rows;  // the taps of a row of the kernel follow each other: one run of terms
  int64_t runs, run_steps;
  int64_t images, positions;  // that are taken together
  int64_t lead;  // positions in front, where nothing is
  int64_t plane;  // values of a channel
};

// Working memory of a thread.
struct Workspace {
  uint16_t* gradients;  // [pieces][lead + positions + 2 TERMS][depth]
  uint16_t* pairs;  // [pieces][positions / 2][depth][2]
  uint16_t* levels;  // [channels][plane]
  uint32_t* words;  // [plane]
  uint16_t* inside;  // [plane], of ones where a level is
  float* d_levels;  // [positions][channels]
  float* image;  // [height][width][conv.channels]
  char* sums;  // gradients of the norm's sums
};

inline int64_t piece_halves(const Line& line) { return (line.lead + line.positions + 2 * TERMS) * line.depth; }

// What an instruction set with tiles contributes, for images first <= image < last.
struct ProductKernel {
  void (*gather)(const Line&, const SignProducts&, int64_t first, int64_t last, const Workspace&);  // gradients and pairs
  void (*levels)(const Line&, const SignProducts&, int64_t first, int64_t last, const Workspace&);
  void (*d_levels)(const Line&, const uint16_t* weight, const Workspace&);
  void (*d_weight)(const Line&, const Workspace&, float* sums);  // adds to tiles [tap][tile of channels][tile of outputs]
};

// Of an instruction set, or null.
const ProductKernel* product_kernel(int64_t isa);

void sign_products(int64_t isa, const SignProducts& p);

extern const ProductKernel products_emulated;
#if defined(BNN_AMX)
extern const ProductKernel products_amx;
#endif

}  // namespace bnn
