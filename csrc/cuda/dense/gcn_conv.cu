// GCN convolution, forward and backward. With norm_ij = d_j^-1/2 w_ij d_i^-1/2 and d_y the cotangent of the
// activation's argument:
//
//   y_i = bias + sum_j norm_ij W x_j                out_i = activation(y_i)
//   d_projected[j] = sum_i norm_ij d_y[i]           d_norm_ij = d_y[i] . W x_j
//   d_W = sum_j d_projected[j] x_j^T                d_bias = sum_i d_y[i]           d_x = W^T d_projected
//
// One launch projects all rows (W x), one sums over the entries (gcn_conv.cuh).
#include "cuda/dense/gcn_conv.cuh"
#include "cuda/dense/linear.cuh"
#include "cuda/dense/weight_grad.cuh"

namespace hiermt::cuda {
namespace {

template <class S, int kHidden, bool kMasked>
__global__ void __launch_bounds__(GcnTraits::kThreads, GcnTraits::kMinBlocks)
    gcn_conv_fwd_kernel(GcnConvForward<S> p, const Compute<S>* scales, const Compute<S>* projected,
                        int rows) {
  using C = Compute<S>;
  constexpr int kChannels = ChannelSplit<kHidden>::kChannels;
  const GroupRow<kHidden> group(p.hidden);
  if (group.row >= rows) return;
  C sum[kChannels] = {};
  sum_neighbours<false, kMasked>(p, group, scales, projected, sum);
  scale_row<kMasked>(scales, group.row, sum);
#pragma unroll
  for (int v = 0; v < kChannels; ++v) {
    const C bias = group.split.holds(group.first + v) ? load(p.weights.bias + group.first + v) : C(0);
    sum[v] = activate<S>(p.activation, sum[v] + bias);
    if (kMasked && !p.present[group.row]) sum[v] = C(0);
  }
  group.split.store_any(p.out + group.row * group.split.hidden, group.first, sum);
}

// Writes d_y, and a partial sum of d_bias per block.
template <class S, bool kMasked>
__global__ void __launch_bounds__(GcnTraits::kThreads, GcnTraits::kMinBlocks)
    gcn_conv_bwd_activation_kernel(GcnConvForward<S> p, const S* d_out, Compute<S>* d_y, int64_t rows,
                                   int64_t rows_per_block, Compute<S>* partial) {
  using C = Compute<S>;
  constexpr int kThreads = GcnTraits::kThreads;
  const int hidden = static_cast<int>(p.hidden);
  const int64_t begin = blockIdx.x * rows_per_block;
  const int64_t end = rows - begin < rows_per_block ? rows : begin + rows_per_block;
  SharedMemory shared;
  C* sums = shared.take<C>(kThreads);
  // Threads past a whole number of rows are idle, so that a thread keeps its channel.
  const int width = hidden < kThreads ? kThreads / hidden * hidden : kThreads;
  for (int channel = 0; channel < hidden; channel += kThreads) {
    const int c = channel + static_cast<int>(threadIdx.x) % (hidden < kThreads ? hidden : kThreads);
    const int stride = hidden < kThreads ? kThreads / hidden : 1;
    C sum = C(0);
    if (static_cast<int>(threadIdx.x) < width && c < hidden) {
      const int offset = hidden < kThreads ? static_cast<int>(threadIdx.x) / hidden : 0;
      for (int64_t row = begin + offset; row < end; row += stride) {
        const int64_t i = row * hidden + c;
        C value = load(d_out + i) * activation_slope(p.activation, load(p.out + i));
        if (kMasked && !p.present[row]) value = C(0);
        d_y[i] = value;
        sum += value;
      }
    }
    __syncthreads();
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < hidden && c < hidden) {
      C total = C(0);
      for (int i = static_cast<int>(threadIdx.x); i < width; i += hidden) total += sums[i];
      partial[static_cast<int64_t>(blockIdx.x) * hidden + c] = total;
    }
  }
}

template <class S, int kHidden, bool kMasked>
__global__ void __launch_bounds__(GcnTraits::kThreads, GcnTraits::kMinBlocks)
    gcn_conv_bwd_source_kernel(GcnConvForward<S> p, const Compute<S>* scales, const Compute<S>* d_y,
                               Compute<S>* d_projected, int rows) {
  using C = Compute<S>;
  constexpr int kChannels = ChannelSplit<kHidden>::kChannels;
  const GroupRow<kHidden> group(p.hidden);
  if (group.row >= rows) return;
  C sum[kChannels] = {};
  sum_neighbours<true, kMasked>(p, group, scales, d_y, sum);
  scale_row<kMasked>(scales, group.row, sum);
  group.split.store_aligned(d_projected + group.row * group.split.hidden, group.first, sum);
}

// d_norm summed over copies and steps. One block per node of the template graph.
template <class S>
__global__ void __launch_bounds__(GcnTraits::kThreads, GcnTraits::kMinBlocks)
    gcn_conv_bwd_norm_kernel(GcnConvForward<S> p, const Compute<S>* d_y, const Compute<S>* projected,
                             Compute<S>* d_norm, bool accumulate) {
  using C = Compute<S>;
  SharedMemory shared;
  C* scratch = shared.take<C>(GcnTraits::kThreads);
  const int hidden = static_cast<int>(p.hidden), steps = static_cast<int>(p.steps);
  const int node = static_cast<int>(blockIdx.x);
  // Steps and channels of a node are contiguous.
  const int64_t piece = static_cast<int64_t>(steps) * hidden, values = p.graph.copies * piece;
  for (int entry = p.graph.rowptr[node]; entry < p.graph.rowptr[node + 1]; ++entry) {
    C sum = C(0);
    for (int64_t i = threadIdx.x; i < values; i += GcnTraits::kThreads) {
      const int64_t copy = i / piece, inside = i - copy * piece;
      sum += d_y[(copy * p.graph.num_nodes + node) * piece + inside] *
             projected[(copy * p.graph.num_nodes + p.graph.col[entry]) * piece + inside];
    }
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) d_norm[entry] = accumulate ? d_norm[entry] + sum : sum;
  }
}

template <class C>
struct BiasGrad {
  C* bias;
  __device__ void write(int i, C value) const { bias[i] = value; }
};

// Skips the column of ones of weight_grad: the bias is added after the sum over the entries.
template <class C>
struct LinGrad {
  C* lin_weight;
  int inputs;
  __device__ void write(int i, C value) const {
    const int m = i / (inputs + 1), k = i - m * (inputs + 1);
    if (k < inputs) lin_weight[m * inputs + k] = value;
  }
};

template <class S>
cudaError_t project(const GcnConvForward<S>& p, Compute<S>* projected, int64_t rows, cudaStream_t stream) {
  const int hidden = static_cast<int>(p.hidden);
  return linear<Compute<S>, 1>(
      SequenceRows<S>::of(p), PlainWeight<S>{p.weights.lin_weight, 1, static_cast<int>(p.x.channels)},
      DenseOut<Compute<S>>{projected, hidden, hidden, 0}, rows, hidden, stream, rounds_operands<S>(p.tf32));
}

template <class C>
struct ForwardMemory {
  Workspace memory;
  C* projected;
  C* scales;  // [N * T] with a mask

  template <class S>
  ForwardMemory(void* base, const GcnConvForward<S>& p) : memory(base) {
    const int64_t rows = p.graph.copies * p.graph.num_nodes * p.steps;
    projected = memory.take<C>(rows * p.hidden);
    scales = memory.take<C>(p.present != nullptr ? rows : 0);
  }
};

template <class C>
struct BackwardMemory {
  Workspace memory;
  C* d_y;
  C* projected;  // W x for the gradient of norm, then d_projected
  C* partial;
  C* scales;  // [N * T] with a mask, as d_degree
  C* d_degree;

  template <class P>
  BackwardMemory(void* base, const P& p, int64_t rows) : memory(base) {
    d_y = memory.take<C>(rows * p.forward.hidden);
    projected = memory.take<C>(rows * p.forward.hidden);
    const int64_t matrix = weight_grad_values(rows, p.forward.hidden, p.forward.x.channels);
    const int64_t vector = GcnTraits::kMaxBiasBlocks * p.forward.hidden;
    partial = memory.take<C>(matrix > vector ? matrix : vector);
    scales = memory.take<C>(p.forward.present != nullptr ? rows : 0);
    d_degree = memory.take<C>(p.forward.present != nullptr ? rows : 0);
  }
};

}  // namespace

template <class S>
size_t gcn_conv_forward_workspace(const GcnConvForward<S>& p) {
  return ForwardMemory<Compute<S>>(nullptr, p).memory.bytes();
}

template <class S>
int gcn_conv_forward(const GcnConvForward<S>& p, void* workspace, void* stream_) {
  using C = Compute<S>;
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
  const int64_t nodes = p.graph.copies * p.graph.num_nodes, rows = nodes * p.steps;
  if (!supported(nodes, p.steps, p.hidden)) return cudaErrorInvalidValue;
  if (rows == 0) return cudaSuccess;
  const ForwardMemory<C> memory(workspace, p);
  HIERMT_CUDA_RETURN_IF_ERROR(project(p, memory.projected, rows, stream));
  HIERMT_CUDA_RETURN_IF_ERROR(find_scales(p, memory.scales, rows, stream));
  return dispatch_hidden<S>(p.hidden, [&](auto hidden) {
    constexpr int kHidden = decltype(hidden)::value;
    const int64_t groups = groups_per_block<kHidden>(p.hidden, GcnTraits::kThreads);
    return dispatch_masked(p.present, [&](auto masked) {
      return launch(gcn_conv_fwd_kernel<S, kHidden, decltype(masked)::value>,
                    dim3(static_cast<unsigned>(ceil_div(rows, groups))), dim3(GcnTraits::kThreads), 0, stream,
                    p, memory.scales, memory.projected, static_cast<int>(rows));
    });
  });
}

template <class S>
size_t gcn_conv_backward_workspace(const GcnConvBackward<S, Compute<S>>& p) {
  const CsrGraph& graph = p.forward.graph;
  return BackwardMemory<Compute<S>>(nullptr, p, graph.copies * graph.num_nodes * p.forward.steps)
      .memory.bytes();
}

template <class S>
int gcn_conv_backward(const GcnConvBackward<S, Compute<S>>& p, Accumulate accumulate, void* workspace,
                      void* stream_) {
  using C = Compute<S>;
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_);
  const GcnConvForward<S>& f = p.forward;
  const int64_t nodes = f.graph.copies * f.graph.num_nodes, rows = nodes * f.steps;
  const int channels = static_cast<int>(f.x.channels);
  if (!supported(nodes, f.steps, f.hidden)) return cudaErrorInvalidValue;
  const BackwardMemory<C> memory(workspace, p, rows);

  const RowChunks chunks(rows, GcnTraits::kMaxBiasBlocks, 1);
  HIERMT_CUDA_RETURN_IF_ERROR(find_scales(f, memory.scales, rows, stream));
  HIERMT_CUDA_RETURN_IF_ERROR(dispatch_masked(f.present, [&](auto masked) {
    return launch(gcn_conv_bwd_activation_kernel<S, decltype(masked)::value>,
                  dim3(static_cast<unsigned>(chunks.count)), dim3(GcnTraits::kThreads),
                  padded_bytes<C>(GcnTraits::kThreads), stream, f, p.d_out, memory.d_y, rows, chunks.rows,
                  memory.partial);
  }));
  if (p.grads.bias != nullptr) {
    HIERMT_CUDA_RETURN_IF_ERROR(
        ordered_sum(stream, sum_of<C>(memory.partial, chunks.count, f.hidden, BiasGrad<C>{p.grads.bias})));
  }
  if (p.d_norm != nullptr) {
    if (!accumulate.edge_weight) {
      HIERMT_CUDA_RETURN_IF_ERROR(clear_padding(f.graph, rows == 0, p.d_norm, stream));
    }
    if (rows > 0) {
      HIERMT_CUDA_RETURN_IF_ERROR(project(f, memory.projected, rows, stream));
      HIERMT_CUDA_RETURN_IF_ERROR(
          f.present != nullptr
              ? weight_gradient(f, memory.scales, memory.d_degree, memory.d_y, memory.projected, p.d_norm,
                                accumulate.edge_weight, rows, stream)
              : launch(gcn_conv_bwd_norm_kernel<S>, dim3(static_cast<unsigned>(f.graph.num_nodes)),
                       dim3(GcnTraits::kThreads), padded_bytes<C>(GcnTraits::kThreads), stream, f, memory.d_y,
                       memory.projected, p.d_norm, accumulate.edge_weight));
    }
  }
  if (p.d_x == nullptr && p.grads.lin_weight == nullptr) return cudaSuccess;
  HIERMT_CUDA_RETURN_IF_ERROR(dispatch_hidden<S>(f.hidden, [&](auto hidden) {
    constexpr int kHidden = decltype(hidden)::value;
    const int64_t groups = groups_per_block<kHidden>(f.hidden, GcnTraits::kThreads);
    return dispatch_masked(f.present, [&](auto masked) {
      return launch(gcn_conv_bwd_source_kernel<S, kHidden, decltype(masked)::value>,
                    dim3(static_cast<unsigned>(ceil_div(rows, groups))), dim3(GcnTraits::kThreads), 0, stream,
                    f, memory.scales, memory.d_y, memory.projected, static_cast<int>(rows));
    });
  }));
  const auto rounded = rounds_operands<S>(f.tf32);
  const DenseRows<C, 1> d_projected{memory.projected, static_cast<int>(f.hidden), f.hidden, 0};
  if (p.grads.lin_weight != nullptr) {
    HIERMT_CUDA_RETURN_IF_ERROR(weight_grad(d_projected, SequenceRows<S>::of(f), rows, memory.partial,
                                            LinGrad<C>{p.grads.lin_weight, channels}, stream, rounded));
  }
  if (p.d_x == nullptr) return cudaSuccess;
  return linear<C, 1>(d_projected, PlainWeight<S>{f.weights.lin_weight, channels, 1},
                      DenseOut<S>{p.d_x, channels, channels, 0, accumulate.d_x}, rows, channels, stream,
                      rounded);
}

#define HIERMT_INSTANTIATE(S)                                                            \
  template size_t gcn_conv_forward_workspace<S>(const GcnConvForward<S>&);               \
  template int gcn_conv_forward<S>(const GcnConvForward<S>&, void*, void*);              \
  template size_t gcn_conv_backward_workspace<S>(const GcnConvBackward<S, Compute<S>>&); \
  template int gcn_conv_backward<S>(const GcnConvBackward<S, Compute<S>>&, Accumulate, void*, void*);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
