// Launchers of the gated scan. `workspace` is device memory of at least the bytes that the function of the
// same name with the suffix _workspace returns; it needs no initialisation and is free again when the stream
// has passed. Nothing synchronises, nothing allocates: both calls can be captured into a CUDA graph. `stream`
// is a cudaStream_t, the result a cudaError_t.
#pragma once

#include <cstddef>

#include "params.h"
#include "types.h"

namespace hiermt::cuda {

template <class S>
size_t gated_scan_forward_workspace(const GatedScanForward<S>& p);
template <class S>
int gated_scan_forward(const GatedScanForward<S>& p, void* workspace, void* stream);

// The recurrence alone: the same workspace, which starts with input_projection [N * T, 3H] in Compute<S>, the
// gates' W [x, g] + b. Reads neither x nor g.
template <class S>
int gated_scan_recurrence(const GatedScanForward<S>& p, void* workspace, void* stream);

template <class S>
size_t gated_scan_backward_workspace(const GatedScanBackward<S, Compute<S>>& p);
// Leaves the cotangents of the gates before their nonlinearity, [N * T, 3H] in Compute<S>, at the start of
// the workspace.
template <class S>
int gated_scan_backward(const GatedScanBackward<S, Compute<S>>& p, void* workspace, void* stream);

}  // namespace hiermt::cuda
