// Gates of the scan for forward and backward (T-GCN cell, arXiv 1811.05320, eqs. 3 to 6): what they read, and their
// weights. The input projection z = W [x, g] + b does not read the state, so dense layers compute it for all steps.
#pragma once

#include "cuda/dense/linear.cuh"
#include "cuda/support/windows.cuh"

namespace hiermt::cuda {

template <class S>
__device__ __forceinline__ const S* gate_weight(const GateWeights<S>& weights, int gate) {
  return gate == 0 ? weights.u_weight : gate == 1 ? weights.r_weight : weights.c_weight;
}
template <class S>
__device__ __forceinline__ const S* gate_bias(const GateWeights<S>& weights, int gate) {
  return gate == 0 ? weights.u_bias : gate == 1 ? weights.r_bias : weights.c_bias;
}

// Weights of the gates from `first_gate` on, [columns, H] each, from row `first` on.
template <class S>
struct GateColumns {
  GateWeights<S> weights;
  int columns, first_gate = 0, first = 0;

  __device__ Compute<S> weight(int k, int gate, int c) const {
    return load(gate_weight(weights, first_gate + gate) + c * columns + first + k);
  }
  __device__ Compute<S> bias(int gate, int c) const {
    return load(gate_bias(weights, first_gate + gate) + c);
  }
};

// The reset gate of each row; rows are `stride` values apart.
template <class S>
struct ResetGate {
  S* data;
  int stride;
};

// Rows [x_t, g_t, h_{t-1}] of the steps of nodes, of windows of a series (x and g of the day), or of its days
// (without h). They are zeros where the node is not there: not even a NaN counts. The alternative of h_{t-1} is
// r_t * h_{t-1}.
template <class S>
struct GateRows {
  static constexpr int kPieces = 3;
  static constexpr bool kAlternative = true;
  using Row = RowAddresses<S, 4>;
  GatedScanForward<S> p;
  int widths[kPieces];  // 0 leaves a piece out
  ResetGate<S> reset = {};
  WindowDays windows = {};
  const int* used = nullptr;  // [D]: x and g of days outside all windows are zeros, too

  GateRows(const GatedScanForward<S>& p_, bool inputs, bool state)
      : p(p_),
        widths{inputs ? static_cast<int>(p.x.channels) : 0, inputs ? static_cast<int>(p.g_channels) : 0,
               state ? static_cast<int>(p.hidden) : 0} {}

  __host__ __device__ int width(int piece) const {
    return piece == 0 ? widths[0] : piece == 1 ? widths[1] : widths[2];
  }
  __device__ Row row(int r) const {
    const int steps = static_cast<int>(p.steps);
    RowIndex at(r, static_cast<int>(p.num_nodes), steps);
    const int64_t node = static_cast<int64_t>(at.copy) * p.num_nodes + at.node, step = at.step;
    int64_t row_g = r;
    if (windows.starts != nullptr) {
      at.step += windows.first(at.copy);
      row_g = static_cast<int64_t>(at.node) * windows.days + at.step;
      at.copy = 0;
    }
    if ((used != nullptr && used[at.step] == 0) || (p.present != nullptr && !p.present[row_g])) return {};
    Row row = {{p.x.data + sequence_offset(p.x, at), p.g + row_g * p.g_channels}};
    if (widths[2] == 0) return row;
    row.at[2] = step > 0          ? p.h + (int64_t{r} - 1) * p.hidden
                : p.h0 != nullptr ? p.h0 + node * p.hidden
                                  : nullptr;
    row.at[3] = reset.data + static_cast<int64_t>(r) * reset.stride;
    return row;
  }
  template <int n>
  __device__ bool packed(int piece) const {
    if (piece == 0) return packs<n>(p.x);
    if (piece == 1) return packs<n>(p.g, p.g_channels);
    return packs<n>(p.h, p.hidden) && packs<n>(p.h0) && packs<n>(reset.data, reset.stride);
  }
  template <int n>
  __device__ __forceinline__ void load(const Row& row, const Place& at, Compute<S> (&values)[n]) const {
    load_part(row.at[at.piece], at.offset, at.width, at.piece == 0 ? p.x.stride_channel : 1, at.packed,
              values);
  }
  // From the values of the last piece.
  template <int n>
  __device__ __forceinline__ void load_alternative(const Row& row, const Place& at,
                                                   Compute<S> (&values)[n]) const {
    Compute<S> r[n];
    load_part(row.at[3], at.offset, at.width, 1, at.packed, r);
#pragma unroll
    for (int i = 0; i < n; ++i) values[i] *= r[i];
  }
};

}  // namespace hiermt::cuda
