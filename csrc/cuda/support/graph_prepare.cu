// Stable sort of the edges by target (CSR) and by source (its transpose), in four steps: count the entries of
// each row, prefix sum, scatter the entries of a row in any order, rank each entry among those of its row.
// Integer atomics decide only the order of the scatter, so the result is deterministic. A row of d entries
// costs d^2 comparisons over d threads.
#include "cuda/operators.h"
#include "cuda/support/launch.cuh"

namespace hiermt::cuda {
namespace {

struct PrepareTraits {
  static constexpr int kThreads = 256;
  // One block computes the prefix sum, so it has as many threads as a block can.
  static constexpr int kPrefixThreads = 1024;
  static_assert((kPrefixThreads & (kPrefixThreads - 1)) == 0, "the prefix sum doubles its distance");
};

struct Scratch {
  int32_t* count;      // [V] entries of a row
  int32_t* next;       // [V] entries scattered to a row so far
  int32_t* loop_edge;  // [V] last self loop of a node in the input, or -1
  int32_t* scattered;  // [E] edges (or entries) of a row in any order
  int32_t* row_of;     // [E] row of an entry

  Scratch(int64_t nodes, int64_t entries, Stream& on)
      : count(on.take<int32_t>(nodes)),
        next(on.take<int32_t>(nodes)),
        loop_edge(on.take<int32_t>(nodes)),
        scattered(on.take<int32_t>(entries)),
        row_of(on.take<int32_t>(entries)) {}
};

__device__ __forceinline__ int64_t global_thread() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

template <class I>
__device__ __forceinline__ bool inside(const GraphPrepare<I>& p, int64_t edge) {
  const int64_t source = p.source[edge], target = p.target[edge];
  return source >= 0 && source < p.num_nodes && target >= 0 && target < p.num_nodes;
}
template <class I>
__device__ __forceinline__ bool is_edge(const GraphPrepare<I>& p, int64_t edge) {
  return inside(p, edge) && p.source[edge] != p.target[edge];
}

// `start` is 1 for rows, whose self loop is counted in advance, and 0 for columns.
__global__ void clear_kernel(Scratch s, int64_t nodes, int start) {
  const int64_t i = global_thread();
  if (i >= nodes) return;
  s.count[i] = start;
  s.next[i] = 0;
  s.loop_edge[i] = -1;
}

template <class I>
__global__ void count_rows_kernel(GraphPrepare<I> p, Scratch s) {
  const int64_t edge = global_thread();
  if (edge >= p.num_edges || !inside(p, edge)) return;
  const I target = p.target[edge];
  if (p.source[edge] != target) {
    atomicAdd(s.count + target, 1);
  } else if (p.rule == LoopRule::kGcn) {
    atomicMax(s.loop_edge + target, static_cast<int32_t>(edge));
  }
}

// Exclusive prefix sum by one block. Each thread sums a contiguous range of rows.
__global__ void __launch_bounds__(PrepareTraits::kPrefixThreads)
    prefix_sum_kernel(const int32_t* count, int64_t nodes, int32_t* rowptr) {
  SharedMemory memory;
  int32_t* sums = memory.take<int32_t>(PrepareTraits::kPrefixThreads);
  const int64_t piece = ceil_div<int64_t>(nodes, PrepareTraits::kPrefixThreads);
  const int64_t begin = piece * threadIdx.x < nodes ? piece * threadIdx.x : nodes;
  const int64_t end = begin + piece < nodes ? begin + piece : nodes;
  int32_t sum = 0;
  for (int64_t i = begin; i < end; ++i) sum += count[i];
  sums[threadIdx.x] = sum;
  for (unsigned distance = 1; distance < PrepareTraits::kPrefixThreads; distance *= 2) {
    __syncthreads();
    const int32_t before = threadIdx.x >= distance ? sums[threadIdx.x - distance] : 0;
    __syncthreads();
    sums[threadIdx.x] += before;
  }
  __syncthreads();
  int32_t running = threadIdx.x == 0 ? 0 : sums[threadIdx.x - 1];
  for (int64_t i = begin; i < end; ++i) {
    rowptr[i] = running;
    running += count[i];
  }
  if (threadIdx.x == PrepareTraits::kPrefixThreads - 1)
    rowptr[nodes] = sums[PrepareTraits::kPrefixThreads - 1];
}

// Position of `id` in the sorted order of scattered[begin .. end).
__device__ int32_t rank_of(const int32_t* scattered, int32_t begin, int32_t end, int32_t id) {
  int32_t rank = 0;
  for (int32_t i = begin; i < end; ++i) rank += scattered[i] < id ? 1 : 0;
  return begin + rank;
}

template <class I>
__global__ void fill_rows_kernel(GraphPrepare<I> p, Scratch s) {
  const int64_t edge = global_thread();
  if (edge >= p.num_edges || !is_edge(p, edge)) return;
  const I target = p.target[edge];
  s.scattered[p.rowptr[target] + atomicAdd(s.next + target, 1)] = static_cast<int32_t>(edge);
}

// Threads [0, E0) place edges, threads [E0, E) the self loops, which are last in their rows.
template <class I>
__global__ void place_rows_kernel(GraphPrepare<I> p, Scratch s) {
  const int64_t i = global_thread();
  if (i >= p.num_edges + p.num_nodes) return;
  if (i >= p.rowptr[p.num_nodes]) {
    p.col[i] = 0;
    p.e_id[i] = -1;
  }
  int32_t entry = 0, row = 0, col = 0, edge = 0;
  if (i < p.num_edges) {
    if (!is_edge(p, i)) return;
    edge = static_cast<int32_t>(i);
    row = static_cast<int32_t>(p.target[i]);
    col = static_cast<int32_t>(p.source[i]);
    entry = rank_of(s.scattered, p.rowptr[row], p.rowptr[row + 1] - 1, edge);
  } else {
    row = col = static_cast<int32_t>(i - p.num_edges);
    edge = s.loop_edge[row];
    entry = p.rowptr[row + 1] - 1;
  }
  p.col[entry] = col;
  p.e_id[entry] = edge;
  s.row_of[entry] = row;
}

template <class I>
__global__ void count_columns_kernel(GraphPrepare<I> p, Scratch s) {
  const int64_t entry = global_thread();
  if (entry < p.rowptr[p.num_nodes]) atomicAdd(s.count + p.col[entry], 1);
}

template <class I>
__global__ void fill_columns_kernel(GraphPrepare<I> p, Scratch s) {
  const int64_t entry = global_thread();
  if (entry >= p.rowptr[p.num_nodes]) return;
  const int32_t col = p.col[entry];
  s.scattered[p.colptr[col] + atomicAdd(s.next + col, 1)] = static_cast<int32_t>(entry);
}

template <class I>
__global__ void place_columns_kernel(GraphPrepare<I> p, Scratch s) {
  const int64_t entry = global_thread();
  if (entry >= p.num_edges + p.num_nodes) return;
  if (entry >= p.rowptr[p.num_nodes]) {
    p.row[entry] = 0;
    p.csr2csc[entry] = 0;
    return;
  }
  const int32_t col = p.col[entry];
  const int32_t at = rank_of(s.scattered, p.colptr[col], p.colptr[col + 1], static_cast<int32_t>(entry));
  p.csr2csc[at] = static_cast<int32_t>(entry);
  p.row[at] = s.row_of[entry];
}

}  // namespace

template <class I>
void graph_prepare(const GraphPrepare<I>& p, Stream& on) {
  const int64_t entries = p.num_edges + p.num_nodes;
  const Scratch s(p.num_nodes, entries, on);
  // A thread for each of `count` things.
  const auto for_each = [&](int64_t count, auto kernel, const auto&... arguments) {
    launch(kernel, ceil_div<int64_t>(count, PrepareTraits::kThreads), PrepareTraits::kThreads, 0, on,
           arguments...);
  };
  const auto prefix_sum = [&](int32_t* rowptr) {
    launch(prefix_sum_kernel, 1, PrepareTraits::kPrefixThreads,
           padded_bytes<int32_t>(PrepareTraits::kPrefixThreads), on, s.count, p.num_nodes, rowptr);
  };
  for_each(p.num_nodes, clear_kernel, s, p.num_nodes, 1);
  for_each(p.num_edges, count_rows_kernel<I>, p, s);
  prefix_sum(p.rowptr);
  for_each(p.num_edges, fill_rows_kernel<I>, p, s);
  for_each(entries, place_rows_kernel<I>, p, s);
  for_each(p.num_nodes, clear_kernel, s, p.num_nodes, 0);
  for_each(entries, count_columns_kernel<I>, p, s);
  prefix_sum(p.colptr);
  for_each(entries, fill_columns_kernel<I>, p, s);
  for_each(entries, place_columns_kernel<I>, p, s);
}

template void graph_prepare<int32_t>(const GraphPrepare<int32_t>&, Stream&);
template void graph_prepare<int64_t>(const GraphPrepare<int64_t>&, Stream&);

}  // namespace hiermt::cuda
