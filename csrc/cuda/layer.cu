// One T-GCN layer (arXiv 1811.05320, eqs. 2 to 6): the convolution stack for all steps, then the scan.
#include "cuda/dense/gatv2_conv.h"
#include "cuda/dense/gcn_conv.h"
#include "cuda/fused/gatv2_stack.h"
#include "cuda/fused/gcn_stack.h"
#include "cuda/layer.h"
#include "cuda/scan/gated_scan.h"
#include "cuda/scan/gated_scan_windows.h"
#include "cuda/support/launch.cuh"

namespace hiermt::cuda {
namespace {

// Convolution k of the stack, reading x or what the one before left.
template <class S>
struct Stack {
  const TgcnLayerForward<S>& p;

  int64_t nodes() const { return p.graph.copies * p.graph.num_nodes; }
  int64_t values() const { return nodes() * p.steps * p.hidden; }
  int64_t depth() const { return p.conv_layers; }

  SequenceView<S> input(int64_t k, const S* before) const {
    if (k == 0) return p.x;
    const int64_t step = p.hidden, node = p.steps * step;
    return {before, p.hidden, p.graph.num_nodes * node, node, step, 1};
  }
  Activation activation(int64_t k) const {
    if (k + 1 < p.conv_layers) return Activation::kLeakyRelu;
    return p.between ? Activation::kSigmoid : Activation::kLeakySigmoid;
  }
  GatV2ConvForward<S> gat(int64_t k, const S* before, S* out) const {
    return {p.graph,  input(k, before), p.steps, p.hidden, p.edge_weight,
            p.gat[k], activation(k),    out,     p.tf32};
  }
  GcnConvForward<S> gcn(int64_t k, const S* before, S* out) const {
    return {p.graph,  input(k, before), p.steps, p.hidden, p.edge_weight,
            p.gcn[k], activation(k),    out,     p.tf32};
  }
  GatedScanForward<S> scan(const S* g) const {
    return {p.graph.copies, p.graph.num_nodes, p.steps, p.hidden, p.x,   g, nullptr, p.gate_weights, p.h,
            p.h_last,       p.gates,           0,       0,        p.tf32};
  }

  GatedScanWindowsForward<S> windows(const S* g) const {
    return {p.windows, p.graph.num_nodes, p.steps, p.hidden, p.x, g, p.gate_weights,
            p.h,       p.h_last,          p.gates, p.tf32};
  }
  size_t scan_workspace() const {
    return p.windows.given ? gated_scan_windows_forward_workspace(windows(nullptr))
                           : gated_scan_forward_workspace(scan(nullptr));
  }
  int run_scan(const S* g, void* workspace, void* stream) const {
    return p.windows.given ? gated_scan_windows_forward(windows(g), workspace, stream)
                           : gated_scan_forward(scan(g), workspace, stream);
  }
  // Over what the gates take from x and g, which lies at the start of the workspace.
  int run_recurrence(void* workspace, void* stream) const {
    return p.windows.given ? gated_scan_windows_recurrence(windows(p.g), workspace, stream)
                           : gated_scan_recurrence(scan(p.g), workspace, stream);
  }

  size_t conv_workspace(int64_t k) const {
    return p.gat != nullptr ? gatv2_conv_forward_workspace(gat(k, nullptr, nullptr))
                            : gcn_conv_forward_workspace(gcn(k, nullptr, nullptr));
  }
  int run_conv(int64_t k, const S* before, S* out, void* workspace, void* stream) const {
    return p.gat != nullptr ? gatv2_conv_forward(gat(k, before, out), workspace, stream)
                            : gcn_conv_forward(gcn(k, before, out), workspace, stream);
  }
};

constexpr size_t larger(size_t a, size_t b) {
  return a > b ? a : b;
}

template <class S>
struct ForwardMemory {
  Workspace memory;
  S* g;
  S* between[2];
  unsigned char* inner;  // of the launcher at work

  ForwardMemory(void* base, const Stack<S>& stack) : memory(base) {
    g = stack.p.g != nullptr ? stack.p.g : memory.take<S>(stack.values());
    for (int i = 0; i < 2; ++i) between[i] = stack.depth() > i + 1 ? memory.take<S>(stack.values()) : nullptr;
    size_t bytes = stack.scan_workspace();
    for (int64_t k = 0; k < stack.depth(); ++k) bytes = larger(bytes, stack.conv_workspace(k));
    inner = memory.take<unsigned char>(bytes);
  }
};

// The scan of a layer backward; to x and to g where somebody wants them.
template <class S>
struct ScanBackward {
  using C = Compute<S>;
  const TgcnLayerBackward<S, C>& p;
  const Stack<S> stack;
  S *d_x, *d_g;

  GatedScanBackward<S, C> plain() const {
    return {stack.scan(p.forward.g), p.d_h, p.d_h_last, d_x, false, d_g, nullptr, p.gates};
  }
  GatedScanWindowsBackward<S, C> windows() const {
    return {stack.windows(p.forward.g), p.d_h, p.d_h_last, d_x, d_g, p.gates};
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
struct BackwardMemory {
  using C = Compute<S>;
  Workspace memory;
  S* grads[2];  // cotangent of a convolution's output, and of its input
  S* outputs;   // of all convolutions but the last, computed again
  unsigned char* inner;

  BackwardMemory(void* base, const TgcnLayerBackward<S, C>& p, const Stack<S>& stack) : memory(base) {
    grads[0] = memory.take<S>(stack.values());
    grads[1] = stack.depth() > 1 ? memory.take<S>(stack.values()) : nullptr;
    outputs = memory.take<S>((stack.depth() - 1) * stack.values());
    size_t bytes = ScanBackward<S>{p, stack, p.d_x, grads[0]}.workspace();
    for (int64_t k = 0; k < stack.depth(); ++k) {
      bytes = larger(bytes, stack.conv_workspace(k));
      bytes = larger(bytes,
                     p.forward.gat != nullptr
                         ? gatv2_conv_backward_workspace(gat(p, stack, k, nullptr, nullptr, nullptr, nullptr))
                         : gcn_conv_backward_workspace(gcn(p, stack, k, nullptr, nullptr, nullptr, nullptr)));
    }
    inner = memory.take<unsigned char>(bytes);
  }

  static GatV2ConvBackward<S, C> gat(const TgcnLayerBackward<S, C>& p, const Stack<S>& stack, int64_t k,
                                     const S* before, S* out, const S* d_out, S* d_in) {
    return {stack.gat(k, before, out), d_out, d_in, p.gat != nullptr ? p.gat[k] : GatV2Grads<C>{},
            p.d_edge_weight};
  }
  static GcnConvBackward<S, C> gcn(const TgcnLayerBackward<S, C>& p, const Stack<S>& stack, int64_t k,
                                   const S* before, S* out, const S* d_out, S* d_in) {
    return {stack.gcn(k, before, out), d_out, d_in, p.gcn != nullptr ? p.gcn[k] : GcnGrads<C>{},
            p.d_edge_weight};
  }
};

}  // namespace

template <class S>
size_t tgcn_layer_forward_workspace(const TgcnLayerForward<S>& p) {
  const Stack<S> stack{p};
  if (gatv2_stack_fits(p) || gcn_stack_fits(p)) return stack.scan_workspace();
  return ForwardMemory<S>(nullptr, stack).memory.bytes();
}

template <class S>
int tgcn_layer_forward(const TgcnLayerForward<S>& p, void* workspace, void* stream) {
  const Stack<S> stack{p};
  if (gatv2_stack_fits(p) || gcn_stack_fits(p)) {
    // Two launches: the stack leaves what the recurrence reads at the start of its workspace.
    Compute<S>* const from_input = static_cast<Compute<S>*>(workspace);
    const int error = p.gat != nullptr ? gatv2_stack_forward(p, from_input, stream)
                                       : gcn_stack_forward(p, from_input, stream);
    return error != 0 ? error : stack.run_recurrence(workspace, stream);
  }
  const ForwardMemory<S> memory(workspace, stack);
  const S* before = nullptr;
  for (int64_t k = 0; k < p.conv_layers; ++k) {
    S* out = k + 1 == p.conv_layers ? memory.g : memory.between[k % 2];
    if (const int error = stack.run_conv(k, before, out, memory.inner, stream)) return error;
    before = out;
  }
  return stack.run_scan(memory.g, memory.inner, stream);
}

// Where the stack goes back in one launch: the scan's workspace, then that of the stack.
template <class S>
struct FusedBackwardMemory {
  Workspace memory;
  unsigned char* scan;
  unsigned char* stack;

  FusedBackwardMemory(void* base, const TgcnLayerBackward<S, Compute<S>>& p, const Stack<S>& layer)
      : memory(base) {
    scan = memory.take<unsigned char>(gates(p, layer).workspace());
    stack = memory.take<unsigned char>(gatv2_stack_backward_workspace(p));
  }
  // The gates alone: the stack takes their cotangents, those of the days where there are windows, on to x and
  // g.
  static ScanBackward<S> gates(const TgcnLayerBackward<S, Compute<S>>& p, const Stack<S>& layer) {
    return {p, layer, nullptr, nullptr};
  }
};

template <class S>
size_t tgcn_layer_backward_workspace(const TgcnLayerBackward<S, Compute<S>>& p) {
  if (gatv2_stack_backward_fits(p)) {
    return FusedBackwardMemory<S>(nullptr, p, Stack<S>{p.forward}).memory.bytes();
  }
  return BackwardMemory<S>(nullptr, p, Stack<S>{p.forward}).memory.bytes();
}

template <class S>
int tgcn_layer_backward(const TgcnLayerBackward<S, Compute<S>>& p, void* workspace, void* stream) {
  using Memory = BackwardMemory<S>;
  const Stack<S> stack{p.forward};
  const bool need_stack =
      p.d_x != nullptr || p.gat != nullptr || p.gcn != nullptr || p.d_edge_weight != nullptr;
  if (gatv2_stack_backward_fits(p)) {
    using Fused = FusedBackwardMemory<S>;
    const Fused memory(workspace, p, stack);
    const int error = Fused::gates(p, stack).run(memory.scan, stream);
    if (error != 0 || !need_stack) return error;
    return gatv2_stack_backward(p, reinterpret_cast<Compute<S>*>(memory.scan), memory.stack, stream);
  }
  const Memory memory(workspace, p, stack);
  const int64_t last = p.forward.conv_layers - 1;
  const auto output = [&](int64_t k) {
    return k < 0 ? nullptr : k == last ? p.forward.g : memory.outputs + k * stack.values();
  };
  S* d_out = memory.grads[0];
  S* d_in = memory.grads[1];
  const ScanBackward<S> scan{p, stack, p.d_x, need_stack ? d_out : nullptr};
  if (const int error = scan.run(memory.inner, stream)) return error;
  if (!need_stack) return cudaSuccess;
  for (int64_t k = 0; k < last; ++k) {
    if (const int error = stack.run_conv(k, output(k - 1), output(k), memory.inner, stream)) return error;
  }
  for (int64_t k = last; k >= 0; --k) {
    S* to = k == 0 ? p.d_x : d_in;
    const Accumulate accumulate{k == 0, k != last};
    const int error = p.forward.gat != nullptr
                          ? gatv2_conv_backward(Memory::gat(p, stack, k, output(k - 1), output(k), d_out, to),
                                                accumulate, memory.inner, stream)
                          : gcn_conv_backward(Memory::gcn(p, stack, k, output(k - 1), output(k), d_out, to),
                                              accumulate, memory.inner, stream);
    if (error != 0) return error;
    S* const used = d_out;
    d_out = d_in;
    d_in = used;
  }
  return cudaSuccess;
}

#define HIERMT_INSTANTIATE(S)                                                                \
  template size_t tgcn_layer_forward_workspace<S>(const TgcnLayerForward<S>&);               \
  template int tgcn_layer_forward<S>(const TgcnLayerForward<S>&, void*, void*);              \
  template size_t tgcn_layer_backward_workspace<S>(const TgcnLayerBackward<S, Compute<S>>&); \
  template int tgcn_layer_backward<S>(const TgcnLayerBackward<S, Compute<S>>&, void*, void*);
HIERMT_INSTANTIATE(float)
HIERMT_INSTANTIATE(double)
HIERMT_INSTANTIATE(BFloat16)
HIERMT_INSTANTIATE(Half)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
