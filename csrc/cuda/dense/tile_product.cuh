// Product of two tiles in shared memory, sum(m, n) = sum_k left[k, m] right[k, n]. With FMA a thread computes
// 4 x 4 sums; on tensor cores a warp computes 16 x 32.
//
// kLeft and kRight are the strides of k in the tiles.
#pragma once

#include <type_traits>

#include "cuda/dense/mma.cuh"

namespace hiermt::cuda {

struct TileTraits {
  static constexpr int kThreadTile = 4;    // rows and columns of a thread: 8 loads for 16 FMA
  static constexpr int kWarpRows = 16;     // m of mma.m16n8k8
  static constexpr int kWarpColumns = 32;  // four n of it, which share an operand
  static constexpr int kMmaColumns = 8, kMmaInner = 8;
  static_assert(kThreadTile * kThreadTile * kWarp == kWarpRows * kWarpColumns,
                "both products need the same number of threads for a tile");
};

template <class C, int kLeft, int kRight>
struct FmaTile {
  static constexpr int kInner = 1;  // values of k per step
  static constexpr int kThreadTile = TileTraits::kThreadTile;
  int row, column;
  C sum[kThreadTile][kThreadTile] = {};

  // `member` is the index of a thread among those of a tile with `columns` columns, in row-major order.
  __device__ FmaTile(int member, int columns)
      : row(member / (columns / kThreadTile) * kThreadTile),
        column(member % (columns / kThreadTile) * kThreadTile) {}

  __device__ static C operand(C value) { return value; }
  __device__ __forceinline__ void step(const C* left, const C* right) {
    C a[kThreadTile], b[kThreadTile];
#pragma unroll
    for (int i = 0; i < kThreadTile; ++i) a[i] = left[row + i], b[i] = right[column + i];
#pragma unroll
    for (int i = 0; i < kThreadTile; ++i) {
#pragma unroll
      for (int j = 0; j < kThreadTile; ++j) sum[i][j] += a[i] * b[j];
    }
  }
  // Calls f(m, n, sum) in column-major order.
  template <class F>
  __device__ __forceinline__ void for_each(F&& f) const {
#pragma unroll
    for (int j = 0; j < kThreadTile; ++j) {
#pragma unroll
      for (int i = 0; i < kThreadTile; ++i) f(row + i, column + j, sum[i][j]);
    }
  }
};

template <int kLeft, int kRight>
struct TensorTile {
  static constexpr int kInner = TileTraits::kMmaInner;
  static constexpr int kTiles = TileTraits::kWarpColumns / TileTraits::kMmaColumns;
  int row, group, member;
  float sum[kTiles][4] = {};

  // Warp w of a tile with 32 columns computes the rows from w * 16.
  __device__ TensorTile(int thread, int /*columns*/)
      : row(thread / kWarp * TileTraits::kWarpRows), group(thread % kWarp / 4), member(thread % 4) {}

  __device__ static float operand(float value) { return round_to_tf32(value); }
  __device__ __forceinline__ void step(const float* left, const float* right) {
    const float* near = left + member * kLeft + row + group;
    const float* far = near + 4 * kLeft;
    const float a[4] = {near[0], near[8], far[0], far[8]};
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const float* at = right + member * kRight + 8 * tile + group;
      const float b[2] = {at[0], at[4 * kRight]};
      mma_tf32(sum[tile], a, b);
    }
  }
  template <class F>
  __device__ __forceinline__ void for_each(F&& f) const {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) f(row + group + i / 2 * 8, 8 * tile + 2 * member + i % 2, sum[tile][i]);
    }
  }
};

template <class C, bool kTensor, int kLeft, int kRight>
using TileProduct = std::conditional_t<kTensor, TensorTile<kLeft, kRight>, FmaTile<C, kLeft, kRight>>;

// Whether products of tensors of type S run on tensor cores: always for 16-bit types, which TF32 represents
// exactly; for float32 if `tf32` allows the rounding; never for float64. A constant where the type decides,
// so that no other kernel is compiled.
template <class S>
constexpr auto use_tensor_cores(bool tf32) {
  if constexpr (std::is_same_v<S, float>) {
    return tf32;
  } else {
    (void)tf32;
    return std::bool_constant<sizeof(S) == 2>{};
  }
}

// Calls f with the result of use_tensor_cores as a constant.
template <class Tensor, class F>
cudaError_t dispatch_tensor_cores(Tensor tensor, F&& f) {
  if constexpr (std::is_same_v<Tensor, bool>) {
    return tensor ? f(std::true_type{}) : f(std::false_type{});
  } else {
    return f(tensor);
  }
}

}  // namespace hiermt::cuda
