// The gated scan over windows of one series, forward. The input projection is computed once per day; the
// recurrence of each window reads it in place.
#include "cuda/scan/gated_scan_windows.h"
#include "cuda/scan/window_scan.cuh"

namespace hiermt::cuda {
namespace {

template <class C>
struct ForwardMemory {
  Workspace memory;
  C* day_projection;  // [V * D, 3H]
  C* packed;          // [3, H, H]

  ForwardMemory(void* base, int64_t rows, int64_t hidden) : memory(base) {
    day_projection = memory.take<C>(rows * 3 * hidden);
    packed = memory.take<C>(3 * hidden * hidden);
  }
};

}  // namespace

template <class S>
size_t gated_scan_windows_forward_workspace(const GatedScanWindowsForward<S>& p) {
  return ForwardMemory<Compute<S>>(nullptr, p.num_nodes * p.days, p.hidden).memory.bytes();
}

template <class S>
int gated_scan_windows_forward(const GatedScanWindowsForward<S>& p, void* workspace, void* stream) {
  using C = Compute<S>;
  if (!supported(p)) return cudaErrorInvalidValue;
  const GatedScanForward<S> days = over_days(p);
  const int64_t rows = p.num_nodes * p.days;
  const int hidden = static_cast<int>(p.hidden), channels = static_cast<int>(p.x.channels);
  const ForwardMemory<C> memory(workspace, rows, p.hidden);
  HIERMT_CUDA_RETURN_IF_ERROR(
      linear<C>(GateInputs<S, false>{days}, GateColumns<S>{p.weights, channels + 2 * hidden, hidden, 0},
                PairOut<C>{memory.day_projection, nullptr, 3 * hidden}, rows, channels + hidden, 3 * p.hidden,
                static_cast<cudaStream_t>(stream), use_tensor_cores<S>(p.tf32)));
  return gated_scan_windows_recurrence(p, workspace, stream);
}

template <class S>
int gated_scan_windows_recurrence(const GatedScanWindowsForward<S>& p, void* workspace, void* stream) {
  if (!supported(p)) return cudaErrorInvalidValue;
  const ForwardMemory<Compute<S>> memory(workspace, p.num_nodes * p.days, p.hidden);
  return scan_windows(over_windows(p), memory.day_projection, window_days(p), memory.packed,
                      static_cast<cudaStream_t>(stream));
}

#define HIERMT_INSTANTIATE(S)                                                                  \
  template size_t gated_scan_windows_forward_workspace<S>(const GatedScanWindowsForward<S>&);  \
  template int gated_scan_windows_forward<S>(const GatedScanWindowsForward<S>&, void*, void*); \
  template int gated_scan_windows_recurrence<S>(const GatedScanWindowsForward<S>&, void*, void*);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
