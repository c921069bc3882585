// Where the gradients of the gates' weights go.
#pragma once

#include "cuda/dense/ordered_sum.cuh"
#include "cuda/operators.h"

namespace hiermt::cuda {

// Gradients of the gates: `width` columns of their weights from first_column on, and the bias.
template <class C>
struct GateGradsOut {
  GateGrads<C> grads;
  int columns, hidden, first_column, width;

  __device__ void write(int i, C value) const {
    const int m = i / (width + 1), k = i - m * (width + 1);
    const int gate = m / hidden, c = m - gate * hidden;
    C* weight = gate == 0 ? grads.u_weight : gate == 1 ? grads.r_weight : grads.c_weight;
    C* bias = gate == 0 ? grads.u_bias : gate == 1 ? grads.r_bias : grads.c_bias;
    if (k < width && weight != nullptr) weight[c * columns + first_column + k] = value;
    if (k == width && bias != nullptr) bias[c] = value;
  }
};

template <class C>
OrderedSum<C, GateGradsOut<C>> sum_of_gates(const GateGradChunks<C>& chunks) {
  const int columns = chunks.columns, hidden = chunks.hidden;
  return sum_of<C>(chunks.partial, chunks.count, int64_t{3} * hidden * (columns + 1),
                   GateGradsOut<C>{chunks.grads, columns, hidden, 0, columns});
}

}  // namespace hiermt::cuda
