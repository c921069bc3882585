// Windows of consecutive days out of one series: node n = window * S + stock, step t of a window is day
// first(window) + t of its stock.
#pragma once

#include "cuda/support/launch.cuh"

namespace hiermt::cuda {

struct WindowDays {
  const int64_t* starts;  // [B] device memory
  int num_nodes, days, steps;

  // A window that does not lie in the series is moved to the nearest place that does: the host cannot look at
  // the starts without waiting, and no content of them may lead out of an array.
  __device__ __forceinline__ int first(int window) const {
    const int64_t start = starts[window], last = days - steps;
    return static_cast<int>(start < 0 ? 0 : start > last ? last : start);
  }
  // Row of [S, D, ...] on which a node's window begins.
  __device__ __forceinline__ int first_row(int node) const {
    const int window = node / num_nodes, stock = node - window * num_nodes;
    return stock * days + first(window);
  }
};

}  // namespace hiermt::cuda
