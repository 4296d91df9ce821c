// The C interface that engine.py calls through ctypes. Arguments are checked there.
// Functions that can fail return null or a sentence.

#include <time.h>

#include <atomic>
#include <cstdio>
#include <exception>
#include <new>
#include <utility>

#include "driver.hpp"
#include "layout.hpp"
#include "products.hpp"
#include "sequence.hpp"
#include "training.hpp"
#include "updates.hpp"

#define BNN_API extern "C" __attribute__((visibility("default")))

namespace {

template <class Body>
const char* guarded(const Body& body) {
  try {
    body();
    return nullptr;
  } catch (const std::bad_alloc&) {
    return "the engine is out of memory for its working buffers";
  } catch (const std::exception& error) {
    thread_local char sentence[256];  // valid until the next error of this thread
    std::snprintf(sentence, sizeof(sentence), "the engine failed: %s", error.what());
    return sentence;
  }
}

std::atomic<int64_t> run_clock{-1};
thread_local double run_seconds = 0;

// Adds the time that it lives to run_seconds.
class Stopwatch {
 public:
  Stopwatch() : clock_(run_clock), start_(now()) {}
  ~Stopwatch() { run_seconds += now() - start_; }

 private:
  double now() const {
    timespec t = {};
    if (clock_ >= 0) clock_gettime(static_cast<clockid_t>(clock_), &t);
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
  }

  int64_t clock_;
  double start_;
};

}  // namespace

// Raised whenever a struct of engine.hpp or a function below changes.
BNN_API int64_t bnn_version() { return 20; }

// "Name:<bytes> field:<offset> ..." of a struct that Python fills in, empty for another name; valid until the thread asks again.
BNN_API const char* bnn_struct_layout(const char* name) {
  thread_local std::string text;
  text = bnn::layout(name);
  return text.c_str();
}

// 1 where this processor has the instruction set.
BNN_API int64_t bnn_has(int64_t isa) { return bnn::kernel(isa) != nullptr; }

BNN_API int64_t bnn_prepared_bytes(const bnn::Conv* conv) { return bnn::kernel(conv->isa)->accumulator(*conv).prepared_bytes(*conv); }

BNN_API void bnn_prepare(const bnn::Conv* conv, const uint32_t* weight, const uint8_t* zeros, void* prepared) {
  bnn::kernel(conv->isa)->accumulator(*conv).prepare(*conv, weight, zeros, prepared);
}

// Operators one by one, for programs in C++ (tests/test_kernels/exactness.cpp); Python runs them by bnn_run.
BNN_API const char* bnn_conv2d(const bnn::Conv* conv, const void* x, const void* prepared, int32_t* y) {
  return guarded([&] { bnn::conv2d(*conv, x, prepared, y); });
}

BNN_API const char* bnn_conv2d_sign(const bnn::Conv* conv, const void* x, const void* prepared, const bnn::Signs* signs) {
  return guarded([&] { bnn::conv2d_sign(*conv, x, prepared, *signs); });
}

BNN_API const char* bnn_block2d(const bnn::Conv* conv, const void* x, const void* prepared, const bnn::Fused* fused) {
  return guarded([&] { bnn::block2d(*conv, x, prepared, *fused); });
}

BNN_API const char* bnn_pack(int64_t isa, int64_t threads, const bnn::Packing* packing) {
  return guarded([&] { bnn::pack(*bnn::kernel(isa), *packing, threads); });
}

BNN_API int64_t bnn_downsample_bytes(int64_t isa, int64_t channels, int64_t outputs) {
  return bnn::kernel(isa)->downsample_bytes(channels, outputs);
}

BNN_API void bnn_prepare_downsample(int64_t isa, int64_t channels, int64_t outputs, const float* weight, void* prepared) {
  bnn::kernel(isa)->prepare_downsample(channels, outputs, weight, prepared);
}

// Operators one after another, their addresses filled in from `bases`: see driver.hpp.
BNN_API const char* bnn_run(const int64_t* code, int64_t words, const bnn::Link* links, int64_t count, const int64_t* bases) {
  const Stopwatch stopwatch;
  return guarded([&] { bnn::run(code, words, links, count, bases); });
}

// From now on bnn_run is timed by this clock of clock_gettime; -1: no more.
BNN_API void bnn_time_runs(int64_t clock) { run_clock = clock; }

// What bnn_run took in this thread since this was last asked, in seconds.
BNN_API double bnn_run_seconds() { return std::exchange(run_seconds, 0.0); }

BNN_API int64_t bnn_sequence_lanes(int64_t isa) { return bnn::sequence_lanes(isa); }

BNN_API const char* bnn_lstm(int64_t isa, const bnn::Lstm* lstm) {
  return guarded([&] { bnn::lstm(isa, *lstm); });
}

BNN_API const char* bnn_attention(int64_t isa, const bnn::Attention* attention) {
  return guarded([&] { bnn::attention(isa, *attention); });
}

BNN_API const char* bnn_normalized(int64_t isa, int64_t threads, const bnn::Normalized* normalized) {
  return guarded([&] { bnn::normalized(isa, threads, *normalized); });
}

// Passes of training, each of a struct of its own.
#define BNN_TRAINING(name, Struct) \
  BNN_API const char* bnn_##name(int64_t isa, const bnn::Struct* call) { \
    return guarded([&] { bnn::name(isa, *call); }); \
  }
BNN_TRAINING(operand, Operand)
BNN_TRAINING(norm_sums, NormSums)
BNN_TRAINING(norm_forward, NormForward)
BNN_TRAINING(norm_backward, NormBackward)
BNN_TRAINING(sign_backward, SignBackward)
BNN_TRAINING(latent_backward, LatentBackward)
BNN_TRAINING(unpack_signs, Signs2Float)
BNN_TRAINING(sign_products, SignProducts)

// What follows the backward pass, for lists of tensors.
BNN_API const char* bnn_clip(int64_t threads, int64_t count, const int64_t* units, const int64_t* lengths, float* const* x,
                             double limit) {
  return guarded([&] { bnn::clip({threads, count, units, lengths}, x, limit); });
}

BNN_API const char* bnn_count_flips(int64_t threads, int64_t count, const int64_t* units, const int64_t* lengths,
                                    const float* const* x, int8_t* const* last, float* const* shares) {
  return guarded([&] { bnn::count_flips({threads, count, units, lengths}, x, last, shares); });
}

BNN_API const char* bnn_flip(int64_t threads, int64_t count, const int64_t* units, const int64_t* lengths, float* const* x,
                             const float* const* grad, float* const* momentum, double gamma, double threshold) {
  return guarded([&] { bnn::flip({threads, count, units, lengths}, x, grad, momentum, gamma, threshold); });
}

BNN_API const char* bnn_clip_units(int64_t threads, int64_t count, const int64_t* units, const int64_t* lengths,
                                   const float* const* x, float* const* grad, double ratio, double eps) {
  return guarded([&] { bnn::clip_units({threads, count, units, lengths}, x, grad, ratio, eps); });
}

// Multiply-accumulates per second of one core, 1-bit and float32; 0 where the instruction set has no measurement.
BNN_API void bnn_ceilings(int64_t isa, double* rates) {
  const bnn::Kernel& kernel = *bnn::kernel(isa);
  rates[0] = kernel.binary_ceiling ? kernel.binary_ceiling() : 0;
  rates[1] = kernel.float_ceiling ? kernel.float_ceiling() : 0;
}
