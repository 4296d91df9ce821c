// AVX-512 with VPOPCNTDQ: Ice Lake, Sapphire Rapids, Zen 4 and later.
#if defined(__x86_64__)

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include <immintrin.h>

#include "isa.hpp"
#include "target.hpp"

BNN_TARGET("avx2,fma,f16c,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512dq,avx512vpopcntdq,avx512vnni")

#include "bytes.hpp"
#include "ceiling.hpp"
#include "downsample.hpp"
#include "epilogue.hpp"
#include "pooling.hpp"
#include "simd_avx512.hpp"
#include "stem.hpp"

namespace bnn {
namespace {

struct Avx512Count : PlainWords {
  using Tile = bnn::Tile<Avx512Count>;
  static constexpr int lanes = 16, pixels = 6;

  template <int PIXELS, int VECTORS>
  static void count(const Tile& t) {
    __m512i sum[PIXELS][VECTORS];
    int64_t offsets[PIXELS];
#pragma GCC unroll 8
    for (int p = 0; p < PIXELS; p++) {
      offsets[p] = t.offsets[p];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) sum[p][v] = _mm512_setzero_si512();
    }
    for (const Segment& segment : t.segments) {
      const uint32_t* w = t.w + segment.w;
      const uint32_t* x = t.x + segment.x;
      for (const uint32_t* end = x + segment.length; x != end; x++, w += VECTORS * lanes) {
        __m512i weight[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) weight[v] = _mm512_load_si512(w + v * lanes);
#pragma GCC unroll 8
        for (int p = 0; p < PIXELS; p++) {
          const __m512i word = _mm512_set1_epi32(static_cast<int32_t>(x[offsets[p]]));
#pragma GCC unroll 4
          for (int v = 0; v < VECTORS; v++)
            sum[p][v] = _mm512_add_epi32(sum[p][v], _mm512_popcnt_epi32(_mm512_xor_si512(word, weight[v])));
        }
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
      const __m512i base = _mm512_load_si512(t.base + v * lanes);
#pragma GCC unroll 8
      for (int p = 0; p < PIXELS; p++)
        _mm512_storeu_si512(t.out[p] + v * lanes, _mm512_sub_epi32(base, _mm512_slli_epi32(sum[p][v], 1)));
    }
  }

  template <int PIXELS>
  static void vectors(const Tile& t) {
    switch (t.row / lanes) {
      case 1: return count<PIXELS, 1>(t);
      case 2: return count<PIXELS, 2>(t);
      case 3: return count<PIXELS, 3>(t);
      default: return count<PIXELS, 4>(t);
    }
  }

  static void tile(const Tile& t) {
    switch (t.pixels) {
      case 1: return vectors<1>(t);
      case 2: return vectors<2>(t);
      case 3: return vectors<3>(t);
      case 4: return vectors<4>(t);
      case 5: return vectors<5>(t);
      default: return vectors<6>(t);
    }
  }
};

// Four products of a channel in one instruction, without saturation.
struct Avx512Bytes : BytesInWords<Avx512Bytes> {
  using Tile = bnn::Tile<Avx512Bytes>;
  using Weight = uint32_t;
  static constexpr int64_t per_word = 1;
  static constexpr int lanes = 16, pixels = 6;

  static void put(uint32_t word, uint32_t* weight, int64_t) { *weight = word; }

  template <int PIXELS, int VECTORS>
  static void multiply(const Tile& t) {
    __m512i sum[PIXELS][VECTORS];
    int64_t offsets[PIXELS];
#pragma GCC unroll 8
    for (int p = 0; p < PIXELS; p++) {
      offsets[p] = t.offsets[p];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) sum[p][v] = _mm512_load_si512(t.base + v * lanes);
    }
    for (const Segment& segment : t.segments) {
      const uint32_t* w = t.w + segment.w;
      const uint32_t* x = t.x + segment.x;
      for (const uint32_t* end = x + segment.length; x != end; x++, w += VECTORS * lanes) {
        __m512i weight[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) weight[v] = _mm512_load_si512(w + v * lanes);
#pragma GCC unroll 8
        for (int p = 0; p < PIXELS; p++) {
          const __m512i word = _mm512_set1_epi32(static_cast<int32_t>(x[offsets[p]]));
#pragma GCC unroll 4
          for (int v = 0; v < VECTORS; v++) sum[p][v] = _mm512_dpbusd_epi32(sum[p][v], word, weight[v]);
        }
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++)
#pragma GCC unroll 8
      for (int p = 0; p < PIXELS; p++) _mm512_storeu_si512(t.out[p] + v * lanes, sum[p][v]);
  }

  template <int PIXELS>
  static void vectors(const Tile& t) {
    switch (t.row / lanes) {
      case 1: return multiply<PIXELS, 1>(t);
      case 2: return multiply<PIXELS, 2>(t);
      case 3: return multiply<PIXELS, 3>(t);
      default: return multiply<PIXELS, 4>(t);
    }
  }

  static void tile(const Tile& t) {
    switch (t.pixels) {
      case 1: return vectors<1>(t);
      case 2: return vectors<2>(t);
      case 3: return vectors<3>(t);
      case 4: return vectors<4>(t);
      case 5: return vectors<5>(t);
      default: return vectors<6>(t);
    }
  }
};

double binary_ceiling() {
  constexpr int CHAINS = 12;
  return rate(CHAINS * 512, [](int64_t steps) {
    __m512i word = _mm512_set1_epi32(1), weight = word, sum[CHAINS];
#pragma GCC unroll 12
    for (int n = 0; n < CHAINS; n++) sum[n] = _mm512_setzero_si512();
    for (int64_t i = 0; i < steps; i++) {
#pragma GCC unroll 12
      for (int n = 0; n < CHAINS; n++) {
        asm volatile("" : "+v"(weight), "+v"(word));
        sum[n] = _mm512_add_epi32(sum[n], _mm512_popcnt_epi32(_mm512_xor_si512(word, weight)));
      }
    }
#pragma GCC unroll 12
    for (int n = 0; n < CHAINS; n++) asm volatile("" : : "v"(sum[n]));
  });
}

using Count = Counting<Avx512Count>;

}  // namespace

const Kernel avx512 = {
    .name = "avx512",
    .block_pixels = 128,
    .binary = {.lanes = Avx512Count::lanes,
               .prepared_bytes = Count::prepared_bytes,
               .prepare = Count::prepare,
               .accumulate = Count::accumulate},
    .int8 = bytes_accumulator<Avx512Bytes>,
    .fused = fused<Avx512>,
    .signs = signs<Avx512>,
    .quantize = quantize<Avx512>,
    .pack = pack<Avx512>,
    .downsample_pixels = 64,
    .downsample_bytes = downsample_bytes,
    .prepare_downsample = prepare_downsample,
    .downsample = downsample<Avx512>,
    .pool_rows = pool_rows<Avx512>,
    .weighted_sum = weighted_sum<Avx512>,
    .fold = fold<Avx512>,
    .largest = largest<Avx512>,
    .stem_room = stem_room<Avx512>,
    .stem = stem<Avx512>,
    .binary_ceiling = binary_ceiling,
    .float_ceiling = multiply_add_ceiling<Avx512>,
};

}  // namespace bnn

BNN_TARGET_END

#endif
