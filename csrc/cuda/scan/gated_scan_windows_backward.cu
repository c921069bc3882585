// The gated scan over windows of one series, backward. The backward of the recurrence runs per window. The
// cotangents of the input projection are then summed over the windows that contain a day, and the gradients
// of x, g and the input columns are computed per day.
#include "cuda/scan/gate_backward.cuh"
#include "cuda/scan/gated_scan_windows.h"
#include "cuda/scan/window_scan.cuh"

namespace hiermt::cuda {
namespace {

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

template <class S>
int64_t window_rows(const GatedScanForward<S>& p) {
  return p.windows->count * p.num_nodes * p.windows->steps;
}

template <class S>
struct BackwardMemory {
  using C = Compute<S>;
  Workspace memory;
  C* d_days;  // [V * D, 3H] cotangents of the gates, summed over the windows
  size_t results;
  GateWorkspace<S> gates;
  C* packed;  // [3, H, H]
  int* used;  // [D]
  C* partial;

  BackwardMemory(void* base, const GatedScanForward<S>& p)
      : memory(base),
        d_days(memory.template take<C>(p.num_nodes * p.steps * 3 * p.hidden)),
        results(memory.bytes()),
        gates(memory, memory.template take<C>(window_rows(p) * 3 * p.hidden), nullptr, window_rows(p),
              p.hidden) {
    const int64_t day_rows = p.num_nodes * p.steps, rows = window_rows(p);
    packed = memory.template take<C>(3 * p.hidden * p.hidden);
    used = memory.template take<int>(p.steps);
    const int64_t of_days = weight_grad_values(day_rows, 3 * p.hidden, p.x.channels + p.g_channels);
    const int64_t of_states = weight_grad_values(rows, 3 * p.hidden, p.hidden);
    partial = memory.template take<C>(of_days > of_states ? of_days : of_states);
  }
};

template <class C>
cudaError_t sum_windows(const C* d_gates, const WindowDays& days, int64_t windows, int64_t rows,
                        int64_t width, C* sums, int* used, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(rows, SumWindowsTraits::kThreads / kWarp)),
                  static_cast<unsigned>(ceil_div<int64_t>(width, kWarp * SumWindowsTraits::kPieces)));
  return launch(sum_windows_kernel<C>, grid, dim3(SumWindowsTraits::kThreads), 0, stream, d_gates, days,
                static_cast<int>(windows), static_cast<int>(rows), static_cast<int>(width), sums, used);
}

// The gradients of the columns that read the state are sums over windows, all others sums over days.
template <class S>
cudaError_t weight_grads(const GatedScanBackward<S, Compute<S>>& p, const BackwardMemory<S>& memory,
                         cudaStream_t stream) {
  using C = Compute<S>;
  const GatedScanForward<S>& f = p.forward;
  const int64_t day_rows = f.num_nodes * f.steps, rows = f.windows->count * f.num_nodes * f.windows->steps;
  const int hidden = static_cast<int>(f.hidden), inputs = static_cast<int>(f.x.channels + f.g_channels);
  const int columns = inputs + hidden;
  const auto rounded = rounds_operands<S>(f.tf32);
  const GateGrads<C>& all = p.grads;
  const GateGrads<C> weights{all.u_weight, nullptr, all.r_weight, nullptr, all.c_weight, nullptr};
  GateRows<S> states(over_windows(f), false, true), of_days(over_days(f), true, false);
  states.reset = memory.gates.reset;
  states.p.present = nullptr;  // of the days: these rows have neither x nor g
  of_days.used = memory.used;
  HIERMT_CUDA_RETURN_IF_ERROR(
      weight_grad(gate_cotangents<C>(memory.gates.d_gates, hidden), states, rows, memory.partial,
                  GateGradsOut<C>{weights, columns, hidden, inputs, hidden}, stream, rounded));
  return weight_grad(gate_cotangents<C>(memory.d_days, hidden), of_days, day_rows, memory.partial,
                     GateGradsOut<C>{all, columns, hidden, 0, inputs}, stream, rounded);
}

}  // namespace

template <class S>
size_t gated_scan_windows_backward_workspace(const GatedScanBackward<S, Compute<S>>& p) {
  return BackwardMemory<S>(nullptr, p.forward).memory.bytes();
}

template <class S>
size_t gated_scan_windows_backward_results(const GatedScanBackward<S, Compute<S>>& p) {
  return BackwardMemory<S>(nullptr, p.forward).results;
}

template <class S>
int gated_scan_windows_backward(const GatedScanBackward<S, Compute<S>>& p, void* workspace, void* stream_) {
  using C = Compute<S>;
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
  const GatedScanForward<S>& f = p.forward;
  if (!windows_supported(f)) return cudaErrorInvalidValue;
  const BackwardMemory<S> memory(workspace, f);
  const WindowDays days = window_days(f);
  const int64_t day_rows = f.num_nodes * f.steps, rows = f.windows->count * f.num_nodes * f.windows->steps;

  GatedScanBackward<S, C> scan{};
  scan.forward = over_windows(f);
  scan.forward.gates = memory.gates.values;
  scan.d_h = p.d_h;
  scan.d_h_last = p.d_h_last;
  scan.d_h0 = p.d_h0;
  GateRows<S> in(scan.forward, true, true);
  in.reset = memory.gates.reset;
  in.windows = days;
  HIERMT_CUDA_RETURN_IF_ERROR(compute_gates(in, scan.forward.gates, rows, stream));
  HIERMT_CUDA_RETURN_IF_ERROR(scan_backward(scan, memory.gates, memory.packed, stream));
  HIERMT_CUDA_RETURN_IF_ERROR(sum_windows(memory.gates.d_gates, days, f.windows->count, day_rows,
                                          3 * f.hidden, memory.d_days, memory.used, stream));
  if (p.grads.u_weight != nullptr) HIERMT_CUDA_RETURN_IF_ERROR(weight_grads(p, memory, stream));

  return input_gradients(over_days(f), memory.d_days, p.d_x, p.d_g, day_rows, stream);
}

#define HIERMT_INSTANTIATE(S)                                                                        \
  template size_t gated_scan_windows_backward_workspace<S>(const GatedScanBackward<S, Compute<S>>&); \
  template size_t gated_scan_windows_backward_results<S>(const GatedScanBackward<S, Compute<S>>&);   \
  template int gated_scan_windows_backward<S>(const GatedScanBackward<S, Compute<S>>&, void*, void*);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
