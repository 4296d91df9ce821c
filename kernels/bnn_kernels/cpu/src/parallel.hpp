// Work on several threads.
#pragma once

#include <algorithm>
#include <cstdint>

namespace bnn {

constexpr int64_t SERIAL_WORK = 1 << 21;  // 1-bit multiply-accumulates: below it, waking threads costs more than they save

bool forked();  // whether this is a forked child; in driver.cpp

// Calls body(first, last) for ranges of 0 <= item < items, one range per thread.
template <class Body>
void parallel(int64_t items, int64_t threads, const Body& body) {
  if (forked()) threads = 1;
  threads = std::min(threads, items);
  if (threads <= 1) {
    if (items > 0) body(int64_t{0}, items);
    return;
  }
#pragma omp parallel for num_threads(static_cast<int>(threads)) schedule(static, 1)
  for (int64_t t = 0; t < threads; t++) body(items * t / threads, items * (t + 1) / threads);
}

}  // namespace bnn
