// Host entries of hiermt::decision, its backward, and hiermt::decision_from_logits.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "cuda/operators.h"
#include "host/decision_arguments.h"
#include "host/device_call.h"

namespace hiermt {
namespace {

struct Sizes {
  int64_t rows, hidden, features;
  ScalarType dtype;
};

Sizes check_arguments(const char* op, const Tensor& h, const Tensor& out_weight, const Tensor& out_bias,
                      const Tensor& signal_weight, const Tensor& direction_weight) {
  check_shape(op, "h", h, {"N", "H"});
  const int64_t features =
      check_heads(op, h.size(1), out_weight, out_bias, signal_weight, direction_weight, "h", h);
  check_count(op, "h", {h.size(0), kLogits * h.size(1)});
  return {h.size(0), h.size(1), features, h.scalar_type()};
}

// The kernels read rows at any distance, but the channels of a row one after the other.
Tensor dense_rows(const char* op, const Tensor& h) {
  check_shape(op, "h", h, {"N", "H"});
  return h.stride(1) != 1 ? dense(h) : h;
}

// The logits of one head, or their cotangent.
Tensor dense_logits(const char* op, const char* name, const Tensor& logits, int64_t rows) {
  check_shape(op, name, logits, {rows, 2});
  return dense(logits);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> decision(Tensor h, Tensor out_weight, Tensor out_bias,
                                                            Tensor signal_weight, Tensor signal_bias,
                                                            Tensor direction_weight, Tensor direction_bias,
                                                            double threshold, int64_t outputs) {
  constexpr const char* op = "decision";
  check_outputs(op, outputs);
  h = dense_rows(op, h);
  const Sizes size = check_arguments(op, h, out_weight, out_bias, signal_weight, direction_weight);
  check_head_biases(op, signal_bias, direction_bias, "h", h);
  const HeadOutputs found(size.rows, size.dtype, h, outputs);
  // Rows of an expanded h take no memory, so that there may be any number of them.
  const int64_t rows = outputs == 0 ? 0 : size.rows;
  dispatch_floating(op, "h", size.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    const DecisionWeights<S> weights{data<S>(out_weight),       data<S>(out_bias),
                                     data<S>(signal_weight),    data<S>(signal_bias),
                                     data<S>(direction_weight), data<S>(direction_bias)};
    const DecisionForward<S> p =
        found.params<S>(rows, size.hidden, size.features, data<S>(h), h.stride(0), weights, threshold);
    run_native<S>(
        op, "h", h, [&](const auto& kernels) { kernels.decision_forward(p); },
        [&](cuda::Stream& on) { cuda::decision_forward(p, on); });
  });
  const Decided& decided = found.decided;
  return {found.signal, found.direction, decided.probabilities, decided.predictions, decided.confidences};
}

std::tuple<Tensor, Tensor, Tensor> decision_from_logits(Tensor signal_logits, Tensor direction_logits,
                                                        double threshold, int64_t outputs) {
  constexpr const char* op = "decision_from_logits";
  check_outputs(op, outputs);
  check_shape(op, "signal_logits", signal_logits, {"N", 2});
  const int64_t rows = signal_logits.size(0);
  signal_logits = dense(signal_logits);
  direction_logits = dense_logits(op, "direction_logits", direction_logits, rows);
  check_parameter(op, "direction_logits", direction_logits, {rows, 2}, "signal_logits", signal_logits);
  const Decided decided(rows, signal_logits.scalar_type(), signal_logits, outputs);
  dispatch_floating(op, "signal_logits", signal_logits.scalar_type(), [&](auto type) {
    using S = typename decltype(type)::type;
    const DecisionFromLogits<S> p{rows, data<S>(signal_logits), data<S>(direction_logits), threshold,
                                  decided.pointers<S>()};
    run_native<S>(
        op, "signal_logits", signal_logits, [&](const auto& kernels) { kernels.decision_from_logits(p); },
        [&](cuda::Stream& on) { cuda::decision_from_logits(p, on); });
  });
  return {decided.probabilities, decided.predictions, decided.confidences};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> decision_backward(
    std::optional<Tensor> d_signal_logits, std::optional<Tensor> d_direction_logits, Tensor h,
    Tensor out_weight, Tensor out_bias, Tensor signal_weight, Tensor direction_weight, bool need_h,
    bool need_params) {
  constexpr const char* op = "decision_backward";
  h = dense_rows(op, h);
  const Sizes size = check_arguments(op, h, out_weight, out_bias, signal_weight, direction_weight);
  const auto check_cotangent = [&](const char* name, std::optional<Tensor>& grad) {
    if (!grad) return;
    grad = dense_logits(op, name, *grad, size.rows);
    check_parameter(op, name, *grad, {size.rows, 2}, "h", h);
  };
  check_cotangent("d_signal_logits", d_signal_logits);
  check_cotangent("d_direction_logits", d_direction_logits);

  const ScalarType compute = compute_dtype(size.dtype);
  const int64_t features = need_params ? size.features : 0, classes = need_params ? 2 : 0;
  // Without cotangents no row counts, and those of an expanded h take no memory: there may be any number of them.
  const bool any = d_signal_logits || d_direction_logits || (need_h && size.hidden > 0);
  const int64_t rows = any ? size.rows : 0;
  Tensor d_h = empty({need_h ? size.rows : 0, size.hidden}, size.dtype, h);
  Tensor d_out_weight = empty({features, size.hidden}, compute, h);
  Tensor d_out_bias = empty({features}, compute, h);
  Tensor d_signal_weight = empty({classes, size.features}, compute, h);
  Tensor d_signal_bias = empty({classes}, compute, h);
  Tensor d_direction_weight = empty({classes, size.features}, compute, h);
  Tensor d_direction_bias = empty({classes}, compute, h);
  dispatch_floating(op, "h", size.dtype, [&](auto type) {
    using S = typename decltype(type)::type;
    using C = Compute<S>;
    const auto grad = [&](const Tensor& tensor) { return output<C>(tensor, need_params); };
    const DecisionBackward<S, C> p{rows,
                                   size.hidden,
                                   size.features,
                                   data<S>(h),
                                   h.stride(0),
                                   {data<S>(out_weight), data<S>(out_bias), data<S>(signal_weight), nullptr,
                                    data<S>(direction_weight), nullptr},
                                   data<S>(d_signal_logits),
                                   data<S>(d_direction_logits),
                                   output<S>(d_h, need_h),
                                   need_params,
                                   {grad(d_out_weight), grad(d_out_bias), grad(d_signal_weight),
                                    grad(d_signal_bias), grad(d_direction_weight), grad(d_direction_bias)}};
    run_native<S>(
        op, "h", h, [&](const auto& kernels) { kernels.decision_backward(p); },
        [&](cuda::Stream& on) { cuda::decision_backward(p, on); });
  });
  return {d_h,           d_out_weight,       d_out_bias,      d_signal_weight,
          d_signal_bias, d_direction_weight, d_direction_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hiermt, CPU, m) {
  m.impl("decision", TORCH_BOX(&decision));
  m.impl("decision_backward", TORCH_BOX(&decision_backward));
  m.impl("decision_from_logits", TORCH_BOX(&decision_from_logits));
}

#ifdef HIERMT_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(hiermt, CUDA, m) {
  m.impl("decision", TORCH_BOX(&decision));
  m.impl("decision_backward", TORCH_BOX(&decision_backward));
  m.impl("decision_from_logits", TORCH_BOX(&decision_from_logits));
}
#endif

}  // namespace hiermt
