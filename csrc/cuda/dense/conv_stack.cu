// A stack of graph convolutions: one launch where it fits one, else the dense convolutions one after another.
#include "cuda/dense/conv.h"
#include "cuda/fused/gatv2_stack.h"
#include "cuda/fused/gcn_stack.h"
#include "cuda/operators.h"
#include "cuda/scan/gate_grads.cuh"
#include "cuda/support/device.cuh"

namespace hiermt::cuda {
namespace {

template <class S>
int64_t values_of(const ConvStackForward<S>& p) {
  return p.graph.copies * p.graph.num_nodes * p.steps * p.hidden;
}

// Convolution k, which reads x or the output of the one before.
template <class S, class Weights>
ConvForward<S, Weights> conv_of(const ConvStackForward<S>& p, const Weights* weights, int64_t k,
                                const S* before, S* out) {
  const int64_t step = p.hidden, node = p.steps * step, copy = p.graph.num_nodes * node;
  return {p.graph,
          k == 0 ? p.x : SequenceView<S>{before, p.hidden, copy, node, step, 1},
          p.steps,
          p.hidden,
          p.edge_weight,
          p.present,
          p.tf32,
          weights[k],
          k + 1 < p.conv_layers ? Activation::kLeakyRelu : p.last,
          out};
}

template <class S, class Weights>
void dense_forward(const ConvStackForward<S>& p, const Weights* weights, Stream& on) {
  S* between[2];
  for (int i = 0; i < 2; ++i) between[i] = p.conv_layers > i + 1 ? on.take<S>(values_of(p)) : nullptr;
  for (int64_t k = 0; k < p.conv_layers; ++k) {
    const Stream::Frame frame(on);
    S* const out = k + 1 == p.conv_layers ? p.out : between[k % 2];
    conv_forward(conv_of(p, weights, k, between[(k + 1) % 2], out), on);
  }
}

template <class S, class Weights, class Grads>
void dense_backward(const ConvStackBackward<S, Compute<S>>& p, const Weights* weights, const Grads* grads,
                    Stream& on) {
  const ConvStackForward<S>& f = p.forward;
  const int64_t last = f.conv_layers - 1, values = values_of(f);
  S* d_between[2];  // cotangents of what convolutions but the last put out
  for (int i = 0; i < 2; ++i) d_between[i] = last > i ? on.take<S>(values) : nullptr;
  S* const outputs = on.take<S>(last * values);  // of all convolutions but the last, computed again
  const auto output = [&](int64_t k) { return k < 0 ? nullptr : k == last ? f.out : outputs + k * values; };
  const auto conv = [&](int64_t k) { return conv_of(f, weights, k, output(k - 1), output(k)); };
  for (int64_t k = 0; k < last; ++k) {
    const Stream::Frame frame(on);
    conv_forward(conv(k), on);
  }
  const S* d_out = p.d_out;
  for (int64_t k = last; k >= 0; --k) {
    const Stream::Frame frame(on);
    S* const d_in = k == 0 ? p.d_x : d_between[(k - 1) % 2];
    conv_backward(ConvBackward<S, Weights, Grads>{conv(k), d_out, d_in, grads != nullptr ? grads[k] : Grads{},
                                                  p.d_edge_weight, k == 0 && p.accumulate_d_x, k != last},
                  on);
    d_out = d_in;
  }
}

}  // namespace

template <class S>
bool fused_stack_fits(const ConvStackForward<S>& p) {
  return p.gat != nullptr ? gatv2_stack_fits(p) : gcn_stack_fits(p);
}

template <class S>
void fused_stack_forward(const ConvStackForward<S>& p, const GateWeights<S>& gates,
                         Compute<S>* input_projection, Stream& on) {
  p.gat != nullptr ? gatv2_stack_forward(p, gates, input_projection, on)
                   : gcn_stack_forward(p, gates, input_projection, on);
}

template <class S>
void conv_stack_forward(const ConvStackForward<S>& p, Stream& on) {
  if (fused_stack_fits(p)) return fused_stack_forward<S>(p, {}, nullptr, on);
  p.gat != nullptr ? dense_forward(p, p.gat, on) : dense_forward(p, p.gcn, on);
}

template <class S>
void conv_stack_backward(const ConvStackBackward<S, Compute<S>>& p, Stream& on,
                         const GateGradChunks<Compute<S>>& gates, S* d_out) {
  if (p.d_x == nullptr && p.gat == nullptr && p.gcn == nullptr && p.d_edge_weight == nullptr) return;
  if (p.forward.gat != nullptr && gatv2_stack_backward_fits(p.forward)) {
    return gatv2_stack_backward(p, gates, d_out, on);
  }
  if (gates.columns != 0) ordered_sum(on, sum_of_gates(gates));
  p.forward.gat != nullptr ? dense_backward(p, p.forward.gat, p.gat, on)
                           : dense_backward(p, p.forward.gcn, p.gcn, on);
}

#define HIERMT_INSTANTIATE(S)                                                                          \
  template bool fused_stack_fits<S>(const ConvStackForward<S>&);                                       \
  template void fused_stack_forward<S>(const ConvStackForward<S>&, const GateWeights<S>&, Compute<S>*, \
                                       Stream&);                                                       \
  template void conv_stack_forward<S>(const ConvStackForward<S>&, Stream&);                            \
  template void conv_stack_backward<S>(const ConvStackBackward<S, Compute<S>>&, Stream&,               \
                                       const GateGradChunks<Compute<S>>&, S*);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
