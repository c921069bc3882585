// Outputs of the sums over rows: the gradients of the parameters of a GATv2 convolution, each optional.
#pragma once

#include "cuda/support/launch.cuh"
#include "params.h"

namespace hiermt::cuda {

// Gradients of att, lin_edge and bias, [3, H].
template <class C>
struct VectorGrads {
  GatV2Grads<C> grads;
  int hidden;

  __device__ void write(int i, C value) const {
    C* to = i < hidden ? grads.att : i < 2 * hidden ? grads.lin_edge_weight : grads.bias;
    if (to != nullptr) to[i % hidden] = value;
  }
};

// Gradients of the rows of lin_l and lin_r, [2H, F + 1]; the last column is the bias.
template <class C>
struct MatrixGrads {
  GatV2Grads<C> grads;
  int hidden, channels;

  __device__ void write(int i, C value) const {
    int m = i / (channels + 1);
    const int k = i - m * (channels + 1);
    const bool left = m < hidden;
    if (!left) m -= hidden;
    C* weight = left ? grads.lin_l_weight : grads.lin_r_weight;
    C* bias = left ? grads.lin_l_bias : grads.lin_r_bias;
    if (k < channels && weight != nullptr) weight[m * channels + k] = value;
    if (k == channels && bias != nullptr) bias[m] = value;
  }
};

}  // namespace hiermt::cuda
