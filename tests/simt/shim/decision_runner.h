// The launchers of csrc/cuda/decision.h, for runner.cpp.
#pragma once

#include <string>

#include "arguments.h"
#include "cuda/decision.h"

namespace simt {

template <class S>
hiermt::DecisionWeights<S> read_decision_weights(Arguments& a) {
  hiermt::DecisionWeights<S> weights{};
  weights.out_weight = a.in<S>();
  weights.out_bias = a.in<S>();
  weights.signal_weight = a.in<S>();
  weights.signal_bias = a.in<S>();
  weights.direction_weight = a.in<S>();
  weights.direction_bias = a.in<S>();
  return weights;
}

template <class S>
hiermt::DecisionOutputs<S> read_decision_outputs(Arguments& a) {
  hiermt::DecisionOutputs<S> outputs{};
  outputs.probabilities = a.out<S>();
  outputs.predictions = a.out<int64_t>();
  outputs.confidences = a.out<S>();
  return outputs;
}

template <class S>
int run_decision(Arguments& a) {
  hiermt::DecisionForward<S> p{};
  p.rows = a.integer();
  p.hidden = a.integer();
  p.features = a.integer();
  p.stride_row = a.integer();
  p.threshold = static_cast<double>(a.integer()) / 1000;
  p.h = a.in<S>();
  p.weights = read_decision_weights<S>(a);
  p.signal_logits = a.out<S>();
  p.direction_logits = a.out<S>();
  p.outputs = read_decision_outputs<S>(a);
  return hiermt::cuda::decision_forward(p, nullptr);
}

template <class S>
int run_decision_from_logits(Arguments& a) {
  hiermt::DecisionFromLogits<S> p{};
  p.rows = a.integer();
  p.threshold = static_cast<double>(a.integer()) / 1000;
  p.signal_logits = a.in<S>();
  p.direction_logits = a.in<S>();
  p.outputs = read_decision_outputs<S>(a);
  return hiermt::cuda::decision_from_logits(p, nullptr);
}

template <class S>
int run_decision_backward(Arguments& a) {
  using C = hiermt::Compute<S>;
  hiermt::DecisionBackward<S, C> p{};
  p.rows = a.integer();
  p.hidden = a.integer();
  p.features = a.integer();
  p.stride_row = a.integer();
  p.need_params = a.integer() != 0;
  p.h = a.in<S>();
  p.weights = read_decision_weights<S>(a);
  p.d_signal_logits = a.in<S>();
  p.d_direction_logits = a.in<S>();
  p.d_h = a.out<S>();
  p.grads.out_weight = a.out<C>();
  p.grads.out_bias = a.out<C>();
  p.grads.signal_weight = a.out<C>();
  p.grads.signal_bias = a.out<C>();
  p.grads.direction_weight = a.out<C>();
  p.grads.direction_bias = a.out<C>();
  const ScratchMemory memory(hiermt::cuda::decision_backward_workspace(p));
  return hiermt::cuda::decision_backward(p, memory.data(), nullptr);
}

}  // namespace simt
