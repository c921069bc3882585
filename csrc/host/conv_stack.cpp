// Host entry of hiermt::conv_stack and its backward.
#include <torch/csrc/stable/library.h>

#include "cuda/operators.h"
#include "host/device_call.h"
#include "host/stack_arguments.h"

namespace hiermt {
namespace {

Activation check_activation(const char* op, int64_t activation) {
  if (activation < 0 || activation > 3) {
    fail(op, "activation",
         "expected 0 (none), 1 (leaky_relu), 2 (sigmoid) or 3 (leaky_relu, then sigmoid), got ", activation);
  }
  return static_cast<Activation>(activation);
}

Tensor conv_stack(Tensor x, std::vector<Tensor> csr, std::optional<Tensor> edge_weight,
                  std::vector<Tensor> conv_params, std::optional<Tensor> present, int64_t conv_layers,
                  int64_t activation, bool tf32) {
  constexpr const char* op = "conv_stack";
  const StackArguments a = check_stack(op, x, csr, edge_weight, conv_params, present, conv_layers);
  const Activation last = check_activation(op, activation);
  Tensor out = empty({a.nodes, a.steps, a.hidden}, a.dtype, x);
  dispatch_floating(op, "x", a.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    const Stack<S> stack(a, x, edge_weight, conv_params, present, last, mutable_data<S>(out), tf32);
    const ConvStackForward<S>& p = stack.params;
    run_native<S>(
        op, "x", x, [&](const auto& kernels) { kernels.conv_stack_forward(p); },
        [&](cuda::Stream& on) { cuda::conv_stack_forward(p, on); });
  });
  return out;
}

std::vector<Tensor> conv_stack_backward(Tensor d_out, Tensor x, std::vector<Tensor> csr,
                                        std::optional<Tensor> edge_weight, std::vector<Tensor> conv_params,
                                        std::optional<Tensor> present, Tensor out, int64_t conv_layers,
                                        int64_t activation, bool tf32, bool need_x, bool need_conv,
                                        bool need_edge_weight) {
  constexpr const char* op = "conv_stack_backward";
  const StackArguments a = check_stack(op, x, csr, edge_weight, conv_params, present, conv_layers);
  const Activation last = check_activation(op, activation);
  check_parameter(op, "d_out", d_out, {a.nodes, a.steps, a.hidden}, "x", x);
  check_parameter(op, "out", out, {a.nodes, a.steps, a.hidden}, "x", x);
  const bool need_weight = need_edge_weight && edge_weight;

  // d_x, the parameters, edge_weight
  std::vector<Tensor> grads;
  grads.push_back(need_x ? empty({a.nodes, a.steps, a.channels}, a.dtype, x) : empty({0}, a.dtype, x));
  for (const Tensor& param : conv_params) grads.push_back(gradient_of(param, need_conv));
  grads.push_back(empty({need_weight ? a.graph.num_entries : 0}, compute_dtype(a.dtype), x));

  dispatch_floating(op, "x", a.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    using C = Compute<S>;
    // The kernel only reads the saved output.
    const Stack<S> stack(a, x, edge_weight, conv_params, present, last, const_cast<S*>(data<S>(out)), tf32);
    const StackGrads<C> conv(a, grads, 1, need_conv);
    const ConvStackBackward<S, C> p{stack.params, data<S>(d_out), output<S>(grads[0], need_x),         false,
                                    conv.gat,     conv.gcn,       output<C>(grads.back(), need_weight)};
    run_native<S>(
        op, "x", x, [&](const auto& kernels) { kernels.conv_stack_backward(p); },
        [&](cuda::Stream& on) { cuda::conv_stack_backward(p, on); });
  });
  return grads;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hiermt, CPU, m) {
  m.impl("conv_stack", TORCH_BOX(&conv_stack));
  m.impl("conv_stack_backward", TORCH_BOX(&conv_stack_backward));
}

#ifdef HIERMT_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(hiermt, CUDA, m) {
  m.impl("conv_stack", TORCH_BOX(&conv_stack));
  m.impl("conv_stack_backward", TORCH_BOX(&conv_stack_backward));
}
#endif

}  // namespace hiermt
