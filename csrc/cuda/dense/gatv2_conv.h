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
struct GatV2ConvForward {
  CsrGraph graph;
  SequenceView<S> x;     // F channels
  int64_t steps;         // T
  int64_t hidden;        // H
  const S* edge_weight;  // [E] in CSR order, or nullptr
  const bool* present;   // [N, T], or nullptr: all nodes are there at each step
  GatV2Weights<S> weights;
  Activation activation;
  S* out;             // [N, T, H] after the activation
  bool tf32 = false;  // CUDA may round the operands of dense float32 products to TF32
};

template <class S, class C>
struct GatV2ConvBackward {
  GatV2ConvForward<S> forward;  // forward.out holds the saved output, read only
  const S* d_out;               // [N, T, H] cotangent of out
  S* d_x;                       // [N, T, F] contiguous, or nullptr
  GatV2Grads<C> grads;
  C* d_edge_weight;  // [E] in CSR order, or nullptr
};

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
