// Training on any processor.

#include "training_loops.hpp"

namespace bnn {
namespace {

struct TrainingPortable : Portable {
  static Float where(uint32_t mask, Float yes, Float no) {
    const Int keep = (static_cast<int32_t>(mask) & Int{1, 2, 4, 8}) != 0;
    return keep ? yes : no;
  }
};

}  // namespace

const TrainingKernel training_portable = training_kernel<TrainingPortable>;

}  // namespace bnn
