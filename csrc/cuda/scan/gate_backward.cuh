// Dense layers of the backward of the gated scan, over the nodes of a batch or the windows of a series.
#pragma once

#include "cuda/scan/gated_scan.cuh"

namespace hiermt::cuda {

// Gradients of the gates from first_gate on: `width` columns of their weights from first_column on, and the
// bias.
template <class C>
struct GateGradsOut {
  GateGrads<C> grads;
  int columns, hidden, first_gate, first_column, width;

  __device__ void write(int i, C value) const {
    const int m = i / (width + 1), k = i - m * (width + 1);
    const int gate = first_gate + m / hidden, c = m % hidden;
    C* weight = gate == 0 ? grads.u_weight : gate == 1 ? grads.r_weight : grads.c_weight;
    C* bias = gate == 0 ? grads.u_bias : gate == 1 ? grads.r_bias : grads.c_bias;
    if (k < width && weight != nullptr) weight[c * columns + first_column + k] = value;
    if (k == width && bias != nullptr) bias[c] = value;
  }
};

// Columns of the cotangents of the gates, [N * T, 3H] or [V * D, 3H], from column `first` on.
template <class C>
struct GateRows {
  struct Row {
    int64_t offset;
  };
  const C* d_gates;
  int width, first;

  __device__ Row row(int r) const { return {static_cast<int64_t>(r) * width + first}; }
  __device__ C load(const Row& row, int k) const { return d_gates[row.offset + k]; }
};

// Applies the nonlinearity and stores the gates from first_gate on; r goes where `reset` points.
template <class S>
struct GateOut {
  S* gates;  // [N * T, 3H]
  ResetGate<S> reset;
  int hidden, first_gate;

  __device__ void write(int row, int n, Compute<S> value) const {
    S* to = gates + static_cast<int64_t>(row) * 3 * hidden + first_gate * hidden + n;
    if (first_gate == 0 && n >= hidden)
      to = reset.data + static_cast<int64_t>(row) * reset.stride + n - hidden;
    store(to, first_gate == 2 ? tanh(value) : sigmoid(value));
  }
};

// The gates of a scan and their cotangents, [N * T, 3H] each.
template <class S>
struct GateWorkspace {
  using C = Compute<S>;
  C* d_gates;
  S* values;  // saved by the forward, in place of the cotangents, or in a workspace
  ResetGate<S> reset;

  GateWorkspace(Workspace& memory, S* saved, int64_t rows, int64_t hidden) {
    d_gates = memory.template take<C>(rows * 3 * hidden);
    values = saved;
    bool in_place = false;
    if constexpr (std::is_same_v<S, C>) {
      in_place = saved == nullptr;
      if (in_place) values = d_gates;
    }
    if (saved == nullptr && !in_place) values = memory.template take<S>(rows * 3 * hidden);
    const int width = static_cast<int>(hidden);
    reset = in_place ? ResetGate<S>{memory.template take<S>(rows * hidden), width}
                     : ResetGate<S>{values + hidden, 3 * width};
  }
};

// Recomputes the gates, [N * T, 3H]: u and r from rows [x, g, h_{t-1}] (`inputs`), then c from rows
// [x, g, r * h_{t-1}] (`reset_inputs`).
template <class S, class Inputs, class ResetInputs>
cudaError_t compute_gates(const GatedScanForward<S>& f, const Inputs& inputs, const ResetInputs& reset_inputs,
                          const ResetGate<S>& reset, int64_t rows, cudaStream_t stream) {
  using C = Compute<S>;
  const int hidden = static_cast<int>(f.hidden), columns = static_cast<int>(f.x.channels) + 2 * hidden;
  const auto tensor = use_tensor_cores<S>(f.tf32);
  HIERMT_CUDA_RETURN_IF_ERROR(linear<C>(inputs, GateColumns<S>{f.weights, columns, hidden, 0},
                                        GateOut<S>{f.gates, reset, hidden, 0}, rows, columns, 2 * f.hidden,
                                        stream, tensor));
  return linear<C>(reset_inputs, GateColumns<S>{f.weights, columns, hidden, 2},
                   GateOut<S>{f.gates, reset, hidden, 2}, rows, columns, f.hidden, stream, tensor);
}

// d_x [rows, F] and d_g [rows, H] from the cotangents of the gates, each if it is given.
template <class S>
cudaError_t input_gradients(const GatedScanForward<S>& f, const Compute<S>* d_gates, S* d_x, S* d_g,
                            int64_t rows, cudaStream_t stream) {
  using C = Compute<S>;
  const int hidden = static_cast<int>(f.hidden), channels = static_cast<int>(f.x.channels);
  const auto tensor = use_tensor_cores<S>(f.tf32);
  // The columns of the gates from column `first` on, transposed.
  const auto weights = [&](int first) {
    const GateWeights<S>& w = f.weights;
    const GateWeights<S> shifted{w.u_weight + first, w.u_bias,           w.r_weight + first,
                                 w.r_bias,           w.c_weight + first, w.c_bias};
    return Transposed<GateColumns<S>>{{shifted, channels + 2 * hidden, hidden, 0}};
  };
  const GateRows<C> d_rows{d_gates, 3 * hidden, 0};
  if (d_x != nullptr) {
    HIERMT_CUDA_RETURN_IF_ERROR(linear<C>(d_rows, weights(0), DenseOut<S>{d_x, channels, false}, rows,
                                          3 * f.hidden, channels, stream, tensor));
  }
  if (d_g == nullptr) return cudaSuccess;
  return linear<C>(d_rows, weights(channels), DenseOut<S>{d_g, hidden, false}, rows, 3 * f.hidden, f.hidden,
                   stream, tensor);
}

// Backward of the recurrence alone, from the gates and h. Writes the cotangents of the gates before their
// nonlinearity. `packed` is a workspace of 3 H * H values.
template <class S>
cudaError_t scan_backward(const GatedScanBackward<S, Compute<S>>& p, const GateWorkspace<S>& gates,
                          Compute<S>* packed, cudaStream_t stream);

}  // namespace hiermt::cuda
