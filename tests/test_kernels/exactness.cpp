// The engine against loops, without Python or torch: for processors that only an emulator has (make check-arm).
// Every instruction set of the processor, random convolutions with each epilogue, and packing. Prints the first difference.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <tuple>
#include <vector>

#include "driver.hpp"

extern "C" {
int64_t bnn_has(int64_t isa);
int64_t bnn_prepared_bytes(const bnn::Conv*);
void bnn_prepare(const bnn::Conv*, const uint32_t* weight, const uint8_t* zeros, void* prepared);
const char* bnn_conv2d(const bnn::Conv*, const void* x, const void* prepared, int32_t* y);
const char* bnn_conv2d_sign(const bnn::Conv*, const void* x, const void* prepared, const bnn::Signs*);
const char* bnn_block2d(const bnn::Conv*, const void* x, const void* prepared, const bnn::Fused*);
const char* bnn_pack(int64_t isa, int64_t threads, const bnn::Packing*);
const char* bnn_run(const int64_t* code, int64_t words, const void* links, int64_t count, const int64_t* bases);
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

// An operator as a record of bnn_run: numbers, addresses and structs as they follow each other.
template <class... Parts>
void run(bnn::Operation operation, const Parts&... parts) {
  std::vector<int64_t> code = {0, operation};
  const auto append = [&](const void* part, size_t size) {
    code.resize(code.size() + size / sizeof(int64_t));
    std::memcpy(code.data() + code.size() - size / sizeof(int64_t), part, size);
  };
  (append(&parts, sizeof(parts)), ...);
  code[0] = static_cast<int64_t>(code.size());
  succeed(bnn_run(code.data(), code[0], nullptr, 0, nullptr));
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

// A float as uint8.
uint8_t code_of(float v, float step, uint8_t zero) {
  float inverse = 1.0F / step;
  float scaled = v * inverse;
  const float low = -static_cast<float>(zero), high = 255.0F - static_cast<float>(zero);
  return static_cast<uint8_t>(static_cast<int>(std::nearbyint(std::min(std::max(scaled, low), high))) + zero);
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

  // The largest of windows of them (one pixel wide: the sums themselves), and the epilogue, to bytes.
  bnn::Windows window = {1, 1, 1, 1, 0, 0, c.out_h, c.out_w};
  if (!transposed) {
    window.kernel_h = draw(1, std::min<int64_t>(3, c.out_h)), window.kernel_w = draw(1, std::min<int64_t>(3, c.out_w));
    window.stride_h = draw(1, 3), window.stride_w = draw(1, 3), window.pad_h = draw(0, window.kernel_h / 2), window.pad_w = draw(0, window.kernel_w / 2);
    window.out_h = (c.out_h + 2 * window.pad_h - window.kernel_h) / window.stride_h + 1;
    window.out_w = (c.out_w + 2 * window.pad_w - window.kernel_w) / window.stride_w + 1;
  }
  const auto scale = floats(c.outputs), bias = floats(c.outputs);
  const float step = 300.0F;
  const uint8_t out_zero = static_cast<uint8_t>(draw(0, 255));
  std::vector<uint8_t> expected, found(c.batch * window.out_h * window.out_w * c.outputs);
  for (int64_t n = 0; n < c.batch; n++)
    for (int64_t i = 0; i < window.out_h; i++)
      for (int64_t j = 0; j < window.out_w; j++)
        for (int64_t o = 0; o < c.outputs; o++) {
          int32_t most = INT32_MIN;
          for (int64_t h = i * window.stride_h - window.pad_h; h < i * window.stride_h - window.pad_h + window.kernel_h; h++)
            for (int64_t l = j * window.stride_w - window.pad_w; l < j * window.stride_w - window.pad_w + window.kernel_w; l++)
              if (h >= 0 && h < c.out_h && l >= 0 && l < c.out_w)
                most = std::max(most, sums[((n * c.out_h + h) * c.out_w + l) * c.outputs + o]);
          float v = static_cast<float>(most) * scale[o];
          v = v + bias[o];
          expected.push_back(code_of(v, step, out_zero));
        }
  bnn::Fused fused{c.outputs, 1, bnn::IDENTITY, bnn::UINT8, bnn::NONE, scale.data(), bias.data(), nullptr, nullptr, nullptr,
                   nullptr, nullptr, found.data(), nullptr, 0, &step, &out_zero};
  run(bnn::POOLED2D, &c, bytes.data(), prepared, fused, window);
  expect(found == expected, isa, "the largest sums of bytes", c);
  if (window.kernel_h == 1 && window.kernel_w == 1 && window.stride_h == 1 && window.stride_w == 1) {
    std::fill(found.begin(), found.end(), 0);
    succeed(bnn_block2d(&c, bytes.data(), prepared, &fused));
    expect(found == expected, isa, "sums of bytes as bytes", c);
  }
  std::free(prepared);
}

// Windows of maps, pixels to planes, and floats to bytes.
void check_maps(int64_t isa) {
  constexpr int64_t threads = 1;
  bnn::Pool p = {};
  p.images = draw(1, 2), p.height = draw(1, 9), p.width = draw(1, 9), p.channels = draw(1, 40), p.fold = draw(1, 3), p.largest = 0;
  if (draw(0, 1)) p.fold = p.largest = 1;
  p.out_h = draw(1, 12), p.out_w = draw(1, 12);
  std::vector<int64_t> rows, columns;
  for (auto [all, count, side] : {std::tuple{&rows, p.out_h, p.height}, std::tuple{&columns, p.out_w, p.width}})
    for (int64_t i = 0; i < count; i++) {
      const int64_t first = draw(0, side - 1);
      all->push_back(first), all->push_back(draw(first + 1, std::min(side, first + 3)));
    }
  const auto x = floats(p.images * p.height * p.width * p.fold * p.channels);
  const auto shortcut = floats(p.images * p.out_h * p.out_w * p.channels);
  std::vector<float> y(shortcut.size()), expected;
  p.rows = rows.data(), p.columns = columns.data(), p.x = x.data(), p.shortcut = shortcut.data(), p.y = y.data();
  for (int64_t n = 0; n < p.images; n++)
    for (int64_t i = 0; i < p.out_h; i++)
      for (int64_t j = 0; j < p.out_w; j++)
        for (int64_t c = 0; c < p.channels; c++) {
          float v = p.largest ? -INFINITY : 0.0F;
          for (int64_t f = 0; f < p.fold; f++)
            for (int64_t h = rows[2 * i]; h < rows[2 * i + 1]; h++)
              for (int64_t l = columns[2 * j]; l < columns[2 * j + 1]; l++) {
                const float term = x[(((n * p.height + h) * p.width + l) * p.fold + f) * p.channels + c];
                v = p.largest ? std::max(v, term) : v + term;
              }
          const int64_t count = p.fold * (rows[2 * i + 1] - rows[2 * i]) * (columns[2 * j + 1] - columns[2 * j]);
          if (!p.largest) v = v * (1.0F / static_cast<float>(count));
          v = v + shortcut[expected.size()];
          expected.push_back(v);
        }
  run(bnn::POOL2D, isa, threads, p);
  expect(y == expected, isa, "windows of maps", Conv{});

  const int64_t pixels = p.out_h * p.out_w;
  std::vector<float> planes(y.size());
  run(bnn::PLANES, threads, bnn::Planes{p.images, pixels, p.channels, sizeof(float), y.data(), planes.data()});
  const int64_t both = 2 * p.channels;
  std::vector<float> beside(2 * y.size());
  std::vector<uint32_t> signs(p.images * pixels * bnn::packed_words(both, 1));
  const bnn::Concat two{p.images * pixels, both, bnn::FLOAT32, 2, {p.channels, p.channels}, {y.data(), shortcut.data()}, beside.data()};
  run(bnn::CONCAT, isa, threads, two, bnn::Packing{p.images * pixels, both, 1, bnn::FLOAT32, 0, nullptr, nullptr, signs.data()});
  const auto value = [&](int64_t pixel, int64_t c) {
    return c < p.channels ? y[pixel * p.channels + c] : shortcut[pixel * p.channels + c - p.channels];
  };
  for (int64_t i = 0; i < p.images * pixels; i++)
    for (int64_t c = 0; c < both; c++) expect(beside[i * both + c] == value(i, c), isa, "maps side by side", Conv{});
  expect(signs == pack(p.images * pixels, both, 1, [&](int64_t i, int64_t c) { return value(i, c) >= 0; }), isa, "their signs", Conv{});
  std::vector<uint8_t> bytes(y.size());
  const float step = 0.03F;
  const uint8_t zero = static_cast<uint8_t>(draw(0, 255));
  run(bnn::QUANTIZE, isa, threads,
      bnn::Quantizing{static_cast<int64_t>(y.size()), bnn::FLOAT32, bnn::UINT8, y.data(), &step, &zero, bytes.data()});
  for (int64_t n = 0, at = 0; n < p.images; n++)
    for (int64_t i = 0; i < pixels; i++)
      for (int64_t c = 0; c < p.channels; c++, at++) {
        expect(planes[(n * p.channels + c) * pixels + i] == y[at], isa, "planes", Conv{});
        expect(bytes[at] == code_of(y[at], step, zero), isa, "floats to bytes", Conv{});
      }
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

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 200;  // of each kind
  for (int64_t isa = 0; isa < bnn::ISAS; isa++) {
    if (!bnn_has(isa)) continue;
    for (int64_t words = 1; words < 70; words++) check_counters(isa, words);
    for (int i = 0; i < cases; i++) check_convolution(isa, i % 4 == 0), check_bytes(isa, i % 4 == 0), check_packing(isa), check_maps(isa);
    std::printf("instruction set %d: %d convolutions of each kind exact\n", static_cast<int>(isa), cases);
  }
}
