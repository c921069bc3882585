// A stack of graph convolutions over every time step: what gatv2_conv is with one convolution, and the first
// half of a T-GCN layer. Only the input and the output of the stack are sequences in memory; what lies
// between stays in the tiles of a task.
#pragma once

#include "params.h"
#include "types.h"

namespace hiermt {
namespace cpu {

template <class S>
struct ConvStackForward {
  CsrGraph graph;
  SequenceView<S> x;     // F channels
  int64_t steps;         // T
  int64_t hidden;        // H
  const S* edge_weight;  // [E] weight (GATv2) or norm (GCN) in CSR order, or nullptr
  int64_t conv_layers;
  const GatV2Weights<S>* gat;  // [conv_layers], or nullptr
  const GcnWeights<S>* gcn;    // [conv_layers] without gat
  Activation inner;            // after each convolution but the last
  Activation last;
  S* out;  // [N, T, H]
};

template <class S, class C>
struct ConvStackBackward {
  ConvStackForward<S> forward;  // forward.out holds the saved output, read only
  const S* d_out;               // [N, T, H]
  S* d_x;                       // [N, T, F] or nullptr
  bool accumulate_grad_x;       // add to what is there
  const GatV2Grads<C>* gat;     // [conv_layers], or nullptr: no gradient of a parameter
  const GcnGrads<C>* gcn;       // the same without forward.gat
  C* d_edge_weight;             // [E] or nullptr
};

namespace HIERMT_ISA {

template <class S>
void conv_stack_forward(const ConvStackForward<S>& p);
template <class S>
void conv_stack_backward(const ConvStackBackward<S, Compute<S>>& p);

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt
