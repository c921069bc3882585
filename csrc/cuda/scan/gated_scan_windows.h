// Launchers of the gated scan over windows of one series; workspace, stream and result as for gated_scan.h. A
// window that does not lie in the series is computed on other days: nothing outside is touched, and its
// values mean nothing.
#pragma once

#include <cstddef>

#include "params.h"
#include "types.h"

namespace hiermt::cuda {

template <class S>
size_t gated_scan_windows_forward_workspace(const GatedScanWindowsForward<S>& p);
template <class S>
int gated_scan_windows_forward(const GatedScanWindowsForward<S>& p, void* workspace, void* stream);

// The recurrence alone: the same workspace, which starts with what the gates take from a day, W [x, g] + b as
// [V * D, 3H] in Compute<S>. Reads neither x nor g.
template <class S>
int gated_scan_windows_recurrence(const GatedScanWindowsForward<S>& p, void* workspace, void* stream);

template <class S>
size_t gated_scan_windows_backward_workspace(const GatedScanWindowsBackward<S, Compute<S>>& p);
// Leaves the cotangents of the gates before their nonlinearity, summed over the windows that have a day, as
// [V * D, 3H] in Compute<S> at the start of the workspace. Of the gates' values none are read.
template <class S>
int gated_scan_windows_backward(const GatedScanWindowsBackward<S, Compute<S>>& p, void* workspace,
                                void* stream);

}  // namespace hiermt::cuda
