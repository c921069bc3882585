// Sums of partial results in a fixed order, several in one launch.
#pragma once

#include "cuda/support/launch.cuh"

namespace hiermt::cuda {

struct OrderedSumTraits {
  static constexpr int kColumns = 32;  // neighbouring sums of a block: one warp reads a row of them
  static constexpr int kSlices = 16;   // threads that share a sum
  static constexpr int kThreads = kColumns * kSlices;
};

// out.write(i, sum over the chunks of partial[chunk, i]) for i in [0, count).
template <class C, class Out>
struct OrderedSum {
  const C* partial;
  int64_t chunks;
  int count;
  Out out;

  __host__ __device__ int blocks() const { return ceil_div(count, OrderedSumTraits::kColumns); }
};

// The sum over no chunks is zero, the gradient of an empty batch.
template <class C, class Out>
OrderedSum<C, Out> sum_of(const C* partial, int64_t chunks, int64_t count, const Out& out) {
  return {partial, chunks, static_cast<int>(count), out};
}

template <class C, class Out>
__device__ __forceinline__ void add_chunks(const OrderedSum<C, Out>& sum, int block, C* slices) {
  using T = OrderedSumTraits;
  const int column = static_cast<int>(threadIdx.x) % T::kColumns;
  const int slice = static_cast<int>(threadIdx.x) / T::kColumns;
  const int i = block * T::kColumns + column;
  C mine = C(0);
  if (i < sum.count) {
#pragma unroll 4
    for (int64_t chunk = slice; chunk < sum.chunks; chunk += T::kSlices) {
      mine += sum.partial[chunk * sum.count + i];
    }
  }
  slices[threadIdx.x] = mine;
  __syncthreads();
  if (slice != 0 || i >= sum.count) return;
  C total = C(0);
#pragma unroll
  for (int s = 0; s < T::kSlices; ++s) total += slices[s * T::kColumns + column];
  sum.out.write(i, total);
}

// The blocks of the first sum come first.
template <class C, class... Out>
__global__ void __launch_bounds__(OrderedSumTraits::kThreads) ordered_sum_kernel(OrderedSum<C, Out>... sums) {
  SharedMemory memory;
  C* slices = memory.take<C>(OrderedSumTraits::kThreads);
  int block = static_cast<int>(blockIdx.x);
  const auto add = [&](const auto& sum) {
    if (block >= 0 && block < sum.blocks()) add_chunks(sum, block, slices);
    block -= sum.blocks();
  };
  (add(sums), ...);
}

template <class C, class... Out>
void ordered_sum(Stream& on, const OrderedSum<C, Out>&... sums) {
  const int blocks = (0 + ... + sums.blocks());
  launch(ordered_sum_kernel<C, Out...>, blocks, OrderedSumTraits::kThreads,
         padded_bytes<C>(OrderedSumTraits::kThreads), on, sums...);
}

}  // namespace hiermt::cuda
