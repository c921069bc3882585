// Launcher of the window gather. `stream` is a cudaStream_t, the result a cudaError_t. Nothing synchronises
// or allocates.
#pragma once

#include <cstdint>

namespace hiermt::cuda {

// Elements of `element_bytes` (2, 4 or 8); series[s * stride_stock + day * channels + c]. A window that does
// not lie in the series is left at zero: whoever wants to know looks at the starts.
struct GatherWindows {
  int64_t windows, stocks, steps, channels;  // B, S, T, F
  int64_t days;                              // D
  int64_t stride_stock;                      // elements
  int64_t element_bytes;
  const void* series;
  const int64_t* starts;  // [B]
  void* out;              // [B, S, T, F]
};

int gather_windows(const GatherWindows& p, void* stream);

}  // namespace hiermt::cuda
