// AMX int8: Sapphire Rapids and later, where the operating system lets the process use its tiles.
#include "isa.hpp"

#if defined(BNN_AMX)

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "products.hpp"
#include "target.hpp"

BNN_TARGET("avx2,fma,f16c,bmi2,popcnt,avx512f,avx512bw,avx512vl,avx512dq,avx512vpopcntdq")

#include "amx.hpp"
#include "ceiling.hpp"
#include "downsample_amx.hpp"
#include "products_loops.hpp"
#include "simd_avx512.hpp"

namespace bnn {
namespace {

// As assembly, not as intrinsics: those of GCC 12 tell the compiler neither what ldtilecfg reads nor that tiles use memory.
struct Tiles {
  // All eight tiles 16 x 64 bytes for as long as this lives; then as they were, for libraries that keep theirs configured.
  class Configuration {
   public:
    Configuration() {
      alignas(ALIGNMENT) Bytes ours = {};
      ours.palette = 1;
      std::fill_n(ours.row_bytes, 8, 64);
      std::fill_n(ours.rows, 8, 16);
      asm volatile("sttilecfg %0" : "=m"(before_));
      asm volatile("ldtilecfg %0" : : "m"(ours));
    }
    ~Configuration() { asm volatile("ldtilecfg %0" : : "m"(before_) : "memory"); }

   private:
    struct Bytes {
      uint8_t palette, start_row, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    };
    alignas(ALIGNMENT) Bytes before_;
  };

  template <int TILE>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(TILE));
  }
  template <int TILE>
  static void load(const void* rows, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(rows), "r"(stride), "i"(TILE) : "memory");
  }
  template <int TILE>
  static void store(void* rows, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(rows), "r"(stride), "i"(TILE) : "memory");
  }
  template <int SUMS, int A, int B>
  static void multiply_add() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUMS), "i"(A), "i"(B));
  }
  template <int SUMS, int A, int B>
  static void multiply_add_unsigned() {  // A
    asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUMS), "i"(A), "i"(B));
  }

  template <int SUMS, int A, int B>
  static void multiply_add_bfloat16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUMS), "i"(A), "i"(B));
  }

  // 64 bits to bytes: 1 to +1, 0 to -1, and 0 where the bit of `channels` is 0.
  static void signs(uint64_t bits, uint64_t channels, int8_t* bytes) {
    const __m512i signs = _mm512_mask_blend_epi8(bits, _mm512_set1_epi8(-1), _mm512_set1_epi8(1));
    _mm512_store_si512(bytes, _mm512_maskz_mov_epi8(channels, signs));
  }
};

// With signs in the tiles: the processor multiplies zeros faster.
double binary_ceiling() {
  const Tiles::Configuration configuration;
  alignas(ALIGNMENT) int8_t bytes[TILE_BYTES];
  uint64_t bits = 1;
  for (int64_t row = 0; row < ROWS; row++, bits = bits * 6364136223846793005 + 1442695040888963407)
    Tiles::signs(bits, ~uint64_t{0}, bytes + row * DEPTH);
  Tiles::load<4>(bytes, DEPTH);
  Tiles::load<6>(bytes, DEPTH);
  return rate(MOST_TILES * ROWS * ROWS * DEPTH, [](int64_t steps) {
    for (int64_t i = 0; i < steps; i++) {
      Tiles::multiply_add<0, 4, 6>();
      Tiles::multiply_add<1, 4, 6>();
      Tiles::multiply_add<2, 4, 6>();
      Tiles::multiply_add<3, 4, 6>();
    }
  });
}

}  // namespace

const ProductKernel products_amx = product_kernel_for<Tiles>;

}  // namespace bnn

BNN_TARGET_END

namespace bnn {
namespace {

// The processor has tiles and products of int8 and bfloat16, and the operating system saves tiles (XCR0) and grants them to this process.
bool amx_granted() {
  constexpr unsigned amx_bf16 = 1U << 22, amx_tile = 1U << 24, amx_int8 = 1U << 25, osxsave = 1U << 27, tile_state = 3U << 17;
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a, b, c, d, low, high;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & osxsave)) return false;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if ((low & tile_state) != tile_state) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & amx_bf16) || !(d & amx_tile) || !(d & amx_int8)) return false;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}

}  // namespace

bool has_amx() {
  static const bool granted = has_avx512() && amx_granted();
  return granted;
}

const Kernel amx = {
    .name = "amx",
    .block_pixels = BLOCK_PIXELS,
    .binary = amx_accumulator<Tiles, AmxSigns>,
    .int8 = amx_accumulator<Tiles, AmxBytes>,
    .fused = avx512.fused,
    .signs = avx512.signs,
    .quantize = avx512.quantize,
    .pack = avx512.pack,
    .downsample_pixels = DOWNSAMPLE_PIXELS,
    .downsample_bytes = amx_downsample_bytes,
    .prepare_downsample = amx_prepare_downsample,
    .downsample = amx_downsample<Tiles, Avx512>,
    .pool_rows = avx512.pool_rows,
    .weighted_sum = avx512.weighted_sum,
    .fold = avx512.fold,
    .largest = avx512.largest,
    .stem_room = avx512.stem_room,
    .stem = avx512.stem,
    .binary_ceiling = binary_ceiling,
    .float_ceiling = avx512.float_ceiling,
};

}  // namespace bnn

#endif
