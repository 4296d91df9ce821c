// AVX2 has no popcount. Four signs at a time: a table row for the four signs of a pixel holds the number of differing signs for
// each of the 16 possible weights, and one byte shuffle looks up 32 output channels.
#if defined(__x86_64__)

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include <immintrin.h>

#include "isa.hpp"
#include "target.hpp"

BNN_TARGET("avx2,fma,f16c,popcnt")

#include "bytes.hpp"
#include "ceiling.hpp"
#include "downsample.hpp"
#include "epilogue.hpp"
#include "pooling.hpp"
#include "simd_avx2.hpp"
#include "stem.hpp"

namespace bnn {
namespace {

struct Avx2Count : SignsBase {
  using Tile = bnn::Tile<Avx2Count>;
  using Word = uint64_t;  // eight bytes, each 16 times four signs: the place of a table row
  using Weight = uint8_t;  // four signs
  static constexpr int64_t per_word = 8;
  static constexpr int lanes = 32, pixels = 6;
  static constexpr int64_t WORDS = 7;  // whose differing signs fit into a byte: 7 * 32 < 256

  static void put(uint32_t word, uint8_t* weight, int64_t row) {
    for (int i = 0; i < 8; i++) weight[i * row] = word >> 4 * i & 15;
  }

  static int64_t scratch_bytes(const Plan& plan) { return staged_words(plan) * static_cast<int64_t>(sizeof(Word)); }

  static void stage(const Plan& plan, const Block& block, const void* image, void* scratch) {
    const Conv& c = plan.conv;
    const Staged r(plan, block);
    const __m256i spread = _mm256_setr_epi8(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6,
                                            6, 7, 7);
    const __m256i even = _mm256_set1_epi16(0x00ff), high = _mm256_set1_epi8(static_cast<char>(0xf0));
    for (int64_t y = r.rows.first; y < r.rows.last; y++) {
      const uint32_t* source = static_cast<const uint32_t*>(image) + (y * c.width + r.columns.first) * c.pixel_words();
      Word* target = static_cast<Word*>(scratch) + (y - r.rows.first) * r.pitch;
      int64_t i = 0;
      for (; i + 4 <= r.pitch; i += 4) {
        const __m256i words = _mm256_permute4x64_epi64(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)(source + i))), 0x50);
        const __m256i bytes = _mm256_shuffle_epi8(words, spread);
        const __m256i rows = _mm256_blendv_epi8(bytes, _mm256_slli_epi16(bytes, 4), even);  // low signs into the even bytes
        _mm256_storeu_si256((__m256i*)(target + i), _mm256_and_si256(rows, high));
      }
      for (; i < r.pitch; i++) {
        Word word = 0;
        for (int j = 0; j < 8; j++) word |= static_cast<Word>(source[i] >> 4 * j & 15) << (8 * j + 4);
        target[i] = word;
      }
    }
  }

  static Source<Word> source(const Plan& plan, const Block& block, const void*, const void* scratch) {
    return Staged(plan, block).source(static_cast<const Word*>(scratch));
  }

  template <int PIXELS, int VECTORS>
  static void count(const Tile& t) {
    alignas(16) static constexpr uint8_t differing[16][16] = {
        {0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4}, {1, 0, 2, 1, 2, 1, 3, 2, 2, 1, 3, 2, 3, 2, 4, 3},
        {1, 2, 0, 1, 2, 3, 1, 2, 2, 3, 1, 2, 3, 4, 2, 3}, {2, 1, 1, 0, 3, 2, 2, 1, 3, 2, 2, 1, 4, 3, 3, 2},
        {1, 2, 2, 3, 0, 1, 1, 2, 2, 3, 3, 4, 1, 2, 2, 3}, {2, 1, 3, 2, 1, 0, 2, 1, 3, 2, 4, 3, 2, 1, 3, 2},
        {2, 3, 1, 2, 1, 2, 0, 1, 3, 4, 2, 3, 2, 3, 1, 2}, {3, 2, 2, 1, 2, 1, 1, 0, 4, 3, 3, 2, 3, 2, 2, 1},
        {1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3}, {2, 1, 3, 2, 3, 2, 4, 3, 1, 0, 2, 1, 2, 1, 3, 2},
        {2, 3, 1, 2, 3, 4, 2, 3, 1, 2, 0, 1, 2, 3, 1, 2}, {3, 2, 2, 1, 4, 3, 3, 2, 2, 1, 1, 0, 3, 2, 2, 1},
        {2, 3, 3, 4, 1, 2, 2, 3, 1, 2, 2, 3, 0, 1, 1, 2}, {3, 2, 4, 3, 2, 1, 3, 2, 2, 1, 3, 2, 1, 0, 2, 1},
        {3, 4, 2, 3, 2, 3, 1, 2, 2, 3, 1, 2, 1, 2, 0, 1}, {4, 3, 3, 2, 3, 2, 2, 1, 3, 2, 2, 1, 2, 1, 1, 0}};
    const char* table = reinterpret_cast<const char*>(differing);
    __m256i sum[PIXELS][VECTORS];
    const char* x[PIXELS];
    for (int p = 0; p < PIXELS; p++)
      std::memcpy(t.out[p], t.base, VECTORS * lanes * sizeof(int32_t));
    clear<PIXELS, VECTORS>(sum);
    int64_t room = WORDS;
    for (const Segment& segment : t.segments) {
      const uint8_t* w = t.w + segment.w;
      for (int p = 0; p < PIXELS; p++) x[p] = reinterpret_cast<const char*>(t.x + segment.x + t.offsets[p]);
      for (int64_t k = 0; k < segment.length;) {
        const int64_t end = std::min(segment.length, k + room);
        room -= end - k;
        for (; k < end; k++) {
#pragma GCC unroll 8
          for (int i = 0; i < 8; i++, w += VECTORS * lanes) {
            __m256i weight[VECTORS];
#pragma GCC unroll 2
            for (int v = 0; v < VECTORS; v++) weight[v] = _mm256_loadu_si256((const __m256i*)(w + v * lanes));
#pragma GCC unroll 8
            for (int p = 0; p < PIXELS; p++) {
              const uint8_t place = static_cast<uint8_t>(x[p][8 * k + i]);
              const __m256i row = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i*)(table + place)));
#pragma GCC unroll 2
              for (int v = 0; v < VECTORS; v++) {
                sum[p][v] = _mm256_add_epi8(sum[p][v], _mm256_shuffle_epi8(row, weight[v]));
                asm("" : "+x"(sum[p][v]));  // keeps GCC from adding up in a tree that no longer fits the registers
              }
            }
          }
        }
        if (room == 0) {
          flush<PIXELS, VECTORS>(t, sum);
          clear<PIXELS, VECTORS>(sum);
          room = WORDS;
        }
      }
    }
    if (room < WORDS) flush<PIXELS, VECTORS>(t, sum);
  }

  template <int PIXELS, int VECTORS>
  static void clear(__m256i (&sum)[PIXELS][VECTORS]) {
#pragma GCC unroll 8
    for (int p = 0; p < PIXELS; p++)
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++) sum[p][v] = _mm256_setzero_si256();
  }

  // out -= 2 * sum
  template <int PIXELS, int VECTORS>
  static void flush(const Tile& t, const __m256i (&sum)[PIXELS][VECTORS]) {
#pragma GCC unroll 8
    for (int p = 0; p < PIXELS; p++) {
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; v++) {
        alignas(32) uint8_t bytes[lanes];
        _mm256_store_si256((__m256i*)bytes, sum[p][v]);
#pragma GCC unroll 4
        for (int i = 0; i < lanes; i += 8) {
          __m256i* out = (__m256i*)(t.out[p] + v * lanes + i);
          const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(bytes + i)));
          _mm256_storeu_si256(out, _mm256_sub_epi32(_mm256_loadu_si256(out), _mm256_slli_epi32(wide, 1)));
        }
      }
    }
  }

  template <int PIXELS>
  static void vectors(const Tile& t) {
    t.row == lanes ? count<PIXELS, 1>(t) : count<PIXELS, 2>(t);
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

// In 16 bits: the instruction that multiplies bytes saturates the sum of two products.
struct Avx2Bytes : BytesBase<Avx2Bytes, uint64_t> {
  using Tile = bnn::Tile<Avx2Bytes>;
  using Weight = uint32_t;  // two channels
  static constexpr int64_t per_word = 2;
  static constexpr int lanes = 16, pixels = 4;

  static void put(uint32_t word, uint32_t* weight, int64_t row) {
    const auto wide = [&](int i) { return static_cast<uint32_t>(static_cast<int8_t>(word >> 8 * i)) & 0xffff; };
    for (int pair = 0; pair < 2; pair++) weight[pair * row] = wide(2 * pair) | wide(2 * pair + 1) << 16;
  }

  static void widen(const uint8_t* from, uint8_t flip, int64_t words, uint64_t* to) {
    uint16_t* values = reinterpret_cast<uint16_t*>(to);
    const __m128i flips = _mm_set1_epi8(static_cast<char>(flip));
    int64_t i = 0;
    for (; i + 16 <= words * WORD_BYTES; i += 16) {
      const __m128i bytes = _mm_xor_si128(_mm_loadu_si128((const __m128i*)(from + i)), flips);
      _mm256_storeu_si256((__m256i*)(values + i), _mm256_cvtepu8_epi16(bytes));
    }
    for (; i < words * WORD_BYTES; i++) values[i] = from[i] ^ flip;
  }

  // Two vectors of channels from `first` on.
  template <int PIXELS>
  static void multiply(const Tile& t, int64_t first) {
    __m256i sum[PIXELS][2];
    const char* x[PIXELS];
#pragma GCC unroll 4
    for (int p = 0; p < PIXELS; p++)
#pragma GCC unroll 2
      for (int v = 0; v < 2; v++) sum[p][v] = _mm256_loadu_si256((const __m256i*)(t.base + first + 8 * v));
    for (const Segment& segment : t.segments) {
      const uint32_t* w = t.w + segment.w + first;
      for (int p = 0; p < PIXELS; p++) x[p] = reinterpret_cast<const char*>(t.x + segment.x + t.offsets[p]);
      for (int64_t k = 0; k < segment.length * static_cast<int64_t>(sizeof(Word)); k += 4, w += t.row) {
        const __m256i weight[] = {_mm256_loadu_si256((const __m256i*)w), _mm256_loadu_si256((const __m256i*)(w + 8))};
#pragma GCC unroll 4
        for (int p = 0; p < PIXELS; p++) {
          int32_t two;
          std::memcpy(&two, x[p] + k, sizeof(two));
          const __m256i values = _mm256_set1_epi32(two);
#pragma GCC unroll 2
          for (int v = 0; v < 2; v++) sum[p][v] = _mm256_add_epi32(sum[p][v], _mm256_madd_epi16(values, weight[v]));
        }
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < PIXELS; p++)
#pragma GCC unroll 2
      for (int v = 0; v < 2; v++) _mm256_storeu_si256((__m256i*)(t.out[p] + first + 8 * v), sum[p][v]);
  }

  template <int PIXELS>
  static void channels(const Tile& t) {
    for (int64_t first = 0; first < t.row; first += lanes) multiply<PIXELS>(t, first);
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
  constexpr int CHAINS = 12;
  return rate(CHAINS * 32 * 4, [](int64_t steps) {
    __m256i row = _mm256_set1_epi8(1), weight = row, sum[CHAINS];
#pragma GCC unroll 12
    for (int n = 0; n < CHAINS; n++) sum[n] = _mm256_setzero_si256();
    for (int64_t i = 0; i < steps; i++) {
#pragma GCC unroll 12
      for (int n = 0; n < CHAINS; n++) {
        asm volatile("" : "+x"(row), "+x"(weight));
        sum[n] = _mm256_add_epi8(sum[n], _mm256_shuffle_epi8(row, weight));
      }
    }
#pragma GCC unroll 12
    for (int n = 0; n < CHAINS; n++) asm volatile("" : : "x"(sum[n]));
  });
}

using Count = Counting<Avx2Count>;

}  // namespace

const Kernel avx2 = {
    .name = "avx2",
    .block_pixels = 64,
    .binary = {.lanes = Avx2Count::lanes,
               .prepared_bytes = Count::prepared_bytes,
               .prepare = Count::prepare,
               .scratch_bytes = Avx2Count::scratch_bytes,
               .stage = Avx2Count::stage,
               .accumulate = Count::accumulate},
    .int8 = bytes_accumulator<Avx2Bytes>,
    .fused = fused<Avx2>,
    .signs = signs<Avx2>,
    .quantize = quantize<Avx2>,
    .pack = pack<Avx2>,
    .downsample_pixels = 64,
    .downsample_bytes = downsample_bytes,
    .prepare_downsample = prepare_downsample,
    .downsample = downsample<Avx2>,
    .pool_rows = pool_rows<Avx2>,
    .weighted_sum = weighted_sum<Avx2>,
    .fold = fold<Avx2>,
    .largest = largest<Avx2>,
    .stem_room = stem_room<Avx2>,
    .stem = stem<Avx2>,
    .binary_ceiling = binary_ceiling,
    .float_ceiling = multiply_add_ceiling<Avx2>,
};

}  // namespace bnn

BNN_TARGET_END

#endif
