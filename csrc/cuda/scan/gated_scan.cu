// The recurrence of the T-GCN cell, forward (arXiv 1811.05320, eqs. 3 to 6).
#include "cuda/scan/gated_scan.cuh"

namespace hiermt::cuda {
namespace {

// What the gates take from x and g, biases included: [3, H] of a node at a step, H neighbours each. of(node)
// is where those of a node begin, stride_time lies between its steps.
template <class In>
struct ProjectedRows {
  using Value = In;
  const In* data;
  int64_t stride_node, stride_time;

  __device__ __forceinline__ const In* of(int64_t node) const { return data + node * stride_node; }
};

// The same where nodes are windows over the days of a series, [S, D, 3H].
template <class In>
struct ProjectedDays {
  using Value = In;
  const In* data;
  WindowDays windows;
  int64_t stride_time;

  __device__ __forceinline__ const In* of(int64_t node) const {
    return data + windows.first_row(static_cast<int>(node)) * stride_time;
  }
};

// Writes what a step leaves behind, as far as it is wanted.
template <class S>
__device__ __forceinline__ void write_step(const GatedScanForward<S>& p, int64_t row, int c, Compute<S> u,
                                           Compute<S> r, Compute<S> candidate, Compute<S> h) {
  const int64_t at = row * p.hidden + c;
  if (p.h != nullptr) store(p.h + at, h);
  if (p.gates != nullptr) {
    S* gates = p.gates + 3 * row * p.hidden + c;
    store(gates, u);
    store(gates + p.hidden, r);
    store(gates + 2 * p.hidden, candidate);
  }
}

// One thread a channel, its weights in registers; the state of a node is seen by the lanes of one warp alone.
template <class S, class Rows, int kHidden>
__global__ void __launch_bounds__(kScanThreads)
    gated_scan_fwd_kernel(GatedScanForward<S> p, Rows from_input, int nodes) {
  using C = Compute<S>;
  SharedMemory memory;
  const NarrowLane<kHidden> lane(nodes);
  const int node = lane.node, c = lane.channel, steps = static_cast<int>(p.steps);
  C* state = lane.template exchange<C>(memory);
  C* reset = lane.template exchange<C>(memory);
  const LaneRecurrent<C, kHidden> weights(p, c, false);
  C h = p.h0 != nullptr ? load(p.h0 + static_cast<int64_t>(node) * kHidden + c) : C(0);
  state[c] = h;
  __syncwarp();

  const int64_t first_row = static_cast<int64_t>(node) * steps;
  const typename Rows::Value* inputs = from_input.of(node) + c;
  C u_next = C(0), r_next = C(0), c_next = C(0);
  const auto prefetch = [&] {
    u_next = load(inputs), r_next = load(inputs + kHidden), c_next = load(inputs + 2 * kHidden);
    inputs += from_input.stride_time;
  };
  if (steps > 0) prefetch();
  for (int t = 0; t < steps; ++t) {
    const C u_input = u_next, r_input = r_next, c_input = c_next;
    if (t + 1 < steps) prefetch();
    const C r = sigmoid(r_input + dot(weights.r, state));
    reset[c] = r * h;
    const C u = sigmoid(u_input + dot(weights.u, state));
    __syncwarp();
    const C candidate = tangent(c_input + dot(weights.c, reset));
    h = u * h + (C(1) - u) * candidate;
    state[c] = h;
    if (lane.inside) write_step(p, first_row + t, c, u, r, candidate, h);
    __syncwarp();
  }
  if (lane.inside && p.h_last != nullptr) store(p.h_last + static_cast<int64_t>(node) * kHidden + c, h);
}

// Weights in memory: a thread computes one channel of several nodes, so that a weight is read once for all of
// them.
template <class S, class Rows, int kHidden, bool kShared>
__global__ void __launch_bounds__(kWideThreads)
    gated_scan_fwd_wide_kernel(GatedScanForward<S> p, Rows from_input, const Compute<S>* packed, int nodes) {
  using C = Compute<S>;
  const int hidden = kHidden != 0 ? kHidden : static_cast<int>(p.hidden);
  const int steps = static_cast<int>(p.steps), groups = static_cast<int>(blockDim.x) / hidden;
  const int group = static_cast<int>(threadIdx.x) / hidden, c = static_cast<int>(threadIdx.x) % hidden;
  SharedMemory memory;
  C* state = memory.take<C>(groups * kNodesPerThread * hidden) + group * kNodesPerThread * hidden;
  C* reset = memory.take<C>(groups * kNodesPerThread * hidden) + group * kNodesPerThread * hidden;
  const auto weights = place_weights<kShared, false>(p.weights, static_cast<int>(p.x.channels) + hidden,
                                                     hidden, packed, c, memory);
  const C *u_weight = weights.gate(0), *r_weight = weights.gate(1), *c_weight = weights.gate(2);
  const int first_node = (static_cast<int>(blockIdx.x) * groups + group) * kNodesPerThread;

  C h[kNodesPerThread];
  int64_t rows[kNodesPerThread];
  const typename Rows::Value* inputs[kNodesPerThread];
#pragma unroll
  for (int q = 0; q < kNodesPerThread; ++q) {
    const int64_t node = first_node + q < nodes ? first_node + q : nodes - 1;
    rows[q] = node * steps;
    inputs[q] = from_input.of(node) + c;
    h[q] = p.h0 != nullptr ? load(p.h0 + node * hidden + c) : C(0);
    state[q * hidden + c] = h[q];
  }
  __syncthreads();
  for (int t = 0; t < steps; ++t) {
    C u[kNodesPerThread], r[kNodesPerThread], candidate[kNodesPerThread];
#pragma unroll
    for (int q = 0; q < kNodesPerThread; ++q) {
      u[q] = load(inputs[q]), r[q] = load(inputs[q] + hidden), candidate[q] = load(inputs[q] + 2 * hidden);
      inputs[q] += from_input.stride_time;
    }
#pragma unroll 4
    for (int k = 0; k < hidden; ++k) {
      const C u_k = u_weight[k * weights.stride], r_k = r_weight[k * weights.stride];
#pragma unroll
      for (int q = 0; q < kNodesPerThread; ++q) {
        const C value = state[q * hidden + k];
        u[q] += u_k * value;
        r[q] += r_k * value;
      }
    }
#pragma unroll
    for (int q = 0; q < kNodesPerThread; ++q) {
      u[q] = sigmoid(u[q]);
      r[q] = sigmoid(r[q]);
      reset[q * hidden + c] = r[q] * h[q];
    }
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < hidden; ++k) {
      const C c_k = c_weight[k * weights.stride];
#pragma unroll
      for (int q = 0; q < kNodesPerThread; ++q) candidate[q] += c_k * reset[q * hidden + k];
    }
#pragma unroll
    for (int q = 0; q < kNodesPerThread; ++q) {
      candidate[q] = tangent(candidate[q]);
      h[q] = u[q] * h[q] + (C(1) - u[q]) * candidate[q];
      state[q * hidden + c] = h[q];
      if (first_node + q < nodes) write_step(p, rows[q] + t, c, u[q], r[q], candidate[q], h[q]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int q = 0; q < kNodesPerThread; ++q) {
    if (first_node + q < nodes && p.h_last != nullptr) {
      store(p.h_last + static_cast<int64_t>(first_node + q) * hidden + c, h[q]);
    }
  }
}

template <class C>
struct ForwardMemory {
  Workspace memory;
  C* from_input;  // [N * T, 3H]
  C* packed;      // [3, H, H]

  ForwardMemory(void* base, int64_t rows, int64_t hidden) : memory(base) {
    from_input = memory.take<C>(rows * 3 * hidden);
    packed = memory.take<C>(3 * hidden * hidden);
  }
};

// The scan of rows that are projected already.
template <class S, class Rows>
cudaError_t recurrence(const GatedScanForward<S>& p, const Rows& from_input, Compute<S>* packed,
                       cudaStream_t stream) {
  const int64_t nodes = p.copies * p.num_nodes;
  if (!supported(nodes, p.steps, p.hidden)) return cudaErrorInvalidValue;
  if (nodes == 0) return cudaSuccess;
  const auto narrow = [&](auto constant) {
    constexpr int kHidden = decltype(constant)::value;
    return launch(gated_scan_fwd_kernel<S, Rows, kHidden>, NarrowLane<kHidden>::grid(nodes),
                  dim3(kScanThreads), 2 * padded_bytes<Compute<S>>(kScanThreads), stream, p, from_input,
                  static_cast<int>(nodes));
  };
  const auto wide = [&](auto constant) {
    constexpr int kHidden = decltype(constant)::value;
    const WideScan<Compute<S>> plan(p.hidden, 2);
    if (!plan.shared_weights) HIERMT_CUDA_RETURN_IF_ERROR(pack_recurrent(p, false, packed, stream));
    return launch(plan.shared_weights ? gated_scan_fwd_wide_kernel<S, Rows, kHidden, true>
                                      : gated_scan_fwd_wide_kernel<S, Rows, kHidden, false>,
                  plan.grid(nodes), plan.block(), plan.shared_bytes, stream, p, from_input, packed,
                  static_cast<int>(nodes));
  };
  return dispatch_scan<S>(p.hidden, narrow, wide);
}

}  // namespace

template <class S>
size_t gated_scan_forward_workspace(const GatedScanForward<S>& p) {
  return ForwardMemory<Compute<S>>(nullptr, p.copies * p.num_nodes * p.steps, p.hidden).memory.bytes();
}

template <class S>
int gated_scan_forward(const GatedScanForward<S>& p, void* workspace, void* stream_) {
  using C = Compute<S>;
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
  const int64_t nodes = p.copies * p.num_nodes, rows = nodes * p.steps;
  if (!supported(nodes, p.steps, p.hidden)) return cudaErrorInvalidValue;
  const ForwardMemory<C> memory(workspace, rows, p.hidden);
  const int hidden = static_cast<int>(p.hidden), channels = static_cast<int>(p.x.channels);
  HIERMT_CUDA_RETURN_IF_ERROR(
      linear<C>(GateInputs<S, false>{p}, GateColumns<S>{p.weights, channels + 2 * hidden, hidden, 0},
                PairOut<C>{memory.from_input, nullptr, 3 * hidden}, rows, channels + hidden, 3 * p.hidden,
                stream, use_tensor_cores<S>(p.tf32)));
  return gated_scan_recurrence(p, workspace, stream_);
}

template <class S>
int gated_scan_recurrence(const GatedScanForward<S>& p, void* workspace, void* stream) {
  const ForwardMemory<Compute<S>> memory(workspace, p.copies * p.num_nodes * p.steps, p.hidden);
  const ProjectedRows<Compute<S>> rows{memory.from_input, p.steps * 3 * p.hidden, 3 * p.hidden};
  return recurrence(p, rows, memory.packed, static_cast<cudaStream_t>(stream));
}

template <class S>
cudaError_t scan_windows(const GatedScanForward<S>& p, const Compute<S>* from_days, const WindowDays& windows,
                         Compute<S>* packed, cudaStream_t stream) {
  return recurrence(p, ProjectedDays<Compute<S>>{from_days, windows, 3 * p.hidden}, packed, stream);
}

#define HIERMT_INSTANTIATE(S)                                                                            \
  template size_t gated_scan_forward_workspace<S>(const GatedScanForward<S>&);                           \
  template int gated_scan_forward<S>(const GatedScanForward<S>&, void*, void*);                          \
  template int gated_scan_recurrence<S>(const GatedScanForward<S>&, void*, void*);                       \
  template cudaError_t scan_windows<S>(const GatedScanForward<S>&, const Compute<S>*, const WindowDays&, \
                                       Compute<S>*, cudaStream_t);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
