// Windows of consecutive days out of a series: one block per window and stock copies T * F elements in
// sequence.
#include "cuda/scan/gather_windows.h"
#include "cuda/support/launch.cuh"

namespace hiermt::cuda {
namespace {

constexpr int kThreads = 128;

template <class Bits>
__global__ void __launch_bounds__(kThreads) gather_windows_kernel(GatherWindows p) {
  const int64_t row = blockIdx.x, window = row / p.stocks, stock = row - window * p.stocks;
  const int64_t start = p.starts[window], size = p.steps * p.channels;
  const bool inside = start >= 0 && start <= p.days - p.steps;
  const Bits* from =
      static_cast<const Bits*>(p.series) + stock * p.stride_stock + (inside ? start : 0) * p.channels;
  Bits* to = static_cast<Bits*>(p.out) + row * size;
  for (int64_t i = threadIdx.x; i < size; i += kThreads) to[i] = inside ? from[i] : Bits(0);
}

template <class Bits>
int gather_launch(const GatherWindows& p, void* stream) {
  const int64_t rows = p.steps * p.channels == 0 ? 0 : p.windows * p.stocks;
  return launch(gather_windows_kernel<Bits>, dim3(static_cast<unsigned>(rows)), dim3(kThreads), 0,
                static_cast<cudaStream_t>(stream), p);
}

}  // namespace

int gather_windows(const GatherWindows& p, void* stream) {
  if (p.element_bytes == 2) return gather_launch<uint16_t>(p, stream);
  if (p.element_bytes == 4) return gather_launch<uint32_t>(p, stream);
  return gather_launch<uint64_t>(p, stream);
}

}  // namespace hiermt::cuda
