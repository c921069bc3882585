// One T-GCN layer (arXiv 1811.05320, eqs. 2 to 6). The convolution stack reads x alone, so it runs for all
// steps first; the scan touches no edge. Both halves are cut into many more tasks than there are threads, the
// stack by chunks of instances and the scan by tiles of nodes, so that one small graph keeps every core busy
// too.
#include "cpu/simd/simd.h"
// simd.h first: it names the instruction set.
#include "cpu/support/kernels.h"
#include "cpu/support/scratch.h"

namespace hiermt::cpu::HIERMT_ISA {

namespace {

template <class S>
int64_t values_of(const ConvStackForward<S>& p) {
  return p.graph.copies * p.graph.num_nodes * p.steps * p.hidden;
}

}  // namespace

template <class S>
void tgcn_layer_forward(const TgcnLayerForward<S>& p) {
  ScratchFrame frame;
  ConvStackForward<S> stack = p.stack;
  if (stack.out == nullptr) stack.out = frame.take<S>(values_of(stack));
  conv_stack_forward(stack);
  GatedScanForward<S> scan = p.scan;
  scan.g = stack.out;
  gated_scan_forward(scan);
}

template <class S>
void tgcn_layer_decision(const TgcnLayerDecision<S>& p) {
  ScratchFrame frame;
  TgcnLayerForward<S> layer = p.layer;
  layer.scan.h_last = frame.take<S>(p.decision.rows * p.decision.hidden);
  tgcn_layer_forward(layer);
  DecisionForward<S> decision = p.decision;
  decision.h = layer.scan.h_last;
  decision_forward(decision);
}

template <class S>
void tgcn_layer_backward(const TgcnLayerBackward<S, Compute<S>>& p) {
  ScratchFrame frame;
  GatedScanBackward<S, Compute<S>> scan = p.scan;
  scan.forward.g = p.stack.forward.out;
  scan.d_g = frame.take<S>(values_of(p.stack.forward));
  gated_scan_backward<S>(scan);
  ConvStackBackward<S, Compute<S>> stack = p.stack;
  stack.d_out = scan.d_g;
  conv_stack_backward<S>(stack);
}

HIERMT_INSTANTIATE(tgcn_layer_forward)
HIERMT_INSTANTIATE(tgcn_layer_decision)
HIERMT_INSTANTIATE(tgcn_layer_backward)

}  // namespace hiermt::cpu::HIERMT_ISA
