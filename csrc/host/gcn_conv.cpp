// Host entry of hiermt::gcn_conv and its backward.
#include "cuda/dense/gcn_conv.h"

#include <torch/csrc/stable/library.h>

#include "host/device_call.h"
#include "host/graph_arguments.h"

namespace hiermt {
namespace {

struct Arguments {
  CsrGraph graph;
  int64_t steps, channels, hidden;
  ScalarType dtype;
};

Arguments check_arguments(const char* op, const Tensor& x, const std::vector<Tensor>& csr, const Tensor& norm,
                          const std::vector<Tensor>& params, int64_t activation) {
  const CsrGraph graph = graph_of(op, csr, x);
  if (params.size() != 2) fail(op, "params", "expected 2 tensors, got ", params.size());
  check_parameter(op, "lin.weight", params[0], {"H", x.size(2)}, "x", x);
  check_conv_size(op, graph, x, params[0].size(0));
  check_parameter(op, "bias", params[1], {params[0].size(0)}, "x", x);
  check_parameter(op, "norm", norm, {graph.num_entries}, "x", x);
  if (activation < 0 || activation > 2) {
    fail(op, "activation", "expected 0 (none), 1 (leaky_relu) or 2 (sigmoid), got ", activation);
  }
  check_cuda_limits(op, x, params[0].size(0));
  return {graph, x.size(1), x.size(2), params[0].size(0), x.scalar_type()};
}

template <class S>
GcnConvForward<S> forward_params(const Arguments& a, const Tensor& x, const Tensor& norm,
                                 const std::vector<Tensor>& params, int64_t activation, S* out) {
  return {a.graph,
          view_of<S>(x, a.graph.num_nodes),
          a.steps,
          a.hidden,
          data<S>(norm),
          {data<S>(params[0]), data<S>(params[1])},
          static_cast<Activation>(activation),
          out};
}

Tensor gcn_conv(Tensor x, std::vector<Tensor> csr, Tensor norm, std::vector<Tensor> params,
                int64_t activation) {
  constexpr const char* op = "gcn_conv";
  const Arguments a = check_arguments(op, x, csr, norm, params, activation);
  Tensor out = empty({x.size(0), a.steps, a.hidden}, a.dtype, x);
  dispatch_floating(op, "x", a.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    const auto p = forward_params<S>(a, x, norm, params, activation, mutable_data<S>(out));
    run_native<S>(
        op, "x", x, [&](const auto& kernels) { kernels.gcn_conv_forward(p); },
        [&](void* stream) {
          const Tensor workspace = workspace_of(cuda::gcn_conv_forward_workspace(p), x);
          return cuda::gcn_conv_forward(p, workspace.mutable_data_ptr(), stream);
        });
  });
  return out;
}

std::vector<Tensor> gcn_conv_backward(Tensor d_out, Tensor x, Tensor out, std::vector<Tensor> csr,
                                      Tensor norm, std::vector<Tensor> params, int64_t activation,
                                      bool need_x, bool need_params, bool need_norm) {
  constexpr const char* op = "gcn_conv_backward";
  const Arguments a = check_arguments(op, x, csr, norm, params, activation);
  check_parameter(op, "d_out", d_out, {x.size(0), a.steps, a.hidden}, "x", x);
  check_parameter(op, "out", out, {x.size(0), a.steps, a.hidden}, "x", x);

  std::vector<Tensor> grads;
  grads.push_back(need_x ? empty({x.size(0), a.steps, a.channels}, a.dtype, x) : empty({0}, a.dtype, x));
  for (const Tensor& param : params) grads.push_back(gradient_of(param, need_params));
  grads.push_back(gradient_of(norm, need_norm));

  dispatch_floating(op, "x", a.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    using C = Compute<S>;
    // The kernel only reads the saved output.
    S* saved = const_cast<S*>(data<S>(out));
    const GcnConvBackward<S, C> p{forward_params<S>(a, x, norm, params, activation, saved),
                                  data<S>(d_out),
                                  output<S>(grads[0], need_x),
                                  {output<C>(grads[1], need_params), output<C>(grads[2], need_params)},
                                  output<C>(grads[3], need_norm)};
    run_native<S>(
        op, "x", x, [&](const auto& kernels) { kernels.gcn_conv_backward(p); },
        [&](void* stream) {
          const Tensor workspace = workspace_of(cuda::gcn_conv_backward_workspace(p), x);
          return cuda::gcn_conv_backward(p, cuda::Accumulate{}, workspace.mutable_data_ptr(), stream);
        });
  });
  return grads;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hiermt, CPU, m) {
  m.impl("gcn_conv", TORCH_BOX(&gcn_conv));
  m.impl("gcn_conv_backward", TORCH_BOX(&gcn_conv_backward));
}

#ifdef HIERMT_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(hiermt, CUDA, m) {
  m.impl("gcn_conv", TORCH_BOX(&gcn_conv));
  m.impl("gcn_conv_backward", TORCH_BOX(&gcn_conv_backward));
}
#endif

}  // namespace hiermt
