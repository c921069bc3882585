// Host entry of hiermt::gated_scan_windows and its backward.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <numeric>
#include <tuple>
#include <vector>

#include "cpu/dispatch.h"
#include "graph_args.h"

namespace hiermt {
namespace {

constexpr int kGateParams = 6;
const char* const kGateNames[kGateParams] = {"u.weight", "u.bias",   "r.weight",
                                             "r.bias",   "c.weight", "c.bias"};

struct Arguments {
  int64_t windows, stocks, days, channels, steps, hidden;
  ScalarType dtype;
  Tensor starts;               // contiguous
  std::vector<int64_t> order;  // windows in the order of their first days

  int64_t nodes() const { return windows * stocks; }
};

Arguments check_arguments(const char* op, const Tensor& x, const Tensor& g, const Tensor& starts,
                          int64_t steps, const std::vector<Tensor>& gates) {
  check_shape(op, "x", x, {"S", "D", "F"});
  const int64_t stocks = x.size(0), days = x.size(1), channels = x.size(2);
  check_shape(op, "g", g, {stocks, days, "H"});
  const int64_t hidden = g.size(2);
  check_parameter(op, "g", g, {stocks, days, hidden}, "x", x);
  if (gates.size() != kGateParams) fail(op, "gates", "expected 6 tensors, got ", gates.size());
  for (int i = 0; i < kGateParams; i += 2) {
    check_parameter(op, kGateNames[i], gates[i], {hidden, channels + 2 * hidden}, "x", x);
    check_parameter(op, kGateNames[i + 1], gates[i + 1], {hidden}, "x", x);
  }
  if (steps < 0 || steps > days) fail(op, "steps", "expected a length in [0, ", days, "], got ", steps);
  check_shape(op, "starts", starts, {"B"});
  check_dtype(op, "starts", starts, ScalarType::Long);
  check_device(op, "starts", starts, "x", x);
  Arguments a{starts.size(0), stocks, days, channels, steps, hidden, x.scalar_type(), dense(starts), {}};
  const auto* first = data<int64_t>(a.starts);
  for (int64_t b = 0; b < a.windows; ++b) {
    if (first[b] < 0 || first[b] > days - steps) {
      fail(op, "starts", "window ", b, " starts on day ", first[b], ", which is outside the days [0, ",
           days - steps + 1, ") on which one can start");
    }
  }
  a.order.resize(static_cast<size_t>(a.windows));
  std::iota(a.order.begin(), a.order.end(), int64_t{0});
  std::stable_sort(a.order.begin(), a.order.end(),
                   [&](int64_t one, int64_t other) { return first[one] < first[other]; });
  return a;
}

template <class S>
GatedScanWindowsForward<S> forward_params(const Arguments& a, const Tensor& x, const Tensor& g,
                                          const std::vector<Tensor>& gates, S* h, S* h_last, S* saved) {
  return {a.windows,
          a.stocks,
          a.days,
          a.steps,
          a.hidden,
          view_of<S>(x, a.stocks),
          data<S>(g),
          data<int64_t>(a.starts),
          a.order.data(),
          {data<S>(gates[0]), data<S>(gates[1]), data<S>(gates[2]), data<S>(gates[3]), data<S>(gates[4]),
           data<S>(gates[5])},
          h,
          h_last,
          saved};
}

std::tuple<Tensor, Tensor, Tensor> gated_scan_windows(Tensor x, Tensor g, Tensor starts, int64_t steps,
                                                      std::vector<Tensor> gates, bool sequence, bool save) {
  constexpr const char* op = "gated_scan_windows";
  const Arguments a = check_arguments(op, x, g, starts, steps, gates);
  const bool need_h = sequence || save;
  const Tensor h = need_h ? empty({a.nodes(), a.steps, a.hidden}, a.dtype, x) : empty({0}, a.dtype, x);
  const Tensor last = sequence ? empty({0}, a.dtype, x) : empty({a.nodes(), a.hidden}, a.dtype, x);
  const Tensor saved = save ? empty({a.nodes(), a.steps, 3, a.hidden}, a.dtype, x) : empty({0}, a.dtype, x);
  dispatch_cpu(op, "x", a.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    cpu::kernels_of<S>().gated_scan_windows_forward(forward_params<S>(
        a, x, g, gates, output<S>(h, need_h), output<S>(last, !sequence), output<S>(saved, save)));
  });
  return sequence ? std::make_tuple(h, last, saved) : std::make_tuple(last, h, saved);
}

std::vector<Tensor> gated_scan_windows_backward(Tensor grad_out, Tensor x, Tensor g, Tensor starts,
                                                int64_t steps, std::vector<Tensor> gates, bool sequence,
                                                Tensor h, Tensor saved, bool need_x, bool need_g,
                                                bool need_gates) {
  constexpr const char* op = "gated_scan_windows_backward";
  const Arguments a = check_arguments(op, x, g, starts, steps, gates);
  check_parameter(op, "h", h, {a.nodes(), a.steps, a.hidden}, "x", x);
  check_parameter(op, "saved", saved, {a.nodes(), a.steps, 3, a.hidden}, "x", x);
  if (sequence) {
    check_parameter(op, "grad_out", grad_out, {a.nodes(), a.steps, a.hidden}, "x", x);
  } else {
    check_parameter(op, "grad_out", grad_out, {a.nodes(), a.hidden}, "x", x);
  }
  std::vector<Tensor> grads;
  grads.push_back(need_x ? empty({a.stocks, a.days, a.channels}, a.dtype, x) : empty({0}, a.dtype, x));
  grads.push_back(need_g ? empty({a.stocks, a.days, a.hidden}, a.dtype, x) : empty({0}, a.dtype, x));
  for (const Tensor& gate : gates) grads.push_back(gradient_of(gate, need_gates));
  dispatch_cpu(op, "x", a.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    using C = Compute<S>;
    // The kernel only reads what was saved.
    S* states = const_cast<S*>(data<S>(h));
    S* saved_gates = const_cast<S*>(data<S>(saved));
    const auto gate = [&](int i) { return output<C>(grads[2 + i], need_gates); };
    cpu::kernels_of<S>().gated_scan_windows_backward(
        {forward_params<S>(a, x, g, gates, states, nullptr, saved_gates),
         sequence ? data<S>(grad_out) : nullptr,
         sequence ? nullptr : data<S>(grad_out),
         output<S>(grads[0], need_x),
         output<S>(grads[1], need_g),
         {gate(0), gate(1), gate(2), gate(3), gate(4), gate(5)}});
  });
  return grads;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hiermt, CPU, m) {
  m.impl("gated_scan_windows", TORCH_BOX(&gated_scan_windows));
  m.impl("gated_scan_windows_backward", TORCH_BOX(&gated_scan_windows_backward));
}

}  // namespace hiermt
