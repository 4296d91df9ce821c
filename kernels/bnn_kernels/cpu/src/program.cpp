// Calls that follow each other, as data: see `bnn_run` in api.cpp.

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "driver.hpp"

namespace bnn {
namespace {

class Arguments {
 public:
  explicit Arguments(const int64_t* at) : at_(at) {}

  int64_t number() { return *at_++; }
  template <class T>
  T* pointer() {
    return reinterpret_cast<T*>(number());
  }
  template <class Struct>
  Struct fields() {
    static_assert(sizeof(Struct) % sizeof(int64_t) == 0);
    Struct s;
    std::memcpy(&s, at_, sizeof(s));
    at_ += sizeof(s) / sizeof(int64_t);
    return s;
  }

 private:
  const int64_t* at_;
};

// A convolution's first three arguments.
struct Convolution {
  const Conv& conv;
  const void *x, *prepared;

  explicit Convolution(Arguments& from)
      : conv(*from.pointer<const Conv>()), x(from.pointer<const void>()), prepared(from.pointer<const void>()) {}
};

void call(Operation operation, Arguments from) {
  switch (operation) {
    case CONV2D: {
      const Convolution c(from);
      return conv2d(c.conv, c.x, c.prepared, from.pointer<int32_t>());
    }
    case CONV2D_SIGN: {
      const Convolution c(from);
      return conv2d_sign(c.conv, c.x, c.prepared, from.fields<Signs>());
    }
    case BLOCK2D: {
      const Convolution c(from);
      return block2d(c.conv, c.x, c.prepared, from.fields<Fused>());
    }
    case POOLED2D: {
      const Convolution c(from);
      const Fused fused = from.fields<Fused>();
      return pooled2d(c.conv, c.x, c.prepared, fused, from.fields<Windows>());
    }
    case POOL2D: {
      const int64_t isa = from.number(), threads = from.number();
      return pool2d(*kernel(isa), from.fields<Pool>(), threads);
    }
    case PLANES: {
      const int64_t threads = from.number();
      return planes(from.fields<Planes>(), threads);
    }
    case CONCAT: {
      const int64_t isa = from.number(), threads = from.number();
      const Concat c = from.fields<Concat>();
      return concat(*kernel(isa), c, from.fields<Packing>(), threads);
    }
    case WEIGHTED_SUM: {
      const int64_t isa = from.number(), threads = from.number();
      const WeightedSum s = from.fields<WeightedSum>();
      return weighted_sum(*kernel(isa), s, from.fields<Fused>(), threads);
    }
    case PACK: {
      const int64_t isa = from.number(), threads = from.number();
      return pack(*kernel(isa), from.fields<Packing>(), threads);
    }
    case DOWNSAMPLE: {
      const int64_t isa = from.number(), threads = from.number();
      return downsample(*kernel(isa), from.fields<Downsample>(), threads);
    }
    case QUANTIZE: {
      const int64_t isa = from.number(), threads = from.number();
      return quantize(*kernel(isa), from.fields<Quantizing>(), threads);
    }
    case STEM: {
      const int64_t isa = from.number(), threads = from.number();
      const Stem s = from.fields<Stem>();
      return stem(*kernel(isa), s, from.fields<Fused>(), threads);
    }
  }
  throw std::invalid_argument("operation " + std::to_string(operation) + " is unknown");
}

}  // namespace

void run(const int64_t* code, int64_t words, const Link* links, int64_t count, const int64_t* bases) {
  thread_local std::vector<int64_t> linked;
  linked.assign(code, code + words);
  for (const Link* link = links; link != links + count; link++) linked[link->place] = bases[link->base] + link->offset;
  for (const int64_t* record = linked.data(); record != linked.data() + words; record += record[0])
    call(static_cast<Operation>(record[1]), Arguments(record + 2));
}

}  // namespace bnn
