// The decision of the last states of a scan, where they are at hand: bitwise what decision_fwd_kernel makes of them.
#pragma once

#include "cuda/decision.cuh"

namespace hiermt::cuda {

// Of the states of kNodes nodes, in shared memory as they are stored.
template <class S, int kNodes>
struct DecisionOfStates {
  using C = Compute<S>;
  C *states, *folded, *bias;  // [kNodes, stride], [4, H], [4]
  int stride;

  // In memory of its own, or in the exchanges of a team: `rows` for the states, `others`, of as many values, for the rest.
  // The team has read what it had there.
  __device__ DecisionOfStates(int hidden, SharedMemory& memory)
      : states(memory.take<C>(kNodes * hidden)),
        folded(memory.take<C>(kLogits * hidden)),
        bias(memory.take<C>(kLogits)),
        stride(hidden) {}
  __device__ DecisionOfStates(int hidden, C* rows, int stride_, C* others)
      : states(rows), folded(others), bias(others + kLogits * hidden), stride(stride_) {
    static_assert(kNodes > 2 * kLogits);
  }
  static size_t shared_bytes(int64_t hidden) {
    return padded_bytes<C>(kNodes * hidden) + padded_bytes<C>(kLogits * hidden) + padded_bytes<C>(kLogits);
  }
  __device__ __forceinline__ void put(int node, int channel, int hidden, const C (&values)[4]) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (channel + k < hidden) states[node * stride + channel + k] = rounded<S>(values[k]);
    }
  }
  // Rows first_row to first_row + kNodes - 1, of those that there are. All threads of the block call it.
  __device__ void decide(const DecisionForward<S>& p, int64_t first_row) const {
    const int hidden = static_cast<int>(p.hidden), lanes = decision_lanes(hidden);
    fold_heads(p.weights, p.features, p.hidden, folded, bias);  // ends with a barrier
    const int lane = static_cast<int>(threadIdx.x) % lanes, rows = static_cast<int>(blockDim.x) / lanes;
    for (int first = 0; first < kNodes; first += rows) {
      const int node = first + static_cast<int>(threadIdx.x) / lanes;
      // Lanes past the last node repeat it.
      const C* h = states + (node < kNodes ? node : kNodes - 1) * stride;
      C sums[kLogits] = {};
      for (int c = lane * kDecisionChannels; c < hidden; c += lanes * kDecisionChannels) {
#pragma unroll
        for (int v = 0; v < kDecisionChannels; ++v) {
#pragma unroll
          for (int j = 0; j < kLogits; ++j) {
            if (c + v < hidden) sums[j] = fma(folded[j * hidden + c + v], h[c + v], sums[j]);
          }
        }
      }
      for (int half = lanes / 2; half > 0; half /= 2) {
#pragma unroll
        for (int j = 0; j < kLogits; ++j) sums[j] += __shfl_xor_sync(kFullMask, sums[j], half);
      }
      if (lane == 0 && node < kNodes && first_row + node < p.rows) {
        decide_row(p, sums, bias, h, first_row + node);
      }
    }
  }
};

}  // namespace hiermt::cuda
