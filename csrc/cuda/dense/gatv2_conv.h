// Launchers of the GATv2 convolution. `workspace` is device memory of at least the bytes that the function of
// the same name with the suffix _workspace returns; it needs no initialisation and is free again when the
// stream has passed. Nothing synchronises, nothing allocates: both calls can be captured into a CUDA graph.
// `stream` is a cudaStream_t, the result a cudaError_t. graph.blocks is not read.
#pragma once

#include <cstddef>

#include "cuda/dense/accumulate.h"
#include "params.h"
#include "types.h"

namespace hiermt::cuda {

template <class S>
size_t gatv2_conv_forward_workspace(const GatV2ConvForward<S>& p);
template <class S>
int gatv2_conv_forward(const GatV2ConvForward<S>& p, void* workspace, void* stream);

template <class S>
size_t gatv2_conv_backward_workspace(const GatV2ConvBackward<S, Compute<S>>& p);
template <class S>
int gatv2_conv_backward(const GatV2ConvBackward<S, Compute<S>>& p, Accumulate accumulate, void* workspace,
                        void* stream);

}  // namespace hiermt::cuda
