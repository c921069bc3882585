// Launchers of the gated scan. `workspace` is device memory of at least the bytes that the function with the
// suffix _workspace returns. It needs no initialisation and may be reused by later work on the stream. The
// launchers neither synchronise nor allocate, so a CUDA graph can capture them. `stream` is a cudaStream_t,
// the result a cudaError_t.
#pragma once

#include <cstddef>

#include "params.h"
#include "types.h"

namespace hiermt::cuda {

template <class S>
size_t gated_scan_forward_workspace(const GatedScanForward<S>& p);
template <class S>
int gated_scan_forward(const GatedScanForward<S>& p, void* workspace, void* stream);

// The recurrence alone. The same workspace must start with the input projection W [x, g] + b of the gates,
// [N * T, 3H] in Compute<S>; x and g are not read.
template <class S>
int gated_scan_recurrence(const GatedScanForward<S>& p, void* workspace, void* stream);

// The gradients of the gates before the sum over chunks of rows: [count, 3H, columns + 1], of which the last column is
// that of the biases.
template <class C>
struct GateGradChunks {
  const C* partial = nullptr;
  int64_t count = 0;
  GateGrads<C> grads{};
  int columns = 0, hidden = 0;
};

template <class S>
size_t gated_scan_backward_workspace(const GatedScanBackward<S, Compute<S>>& p);
// Bytes at the start of the workspace that hold results afterwards: the cotangents of the gates before their
// nonlinearity, [N * T, 3H] in Compute<S>, then the chunks.
template <class S>
size_t gated_scan_backward_results(const GatedScanBackward<S, Compute<S>>& p);
// With `chunks` the sum over them is left to the caller, unless there are windows; `chunks` tells.
template <class S>
int gated_scan_backward(const GatedScanBackward<S, Compute<S>>& p, void* workspace, void* stream,
                        GateGradChunks<Compute<S>>* chunks = nullptr);

}  // namespace hiermt::cuda
