// The CUDA runtime calls of the host entries, without a CUDA header. Errors are cudaError_t values.
#pragma once

namespace hiermt::cuda {

int set_device(int device);
const char* error_string(int error);

}  // namespace hiermt::cuda
