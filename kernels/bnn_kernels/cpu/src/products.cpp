// Both products, image by image: what is read of the gradient once serves both, and what comes before and after them happens while
// it is in the cache.

#include "products.hpp"

#include <cstring>

#include "isa.hpp"
#include "parallel.hpp"

namespace bnn {
namespace {

constexpr int64_t LEAST_WORK = 1 << 20;  // multiply-accumulates; below it, waking threads costs more than they save

// Zeros; aligned.
template <class T>
class Zeros {
 public:
  explicit Zeros(int64_t count) : bytes_(count * sizeof(T) + ALIGNMENT) {}
  T* get() {
    const int64_t at = static_cast<int64_t>(reinterpret_cast<uintptr_t>(bytes_.data()));
    return reinterpret_cast<T*>(bytes_.data() + round_up(at, ALIGNMENT) - at);
  }

 private:
  std::vector<char> bytes_;
};

// Weights as tiles [tile of channels][run][step], pairs of outputs along a row. A run goes along the line: its last tap first.
void weight_tiles(const Line& line, const uint32_t* weight, uint16_t* tiles) {
  constexpr uint32_t minus_one = 0xbf80;
  const Conv& c = line.conv;
  const int64_t taps = c.taps(), words = c.words(), run_taps = line.whole_rows ? c.kernel_w : 1;
  for (int64_t output = 0; output < c.outputs; output += 2)
    for (int64_t tap = 0; tap < taps; tap++) {
      const uint32_t* first = weight + (output * taps + tap) * words;
      const uint32_t* second = output + 1 < c.outputs ? first + taps * words : nullptr;
      const int64_t term = (run_taps - 1 - tap % run_taps) * line.depth + output;
      uint16_t* to = tiles + (tap / run_taps * line.run_steps + term / TERMS) * TILE_HALVES + term % TERMS / 2 * TERMS;
      for (int64_t channel = 0; channel < c.channels; channel += SIDE, to += line.runs * line.run_steps * TILE_HALVES) {
        const int64_t word = channel / WORD_BITS, shift = channel % WORD_BITS, count = std::min(SIDE, c.channels - channel);
        const uint32_t low = first[word] >> shift, high = second ? second[word] >> shift : 0;
        uint32_t row[SIDE];
        for (int64_t n = 0; n < SIDE; n++)
          row[n] = (minus_one ^ (low >> n & 1) << 15) | (second ? minus_one ^ (high >> n & 1) << 15 : 0) << 16;
        std::memcpy(to, row, count * sizeof(uint32_t));
      }
    }
}

void add_weight(const Line& line, const float* tiles, bool channels_last, float* d_weight) {
  const Conv& c = line.conv;
  const int64_t taps = c.taps(), along = line.depth / SIDE, tap_floats = line.channels * line.depth;
  for (int64_t output = 0; output < c.outputs; output++)
    for (int64_t channel = 0; channel < c.channels; channel += SIDE) {
      const float* from = tiles + (channel / SIDE * along + output / SIDE) * TILE_FLOATS + output % SIDE;
      const int64_t count = std::min(SIDE, c.channels - channel);
      float* to = d_weight + output * c.channels * taps + channel * (channels_last ? 1 : taps);
      const int64_t tap_step = channels_last ? c.channels : 1, step = channels_last ? 1 : taps;
      for (int64_t tap = 0; tap < taps; tap++)
        for (int64_t n = 0; n < count; n++) to[tap * tap_step + n * step] += from[tap * tap_floats + n * SIDE];
    }
}

// The pixels of an image out of its padded positions.
const float* compact(const Line& line, const float* d_levels, float* image) {
  const Conv& c = line.conv;
  for (int64_t y = 0; y < c.height; y++) {
    const float* from = d_levels + ((y + c.pad_h) * line.columns + c.pad_w) * line.channels;
    float* to = image + y * c.width * c.channels;
    if (line.channels == c.channels) std::copy_n(from, c.width * c.channels, to);
    else
      for (int64_t x = 0; x < c.width; x++) std::copy_n(from + x * line.channels, c.channels, to + x * c.channels);
  }
  return image;
}

}  // namespace

const ProductKernel* product_kernel(int64_t isa) {
#if defined(BNN_AMX)
  if (isa == AMX) return &products_amx;
#endif
  return isa == AMX_EMULATED ? &products_emulated : nullptr;
}

void sign_products(int64_t isa, const SignProducts& p) {
  const ProductKernel& kernel = *product_kernel(isa);
  const TrainingKernel& training = training_kernel_of(isa);
  const Conv& c = *p.conv;
  const Line line(p);
  const int64_t pixels = c.height * c.width, units = divide_up(c.batch, line.images), weights = c.outputs * c.channels * c.taps();
  const bool shifts = p.input && p.input->d_shift;
  Zeros<uint16_t> tiles(p.input ? line.channels / SIDE * line.runs * line.run_steps * TILE_HALVES : 0);
  if (p.input) weight_tiles(line, p.weight, tiles.get());
  const GradAffine affine = p.norm ? norm_gradients(isa, *p.norm) : GradAffine{};
  const int64_t image_bytes = c.out_h * c.out_w * c.outputs * (p.dtype == FLOAT32 ? 4 : 2);
  std::vector<double> d_shift(shifts ? c.batch * c.channels : 0);  // of each image: what becomes of them does not depend on threads

  const int64_t threads = c.batch * pixels * weights < LEAST_WORK ? 1 : std::clamp<int64_t>(p.threads, 1, units);
  const int64_t sums = p.d_weight ? c.taps() * line.channels * line.depth : 0;
  Zeros<float> d_weight(threads * sums);
  parallel(threads, threads, [&](int64_t from, int64_t to) {
    Zeros<uint16_t> gradients(line.pieces * piece_halves(line)), pairs(line.pieces * line.positions * line.depth),
        levels(line.channels * line.plane), inside(line.plane);
    Zeros<uint32_t> words(line.plane);
    Zeros<float> d_levels(line.positions * line.channels), image(pixels * c.channels);
    Zeros<char> sums_of(p.norm ? line.images * image_bytes : 0);
    const Workspace workspace{gradients.get(), pairs.get(),    levels.get(), words.get(),
                        inside.get(),    d_levels.get(), image.get(),  sums_of.get()};
    for (int64_t thread = from; thread < to; thread++)
      for (int64_t unit = units * thread / threads; unit < units * (thread + 1) / threads; unit++) {
        const int64_t first = unit * line.images, last = std::min(c.batch, first + line.images);
        SignProducts given = p;
        if (p.norm) {
          NormBackward norm = *p.norm;
          norm.dtype = p.dtype;
          given.d_sums = norm.d_sums = workspace.sums - first * image_bytes;
          training.norm_backward_sums(norm, affine, first * c.out_h * c.out_w, last * c.out_h * c.out_w);
        }
        kernel.gather(line, given, first, last, workspace);
        if (p.d_weight) {
          kernel.levels(line, p, first, last, workspace);
          kernel.d_weight(line, workspace, d_weight.get() + thread * sums);
        }
        if (!p.input) continue;
        kernel.d_levels(line, tiles.get(), workspace);
        for (int64_t number = first; number < last; number++) {
          SignBackward input = *p.input;
          input.dtype = FLOAT32;
          input.grad = compact(line, workspace.d_levels + (number - first) * line.image * line.channels, workspace.image) -
                       number * pixels * c.channels;
          training.sign_backward(input, p.input->statistics ? number : 0, number * pixels, (number + 1) * pixels,
                                 shifts ? d_shift.data() + number * c.channels : nullptr);
        }
      }
  });
  if (p.d_weight) {
    std::fill_n(p.d_weight, weights, 0.0F);
    for (int64_t thread = 0; thread < threads; thread++) add_weight(line, d_weight.get() + thread * sums, p.channels_last != 0, p.d_weight);
  }
  if (!shifts) return;
  for (int64_t channel = 0; channel < c.channels; channel++) {
    double sum = 0;
    for (int64_t number = 0; number < c.batch; number++) sum += d_shift[number * c.channels + channel];
    p.input->d_shift[channel] = static_cast<float>(sum);
  }
}

}  // namespace bnn
