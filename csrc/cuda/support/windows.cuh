// Windows of consecutive days of one series. Node n = window * V + stock; step t of a window is day
// first(window) + t of its stock. A scan that has no windows runs over rows (node, step) in place of (stock, day).
#pragma once

#include "cuda/support/launch.cuh"
#include "params.h"

namespace hiermt::cuda {

struct WindowDays {
  const int64_t* starts = nullptr;  // [B] device memory, or nullptr: no windows
  int num_nodes = 0, days = 0, steps = 0;

  WindowDays() = default;
  template <class S>
  explicit WindowDays(const GatedScanForward<S>& p) : num_nodes(p.num_nodes), days(p.steps), steps(p.steps) {
    if (p.windows == nullptr) return;
    starts = p.windows->starts;
    steps = static_cast<int>(p.windows->steps);
  }

  // Clamps a window that exceeds the series. The host cannot check the starts without a synchronisation, and
  // no start may lead to an access out of bounds.
  __device__ __forceinline__ int first(int window) const {
    const int64_t start = starts[window], last = days - steps;
    return static_cast<int>(start < 0 ? 0 : start > last ? last : start);
  }
  // The row of a node's first step in the input projection.
  __device__ __forceinline__ int first_row(int node) const {
    if (starts == nullptr) return node * steps;
    const int window = node / num_nodes, stock = node - window * num_nodes;
    return stock * days + first(window);
  }
};

// The scan of all windows of `p`, whose recurrence reads what is computed once a day; `p` itself without windows.
template <class S>
GatedScanForward<S> over_windows(const GatedScanForward<S>& p) {
  GatedScanForward<S> scan = p;
  if (p.windows == nullptr) return scan;
  scan.copies = p.windows->count;
  scan.steps = p.windows->steps;
  scan.windows = nullptr;
  return scan;
}

}  // namespace hiermt::cuda
