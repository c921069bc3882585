// GCN convolution, forward and backward. With norm_ij = d_j^-1/2 w_ij d_i^-1/2 and d_y the cotangent of the
// activation's argument:
//
//   y_i = bias + sum_j norm_ij W x_j                out_i = activation(y_i)
//   d_projected[j] = sum_i norm_ij d_y[i]           d_norm_ij = d_y[i] . W x_j
//   d_W = sum_j d_projected[j] x_j^T                d_bias = sum_i d_y[i]           d_x = W^T d_projected
//
// One launch projects all rows (W x), one sums over the entries (gcn_conv.cuh).
#include "cuda/dense/gcn_conv.cuh"
#include "cuda/dense/linear.cuh"
#include "cuda/dense/weight_grad.cuh"

namespace hiermt::cuda {
namespace {

template <class S, int kHidden, bool kMasked>
__global__ void __launch_bounds__(ConvTraits::kThreads, kGcnBlocks)
    gcn_conv_fwd_kernel(GcnForward<S> p, const Compute<S>* scales, const Compute<S>* projected, int rows) {
  using C = Compute<S>;
  const GroupRow<kHidden> group(p.hidden, static_cast<int>(blockIdx.x), rows);
  if (!group.inside) return;
  constexpr int kChannels = group.kChannels;
  C sum[kChannels] = {};
  sum_neighbours<false, kMasked>(p, group, scales, projected, sum);
  scale_row<kMasked>(scales, group.row, sum);
#pragma unroll
  for (int v = 0; v < kChannels; ++v) {
    const C bias = group.split.holds(group.first + v) ? load(p.weights.bias + group.first + v) : C(0);
    sum[v] = activate<S>(p.activation, sum[v] + bias);
    if (kMasked && !p.present[group.row]) sum[v] = C(0);
  }
  group.split.store_any(p.out + group.offset(), group.first, sum);
}

// A thread a value.
template <class S>
__global__ void __launch_bounds__(ConvTraits::kThreads)
    gcn_conv_bwd_activation_kernel(GcnForward<S> p, const S* d_out, Compute<S>* d_y, int64_t values) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * ConvTraits::kThreads + static_cast<int>(threadIdx.x);
  if (i >= values) return;
  const bool there = p.present == nullptr || p.present[i / p.hidden];
  d_y[i] = there ? load(d_out + i) * activation_slope(p.activation, load(p.out + i)) : Compute<S>(0);
}

template <class S, int kHidden, bool kMasked>
__global__ void __launch_bounds__(ConvTraits::kThreads, kGcnBlocks)
    gcn_conv_bwd_source_kernel(GcnForward<S> p, const Compute<S>* scales, const Compute<S>* d_y,
                               Compute<S>* d_projected, int rows) {
  const GroupRow<kHidden> group(p.hidden, static_cast<int>(blockIdx.x), rows);
  if (!group.inside) return;
  Compute<S> sum[group.kChannels] = {};
  sum_neighbours<true, kMasked>(p, group, scales, d_y, sum);
  scale_row<kMasked>(scales, group.row, sum);
  group.split.store_aligned(d_projected + group.offset(), group.first, sum);
}

// Of the sums over d_projected and d_y, [2H, F + 1], the weights of the first and the bias of the second: it is added
// after the sum over the entries.
template <class C>
struct GcnGradsOut {
  GcnGrads<C> grads;
  int hidden, inputs;

  __device__ void write(int i, C value) const {
    const int m = i / (inputs + 1), k = i - m * (inputs + 1);
    if (m < hidden && k < inputs) grads.lin_weight[m * inputs + k] = value;
    if (m >= hidden && k == inputs) grads.bias[m - hidden] = value;
  }
};

template <class S>
void project(const GcnForward<S>& p, Compute<S>* projected, Stream& on) {
  const int hidden = static_cast<int>(p.hidden);
  linear<Compute<S>, 1>(
      SequenceRows<S>::of(p), PlainWeight<S>{p.weights.lin_weight, 1, static_cast<int>(p.x.channels)},
      DenseOut<Compute<S>>{projected, hidden, hidden, 0}, p.rows(), hidden, rounds_operands<S>(p.tf32), on);
}

}  // namespace

template <class S>
void conv_forward(const GcnForward<S>& p, Stream& on) {
  using C = Compute<S>;
  C* const projected = on.take<C>(p.rows() * p.hidden);
  C* const scales = on.take<C>(p.present != nullptr ? p.rows() : 0);
  project(p, projected, on);
  find_scales(p, scales, on);
  dispatch_rows(p, [&](auto hidden, auto masked, int64_t blocks) {
    launch(gcn_conv_fwd_kernel<S, hidden, masked>, blocks, ConvTraits::kThreads, 0, on, p, scales, projected,
           p.rows());
  });
}

template <class S>
void conv_backward(const GcnBackward<S>& p, Stream& on) {
  using C = Compute<S>;
  const GcnForward<S>& f = p.forward;
  const bool masked = f.present != nullptr;
  const int64_t values = f.rows() * f.hidden;
  const int hidden = static_cast<int>(f.hidden), channels = static_cast<int>(f.x.channels);
  C* const d_y = on.take<C>(values);
  C* const projected = on.take<C>(values);  // W x for the gradient of the weights, then d_projected
  C* const scales = on.take<C>(masked ? f.rows() : 0);
  C* const d_degree = on.take<C>(masked ? f.rows() : 0);
  find_scales(f, scales, on);
  launch(gcn_conv_bwd_activation_kernel<S>, ceil_div<int64_t>(values, ConvTraits::kThreads),
         ConvTraits::kThreads, 0, on, f, p.d_out, d_y, values);
  if (p.d_edge_weight != nullptr) {
    project(f, projected, on);
    if (masked) {
      dispatch_hidden<S>(f.hidden, [&](auto constant) {
        launch(gcn_conv_bwd_degree_kernel<S, constant>,
               ceil_div(f.rows(), GroupRow<constant>::groups(f.hidden)), ConvTraits::kThreads, 0, on, f,
               scales, d_y, projected, d_degree, f.rows());
      });
    }
    const EntryWeightTerm<C> term{masked ? scales : nullptr, d_degree, d_y, projected, hidden};
    edge_weight_grad(p, term, on);
  }
  if (p.d_x == nullptr && p.grads.bias == nullptr) return;
  dispatch_rows(f, [&](auto constant, auto mask, int64_t blocks) {
    launch(gcn_conv_bwd_source_kernel<S, constant, mask>, blocks, ConvTraits::kThreads, 0, on, f, scales, d_y,
           projected, f.rows());
  });
  const auto rounded = rounds_operands<S>(f.tf32);
  // Not lin_weight: without channels of x it has no elements.
  if (p.grads.bias != nullptr) {
    weight_grad<C>(DenseRows<C, 2>{projected, hidden, f.hidden, d_y - projected}, SequenceRows<S>::of(f),
                   f.rows(), GcnGradsOut<C>{p.grads, hidden, channels}, rounded, on);
  }
  if (p.d_x == nullptr) return;
  linear<C, 1>(DenseRows<C, 1>{projected, hidden, f.hidden, 0},
               PlainWeight<S>{f.weights.lin_weight, channels, 1},
               InputGradientOut<S>{{p.d_x, channels, channels, 0, p.accumulate_d_x}, f.present}, f.rows(),
               channels, rounded, on);
}

#define HIERMT_INSTANTIATE(S)                                   \
  template void conv_forward<S>(const GcnForward<S>&, Stream&); \
  template void conv_backward<S>(const GcnBackward<S>&, Stream&);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
