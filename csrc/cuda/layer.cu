// One T-GCN layer (arXiv 1811.05320, eqs. 2 to 6): the convolution stack for all steps, then the scan.
#include "cuda/conv_stack.h"
#include "cuda/fused/gatv2_stack.h"
#include "cuda/layer.h"
#include "cuda/scan/gated_scan.h"
#include "cuda/scan/gated_scan_windows.h"
#include "cuda/support/device.cuh"

namespace hiermt::cuda {
namespace {

constexpr size_t larger(size_t a, size_t b) {
  return a > b ? a : b;
}

template <class S>
int64_t values_of(const ConvStackForward<S>& p) {
  return p.graph.copies * p.graph.num_nodes * p.steps * p.hidden;
}

// The scan of a layer, over its steps or over windows of them.
template <class S>
struct Scan {
  const TgcnLayerForward<S>& p;

  GatedScanForward<S> plain(const S* g) const {
    const ConvStackForward<S>& s = p.stack;
    return {s.graph.copies, s.graph.num_nodes, s.steps, s.hidden, s.x,   g, nullptr, p.gate_weights, p.h,
            p.h_last,       p.gates,           0,       0,        s.tf32};
  }
  GatedScanWindowsForward<S> windows(const S* g) const {
    const ConvStackForward<S>& s = p.stack;
    return {p.windows, s.graph.num_nodes, s.steps, s.hidden, s.x, g, p.gate_weights,
            p.h,       p.h_last,          p.gates, s.tf32};
  }
  size_t workspace() const {
    return p.windows.given ? gated_scan_windows_forward_workspace(windows(nullptr))
                           : gated_scan_forward_workspace(plain(nullptr));
  }
  int run(const S* g, void* workspace, void* stream) const {
    return p.windows.given ? gated_scan_windows_forward(windows(g), workspace, stream)
                           : gated_scan_forward(plain(g), workspace, stream);
  }
  // Over the input projection, which lies at the start of the workspace.
  int run_recurrence(void* workspace, void* stream) const {
    return p.windows.given ? gated_scan_windows_recurrence(windows(p.stack.out), workspace, stream)
                           : gated_scan_recurrence(plain(p.stack.out), workspace, stream);
  }
};

template <class S>
struct ForwardMemory {
  Workspace memory;
  S* g;
  unsigned char* inner;  // of the launcher at work

  ForwardMemory(void* base, const TgcnLayerForward<S>& p) : memory(base) {
    g = p.stack.out != nullptr ? p.stack.out : memory.take<S>(values_of(p.stack));
    inner = memory.take<unsigned char>(larger(conv_stack_forward_workspace(p.stack), Scan<S>{p}.workspace()));
  }
};

// The scan of a layer backward, to x and to g where their cotangents are wanted.
template <class S>
struct ScanBackward {
  using C = Compute<S>;
  const TgcnLayerBackward<S, C>& p;
  S *d_x, *d_g;

  GatedScanBackward<S, C> plain() const {
    return {
        Scan<S>{p.forward}.plain(p.forward.stack.out), p.d_h, p.d_h_last, d_x, false, d_g, nullptr, p.gates};
  }
  GatedScanWindowsBackward<S, C> windows() const {
    return {Scan<S>{p.forward}.windows(p.forward.stack.out), p.d_h, p.d_h_last, d_x, d_g, p.gates};
  }
  size_t workspace() const {
    return p.forward.windows.given ? gated_scan_windows_backward_workspace(windows())
                                   : gated_scan_backward_workspace(plain());
  }
  int run(void* workspace, void* stream) const {
    return p.forward.windows.given ? gated_scan_windows_backward(windows(), workspace, stream)
                                   : gated_scan_backward(plain(), workspace, stream);
  }
};

template <class S>
ConvStackBackward<S, Compute<S>> stack_of(const TgcnLayerBackward<S, Compute<S>>& p, const S* d_g) {
  return {p.forward.stack, d_g, p.d_x, true, p.gat, p.gcn, p.d_edge_weight};
}

template <class S>
struct BackwardMemory {
  Workspace memory;
  S* d_g;
  unsigned char* inner;

  BackwardMemory(void* base, const TgcnLayerBackward<S, Compute<S>>& p) : memory(base) {
    d_g = memory.take<S>(values_of(p.forward.stack));
    inner = memory.take<unsigned char>(larger(ScanBackward<S>{p, p.d_x, d_g}.workspace(),
                                              conv_stack_backward_workspace(stack_of<S>(p, d_g))));
  }
};

// Where one launch runs the stack backward: the scan's workspace, then that of the stack. The scan leaves the
// cotangents of the gates, those of the days where there are windows, and the stack takes them on to x and g.
template <class S>
struct FusedBackwardMemory {
  Workspace memory;
  unsigned char* scan;
  unsigned char* stack;

  FusedBackwardMemory(void* base, const TgcnLayerBackward<S, Compute<S>>& p) : memory(base) {
    scan = memory.take<unsigned char>(ScanBackward<S>{p, nullptr, nullptr}.workspace());
    stack = memory.take<unsigned char>(gatv2_stack_backward_workspace(stack_of<S>(p, nullptr)));
  }
};

}  // namespace

template <class S>
size_t tgcn_layer_forward_workspace(const TgcnLayerForward<S>& p) {
  if (fused_stack_fits(p.stack)) return Scan<S>{p}.workspace();
  return ForwardMemory<S>(nullptr, p).memory.bytes();
}

template <class S>
int tgcn_layer_forward(const TgcnLayerForward<S>& p, void* workspace, void* stream) {
  const Scan<S> scan{p};
  if (fused_stack_fits(p.stack)) {
    // Two launches: the stack leaves what the recurrence reads at the start of its workspace.
    if (const int error =
            fused_stack_forward(p.stack, p.gate_weights, static_cast<Compute<S>*>(workspace), stream)) {
      return error;
    }
    return scan.run_recurrence(workspace, stream);
  }
  const ForwardMemory<S> memory(workspace, p);
  ConvStackForward<S> stack = p.stack;
  stack.out = memory.g;
  if (const int error = conv_stack_forward(stack, memory.inner, stream)) return error;
  return scan.run(memory.g, memory.inner, stream);
}

template <class S>
size_t tgcn_layer_backward_workspace(const TgcnLayerBackward<S, Compute<S>>& p) {
  if (gatv2_stack_backward_fits(p.forward.stack)) {
    return FusedBackwardMemory<S>(nullptr, p).memory.bytes();
  }
  return BackwardMemory<S>(nullptr, p).memory.bytes();
}

template <class S>
int tgcn_layer_backward(const TgcnLayerBackward<S, Compute<S>>& p, void* workspace, void* stream) {
  const bool need_stack =
      p.d_x != nullptr || p.gat != nullptr || p.gcn != nullptr || p.d_edge_weight != nullptr;
  if (gatv2_stack_backward_fits(p.forward.stack)) {
    const FusedBackwardMemory<S> memory(workspace, p);
    const int error = ScanBackward<S>{p, nullptr, nullptr}.run(memory.scan, stream);
    if (error != 0 || !need_stack) return error;
    return gatv2_stack_backward(stack_of<S>(p, nullptr), p.forward.gate_weights,
                                reinterpret_cast<Compute<S>*>(memory.scan), memory.stack, stream);
  }
  const BackwardMemory<S> memory(workspace, p);
  const ScanBackward<S> scan{p, p.d_x, need_stack ? memory.d_g : nullptr};
  if (const int error = scan.run(memory.inner, stream)) return error;
  return conv_stack_backward(stack_of<S>(p, memory.d_g), memory.inner, stream);
}

#define HIERMT_INSTANTIATE(S)                                                                \
  template size_t tgcn_layer_forward_workspace<S>(const TgcnLayerForward<S>&);               \
  template int tgcn_layer_forward<S>(const TgcnLayerForward<S>&, void*, void*);              \
  template size_t tgcn_layer_backward_workspace<S>(const TgcnLayerBackward<S, Compute<S>>&); \
  template int tgcn_layer_backward<S>(const TgcnLayerBackward<S, Compute<S>>&, void*, void*);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
