// Recurrent networks and attention: instruction sets and threads.

#include "sequence.hpp"

#include "parallel.hpp"

namespace bnn {
namespace {

const SequenceKernel& sequence_kernel([[maybe_unused]] int64_t isa) {
#if defined(__x86_64__)
  if (isa == AVX2) return sequence_avx2;
  if (isa == AVX512 || isa == AMX) return sequence_avx512;
#endif
  return sequence_portable;
}

}  // namespace

int64_t sequence_lanes(int64_t isa) { return sequence_kernel(isa).lanes; }

// Sequences are shared among threads; the steps of one are not.
void lstm(int64_t isa, const Lstm& p) {
  const SequenceKernel& kernel = sequence_kernel(isa);
  const int64_t work = p.steps * p.batch * p.directions * GATES * p.outputs * p.units;
  parallel(p.directions * p.batch, work < SERIAL_WORK ? 1 : p.threads, [&](int64_t first, int64_t last) {
    for (int64_t d = 0; d < p.directions; d++) {
      const int64_t from = std::max(first, d * p.batch), to = std::min(last, (d + 1) * p.batch);
      if (from < to) kernel.lstm(p, d, from - d * p.batch, to - d * p.batch);
    }
  });
}

void attention(int64_t isa, const Attention& p) {
  const SequenceKernel& kernel = sequence_kernel(isa);
  const int64_t heads = p.batch * p.heads, work = heads * p.queries * p.keys * (p.features + p.planes * p.values);
  parallel(heads * divide_up(p.queries, kernel.rows), work < SERIAL_WORK ? 1 : p.threads,
           [&](int64_t first, int64_t last) { kernel.attend(p, first, last); });
}

void normalized(int64_t isa, int64_t threads, const Normalized& p) {
  const SequenceKernel& kernel = sequence_kernel(isa);
  parallel(p.rows, p.rows * p.channels < SERIAL_WORK / 32 ? 1 : threads,
           [&](int64_t first, int64_t last) { kernel.normalized(p, first, last); });
}

}  // namespace bnn
