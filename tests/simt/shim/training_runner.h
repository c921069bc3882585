// The launchers of csrc/cuda/multitask_loss.h, for runner.cpp.
#pragma once

#include "arguments.h"
#include "cuda/multitask_loss.h"

namespace simt {

template <class S>
hiermt::MultitaskLossForward<S> read_multitask_loss(Arguments& a) {
  hiermt::MultitaskLossForward<S> p{};
  p.rows = a.integer();
  p.masked = a.integer() != 0;
  p.lambda_direction = static_cast<double>(a.integer()) / 1000;
  p.options.label_smoothing = static_cast<double>(a.integer()) / 1000;
  p.options.focal_gamma = static_cast<double>(a.integer()) / 1000;
  p.signal_logits = a.in<S>();
  p.direction_logits = a.in<S>();
  p.signal_targets = a.in<int64_t>();
  p.direction_targets = a.in<int64_t>();
  p.mask = a.in<bool>();
  p.options.signal_weight = a.in<double>();
  p.options.direction_weight = a.in<double>();
  return p;
}

template <class S>
int run_multitask_loss(Arguments& a) {
  hiermt::MultitaskLossForward<S> p = read_multitask_loss<S>(a);
  p.total = a.out<S>();
  p.signal = a.out<S>();
  p.direction = a.out<S>();
  p.norms = a.out<double>();
  const ScratchMemory memory(hiermt::cuda::multitask_loss_workspace(p));
  return hiermt::cuda::multitask_loss_forward(p, memory.data(), nullptr);
}

template <class S>
int run_multitask_loss_backward(Arguments& a) {
  hiermt::MultitaskLossBackward<S> p{};
  p.forward = read_multitask_loss<S>(a);
  p.forward.norms = const_cast<double*>(a.in<double>());
  p.d_total = a.in<S>();
  p.d_signal = a.in<S>();
  p.d_direction = a.in<S>();
  p.d_signal_logits = a.out<S>();
  p.d_direction_logits = a.out<S>();
  return hiermt::cuda::multitask_loss_backward(p, nullptr);
}

}  // namespace simt
