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

// Cuts one image into blocks: as many whole rows as fit, or equal pieces of a row.
class Blocks {
 public:
  Blocks(const Conv& c, int64_t pixels)
      : conv_(c),
        rows_(std::max<int64_t>(1, pixels / c.out_w)),
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

enum Scratch { TILE, STAGE, STREAM, POOLED, SCRATCHES };

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

// A block in work: where it lies, and the sums of one chunk.
struct Work {
  const Kernel& kernel;
  Block block;
  int64_t pixel, pixels;  // of the whole batch
};

// Runs all blocks and chunks. `sums(work, chunk, channel, accumulate)` calls accumulate(tile, stride) and uses the tile;
// `channel` is the first output channel of the chunk. `block_done(work)` follows the last chunk of a block where
// `whole_blocks` keeps all chunks of a block in one thread.
template <class Sums, class Done>
void convolve(const Conv& c, const uint32_t* x, const void* prepared, bool whole_blocks, const Sums& sums, const Done& block_done) {
  const Kernel& kernel = *bnn::kernel(c.isa);
  const Plan plan(c);
  const Blocks blocks(c, kernel.block_pixels);
  const int64_t plane = c.out_h * c.out_w, chunks = c.groups * c.chunks(), unit = whole_blocks ? chunks : 1;
  const int64_t items = c.batch * blocks.per_image() * chunks;
  const bool serial = c.batch * plane * c.outputs * c.taps() * c.group_channels() < SERIAL_WORK;
  if (items == 0) return;
  parallel(items / unit, serial ? 1 : c.threads, [&](int64_t first, int64_t last) {
    void* staged = kernel.stage ? scratch(STAGE, kernel.scratch_bytes(plan)) : nullptr;
    const uint32_t* image = nullptr;
    Work work{kernel, {-1, 0, 0, 0, 0}, 0, 0};
    for (int64_t item = first * unit; item < last * unit; item++) {
      const int64_t number = item % chunks;
      if (number == 0 || item == first * unit) {
        work.block = blocks.at(item / chunks);
        work.pixel = work.block.image * plane + work.block.y0 * c.out_w + work.block.x0;
        work.pixels = work.block.pixels();
        image = x + work.block.image * c.height * c.width * c.pixel_words();
        if (kernel.stage) kernel.stage(plan, work.block, image, staged);
      }
      const int64_t group = number / c.chunks(), from = number % c.chunks() * CHUNK;
      const Chunk chunk{group, from, std::min(CHUNK, c.group_outputs() - from)};
      sums(work, chunk, group * c.group_outputs() + from, [&](int32_t* tile, int64_t stride) {
        kernel.accumulate(plan, work.block, chunk, image, prepared, staged, tile, stride);
      });
      if (whole_blocks && number == chunks - 1) block_done(work);
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

int64_t packed_words(int64_t width, int64_t groups) { return groups * divide_up(width / groups, WORD_BITS); }

// Packs rows of a block that were written as values, where `chunks_are_words` does not hold.
void pack_rows(const Work& work, const void* rows, int64_t width, int64_t groups, int64_t dtype, const float* threshold,
               uint32_t* words) {
  const Packing packing{work.pixels, width, groups, dtype, 0, rows, threshold, words + work.pixel * packed_words(width, groups)};
  work.kernel.pack(packing, 0, work.pixels);
}

}  // namespace

bool forked() { return in_child; }

void conv2d(const Conv& c, const uint32_t* x, const void* prepared, int32_t* y) {
  const auto sums = [&](const Work& work, const Chunk& chunk, int64_t channel, const auto& accumulate) {
    int32_t* target = y + work.pixel * c.outputs + channel;
    if (chunk.count % work.kernel.lanes == 0) return accumulate(target, c.outputs);
    const int32_t* tile = tile_of(work.kernel);
    accumulate(const_cast<int32_t*>(tile), CHUNK);
    for (int64_t p = 0; p < work.pixels; p++)
      std::memcpy(target + p * c.outputs, tile + p * CHUNK, chunk.count * sizeof(int32_t));
  };
  convolve(c, x, prepared, false, sums, [](const Work&) {});
}

void block2d(const Conv& c, const uint32_t* x, const void* prepared, const Fused& fused) {
  const bool direct = !fused.words || chunks_are_words(c, fused.width, fused.out_groups);
  const int64_t element = fused.dtype == FLOAT32 ? 4 : 2;
  const auto rows_of = [&](const Work& work) {
    if (fused.stream) return static_cast<void*>(static_cast<char*>(fused.stream) + work.pixel * fused.width * element);
    return scratch(STREAM, work.kernel.block_pixels * fused.width * element);
  };
  const auto sums = [&](const Work& work, const Chunk& chunk, int64_t channel, const auto& accumulate) {
    int32_t* tile = tile_of(work.kernel);
    accumulate(tile, CHUNK);
    Fused epilogue = fused;
    if (!direct) {
      epilogue.stream = rows_of(work);
      epilogue.stream_first = work.pixel;
      epilogue.words = nullptr;
    }
    for (; channel < fused.width; channel += c.outputs)  // the replicas
      work.kernel.fused(epilogue, tile, CHUNK, work.pixel, work.pixels, channel, chunk.count);
  };
  convolve(c, x, prepared, !direct, sums, [&](const Work& work) {
    pack_rows(work, rows_of(work), fused.width, fused.out_groups, fused.dtype, fused.threshold, fused.words);
  });
}

void conv2d_sign(const Conv& c, const uint32_t* x, const void* prepared, const Signs& signs) {
  const bool direct = chunks_are_words(c, signs.width, signs.out_groups);
  const auto rows_of = [&](const Work& work) {
    return static_cast<float*>(scratch(STREAM, work.kernel.block_pixels * signs.width * static_cast<int64_t>(sizeof(float))));
  };
  const auto sums = [&](const Work& work, const Chunk& chunk, int64_t channel, const auto& accumulate) {
    int32_t* tile = tile_of(work.kernel);
    accumulate(tile, CHUNK);
    for (; channel < signs.width; channel += c.outputs) {
      if (direct) {
        work.kernel.signs(signs, tile, CHUNK, work.pixel, work.pixels, channel, chunk.count);
        continue;
      }
      for (int64_t p = 0; p < work.pixels; p++)
        for (int64_t i = 0; i < chunk.count; i++)
          rows_of(work)[p * signs.width + channel + i] =
              (tile[p * CHUNK + i] >= signs.threshold[channel + i]) != (signs.flip[channel + i] != 0) ? 1.0F : -1.0F;
    }
  };
  convolve(c, x, prepared, !direct, sums, [&](const Work& work) {
    pack_rows(work, rows_of(work), signs.width, signs.out_groups, FLOAT32, nullptr, signs.words);
  });
}

void pack(const Kernel& kernel, const Packing& packing, int64_t threads) {
  constexpr int64_t STEP = 64;  // pixels; a multiple of all lanes
  const bool serial = packing.pixels * packing.channels < SERIAL_WORK / 32;
  parallel(divide_up(packing.pixels, STEP), serial ? 1 : threads, [&](int64_t first, int64_t last) {
    kernel.pack(packing, first * STEP, std::min(packing.pixels, last * STEP) - first * STEP);
  });
}

void downsample(const Kernel& kernel, const Downsample& d, int64_t threads) {
  constexpr int64_t STEP = 48;  // pixels; a multiple of the pixels of a tile
  const int64_t pixels = d.batch * d.out_h() * d.out_w();
  const bool serial = pixels * d.outputs * d.channels < SERIAL_WORK / 32;
  parallel(divide_up(pixels, STEP), serial ? 1 : threads, [&](int64_t first, int64_t last) {
    float* pooled = static_cast<float*>(scratch(POOLED, STEP * d.channels * static_cast<int64_t>(sizeof(float))));
    for (int64_t i = first; i < last; i++)
      kernel.downsample(d, i * STEP, std::min(pixels, (i + 1) * STEP) - i * STEP, pooled);
  });
}

}  // namespace bnn
