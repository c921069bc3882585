// One graph convolution over all steps.
#pragma once

#include "cuda/support/stream.h"
#include "params.h"
#include "types.h"

namespace hiermt::cuda {

// Parameters as in ConvStackForward.
template <class S, class Weights>
struct ConvForward {
  CsrGraph graph;
  SequenceView<S> x;
  int64_t steps;
  int64_t hidden;
  const S* edge_weight;
  const bool* present;
  bool tf32;
  Weights weights;
  Activation activation;
  S* out;  // [N, T, H] after the activation

  int64_t rows() const { return graph.copies * graph.num_nodes * steps; }
};

template <class S, class Weights, class Grads>
struct ConvBackward {
  ConvForward<S, Weights> forward;  // out holds the saved output, read only
  const S* d_out;                   // [N, T, H]
  S* d_x;                           // [N, T, F] contiguous, or nullptr
  Grads grads;
  Compute<S>* d_edge_weight;  // [E] in CSR order, or nullptr
  // Whether a gradient is added to what is there: several parts of a layer contribute to it.
  bool accumulate_d_x, accumulate_d_edge_weight;
};

template <class S>
using GatV2Forward = ConvForward<S, GatV2Weights<S>>;
template <class S>
using GatV2Backward = ConvBackward<S, GatV2Weights<S>, GatV2Grads<Compute<S>>>;
template <class S>
using GcnForward = ConvForward<S, GcnWeights<S>>;
template <class S>
using GcnBackward = ConvBackward<S, GcnWeights<S>, GcnGrads<Compute<S>>>;

template <class S>
void conv_forward(const GatV2Forward<S>& p, Stream& on);
template <class S>
void conv_forward(const GcnForward<S>& p, Stream& on);
template <class S>
void conv_backward(const GatV2Backward<S>& p, Stream& on);
template <class S>
void conv_backward(const GcnBackward<S>& p, Stream& on);

}  // namespace hiermt::cuda
