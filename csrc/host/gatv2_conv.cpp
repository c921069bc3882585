// Host entry of hiermt::gatv2_conv and its backward.
#include "cuda/dense/gatv2_conv.h"

#include <torch/csrc/stable/library.h>

#include "host/device_call.h"
#include "host/graph_arguments.h"

namespace hiermt {
namespace {

constexpr int kParams = 6;
const char* const kParamNames[kParams] = {"lin_l.weight", "lin_l.bias", "lin_r.weight",
                                          "lin_r.bias",   "att",        "bias"};

struct Arguments {
  CsrGraph graph;
  int64_t steps, channels, hidden;
  ScalarType dtype;
};

Arguments check_arguments(const char* op, const Tensor& x, const std::vector<Tensor>& csr,
                          const std::optional<Tensor>& edge_weight, const std::vector<Tensor>& params,
                          const std::optional<Tensor>& lin_edge, int64_t activation) {
  const CsrGraph graph = graph_of(op, csr, x);
  if (params.size() != kParams) fail(op, "params", "expected 6 tensors, got ", params.size());
  check_shape(op, kParamNames[0], params[0], {"H", x.size(2)});
  const int64_t hidden = params[0].size(0), channels = x.size(2);
  check_conv_size(op, graph, x, hidden);
  for (int i = 0; i < kParams; ++i) {
    if (i == 0 || i == 2) {
      check_parameter(op, kParamNames[i], params[i], {hidden, channels}, "x", x);
    } else {
      check_flat_parameter(op, kParamNames[i], params[i], hidden, "x", x);
    }
  }
  if (edge_weight) check_parameter(op, "edge_weight", *edge_weight, {graph.num_entries}, "x", x);
  if (lin_edge) check_flat_parameter(op, "lin_edge", *lin_edge, hidden, "x", x);
  if (edge_weight && !lin_edge) fail(op, "edge_weight", "needs lin_edge, the projection that reads it");
  if (activation < 0 || activation > 2) {
    fail(op, "activation", "expected 0 (none), 1 (leaky_relu) or 2 (sigmoid), got ", activation);
  }
  check_cuda_limits(op, x, hidden);
  return {graph, x.size(1), channels, hidden, x.scalar_type()};
}

template <class S>
GatV2ConvForward<S> forward_params(const Arguments& a, const Tensor& x,
                                   const std::optional<Tensor>& edge_weight,
                                   const std::vector<Tensor>& params, const std::optional<Tensor>& lin_edge,
                                   int64_t activation, S* out) {
  const S* edge = edge_weight ? data<S>(lin_edge) : nullptr;
  return {a.graph,
          view_of<S>(x, a.graph.num_nodes),
          a.steps,
          a.hidden,
          data<S>(edge_weight),
          {data<S>(params[0]), data<S>(params[1]), data<S>(params[2]), data<S>(params[3]), data<S>(params[4]),
           edge, data<S>(params[5])},
          static_cast<Activation>(activation),
          out};
}

Tensor gatv2_conv(Tensor x, std::vector<Tensor> csr, std::optional<Tensor> edge_weight,
                  std::vector<Tensor> params, std::optional<Tensor> lin_edge, int64_t activation) {
  constexpr const char* op = "gatv2_conv";
  const Arguments a = check_arguments(op, x, csr, edge_weight, params, lin_edge, activation);
  Tensor out = empty({x.size(0), a.steps, a.hidden}, a.dtype, x);
  dispatch_floating(op, "x", a.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    const auto p = forward_params<S>(a, x, edge_weight, params, lin_edge, activation, mutable_data<S>(out));
    run_native<S>(
        op, "x", x, [&](const auto& kernels) { kernels.gatv2_conv_forward(p); },
        [&](void* stream) {
          const Tensor workspace = workspace_of(cuda::gatv2_conv_forward_workspace(p), x);
          return cuda::gatv2_conv_forward(p, workspace.mutable_data_ptr(), stream);
        });
  });
  return out;
}

std::vector<Tensor> gatv2_conv_backward(Tensor d_out, Tensor x, Tensor out, std::vector<Tensor> csr,
                                        std::optional<Tensor> edge_weight, std::vector<Tensor> params,
                                        std::optional<Tensor> lin_edge, int64_t activation, bool need_x,
                                        bool need_params, bool need_edge_weight) {
  constexpr const char* op = "gatv2_conv_backward";
  const Arguments a = check_arguments(op, x, csr, edge_weight, params, lin_edge, activation);
  check_parameter(op, "d_out", d_out, {x.size(0), a.steps, a.hidden}, "x", x);
  check_parameter(op, "out", out, {x.size(0), a.steps, a.hidden}, "x", x);
  const ScalarType compute = compute_dtype(a.dtype);
  const bool need_edge = need_params && lin_edge && edge_weight;
  const bool need_weight = need_edge_weight && edge_weight;

  std::vector<Tensor> grads;
  grads.push_back(need_x ? empty({x.size(0), a.steps, a.channels}, a.dtype, x) : empty({0}, a.dtype, x));
  for (const Tensor& param : params) grads.push_back(gradient_of(param, need_params));
  grads.push_back(need_edge ? gradient_of(*lin_edge, true) : empty({0}, compute, x));
  grads.push_back(empty({need_weight ? a.graph.num_entries : 0}, compute, x));

  dispatch_floating(op, "x", a.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    using C = Compute<S>;
    const auto grad = [&](int i) { return output<C>(grads[i], need_params); };
    const GatV2Grads<C> param_grads{
        grad(1), grad(2), grad(3), grad(4), grad(5), output<C>(grads[7], need_edge), grad(6)};
    // The kernel only reads the saved output.
    S* saved = const_cast<S*>(data<S>(out));
    const GatV2ConvBackward<S, C> p{forward_params<S>(a, x, edge_weight, params, lin_edge, activation, saved),
                                    data<S>(d_out), output<S>(grads[0], need_x), param_grads,
                                    output<C>(grads[8], need_weight)};
    run_native<S>(
        op, "x", x, [&](const auto& kernels) { kernels.gatv2_conv_backward(p); },
        [&](void* stream) {
          const Tensor workspace = workspace_of(cuda::gatv2_conv_backward_workspace(p), x);
          return cuda::gatv2_conv_backward(p, cuda::Accumulate{}, workspace.mutable_data_ptr(), stream);
        });
  });
  return grads;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hiermt, CPU, m) {
  m.impl("gatv2_conv", TORCH_BOX(&gatv2_conv));
  m.impl("gatv2_conv_backward", TORCH_BOX(&gatv2_conv_backward));
}

#ifdef HIERMT_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(hiermt, CUDA, m) {
  m.impl("gatv2_conv", TORCH_BOX(&gatv2_conv));
  m.impl("gatv2_conv_backward", TORCH_BOX(&gatv2_conv_backward));
}
#endif

}  // namespace hiermt
