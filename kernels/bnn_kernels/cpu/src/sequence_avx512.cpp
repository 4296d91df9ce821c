// Recurrent networks and attention with AVX-512: VPOPCNTDQ, BITALG and VBMI came together.
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

BNN_TARGET("avx2,fma,f16c,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512dq,avx512vpopcntdq,avx512bitalg,avx512vbmi")

#include "attention.hpp"
#include "lstm.hpp"
#include "normalized.hpp"
#include "simd_avx512.hpp"

namespace bnn {
namespace {

struct Sequence512 : Avx512 {
  static constexpr int rows = 6, together = 4;

  // out[row * out_stride + i] = differing (or, with AND, common) bits of a row of words with lane i of the weights
  // [words][stride], 0 <= i < VECTORS * lanes.
  template <bool AND, int VECTORS>
  static void count(int64_t count, const uint32_t* const* x, int64_t words, const uint32_t* w, int64_t stride, int32_t* out,
                    int64_t out_stride) {
    switch (count) {
      case 1: return tile<AND, VECTORS, 1>(x, words, w, stride, out, out_stride);
      case 2: return tile<AND, VECTORS, 2>(x, words, w, stride, out, out_stride);
      case 3: return tile<AND, VECTORS, 3>(x, words, w, stride, out, out_stride);
      case 4: return tile<AND, VECTORS, 4>(x, words, w, stride, out, out_stride);
      case 5: return tile<AND, VECTORS, 5>(x, words, w, stride, out, out_stride);
      default: return tile<AND, VECTORS, 6>(x, words, w, stride, out, out_stride);
    }
  }

  template <bool AND, int VECTORS, int ROWS>
  [[gnu::noinline]] static void tile(const uint32_t* const* x, int64_t words, const uint32_t* w, int64_t stride, int32_t* out, int64_t out_stride) {
    __m512i sum[ROWS][VECTORS];
    const uint32_t* row[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
      row[r] = x[r];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) sum[r][v] = _mm512_setzero_si512();
    }
    for (int64_t k = 0; k < words; k++, w += stride) {
      __m512i weight[VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) weight[v] = _mm512_loadu_si512(w + v * lanes);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; r++) {
        const __m512i word = _mm512_set1_epi32(static_cast<int32_t>(row[r][k]));
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
          const __m512i bits = AND ? _mm512_and_si512(word, weight[v]) : _mm512_xor_si512(word, weight[v]);
          sum[r][v] = _mm512_add_epi32(sum[r][v], _mm512_popcnt_epi32(bits));
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) _mm512_storeu_si512(out + r * out_stride + v * lanes, sum[r][v]);
  }

  static __mmask16 first(int64_t count) { return count >= lanes ? 0xffff : static_cast<__mmask16>((1U << count) - 1); }
  static Float part(const float* p, int64_t count) { return _mm512_maskz_loadu_ps(first(count), p); }
  static Float part_of_int(const int32_t* p, int64_t count) {
    return _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(first(count), p));
  }
  static void store_part(float* p, Float v, int64_t count) { _mm512_mask_storeu_ps(p, first(count), v); }
  static Float sum_of(const int32_t* differing, int32_t terms) {
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_set1_epi32(terms), _mm512_slli_epi32(_mm512_loadu_si512(differing), 1)));
  }
  static Float where_ge(Float a, Float b, Float yes, Float no) {
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ), yes);
  }
  static Float times_power(Float v, Float shifted) {
    const __m512i power = _mm512_slli_epi32(_mm512_castps_si512(shifted), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), power));
  }
  static Float reciprocal_guess(Float d) {
    return _mm512_castsi512_ps(_mm512_sub_epi32(_mm512_set1_epi32(0x7EF311C7), _mm512_castps_si512(d)));
  }

  static constexpr int byte_lanes = 64;
  using Byte = __m512i;
  static Byte load_bytes(const uint8_t* p) { return _mm512_load_si512(p); }
  static void store_bytes(uint8_t* p, Byte v) { _mm512_store_si512(p, v); }
  static Byte set_byte(uint8_t v) { return _mm512_set1_epi8(static_cast<char>(v)); }
  static Byte xor_bytes(Byte a, Byte b) { return _mm512_xor_si512(a, b); }
  static Byte count_bytes(Byte v) { return _mm512_popcnt_epi8(v); }
  static Byte add_bytes(Byte a, Byte b) { return _mm512_add_epi8(a, b); }
  static Byte min_bytes(Byte a, Byte b) { return _mm512_min_epu8(a, b); }
  static Byte max_bytes(Byte a, Byte b) { return _mm512_max_epu8(a, b); }
  static int64_t least_byte(Byte v) {
    const __m256i half = _mm256_min_epu8(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    const __m128i least = _mm_min_epu8(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    return _mm_cvtsi128_si32(_mm_minpos_epu16(_mm_min_epu8(least, _mm_srli_epi16(least, 8)))) & 255;
  }
  static uint64_t load_mask(const uint32_t* words) {
    uint64_t mask;
    std::memcpy(&mask, words, sizeof(mask));
    return mask;
  }
  static void store_mask(uint32_t* words, uint64_t mask) { std::memcpy(words, &mask, sizeof(mask)); }
  static Byte where_mask(uint64_t mask, Byte yes, Byte no) { return _mm512_mask_mov_epi8(no, mask, yes); }
  static uint64_t mask_le(Byte a, Byte b) { return _mm512_cmple_epu8_mask(a, b); }

  // Looks the bytes of 64 entries up at once; exact, for what they add up to is an integer.
  static int64_t table_sum(const Table& table, const uint8_t* m, const uint32_t* mask, int64_t words, int64_t least, int64_t most) {
    if (most - least > 63) return bnn::table_sum(table, m, mask, words, least);
    const __m512i zero = _mm512_setzero_si512(), base = set_byte(static_cast<uint8_t>(least));
    __m512i bytes[4], sum[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) bytes[i] = _mm512_load_si512(table.bytes[i]), sum[i] = zero;
    for (int64_t w = 0; w < words; w += 2) {
      const __m512i place = _mm512_sub_epi8(load_bytes(m + w * WORD_BITS), base);
      const uint64_t keys = load_mask(mask + w);
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++)
        sum[i] = _mm512_add_epi64(sum[i], _mm512_sad_epu8(_mm512_maskz_permutexvar_epi8(keys, place, bytes[i]), zero));
    }
    int64_t total = 0;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) total += static_cast<int64_t>(static_cast<uint64_t>(_mm512_reduce_add_epi64(sum[i])) << 8 * i);
    return total;
  }
};

}  // namespace

const SequenceKernel sequence_avx512 = {Sequence512::lanes, Sequence512::rows, scan<Sequence512>, attend<Sequence512>,
                                        pack_normalized<Sequence512>};

}  // namespace bnn

BNN_TARGET_END

#endif
