// Host entry of hiermt::gated_scan and its backward.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/operators.h"
#include "host/gate_arguments.h"

namespace hiermt {
namespace {

struct Arguments {
  ScanArguments scan;
  int64_t hidden, g_channels;
};

Arguments check_arguments(const char* op, const Tensor& x, const std::optional<Tensor>& g,
                          const std::optional<Tensor>& h0, const std::vector<Tensor>& gates,
                          const std::optional<Tensor>& starts, const std::optional<Tensor>& present,
                          int64_t steps) {
  check_shape(op, "x", x, {"N", "T", "F"});
  int64_t hidden;
  if (g) {
    check_shape(op, "g", *g, {x.size(0), x.size(1), "H"});
    hidden = g->size(2);
    check_parameter(op, "g", *g, {x.size(0), x.size(1), hidden}, "x", x);
  } else {
    check_gate_count(op, gates);
    check_shape(op, kGateNames[0], gates[0], {"H", "F + H"});
    hidden = gates[0].size(0);
  }
  Arguments a{check_scan(op, x, hidden, h0, starts, present, steps), hidden, g ? hidden : 0};
  check_gates(op, gates, x.size(2) + a.g_channels, hidden, "x", x);
  return a;
}

std::tuple<Tensor, Tensor, Tensor> gated_scan(Tensor x, std::optional<Tensor> g, std::optional<Tensor> h0,
                                              std::vector<Tensor> gates, std::optional<Tensor> starts,
                                              std::optional<Tensor> present, int64_t steps, bool sequence,
                                              bool save, bool tf32) {
  constexpr const char* op = "gated_scan";
  const Arguments a = check_arguments(op, x, g, h0, gates, starts, present, steps);
  const ScanOutputs outputs(a.scan, a.hidden, sequence, save, x);
  dispatch_floating(op, "x", x.scalar_type(), [&](auto type) {
    using S = typename decltype(type)::type;
    auto p =
        scan_params<S>(a.scan, x, x.size(0), a.hidden, data<S>(g), a.g_channels, h0, gates, present, tf32);
    outputs.fill(p);
    run_native<S>(
        op, "x", x, [&](const auto& kernels) { kernels.gated_scan_forward(p); },
        [&](cuda::Stream& on) { cuda::gated_scan_forward(p, on); });
  });
  return {outputs.out(), outputs.other(), outputs.gates};
}

std::vector<Tensor> gated_scan_backward(Tensor d_out, Tensor x, std::optional<Tensor> g,
                                        std::optional<Tensor> h0, std::vector<Tensor> gates,
                                        std::optional<Tensor> starts, std::optional<Tensor> present, Tensor h,
                                        Tensor saved, int64_t steps, bool sequence, bool tf32, bool need_x,
                                        bool need_g, bool need_h0, bool need_gates) {
  constexpr const char* op = "gated_scan_backward";
  const Arguments a = check_arguments(op, x, g, h0, gates, starts, present, steps);
  const int64_t hidden = a.hidden;
  need_g = need_g && g.has_value();
  const ScanCotangent cotangent{sequence, d_out, h, saved};
  cotangent.check(op, a.scan, hidden, x);

  const ScalarType dtype = x.scalar_type();
  std::vector<Tensor> grads;
  const auto add = [&](bool wanted, std::initializer_list<int64_t> sizes) {
    grads.push_back(wanted ? empty(sizes, dtype, x) : empty({0}, dtype, x));
  };
  add(need_x, {x.size(0), x.size(1), x.size(2)});
  add(need_g, {x.size(0), x.size(1), hidden});
  add(need_h0, {a.scan.nodes, hidden});
  for (const Tensor& gate : gates) grads.push_back(gradient_of(gate, need_gates));

  dispatch_floating(op, "x", dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    using C = Compute<S>;
    GatedScanBackward<S, C> p{};
    p.forward =
        scan_params<S>(a.scan, x, x.size(0), hidden, data<S>(g), a.g_channels, h0, gates, present, tf32);
    cotangent.fill(p);
    p.d_x = output<S>(grads[0], need_x);
    p.d_g = output<S>(grads[1], need_g);
    p.d_h0 = output<S>(grads[2], need_h0);
    p.grads = gate_grads<C>(grads, 3, need_gates);
    run_native<S>(
        op, "x", x, [&](const auto& kernels) { kernels.gated_scan_backward(p); },
        [&](cuda::Stream& on) { cuda::gated_scan_backward(p, on); });
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
