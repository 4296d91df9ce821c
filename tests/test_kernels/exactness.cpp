// The engine against loops, without Python or torch: for processors that only an emulator has (make check-arm).
// Every instruction set of the processor, random convolutions with each epilogue, and packing. Prints the first difference.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "engine.hpp"

extern "C" {
int64_t bnn_has(int64_t isa);
int64_t bnn_prepared_bytes(const bnn::Conv*);
void bnn_prepare(const bnn::Conv*, const uint32_t* weight, const uint8_t* zeros, void* prepared);
const char* bnn_conv2d(const bnn::Conv*, const void* x, const void* prepared, int32_t* y);
const char* bnn_conv2d_sign(const bnn::Conv*, const void* x, const void* prepared, const bnn::Signs*);
const char* bnn_block2d(const bnn::Conv*, const void* x, const void* prepared, const bnn::Fused*);
const char* bnn_pack(int64_t isa, int64_t threads, const bnn::Packing*);
}

namespace {

using bnn::Conv;

std::mt19937 random_bits(0);
int64_t draw(int64_t low, int64_t high) { return low + static_cast<int64_t>(random_bits() % (high - low + 1)); }
float draw_float() { return std::normal_distribution<float>()(random_bits); }
std::vector<float> floats(int64_t count) {
  std::vector<float> all(count);
  for (float& v : all) v = draw(0, 9) == 0 ? 0.0F : draw_float();
  return all;
}

// Mixed, or all of one sign: then counts are as large as they can be.
std::vector<int> draw_signs(int64_t count) {
  std::vector<int> all(count);
  const int64_t kind = draw(0, 3);
  for (int& v : all) v = (kind > 1 ? draw(0, 1) : kind) ? 1 : -1;
  return all;
}

// Rows of channels to words, each group filled up with zero bits.
template <class Bit>
std::vector<uint32_t> pack(int64_t rows, int64_t channels, int64_t groups, const Bit& bit) {
  const int64_t per_group = channels / groups, words = (per_group + 31) / 32;
  std::vector<uint32_t> all(rows * groups * words);
  for (int64_t row = 0; row < rows; row++)
    for (int64_t c = 0; c < channels; c++)
      if (bit(row, c)) all[(row * groups + c / per_group) * words + c % per_group / 32] |= 1U << c % per_group % 32;
  return all;
}

void expect(bool same, int64_t isa, const char* what, const Conv& c) {
  if (same) return;
  std::printf("instruction set %d differs in %s: image %dx%dx%d, %d groups, kernel %dx%d, stride %d, padding %d, dilation %d, "
              "pad value %d, transposed %d\n", static_cast<int>(isa), what, static_cast<int>(c.channels),
              static_cast<int>(c.height), static_cast<int>(c.width), static_cast<int>(c.groups), static_cast<int>(c.kernel_h),
              static_cast<int>(c.kernel_w), static_cast<int>(c.stride_h), static_cast<int>(c.pad_h),
              static_cast<int>(c.dilation_h), static_cast<int>(c.pad_value), static_cast<int>(c.transposed));
  std::exit(1);
}

void succeed(const char* sentence) {
  if (!sentence) return;
  std::puts(sentence);
  std::exit(1);
}

Conv draw_conv(bool transposed) {
  Conv c = {};
  c.threads = 1, c.batch = draw(1, 2), c.groups = draw(1, 2), c.transposed = transposed;
  c.channels = c.groups * (draw(0, 3) ? draw(1, 70) : draw(200, 400)), c.outputs = c.groups * draw(1, 40);
  c.kernel_h = draw(1, 3), c.kernel_w = draw(1, 3), c.stride_h = draw(1, 3), c.stride_w = draw(1, 3);
  c.dilation_h = draw(1, 2), c.dilation_w = draw(1, 2), c.pad_value = transposed ? 0 : draw(-1, 1);
  const int64_t reach_h = (c.kernel_h - 1) * c.dilation_h, reach_w = (c.kernel_w - 1) * c.dilation_w;
  if (transposed) {
    c.height = draw(1, 7), c.width = draw(1, 7);
    c.out_h = (c.height - 1) * c.stride_h + reach_h + 1, c.out_w = (c.width - 1) * c.stride_w + reach_w + 1;
  } else {
    c.pad_h = draw(0, 2), c.pad_w = draw(0, 2);
    c.height = reach_h + draw(1, 7), c.width = reach_w + draw(1, 7);
    c.out_h = (c.height + 2 * c.pad_h - reach_h - 1) / c.stride_h + 1;
    c.out_w = (c.width + 2 * c.pad_w - reach_w - 1) / c.stride_w + 1;
  }
  return c;
}

// x: [N][H][W][C], w: [O][kH][kW][C / groups] -> [N][H'][W'][O].
std::vector<int32_t> convolve(const Conv& c, const std::vector<int>& x, const std::vector<int>& w) {
  std::vector<int32_t> y(c.batch * c.out_h * c.out_w * c.outputs);
  const auto input = [&](int64_t n, int64_t i, int64_t j, int64_t channel) {
    if (i < 0 || i >= c.height || j < 0 || j >= c.width) return static_cast<int>(c.pad_value);
    return x[((n * c.height + i) * c.width + j) * c.channels + channel];
  };
  int64_t at = 0;
  for (int64_t n = 0; n < c.batch; n++)
    for (int64_t row = 0; row < c.out_h; row++)
      for (int64_t column = 0; column < c.out_w; column++)
        for (int64_t o = 0; o < c.outputs; o++, at++)
          for (int64_t ki = 0; ki < c.kernel_h; ki++)
            for (int64_t kj = 0; kj < c.kernel_w; kj++) {
              int64_t i = row * c.stride_h - c.pad_h + ki * c.dilation_h, j = column * c.stride_w - c.pad_w + kj * c.dilation_w;
              if (c.transposed) {
                i = row - ki * c.dilation_h, j = column - kj * c.dilation_w;
                if (i < 0 || j < 0 || i % c.stride_h || j % c.stride_w) continue;
                i /= c.stride_h, j /= c.stride_w;
              }
              const int64_t first = o / c.group_outputs() * c.group_channels();
              for (int64_t k = 0; k < c.group_channels(); k++)
                y[at] += input(n, i, j, first + k) * w[((o * c.kernel_h + ki) * c.kernel_w + kj) * c.group_channels() + k];
            }
  return y;
}

// Every sign differs: no counter may run over.
void check_counters(int64_t isa, int64_t words) {
  Conv c = {};
  c.isa = isa, c.threads = c.batch = c.groups = c.kernel_h = c.kernel_w = c.stride_h = c.stride_w = c.dilation_h = c.dilation_w = 1;
  c.height = c.out_h = 1, c.width = c.out_w = 5, c.channels = 32 * words, c.outputs = 20;
  const std::vector<uint32_t> x(5 * words, ~0U), w(20 * words, 0);
  const int64_t bytes = bnn::round_up(bnn_prepared_bytes(&c), bnn::ALIGNMENT);
  void* prepared = std::memset(std::aligned_alloc(bnn::ALIGNMENT, bytes), 0, bytes);
  bnn_prepare(&c, w.data(), nullptr, prepared);
  std::vector<int32_t> y(5 * 20);
  succeed(bnn_conv2d(&c, x.data(), prepared, y.data()));
  expect(y == std::vector<int32_t>(y.size(), static_cast<int32_t>(-c.channels)), isa, "counters", c);
  std::free(prepared);
}

// Bytes, signed or not, against the same loops.
void check_bytes(int64_t isa, bool transposed) {
  Conv c = draw_conv(transposed);
  c.isa = isa, c.pad_value = 0, c.bytes = 1, c.is_signed = draw(0, 1);
  const int64_t count = c.batch * c.height * c.width * c.channels, low = c.is_signed ? -128 : 0, zero = low + draw(0, 255);
  const bool ends = draw(0, 3) == 0;
  std::vector<int> x(count), w(c.outputs * c.taps() * c.group_channels());
  for (int& v : x) v = static_cast<int>(low + (ends ? 255 * draw(0, 1) : draw(0, 255)));
  for (int& v : w) v = static_cast<int>(ends ? 255 * draw(0, 1) - 128 : draw(-128, 127));
  std::vector<uint8_t> bytes(count), zeros(c.groups * c.words() * bnn::WORD_BYTES, static_cast<uint8_t>(zero - low));
  for (int64_t i = 0; i < count; i++) bytes[i] = static_cast<uint8_t>(x[i]), x[i] -= static_cast<int>(zero);
  std::vector<uint32_t> words(c.outputs * c.taps() * c.words(), 0);
  for (size_t i = 0; i < w.size(); i++)
    reinterpret_cast<int8_t*>(words.data())[static_cast<int64_t>(i) / c.group_channels() * c.words() * bnn::WORD_BYTES +
                                            static_cast<int64_t>(i) % c.group_channels()] = static_cast<int8_t>(w[i]);
  const int64_t size = bnn::round_up(bnn_prepared_bytes(&c), bnn::ALIGNMENT);
  void* prepared = std::memset(std::aligned_alloc(bnn::ALIGNMENT, size), 0, size);
  bnn_prepare(&c, words.data(), zeros.data(), prepared);
  const auto sums = convolve(c, x, w);
  std::vector<int32_t> y(sums.size());
  succeed(bnn_conv2d(&c, bytes.data(), prepared, y.data()));
  expect(y == sums, isa, "sums of bytes", c);
  std::free(prepared);
}

void check_convolution(int64_t isa, bool transposed) {
  Conv c = draw_conv(transposed);
  c.isa = isa;
  const auto x = draw_signs(c.batch * c.height * c.width * c.channels), w = draw_signs(c.outputs * c.taps() * c.group_channels());
  const auto x_words = pack(c.batch * c.height * c.width, c.channels, c.groups,
                            [&](int64_t row, int64_t k) { return x[row * c.channels + k] > 0; });
  const auto w_words = pack(c.outputs * c.taps(), c.group_channels(), 1,
                            [&](int64_t row, int64_t k) { return w[row * c.group_channels() + k] > 0; });
  const int64_t bytes = bnn::round_up(bnn_prepared_bytes(&c), bnn::ALIGNMENT);
  void* prepared = std::memset(std::aligned_alloc(bnn::ALIGNMENT, bytes), 0, bytes);
  bnn_prepare(&c, w_words.data(), nullptr, prepared);
  const auto sums = convolve(c, x, w);
  const int64_t pixels = c.batch * c.out_h * c.out_w, width = c.outputs;

  std::vector<int32_t> y(sums.size());
  succeed(bnn_conv2d(&c, x_words.data(), prepared, y.data()));
  expect(y == sums, isa, "sums", c);

  std::vector<int32_t> thresholds(width), flips(width);
  for (int32_t& v : thresholds) v = static_cast<int32_t>(draw(-9, 9));
  for (int32_t& v : flips) v = static_cast<int32_t>(draw(0, 1));
  const auto bits = pack(pixels, width, 1, [&](int64_t p, int64_t o) {
    return (sums[p * width + o] >= thresholds[o]) != (flips[o] != 0);
  });
  std::vector<uint32_t> words(bits.size());
  const bnn::Signs signs{width, 1, thresholds.data(), flips.data(), words.data()};
  succeed(bnn_conv2d_sign(&c, x_words.data(), prepared, &signs));
  expect(words == bits, isa, "signs", c);

  const auto scale = floats(width), bias = floats(width), gamma = floats(width), slope = floats(width), zeta = floats(width),
             next = floats(width), shortcut = floats(pixels * width);
  std::vector<float> expected(shortcut.size()), stream = shortcut;
  for (size_t i = 0; i < expected.size(); i++) {
    const size_t o = i % width;
    volatile float v = static_cast<float>(sums[i]) * scale[o];  // volatile: rounded at every step
    v = v + bias[o];
    v = v + shortcut[i];
    v = v - gamma[o];
    if (!(v > 0)) v = slope[o] * v;
    v = v + zeta[o];
    expected[i] = v;
  }
  const auto next_bits = pack(pixels, width, 1, [&](int64_t p, int64_t o) { return expected[p * width + o] >= next[o]; });
  const bnn::Fused fused{width, 1, bnn::PRELU, bnn::FLOAT32, bnn::FLOAT32, scale.data(), bias.data(), gamma.data(), slope.data(),
                         zeta.data(), next.data(), stream.data(), stream.data(), words.data(), 0};
  succeed(bnn_block2d(&c, x_words.data(), prepared, &fused));
  expect(stream == expected, isa, "the stream", c);
  expect(words == next_bits, isa, "the bits of the stream", c);
  std::free(prepared);
}

void check_packing(int64_t isa) {
  const int64_t pixels = draw(1, 20), groups = draw(1, 3), channels = groups * draw(1, 70);
  auto x = floats(pixels * channels), threshold = floats(channels);
  x[0] = NAN;
  std::vector<uint32_t> words(pixels * groups * ((channels / groups + 31) / 32));
  const bnn::Packing packing{pixels, channels, groups, bnn::FLOAT32, 0, x.data(), threshold.data(), words.data()};
  succeed(bnn_pack(isa, 1, &packing));
  const auto expected = pack(pixels, channels, groups,
                             [&](int64_t row, int64_t c) { return x[row * channels + c] >= threshold[c]; });
  expect(words == expected, isa, "packing", Conv{});
}

}  // namespace

int main() {
  constexpr int cases = 200;
  for (int64_t isa = 0; isa < bnn::ISAS; isa++) {
    if (!bnn_has(isa)) continue;
    for (int64_t words = 1; words < 70; words++) check_counters(isa, words);
    for (int i = 0; i < cases; i++) check_convolution(isa, i % 4 == 0), check_bytes(isa, i % 4 == 0), check_packing(isa);
    std::printf("instruction set %d: %d convolutions exact\n", static_cast<int>(isa), cases);
  }
}
