// Windows of consecutive days of one series. Node n = window * V + stock; step t of a window is day
// first(window) + t of its stock.
#pragma once

#include "cuda/support/launch.cuh"

namespace hiermt::cuda {

struct WindowDays {
  const int64_t* starts;  // [B] device memory
  int num_nodes, days, steps;

  // Clamps a window that exceeds the series. The host cannot check the starts without a synchronisation, and
  // no start may lead to an access out of bounds.
  __device__ __forceinline__ int first(int window) const {
    const int64_t start = starts[window], last = days - steps;
    return static_cast<int>(start < 0 ? 0 : start > last ? last : start);
  }
  // First row of a node's window in [V, D, ...].
  __device__ __forceinline__ int first_row(int node) const {
    const int window = node / num_nodes, stock = node - window * num_nodes;
    return stock * days + first(window);
  }
};

}  // namespace hiermt::cuda
