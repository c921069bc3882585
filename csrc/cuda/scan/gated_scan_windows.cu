// The gated scan over windows of one series, forward. The input projection is computed once per day; the
// recurrence of each window reads it in place.
#include "cuda/scan/gated_scan_windows.h"
#include "cuda/scan/window_scan.cuh"

namespace hiermt::cuda {

template <class S>
size_t gated_scan_windows_forward_workspace(const GatedScanForward<S>& p) {
  return ScanMemory<Compute<S>>(nullptr, p.num_nodes * p.steps, p.hidden).memory.bytes();
}

template <class S>
int gated_scan_windows_forward(const GatedScanForward<S>& p, void* workspace, void* stream) {
  if (!windows_supported(p)) return cudaErrorInvalidValue;
  const ScanMemory<Compute<S>> memory(workspace, p.num_nodes * p.steps, p.hidden);
  HIERMT_CUDA_RETURN_IF_ERROR(
      project_input(over_days(p), memory.input_projection, static_cast<cudaStream_t>(stream)));
  return gated_scan_windows_recurrence(p, workspace, stream);
}

template <class S>
int gated_scan_windows_recurrence(const GatedScanForward<S>& p, void* workspace, void* stream) {
  if (!windows_supported(p)) return cudaErrorInvalidValue;
  const ScanMemory<Compute<S>> memory(workspace, p.num_nodes * p.steps, p.hidden);
  return scan_windows(over_windows(p), memory.input_projection, window_days(p), memory.packed,
                      static_cast<cudaStream_t>(stream));
}

#define HIERMT_INSTANTIATE(S)                                                           \
  template size_t gated_scan_windows_forward_workspace<S>(const GatedScanForward<S>&);  \
  template int gated_scan_windows_forward<S>(const GatedScanForward<S>&, void*, void*); \
  template int gated_scan_windows_recurrence<S>(const GatedScanForward<S>&, void*, void*);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
