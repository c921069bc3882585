// Sequences on tiles [node][channel][lane]. An instance m = (copy, t) is one evaluation of the template
// graph, independent of all others. A chunk puts kLanes instances on the lanes, so that sums over edges and
// channels need no data movement between lanes.
#pragma once

#include "cpu/simd/memory.h"
#include "cpu/simd/simd.h"
#include "params.h"

namespace hiermt::cpu::HIERMT_ISA {

// Lanes [0, count) hold instances. The other lanes repeat the last instance, which keeps them finite, and
// have zero cotangents.
template <class C>
struct LaneChunk {
  int64_t count;
  int64_t copy[kLanes<C>];
  int64_t time[kLanes<C>];

  LaneChunk(int64_t steps, int64_t first, int64_t end) {
    count = min(end - first, kLanes<C>);
    for (int l = 0; l < kLanes<C>; ++l) {
      const int64_t instance = first + (l < count ? l : count - 1);
      copy[l] = instance / steps;
      time[l] = instance % steps;
    }
  }
  bool one_copy() const { return copy[0] == copy[kLanes<C> - 1]; }
};

// Number of chunks that `instances` fill.
template <class C>
HIERMT_INLINE int64_t chunk_count(int64_t instances) {
  return (instances + kLanes<C> - 1) / kLanes<C>;
}

// The rows of a sequence: row[lane] + node * stride_node.
template <class S, class C = Compute<S>>
struct LaneRows {
  const S* row[kLanes<C>];
  int64_t channels, stride_node, stride_channel;
  int64_t count;
  bool along_time;  // the lanes of a channel are consecutive elements

  LaneRows(const SequenceView<S>& view, const LaneChunk<C>& chunk)
      : channels(view.channels),
        stride_node(view.stride_node),
        stride_channel(view.stride_channel),
        count(chunk.count),
        along_time(view.stride_time == 1 && chunk.one_copy()) {
    for (int l = 0; l < kLanes<C>; ++l) {
      row[l] = view.data + chunk.copy[l] * view.stride_copy + chunk.time[l] * view.stride_time;
    }
  }
};

// Rows are prefetched kPrefetchNodes nodes ahead, as their runs are too short for the hardware prefetcher,
// but at most kPrefetchBytes ahead in each lane: more would leave the cache before it is read.
constexpr int64_t kPrefetchNodes = 8;
constexpr int64_t kPrefetchBytes = 512;

template <class S, class C>
HIERMT_INLINE void prefetch_ahead(const LaneRows<S, C>& rows, int64_t node, int64_t end) {
  const int64_t bytes = rows.stride_channel == 1 ? rows.channels * static_cast<int64_t>(sizeof(S)) : 1;
  const int64_t ahead = bytes * kPrefetchNodes <= kPrefetchBytes ? kPrefetchNodes
                        : bytes <= kPrefetchBytes                ? kPrefetchBytes / bytes
                                                                 : 1;
  if (node + ahead >= end) return;
  for (int l = 0; l < kLanes<C>; ++l) {
    prefetch(rows.row[l] + (node + ahead) * rows.stride_node, rows.stride_channel == 1 ? rows.channels : 1);
  }
}

// A contiguous [N, T, H] tensor as a sequence.
template <class S>
HIERMT_INLINE SequenceView<S> contiguous_view(const S* data, int64_t num_nodes, int64_t steps,
                                              int64_t channels) {
  return {data, channels, num_nodes * steps * channels, steps * channels, channels, 1};
}

// tile[channel][lane] = the row of `node`, in compute precision.
template <class S, class C = Compute<S>>
HIERMT_INLINE void gather(const LaneRows<S, C>& rows, int64_t node, C* tile) {
  constexpr int L = kLanes<C>;
  const int64_t offset = node * rows.stride_node;
  if (rows.stride_channel == 1) {
    for (int64_t c = 0; c < rows.channels; c += L) {
      const int n = static_cast<int>(min(rows.channels - c, L));
      Vec<C> block[L];
      if (n == L) {
        for (int l = 0; l < L; ++l) block[l] = load(rows.row[l] + offset + c);
        transpose(block);
        for (int k = 0; k < L; ++k) store(tile + (c + k) * L, block[k]);
      } else {
        for (int l = 0; l < L; ++l) block[l] = load_n(rows.row[l] + offset + c, n);
        transpose(block);
        for (int k = 0; k < n; ++k) store(tile + (c + k) * L, block[k]);
      }
    }
  } else if (rows.along_time) {
    for (int64_t c = 0; c < rows.channels; ++c) {
      const S* steps = rows.row[0] + offset + c * rows.stride_channel;
      store(tile + c * L, load_n(steps, static_cast<int>(rows.count)));
    }
  } else {
    for (int64_t c = 0; c < rows.channels; ++c) {
      for (int l = 0; l < L; ++l) tile[c * L + l] = to_compute(rows.row[l][offset + c * rows.stride_channel]);
    }
  }
}

// The derivative of an activation as a function of its value.
template <class C>
HIERMT_INLINE Vec<C> activation_slope(Vec<C> value, Activation activation) {
  const Vec<C> one = broadcast(C(1)), leak = broadcast(C(kActivationSlope));
  if (activation == Activation::kSigmoid) return value * (one - value);
  if (activation == Activation::kLeakyRelu) return value > zero<C>() ? one : leak;
  if (activation == Activation::kLeakySigmoid) {
    return value * (one - value) * (value > broadcast(C(0.5)) ? one : leak);
  }
  return one;
}

// tile[channel][lane] = the cotangent of the output of `node` before the activation, from d_out and out,
// whose stride_channel is 1. Zero in the lanes without an instance and in the channels [d_out.channels,
// padded).
template <class S, class C = Compute<S>>
HIERMT_INLINE void gather_cotangent(const LaneRows<S, C>& d_out, const LaneRows<S, C>& out,
                                    Activation activation, int64_t node, int64_t padded, C* tile) {
  constexpr int L = kLanes<C>;
  const int64_t offset = node * d_out.stride_node;
  for (int64_t c = 0; c < padded; c += L) {
    const int n = static_cast<int>(min(d_out.channels - c, L));
    Vec<C> block[L];
    if (n == L && d_out.count == L) {
      for (int l = 0; l < L; ++l) {
        const Vec<C> value = load(out.row[l] + offset + c);
        block[l] = load(d_out.row[l] + offset + c) * activation_slope<C>(value, activation);
      }
    } else {
      for (int l = 0; l < L; ++l) {
        block[l] = zero<C>();
        if (l < d_out.count) {
          const Vec<C> value = load_n(out.row[l] + offset + c, n);
          block[l] = load_n(d_out.row[l] + offset + c, n) * activation_slope<C>(value, activation);
        }
      }
    }
    transpose(block);
    for (int k = 0; k < L && c + k < padded; ++k) store(tile + (c + k) * L, block[k]);
  }
}

// Clears the lanes without an instance. Their cotangents are zero, but the product with an infinite value of
// the repeated instance would add NaN to a sum over the lanes.
template <class C>
HIERMT_NOINLINE void clear_lanes_past(int64_t count, C* tiles, int64_t elements) {
  constexpr int L = kLanes<C>;
  if (count == L) return;
  for (int64_t i = 0; i < elements; i += L) {
    for (int64_t l = count; l < L; ++l) tiles[i + l] = C(0);
  }
}

// The rows of a contiguous [N, T, H] output: row[lane] + node * stride_node.
template <class S, class C = Compute<S>>
struct LaneRowsOut {
  S* row[kLanes<C>];
  int64_t channels, stride_node;
  int64_t count;

  LaneRowsOut(S* data, int64_t num_nodes, int64_t steps, int64_t channels, const LaneChunk<C>& chunk)
      : channels(channels), stride_node(steps * channels), count(chunk.count) {
    for (int l = 0; l < kLanes<C>; ++l) {
      row[l] = data + (chunk.copy[l] * num_nodes * steps + chunk.time[l]) * channels;
    }
  }
};

// Prefetches the rows of a node that scatter() adds to.
template <class S, class C>
HIERMT_INLINE void prefetch_to_add(const LaneRowsOut<S, C>& rows, int64_t node) {
  for (int64_t l = 0; l < rows.count; ++l) {
    prefetch_to_write(rows.row[l] + node * rows.stride_node, rows.channels);
  }
}

// Writes tile[channel][lane] to the row of `node` in each lane with an instance, or adds it with kAccumulate.
template <bool kAccumulate = false, class S, class C = Compute<S>>
HIERMT_INLINE void scatter(const C* tile, const LaneRowsOut<S, C>& rows, int64_t node) {
  constexpr int L = kLanes<C>;
  const int64_t offset = node * rows.stride_node;
  for (int64_t c = 0; c < rows.channels; c += L) {
    const int n = static_cast<int>(min(rows.channels - c, L));
    Vec<C> block[L];
    for (int k = 0; k < L; ++k) block[k] = k < n ? load(tile + (c + k) * L) : zero<C>();
    transpose(block);
    if (n == L && rows.count == L) {
      for (int l = 0; l < L; ++l) {
        S* row = rows.row[l] + offset + c;
        store(row, kAccumulate ? block[l] + load(row) : block[l]);
      }
    } else {
      for (int l = 0; l < rows.count; ++l) {
        S* row = rows.row[l] + offset + c;
        store_n(row, kAccumulate ? block[l] + load_n(row, n) : block[l], n);
      }
    }
  }
}

}  // namespace hiermt::cpu::HIERMT_ISA
