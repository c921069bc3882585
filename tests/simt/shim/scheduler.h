// Runs the threads of a grid as fibers.
#pragma once

#include <functional>
#include <vector>

#include "simt.h"

namespace simt {

// A permutation of 0 to count - 1, in which threads or blocks run.
using Order = std::vector<size_t> (*)(size_t count);

// Takes the values of the lanes of a warp that have met.
using Together = void (*)(const uint64_t* values);

// The same as without `together`, which runs once, after the last lane has come and before any lane continues.
const uint64_t* meet(Collective kind, unsigned mask, uint64_t value, int line, Together together);

void run_grid(dim3 grid, dim3 threads, size_t shared_bytes, const std::function<void()>& body, Order order);

}  // namespace simt
