// One T-GCN layer (arXiv 1811.05320, eqs. 2 to 6): the convolution stack for all steps, then the scan.
#include "cuda/dense/conv_stack.h"
#include "cuda/fused/gatv2_stack.h"
#include "cuda/layer.h"
#include "cuda/scan/gated_scan.h"
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

template <class S>
struct ForwardMemory {
  Workspace memory;
  S* g;
  unsigned char* inner;  // of the launcher at work

  ForwardMemory(void* base, const TgcnLayerForward<S>& p) : memory(base) {
    g = p.stack.out != nullptr ? p.stack.out : memory.take<S>(values_of(p.stack));
    inner = memory.take<unsigned char>(
        larger(conv_stack_forward_workspace(p.stack), gated_scan_forward_workspace(p.scan)));
  }
};

template <class S>
struct BackwardMemory {
  Workspace memory;
  S* d_g;
  unsigned char* inner;

  BackwardMemory(void* base, const TgcnLayerBackward<S, Compute<S>>& p) : memory(base) {
    d_g = memory.take<S>(values_of(p.stack.forward));
    inner = memory.take<unsigned char>(
        larger(gated_scan_backward_workspace<S>(p.scan), conv_stack_backward_workspace<S>(p.stack)));
  }
};

// Where one launch runs the stack backward: the scan's workspace, of whose results the stack takes the cotangents of the
// gates, those of the days where there are windows, on to x and g. The rest of it becomes that of the stack.
template <class S>
struct FusedBackwardMemory {
  size_t results, bytes;
  unsigned char* scan;
  unsigned char* stack;

  FusedBackwardMemory(void* base, const TgcnLayerBackward<S, Compute<S>>& p)
      : results(gated_scan_backward_results<S>(p.scan)),
        bytes(larger(gated_scan_backward_workspace<S>(p.scan),
                     results + gatv2_stack_backward_workspace<S>(p.stack))),
        scan(static_cast<unsigned char*>(base)),
        stack(base == nullptr ? nullptr : scan + results) {}
};

}  // namespace

template <class S>
size_t tgcn_layer_forward_workspace(const TgcnLayerForward<S>& p) {
  if (fused_stack_fits(p.stack)) return gated_scan_forward_workspace(p.scan);
  return ForwardMemory<S>(nullptr, p).memory.bytes();
}

template <class S>
int tgcn_layer_forward(const TgcnLayerForward<S>& p, void* workspace, void* stream) {
  if (fused_stack_fits(p.stack)) {
    // Two launches: the stack leaves what the recurrence reads at the start of its workspace.
    Compute<S>* const from_input = static_cast<Compute<S>*>(workspace);
    const int error = fused_stack_forward(p.stack, p.scan.weights, from_input, stream);
    return error != 0 ? error : gated_scan_recurrence(p.scan, workspace, stream);
  }
  const ForwardMemory<S> memory(workspace, p);
  ConvStackForward<S> stack = p.stack;
  stack.out = memory.g;
  if (const int error = conv_stack_forward(stack, memory.inner, stream)) return error;
  GatedScanForward<S> scan = p.scan;
  scan.g = memory.g;
  return gated_scan_forward(scan, memory.inner, stream);
}

template <class S>
size_t tgcn_layer_backward_workspace(const TgcnLayerBackward<S, Compute<S>>& p) {
  if (gatv2_stack_backward_fits(p.stack.forward)) return FusedBackwardMemory<S>(nullptr, p).bytes;
  return BackwardMemory<S>(nullptr, p).memory.bytes();
}

template <class S>
int tgcn_layer_backward(const TgcnLayerBackward<S, Compute<S>>& p, void* workspace, void* stream) {
  using C = Compute<S>;
  ConvStackBackward<S, C> stack = p.stack;
  GatedScanBackward<S, C> scan = p.scan;
  scan.forward.g = stack.forward.out;
  const bool need_stack =
      stack.d_x != nullptr || stack.gat != nullptr || stack.gcn != nullptr || stack.d_edge_weight != nullptr;
  if (gatv2_stack_backward_fits(stack.forward)) {
    const FusedBackwardMemory<S> memory(workspace, p);
    scan.d_x = nullptr;
    GateGradChunks<C> gate_grads;
    const int error = gated_scan_backward<S>(scan, memory.scan, stream, need_stack ? &gate_grads : nullptr);
    if (error != 0 || !need_stack) return error;
    return gatv2_stack_backward<S>(stack, scan.forward.weights, reinterpret_cast<C*>(memory.scan), gate_grads,
                                   memory.stack, stream);
  }
  const BackwardMemory<S> memory(workspace, p);
  scan.d_g = need_stack ? memory.d_g : nullptr;
  if (const int error = gated_scan_backward<S>(scan, memory.inner, stream)) return error;
  stack.d_out = memory.d_g;
  return conv_stack_backward<S>(stack, memory.inner, stream);
}

#define HIERMT_INSTANTIATE(S)                                                                \
  template size_t tgcn_layer_forward_workspace<S>(const TgcnLayerForward<S>&);               \
  template int tgcn_layer_forward<S>(const TgcnLayerForward<S>&, void*, void*);              \
  template size_t tgcn_layer_backward_workspace<S>(const TgcnLayerBackward<S, Compute<S>>&); \
  template int tgcn_layer_backward<S>(const TgcnLayerBackward<S, Compute<S>>&, void*, void*);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
