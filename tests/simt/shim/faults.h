#pragma once

#include "simt.h"

namespace hiermt::cuda {

// Runs a small kernel with one planted fault (0: none) on in [n], writing out [n]; n is a multiple of 32.
cudaError_t run_fault(int fault, const float* in, float* out, int n, cudaStream_t stream);

}  // namespace hiermt::cuda
