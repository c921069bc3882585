// The recurrence of the T-GCN cell, backward. From the gates, with h' the cotangent of a state:
//
//   c' = h' (1 - u) (1 - c^2)     u' = h' (h_{t-1} - c) u (1 - u)     q = W_c^T c'
//   r' = q h_{t-1} r (1 - r)      h'_{t-1} = h' u + q r + W_u^T u' + W_r^T r'
//
// The scan writes u', r', c'; what they mean for the inputs and the weights is dense work over all steps.
// Gates that were not saved are computed again from the states, all steps at once. Where they are as wide as
// their cotangents they take the place of these, but for r, which the weights of c read once more.
#include "cuda/scan/gate_grads.cuh"

namespace hiermt::cuda {
namespace {

// What a step of the backward reads, in one channel of one node.
template <class C>
struct SavedStep {
  C u, r, candidate, before, grad;
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
  step.before = t > 0 ? load(f.h + at - f.hidden) : f.h0 != nullptr ? load(f.h0 + node * f.hidden + c) : C(0);
  step.grad = p.d_h != nullptr ? load(p.d_h + at) : C(0);
  return step;
}

template <class S>
__device__ __forceinline__ Compute<S> last_gradient(const GatedScanBackward<S, Compute<S>>& p, int64_t node,
                                                    int c) {
  return p.d_h_last != nullptr ? load(p.d_h_last + node * p.forward.hidden + c) : Compute<S>(0);
}

template <class S, int kHidden>
__global__ void __launch_bounds__(kScanThreads)
    gated_scan_bwd_kernel(GatedScanBackward<S, Compute<S>> p, ResetGate<S> reset, Compute<S>* d_gates,
                          int nodes) {
  using C = Compute<S>;
  SharedMemory memory;
  const NarrowLane<kHidden> lane(nodes);
  const GatedScanForward<S>& f = p.forward;
  const int node = lane.node, c = lane.channel, steps = static_cast<int>(f.steps);
  C* u_grads = lane.template exchange<C>(memory);
  C* r_grads = lane.template exchange<C>(memory);
  C* c_grads = lane.template exchange<C>(memory);
  const LaneRecurrent<C, kHidden> weights(f, c, true);
  C carry = last_gradient(p, node, c);
  SavedStep<C> next = steps > 0 ? read_step(p, reset, node, steps - 1, c) : SavedStep<C>{};
  for (int t = steps - 1; t >= 0; --t) {
    const SavedStep<C> step = next;
    if (t > 0) next = read_step(p, reset, node, t - 1, c);
    const C grad = carry + step.grad;
    const C c_grad = grad * (C(1) - step.u) * (C(1) - step.candidate * step.candidate);
    const C u_grad = grad * (step.before - step.candidate) * step.u * (C(1) - step.u);
    c_grads[c] = c_grad;
    u_grads[c] = u_grad;
    __syncwarp();
    const C through_reset = dot(weights.c, c_grads);
    const C r_grad = through_reset * step.before * step.r * (C(1) - step.r);
    r_grads[c] = r_grad;
    carry = grad * step.u + through_reset * step.r + dot(weights.u, u_grads);
    __syncwarp();
    carry += dot(weights.r, r_grads);
    if (lane.inside) {
      C* out = d_gates + (static_cast<int64_t>(node) * steps + t) * 3 * kHidden + c;
      out[0] = u_grad, out[kHidden] = r_grad, out[2 * kHidden] = c_grad;
    }
  }
  if (lane.inside && p.d_h0 != nullptr) store(p.d_h0 + static_cast<int64_t>(node) * kHidden + c, carry);
}

template <class S, int kHidden, bool kShared>
__global__ void __launch_bounds__(kWideThreads, 1)
    gated_scan_bwd_wide_kernel(GatedScanBackward<S, Compute<S>> p, ResetGate<S> reset,
                               const Compute<S>* packed, Compute<S>* d_gates, int nodes) {
  using C = Compute<S>;
  const GatedScanForward<S>& f = p.forward;
  const int hidden = kHidden != 0 ? kHidden : static_cast<int>(f.hidden);
  const int steps = static_cast<int>(f.steps), groups = static_cast<int>(blockDim.x) / hidden;
  const int group = static_cast<int>(threadIdx.x) / hidden, c = static_cast<int>(threadIdx.x) % hidden;
  SharedMemory memory;
  const int exchange = groups * kNodesPerThread * hidden, mine = group * kNodesPerThread * hidden;
  C* u_grads = memory.take<C>(exchange) + mine;
  C* r_grads = memory.take<C>(exchange) + mine;
  C* c_grads = memory.take<C>(exchange) + mine;
  const auto weights = place_weights<kShared, true>(f.weights, static_cast<int>(f.x.channels) + hidden,
                                                    hidden, packed, c, memory);
  const C *u_weight = weights.gate(0), *r_weight = weights.gate(1), *c_weight = weights.gate(2);
  const int first_node = (static_cast<int>(blockIdx.x) * groups + group) * kNodesPerThread;

  C carry[kNodesPerThread];
  int64_t node[kNodesPerThread];
#pragma unroll
  for (int q = 0; q < kNodesPerThread; ++q) {
    node[q] = first_node + q < nodes ? first_node + q : nodes - 1;
    carry[q] = last_gradient(p, node[q], c);
  }
  __syncthreads();
  for (int t = steps - 1; t >= 0; --t) {
    SavedStep<C> step[kNodesPerThread];
    C through_reset[kNodesPerThread] = {};
#pragma unroll
    for (int q = 0; q < kNodesPerThread; ++q) {
      step[q] = read_step(p, reset, node[q], t, c);
      const C grad = carry[q] + step[q].grad;
      const C c_grad = grad * (C(1) - step[q].u) * (C(1) - step[q].candidate * step[q].candidate);
      const C u_grad = grad * (step[q].before - step[q].candidate) * step[q].u * (C(1) - step[q].u);
      c_grads[q * hidden + c] = c_grad;
      u_grads[q * hidden + c] = u_grad;
      carry[q] = grad * step[q].u;
      if (first_node + q < nodes) {
        C* out = d_gates + (node[q] * steps + t) * 3 * hidden + c;
        out[0] = u_grad, out[2 * hidden] = c_grad;
      }
    }
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < hidden; ++k) {
      const C u_k = u_weight[k * weights.stride], c_k = c_weight[k * weights.stride];
#pragma unroll
      for (int q = 0; q < kNodesPerThread; ++q) {
        carry[q] += u_k * u_grads[q * hidden + k];
        through_reset[q] += c_k * c_grads[q * hidden + k];
      }
    }
#pragma unroll
    for (int q = 0; q < kNodesPerThread; ++q) {
      const C r_grad = through_reset[q] * step[q].before * step[q].r * (C(1) - step[q].r);
      r_grads[q * hidden + c] = r_grad;
      carry[q] += through_reset[q] * step[q].r;
      if (first_node + q < nodes) d_gates[(node[q] * steps + t) * 3 * hidden + hidden + c] = r_grad;
    }
    __syncthreads();
#pragma unroll 4
    for (int k = 0; k < hidden; ++k) {
      const C r_k = r_weight[k * weights.stride];
#pragma unroll
      for (int q = 0; q < kNodesPerThread; ++q) carry[q] += r_k * r_grads[q * hidden + k];
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
  GateWorkspace<S> gates;
  C* packed;  // [3, H, H]
  C* partial;

  BackwardMemory(void* base, const GatedScanBackward<S, C>& p, int64_t rows)
      : memory(base), gates(memory, p.forward.gates, rows, p.forward.hidden) {
    const int64_t hidden = p.forward.hidden;
    packed = memory.template take<C>(3 * hidden * hidden);
    partial =
        memory.template take<C>(weight_grad_values(rows, 2 * hidden, p.forward.x.channels + 2 * hidden));
  }
};

}  // namespace

template <class S>
cudaError_t scan_back(const GatedScanBackward<S, Compute<S>>& p, const GateWorkspace<S>& gates,
                      Compute<S>* packed, cudaStream_t stream) {
  using C = Compute<S>;
  const GatedScanForward<S>& f = p.forward;
  const int64_t nodes = f.copies * f.num_nodes;
  const auto narrow = [&](auto constant) {
    constexpr int kHidden = decltype(constant)::value;
    return launch(gated_scan_bwd_kernel<S, kHidden>, NarrowLane<kHidden>::grid(nodes), dim3(kScanThreads),
                  3 * padded_bytes<C>(kScanThreads), stream, p, gates.reset, gates.grads,
                  static_cast<int>(nodes));
  };
  const auto wide = [&](auto constant) {
    constexpr int kHidden = decltype(constant)::value;
    const WideScan<C> plan(f.hidden, 3);
    if (!plan.shared_weights) HIERMT_CUDA_RETURN_IF_ERROR(pack_recurrent(f, true, packed, stream));
    return launch(plan.shared_weights ? gated_scan_bwd_wide_kernel<S, kHidden, true>
                                      : gated_scan_bwd_wide_kernel<S, kHidden, false>,
                  plan.grid(nodes), plan.block(), plan.shared_bytes, stream, p, gates.reset, packed,
                  gates.grads, static_cast<int>(nodes));
  };
  return nodes == 0 ? cudaSuccess : dispatch_scan<S>(f.hidden, narrow, wide);
}

template <class S>
size_t gated_scan_backward_workspace(const GatedScanBackward<S, Compute<S>>& p) {
  const GatedScanForward<S>& f = p.forward;
  return BackwardMemory<S>(nullptr, p, f.copies * f.num_nodes * f.steps).memory.bytes();
}

template <class S>
int gated_scan_backward(const GatedScanBackward<S, Compute<S>>& given, void* workspace, void* stream_) {
  using C = Compute<S>;
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
  GatedScanBackward<S, C> p = given;
  const GatedScanForward<S>& f = p.forward;
  const int64_t nodes = f.copies * f.num_nodes, rows = nodes * f.steps;
  if (!supported(nodes, f.steps, f.hidden)) return cudaErrorInvalidValue;
  const BackwardMemory<S> memory(workspace, p, rows);
  if (f.gates == nullptr) {
    p.forward.gates = memory.gates.values;
    HIERMT_CUDA_RETURN_IF_ERROR(compute_gates(f, GateInputs<S, false>{f},
                                              GateInputs<S, true>{f, memory.gates.reset}, memory.gates.reset,
                                              rows, stream));
  }
  const int hidden = static_cast<int>(f.hidden), channels = static_cast<int>(f.x.channels);
  const int columns = channels + 2 * hidden;
  const bool tensor = use_tensor_cores<S>(f.tf32);

  HIERMT_CUDA_RETURN_IF_ERROR(scan_back(p, memory.gates, memory.packed, stream));

  const GateGrads<C>& grads = p.grads;
  if (grads.u_weight || grads.u_bias || grads.r_weight || grads.r_bias) {
    HIERMT_CUDA_RETURN_IF_ERROR(weight_grad<C>(
        GateRows<C>{memory.gates.grads, 3 * hidden, 0}, GateInputs<S, false>{f}, rows, 2 * f.hidden, columns,
        memory.partial, GateGradsOut<C>{grads, columns, hidden, 0, 0, columns}, stream, tensor));
  }
  if (grads.c_weight || grads.c_bias) {
    HIERMT_CUDA_RETURN_IF_ERROR(
        weight_grad<C>(GateRows<C>{memory.gates.grads, 3 * hidden, 2 * hidden},
                       GateInputs<S, true>{f, memory.gates.reset}, rows, f.hidden, columns, memory.partial,
                       GateGradsOut<C>{grads, columns, hidden, 2, 0, columns}, stream, tensor));
  }
  const GateRows<C> d_rows{memory.gates.grads, 3 * hidden, 0};
  if (p.d_x != nullptr) {
    HIERMT_CUDA_RETURN_IF_ERROR(linear<C>(d_rows, TransposedInputWeights<S>{f.weights, columns, hidden, 0},
                                          DenseOut<S>{p.d_x, channels, p.accumulate_grad_x}, rows,
                                          3 * f.hidden, channels, stream, tensor));
  }
  if (p.d_g == nullptr) return cudaSuccess;
  return linear<C>(d_rows, TransposedInputWeights<S>{f.weights, columns, hidden, channels},
                   DenseOut<S>{p.d_g, hidden, false}, rows, 3 * f.hidden, f.hidden, stream, tensor);
}

#define HIERMT_INSTANTIATE(S)                                                                         \
  template size_t gated_scan_backward_workspace<S>(const GatedScanBackward<S, Compute<S>>&);          \
  template int gated_scan_backward<S>(const GatedScanBackward<S, Compute<S>>&, void*, void*);         \
  template cudaError_t scan_back<S>(const GatedScanBackward<S, Compute<S>>&, const GateWorkspace<S>&, \
                                    Compute<S>*, cudaStream_t);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
