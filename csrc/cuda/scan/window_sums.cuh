// Sums over the windows of a series that contain a day.
#pragma once

#include "cuda/support/windows.cuh"

namespace hiermt::cuda {

struct SumWindowsTraits {
  static constexpr int kThreads = 128;
  static constexpr int kPieces = 2;   // channels of a lane, a warp's width apart
  static constexpr int kWindows = 2;  // whose loads are in flight together
  static_assert(kThreads % kWarp == 0);
};

// sums[stock, day, channel] = sum of d_gates over the windows that contain the day, in order. used[day] tells
// whether there is such a window. A warp owns up to 64 channels of a row; each lane tests a window.
template <class C>
__global__ void __launch_bounds__(SumWindowsTraits::kThreads)
    sum_windows_kernel(const C* d_gates, WindowDays days, int windows, int rows, int width, C* sums,
                       int* used) {
  constexpr int kPieces = SumWindowsTraits::kPieces, kWindows = SumWindowsTraits::kWindows;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int row = static_cast<int>(blockIdx.x) * (SumWindowsTraits::kThreads / kWarp) +
                  static_cast<int>(threadIdx.x) / kWarp;
  if (row >= rows) return;
  const int first = static_cast<int>(blockIdx.y) * kWarp * kPieces + lane;
  const int stock = row / days.days, day = row - stock * days.days;
  C total[kPieces] = {};
  bool found = false;
  for (int group = 0; group < windows; group += kWarp) {
    const int window = group + lane;
    const int step = window < windows ? day - days.first(window) : -1;
    const bool mine = step >= 0 && step < days.steps;
    const int from = mine ? (window * days.num_nodes + stock) * days.steps + step : 0;
    unsigned left = __ballot_sync(kFullMask, mine);
    found = found || left != 0;
    while (left != 0) {
      C values[kWindows][kPieces];
#pragma unroll
      for (int i = 0; i < kWindows; ++i) {
        const bool there = left != 0;
        const int source = __shfl_sync(kFullMask, from, there ? __ffs(static_cast<int>(left)) - 1 : 0);
        left &= left - 1;
        const C* at = d_gates + static_cast<int64_t>(source) * width + first;
#pragma unroll
        for (int q = 0; q < kPieces; ++q) {
          values[i][q] = there && first + q * kWarp < width ? at[q * kWarp] : C(0);
        }
      }
#pragma unroll
      for (int i = 0; i < kWindows; ++i) {
#pragma unroll
        for (int q = 0; q < kPieces; ++q) total[q] += values[i][q];
      }
    }
  }
#pragma unroll
  for (int q = 0; q < kPieces; ++q) {
    if (first + q * kWarp < width) sums[static_cast<int64_t>(row) * width + first + q * kWarp] = total[q];
  }
  if (stock == 0 && first == 0) used[day] = found;
}

template <class C>
void sum_windows(const C* d_gates, const WindowDays& days, int64_t windows, int64_t rows, int64_t width,
                 C* sums, int* used, Stream& on) {
  using T = SumWindowsTraits;
  launch(sum_windows_kernel<C>,
         {ceil_div<int64_t>(rows, T::kThreads / kWarp), ceil_div<int64_t>(width, kWarp * T::kPieces)},
         T::kThreads, 0, on, d_gates, days, windows, rows, width, sums, used);
}

}  // namespace hiermt::cuda
