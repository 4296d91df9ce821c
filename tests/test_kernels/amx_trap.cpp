// A processor without AMX runs the engine's real AMX code: it traps at every tile instruction, and a handler does what the
// instruction would. Written after Intel's manual, not after the engine, so that wrong encodings, operands, strides and tile
// configurations show. Linked with the engine's files for AMX and AVX-512 in place of isa.cpp.

#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <ucontext.h>

#include "isa.hpp"
#include "sequence.hpp"

namespace {

struct Configuration {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(Configuration) == 64);

thread_local Configuration configuration;
thread_local int8_t tiles[8][16][64];

// In the order of `names` in amx_trap.py.
enum Operation { LDTILECFG, STTILECFG, TILEZERO, TILELOADD, TILESTORED, TDPBSSD, TDPBUSD, TDPBF16PS, OPERATIONS };
uint64_t executed[OPERATIONS] = {};

// Subnormal numbers count as zero, as operands and as results; the processor asks no rounding mode.
float flush(float v) { return std::fpclassify(v) == FP_SUBNORMAL ? std::copysign(0.0F, v) : v; }
float bfloat16(const int8_t* bytes) {
  const uint32_t bits = static_cast<uint32_t>(static_cast<uint8_t>(bytes[0])) << 16 |
                        static_cast<uint32_t>(static_cast<uint8_t>(bytes[1])) << 24;
  float v;
  std::memcpy(&v, &bits, 4);
  return flush(v);
}

[[noreturn]] void fault(const char* why, const uint8_t* at) {
  std::fprintf(stderr, "amx_trap: %s at %02x %02x %02x %02x %02x\n", why, at[0], at[1], at[2], at[3], at[4]);
  std::abort();
}

struct Instruction {
  const uint8_t* at;
  const greg_t* registers;
  int prefix, opcode, reg, rm, vvvv, length;
  bool memory;
  uint64_t base = 0, stride = 0;

  uint64_t value(int number) const {
    constexpr int order[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                             REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return static_cast<uint64_t>(registers[order[number]]);
  }

  Instruction(const uint8_t* code, const greg_t* all) : at(code), registers(all) {
    if (code[0] != 0xc4 || (code[1] & 31) != 2 || (code[2] & 0x84) != 0) fault("no tile instruction", code);
    const int extra_x = code[1] & 0x40 ? 0 : 8, extra_b = code[1] & 0x20 ? 0 : 8;
    vvvv = ~(code[2] >> 3) & 15;
    prefix = code[2] & 3;
    opcode = code[3];
    const int mod = code[4] >> 6;
    reg = code[4] >> 3 & 7;
    rm = code[4] & 7;
    memory = mod != 3;
    const uint8_t* next = code + 5;
    if (memory) {
      int displacement = mod == 1 ? 1 : mod == 2 ? 4 : 0;
      bool relative = false;
      if (rm == 4) {
        const int sib = *next++, index = (sib >> 3 & 7) + extra_x;
        if (index != 4) stride = value(index) << (sib >> 6);
        if ((sib & 7) == 5 && mod == 0) displacement = 4;
        else base = value((sib & 7) + extra_b);
      } else if (rm == 5 && mod == 0) {
        relative = true;
        displacement = 4;
      } else {
        base = value(rm + extra_b);
      }
      int32_t offset = 0;
      if (displacement == 1) offset = static_cast<int8_t>(*next);
      if (displacement == 4) std::memcpy(&offset, next, 4);
      next += displacement;
      base += offset + (relative ? reinterpret_cast<uint64_t>(next) : 0);
    }
    length = static_cast<int>(next - code);
  }

  void check(int tile) const {
    if (configuration.palette != 1) fault("tiles are not configured", at);
    if (tile > 7 || configuration.rows[tile] == 0) fault("this tile is not configured", at);
  }

  void copy(int tile, bool load) const {
    check(tile);
    if (load) std::memset(tiles[tile], 0, sizeof(tiles[tile]));
    for (int row = 0; row < configuration.rows[tile]; row++) {
      void* memory_row = reinterpret_cast<void*>(base + row * stride);
      if (load) std::memcpy(tiles[tile][row], memory_row, configuration.row_bytes[tile]);
      else std::memcpy(memory_row, tiles[tile][row], configuration.row_bytes[tile]);
    }
  }

  // `add(sum, row, column)` adds the products of a row of A, four bytes at a time, with a column of B, four bytes of each row.
  template <class Number, class Add>
  void multiply_add(int sums, int a, int b, const Add& add) const {
    check(sums), check(a), check(b);
    if (sums == a || sums == b || a == b) fault("tiles of a product must differ", at);
    const int depth = configuration.row_bytes[a] / 4;
    if (configuration.rows[a] != configuration.rows[sums] || configuration.row_bytes[b] != configuration.row_bytes[sums] ||
        configuration.rows[b] != depth)
      fault("sizes of the tiles do not fit", at);
    for (int m = 0; m < configuration.rows[sums]; m++)
      for (int n = 0; n < configuration.row_bytes[sums] / 4; n++) {
        Number sum;
        std::memcpy(&sum, &tiles[sums][m][4 * n], 4);
        sum = add(sum, depth, tiles[a][m], &tiles[b][0][4 * n]);
        std::memcpy(&tiles[sums][m][4 * n], &sum, 4);
      }
  }

  template <class Byte>
  static int32_t add_bytes(int32_t sum, int depth, const int8_t* row, const int8_t* column) {
    for (int k = 0; k < depth; k++)
      for (int i = 0; i < 4; i++) sum += static_cast<Byte>(row[4 * k + i]) * column[64 * k + i];
    return sum;
  }

  static float add_bfloat16(float sum, int depth, const int8_t* row, const int8_t* column) {
    float part[2] = {};  // of even and of odd terms
    for (int k = 0; k < depth; k++)
      for (int i = 0; i < 2; i++)
        part[i] = flush(std::fma(bfloat16(row + 4 * k + 2 * i), bfloat16(column + 64 * k + 2 * i), part[i]));
    return flush(flush(sum) + flush(part[0] + part[1]));
  }

  Operation run() const {
    constexpr int none = 0, x66 = 1, xf3 = 2, xf2 = 3;
    if (opcode == 0x49 && prefix == none && memory) {
      std::memcpy(&configuration, reinterpret_cast<void*>(base), 64);
      std::memset(tiles, 0, sizeof(tiles));
      if (configuration.palette > 1) fault("unknown palette", at);
      return LDTILECFG;
    }
    if (opcode == 0x49 && prefix == x66 && memory) {
      std::memcpy(reinterpret_cast<void*>(base), &configuration, 64);
      return STTILECFG;
    }
    if (opcode == 0x49 && prefix == xf2 && !memory) {
      check(reg);
      std::memset(tiles[reg], 0, sizeof(tiles[reg]));
      return TILEZERO;
    }
    if (opcode == 0x4b && memory && rm == 4 && (prefix == xf2 || prefix == xf3)) {
      copy(reg, prefix == xf2);
      return prefix == xf2 ? TILELOADD : TILESTORED;
    }
    if (opcode == 0x5e && prefix == xf2 && !memory) {
      multiply_add<int32_t>(reg, rm, vvvv, add_bytes<int8_t>);
      return TDPBSSD;
    }
    if (opcode == 0x5e && prefix == x66 && !memory) {
      multiply_add<int32_t>(reg, rm, vvvv, add_bytes<uint8_t>);
      return TDPBUSD;
    }
    if (opcode == 0x5c && prefix == xf3 && !memory) {
      multiply_add<float>(reg, rm, vvvv, add_bfloat16);
      return TDPBF16PS;
    }
    fault("not one of the eight tile instructions", at);
  }
};

void handle(int, siginfo_t*, void* context) {
  greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const Instruction instruction(reinterpret_cast<const uint8_t*>(registers[REG_RIP]), registers);
  __atomic_fetch_add(&executed[instruction.run()], 1, __ATOMIC_RELAXED);
  registers[REG_RIP] += instruction.length;
}

const int installed = [] {
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO;
  return sigaction(SIGILL, &action, nullptr);
}();

}  // namespace

namespace bnn {

extern const SequenceKernel sequence_portable = {}, sequence_avx2 = {}, sequence_avx512 = {};
bool has_avx512() { return true; }
const Kernel* kernel(int64_t) { return &amx; }

}  // namespace bnn

// How often an instruction trapped so far, and whether this thread's tiles are configured.
extern "C" __attribute__((visibility("default"))) uint64_t amx_trap_executed(int operation) { return executed[operation]; }
extern "C" __attribute__((visibility("default"))) int amx_trap_configured() { return configuration.palette; }
