// Recurrent networks and attention: the calls, and what each instruction set contributes to them.
//
// Both count bits in one kind of tile, `count` of sequence_count.hpp: a few rows of words against weights that lie lanes side by
// side. lstm.hpp and attention.hpp are what surrounds it; a file sequence_*.cpp per instruction set brings them together.
#pragma once

#include "engine.hpp"

namespace bnn {

enum Gates : int64_t { SOFT, BINARY_IF, BINARY };
constexpr int64_t GATES = 4;  // i, f, g, o

// bnn_kernels/recurrence.py over whole sequences.
struct Lstm {
  int64_t threads, steps, batch, directions, units, outputs;
  int64_t inputs;  // of one gate of x: units or outputs
  int64_t integer_x;  // 1: x is int32, 0: float32
  int64_t gates;  // enum Gates
  int64_t sign_candidate, cell_readout, and_feedback, integer_cell, normalize;  // 0 or 1
  double eps;
  const void* x;  // [steps][batch][directions][4][inputs]
  const uint32_t* weight;  // [directions][chunks][words][4][lanes]: chunks of outputs, filled up with zeros
  const float *scale, *scale_x, *bias;  // [directions][replicas][chunks][4][lanes], scale_x and bias or null
  const float* threshold;  // [directions][replicas][chunks][lanes], or null: 0
  const uint32_t* h_first;  // [directions][batch][words]
  const void* cell_first;  // [directions][batch][units] float32 or int8
  const int64_t* lengths;  // [batch], or null: all steps
  float* h;  // [steps][batch][directions][units], or null
  uint32_t* bits;  // [steps][batch][directions][words], or null
  uint32_t* h_last;
  void* cell_last;

  int64_t words() const { return divide_up(units, WORD_BITS); }
  int64_t replicas() const { return units / outputs; }
};

enum Rule : int64_t { BOOL, MAX_RELATIVE, ELASTIC };
constexpr int64_t MOST_FEATURES = 255;  // of a head: scores are counted in bytes

// bnn_kernels/attention.py.
struct Attention {
  int64_t threads, batch, heads, queries, keys, features, values, planes;
  int64_t mask_batch, mask_queries;  // 1: the mask has this dimension
  int64_t table_heads;  // 1: the table has a row per head
  const int64_t* rules;  // [planes]
  const double* limit;  // [planes][heads]
  const int32_t* table;  // [heads or 1][features + 1], or null
  const float* scale;  // [planes][heads], or null: one plane as int32
  const uint32_t *q, *k;  // [batch][tokens][heads][words]
  const uint32_t* v;  // [batch][heads][values][key words]
  const uint32_t* mask;  // [batch or 1][queries or 1][key words], or null
  void* y;  // [batch][queries][heads][values] float32, or int32 without scale

  int64_t words() const { return divide_up(features, WORD_BITS); }
  int64_t key_words() const { return divide_up(keys, WORD_BITS); }
};

// bit = x >= mean + std * threshold, or <= where flipped.
struct Normalized {
  int64_t rows, channels, dtype;
  const void* x;  // [rows][channels]
  const float *mean, *std;  // [rows]
  const float* threshold;  // [channels]
  const uint32_t* flip;  // [words]
  uint32_t* words;  // [rows][words]
};

int64_t sequence_lanes(int64_t isa);
void lstm(int64_t isa, const Lstm& p);
void attention(int64_t isa, const Attention& p);
void normalized(int64_t isa, int64_t threads, const Normalized& p);

// What one instruction set contributes.
struct SequenceKernel {
  int64_t lanes;  // weights and vectors of an LSTM lie so many side by side
  int64_t rows;  // of a tile
  void (*lstm)(const Lstm&, int64_t direction, int64_t first, int64_t last);  // sequences first <= n < last
  void (*attend)(const Attention&, int64_t first, int64_t last);  // blocks of `rows` queries, counted over batch and heads
  void (*normalized)(const Normalized&, int64_t first, int64_t last);  // rows
};

extern const SequenceKernel sequence_portable;
#if defined(__x86_64__)
extern const SequenceKernel sequence_avx2, sequence_avx512;
#endif

}  // namespace bnn
