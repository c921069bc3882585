// The arguments that every operator with gates takes: u.weight, u.bias, r.weight, r.bias, c.weight, c.bias.
#pragma once

#include <vector>

#include "host/device_call.h"
#include "host/graph_arguments.h"
#include "host/window_arguments.h"
#include "params.h"

namespace hiermt {

constexpr int kGateParams = 6;
constexpr const char* kGateNames[kGateParams] = {"u.weight", "u.bias",   "r.weight",
                                                 "r.bias",   "c.weight", "c.bias"};

// The largest of the tensors that a scan works with: gates, inputs and a weight, with room for padding.
inline void check_scan_size(const char* op, const char* argument, int64_t nodes, int64_t steps,
                            int64_t channels, int64_t hidden) {
  check_count(op, argument, {channels, 8});
  check_count(op, argument, {hidden, 8});
  check_count(op, argument, {nodes, steps, channels + 4 * hidden});
  check_count(op, argument, {hidden, channels + 4 * hidden});
}

inline void check_gate_count(const char* op, const std::vector<Tensor>& gates) {
  if (gates.size() != kGateParams) fail(op, "gates", "expected 6 tensors, got ", gates.size());
}

// Weights [H, inputs + H], where inputs counts the channels of x and g, and biases [H].
inline void check_gates(const char* op, const std::vector<Tensor>& gates, int64_t inputs, int64_t hidden,
                        const char* like_name, const Tensor& like) {
  check_gate_count(op, gates);
  for (int i = 0; i < kGateParams; i += 2) {
    check_parameter(op, kGateNames[i], gates[i], {hidden, inputs + hidden}, like_name, like);
    check_parameter(op, kGateNames[i + 1], gates[i + 1], {hidden}, like_name, like);
  }
}

template <class S>
GateWeights<S> gate_weights(const std::vector<Tensor>& gates) {
  return {data<S>(gates[0]), data<S>(gates[1]), data<S>(gates[2]),
          data<S>(gates[3]), data<S>(gates[4]), data<S>(gates[5])};
}

// Where the gradients go, of which grads[first] is that of u.weight.
template <class C>
GateGrads<C> gate_grads(const std::vector<Tensor>& grads, size_t first, bool wanted) {
  const auto at = [&](size_t i) { return output<C>(grads[first + i], wanted); };
  return {at(0), at(1), at(2), at(3), at(4), at(5)};
}

// What a scan runs over, the steps of x or windows of them, and the state before them.
struct ScanArguments {
  int64_t nodes, steps;  // N, T
  std::optional<WindowArguments> window_arguments;
  DayWindows windows;

  const DayWindows* windows_or_null() const { return window_arguments ? &windows : nullptr; }
};

// x [N, T, F], or with `starts` the series [S, D, F] that windows of `steps` days are of; present [N, T] or
// [S, D].
inline ScanArguments check_scan(const char* op, const Tensor& x, int64_t hidden,
                                const std::optional<Tensor>& h0, const std::optional<Tensor>& starts,
                                const std::optional<Tensor>& present, int64_t steps) {
  const int64_t channels = x.size(2);
  check_scan_size(op, "x", x.size(0), x.size(1), channels, hidden);
  check_cuda_limits(op, x, hidden);
  ScanArguments a{x.size(0), x.size(1), std::nullopt, {}};
  if (starts) {
    a.window_arguments = check_windows(op, *starts, steps, x.size(1), "x", x);
    a.windows = a.window_arguments->days();
    check_count(op, "starts", {a.windows.count, x.size(0)});
    a.nodes = a.windows.count * x.size(0);
    a.steps = steps;
    check_scan_size(op, "starts", a.nodes, steps, channels, hidden);
    check_cuda_limits(op, x, a.nodes, steps, hidden);
  }
  if (h0) check_parameter(op, "h0", *h0, {a.nodes, hidden}, "x", x);
  if (present) check_present(op, *present, x);
  return a;
}

// Of x with `num_nodes` nodes in a copy; `a` outlives the result.
template <class S>
GatedScanForward<S> scan_params(const ScanArguments& a, const Tensor& x, int64_t num_nodes, int64_t hidden,
                                const S* g, int64_t g_channels, const std::optional<Tensor>& h0,
                                const std::vector<Tensor>& gates, const std::optional<Tensor>& present,
                                bool tf32) {
  return {num_nodes == 0 ? 0 : x.size(0) / num_nodes,
          num_nodes,
          x.size(1),
          hidden,
          view_of<S>(x, num_nodes),
          g,
          g_channels,
          data<S>(h0),
          data<bool>(present),
          gate_weights<S>(gates),
          nullptr,
          nullptr,
          nullptr,
          a.windows_or_null(),
          tf32};
}

// What a scan leaves: the sequence h [N, T, H], the last state [N, H], the gates [N, T, 3, H]; empty where it
// is not wanted. CUDA computes the gates again.
struct ScanOutputs {
  bool sequence, keep_h, keep_gates;
  Tensor h, last, gates;

  ScanOutputs(const ScanArguments& a, int64_t hidden, bool sequence_, bool save, const Tensor& like)
      : sequence(sequence_), keep_h(sequence_ || save), keep_gates(save && like.is_cpu()) {
    const ScalarType dtype = like.scalar_type();
    h = keep_h ? empty({a.nodes, a.steps, hidden}, dtype, like) : empty({0}, dtype, like);
    last = sequence ? empty({0}, dtype, like) : empty({a.nodes, hidden}, dtype, like);
    gates = keep_gates ? empty({a.nodes, a.steps, 3, hidden}, dtype, like) : empty({0}, dtype, like);
  }
  // Two outputs of an operator must not be one tensor: the sequence is saved under its first name.
  const Tensor& out() const { return sequence ? h : last; }
  const Tensor& other() const { return sequence ? last : h; }

  template <class S>
  void fill(GatedScanForward<S>& p) const {
    p.h = output<S>(h, keep_h);
    p.h_last = output<S>(last, !sequence);
    p.gates = output<S>(gates, keep_gates);
  }
};

// What the backward of a scan is given: the cotangent of out, and of what the forward saved the sequence and,
// on the CPU, the gates.
struct ScanCotangent {
  bool sequence;
  Tensor d_out, h, gates;

  void check(const char* op, const ScanArguments& a, int64_t hidden, const Tensor& x) const {
    check_parameter(op, "h", h, {a.nodes, a.steps, hidden}, "x", x);
    if (x.is_cpu()) check_parameter(op, "gates", gates, {a.nodes, a.steps, 3, hidden}, "x", x);
    if (sequence) {
      check_parameter(op, "d_out", d_out, {a.nodes, a.steps, hidden}, "x", x);
    } else {
      check_parameter(op, "d_out", d_out, {a.nodes, hidden}, "x", x);
    }
  }
  template <class S, class C>
  void fill(GatedScanBackward<S, C>& p) const {
    // The kernel only reads what was saved.
    p.forward.h = const_cast<S*>(data<S>(h));
    p.forward.gates = d_out.is_cpu() ? const_cast<S*>(data<S>(gates)) : nullptr;
    p.d_h = sequence ? data<S>(d_out) : nullptr;
    p.d_h_last = sequence ? nullptr : data<S>(d_out);
  }
};

}  // namespace hiermt
