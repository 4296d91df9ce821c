// Recurrent networks and attention with AVX2: bits are counted by a byte shuffle.
#if defined(__x86_64__)

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include <immintrin.h>

#include "sequence.hpp"
#include "target.hpp"

BNN_TARGET("avx2,fma,f16c,popcnt")

#include "attention.hpp"
#include "lstm.hpp"
#include "normalized.hpp"
#include "simd_avx2.hpp"

namespace bnn {
namespace {

struct Sequence256 : Avx2 {
  static constexpr int rows = 2, together = 2;

  static __m256i count_bytes(__m256i v) {
    const __m256i low = _mm256_set1_epi8(15);
    const __m256i ones = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    return _mm256_add_epi8(_mm256_shuffle_epi8(ones, _mm256_and_si256(v, low)),
                           _mm256_shuffle_epi8(ones, _mm256_and_si256(_mm256_srli_epi16(v, 4), low)));
  }

  // out[row * out_stride + i] = differing (or, with AND, common) bits of a row of words with lane i of the weights
  // [words][stride], 0 <= i < VECTORS * lanes.
  template <bool AND, int VECTORS>
  static void count(int64_t count, const uint32_t* const* x, int64_t words, const uint32_t* w, int64_t stride, int32_t* out,
                    int64_t out_stride) {
    return count == 1 ? tile<AND, VECTORS, 1>(x, words, w, stride, out, out_stride)
                      : tile<AND, VECTORS, 2>(x, words, w, stride, out, out_stride);
  }

  template <bool AND, int VECTORS, int ROWS>
  [[gnu::noinline]] static void tile(const uint32_t* const* x, int64_t words, const uint32_t* w, int64_t stride, int32_t* out, int64_t out_stride) {
    constexpr int64_t MOST = 31;  // words whose counts fit into a byte
    for (int64_t from = 0; from == 0 || from < words; from += MOST) {
      __m256i sum[ROWS][VECTORS];
#pragma GCC unroll 2
      for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) sum[r][v] = _mm256_setzero_si256();
      for (int64_t k = from; k < std::min(words, from + MOST); k++, w += stride) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
          const __m256i weight = _mm256_loadu_si256((const __m256i*)(w + v * lanes));
#pragma GCC unroll 2
          for (int r = 0; r < ROWS; r++) {
            const __m256i word = _mm256_set1_epi32(static_cast<int32_t>(x[r][k]));
            const __m256i bits = AND ? _mm256_and_si256(word, weight) : _mm256_xor_si256(word, weight);
            sum[r][v] = _mm256_add_epi8(sum[r][v], count_bytes(bits));
          }
        }
      }
#pragma GCC unroll 2
      for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
          __m256i* to = (__m256i*)(out + r * out_stride + v * lanes);
          const __m256i pairs = _mm256_maddubs_epi16(sum[r][v], _mm256_set1_epi8(1));
          const __m256i wide = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
          _mm256_storeu_si256(to, from == 0 ? wide : _mm256_add_epi32(wide, _mm256_loadu_si256(to)));
        }
      }
    }
  }

  static __m256i first(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(std::min<int64_t>(count, lanes))),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Float part(const float* p, int64_t count) { return _mm256_maskload_ps(p, first(count)); }
  static Float part_of_int(const int32_t* p, int64_t count) {
    return _mm256_cvtepi32_ps(_mm256_maskload_epi32(p, first(count)));
  }
  static void store_part(float* p, Float v, int64_t count) { _mm256_maskstore_ps(p, first(count), v); }
  static Float sum_of(const int32_t* differing, int32_t terms) {
    const __m256i twice = _mm256_slli_epi32(_mm256_loadu_si256((const __m256i*)differing), 1);
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_set1_epi32(terms), twice));
  }
  static Float where_ge(Float a, Float b, Float yes, Float no) { return _mm256_blendv_ps(no, yes, ge(a, b)); }
  static Float times_power(Float v, Float shifted) {
    const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), power));
  }
  static Float reciprocal_guess(Float d) {
    return _mm256_castsi256_ps(_mm256_sub_epi32(_mm256_set1_epi32(0x7EF311C7), _mm256_castps_si256(d)));
  }

  static constexpr int byte_lanes = 32;
  using Byte = __m256i;
  static Byte load_bytes(const uint8_t* p) { return _mm256_load_si256((const __m256i*)p); }
  static void store_bytes(uint8_t* p, Byte v) { _mm256_store_si256((__m256i*)p, v); }
  static Byte set_byte(uint8_t v) { return _mm256_set1_epi8(static_cast<char>(v)); }
  static Byte xor_bytes(Byte a, Byte b) { return _mm256_xor_si256(a, b); }
  static Byte add_bytes(Byte a, Byte b) { return _mm256_add_epi8(a, b); }
  static Byte min_bytes(Byte a, Byte b) { return _mm256_min_epu8(a, b); }
  static Byte max_bytes(Byte a, Byte b) { return _mm256_max_epu8(a, b); }
  static int64_t least_byte(Byte v) {
    const __m128i least = _mm_min_epu8(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    return _mm_cvtsi128_si32(_mm_minpos_epu16(_mm_min_epu8(least, _mm_srli_epi16(least, 8)))) & 255;
  }
  static uint32_t load_mask(const uint32_t* words) { return *words; }
  static void store_mask(uint32_t* words, uint32_t mask) { *words = mask; }
  static Byte where_mask(uint32_t mask, Byte yes, Byte no) {
    const __m256i spread = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int32_t>(mask)),
                                               _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303));
    const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
    return _mm256_blendv_epi8(no, yes, _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit));
  }
  static uint32_t mask_le(Byte a, Byte b) { return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(min_bytes(a, b), a))); }

  static int64_t table_sum(const Table& table, const uint8_t* m, const uint32_t* mask, int64_t words, int64_t least, int64_t) {
    return bnn::table_sum(table, m, mask, words, least);
  }
};

}  // namespace

const SequenceKernel sequence_avx2 = {Sequence256::lanes, Sequence256::rows, scan<Sequence256>, attend<Sequence256>,
                                      pack_normalized<Sequence256>};

}  // namespace bnn

BNN_TARGET_END

#endif
