// Host entry of hiermt::multitask_loss and its backward.
#include <torch/csrc/stable/library.h>

#include <limits>
#include <optional>
#include <tuple>

#include "cuda/operators.h"
#include "host/device_call.h"
#include "params.h"

namespace hiermt {
namespace {

// A copy reads all that the shape says is there.
Tensor checked_dense(const char* op, const char* name, const Tensor& tensor) {
  check_memory(op, name, tensor);
  return dense(tensor);
}

// Checked, and dense from here on.
struct Arguments {
  Tensor signal_logits, direction_logits, signal_targets, direction_targets;
  std::optional<Tensor> mask, signal_weight, direction_weight, row_mask;
  double lambda_direction, label_smoothing, focal_gamma;

  Arguments(const char* op, const Tensor& signal_logits_, const Tensor& direction_logits_,
            const Tensor& signal_targets_, const Tensor& direction_targets_,
            const std::optional<Tensor>& mask_, double lambda, const std::optional<Tensor>& signal_weight_,
            const std::optional<Tensor>& direction_weight_, double smoothing, double gamma,
            const std::optional<Tensor>& row_mask_)
      : signal_logits(checked_dense(op, "signal_logits", signal_logits_)),
        direction_logits(checked_dense(op, "direction_logits", direction_logits_)),
        signal_targets(checked_dense(op, "signal_targets", signal_targets_)),
        direction_targets(checked_dense(op, "direction_targets", direction_targets_)),
        lambda_direction(lambda),
        label_smoothing(smoothing),
        focal_gamma(gamma) {
    if (mask_) mask = checked_dense(op, "mask", *mask_);
    if (signal_weight_) signal_weight = checked_dense(op, "signal_weight", *signal_weight_);
    if (direction_weight_) direction_weight = checked_dense(op, "direction_weight", *direction_weight_);
    if (row_mask_) row_mask = checked_dense(op, "row_mask", *row_mask_);
    check_shape(op, "signal_logits", signal_logits, {"N", 2});
    check_parameter(op, "direction_logits", direction_logits, {rows(), 2}, "signal_logits", signal_logits);
    check_rows(op, "signal_targets", signal_targets, ScalarType::Long);
    check_rows(op, "direction_targets", direction_targets, ScalarType::Long);
    if (mask) check_rows(op, "mask", *mask, ScalarType::Bool);
    if (row_mask) check_rows(op, "row_mask", *row_mask, ScalarType::Bool);
    check_weight(op, "signal_weight", signal_weight);
    check_weight(op, "direction_weight", direction_weight);
    if (!(smoothing >= 0 && smoothing <= 1)) {
      fail(op, "label_smoothing", "expected a number in [0, 1], got ", smoothing);
    }
    if (!(gamma >= 0 && gamma <= std::numeric_limits<double>::max())) {
      fail(op, "focal_gamma", "expected a finite number of 0 or more, got ", gamma);
    }
  }

  int64_t rows() const { return signal_logits.size(0); }
  ScalarType dtype() const { return signal_logits.scalar_type(); }

  template <class S>
  MultitaskLossForward<S> params(S* total, S* signal, S* direction, double* norms) const {
    return {rows(),
            data<S>(signal_logits),
            data<S>(direction_logits),
            data<int64_t>(signal_targets),
            data<int64_t>(direction_targets),
            data<bool>(mask),
            data<bool>(row_mask),
            mask.has_value(),
            row_mask.has_value(),
            lambda_direction,
            {data<double>(signal_weight), data<double>(direction_weight), label_smoothing, focal_gamma},
            total,
            signal,
            direction,
            norms};
  }

 private:
  void check_weight(const char* op, const char* name, const std::optional<Tensor>& weight) const {
    if (!weight) return;
    check_shape(op, name, *weight, {2});
    check_dtype(op, name, *weight, ScalarType::Double);
    check_device(op, name, *weight, "signal_logits", signal_logits);
  }

  void check_rows(const char* op, const char* name, const Tensor& tensor, ScalarType dtype) const {
    check_shape(op, name, tensor, {rows()});
    check_dtype(op, name, tensor, dtype);
    check_device(op, name, tensor, "signal_logits", signal_logits);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> multitask_loss(Tensor signal_logits, Tensor direction_logits,
                                                          Tensor signal_targets, Tensor direction_targets,
                                                          std::optional<Tensor> mask, double lambda_direction,
                                                          std::optional<Tensor> signal_weight,
                                                          std::optional<Tensor> direction_weight,
                                                          double label_smoothing, double focal_gamma,
                                                          std::optional<Tensor> row_mask) {
  constexpr const char* op = "multitask_loss";
  const Arguments a(op, signal_logits, direction_logits, signal_targets, direction_targets, mask,
                    lambda_direction, signal_weight, direction_weight, label_smoothing, focal_gamma,
                    row_mask);
  const Tensor& like = a.signal_logits;
  const Tensor total = empty({}, a.dtype(), like), signal = empty({}, a.dtype(), like);
  const Tensor direction = empty({}, a.dtype(), like), norms = empty({2}, ScalarType::Double, like);
  dispatch_floating(op, "signal_logits", a.dtype(), [&](auto type) {
    using S = typename decltype(type)::type;
    const auto p = a.params<S>(mutable_data<S>(total), mutable_data<S>(signal), mutable_data<S>(direction),
                               mutable_data<double>(norms));
    run_native<S>(
        op, "signal_logits", like, [&](const auto& kernels) { kernels.multitask_loss_forward(p); },
        [&](cuda::Stream& on) { cuda::multitask_loss_forward(p, on); });
  });
  return {total, signal, direction, norms};
}

std::tuple<Tensor, Tensor> multitask_loss_backward(
    std::optional<Tensor> d_total, std::optional<Tensor> d_signal, std::optional<Tensor> d_direction,
    Tensor signal_logits, Tensor direction_logits, Tensor signal_targets, Tensor direction_targets,
    std::optional<Tensor> mask, Tensor norms, double lambda_direction, bool need_signal, bool need_direction,
    std::optional<Tensor> signal_weight, std::optional<Tensor> direction_weight, double label_smoothing,
    double focal_gamma, std::optional<Tensor> row_mask) {
  constexpr const char* op = "multitask_loss_backward";
  const Arguments a(op, signal_logits, direction_logits, signal_targets, direction_targets, mask,
                    lambda_direction, signal_weight, direction_weight, label_smoothing, focal_gamma,
                    row_mask);
  const Tensor& like = a.signal_logits;
  check_shape(op, "norms", norms, {2});
  check_dtype(op, "norms", norms, ScalarType::Double);
  check_device(op, "norms", norms, "signal_logits", like);
  check_contiguous(op, "norms", norms);
  const auto check_cotangent = [&](const char* name, const std::optional<Tensor>& grad) {
    if (grad) check_parameter(op, name, *grad, {}, "signal_logits", like);
  };
  check_cotangent("d_total", d_total);
  check_cotangent("d_signal", d_signal);
  check_cotangent("d_direction", d_direction);

  const Tensor d_signal_logits = empty({need_signal ? a.rows() : 0, 2}, a.dtype(), like);
  const Tensor d_direction_logits = empty({need_direction ? a.rows() : 0, 2}, a.dtype(), like);
  dispatch_floating(op, "signal_logits", a.dtype(), [&](auto type) {
    using S = typename decltype(type)::type;
    // The kernel only reads them.
    auto* weights = const_cast<double*>(data<double>(norms));
    const MultitaskLossBackward<S> p{a.params<S>(nullptr, nullptr, nullptr, weights),
                                     data<S>(d_total),
                                     data<S>(d_signal),
                                     data<S>(d_direction),
                                     output<S>(d_signal_logits, need_signal),
                                     output<S>(d_direction_logits, need_direction)};
    run_native<S>(
        op, "signal_logits", like, [&](const auto& kernels) { kernels.multitask_loss_backward(p); },
        [&](cuda::Stream& on) { cuda::multitask_loss_backward(p, on); });
  });
  return {d_signal_logits, d_direction_logits};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hiermt, CPU, m) {
  m.impl("multitask_loss", TORCH_BOX(&multitask_loss));
  m.impl("multitask_loss_backward", TORCH_BOX(&multitask_loss_backward));
}

#ifdef HIERMT_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(hiermt, CUDA, m) {
  m.impl("multitask_loss", TORCH_BOX(&multitask_loss));
  m.impl("multitask_loss_backward", TORCH_BOX(&multitask_loss_backward));
}
#endif

}  // namespace hiermt
