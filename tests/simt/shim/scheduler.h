// Runs the threads of a grid as fibers.
#pragma once

#include <functional>
#include <vector>

#include "simt.h"

namespace simt {

// A permutation of 0 to count - 1, in which threads or blocks run.
using Order = std::vector<size_t> (*)(size_t count);

void run_grid(dim3 grid, dim3 threads, size_t shared_bytes, const std::function<void()>& body, Order order);

}  // namespace simt
