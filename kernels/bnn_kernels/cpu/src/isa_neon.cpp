// 64-bit Arm, all of which has these instructions.
#if defined(__aarch64__)

#include <arm_neon.h>

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

// Bits are counted in bytes, sixteen at a time, and summed there for as long as a byte can hold them.
struct NeonCount : PlainWords {
  using Tile = bnn::Tile<NeonCount>;
  static constexpr int lanes = 16, pixels = 4, vectors = 4;
  static constexpr int64_t most = 255 / 8;  // words

  template <int PIXELS>
  struct Sums {
    uint32x4_t words[PIXELS][vectors] = {};
    uint8x16_t bytes[PIXELS][vectors] = {};

    void widen() {
#pragma GCC unroll 4
      for (int p = 0; p < PIXELS; p++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
          words[p][v] = vpadalq_u16(words[p][v], vpaddlq_u8(bytes[p][v]));
          bytes[p][v] = vdupq_n_u8(0);
        }
    }
  };

  static uint8x16_t differing(uint8x16_t a, uint8x16_t b) { return vcntq_u8(veorq_u8(a, b)); }

  template <int PIXELS>
  static void count(const Tile& t, int64_t first) {
    Sums<PIXELS> sums;
    int64_t room = most;
    for (const Segment& segment : t.segments) {
      const uint32_t *x = t.x + segment.x, *w = t.w + segment.w + first;
      for (int64_t left = segment.length; left > 0;) {
        if (room == 0) sums.widen(), room = most;
        const int64_t now = std::min(left, room);
        for (const uint32_t* end = x + now; x != end; x++, w += t.row) {
          uint8x16_t weight[vectors];
#pragma GCC unroll 4
          for (int v = 0; v < vectors; v++) weight[v] = vreinterpretq_u8_u32(vld1q_u32(w + 4 * v));
#pragma GCC unroll 4
          for (int p = 0; p < PIXELS; p++) {
            const uint8x16_t word = vreinterpretq_u8_u32(vdupq_n_u32(x[t.offsets[p]]));
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sums.bytes[p][v] = vaddq_u8(sums.bytes[p][v], differing(word, weight[v]));
          }
        }
        left -= now, room -= now;
      }
    }
    sums.widen();
#pragma GCC unroll 4
    for (int p = 0; p < PIXELS; p++)
#pragma GCC unroll 4
      for (int v = 0; v < vectors; v++) {
        const int32x4_t base = vld1q_s32(t.base + first + 4 * v);
        vst1q_s32(t.out[p] + first + 4 * v, vmlsq_n_s32(base, vreinterpretq_s32_u32(sums.words[p][v]), 2));
      }
  }

  template <int PIXELS>
  static void channels(const Tile& t) {
    for (int64_t first = 0; first < t.row; first += lanes) count<PIXELS>(t, first);
  }

  static void tile(const Tile& t) {
    switch (t.pixels) {
      case 1: return channels<1>(t);
      case 2: return channels<2>(t);
      case 3: return channels<3>(t);
      default: return channels<4>(t);
    }
  }
};

double binary_ceiling() {
  constexpr int chains = 12;
  return rate(chains * 128, [](int64_t steps) {
    uint8x16_t word = vdupq_n_u8(1), weight = word, sum[chains] = {};
    for (int64_t i = 0; i < steps; i++) {
#pragma GCC unroll 12
      for (int n = 0; n < chains; n++) {
        asm volatile("" : "+w"(weight), "+w"(word));
        sum[n] = vaddq_u8(sum[n], NeonCount::differing(word, weight));
      }
    }
#pragma GCC unroll 12
    for (int n = 0; n < chains; n++) asm volatile("" : : "w"(sum[n]));
  });
}

using Count = Counting<NeonCount>;

}  // namespace

const Kernel neon = {
    .name = "neon",
    .block_pixels = 64,
    .binary = {.lanes = NeonCount::lanes,
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

#endif
