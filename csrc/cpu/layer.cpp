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

// eqs. 3 to 6
template <class S>
GatedScanForward<S> scan_of(const TgcnLayerForward<S>& p, const S* g) {
  const ConvStackForward<S>& s = p.stack;
  return {s.graph.copies, s.graph.num_nodes, s.steps, s.hidden, s.x,    g,
          nullptr,        p.gate_weights,    p.h,     p.h_last, p.gates};
}

template <class S>
GatedScanWindowsForward<S> windows_of(const TgcnLayerForward<S>& p, const S* g) {
  const ConvStackForward<S>& s = p.stack;
  return {p.windows, s.graph.num_nodes, s.steps, s.hidden, s.x, g, p.gate_weights, p.h, p.h_last, p.gates};
}

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
  if (p.windows.given) return gated_scan_windows_forward(windows_of<S>(p, stack.out));
  gated_scan_forward(scan_of<S>(p, stack.out));
}

template <class S>
void tgcn_layer_backward(const TgcnLayerBackward<S, Compute<S>>& p) {
  ScratchFrame frame;
  const TgcnLayerForward<S>& f = p.forward;
  const S* g = f.stack.out;
  S* d_g = frame.take<S>(values_of(f.stack));
  if (f.windows.given) {
    gated_scan_windows_backward<S>({windows_of<S>(f, g), p.d_h, p.d_h_last, p.d_x, d_g, p.gates});
  } else {
    gated_scan_backward<S>({scan_of<S>(f, g), p.d_h, p.d_h_last, p.d_x, false, d_g, nullptr, p.gates});
  }
  conv_stack_backward<S>({f.stack, d_g, p.d_x, true, p.gat, p.gcn, p.d_edge_weight});
}

HIERMT_INSTANTIATE(tgcn_layer_forward)
HIERMT_INSTANTIATE(tgcn_layer_backward)

}  // namespace hiermt::cpu::HIERMT_ISA
