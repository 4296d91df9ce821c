// Signs for AMX (amx.hpp): activations +1 and -1, and 0 for what is outside the image with pad_value 0 and for the channels that
// fill up 64, so that neither counts.
//
// Weights are kept as bits, an eighth of the memory. Where the bytes of all of them fit into the cache beside the activations,
// they are expanded once for a call (`begin`). Else a tile of them is expanded two steps ahead into a ring that lives in L1,
// which hides behind the multiplications, more or less.
#pragma once

#include <cstring>

#include "amx_layout.hpp"

namespace bnn {
namespace {

constexpr int64_t RESIDENT_BYTES = 160 << 10;  // of expanded weights at most

inline uint64_t channel_bits(int64_t channels) { return channels >= DEPTH ? ~uint64_t{0} : (uint64_t{1} << channels) - 1; }

inline uint64_t two_words(const uint32_t* words, int64_t count) {
  return count > 1 ? words[0] | static_cast<uint64_t>(words[1]) << WORD_BITS : words[0];
}

template <class T>
void expand(const uint64_t* bits, int8_t* tile) {
  for (int64_t row = 0; row < ROWS; row++) T::signs(bits[row], ~uint64_t{0}, tile + row * DEPTH);
}

// Weight tiles as bytes, two steps ahead of their use. `count` of them follow each other again and again.
template <class T>
class Ring {
 public:
  Ring(const uint64_t* first, int64_t count) : first_(first), last_(first + count * ROWS), next_(first) {
    fill(0);
    fill(1);
  }
  const int8_t* tile() const { return slots_[slot_]; }
  void advance() {
    fill((slot_ + 2) % SLOTS);
    slot_ = (slot_ + 1) % SLOTS;
  }

 private:
  static constexpr int64_t SLOTS = 4;

  void fill(int64_t slot) {
    expand<T>(next_, slots_[slot]);
    next_ += ROWS;
    if (next_ == last_) next_ = first_;
  }

  alignas(ALIGNMENT) int8_t slots_[SLOTS][TILE_BYTES];
  const uint64_t *first_, *last_, *next_;
  int64_t slot_ = 0;
};

struct AmxSigns {
  static bool resident(const Layout& layout) { return layout.weight_tiles() * TILE_BYTES <= RESIDENT_BYTES; }
  static int8_t* row_in(const Layout&, void*) { return nullptr; }
  // Bytes of expanded weights.
  static int64_t kept(const Layout& layout) { return resident(layout) ? layout.weight_tiles() * TILE_BYTES : 0; }

  static int64_t prepared_bytes(const Conv& c) {
    const Layout layout(c);
    return layout.weight_tiles() * ROWS * static_cast<int64_t>(sizeof(uint64_t));
  }

  // [group][residue][tile of 16 channels][step][4 terms] uint64: bit 4 n + i is term i of the four, channel n of the sixteen.
  static void prepare(const Conv& c, const uint32_t* weight, const uint8_t*, void* prepared) {
    const Layout layout(c);
    const int64_t words = c.words(), outputs = c.group_outputs();
    uint64_t* rows = static_cast<uint64_t*>(prepared);
    const auto tile_of_tap = [&](const uint32_t* tap, int64_t channels) {
      for (int64_t word = 0; word < layout.depth / WORD_BITS; word++)
        for (int64_t four = 0; four < WORD_BITS / 4; four++, rows++)
          for (int64_t n = 0; n < channels && word < words; n++)
            *rows |= static_cast<uint64_t>(tap[n * c.taps() * words + word] >> 4 * four & 15) << 4 * n;
    };
    for (int64_t group = 0; group < c.groups; group++)
      for (const auto& vertical : layout.vertical.residues)
        for (const auto& horizontal : layout.horizontal.residues)
          for (int64_t first = 0; first < outputs; first += ROWS)
            for (const Axis::Tap& y : vertical)
              for (const Axis::Tap& x : horizontal)
                tile_of_tap(weight + ((group * outputs + first) * c.taps() + y.tap * c.kernel_w + x.tap) * words,
                            std::min(ROWS, outputs - first));
  }

  template <class T>
  static void begin(const Plan& plan, const void* prepared, void* scratch) {
    const Layout& layout = remembered<Layout>(plan.conv);
    if (!resident(layout)) return;
    const uint64_t* bits = static_cast<const uint64_t*>(prepared);
    for (int64_t tile = 0; tile < layout.weight_tiles(); tile++)
      expand<T>(bits + tile * ROWS, layout.kept_in(scratch) + tile * TILE_BYTES);
  }

  // Calls body(weights) with the tiles of `channels` channels from tile `first` on.
  template <class T, class Body>
  static void with_weights(const Layout& layout, const void* prepared, const void* scratch, int64_t first, int64_t channels,
                           int64_t steps, const Body& body) {
    const int64_t count = divide_up(channels, ROWS) * steps;
    if (resident(layout)) {
      Resident weights(layout.kept_in(const_cast<void*>(scratch)) + first * TILE_BYTES, count);
      return body(weights);
    }
    Ring<T> weights(static_cast<const uint64_t*>(prepared) + first * ROWS, count);
    body(weights);
  }

  static const int32_t* first_sums(const Layout&, const void* prepared) { return static_cast<const int32_t*>(prepared); }  // unread
  template <class T, int TILE>
  static void start(const int32_t*) {
    T::template zero<TILE>();
  }
  template <class T, int SUMS, int A, int B>
  static void multiply_add() {
    T::template multiply_add<SUMS, A, B>();
  }

  // `pixels` pixels of a group, `step` apart from number `first` of the image on.
  template <class T>
  static void write_pixels(const Layout& layout, const void* image, int64_t group, int64_t first, int64_t step, int64_t pixels,
                           int8_t* bytes) {
    const Conv& c = layout.conv;
    // Locals: writing bytes might change c, to the compiler.
    const int64_t whole = c.group_channels() / DEPTH, rest = c.group_channels() % DEPTH;
    const int64_t rest_words = divide_up(rest, WORD_BITS), pixel_words = step * c.pixel_words();
    const uint32_t* pixel = static_cast<const uint32_t*>(image) + first * c.pixel_words() + group * c.words();
    for (int64_t i = 0; i < pixels; i++, pixel += pixel_words) {
      const uint32_t* words = pixel;
      for (int64_t k = 0; k < whole; k++, words += 2, bytes += DEPTH) T::signs(two_words(words, 2), ~uint64_t{0}, bytes);
      if (rest == 0) continue;
      T::signs(two_words(words, rest_words), channel_bits(rest), bytes);
      bytes += DEPTH;
    }
  }

  template <class T>
  struct Outside {
    const Layout& layout;
    Outside(const Layout& layout, const void*) : layout(layout) {}

    void write(int64_t, int64_t pixels, int8_t* bytes) const {
      const Conv& c = layout.conv;
      if (c.pad_value == 0) {
        std::memset(bytes, 0, pixels * layout.depth);
        return;
      }
      for (int64_t i = 0; i < pixels; i++)
        for (int64_t channel = 0; channel < c.group_channels(); channel += DEPTH, bytes += DEPTH)
          T::signs(c.pad_value == 1 ? ~uint64_t{0} : 0, channel_bits(c.group_channels() - channel), bytes);
    }
  };
};

}  // namespace
}  // namespace bnn
