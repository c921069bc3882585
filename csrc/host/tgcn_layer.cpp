// Host entry of hiermt::tgcn_layer and its backward.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/layer.h"
#include "host/device_call.h"
#include "host/gate_arguments.h"
#include "host/stack_arguments.h"
#include "host/window_arguments.h"

namespace hiermt {
namespace {

struct Arguments {
  StackArguments stack;
  // The windows, if there are, and what the scan runs over: nodes and steps of x, or those of the windows.
  std::optional<WindowArguments> windows;
  int64_t scan_nodes, scan_steps;
};

Arguments check_arguments(const char* op, const Tensor& x, const std::vector<Tensor>& csr,
                          const std::optional<Tensor>& edge_weight, const std::vector<Tensor>& conv_params,
                          const std::vector<Tensor>& gate_params, int64_t conv_layers,
                          const std::optional<Tensor>& starts, int64_t steps) {
  const StackArguments stack = check_stack(op, x, csr, edge_weight, conv_params, conv_layers);
  const int64_t channels = stack.channels, hidden = stack.hidden, stocks = stack.graph.num_nodes;
  if (gate_params.size() != kGateParams)
    fail(op, "gate_params", "expected 6 tensors, got ", gate_params.size());
  check_scan_size(op, "x", stack.nodes, stack.steps, channels, hidden);
  for (int64_t i = 0; i < kGateParams; ++i) {
    check_flat_parameter(op, kGateNames[i], gate_params[i], i % 2 ? hidden : hidden * (channels + 2 * hidden),
                         "x", x);
  }
  Arguments a{stack, std::nullopt, stack.nodes, stack.steps};
  if (!starts) return a;
  check_shape(op, "x", x, {stocks, "D", channels});
  a.windows = check_windows(op, *starts, steps, stack.steps, "x", x);
  check_count(op, "starts", {a.windows->count, stocks});
  check_scan_size(op, "starts", a.windows->count * stocks, steps, channels, hidden);
  a.scan_nodes = a.windows->count * stocks;
  a.scan_steps = steps;
  check_cuda_limits(op, x, a.scan_nodes, a.scan_steps, hidden);
  return a;
}

// The parameters of a layer, and the arrays behind some of them.
template <class S>
struct Layer {
  Stack<S> stack;
  TgcnLayerForward<S> params;

  Layer(const Arguments& a, const Tensor& x, const std::optional<Tensor>& edge_weight,
        const std::vector<Tensor>& conv_params, const std::vector<Tensor>& gates, bool between, S* g,
        bool tf32)
      : stack(a.stack, x, edge_weight, conv_params,
              between ? Activation::kSigmoid : Activation::kLeakySigmoid, g, tf32),
        params{stack.params, gate_weights<S>(gates),
               nullptr,      nullptr,
               nullptr,      a.windows ? a.windows->days() : DayWindows{}} {}
};

std::tuple<Tensor, Tensor, Tensor, Tensor> tgcn_layer(
    Tensor x, std::vector<Tensor> csr, std::optional<Tensor> edge_weight, std::vector<Tensor> conv_params,
    std::vector<Tensor> gate_params, std::optional<Tensor> starts, int64_t steps, int64_t conv_layers,
    bool between, bool sequence, bool save, bool tf32) {
  constexpr const char* op = "tgcn_layer";
  const Arguments a =
      check_arguments(op, x, csr, edge_weight, conv_params, gate_params, conv_layers, starts, steps);
  const StackArguments& stack = a.stack;
  const ScanOutputs outputs(a.scan_nodes, a.scan_steps, stack.hidden, sequence, save, save && x.is_cpu(), x);
  const Tensor g =
      save ? empty({stack.nodes, stack.steps, stack.hidden}, stack.dtype, x) : empty({0}, stack.dtype, x);
  dispatch_floating(op, "x", stack.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    Layer<S> layer(a, x, edge_weight, conv_params, gate_params, between, output<S>(g, save), tf32);
    TgcnLayerForward<S>& p = layer.params;
    outputs.fill(p);
    run_native<S>(
        op, "x", x, [&](const auto& kernels) { kernels.tgcn_layer_forward(p); },
        [&](void* stream) {
          const Tensor workspace = workspace_of(cuda::tgcn_layer_forward_workspace(p), x);
          return cuda::tgcn_layer_forward(p, workspace.mutable_data_ptr(), stream);
        });
  });
  return {outputs.out(), outputs.other(), outputs.gates, g};
}

std::vector<Tensor> tgcn_layer_backward(Tensor d_out, Tensor x, std::vector<Tensor> csr,
                                        std::optional<Tensor> edge_weight, std::vector<Tensor> conv_params,
                                        std::vector<Tensor> gate_params, std::optional<Tensor> starts,
                                        Tensor h, Tensor gates, Tensor g, int64_t steps, int64_t conv_layers,
                                        bool between, bool sequence, bool tf32, bool need_x, bool need_conv,
                                        bool need_gates, bool need_edge_weight) {
  constexpr const char* op = "tgcn_layer_backward";
  const Arguments a =
      check_arguments(op, x, csr, edge_weight, conv_params, gate_params, conv_layers, starts, steps);
  const StackArguments& stack = a.stack;
  const ScanCotangent cotangent{sequence, d_out, h, gates};
  cotangent.check(op, a.scan_nodes, a.scan_steps, stack.hidden, x.is_cpu(), x);
  check_parameter(op, "g", g, {stack.nodes, stack.steps, stack.hidden}, "x", x);
  const bool need_weight = need_edge_weight && edge_weight.has_value();

  // d_x, the parameters of the convolutions, those of the gates, edge_weight
  std::vector<Tensor> grads;
  grads.push_back(need_x ? empty({stack.nodes, stack.steps, stack.channels}, stack.dtype, x)
                         : empty({0}, stack.dtype, x));
  for (const Tensor& param : conv_params) grads.push_back(gradient_of(param, need_conv));
  for (const Tensor& param : gate_params) grads.push_back(gradient_of(param, need_gates));
  grads.push_back(empty({need_weight ? stack.graph.num_entries : 0}, compute_dtype(stack.dtype), x));

  dispatch_floating(op, "x", stack.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    using C = Compute<S>;
    // The kernel only reads what was saved.
    const Layer<S> layer(a, x, edge_weight, conv_params, gate_params, between, const_cast<S*>(data<S>(g)),
                         tf32);
    const StackGrads<C> conv(stack, grads, 1, need_conv);
    TgcnLayerBackward<S, C> p{};
    p.forward = layer.params;
    cotangent.fill(p, x.is_cpu());
    p.d_x = output<S>(grads[0], need_x);
    p.gat = conv.gat;
    p.gcn = conv.gcn;
    p.gates = gate_grads<C>(grads, 1 + conv_params.size(), need_gates);
    p.d_edge_weight = output<C>(grads.back(), need_weight);
    run_native<S>(
        op, "x", x, [&](const auto& kernels) { kernels.tgcn_layer_backward(p); },
        [&](void* stream) {
          const Tensor workspace = workspace_of(cuda::tgcn_layer_backward_workspace(p), x);
          return cuda::tgcn_layer_backward(p, workspace.mutable_data_ptr(), stream);
        });
  });
  return grads;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hiermt, CPU, m) {
  m.impl("tgcn_layer", TORCH_BOX(&tgcn_layer));
  m.impl("tgcn_layer_backward", TORCH_BOX(&tgcn_layer_backward));
}

#ifdef HIERMT_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(hiermt, CUDA, m) {
  m.impl("tgcn_layer", TORCH_BOX(&tgcn_layer));
  m.impl("tgcn_layer_backward", TORCH_BOX(&tgcn_layer_backward));
}
#endif

}  // namespace hiermt
