// AMX in plain C++: amx.hpp on any machine, for tests. Written after Intel's description of the instructions.

#include <cstdlib>
#include <cstring>

#include "amx.hpp"
#include "downsample_amx.hpp"
#include "isa.hpp"
#include "products_loops.hpp"
#include "simd_portable.hpp"

namespace bnn {
namespace {

struct EmulatedTiles {
  struct State {
    bool configured = false;
    alignas(ALIGNMENT) int8_t tiles[8][16][64];
  };
  static State& state() {
    thread_local State state;
    return state;
  }
  // A processor raises an invalid-opcode fault.
  static int8_t (&tile(int number))[16][64] {
    if (!state().configured) std::abort();
    return state().tiles[number];
  }

  class Configuration {
   public:
    Configuration() {
      state().configured = true;
      std::memset(state().tiles, 0, sizeof(state().tiles));
    }
    ~Configuration() { state().configured = false; }
  };

  template <int TILE>
  static void zero() {
    std::memset(tile(TILE), 0, TILE_BYTES);
  }
  template <int TILE>
  static void load(const void* rows, int64_t stride) {
    for (int row = 0; row < 16; row++) std::memcpy(tile(TILE)[row], static_cast<const char*>(rows) + row * stride, 64);
  }
  template <int TILE>
  static void store(void* rows, int64_t stride) {
    for (int row = 0; row < 16; row++) std::memcpy(static_cast<char*>(rows) + row * stride, tile(TILE)[row], 64);
  }
  // sums[m][n] += the products of four bytes each, A[m][4 k ...] and B[k][4 n ...], over all k.
  template <int SUMS, int A, int B>
  static void multiply_add() {
    multiply_add_as<int8_t, SUMS, A, B>();
  }
  template <int SUMS, int A, int B>
  static void multiply_add_unsigned() {
    multiply_add_as<uint8_t, SUMS, A, B>();
  }
  template <class Byte, int SUMS, int A, int B>
  static void multiply_add_as() {
    const auto &a = tile(A), &b = tile(B);
    for (int m = 0; m < 16; m++) {
      uint32_t sums[16];  // modulo 2^32
      std::memcpy(sums, tile(SUMS)[m], sizeof(sums));
      for (int k = 0; k < 16; k++)
        for (int n = 0; n < 16; n++)
          for (int i = 0; i < 4; i++) sums[n] += static_cast<uint32_t>(static_cast<Byte>(a[m][4 * k + i]) * b[k][4 * n + i]);
      std::memcpy(tile(SUMS)[m], sums, sizeof(sums));
    }
  }

  // Pairs of bfloat16, A[m][2 k ...] and B[k][2 n ...]: the even and the odd products apart. Every product is exact in float32.
  // The processor also takes subnormal numbers for zero.
  template <int SUMS, int A, int B>
  static void multiply_add_bfloat16() {
    const auto &a = tile(A), &b = tile(B);
    const auto number = [](const int8_t* at) {
      uint16_t half;
      std::memcpy(&half, at, sizeof(half));
      return bfloat16_to_float(half);
    };
    for (int m = 0; m < 16; m++) {
      float sums[16];
      std::memcpy(sums, tile(SUMS)[m], sizeof(sums));
      for (int n = 0; n < 16; n++) {
        float even = 0, odd = 0;
        for (int k = 0; k < 16; k++) {
          even += number(&a[m][4 * k]) * number(&b[k][4 * n]);
          odd += number(&a[m][4 * k + 2]) * number(&b[k][4 * n + 2]);
        }
        sums[n] += even + odd;
      }
      std::memcpy(tile(SUMS)[m], sums, sizeof(sums));
    }
  }

  static void signs(uint64_t bits, uint64_t channels, int8_t* bytes) {
    for (int i = 0; i < 64; i++) bytes[i] = (channels >> i & 1) == 0 ? 0 : (bits >> i & 1) != 0 ? 1 : -1;
  }
};

}  // namespace

const ProductKernel products_emulated = product_kernel_for<EmulatedTiles>;

const Kernel amx_emulated = {
    .name = "amx-emulated",
    .block_pixels = BLOCK_PIXELS,
    .binary = amx_accumulator<EmulatedTiles, AmxSigns>,
    .int8 = amx_accumulator<EmulatedTiles, AmxBytes>,
    .fused = portable.fused,
    .signs = portable.signs,
    .quantize = portable.quantize,
    .pack = portable.pack,
    .downsample_pixels = DOWNSAMPLE_PIXELS,
    .downsample_bytes = amx_downsample_bytes,
    .prepare_downsample = amx_prepare_downsample,
    .downsample = amx_downsample<EmulatedTiles, Portable>,
    .pool_rows = portable.pool_rows,
    .weighted_sum = portable.weighted_sum,
    .fold = portable.fold,
    .largest = portable.largest,
    .stem_room = portable.stem_room,
    .stem = portable.stem,
    .binary_ceiling = nullptr,
    .float_ceiling = nullptr,
};

}  // namespace bnn
