// Launchers of a stack of graph convolutions. `workspace` is device memory of at least the bytes that the
// function of the same name with the suffix _workspace returns; it needs no initialisation and is free again
// when the stream has passed. Nothing synchronises, nothing allocates: all calls can be captured into a CUDA
// graph. `stream` is a cudaStream_t, the result a cudaError_t. graph.blocks is not read.
#pragma once

#include <cstddef>

#include "params.h"
#include "types.h"

namespace hiermt::cuda {

// One launch where the stack fits one, else convolution after convolution.
template <class S>
size_t conv_stack_forward_workspace(const ConvStackForward<S>& p);
template <class S>
int conv_stack_forward(const ConvStackForward<S>& p, void* workspace, void* stream);

// Computes the convolutions again, so that the sequence between two of them is never stored.
template <class S>
size_t conv_stack_backward_workspace(const ConvStackBackward<S, Compute<S>>& p);
template <class S>
int conv_stack_backward(const ConvStackBackward<S, Compute<S>>& p, void* workspace, void* stream);

// Whether one launch runs the whole stack. It can leave the input projection of the gates as well:
// input_projection [N * T, 3H], W [x, out] + b of the three gates; p.out is then written only if it is given.
template <class S>
bool fused_stack_fits(const ConvStackForward<S>& p);
template <class S>
int fused_stack_forward(const ConvStackForward<S>& p, const GateWeights<S>& gates,
                        Compute<S>* input_projection, void* stream);

}  // namespace hiermt::cuda
