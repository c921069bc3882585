#include <cuda_runtime.h>

#include "runtime.h"

namespace hiermt::cuda {

int set_device(int device) {
  return cudaSetDevice(device);
}

const char* error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // namespace hiermt::cuda
