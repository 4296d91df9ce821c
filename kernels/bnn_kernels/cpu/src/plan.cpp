// Geometry: which input positions each output position reads. A two-dimensional convolution is two independent axes.

#include <algorithm>

#include "engine.hpp"

namespace bnn {
namespace {

// Division that rounds down, for any a and b > 0.
int64_t divide_down(int64_t a, int64_t b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

struct Axis {
  int64_t in, kernel, stride, pad, dilation;
  bool transposed;

  // Taps first <= tap < last of output position `position` read inside the image, in the transposed case those of them that
  // hit an input position at all.
  Span inside(int64_t position) const {
    if (transposed) {  // position + pad = stride * input + tap * dilation
      const int64_t top = position + pad;
      if (top >= (kernel - 1) * dilation && top < in * stride) return {0, kernel};
      return clip(divide_down(top - in * stride, dilation) + 1, divide_down(top, dilation) + 1);
    }
    const int64_t source = position * stride - pad;  // input = source + tap * dilation
    if (source >= 0 && source + (kernel - 1) * dilation < in) return {0, kernel};
    return clip(-divide_down(source, dilation), -divide_down(source - in, dilation));
  }

  Run run(int64_t position, Span taps) const {
    Run run{position, step(), 1, position * stride - pad, stride, {}, {}};
    if (transposed) run.source = position / stride, run.source_step = 1;
    const int64_t phase = position % stride;
    for (int64_t tap = taps.first; tap < taps.last; tap++) {
      const int64_t scaled = phase + pad - tap * dilation;
      const int64_t offset = transposed ? divide_down(scaled, stride) : tap * dilation;
      if (transposed && offset * stride != scaled) continue;
      run.taps.push_back(tap);
      run.offsets.push_back(offset);
    }
    return run;
  }

  int64_t step() const { return transposed ? stride : 1; }
  Span clip(int64_t first, int64_t last) const {
    first = std::clamp<int64_t>(first, 0, kernel);
    return {first, std::clamp(last, first, kernel)};
  }
};

}  // namespace

std::vector<Run> runs(int64_t out, int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation, bool transposed) {
  const Axis axis{in, kernel, stride, pad, dilation, transposed};
  std::vector<Run> all;
  for (int64_t phase = 0; phase < std::min(axis.step(), out); phase++) {
    Span last{-1, -1};
    for (int64_t position = phase; position < out; position += axis.step()) {
      const Span taps = axis.inside(position);
      if (taps.first == last.first && taps.last == last.last) all.back().count++;
      else all.push_back(axis.run(position, last = taps));
    }
  }
  return all;
}

Plan::Plan(const Conv& c)
    : conv(c),
      rows(runs(c.out_h, c.height, c.kernel_h, c.stride_h, c.pad_h, c.dilation_h, c.transposed)),
      columns(runs(c.out_w, c.width, c.kernel_w, c.stride_w, c.pad_w, c.dilation_w, c.transposed)) {}

Piece piece(const Run& run, int64_t first, int64_t last) {
  const int64_t from = std::max<int64_t>(0, divide_up(first - run.first, run.step));
  const int64_t to = std::min(run.count, divide_up(last - run.first, run.step));
  return {from, to};
}

Span reach(const std::vector<Run>& axis, int64_t first, int64_t last) {
  Span span{INT64_MAX, INT64_MIN};
  for (const Run& run : axis) {
    const Piece part = piece(run, first, last);
    if (part.from >= part.to) continue;
    for (int64_t offset : run.offsets) {
      span.first = std::min(span.first, run.source + part.from * run.source_step + offset);
      span.last = std::max(span.last, run.source + (part.to - 1) * run.source_step + offset + 1);
    }
  }
  return span.first < span.last ? span : Span{0, 0};
}

}  // namespace bnn
