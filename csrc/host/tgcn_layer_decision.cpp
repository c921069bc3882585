// Host entry of hiermt::tgcn_layer_decision.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/operators.h"
#include "host/decision_arguments.h"
#include "host/layer_arguments.h"

namespace hiermt {
namespace {

constexpr size_t kHeadParams = 6;

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> tgcn_layer_decision(
    Tensor x, std::vector<Tensor> csr, std::optional<Tensor> edge_weight, std::vector<Tensor> conv_params,
    std::vector<Tensor> gate_params, std::vector<Tensor> head_params, std::optional<Tensor> h0,
    std::optional<Tensor> starts, std::optional<Tensor> present, double threshold, int64_t outputs,
    int64_t steps, int64_t conv_layers, bool between, bool tf32) {
  constexpr const char* op = "tgcn_layer_decision";
  check_outputs(op, outputs);
  const LayerArguments a =
      check_layer(op, x, csr, edge_weight, conv_params, gate_params, h0, starts, present, steps, conv_layers);
  const std::vector<Tensor>& heads = head_params;
  if (heads.size() != kHeadParams) fail(op, "head_params", "expected 6 tensors, got ", heads.size());
  const int64_t rows = a.scan.nodes, hidden = a.stack.hidden;
  const int64_t features = check_heads(op, hidden, heads[0], heads[1], heads[2], heads[4], "x", x);
  check_head_biases(op, heads[3], heads[5], "x", x);
  check_count(op, "x", {rows, kLogits * hidden});
  const HeadOutputs found(rows, a.stack.dtype, x, outputs);
  dispatch_floating(op, "x", a.stack.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    const Layer<S> layer(a, x, edge_weight, conv_params, gate_params, h0, present, between, nullptr, tf32);
    const DecisionWeights<S> weights{data<S>(heads[0]), data<S>(heads[1]), data<S>(heads[2]),
                                     data<S>(heads[3]), data<S>(heads[4]), data<S>(heads[5])};
    const TgcnLayerDecision<S> p{
        layer.params, found.params<S>(rows, hidden, features, nullptr, hidden, weights, threshold)};
    run_native<S>(
        op, "x", x, [&](const auto& kernels) { kernels.tgcn_layer_decision(p); },
        [&](cuda::Stream& on) { cuda::tgcn_layer_decision(p, on); });
  });
  const Decided& decided = found.decided;
  return {found.signal, found.direction, decided.probabilities, decided.predictions, decided.confidences};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hiermt, CPU, m) {
  m.impl("tgcn_layer_decision", TORCH_BOX(&tgcn_layer_decision));
}

#ifdef HIERMT_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(hiermt, CUDA, m) {
  m.impl("tgcn_layer_decision", TORCH_BOX(&tgcn_layer_decision));
}
#endif

}  // namespace hiermt
