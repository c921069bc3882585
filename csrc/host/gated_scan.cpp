// Host entry of hiermt::gated_scan and its backward.
#include "cuda/scan/gated_scan.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "host/device_call.h"
#include "host/gate_arguments.h"
#include "host/graph_arguments.h"

namespace hiermt {
namespace {

struct Arguments {
  int64_t nodes, steps, channels, hidden;
  ScalarType dtype;
};

Arguments check_arguments(const char* op, const Tensor& x, const Tensor& g, const std::optional<Tensor>& h0,
                          const std::vector<Tensor>& gates) {
  check_shape(op, "x", x, {"N", "T", "F"});
  check_shape(op, "g", g, {x.size(0), x.size(1), "H"});
  const int64_t nodes = x.size(0), steps = x.size(1), channels = x.size(2), hidden = g.size(2);
  check_parameter(op, "g", g, {nodes, steps, hidden}, "x", x);
  if (h0) check_parameter(op, "h0", *h0, {nodes, hidden}, "x", x);
  check_scan_size(op, "x", nodes, steps, channels, hidden);
  check_gates(op, gates, channels, hidden, "x", x);
  check_cuda_limits(op, x, hidden);
  return {nodes, steps, channels, hidden, x.scalar_type()};
}

template <class S>
GatedScanForward<S> forward_params(const Arguments& a, const Tensor& x, const Tensor& g,
                                   const std::optional<Tensor>& h0, const std::vector<Tensor>& gates) {
  GatedScanForward<S> p{};
  p.copies = 1;
  p.num_nodes = a.nodes;
  p.steps = a.steps;
  p.hidden = a.hidden;
  p.x = view_of<S>(x, a.nodes);
  p.g = data<S>(g);
  p.h0 = data<S>(h0);
  p.weights = gate_weights<S>(gates);
  return p;
}

std::tuple<Tensor, Tensor, Tensor> gated_scan(Tensor x, Tensor g, std::optional<Tensor> h0,
                                              std::vector<Tensor> gates, bool sequence, bool save) {
  constexpr const char* op = "gated_scan";
  const Arguments a = check_arguments(op, x, g, h0, gates);
  const ScanOutputs outputs(a.nodes, a.steps, a.hidden, sequence, save, save, x);
  dispatch_floating(op, "x", a.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    auto p = forward_params<S>(a, x, g, h0, gates);
    outputs.fill(p);
    run_native<S>(
        op, "x", x, [&](const auto& kernels) { kernels.gated_scan_forward(p); },
        [&](void* stream) {
          const Tensor workspace = workspace_of(cuda::gated_scan_forward_workspace(p), x);
          return cuda::gated_scan_forward(p, workspace.mutable_data_ptr(), stream);
        });
  });
  return {outputs.out(), outputs.other(), outputs.gates};
}

std::vector<Tensor> gated_scan_backward(Tensor d_out, Tensor x, Tensor g, std::optional<Tensor> h0,
                                        std::vector<Tensor> gates, bool sequence, Tensor h, Tensor saved,
                                        bool need_x, bool need_g, bool need_h0, bool need_gates) {
  constexpr const char* op = "gated_scan_backward";
  const Arguments a = check_arguments(op, x, g, h0, gates);
  const ScanCotangent cotangent{sequence, d_out, h, saved};
  cotangent.check(op, a.nodes, a.steps, a.hidden, true, x);

  std::vector<Tensor> grads;
  const auto add = [&](bool wanted, std::initializer_list<int64_t> sizes) {
    grads.push_back(wanted ? empty(sizes, a.dtype, x) : empty({0}, a.dtype, x));
  };
  add(need_x, {a.nodes, a.steps, a.channels});
  add(need_g, {a.nodes, a.steps, a.hidden});
  add(need_h0, {a.nodes, a.hidden});
  for (const Tensor& gate : gates) grads.push_back(gradient_of(gate, need_gates));

  dispatch_floating(op, "x", a.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    using C = Compute<S>;
    GatedScanBackward<S, C> p{};
    p.forward = forward_params<S>(a, x, g, h0, gates);
    cotangent.fill(p, true);
    p.d_x = output<S>(grads[0], need_x);
    p.d_g = output<S>(grads[1], need_g);
    p.d_h0 = output<S>(grads[2], need_h0);
    p.grads = gate_grads<C>(grads, 3, need_gates);
    run_native<S>(
        op, "x", x, [&](const auto& kernels) { kernels.gated_scan_backward(p); },
        [&](void* stream) {
          const Tensor workspace = workspace_of(cuda::gated_scan_backward_workspace(p), x);
          return cuda::gated_scan_backward(p, workspace.mutable_data_ptr(), stream);
        });
  });
  return grads;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hiermt, CPU, m) {
  m.impl("gated_scan", TORCH_BOX(&gated_scan));
  m.impl("gated_scan_backward", TORCH_BOX(&gated_scan_backward));
}

#ifdef HIERMT_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(hiermt, CUDA, m) {
  m.impl("gated_scan", TORCH_BOX(&gated_scan));
  m.impl("gated_scan_backward", TORCH_BOX(&gated_scan_backward));
}
#endif

}  // namespace hiermt
