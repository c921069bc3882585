// Launchers of one T-GCN layer. `workspace` is device memory of at least the bytes that the function of the
// same name with the suffix _workspace returns; it needs no initialisation and is free again when the stream
// has passed. Nothing synchronises, nothing allocates: both calls can be captured into a CUDA graph. `stream`
// is a cudaStream_t, the result a cudaError_t. graph.blocks is not read.
#pragma once

#include <cstddef>

#include "params.h"
#include "types.h"

namespace hiermt::cuda {

template <class S>
size_t tgcn_layer_forward_workspace(const TgcnLayerForward<S>& p);
template <class S>
int tgcn_layer_forward(const TgcnLayerForward<S>& p, void* workspace, void* stream);

template <class S>
size_t tgcn_layer_backward_workspace(const TgcnLayerBackward<S, Compute<S>>& p);
template <class S>
int tgcn_layer_backward(const TgcnLayerBackward<S, Compute<S>>& p, void* workspace, void* stream);

}  // namespace hiermt::cuda
