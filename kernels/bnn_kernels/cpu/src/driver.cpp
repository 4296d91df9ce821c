// The loops around the kernels: blocks, chunks, threads.

#include "driver.hpp"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "parallel.hpp"

namespace bnn {
namespace {

// libgomp's threads do not survive a fork: a child that asks for them waits for ever.
std::atomic<bool> in_child{false};
const int at_fork = pthread_atfork(nullptr, nullptr, [] { in_child = true; });

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// Cuts one image into blocks of about one size: whole rows, or pieces of a row.
class Blocks {
 public:
  Blocks(const Conv& c, int64_t pixels)
      : conv_(c),
        rows_(divide_up(c.out_h, divide_up(c.out_h, std::max<int64_t>(1, pixels / c.out_w)))),
        pieces_(divide_up(c.out_w, pixels)),
        bands_(divide_up(c.out_h, rows_)) {}

  int64_t per_image() const { return bands_ * pieces_; }
  Block at(int64_t number) const {
    const int64_t image = number / per_image(), band = number % per_image() / pieces_, part = number % pieces_;
    return {image, band * rows_, std::min(conv_.out_h, (band + 1) * rows_), conv_.out_w * part / pieces_,
            conv_.out_w * (part + 1) / pieces_};
  }

 private:
  const Conv& conv_;
  int64_t rows_, pieces_, bands_;
};

enum Scratch { TILE, STAGE, STREAM, POOLED, ROWS, SCRATCHES };

// Memory of this thread, kept until it ends.
void* scratch(Scratch which, int64_t bytes) {
  thread_local std::unique_ptr<void, Free> memory[SCRATCHES];
  thread_local int64_t sizes[SCRATCHES] = {};
  if (bytes > sizes[which]) {
    sizes[which] = 0;
    memory[which].reset(std::aligned_alloc(ALIGNMENT, round_up(bytes, ALIGNMENT)));
    if (!memory[which]) throw std::bad_alloc();
    sizes[which] = bytes;
  }
  return memory[which].get();
}

// A block in work.
struct Work {
  const Kernel& kernel;
  const Plan& plan;
  Block block;
  int64_t pixel;  // its first one, of the whole batch
  const Accumulator& accumulator;
  const void *image, *prepared, *staged;

  void accumulate(const Chunk& chunk, int32_t* tile, int64_t stride) const {
    accumulator.accumulate(plan, block, chunk, image, prepared, staged, tile, stride);
  }
};

// Runs all blocks and chunks. `run(work, first, last)` computes the chunks from `first` to `last` - 1 of a block in this thread;
// with `whole_blocks` they are all of them.
template <class Run>
void convolve(const Conv& c, const void* x, const void* prepared, bool whole_blocks, const Run& run) {
  const Kernel& kernel = *bnn::kernel(c.isa);
  const Accumulator& accumulator = kernel.accumulator(c);
  const Plan& plan = remembered<Plan>(c);
  const Blocks blocks(c, kernel.block_pixels);
  const int64_t plane = c.out_h * c.out_w, chunks = c.groups * c.chunks(), unit = whole_blocks ? chunks : 1;
  const int64_t items = c.batch * blocks.per_image() * chunks;
  const bool serial = c.batch * plane * c.outputs * c.taps() * c.group_channels() < SERIAL_WORK;
  if (items == 0) return;
  parallel(items / unit, serial ? 1 : c.threads, [&](int64_t first, int64_t last) {
    void* staged = accumulator.scratch_bytes ? scratch(STAGE, accumulator.scratch_bytes(plan)) : nullptr;
    if (accumulator.begin) accumulator.begin(plan, prepared, staged);
    for (int64_t item = first * unit; item < last * unit;) {
      const Block block = blocks.at(item / chunks);
      const void* image = static_cast<const char*>(x) + block.image * c.height * c.width * c.pixel_bytes();
      if (accumulator.stage) accumulator.stage(plan, block, image, staged);
      const int64_t from = item % chunks, to = std::min(chunks, from + last * unit - item);
      run(Work{kernel, plan, block, block.image * plane + block.y0 * c.out_w + block.x0, accumulator, image, prepared, staged},
          from, to);
      item += to - from;
    }
  });
}

int32_t* tile_of(const Kernel& kernel) {
  return static_cast<int32_t*>(scratch(TILE, kernel.block_pixels * CHUNK * static_cast<int64_t>(sizeof(int32_t))));
}

// Whether every chunk of every replica starts at a word, so that it can write its words by itself.
bool chunks_are_words(const Conv& c, int64_t width, int64_t out_groups) {
  return (out_groups == 1 || width / out_groups % WORD_BITS == 0) && (c.groups == 1 || c.group_outputs() % WORD_BITS == 0) &&
         (width == c.outputs || c.outputs % WORD_BITS == 0);
}

// Packs rows of a block that were written as values, where `chunks_are_words` does not hold.
void pack_rows(const Work& work, const void* rows, int64_t width, int64_t groups, int64_t dtype, const float* threshold,
               uint32_t* words) {
  const int64_t pixels = work.block.pixels();
  const Packing packing{pixels, width, groups, dtype, 0, rows, threshold, words + work.pixel * packed_words(width, groups)};
  work.kernel.pack(packing, 0, pixels);
}

bool streams(const Work& work) { return work.accumulator.stream && !work.plan.conv.transposed; }

// Hands all sums of a block's chunks to a sink.
void pour(const Work& work, int64_t first, int64_t last, const Sink& sink) {
  int32_t* tile = tile_of(work.kernel);
  const Conv& c = work.plan.conv;
  if (streams(work))
    return work.accumulator.stream(work.plan, work.block, first, last, work.prepared, work.staged, tile, sink);
  for (int64_t number = first; number < last; number++) {
    const Chunk chunk = chunk_at(c, number);
    work.accumulate(chunk, tile, CHUNK);
    sink.take(chunk, tile, CHUNK, 0, work.block.pixels());
  }
}

// The sums themselves, to where their pixels are.
class Sums : public Sink {
 public:
  Sums(const Conv& c, int32_t* first) : conv_(c), first_(first) {}

  void take(const Chunk& chunk, const int32_t* rows, int64_t stride, int64_t pixel, int64_t pixels) const override {
    int32_t* to = first_ + pixel * conv_.outputs + chunk.group * conv_.group_outputs() + chunk.first;
    for (; pixels > 0; pixels--, to += conv_.outputs, rows += stride) std::memcpy(to, rows, chunk.count * sizeof(int32_t));
  }

 private:
  const Conv& conv_;
  int32_t* first_;
};

// The sums in half the bytes, and the totals of a block.
class ShortSums : public Sink {
 public:
  ShortSums(const Conv& c, Narrow narrow, int16_t* first, bool totals)
      : conv_(c), narrow_(narrow), first_(first), totals_(totals ? 2 * c.outputs : 0) {}

  void take(const Chunk& chunk, const int32_t* rows, int64_t stride, int64_t pixel, int64_t pixels) const override {
    const int64_t channel = chunk.group * conv_.group_outputs() + chunk.first;
    narrow_(rows, stride, pixels, chunk.count, first_ + pixel * conv_.outputs + channel, conv_.outputs,
            totals_.empty() ? nullptr : totals_.data() + channel);
  }

  // Whole numbers: their sum is the same whatever thread comes first.
  void add_to(int64_t* totals) const {
    for (size_t i = 0; i < totals_.size(); i++)
      if (totals_[i] != 0) __atomic_fetch_add(totals + i, static_cast<int64_t>(totals_[i]), __ATOMIC_RELAXED);
  }

 private:
  const Conv& conv_;
  Narrow narrow_;
  int16_t* first_;
  mutable std::vector<double> totals_;
};

// An epilogue as a sink: for each replica of a chunk.
template <class Parameters>
class Epilogues : public Sink {
 public:
  Epilogues(const Conv& c, int64_t pixel, Epilogue<Parameters> run, const Parameters& parameters)
      : outputs_(c.outputs), group_outputs_(c.group_outputs()), pixel_(pixel), run_(run), parameters_(parameters) {}

  void take(const Chunk& chunk, const int32_t* rows, int64_t stride, int64_t pixel, int64_t pixels) const override {
    int64_t channel = chunk.group * group_outputs_ + chunk.first;
    for (; channel < parameters_.width; channel += outputs_)
      run_(parameters_, rows, stride, pixel_ + pixel, pixels, channel, chunk.count);
  }

 private:
  int64_t outputs_, group_outputs_, pixel_;
  Epilogue<Parameters> run_;
  const Parameters& parameters_;
};

// Signs as +1 and -1, from where `pack_rows` takes them.
void signs_as_values(const Signs& s, const int32_t* tile, int64_t stride, float* rows, int64_t pixels, int64_t channel,
                     int64_t count) {
  for (int64_t p = 0; p < pixels; p++)
    for (int64_t i = 0; i < count; i++)
      rows[p * s.width + channel + i] =
          (tile[p * stride + i] >= s.threshold[channel + i]) != (s.flip[channel + i] != 0) ? 1.0F : -1.0F;
}

class Values : public Sink {
 public:
  Values(const Conv& c, const Signs& signs, float* rows) : conv_(c), signs_(signs), rows_(rows) {}

  void take(const Chunk& chunk, const int32_t* rows, int64_t stride, int64_t pixel, int64_t pixels) const override {
    int64_t channel = chunk.group * conv_.group_outputs() + chunk.first;
    for (; channel < signs_.width; channel += conv_.outputs)
      signs_as_values(signs_, rows, stride, rows_ + pixel * signs_.width, pixels, channel, chunk.count);
  }

 private:
  const Conv& conv_;
  const Signs& signs_;
  float* rows_;
};

}  // namespace

bool forked() { return in_child; }

void conv2d(const Conv& c, const void* x, const void* prepared, int32_t* y) {
  convolve(c, x, prepared, false, [&](const Work& work, int64_t first, int64_t last) {
    int32_t* target = y + work.pixel * c.outputs;
    const Sums sums(c, target);
    if (streams(work)) return pour(work, first, last, sums);
    for (int64_t number = first; number < last; number++) {
      const Chunk chunk = chunk_at(c, number);
      if (chunk.count % work.accumulator.lanes != 0) pour(work, number, number + 1, sums);
      else work.accumulate(chunk, target + chunk.group * c.group_outputs() + chunk.first, c.outputs);
    }
  });
}

void conv2d_int16(const Conv& c, const void* x, const void* prepared, int16_t* y, Narrow narrow, int64_t* totals) {
  convolve(c, x, prepared, false, [&](const Work& work, int64_t first, int64_t last) {
    const ShortSums sums(c, narrow, y + work.pixel * c.outputs, totals != nullptr);
    pour(work, first, last, sums);
    sums.add_to(totals);
  });
}

void block2d(const Conv& c, const void* x, const void* prepared, const Fused& fused) {
  const bool direct = !fused.words || chunks_are_words(c, fused.width, fused.out_groups);
  // Where they do not, words are made of rows: of the stream, or of floats where the stream is bytes.
  const bool bytes = fused.dtype >= UINT8;
  Fused floats = fused;
  if (!direct && bytes) floats.dtype = FLOAT32, floats.stream = nullptr;
  const int64_t element = element_bytes(floats.dtype);
  const Epilogue<Fused> run = bnn::kernel(c.isa)->fused(floats);
  const bool folds = fused.fold > 1 && fused.stream;
  convolve(c, x, prepared, !direct || folds, [&](const Work& work, int64_t first, int64_t last) {
    if (direct && !folds) return pour(work, first, last, Epilogues(c, work.pixel, run, fused));
    Fused values = floats;
    if (!direct) values.words = nullptr;
    if (folds) values.stream = nullptr;
    if (!values.stream) {
      values.stream = scratch(STREAM, work.kernel.block_pixels * fused.width * element);
      values.stream_first = work.pixel;
    }
    pour(work, first, last, Epilogues(c, work.pixel, run, values));
    const char* rows = static_cast<const char*>(values.stream) + (work.pixel - values.stream_first) * fused.width * element;
    if (!direct) pack_rows(work, rows, fused.width, fused.out_groups, values.dtype, fused.threshold, fused.words);
    if (folds) work.kernel.fold(rows, values.dtype, work.block.pixels(), fused.width, fused.fold,
                                static_cast<char*>(fused.stream) + work.pixel * fused.width / fused.fold * element);
    if (bytes && fused.stream)
      work.kernel.quantize({work.block.pixels() * fused.width, FLOAT32, fused.dtype, rows, fused.out_scale, fused.out_zero,
                            static_cast<char*>(fused.stream) + work.pixel * fused.width},
                           0, work.block.pixels() * fused.width);
  });
}

void conv2d_sign(const Conv& c, const void* x, const void* prepared, const Signs& signs) {
  const bool direct = chunks_are_words(c, signs.width, signs.out_groups);
  const Epilogue<Signs> run = bnn::kernel(c.isa)->signs;
  convolve(c, x, prepared, !direct, [&](const Work& work, int64_t first, int64_t last) {
    if (direct) return pour(work, first, last, Epilogues(c, work.pixel, run, signs));
    float* rows = static_cast<float*>(scratch(STREAM, work.kernel.block_pixels * signs.width * sizeof(float)));
    pour(work, first, last, Values(c, signs, rows));
    pack_rows(work, rows, signs.width, signs.out_groups, FLOAT32, nullptr, signs.words);
  });
}

// Rows of sums lie in a ring, so that each is made once and nothing but the result leaves the cache.
void pooled2d(const Conv& c, const void* x, const void* prepared, const Fused& fused, const Windows& w) {
  const Kernel& kernel = *bnn::kernel(c.isa);
  const Accumulator& accumulator = kernel.accumulator(c);
  const Plan& plan = remembered<Plan>(c);
  const Epilogue<Fused> run = kernel.fused(fused);
  const int64_t chunks = c.groups * c.chunks(), pieces = divide_up(c.out_w, kernel.block_pixels);
  // Sums of a pixel, with room for the lanes of the last group that are too many.
  const int64_t pixel = round_up(c.outputs - c.group_outputs() + round_up(c.group_outputs(), accumulator.lanes), ALIGNMENT / 4);
  const int64_t row = c.out_w * pixel, ring = std::min(w.kernel_h, c.out_h);
  const bool serial = c.batch * c.out_h * row * c.taps() * c.group_channels() < SERIAL_WORK;
  parallel(c.batch * w.out_h, serial ? 1 : c.threads, [&](int64_t first, int64_t last) {
    void* staged = accumulator.scratch_bytes ? scratch(STAGE, accumulator.scratch_bytes(plan)) : nullptr;
    if (accumulator.begin) accumulator.begin(plan, prepared, staged);
    const int64_t room = (ring * row + w.out_w * pixel) * static_cast<int64_t>(sizeof(int32_t));
    int32_t *rows = static_cast<int32_t*>(scratch(ROWS, room)), *pooled = rows + ring * row;
    std::vector<const int32_t*> window(w.kernel_h);
    int64_t made = 0;  // rows before it are in the ring, as far as they may be read again
    for (int64_t i = first; i < last; i++) {
      const int64_t image = i / w.out_h, top = i % w.out_h * w.stride_h - w.pad_h;
      const int64_t y0 = std::max<int64_t>(0, top), y1 = std::min(c.out_h, top + w.kernel_h);
      if (i % w.out_h == 0 || i == first) made = 0;
      const char* from = static_cast<const char*>(x) + image * c.height * c.width * c.pixel_bytes();
      for (made = std::max(made, y0); made < y1; made++)
        for (int64_t piece = 0; piece < pieces; piece++) {
          const Block block{image, made, made + 1, c.out_w * piece / pieces, c.out_w * (piece + 1) / pieces};
          if (accumulator.stage) accumulator.stage(plan, block, from, staged);
          const Work work{kernel, plan, block, 0, accumulator, from, prepared, staged};
          for (int64_t number = 0; number < chunks; number++) {
            const Chunk chunk = chunk_at(c, number);
            work.accumulate(chunk, rows + made % ring * row + block.x0 * pixel + chunk.group * c.group_outputs() + chunk.first, pixel);
          }
        }
      for (int64_t y = y0; y < y1; y++) window[y - y0] = rows + y % ring * row;
      for (int64_t p = 0; p < w.out_w; p++) {
        const int64_t left = p * w.stride_w - w.pad_w, x0 = std::max<int64_t>(0, left), x1 = std::min(c.out_w, left + w.kernel_w);
        kernel.largest(pooled + p * pixel, window.data(), y1 - y0, x0 * pixel, x1 * pixel, pixel);
      }
      for (int64_t channel = 0; channel < fused.width; channel += c.outputs)
        run(fused, pooled, pixel, i * w.out_w, w.out_w, channel, c.outputs);
    }
  });
}

void pool2d(const Kernel& kernel, const Pool& p, int64_t threads) {
  const bool serial = p.images * p.out_h * p.out_w * p.channels < SERIAL_WORK / 32;
  parallel(p.images * p.out_h, serial ? 1 : threads, [&](int64_t first, int64_t last) { kernel.pool_rows(p, first, last); });
}

namespace {

template <class T>
void planes_of(const Planes& p, int64_t image) {
  constexpr int64_t STEP = 16;  // whose lines stay in the cache
  const T* x = static_cast<const T*>(p.x) + image * p.pixels * p.channels;
  T* y = static_cast<T*>(p.y) + image * p.pixels * p.channels;
  for (int64_t first = 0; first < p.pixels; first += STEP)
    for (int64_t c = 0; c < p.channels; c++)
      for (int64_t i = first; i < std::min(p.pixels, first + STEP); i++) y[c * p.pixels + i] = x[i * p.channels + c];
}

// Rows are short: a call of memcpy for each would take longer than its bytes.
void copy_rows(char* to, int64_t step, const char* from, int64_t width, int64_t rows) {
  constexpr int64_t PIECE = 32;
  for (; rows > 0; rows--, to += step, from += width) {
    int64_t i = 0;
    for (; i + PIECE <= width; i += PIECE) std::memcpy(to + i, from + i, PIECE);
    if (i < width) std::memcpy(to + i, from + i, width - i);
  }
}

}  // namespace

void planes(const Planes& p, int64_t threads) {
  const bool serial = p.images * p.pixels * p.channels < SERIAL_WORK / 32;
  parallel(p.images, serial ? 1 : threads, [&](int64_t first, int64_t last) {
    for (int64_t image = first; image < last; image++) p.bytes == 4 ? planes_of<uint32_t>(p, image) : planes_of<uint16_t>(p, image);
  });
}

void pack(const Kernel& kernel, const Packing& packing, int64_t threads) {
  constexpr int64_t STEP = 64;  // pixels; a multiple of all lanes
  const bool serial = packing.pixels * packing.channels < SERIAL_WORK / 32;
  parallel(divide_up(packing.pixels, STEP), serial ? 1 : threads, [&](int64_t first, int64_t last) {
    kernel.pack(packing, first * STEP, std::min(packing.pixels, last * STEP) - first * STEP);
  });
}

void concat(const Kernel& kernel, const Concat& c, const Packing& packing, int64_t threads) {
  constexpr int64_t STEP = 64;  // pixels, whose rows stay in the cache until they are packed
  const int64_t element = element_bytes(c.dtype), row = c.channels * element;
  const bool serial = c.pixels * c.channels < SERIAL_WORK / 32;
  parallel(divide_up(c.pixels, STEP), serial ? 1 : threads, [&](int64_t first, int64_t last) {
    char* kept = c.y ? nullptr : static_cast<char*>(scratch(ROWS, STEP * row));
    for (int64_t pixel = first * STEP; pixel < std::min(c.pixels, last * STEP); pixel += STEP) {
      const int64_t pixels = std::min(STEP, c.pixels - pixel);
      char *rows = kept ? kept : static_cast<char*>(c.y) + pixel * row, *to = rows;
      for (int64_t map = 0; map < c.maps; map++) {
        const int64_t width = c.widths[map] * element;
        copy_rows(to, row, static_cast<const char*>(c.x[map]) + pixel * width, width, pixels);
        to += width;
      }
      if (!packing.words) continue;
      Packing part = packing;
      part.x = rows, part.words += pixel * packed_words(c.channels, packing.groups);
      kernel.pack(part, 0, pixels);
    }
  });
}

void weighted_sum(const Kernel& kernel, const WeightedSum& s, const Fused& fused, int64_t threads) {
  const int64_t step = std::clamp<int64_t>(8192 / s.channels, 1, 64);  // pixels, whose rows stay in the cache
  const int64_t row = s.channels * element_bytes(fused.dtype);
  const bool direct = !fused.words || fused.out_groups == 1 || s.channels / fused.out_groups % WORD_BITS == 0;
  const int64_t all = s.images * s.height * s.width;
  const bool serial = all * s.channels < SERIAL_WORK / 32;
  parallel(divide_up(all, step), serial ? 1 : threads, [&](int64_t first, int64_t last) {
    float* room = static_cast<float*>(scratch(ROWS, step * s.channels * static_cast<int64_t>(sizeof(float))));
    for (int64_t pixel = first * step; pixel < std::min(all, last * step); pixel += step) {
      const int64_t pixels = std::min(step, all - pixel);
      Fused part = fused;
      if (!direct) {
        part.words = nullptr;
        if (!part.stream) part.stream = scratch(STREAM, step * row), part.stream_first = pixel;
      }
      kernel.weighted_sum(s, part, pixel, pixels, room);
      if (!direct)
        kernel.pack({pixels, s.channels, fused.out_groups, fused.dtype, 0,
                     static_cast<const char*>(part.stream) + (pixel - part.stream_first) * row, fused.threshold,
                     fused.words + pixel * packed_words(s.channels, fused.out_groups)}, 0, pixels);
    }
  });
}

void downsample(const Kernel& kernel, const Downsample& d, int64_t threads) {
  const int64_t step = kernel.downsample_pixels, pixels = d.batch * d.out_h() * d.out_w();
  if (pixels * d.outputs * d.channels < SERIAL_WORK / 32) threads = 1;
  const int64_t blocks = std::min(pixels, round_up(divide_up(pixels, step), threads));  // of equal size
  parallel(blocks, threads, [&](int64_t first, int64_t last) {
    const int64_t room = step * round_up(d.channels, WORD_BITS) * DOWNSAMPLE_ROOM * static_cast<int64_t>(sizeof(float));
    float* pooled = static_cast<float*>(scratch(POOLED, room));
    for (int64_t i = first; i < last; i++)
      kernel.downsample(d, pixels * i / blocks, pixels * (i + 1) / blocks - pixels * i / blocks, pooled);
  });
}

void quantize(const Kernel& kernel, const Quantizing& q, int64_t threads) {
  constexpr int64_t STEP = 4096;
  parallel(divide_up(q.count, STEP), q.count < SERIAL_WORK / 32 ? 1 : threads, [&](int64_t first, int64_t last) {
    kernel.quantize(q, first * STEP, std::min(q.count, last * STEP));
  });
}

void stem(const Kernel& kernel, const Stem& s, const Fused& fused, int64_t threads) {
  const bool serial = s.batch * s.out_h * s.out_w * s.outputs * s.channels * s.kernel_h * s.kernel_w < SERIAL_WORK / 32;
  parallel(s.batch * s.pooled_h, serial ? 1 : threads, [&](int64_t first, int64_t last) {
    void* room = scratch(ROWS, kernel.stem_room(s) * static_cast<int64_t>(sizeof(float)));
    kernel.stem(s, fused, first, last, static_cast<float*>(room));
  });
}

}  // namespace bnn
