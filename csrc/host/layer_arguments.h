// The arguments that every operator with a whole layer takes.
#pragma once

#include <vector>

#include "host/gate_arguments.h"
#include "host/stack_arguments.h"

namespace hiermt {

struct LayerArguments {
  StackArguments stack;
  ScanArguments scan;
};

inline LayerArguments check_layer(const char* op, const Tensor& x, const std::vector<Tensor>& csr,
                                  const std::optional<Tensor>& edge_weight,
                                  const std::vector<Tensor>& conv_params,
                                  const std::vector<Tensor>& gate_params, const std::optional<Tensor>& h0,
                                  const std::optional<Tensor>& starts, const std::optional<Tensor>& present,
                                  int64_t steps, int64_t conv_layers) {
  const StackArguments stack = check_stack(op, x, csr, edge_weight, conv_params, present, conv_layers);
  const int64_t channels = stack.channels, hidden = stack.hidden;
  check_gates(op, gate_params, channels + hidden, hidden, "x", x);
  if (starts) check_shape(op, "x", x, {stack.graph.num_nodes, "D", channels});
  return {stack, check_scan(op, x, hidden, h0, starts, present, steps)};
}

// The parameters of a layer, and the arrays behind some of them. `a` outlives it.
template <class S>
struct Layer {
  Stack<S> stack;
  TgcnLayerForward<S> params;

  Layer(const LayerArguments& a, const Tensor& x, const std::optional<Tensor>& edge_weight,
        const std::vector<Tensor>& conv_params, const std::vector<Tensor>& gates,
        const std::optional<Tensor>& h0, const std::optional<Tensor>& present, bool between, S* g, bool tf32)
      : stack(a.stack, x, edge_weight, conv_params, present,
              between ? Activation::kSigmoid : Activation::kLeakySigmoid, g, tf32),
        params{stack.params, scan_params<S>(a.scan, x, a.stack.graph.num_nodes, a.stack.hidden, g,
                                            a.stack.hidden, h0, gates, present, tf32)} {}
};

}  // namespace hiermt
