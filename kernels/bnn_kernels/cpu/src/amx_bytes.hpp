// Real layers in int8 for AMX (amx.hpp): activations are copied, unsigned, and weights are kept as the tiles that they are. Outside
// the image lies what means 0, so that the same constant is missing from all sums of a channel: with it they begin.
//
// Prepared weights: [groups][words * 4] what means 0, then the constants [group][residue][channel] int32, then tiles
// [group][residue][tile of 16 channels][step].
#pragma once

#include <algorithm>
#include <cstring>

#include "amx_layout.hpp"

namespace bnn {
namespace {

struct AmxBytes {
  static int64_t zeros_bytes(const Layout& layout) { return round_up(layout.conv.pixel_words() * WORD_BYTES, ALIGNMENT); }
  static int64_t sums_bytes(const Layout& layout) { return layout.sums() * static_cast<int64_t>(sizeof(int32_t)); }
  static int64_t prepared_bytes(const Conv& c) {
    const Layout layout(c);
    return zeros_bytes(layout) + sums_bytes(layout) + layout.weight_tiles() * TILE_BYTES;
  }
  static const int32_t* first_sums(const Layout& layout, const void* prepared) {
    return reinterpret_cast<const int32_t*>(static_cast<const char*>(prepared) + zeros_bytes(layout));
  }
  static const int8_t* tiles(const Layout& layout, const void* prepared) {
    return static_cast<const int8_t*>(prepared) + zeros_bytes(layout) + sums_bytes(layout);
  }

  static void prepare(const Conv& c, const uint32_t* weight, const uint8_t* zeros, void* prepared) {
    const Layout layout(c);
    const int64_t channels = c.group_channels(), outputs = c.group_outputs(), row = c.words() * WORD_BYTES;
    const int8_t* bytes = reinterpret_cast<const int8_t*>(weight);
    int32_t* sums = const_cast<int32_t*>(first_sums(layout, prepared));
    int8_t* tile = const_cast<int8_t*>(tiles(layout, prepared));
    std::memcpy(prepared, zeros, c.groups * row);
    for (int64_t group = 0; group < c.groups; group++, zeros += row)
      for (const auto& vertical : layout.vertical.residues)
        for (const auto& horizontal : layout.horizontal.residues)
          for (int64_t first = 0; first < outputs; first += ROWS, sums += ROWS)
            for (const Axis::Tap& y : vertical)
              for (const Axis::Tap& x : horizontal) {
                const int64_t terms = layout.terms(), count = std::min(ROWS, outputs - first);
                for (int64_t n = 0; n < count; n++) {
                  const int8_t* tap = bytes + (((group * outputs + first + n) * c.kernel_h + y.tap) * c.kernel_w + x.tap) * row;
                  for (int64_t term = 0; term < terms; term++) {
                    const int8_t value = tap[term / channels * row + term % channels];
                    tile[term / DEPTH * TILE_BYTES + term % DEPTH / 4 * DEPTH + 4 * n + term % 4] = value;
                    sums[n] -= zeros[term % channels] * value;
                  }
                }
                tile += layout.depth / DEPTH * TILE_BYTES;
              }
  }

  // What means 0, and a row.
  static int64_t kept(const Layout& layout) {
    const Conv& c = layout.conv;
    const int64_t row = ((most_columns(c) - 1) * c.stride_w + c.kernel_w) * c.channels + COPIED;
    return zeros_bytes(layout) + (layout.apart ? round_up(row, ALIGNMENT) : 0);
  }
  static int8_t* row_in(const Layout& layout, void* scratch) { return layout.kept_in(scratch) + zeros_bytes(layout); }
  template <class T>
  static void begin(const Plan& plan, const void* prepared, void* scratch) {
    const Layout& layout = remembered<Layout>(plan.conv);
    std::memcpy(layout.kept_in(scratch), prepared, zeros_bytes(layout));
  }

  template <class T, class Body>
  static void with_weights(const Layout& layout, const void* prepared, const void*, int64_t first, int64_t channels, int64_t steps,
                           const Body& body) {
    Resident weights(tiles(layout, prepared) + first * TILE_BYTES, divide_up(channels, ROWS) * steps);
    body(weights);
  }

  template <class T, int TILE>
  static void start(const int32_t* sums) {
    T::template load<TILE>(sums, 0);  // each row the same
  }
  template <class T, int SUMS, int A, int B>
  static void multiply_add() {
    T::template multiply_add_unsigned<SUMS, A, B>();
  }

  // `pixels` pixels of a group, `step` apart from number `first` of the image on. Channels that fill up 64 meet weights of 0.
  template <class T>
  static void write_pixels(const Layout& layout, const void* image, int64_t group, int64_t first, int64_t step, int64_t pixels,
                           int8_t* bytes) {
    const Conv& c = layout.conv;
    const int8_t* from = static_cast<const int8_t*>(image) + first * c.channels + group * c.group_channels();
    const int8_t flip = static_cast<int8_t>(c.is_signed ? -128 : 0);
    int64_t size = c.group_channels();
    const int64_t pitch = layout.whole_rows ? size : layout.pitch, from_step = step * c.channels;
    if (pitch == size && from_step == size) size *= pixels, pixels = std::min<int64_t>(pixels, 1);
    for (; pixels > 0; pixels--, from += from_step, bytes += pitch)
      if (flip == 0) std::memcpy(bytes, from, size);
      else
        for (int64_t i = 0; i < size; i++) bytes[i] = static_cast<int8_t>(from[i] ^ flip);
  }

  template <class T>
  struct Outside {
    const int8_t* zeros;
    int64_t channels, row, pitch;
    Outside(const Layout& layout, void* scratch)
        : zeros(layout.kept_in(scratch)), channels(layout.conv.group_channels()), row(layout.conv.words() * WORD_BYTES),
          pitch(layout.whole_rows ? channels : layout.pitch) {}

    void write(int64_t group, int64_t pixels, int8_t* bytes) const {
      for (; pixels > 0; pixels--, bytes += pitch) std::copy_n(zeros + group * row, channels, bytes);
    }
  };
};

}  // namespace
}  // namespace bnn
