// Launchers of the GCN convolution. `workspace` is device memory of at least the bytes that the function of
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
struct GcnConvForward {
  CsrGraph graph;
  SequenceView<S> x;
  int64_t steps;
  int64_t hidden;
  const S* norm;        // [E] d_j^-1/2 w_ij d_i^-1/2 in CSR order; with `present` w_ij
  const bool* present;  // as for GATv2
  GcnWeights<S> weights;
  Activation activation;
  S* out;             // [N, T, H]
  bool tf32 = false;  // as for GATv2
};

template <class S, class C>
struct GcnConvBackward {
  GcnConvForward<S> forward;
  const S* d_out;  // [N, T, H]
  S* d_x;          // [N, T, F] or nullptr
  GcnGrads<C> grads;
  C* d_norm;  // [E] or nullptr
};

template <class S>
size_t gcn_conv_forward_workspace(const GcnConvForward<S>& p);
template <class S>
int gcn_conv_forward(const GcnConvForward<S>& p, void* workspace, void* stream);

template <class S>
size_t gcn_conv_backward_workspace(const GcnConvBackward<S, Compute<S>>& p);
template <class S>
int gcn_conv_backward(const GcnConvBackward<S, Compute<S>>& p, Accumulate accumulate, void* workspace,
                      void* stream);

}  // namespace hiermt::cuda
