// The gated scan, backward. d_u, d_r and d_c are the cotangents of the gates before their nonlinearity, s is
// the reset state r * h_{t-1}:
//
//   d_c = d_h (1 - u) (1 - c^2)     d_u = d_h (h_{t-1} - c) u (1 - u)     d_s = W_c^T d_c
//   d_r = d_s h_{t-1} r (1 - r)     d_h_{t-1} += d_h u + d_s r + W_u^T d_u + W_r^T d_r
//
// The scan writes d_u, d_r and d_c; dense layers over all steps derive the gradients of inputs and weights.
// Gates that were not saved are recomputed from the states for all steps. If S is the compute type, they are
// stored in place of their cotangents, except r, which the gradient of W_c reads again.
#include "cuda/scan/gate_backward.cuh"
#include "cuda/scan/gated_scan_windows.h"

namespace hiermt::cuda {
namespace {

// The saved values that a step reads, in one channel of one node.
template <class C>
struct SavedStep {
  C u, r, candidate, h_prev, d_h;
};

template <class S>
__device__ __forceinline__ SavedStep<Compute<S>> read_step(const GatedScanBackward<S, Compute<S>>& p,
                                                           const ResetGate<S>& reset, int64_t node, int t,
                                                           int c) {
  using C = Compute<S>;
  const GatedScanForward<S>& f = p.forward;
  const int64_t row = node * f.steps + t, at = row * f.hidden + c;
  const S* gates = f.gates + 3 * row * f.hidden + c;
  SavedStep<C> step;
  step.u = load(gates);
  step.r = load(reset.data + row * reset.stride + c);
  step.candidate = load(gates + 2 * f.hidden);
  step.h_prev = t > 0 ? load(f.h + at - f.hidden) : f.h0 != nullptr ? load(f.h0 + node * f.hidden + c) : C(0);
  step.d_h = p.d_h != nullptr ? load(p.d_h + at) : C(0);
  return step;
}

template <class S>
__device__ __forceinline__ Compute<S> last_cotangent(const GatedScanBackward<S, Compute<S>>& p, int64_t node,
                                                     int c) {
  return p.d_h_last != nullptr ? load(p.d_h_last + node * p.forward.hidden + c) : Compute<S>(0);
}

template <class S, int kHidden>
__global__ void __launch_bounds__(ScanTraits::kRegisterThreads)
    gated_scan_bwd_register_kernel(GatedScanBackward<S, Compute<S>> p, ResetGate<S> reset,
                                   Compute<S>* d_gates, int nodes) {
  using C = Compute<S>;
  SharedMemory memory;
  const RegisterLane<kHidden> lane(nodes);
  const GatedScanForward<S>& f = p.forward;
  const int node = lane.node, c = lane.channel, steps = static_cast<int>(f.steps);
  C* all_d_u = lane.template exchange<C>(memory);
  C* all_d_r = lane.template exchange<C>(memory);
  C* all_d_c = lane.template exchange<C>(memory);
  const LaneRecurrent<C, kHidden> weights(f, c, true);
  C carry = last_cotangent(p, node, c);
  SavedStep<C> next = steps > 0 ? read_step(p, reset, node, steps - 1, c) : SavedStep<C>{};
  for (int t = steps - 1; t >= 0; --t) {
    const SavedStep<C> step = next;
    if (t > 0) next = read_step(p, reset, node, t - 1, c);
    const C d_h = carry + step.d_h;
    const C d_c = d_h * (C(1) - step.u) * (C(1) - step.candidate * step.candidate);
    const C d_u = d_h * (step.h_prev - step.candidate) * step.u * (C(1) - step.u);
    all_d_c[c] = d_c;
    all_d_u[c] = d_u;
    __syncwarp();
    const C d_s = dot(weights.c, all_d_c);
    const C d_r = d_s * step.h_prev * step.r * (C(1) - step.r);
    all_d_r[c] = d_r;
    carry = d_h * step.u + d_s * step.r + dot(weights.u, all_d_u);
    __syncwarp();
    carry += dot(weights.r, all_d_r);
    if (lane.inside) {
      C* out = d_gates + (static_cast<int64_t>(node) * steps + t) * 3 * kHidden + c;
      out[0] = d_u, out[kHidden] = d_r, out[2 * kHidden] = d_c;
    }
  }
  if (lane.inside && p.d_h0 != nullptr) store(p.d_h0 + static_cast<int64_t>(node) * kHidden + c, carry);
}

template <class S, int kHidden, bool kShared>
__global__ void __launch_bounds__(ScanTraits::kMemoryThreads, 1)
    gated_scan_bwd_memory_kernel(GatedScanBackward<S, Compute<S>> p, ResetGate<S> reset,
                                 const Compute<S>* packed, Compute<S>* d_gates, int nodes) {
  constexpr int kNodesPerThread = ScanTraits::kNodesPerThread;
  using C = Compute<S>;
  const GatedScanForward<S>& f = p.forward;
  const int hidden = kHidden != 0 ? kHidden : static_cast<int>(f.hidden);
  const int steps = static_cast<int>(f.steps), groups = static_cast<int>(blockDim.x) / hidden;
  const int group = static_cast<int>(threadIdx.x) / hidden, c = static_cast<int>(threadIdx.x) % hidden;
  SharedMemory memory;
  const int exchange = groups * kNodesPerThread * hidden, mine = group * kNodesPerThread * hidden;
  C* all_d_u = memory.take<C>(exchange) + mine;
  C* all_d_r = memory.take<C>(exchange) + mine;
  C* all_d_c = memory.take<C>(exchange) + mine;
  const auto weights = place_weights<kShared, true>(f.weights, static_cast<int>(f.x.channels + f.g_channels),
                                                    hidden, packed, c, memory);
  const C *u_weight = weights.gate(0), *r_weight = weights.gate(1), *c_weight = weights.gate(2);
  const int first_node = (static_cast<int>(blockIdx.x) * groups + group) * kNodesPerThread;

  C carry[kNodesPerThread];
  int64_t node[kNodesPerThread];
#pragma unroll
  for (int q = 0; q < kNodesPerThread; ++q) {
    node[q] = first_node + q < nodes ? first_node + q : nodes - 1;
    carry[q] = last_cotangent(p, node[q], c);
  }
  __syncthreads();
  for (int t = steps - 1; t >= 0; --t) {
    SavedStep<C> step[kNodesPerThread];
    C d_s[kNodesPerThread] = {};
#pragma unroll
    for (int q = 0; q < kNodesPerThread; ++q) {
      step[q] = read_step(p, reset, node[q], t, c);
      const C d_h = carry[q] + step[q].d_h;
      const C d_c = d_h * (C(1) - step[q].u) * (C(1) - step[q].candidate * step[q].candidate);
      const C d_u = d_h * (step[q].h_prev - step[q].candidate) * step[q].u * (C(1) - step[q].u);
      all_d_c[q * hidden + c] = d_c;
      all_d_u[q * hidden + c] = d_u;
      carry[q] = d_h * step[q].u;
      if (first_node + q < nodes) {
        C* out = d_gates + (node[q] * steps + t) * 3 * hidden + c;
        out[0] = d_u, out[2 * hidden] = d_c;
      }
    }
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < hidden; ++k) {
      const C u_k = u_weight[k * weights.stride], c_k = c_weight[k * weights.stride];
#pragma unroll
      for (int q = 0; q < kNodesPerThread; ++q) {
        carry[q] += u_k * all_d_u[q * hidden + k];
        d_s[q] += c_k * all_d_c[q * hidden + k];
      }
    }
#pragma unroll
    for (int q = 0; q < kNodesPerThread; ++q) {
      const C d_r = d_s[q] * step[q].h_prev * step[q].r * (C(1) - step[q].r);
      all_d_r[q * hidden + c] = d_r;
      carry[q] += d_s[q] * step[q].r;
      if (first_node + q < nodes) d_gates[(node[q] * steps + t) * 3 * hidden + hidden + c] = d_r;
    }
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < hidden; ++k) {
      const C r_k = r_weight[k * weights.stride];
#pragma unroll
      for (int q = 0; q < kNodesPerThread; ++q) carry[q] += r_k * all_d_r[q * hidden + k];
    }
  }
#pragma unroll
  for (int q = 0; q < kNodesPerThread; ++q) {
    if (first_node + q < nodes && p.d_h0 != nullptr) store(p.d_h0 + node[q] * hidden + c, carry[q]);
  }
}

template <class S>
struct BackwardMemory {
  using C = Compute<S>;
  Workspace memory;
  C* d_gates;
  C* partial;
  size_t results;
  GateWorkspace<S> gates;
  C* packed;  // [3, H, H]

  BackwardMemory(void* base, const GatedScanBackward<S, C>& p)
      : BackwardMemory(base, p, p.forward.copies * p.forward.num_nodes * p.forward.steps, p.forward.hidden) {}

 private:
  BackwardMemory(void* base, const GatedScanBackward<S, C>& p, int64_t rows, int64_t hidden)
      : memory(base),
        d_gates(memory.template take<C>(rows * 3 * hidden)),
        partial(memory.template take<C>(
            weight_grad_values(rows, 3 * hidden, p.forward.x.channels + p.forward.g_channels + hidden))),
        results(memory.bytes()),
        gates(memory, d_gates, p.forward.gates, rows, hidden),
        packed(memory.template take<C>(3 * hidden * hidden)) {}
};

}  // namespace

template <class S>
cudaError_t scan_backward(const GatedScanBackward<S, Compute<S>>& p, const GateWorkspace<S>& gates,
                          Compute<S>* packed, cudaStream_t stream) {
  using C = Compute<S>;
  const GatedScanForward<S>& f = p.forward;
  const int64_t nodes = f.copies * f.num_nodes;
  const auto in_registers = [&](auto constant) {
    constexpr int kHidden = decltype(constant)::value;
    return launch(gated_scan_bwd_register_kernel<S, kHidden>, RegisterLane<kHidden>::grid(nodes),
                  dim3(ScanTraits::kRegisterThreads), 3 * padded_bytes<C>(ScanTraits::kRegisterThreads),
                  stream, p, gates.reset, gates.d_gates, static_cast<int>(nodes));
  };
  const auto in_memory = [&](auto constant) {
    constexpr int kHidden = decltype(constant)::value;
    const MemoryScan<C> plan(f.hidden, 3);
    if (!plan.shared_weights) HIERMT_CUDA_RETURN_IF_ERROR(pack_recurrent(f, true, packed, stream));
    return launch(plan.shared_weights ? gated_scan_bwd_memory_kernel<S, kHidden, true>
                                      : gated_scan_bwd_memory_kernel<S, 0, false>,
                  plan.grid(nodes), plan.block(), plan.shared_bytes, stream, p, gates.reset, packed,
                  gates.d_gates, static_cast<int>(nodes));
  };
  return nodes == 0 ? cudaSuccess : dispatch_scan<S>(f.hidden, in_registers, in_memory);
}

template <class S>
size_t gated_scan_backward_workspace(const GatedScanBackward<S, Compute<S>>& p) {
  const GatedScanForward<S>& f = p.forward;
  if (f.windows != nullptr) return gated_scan_windows_backward_workspace(p);
  return BackwardMemory<S>(nullptr, p).memory.bytes();
}

template <class S>
size_t gated_scan_backward_results(const GatedScanBackward<S, Compute<S>>& p) {
  if (p.forward.windows != nullptr) return gated_scan_windows_backward_results(p);
  return BackwardMemory<S>(nullptr, p).results;
}

template <class S>
int gated_scan_backward(const GatedScanBackward<S, Compute<S>>& given, void* workspace, void* stream_,
                        GateGradChunks<Compute<S>>* chunks) {
  using C = Compute<S>;
  if (given.forward.windows != nullptr) return gated_scan_windows_backward(given, workspace, stream_);
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
  GatedScanBackward<S, C> p = given;
  const GatedScanForward<S>& f = p.forward;
  const int64_t nodes = f.copies * f.num_nodes, rows = nodes * f.steps;
  if (!supported(nodes, f.steps, f.hidden)) return cudaErrorInvalidValue;
  const BackwardMemory<S> memory(workspace, p);
  GateRows<S> in(f, true, true);
  in.reset = memory.gates.reset;
  if (f.gates == nullptr) {
    p.forward.gates = memory.gates.values;
    HIERMT_CUDA_RETURN_IF_ERROR(compute_gates(in, p.forward.gates, rows, stream));
  }
  HIERMT_CUDA_RETURN_IF_ERROR(scan_backward(p, memory.gates, memory.packed, stream));

  const GateGrads<C>& grads = p.grads;
  if (grads.u_weight || grads.u_bias || grads.r_weight || grads.r_bias || grads.c_weight || grads.c_bias) {
    const int hidden = static_cast<int>(f.hidden);
    const int columns = static_cast<int>(f.x.channels + f.g_channels) + hidden;
    HIERMT_CUDA_RETURN_IF_ERROR(weight_grad_chunks(gate_cotangents<C>(memory.d_gates, hidden), in, rows,
                                                   memory.partial, stream, rounds_operands<S>(f.tf32)));
    const GateGradChunks<C> found{memory.partial, grad_chunks(rows).count, grads, columns, hidden};
    if (chunks != nullptr) {
      *chunks = found;
    } else {
      HIERMT_CUDA_RETURN_IF_ERROR(ordered_sum(stream, sum_of_gates(found)));
    }
  }
  return input_gradients(f, memory.d_gates, p.d_x, p.d_g, rows, stream);
}

#define HIERMT_INSTANTIATE(S)                                                                             \
  template size_t gated_scan_backward_workspace<S>(const GatedScanBackward<S, Compute<S>>&);              \
  template size_t gated_scan_backward_results<S>(const GatedScanBackward<S, Compute<S>>&);                \
  template int gated_scan_backward<S>(const GatedScanBackward<S, Compute<S>>&, void*, void*,              \
                                      GateGradChunks<Compute<S>>*);                                       \
  template cudaError_t scan_backward<S>(const GatedScanBackward<S, Compute<S>>&, const GateWorkspace<S>&, \
                                        Compute<S>*, cudaStream_t);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
