// Training on any processor.

#include "training_loops.hpp"

namespace bnn {
namespace {

struct TrainingPortable : Portable {
  using Rest = Single;

  typedef int16_t Short __attribute__((vector_size(8)));
  static Float from_int16(const int16_t* p) { return __builtin_convertvector(copy<Short>(p), Float); }
  static void store_int16(int16_t* p, const int32_t* v) {
    const Short sums = __builtin_convertvector(copy<Int>(v), Short);
    std::memcpy(p, &sums, sizeof(sums));
  }
  static Float where(uint32_t mask, Float yes, Float no) {
    const Int keep = (static_cast<int32_t>(mask) & Int{1, 2, 4, 8}) != 0;
    return keep ? yes : no;
  }
};

}  // namespace

const TrainingKernel training_portable = training_kernel<TrainingPortable>;

}  // namespace bnn
