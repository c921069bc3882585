// Launchers of the decision. `workspace` is uninitialised device memory of the bytes that
// decision_backward_workspace returns. The launchers neither synchronise nor allocate. `stream` is a
// cudaStream_t, the result a cudaError_t.
#pragma once

#include <cstddef>

#include "params.h"
#include "types.h"

namespace hiermt::cuda {

template <class S>
int decision_forward(const DecisionForward<S>& p, void* stream);

template <class S>
int decision_from_logits(const DecisionFromLogits<S>& p, void* stream);

template <class S>
size_t decision_backward_workspace(const DecisionBackward<S, Compute<S>>& p);
template <class S>
int decision_backward(const DecisionBackward<S, Compute<S>>& p, void* workspace, void* stream);

}  // namespace hiermt::cuda
