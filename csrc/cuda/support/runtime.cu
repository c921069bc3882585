#include <cuda_runtime.h>

#include "cuda/support/runtime.h"

namespace hiermt::cuda {

int set_device(int device) {
  const cudaError_t error = cudaSetDevice(device);
  if (error != cudaSuccess) cudaGetLastError();  // clears it: the next launch would report it
  return error;
}

const char* error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

}  // namespace hiermt::cuda
