// Host entry of hiermt::gated_scan_windows and its backward.
#include "cuda/scan/gated_scan_windows.h"

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "host/device_call.h"
#include "host/gate_arguments.h"
#include "host/graph_arguments.h"
#include "host/window_arguments.h"

namespace hiermt {
namespace {

struct Arguments {
  int64_t stocks, days, channels, hidden;
  ScalarType dtype;
  WindowArguments windows;

  int64_t nodes() const { return windows.count * stocks; }
};

Arguments check_arguments(const char* op, const Tensor& x, const Tensor& g, const Tensor& starts,
                          int64_t steps, const std::vector<Tensor>& gates) {
  check_shape(op, "x", x, {"S", "D", "F"});
  const int64_t stocks = x.size(0), days = x.size(1), channels = x.size(2);
  check_shape(op, "g", g, {stocks, days, "H"});
  const int64_t hidden = g.size(2);
  check_parameter(op, "g", g, {stocks, days, hidden}, "x", x);
  check_scan_size(op, "x", stocks, days, channels, hidden);
  check_gates(op, gates, channels, hidden, "x", x);
  const Arguments a{
      stocks, days, channels, hidden, x.scalar_type(), check_windows(op, starts, steps, days, "x", x)};
  check_count(op, "starts", {a.windows.count, stocks});
  check_scan_size(op, "starts", a.nodes(), steps, channels, hidden);
  check_cuda_limits(op, x, stocks, days, hidden);
  check_cuda_limits(op, x, a.nodes(), steps, hidden);
  return a;
}

template <class S>
GatedScanWindowsForward<S> forward_params(const Arguments& a, const Tensor& x, const Tensor& g,
                                          const std::vector<Tensor>& gates, bool tf32) {
  GatedScanWindowsForward<S> p{};
  p.windows = a.windows.days();
  p.num_nodes = a.stocks;
  p.days = a.days;
  p.hidden = a.hidden;
  p.x = view_of<S>(x, a.stocks);
  p.g = data<S>(g);
  p.weights = gate_weights<S>(gates);
  p.tf32 = tf32;
  return p;
}

std::tuple<Tensor, Tensor, Tensor> gated_scan_windows(Tensor x, Tensor g, Tensor starts, int64_t steps,
                                                      std::vector<Tensor> gates, bool sequence, bool save,
                                                      bool tf32) {
  constexpr const char* op = "gated_scan_windows";
  const Arguments a = check_arguments(op, x, g, starts, steps, gates);
  const ScanOutputs outputs(a.nodes(), steps, a.hidden, sequence, save, save && x.is_cpu(), x);
  dispatch_floating(op, "x", a.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    auto p = forward_params<S>(a, x, g, gates, tf32);
    outputs.fill(p);
    run_native<S>(
        op, "x", x, [&](const auto& kernels) { kernels.gated_scan_windows_forward(p); },
        [&](void* stream) {
          const Tensor workspace = workspace_of(cuda::gated_scan_windows_forward_workspace(p), x);
          return cuda::gated_scan_windows_forward(p, workspace.mutable_data_ptr(), stream);
        });
  });
  return {outputs.out(), outputs.other(), outputs.gates};
}

std::vector<Tensor> gated_scan_windows_backward(Tensor d_out, Tensor x, Tensor g, Tensor starts,
                                                int64_t steps, std::vector<Tensor> gates, bool sequence,
                                                Tensor h, Tensor saved, bool need_x, bool need_g,
                                                bool need_gates, bool tf32) {
  constexpr const char* op = "gated_scan_windows_backward";
  const Arguments a = check_arguments(op, x, g, starts, steps, gates);
  const ScanCotangent cotangent{sequence, d_out, h, saved};
  cotangent.check(op, a.nodes(), steps, a.hidden, x.is_cpu(), x);
  std::vector<Tensor> grads;
  grads.push_back(need_x ? empty({a.stocks, a.days, a.channels}, a.dtype, x) : empty({0}, a.dtype, x));
  grads.push_back(need_g ? empty({a.stocks, a.days, a.hidden}, a.dtype, x) : empty({0}, a.dtype, x));
  for (const Tensor& gate : gates) grads.push_back(gradient_of(gate, need_gates));
  dispatch_floating(op, "x", a.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    using C = Compute<S>;
    GatedScanWindowsBackward<S, C> p{};
    p.forward = forward_params<S>(a, x, g, gates, tf32);
    cotangent.fill(p, x.is_cpu());
    p.d_x = output<S>(grads[0], need_x);
    p.d_g = output<S>(grads[1], need_g);
    p.grads = gate_grads<C>(grads, 2, need_gates);
    run_native<S>(
        op, "x", x, [&](const auto& kernels) { kernels.gated_scan_windows_backward(p); },
        [&](void* stream) {
          const Tensor workspace = workspace_of(cuda::gated_scan_windows_backward_workspace(p), x);
          return cuda::gated_scan_windows_backward(p, workspace.mutable_data_ptr(), stream);
        });
  });
  return grads;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hiermt, CPU, m) {
  m.impl("gated_scan_windows", TORCH_BOX(&gated_scan_windows));
  m.impl("gated_scan_windows_backward", TORCH_BOX(&gated_scan_windows_backward));
}

#ifdef HIERMT_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(hiermt, CUDA, m) {
  m.impl("gated_scan_windows", TORCH_BOX(&gated_scan_windows));
  m.impl("gated_scan_windows_backward", TORCH_BOX(&gated_scan_windows_backward));
}
#endif

}  // namespace hiermt
