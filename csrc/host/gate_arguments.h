// The arguments that every operator with gates takes: u.weight, u.bias, r.weight, r.bias, c.weight, c.bias.
#pragma once

#include <vector>

#include "host/tensors.h"
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

// Weights [H, F + 2H] and biases [H].
inline void check_gates(const char* op, const std::vector<Tensor>& gates, int64_t channels, int64_t hidden,
                        const char* like_name, const Tensor& like) {
  if (gates.size() != kGateParams) fail(op, "gates", "expected 6 tensors, got ", gates.size());
  for (int i = 0; i < kGateParams; i += 2) {
    check_parameter(op, kGateNames[i], gates[i], {hidden, channels + 2 * hidden}, like_name, like);
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

// What a scan over `nodes` leaves: the sequence h [N, T, H], the last state [N, H], the gates [N, T, 3, H];
// empty where it is not wanted.
struct ScanOutputs {
  bool sequence, keep_h, keep_gates;
  Tensor h, last, gates;

  ScanOutputs(int64_t nodes, int64_t steps, int64_t hidden, bool sequence_, bool save, bool save_gates,
              const Tensor& like)
      : sequence(sequence_), keep_h(sequence_ || save), keep_gates(save_gates) {
    const ScalarType dtype = like.scalar_type();
    h = keep_h ? empty({nodes, steps, hidden}, dtype, like) : empty({0}, dtype, like);
    last = sequence ? empty({0}, dtype, like) : empty({nodes, hidden}, dtype, like);
    gates = keep_gates ? empty({nodes, steps, 3, hidden}, dtype, like) : empty({0}, dtype, like);
  }
  // Two outputs of an operator must not be one tensor: the sequence is saved under its first name.
  const Tensor& out() const { return sequence ? h : last; }
  const Tensor& other() const { return sequence ? last : h; }

  template <class Params>
  void fill(Params& p) const {
    using S = std::remove_pointer_t<decltype(p.h)>;
    p.h = output<S>(h, keep_h);
    p.h_last = output<S>(last, !sequence);
    p.gates = output<S>(gates, keep_gates);
  }
};

// What the backward of a scan is given: the cotangent of out, and of what the forward saved the sequence and,
// on the CPU or where CUDA saves them too, the gates.
struct ScanCotangent {
  bool sequence;
  Tensor d_out, h, gates;

  void check(const char* op, int64_t nodes, int64_t steps, int64_t hidden, bool saved_gates,
             const Tensor& x) const {
    check_parameter(op, "h", h, {nodes, steps, hidden}, "x", x);
    if (saved_gates) check_parameter(op, "gates", gates, {nodes, steps, 3, hidden}, "x", x);
    if (sequence) {
      check_parameter(op, "d_out", d_out, {nodes, steps, hidden}, "x", x);
    } else {
      check_parameter(op, "d_out", d_out, {nodes, hidden}, "x", x);
    }
  }
  template <class Params>
  void fill(Params& p, bool saved_gates) const {
    using S = std::remove_pointer_t<decltype(p.forward.h)>;
    // The kernel only reads what was saved.
    p.forward.h = const_cast<S*>(data<S>(h));
    p.forward.gates = saved_gates ? const_cast<S*>(data<S>(gates)) : nullptr;
    p.d_h = sequence ? data<S>(d_out) : nullptr;
    p.d_h_last = sequence ? nullptr : data<S>(d_out);
  }
};

}  // namespace hiermt
