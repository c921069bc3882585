#pragma once

#include "cuda/support/launch.cuh"

namespace hiermt::cuda {

// Runs a kernel with one deliberate fault (0: none) that reads in [n] and writes out [n]; n is a multiple
// of 32.
cudaError_t run_fault(int fault, const float* in, float* out, int n, cudaStream_t stream);

}  // namespace hiermt::cuda
