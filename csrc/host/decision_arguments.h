// The arguments and results that operators with the output linear and the two heads share.
#pragma once

#include <cstdint>

#include "host/tensors.h"
#include "params.h"

namespace hiermt {

constexpr int64_t kLogits = 4;

// Bits of the argument `outputs`.
constexpr int64_t kLogitsWanted = 1, kProbabilitiesWanted = 2, kPredictionsWanted = 4, kConfidencesWanted = 8;
constexpr int64_t kAllWanted = 15;

inline void check_outputs(const char* op, int64_t outputs) {
  if (outputs < 0 || outputs > kAllWanted) fail(op, "outputs", "expected bits in [0, 15], got ", outputs);
}

// Weights of output linear and heads over `hidden` channels, and the bias of the first; returns K.
inline int64_t check_heads(const char* op, int64_t hidden, const Tensor& out_weight, const Tensor& out_bias,
                           const Tensor& signal_weight, const Tensor& direction_weight, const char* like_name,
                           const Tensor& like) {
  check_shape(op, "out_weight", out_weight, {"K", hidden});
  const int64_t features = out_weight.size(0);
  check_parameter(op, "out_weight", out_weight, {features, hidden}, like_name, like);
  check_parameter(op, "out_bias", out_bias, {features}, like_name, like);
  check_parameter(op, "signal_weight", signal_weight, {2, features}, like_name, like);
  check_parameter(op, "direction_weight", direction_weight, {2, features}, like_name, like);
  check_count(op, "out_weight", {features, kLogits * hidden});
  return features;
}

inline void check_head_biases(const char* op, const Tensor& signal_bias, const Tensor& direction_bias,
                              const char* like_name, const Tensor& like) {
  check_parameter(op, "signal_bias", signal_bias, {2}, like_name, like);
  check_parameter(op, "direction_bias", direction_bias, {2}, like_name, like);
}

// What is decided from the logits; empty where it is not wanted.
struct Decided {
  Tensor probabilities, predictions, confidences;
  int64_t wanted;

  Decided(int64_t rows, ScalarType dtype, const Tensor& like, int64_t wanted)
      : probabilities(empty({wanted & kProbabilitiesWanted ? rows : 0, 4}, dtype, like)),
        predictions(empty({wanted & kPredictionsWanted ? rows : 0}, ScalarType::Long, like)),
        confidences(empty({wanted & kConfidencesWanted ? rows : 0}, dtype, like)),
        wanted(wanted) {}

  template <class S>
  DecisionOutputs<S> pointers() const {
    return {output<S>(probabilities, wanted & kProbabilitiesWanted),
            output<int64_t>(predictions, wanted & kPredictionsWanted),
            output<S>(confidences, wanted & kConfidencesWanted)};
  }
};

// The logits as well.
struct HeadOutputs {
  bool logits;
  Tensor signal, direction;
  Decided decided;

  HeadOutputs(int64_t rows, ScalarType dtype, const Tensor& like, int64_t wanted)
      : logits(wanted & kLogitsWanted),
        signal(empty({logits ? rows : 0, 2}, dtype, like)),
        direction(empty({logits ? rows : 0, 2}, dtype, like)),
        decided(rows, dtype, like, wanted) {}

  // Of `rows` rows of h, `stride` elements apart.
  template <class S>
  DecisionForward<S> params(int64_t rows, int64_t hidden, int64_t features, const S* h, int64_t stride,
                            const DecisionWeights<S>& weights, double threshold) const {
    return {rows,
            hidden,
            features,
            h,
            stride,
            weights,
            threshold,
            output<S>(signal, logits),
            output<S>(direction, logits),
            decided.pointers<S>()};
  }
};

}  // namespace hiermt
