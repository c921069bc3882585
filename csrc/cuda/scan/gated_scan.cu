// The gated scan, forward (arXiv 1811.05320, eqs. 3 to 6). With z = W [x, g] + b the input projection:
//
//   u = sigmoid(z_u + W_u h_{t-1})     r = sigmoid(z_r + W_r h_{t-1})
//   c = tanh(z_c + W_c (r * h_{t-1}))  h_t = u * h_{t-1} + (1 - u) * c
//
// With kMasked a node that is not there at a step holds its state: h_t = h_{t-1}.
#include "cuda/scan/gated_scan.cuh"
#include "cuda/scan/gated_scan_windows.h"

namespace hiermt::cuda {
namespace {

// The input projection [3, H] of each node and step. of(node) points to the first step of a node; its steps
// are stride_time values apart. first_row(node) is the row of that step.
template <class In>
struct ProjectedRows {
  using Value = In;
  const In* data;
  int64_t stride_node, stride_time;

  __device__ __forceinline__ const In* of(int64_t node) const { return data + node * stride_node; }
  __device__ __forceinline__ int64_t first_row(int64_t node, int steps) const { return node * steps; }
};

// The same for windows over the days of a series, [V, D, 3H].
template <class In>
struct ProjectedDays {
  using Value = In;
  const In* data;
  WindowDays windows;
  int64_t stride_time;

  __device__ __forceinline__ const In* of(int64_t node) const {
    return data + windows.first_row(static_cast<int>(node)) * stride_time;
  }
  __device__ __forceinline__ int64_t first_row(int64_t node, int) const {
    return windows.first_row(static_cast<int>(node));
  }
};

// Weights in registers: a thread computes one channel of one node.
template <class S, class Rows, int kHidden, bool kMasked>
__global__ void __launch_bounds__(ScanTraits::kRegisterThreads, ScanTraits::kRegisterBlocks)
    gated_scan_fwd_register_kernel(GatedScanForward<S> p, Rows input_projection, int nodes) {
  using C = Compute<S>;
  SharedMemory memory;
  const RegisterLane<kHidden> lane(nodes);
  const int node = lane.node, c = lane.channel, steps = static_cast<int>(p.steps);
  C* state = lane.template exchange<C>(memory);
  C* reset = lane.template exchange<C>(memory);
  const LaneRecurrent<C, kHidden> weights(p, c, false);
  C h = p.h0 != nullptr ? load(p.h0 + static_cast<int64_t>(node) * kHidden + c) : C(0);
  state[c] = h;
  __syncwarp();

  const int64_t first_row = static_cast<int64_t>(node) * steps;
  const bool* present = nullptr;
  if constexpr (kMasked) present = p.present + input_projection.first_row(node, steps);
  const typename Rows::Value* inputs = input_projection.of(node) + c;
  C u_next = C(0), r_next = C(0), c_next = C(0);
  const auto prefetch = [&] {
    u_next = load(inputs), r_next = load(inputs + kHidden), c_next = load(inputs + 2 * kHidden);
    inputs += input_projection.stride_time;
  };
  if (steps > 0) prefetch();
  for (int t = 0; t < steps; ++t) {
    const C u_input = u_next, r_input = r_next, c_input = c_next;
    if (t + 1 < steps) prefetch();
    const C r = sigmoid(r_input + dot(weights.r, state));
    reset[c] = r * h;
    const C u = sigmoid(u_input + dot(weights.u, state));
    __syncwarp();
    const C candidate = tanh(c_input + dot(weights.c, reset));
    const C next = u * h + (C(1) - u) * candidate;
    h = kMasked && !present[t] ? h : next;
    state[c] = h;
    if (lane.inside && p.h != nullptr) store(p.h + (first_row + t) * kHidden + c, h);
    __syncwarp();
  }
  if (lane.inside && p.h_last != nullptr) store(p.h_last + static_cast<int64_t>(node) * kHidden + c, h);
}

// Weights in memory: a thread computes one channel of several nodes, which share the loads of a weight.
template <class S, class Rows, int kHidden, bool kShared, bool kMasked>
__global__ void __launch_bounds__(ScanTraits::kMemoryThreads)
    gated_scan_fwd_memory_kernel(GatedScanForward<S> p, Rows input_projection, const Compute<S>* packed,
                                 int nodes) {
  constexpr int kNodesPerThread = ScanTraits::kNodesPerThread;
  using C = Compute<S>;
  const int hidden = kHidden != 0 ? kHidden : static_cast<int>(p.hidden);
  const int steps = static_cast<int>(p.steps), groups = static_cast<int>(blockDim.x) / hidden;
  const int group = static_cast<int>(threadIdx.x) / hidden, c = static_cast<int>(threadIdx.x) % hidden;
  SharedMemory memory;
  C* state = memory.take<C>(groups * kNodesPerThread * hidden) + group * kNodesPerThread * hidden;
  C* reset = memory.take<C>(groups * kNodesPerThread * hidden) + group * kNodesPerThread * hidden;
  const auto weights = place_weights<kShared, false>(p.weights, static_cast<int>(p.x.channels + p.g_channels),
                                                     hidden, packed, c, memory);
  const C *u_weight = weights.gate(0), *r_weight = weights.gate(1), *c_weight = weights.gate(2);
  const int first_node = (static_cast<int>(blockIdx.x) * groups + group) * kNodesPerThread;

  C h[kNodesPerThread];
  int64_t rows[kNodesPerThread];
  const typename Rows::Value* inputs[kNodesPerThread];
  const bool* present[kNodesPerThread] = {};
#pragma unroll
  for (int q = 0; q < kNodesPerThread; ++q) {
    const int64_t node = first_node + q < nodes ? first_node + q : nodes - 1;
    rows[q] = node * steps;
    inputs[q] = input_projection.of(node) + c;
    if constexpr (kMasked) present[q] = p.present + input_projection.first_row(node, steps);
    h[q] = p.h0 != nullptr ? load(p.h0 + node * hidden + c) : C(0);
    state[q * hidden + c] = h[q];
  }
  __syncthreads();
  for (int t = 0; t < steps; ++t) {
    C u[kNodesPerThread], r[kNodesPerThread], candidate[kNodesPerThread];
#pragma unroll
    for (int q = 0; q < kNodesPerThread; ++q) {
      u[q] = load(inputs[q]), r[q] = load(inputs[q] + hidden), candidate[q] = load(inputs[q] + 2 * hidden);
      inputs[q] += input_projection.stride_time;
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
      candidate[q] = tanh(candidate[q]);
      const C next = u[q] * h[q] + (C(1) - u[q]) * candidate[q];
      h[q] = kMasked && !present[q][t] ? h[q] : next;
      state[q * hidden + c] = h[q];
      if (first_node + q < nodes && p.h != nullptr) store(p.h + (rows[q] + t) * hidden + c, h[q]);
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

// The scan over a given input projection.
template <class S, class Rows>
cudaError_t recurrence(const GatedScanForward<S>& p, const Rows& input_projection, Compute<S>* packed,
                       cudaStream_t stream) {
  const int64_t nodes = p.copies * p.num_nodes;
  if (!supported(nodes, p.steps, p.hidden)) return cudaErrorInvalidValue;
  if (nodes == 0) return cudaSuccess;
  const auto in_registers = [&](auto constant) {
    constexpr int kHidden = decltype(constant)::value;
    return dispatch_masked(p.present, [&](auto masked) {
      return launch(gated_scan_fwd_register_kernel<S, Rows, kHidden, decltype(masked)::value>,
                    RegisterLane<kHidden>::grid(nodes), dim3(ScanTraits::kRegisterThreads),
                    2 * padded_bytes<Compute<S>>(ScanTraits::kRegisterThreads), stream, p, input_projection,
                    static_cast<int>(nodes));
    });
  };
  const auto in_memory = [&](auto constant) {
    constexpr int kHidden = decltype(constant)::value;
    const MemoryScan<Compute<S>> plan(p.hidden, 2);
    if (!plan.shared_weights) HIERMT_CUDA_RETURN_IF_ERROR(pack_recurrent(p, false, packed, stream));
    return dispatch_masked(p.present, [&](auto masked) {
      constexpr bool kMasked = decltype(masked)::value;
      return launch(plan.shared_weights ? gated_scan_fwd_memory_kernel<S, Rows, kHidden, true, kMasked>
                                        : gated_scan_fwd_memory_kernel<S, Rows, 0, false, kMasked>,
                    plan.grid(nodes), plan.block(), plan.shared_bytes, stream, p, input_projection, packed,
                    static_cast<int>(nodes));
    });
  };
  return dispatch_scan<S>(p.hidden, in_registers, in_memory);
}

}  // namespace

template <class S>
size_t gated_scan_forward_workspace(const GatedScanForward<S>& p) {
  if (p.windows != nullptr) return gated_scan_windows_forward_workspace(p);
  return ScanMemory<Compute<S>>(nullptr, p.copies * p.num_nodes * p.steps, p.hidden).memory.bytes();
}

template <class S>
int gated_scan_forward(const GatedScanForward<S>& p, void* workspace, void* stream) {
  if (p.windows != nullptr) return gated_scan_windows_forward(p, workspace, stream);
  const int64_t nodes = p.copies * p.num_nodes;
  if (!supported(nodes, p.steps, p.hidden)) return cudaErrorInvalidValue;
  const ScanMemory<Compute<S>> memory(workspace, nodes * p.steps, p.hidden);
  HIERMT_CUDA_RETURN_IF_ERROR(project_input(p, memory.input_projection, static_cast<cudaStream_t>(stream)));
  return gated_scan_recurrence(p, workspace, stream);
}

template <class S>
int gated_scan_recurrence(const GatedScanForward<S>& p, void* workspace, void* stream) {
  if (p.windows != nullptr) return gated_scan_windows_recurrence(p, workspace, stream);
  const ScanMemory<Compute<S>> memory(workspace, p.copies * p.num_nodes * p.steps, p.hidden);
  const ProjectedRows<Compute<S>> rows{memory.input_projection, p.steps * 3 * p.hidden, 3 * p.hidden};
  return recurrence(p, rows, memory.packed, static_cast<cudaStream_t>(stream));
}

template <class S>
cudaError_t scan_windows(const GatedScanForward<S>& p, const Compute<S>* day_projection,
                         const WindowDays& windows, Compute<S>* packed, cudaStream_t stream) {
  return recurrence(p, ProjectedDays<Compute<S>>{day_projection, windows, 3 * p.hidden}, packed, stream);
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
