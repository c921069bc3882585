// Launchers of the gated scan over windows of one series; workspace, stream and result as in gated_scan.h.
// The results of a window that exceeds the series are unspecified, but no access is out of bounds.
#pragma once

#include <cstddef>

#include "params.h"
#include "types.h"

namespace hiermt::cuda {

template <class S>
size_t gated_scan_windows_forward_workspace(const GatedScanForward<S>& p);
template <class S>
int gated_scan_windows_forward(const GatedScanForward<S>& p, void* workspace, void* stream);

// The recurrence alone. The same workspace must start with the input projection W [x, g] + b of each day,
// [V * D, 3H] in Compute<S>; x and g are not read.
template <class S>
int gated_scan_windows_recurrence(const GatedScanForward<S>& p, void* workspace, void* stream);

template <class S>
size_t gated_scan_windows_backward_workspace(const GatedScanBackward<S, Compute<S>>& p);
// Bytes at the start of the workspace that hold results afterwards: the cotangents of the gates before their
// nonlinearity, summed over the windows that contain a day, [V * D, 3H] in Compute<S>. Saved gates are not read.
template <class S>
size_t gated_scan_windows_backward_results(const GatedScanBackward<S, Compute<S>>& p);
template <class S>
int gated_scan_windows_backward(const GatedScanBackward<S, Compute<S>>& p, void* workspace, void* stream);

}  // namespace hiermt::cuda
