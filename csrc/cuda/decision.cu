// Logits, softmax and hierarchical decision of a row in one pass over h, which is bound by memory bandwidth:
//
//   logits = heads (W_out h + b_out) + b_heads = (heads W_out) h + (heads b_out + b_heads)
//
// A group of kLanes lanes shares kLanes rows. Together they load each row, four channels a lane, so that
// every sector is read once; they issue the loads of all rows before the first use to hide the latency. Each
// lane sums its channels of all rows. A butterfly exchange, which halves the rows at each step, leaves lane l
// with the logits of row l, so that the stores of a warp coalesce.
#include "cuda/decision.cuh"
#include "cuda/operators.h"

namespace hiermt::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChannels = kDecisionChannels, kMaxLanes = kMostDecisionLanes;
static_assert(kThreads % kWarp == 0 && kWarp % kMaxLanes == 0);
// Resident blocks of a multiprocessor. Each block folds the heads once, so there are no more than that.
template <class S, int kLanes>
constexpr int kResidentBlocks = std::is_same_v<S, double> ? 1
                                : kLanes <= 4             ? 3
                                                          : 2;

template <class S, bool kAligned>
__device__ __forceinline__ void load_channels(const S* at, int64_t count, Compute<S> (&values)[kChannels]) {
  if constexpr (kAligned) {
    const Pack<S, kChannels> pack = *reinterpret_cast<const Pack<S, kChannels>*>(at);
#pragma unroll
    for (int v = 0; v < kChannels; ++v) values[v] = load(&pack.values[v]);
  } else {
#pragma unroll
    for (int v = 0; v < kChannels; ++v) values[v] = v < count ? load(at + v) : Compute<S>(0);
  }
}

// The folded weights of the channels of a lane, in registers.
template <class C>
struct LaneWeights {
  C value[kLogits][kChannels];

  __device__ __forceinline__ void read(const C* folded, int64_t hidden, int64_t first) {
#pragma unroll
    for (int j = 0; j < kLogits; ++j) {
#pragma unroll
      for (int v = 0; v < kChannels; ++v) {
        value[j][v] = first + v < hidden ? folded[j * hidden + first + v] : C(0);
      }
    }
  }
};

// kOnce: a group holds all channels of a row, so that a lane reads its weights once for all rows.
template <class S, int kLanes, bool kAligned, bool kOnce>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<S, kLanes>)
    decision_fwd_kernel(DecisionForward<S> p) {
  using C = Compute<S>;
  SharedMemory shared;
  C* folded = shared.take<C>(kLogits * p.hidden);
  C* bias = shared.take<C>(kLogits);
  fold_heads(p.weights, p.features, p.hidden, folded, bias);

  const int lane = threadIdx.x % kLanes;
  const int64_t first_channel = lane * kChannels;
  LaneWeights<C> weights;
  if (kOnce) weights.read(folded, p.hidden, first_channel);
  // The rows of a warp are consecutive, and its lanes do not diverge in the loop.
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads; first < p.rows;
       first += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t group = first + threadIdx.x - lane;
    C partial[kLanes][kLogits] = {};
    const auto add_channels = [&](int64_t c) {
      const int64_t count = p.hidden - c;
      C values[kLanes][kChannels];
#pragma unroll
      for (int r = 0; r < kLanes; ++r) {
        const int64_t row = group + r < p.rows ? group + r : p.rows - 1;
        load_channels<S, kAligned>(p.h + row * p.stride_row + c, count, values[r]);
      }
#pragma unroll
      for (int r = 0; r < kLanes; ++r) {
#pragma unroll
        for (int j = 0; j < kLogits; ++j) {
#pragma unroll
          for (int v = 0; v < kChannels; ++v) {
            if (kAligned || v < count) partial[r][j] = fma(weights.value[j][v], values[r][v], partial[r][j]);
          }
        }
      }
    };
    if constexpr (kOnce) {
      if (first_channel < p.hidden) add_channels(first_channel);
    } else {
      for (int64_t c = first_channel; c < p.hidden; c += kLanes * kChannels) {
        weights.read(folded, p.hidden, c);
        add_channels(c);
      }
    }
#pragma unroll
    for (int half = kLanes / 2; half > 0; half /= 2) {
      const bool upper = lane & half;
#pragma unroll
      for (int r = 0; r < kLanes / 2; ++r) {
        // A constant loop bound keeps the sums in registers.
        if (r >= half) continue;
#pragma unroll
        for (int j = 0; j < kLogits; ++j) {
          const C send = upper ? partial[r][j] : partial[r + half][j];
          const C keep = upper ? partial[r + half][j] : partial[r][j];
          partial[r][j] = keep + __shfl_xor_sync(kFullMask, send, half);
        }
      }
    }
    const int64_t row = group + lane;
    if (row >= p.rows) continue;
    decide_row(p, partial[0], bias, p.h + row * p.stride_row, row);
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads) decision_from_logits_kernel(DecisionFromLogits<S> p) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= p.rows) return;
  Compute<S> logits[kLogits];
  for (int j = 0; j < 2; ++j) {
    logits[j] = load(p.signal_logits + 2 * row + j);
    logits[2 + j] = load(p.direction_logits + 2 * row + j);
  }
  decide<S>(logits, p.threshold, p.outputs, row);
}

template <class S, int kLanes, bool kOnce>
void decision_launch(const DecisionForward<S>& p, Stream& on) {
  using C = Compute<S>;
  int device = 0, multiprocessors = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  const int64_t blocks = ceil_div(p.rows, int64_t{kThreads});
  const int64_t most = static_cast<int64_t>(multiprocessors) * kResidentBlocks<S, kLanes>;
  const bool aligned = p.hidden % kChannels == 0 && packs<kChannels>(p.h, p.stride_row);
  launch(aligned ? decision_fwd_kernel<S, kLanes, true, kOnce> : decision_fwd_kernel<S, kLanes, false, kOnce>,
         blocks < most ? blocks : most, kThreads,
         padded_bytes<C>(kLogits * p.hidden) + padded_bytes<C>(kLogits), on, p);
}

}  // namespace

template <class S>
void decision_forward(const DecisionForward<S>& p, Stream& on) {
  const int lanes = decision_lanes(p.hidden);
  if (lanes == 1) return decision_launch<S, 1, true>(p, on);
  if (lanes == 2) return decision_launch<S, 2, true>(p, on);
  if (lanes == 4) return decision_launch<S, 4, true>(p, on);
  if (p.hidden <= kMaxLanes * kChannels) return decision_launch<S, kMaxLanes, true>(p, on);
  return decision_launch<S, kMaxLanes, false>(p, on);
}

template <class S>
void decision_from_logits(const DecisionFromLogits<S>& p, Stream& on) {
  launch(decision_from_logits_kernel<S>, ceil_div(p.rows, int64_t{kThreads}), kThreads, 0, on, p);
}

#define HIERMT_INSTANTIATE(S)                                            \
  template void decision_forward<S>(const DecisionForward<S>&, Stream&); \
  template void decision_from_logits<S>(const DecisionFromLogits<S>&, Stream&);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
