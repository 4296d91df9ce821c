// Any processor.

#include "bytes.hpp"
#include "ceiling.hpp"
#include "downsample.hpp"
#include "epilogue.hpp"
#include "pooling.hpp"
#include "isa.hpp"
#include "simd_portable.hpp"
#include "stem.hpp"

namespace bnn {
namespace {

struct PortableCount : PlainWords {
  using Tile = bnn::Tile<PortableCount>;
  static constexpr int lanes = 16, pixels = 1;

  static uint32_t count(uint32_t v) {
#if defined(__POPCNT__)
    return static_cast<uint32_t>(std::popcount(v));
#else  // without an instruction, arithmetic that compilers vectorise
    v -= v >> 1 & 0x55555555;
    v = (v & 0x33333333) + (v >> 2 & 0x33333333);
    v = (v + (v >> 4)) & 0x0f0f0f0f;
    v += v >> 8;
    return (v + (v >> 16)) & 0x3f;
#endif
  }

  static void tile(const Tile& t) {
    for (int64_t first = 0; first < t.row; first += lanes) {
      uint32_t sum[lanes] = {};
      for (const Segment& segment : t.segments) {
        const uint32_t *x = t.x + segment.x + t.offsets[0], *w = t.w + segment.w + first;
        for (int64_t k = 0; k < segment.length; k++)
          for (int i = 0; i < lanes; i++) sum[i] += count(x[k] ^ w[k * t.row + i]);
      }
      for (int i = 0; i < lanes; i++) t.out[0][first + i] = t.base[first + i] - 2 * static_cast<int32_t>(sum[i]);
    }
  }
};

double binary_ceiling() {
  constexpr int lanes = PortableCount::lanes;
  return rate(lanes * WORD_BITS, [](int64_t steps) {
    uint32_t x = 1, weight[lanes] = {}, sum[lanes] = {};
    for (int64_t i = 0; i < steps; i++) {
      asm volatile("" : "+r"(x), "+m"(weight));
      for (int n = 0; n < lanes; n++) sum[n] += PortableCount::count(x ^ weight[n]);
    }
    asm volatile("" : "+m"(sum));
  });
}

using Count = Counting<PortableCount>;

}  // namespace

const Kernel portable = {
    .name = "portable",
    .block_pixels = 64,
    .binary = {.lanes = PortableCount::lanes,
               .prepared_bytes = Count::prepared_bytes,
               .prepare = Count::prepare,
               .accumulate = Count::accumulate},
    .int8 = bytes_accumulator<PortableBytes>,
    .fused = fused<Portable>,
    .signs = signs<Portable>,
    .quantize = quantize<Portable>,
    .pack = pack<Portable>,
    .downsample_pixels = 64,
    .downsample_bytes = downsample_bytes,
    .prepare_downsample = prepare_downsample,
    .downsample = downsample<Portable>,
    .pool_rows = pool_rows<Portable>,
    .weighted_sum = weighted_sum<Portable>,
    .fold = fold<Portable>,
    .largest = largest<Portable>,
    .stem_room = stem_room<Portable>,
    .stem = stem<Portable>,
    .binary_ceiling = binary_ceiling,
    .float_ceiling = multiply_add_ceiling<Portable>,
};

}  // namespace bnn
