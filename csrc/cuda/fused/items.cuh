// The items of a thread block and their channels in shared memory. An item is one node at one step. A thread
// owns an item with all its channels, so a score needs no exchange between lanes. Neighbouring lanes own
// neighbouring steps of a node: they walk the same entries, and their loads of a neighbour's channels are
// contiguous.
//
// If the channels of an item do not fit the registers of a thread, or there are more threads than items, kLanes
// neighbouring lanes share it. Quads of channels are interleaved: local quad q of lane l is quad q * kLanes + l of the
// item.
#pragma once

#include "cuda/support/device.cuh"

namespace hiermt::cuda {

// Index of this thread among the lanes of its item.
template <int kLanes>
__device__ __forceinline__ int lane_of_item() {
  return kLanes == 1 ? 0 : static_cast<int>(threadIdx.x) % kLanes;
}

// The lanes of this thread's item, as a mask.
template <int kLanes>
__device__ __forceinline__ unsigned item_mask() {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  return kLanes == 1 ? 1u << lane : ((1u << kLanes) - 1) << (lane / kLanes * kLanes);
}

// Sum over the lanes of an item. All lanes of `mask` call it and get the sum.
template <int kLanes>
__device__ __forceinline__ float item_sum(float value, unsigned mask) {
#pragma unroll
  for (int bit = 1; bit < kLanes; bit *= 2) value += __shfl_xor_sync(mask, value, bit);
  return value;
}

// Reads this lane's channels of a row.
template <int kHidden, int kLanes = 1>
__device__ __forceinline__ void copy_channels(const float* from, float (&to)[kHidden / kLanes]) {
  from += 4 * lane_of_item<kLanes>();
#pragma unroll
  for (int c = 0; c < kHidden / kLanes; c += 4) load_quad(from + c * kLanes, to + c);
}

template <int kHidden, int kLanes>
__device__ __forceinline__ void write_channels(const float (&from)[kHidden / kLanes], float* to) {
  to += 4 * lane_of_item<kLanes>();
#pragma unroll
  for (int c = 0; c < kHidden / kLanes; c += 4) store_quad(to + c * kLanes, from + c);
}

// Channels of the items in shared memory: [node][quad of channels][step][4], so that the lanes of neighbouring steps
// read side by side. If an item has a lane for each quad, [node][step][copy][quad][4]: each of the items that a quarter of
// a warp reads at once has a copy in banks of its own.
template <int kHidden, int kLanes = 1>
struct Tile {
  static constexpr int kQuads = kHidden / 4, kOwn = kQuads / kLanes;
  static constexpr bool kCopied = kOwn == 1;
  static constexpr int kCopies = kCopied ? 8 / kQuads : 1;
  float* data;
  int chunk, pad;

  __device__ __forceinline__ Tile(float* data_, int chunk_)
      : data(data_), chunk(chunk_), pad(padding(chunk_)) {}
  // Quads between the nodes. A quarter of a warp reads items of several nodes at once, unless it has eight lanes
  // or eight steps of the same one; the padding puts them into different banks.
  __host__ __device__ static constexpr int padding(int64_t steps) {
    if (kCopied || kLanes >= 8) return 0;
    return kLanes > 1 ? kLanes : steps < 8 ? 1 : 0;
  }
  __host__ __device__ static constexpr int64_t values(int64_t nodes, int64_t chunk) {
    return nodes * (kQuads * kCopies * chunk + padding(chunk)) * 4;
  }
  __device__ __forceinline__ int stride() const { return kCopied ? 1 : chunk; }
  // The first quad of an item, in the copy of this lane; quad q is at + q * stride().
  __device__ __forceinline__ float4* at(int node, int step) const {
    const auto quads = reinterpret_cast<float4*>(data);
    if constexpr (kCopied) {
      const int copy = static_cast<int>(threadIdx.x) / kQuads % kCopies;
      return quads + ((node * chunk + step) * kCopies + copy) * kQuads;
    } else {
      return quads + node * (kQuads * chunk + pad) + step;
    }
  }
  __device__ __forceinline__ const float* quad(int node, int step, int q) const {
    return reinterpret_cast<const float*>(at(node, step) + q * stride());
  }
  __device__ __forceinline__ void put(int node, int step, int q, const float (&values)[4]) const {
    put(at(node, step), q, values);
  }
  // read, write and clear access the channels of this lane.
  __device__ __forceinline__ void read(int node, int step, float (&values)[kHidden / kLanes]) const {
    const float4* from = at(node, step) + lane_of_item<kLanes>() * stride();
#pragma unroll
    for (int q = 0; q < kOwn; ++q) load_quad(from + q * kLanes * stride(), values + 4 * q);
  }
  __device__ __forceinline__ void write(int node, int step, const float (&values)[kHidden / kLanes]) const {
    float4* const to = at(node, step);
#pragma unroll
    for (int q = 0; q < kOwn; ++q) {
      put(to, q * kLanes + lane_of_item<kLanes>(),
          {values[4 * q], values[4 * q + 1], values[4 * q + 2], values[4 * q + 3]});
    }
  }
  __device__ __forceinline__ void clear(int node, int step) const {
    const float zeros[kHidden / kLanes] = {};
    write(node, step, zeros);
  }

 private:
  // Into all copies, that of this lane first: the others of its quarter write to other banks.
  __device__ __forceinline__ void put(float4* item, int q, const float (&values)[4]) const {
    item += q * stride();
    *item = float4{values[0], values[1], values[2], values[3]};
    if constexpr (kCopies > 1) {
      const int copy = static_cast<int>(threadIdx.x) / kQuads % kCopies;
#pragma unroll
      for (int i = 1; i < kCopies; ++i) {
        item[((copy ^ i) - copy) * kQuads] = float4{values[0], values[1], values[2], values[3]};
      }
    }
  }
};

// a / b for 0 <= a < 2^21: the quotient plus 1/2b is further from an integer than its rounding.
__device__ __forceinline__ int quotient(int a, int b) {
  return static_cast<int>((static_cast<float>(a) + 0.5f) * approximate_reciprocal(static_cast<float>(b)));
}

// The items of a block and their owners, which are the same in every loop. They fit shared memory: less than 2^13. By
// decreasing degree the nodes of a warp have similar numbers of entries.
struct StackItems {
  int nodes, chunk;
  const int* order;  // in global memory, or nullptr

  // Calls f(node, step) for the items of this thread. The order alternates between rounds, so that a thread
  // with a node of high degree gets one of low degree next.
  template <class F>
  __device__ __forceinline__ void for_each(F&& f) const {
    const int width = static_cast<int>(blockDim.x);
    for (int round = 0; round * width < nodes * chunk; ++round) {
      const int item = item_of(round);
      if (item < 0) continue;
      const int rank = quotient(item, chunk);
      f(node_of(rank), item - rank * chunk);
    }
  }

  // Calls f(node, step, mask) for the items of this thread's group of kLanes. All lanes of `mask` are in the
  // same call and may exchange values.
  template <int kLanes, class F>
  __device__ __forceinline__ void for_each_with_mask(F&& f) const {
    if constexpr (kLanes == 1) {
      for_each([&](int node, int step) { f(node, step, kFullMask); });
    } else {
      const int items = nodes * chunk;
      const int width = static_cast<int>(blockDim.x) / kLanes, group = static_cast<int>(threadIdx.x) / kLanes;
      for (int round = 0; round * width < items; ++round) {
        const int first = round * width, count = items - first < width ? items - first : width;
        const unsigned mask = __ballot_sync(kFullMask, group < count);
        if (group < count) {
          const int item = first + (round % 2 == 1 ? count - 1 - group : group);
          const int rank = quotient(item, chunk);
          f(node_of(rank), item - rank * chunk, mask);
        }
      }
    }
  }

 private:
  __device__ __forceinline__ int node_of(int rank) const { return order != nullptr ? order[rank] : rank; }
  // The item of this thread in a round, or -1.
  __device__ __forceinline__ int item_of(int round) const {
    const int width = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
    const int first = round * width, items = nodes * chunk;
    const int count = items - first < width ? items - first : width;
    if (thread >= count) return -1;
    return first + (round % 2 == 1 ? count - 1 - thread : thread);
  }
};

// Largest number of entries among the items of `mask`, whose lanes walk together if they share items.
template <int kLanes>
__device__ __forceinline__ int most_entries(int entries, unsigned mask) {
  return kLanes == 1 ? entries : __reduce_max_sync(mask, entries);
}

}  // namespace hiermt::cuda
