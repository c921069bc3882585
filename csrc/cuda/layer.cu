// One T-GCN layer (arXiv 1811.05320, eqs. 2 to 6): the convolution stack for all steps, then the scan.
#include "cuda/operators.h"
#include "cuda/support/device.cuh"

namespace hiermt::cuda {

template <class S>
static size_t values_of(const ConvStackForward<S>& p) {
  return p.graph.copies * p.graph.num_nodes * p.steps * p.hidden;
}

template <class S>
static void layer_forward(const TgcnLayerForward<S>& p, const DecisionForward<S>* decision, Stream& on) {
  if (fused_stack_fits(p.stack)) {
    // Two launches: the stack leaves what the recurrence reads.
    auto* const input_projection = on.take<Compute<S>>(3 * values_of(p.stack));
    fused_stack_forward(p.stack, p.scan.weights, input_projection, on);
    return gated_scan_recurrence(p.scan, input_projection, on, decision);
  }
  ConvStackForward<S> stack = p.stack;
  GatedScanForward<S> scan = p.scan;
  if (stack.out == nullptr) stack.out = on.take<S>(values_of(stack));
  scan.g = stack.out;
  {
    const Stream::Frame frame(on);
    conv_stack_forward(stack, on);
  }
  gated_scan_forward(scan, on, decision);
}

template <class S>
void tgcn_layer_forward(const TgcnLayerForward<S>& p, Stream& on) {
  layer_forward<S>(p, nullptr, on);
}

template <class S>
void tgcn_layer_decision(const TgcnLayerDecision<S>& p, Stream& on) {
  layer_forward<S>(p.layer, &p.decision, on);
}

template <class S>
void tgcn_layer_backward(const TgcnLayerBackward<S, Compute<S>>& p, Stream& on) {
  ConvStackBackward<S, Compute<S>> stack = p.stack;
  GatedScanBackward<S, Compute<S>> scan = p.scan;
  scan.forward.g = stack.forward.out;
  const bool need_stack =
      stack.d_x != nullptr || stack.gat != nullptr || stack.gcn != nullptr || stack.d_edge_weight != nullptr;
  S* const d_g = need_stack ? on.take<S>(values_of(stack.forward)) : nullptr;
  scan.d_g = d_g;
  stack.d_out = d_g;
  GateGradChunks<Compute<S>> gate_grads;
  gated_scan_backward<S>(scan, on, need_stack ? &gate_grads : nullptr);
  if (need_stack) conv_stack_backward<S>(stack, on, gate_grads, d_g);
}

#define HIERMT_INSTANTIATE(S)                                                 \
  template void tgcn_layer_forward<S>(const TgcnLayerForward<S>&, Stream&);   \
  template void tgcn_layer_decision<S>(const TgcnLayerDecision<S>&, Stream&); \
  template void tgcn_layer_backward<S>(const TgcnLayerBackward<S, Compute<S>>&, Stream&);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
