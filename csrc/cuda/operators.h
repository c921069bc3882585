// Launchers of the operators. Pointers in their parameters are device memory but where params.h says that they are
// the host's; graph.blocks is neither read nor written.
#pragma once

#include "cuda/support/stream.h"
#include "params.h"
#include "types.h"

namespace hiermt::cuda {

// The gradients of the gates before the sum over chunks of rows: [count, 3H, columns + 1], of which the last column is
// that of the biases.
template <class C>
struct GateGradChunks {
  const C* partial = nullptr;
  int64_t count = 0;
  GateGrads<C> grads{};
  int columns = 0, hidden = 0;
};

// An edge with an end outside the nodes is dropped like a loop: reporting it would take a synchronisation.
template <class I>
void graph_prepare(const GraphPrepare<I>& p, Stream& on);

// One launch where the stack fits one, else convolution after convolution. The backward computes them again, so that
// the sequence between two of them is never stored.
template <class S>
void conv_stack_forward(const ConvStackForward<S>& p, Stream& on);
// In a layer the backward sums the chunks of `gates`, too, and d_out may be overwritten.
template <class S>
void conv_stack_backward(const ConvStackBackward<S, Compute<S>>& p, Stream& on,
                         const GateGradChunks<Compute<S>>& gates = {}, S* d_out = nullptr);

// The results of a window that exceeds the series are unspecified, but no access is out of bounds. Saved gates are not
// read by the backward.
// With `decision` the forward decides on the last states, whether or not it stores them; decision->h is not read.
template <class S>
void gated_scan_forward(const GatedScanForward<S>& p, Stream& on,
                        const DecisionForward<S>* decision = nullptr);
// With `chunks` the sum of the gradients of the gates over chunks is left to the caller, unless there are windows;
// `chunks` tells.
template <class S>
void gated_scan_backward(const GatedScanBackward<S, Compute<S>>& p, Stream& on,
                         GateGradChunks<Compute<S>>* chunks = nullptr);

template <class S>
void tgcn_layer_forward(const TgcnLayerForward<S>& p, Stream& on);
template <class S>
void tgcn_layer_backward(const TgcnLayerBackward<S, Compute<S>>& p, Stream& on);

template <class S>
void decision_forward(const DecisionForward<S>& p, Stream& on);
template <class S>
void decision_from_logits(const DecisionFromLogits<S>& p, Stream& on);
template <class S>
void decision_backward(const DecisionBackward<S, Compute<S>>& p, Stream& on);

template <class S>
void tgcn_layer_decision(const TgcnLayerDecision<S>& p, Stream& on);

template <class S>
void multitask_loss_forward(const MultitaskLossForward<S>& p, Stream& on);
template <class S>
void multitask_loss_backward(const MultitaskLossBackward<S>& p, Stream& on);

// Parts of a layer. Whether one launch runs the whole stack: it can leave the input projection W [x, out] + b of the
// gates as well, [N * T, 3H]; p.out is then written only if it is given.
template <class S>
bool fused_stack_fits(const ConvStackForward<S>& p);
template <class S>
void fused_stack_forward(const ConvStackForward<S>& p, const GateWeights<S>& gates,
                         Compute<S>* input_projection, Stream& on);
// The scan from its input projection on; with windows that of each day, [S * D, 3H]. x and g are not read.
template <class S>
void gated_scan_recurrence(const GatedScanForward<S>& p, const Compute<S>* input_projection, Stream& on,
                           const DecisionForward<S>* decision = nullptr);

}  // namespace hiermt::cuda
