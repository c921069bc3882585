// A stack of graph convolutions: one launch where it fits one, else the dense convolutions one after another.
#include "cuda/dense/conv_stack.h"
#include "cuda/dense/gatv2_conv.h"
#include "cuda/dense/gcn_conv.h"
#include "cuda/fused/gatv2_stack.h"
#include "cuda/fused/gcn_stack.h"
#include "cuda/support/device.cuh"

namespace hiermt::cuda {
namespace {

constexpr size_t larger(size_t a, size_t b) {
  return a > b ? a : b;
}

// The convolutions of a stack, each reading x or the output of the one before.
template <class S>
struct DenseStack {
  const ConvStackForward<S>& p;

  int64_t values() const { return p.graph.copies * p.graph.num_nodes * p.steps * p.hidden; }
  int64_t depth() const { return p.conv_layers; }

  SequenceView<S> input(int64_t k, const S* before) const {
    if (k == 0) return p.x;
    const int64_t step = p.hidden, node = p.steps * step;
    return {before, p.hidden, p.graph.num_nodes * node, node, step, 1};
  }
  Activation activation(int64_t k) const { return k + 1 < depth() ? Activation::kLeakyRelu : p.last; }
  GatV2ConvForward<S> gat(int64_t k, const S* before, S* out) const {
    return {p.graph,   input(k, before), p.steps,       p.hidden, p.edge_weight,
            p.present, p.gat[k],         activation(k), out,      p.tf32};
  }
  GcnConvForward<S> gcn(int64_t k, const S* before, S* out) const {
    return {p.graph,   input(k, before), p.steps,       p.hidden, p.edge_weight,
            p.present, p.gcn[k],         activation(k), out,      p.tf32};
  }
  size_t workspace(int64_t k) const {
    return p.gat != nullptr ? gatv2_conv_forward_workspace(gat(k, nullptr, nullptr))
                            : gcn_conv_forward_workspace(gcn(k, nullptr, nullptr));
  }
  int run(int64_t k, const S* before, S* out, void* workspace, void* stream) const {
    return p.gat != nullptr ? gatv2_conv_forward(gat(k, before, out), workspace, stream)
                            : gcn_conv_forward(gcn(k, before, out), workspace, stream);
  }
};

template <class S>
struct ForwardMemory {
  Workspace memory;
  S* between[2];
  unsigned char* inner;  // of the convolution at work

  ForwardMemory(void* base, const DenseStack<S>& stack) : memory(base) {
    for (int i = 0; i < 2; ++i) between[i] = stack.depth() > i + 1 ? memory.take<S>(stack.values()) : nullptr;
    size_t bytes = 0;
    for (int64_t k = 0; k < stack.depth(); ++k) bytes = larger(bytes, stack.workspace(k));
    inner = memory.take<unsigned char>(bytes);
  }
};

template <class S>
struct BackwardMemory {
  using C = Compute<S>;
  Workspace memory;
  S* grads[2];  // cotangents of what convolutions but the last put out
  S* outputs;   // of all convolutions but the last, computed again
  unsigned char* inner;

  BackwardMemory(void* base, const ConvStackBackward<S, C>& p, const DenseStack<S>& stack) : memory(base) {
    for (int i = 0; i < 2; ++i) grads[i] = stack.depth() > i + 1 ? memory.take<S>(stack.values()) : nullptr;
    outputs = memory.take<S>((stack.depth() - 1) * stack.values());
    size_t bytes = 0;
    for (int64_t k = 0; k < stack.depth(); ++k) {
      bytes = larger(bytes, stack.workspace(k));
      bytes = larger(bytes,
                     p.forward.gat != nullptr
                         ? gatv2_conv_backward_workspace(gat(p, stack, k, nullptr, nullptr, nullptr, nullptr))
                         : gcn_conv_backward_workspace(gcn(p, stack, k, nullptr, nullptr, nullptr, nullptr)));
    }
    inner = memory.take<unsigned char>(bytes);
  }

  static GatV2ConvBackward<S, C> gat(const ConvStackBackward<S, C>& p, const DenseStack<S>& stack, int64_t k,
                                     const S* before, S* out, const S* d_out, S* d_in) {
    return {stack.gat(k, before, out), d_out, d_in, p.gat != nullptr ? p.gat[k] : GatV2Grads<C>{},
            p.d_edge_weight};
  }
  static GcnConvBackward<S, C> gcn(const ConvStackBackward<S, C>& p, const DenseStack<S>& stack, int64_t k,
                                   const S* before, S* out, const S* d_out, S* d_in) {
    return {stack.gcn(k, before, out), d_out, d_in, p.gcn != nullptr ? p.gcn[k] : GcnGrads<C>{},
            p.d_edge_weight};
  }
};

}  // namespace

template <class S>
bool fused_stack_fits(const ConvStackForward<S>& p) {
  return p.gat != nullptr ? gatv2_stack_fits(p) : gcn_stack_fits(p);
}

template <class S>
int fused_stack_forward(const ConvStackForward<S>& p, const GateWeights<S>& gates,
                        Compute<S>* input_projection, void* stream) {
  return p.gat != nullptr ? gatv2_stack_forward(p, gates, input_projection, stream)
                          : gcn_stack_forward(p, gates, input_projection, stream);
}

// Without the gates of a layer behind it, a stack whose items are shared by lanes is not fused: the branch that
// skips the input projection would cost that kernel a spill.
template <class S>
static bool fused_alone(const ConvStackForward<S>& p) {
  constexpr int64_t kMaxHidden = 32;
  return p.hidden <= kMaxHidden && fused_stack_fits(p);
}

template <class S>
size_t conv_stack_forward_workspace(const ConvStackForward<S>& p) {
  return fused_alone(p) ? 0 : ForwardMemory<S>(nullptr, DenseStack<S>{p}).memory.bytes();
}

template <class S>
int conv_stack_forward(const ConvStackForward<S>& p, void* workspace, void* stream) {
  if (fused_alone(p)) return fused_stack_forward<S>(p, {}, nullptr, stream);
  const DenseStack<S> stack{p};
  const ForwardMemory<S> memory(workspace, stack);
  const S* before = nullptr;
  for (int64_t k = 0; k < p.conv_layers; ++k) {
    S* out = k + 1 == p.conv_layers ? p.out : memory.between[k % 2];
    if (const int error = stack.run(k, before, out, memory.inner, stream)) return error;
    before = out;
  }
  return cudaSuccess;
}

template <class S>
size_t conv_stack_backward_workspace(const ConvStackBackward<S, Compute<S>>& p) {
  return BackwardMemory<S>(nullptr, p, DenseStack<S>{p.forward}).memory.bytes();
}

template <class S>
int conv_stack_backward(const ConvStackBackward<S, Compute<S>>& p, void* workspace, void* stream) {
  using Memory = BackwardMemory<S>;
  if (p.d_x == nullptr && p.gat == nullptr && p.gcn == nullptr && p.d_edge_weight == nullptr) {
    return cudaSuccess;
  }
  const DenseStack<S> stack{p.forward};
  const Memory memory(workspace, p, stack);
  const int64_t last = stack.depth() - 1;
  const auto output = [&](int64_t k) {
    return k < 0 ? nullptr : k == last ? p.forward.out : memory.outputs + k * stack.values();
  };
  for (int64_t k = 0; k < last; ++k) {
    if (const int error = stack.run(k, output(k - 1), output(k), memory.inner, stream)) return error;
  }
  const S* d_out = p.d_out;
  for (int64_t k = last; k >= 0; --k) {
    S* const d_in = k == 0 ? p.d_x : memory.grads[(k - 1) % 2];
    const Accumulate accumulate{k == 0 && p.accumulate_d_x, k != last};
    const int error =
        p.forward.gat != nullptr
            ? gatv2_conv_backward(Memory::gat(p, stack, k, output(k - 1), output(k), d_out, d_in), accumulate,
                                  memory.inner, stream)
            : gcn_conv_backward(Memory::gcn(p, stack, k, output(k - 1), output(k), d_out, d_in), accumulate,
                                memory.inner, stream);
    if (error != 0) return error;
    d_out = d_in;
  }
  return cudaSuccess;
}

#define HIERMT_INSTANTIATE(S)                                                                         \
  template bool fused_stack_fits<S>(const ConvStackForward<S>&);                                      \
  template int fused_stack_forward<S>(const ConvStackForward<S>&, const GateWeights<S>&, Compute<S>*, \
                                      void*);                                                         \
  template size_t conv_stack_forward_workspace<S>(const ConvStackForward<S>&);                        \
  template int conv_stack_forward<S>(const ConvStackForward<S>&, void*, void*);                       \
  template size_t conv_stack_backward_workspace<S>(const ConvStackBackward<S, Compute<S>>&);          \
  template int conv_stack_backward<S>(const ConvStackBackward<S, Compute<S>>&, void*, void*);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
