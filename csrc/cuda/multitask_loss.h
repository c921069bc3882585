// Launchers of the multi-task loss. `workspace` is uninitialised device memory of the bytes that
// multitask_loss_workspace returns. The launchers neither synchronise nor allocate. `stream` is a
// cudaStream_t, the result a cudaError_t.
#pragma once

#include <cstddef>

#include "params.h"
#include "types.h"

namespace hiermt::cuda {

template <class S>
size_t multitask_loss_workspace(const MultitaskLossForward<S>& p);
template <class S>
int multitask_loss_forward(const MultitaskLossForward<S>& p, void* workspace, void* stream);
template <class S>
int multitask_loss_backward(const MultitaskLossBackward<S>& p, void* stream);

}  // namespace hiermt::cuda
