// Host entry of hiermt::tgcn_layer and its backward.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/operators.h"
#include "host/layer_arguments.h"

namespace hiermt {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> tgcn_layer(
    Tensor x, std::vector<Tensor> csr, std::optional<Tensor> edge_weight, std::vector<Tensor> conv_params,
    std::vector<Tensor> gate_params, std::optional<Tensor> h0, std::optional<Tensor> starts,
    std::optional<Tensor> present, int64_t steps, int64_t conv_layers, bool between, bool sequence, bool save,
    bool tf32) {
  constexpr const char* op = "tgcn_layer";
  const LayerArguments a =
      check_layer(op, x, csr, edge_weight, conv_params, gate_params, h0, starts, present, steps, conv_layers);
  const StackArguments& stack = a.stack;
  const ScanOutputs outputs(a.scan, stack.hidden, sequence, save, x);
  const Tensor g =
      save ? empty({stack.nodes, stack.steps, stack.hidden}, stack.dtype, x) : empty({0}, stack.dtype, x);
  dispatch_floating(op, "x", stack.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    Layer<S> layer(a, x, edge_weight, conv_params, gate_params, h0, present, between, output<S>(g, save),
                   tf32);
    TgcnLayerForward<S>& p = layer.params;
    outputs.fill(p.scan);
    run_native<S>(
        op, "x", x, [&](const auto& kernels) { kernels.tgcn_layer_forward(p); },
        [&](cuda::Stream& on) { cuda::tgcn_layer_forward(p, on); });
  });
  return {outputs.out(), outputs.other(), outputs.gates, g};
}

std::vector<Tensor> tgcn_layer_backward(Tensor d_out, Tensor x, std::vector<Tensor> csr,
                                        std::optional<Tensor> edge_weight, std::vector<Tensor> conv_params,
                                        std::vector<Tensor> gate_params, std::optional<Tensor> h0,
                                        std::optional<Tensor> starts, std::optional<Tensor> present, Tensor h,
                                        Tensor gates, Tensor g, int64_t steps, int64_t conv_layers,
                                        bool between, bool sequence, bool tf32, bool need_x, bool need_conv,
                                        bool need_gates, bool need_h0, bool need_edge_weight) {
  constexpr const char* op = "tgcn_layer_backward";
  const LayerArguments a =
      check_layer(op, x, csr, edge_weight, conv_params, gate_params, h0, starts, present, steps, conv_layers);
  const StackArguments& stack = a.stack;
  const ScanCotangent cotangent{sequence, d_out, h, gates};
  cotangent.check(op, a.scan, stack.hidden, x);
  check_parameter(op, "g", g, {stack.nodes, stack.steps, stack.hidden}, "x", x);
  const bool need_weight = need_edge_weight && edge_weight.has_value();

  // d_x, the parameters of the convolutions, those of the gates, h0, edge_weight
  std::vector<Tensor> grads;
  const auto add = [&](bool wanted, std::initializer_list<int64_t> sizes) {
    grads.push_back(wanted ? empty(sizes, stack.dtype, x) : empty({0}, stack.dtype, x));
  };
  add(need_x, {stack.nodes, stack.steps, stack.channels});
  for (const Tensor& param : conv_params) grads.push_back(gradient_of(param, need_conv));
  for (const Tensor& param : gate_params) grads.push_back(gradient_of(param, need_gates));
  add(need_h0, {a.scan.nodes, stack.hidden});
  grads.push_back(empty({need_weight ? stack.graph.num_entries : 0}, compute_dtype(stack.dtype), x));

  dispatch_floating(op, "x", stack.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    using C = Compute<S>;
    // The kernel only reads what was saved.
    const Layer<S> layer(a, x, edge_weight, conv_params, gate_params, h0, present, between,
                         const_cast<S*>(data<S>(g)), tf32);
    const StackGrads<C> conv(stack, grads, 1, need_conv);
    const size_t first_gate = 1 + conv_params.size();
    S* const d_x = output<S>(grads[0], need_x);
    TgcnLayerBackward<S, C> p{};
    p.stack = {
        layer.params.stack, nullptr, d_x, true, conv.gat, conv.gcn, output<C>(grads.back(), need_weight)};
    p.scan.forward = layer.params.scan;
    cotangent.fill(p.scan);
    p.scan.d_x = d_x;
    p.scan.d_h0 = output<S>(grads[first_gate + kGateParams], need_h0);
    p.scan.grads = gate_grads<C>(grads, first_gate, need_gates);
    run_native<S>(
        op, "x", x, [&](const auto& kernels) { kernels.tgcn_layer_backward(p); },
        [&](cuda::Stream& on) { cuda::tgcn_layer_backward(p, on); });
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
