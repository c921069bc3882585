// How the threads of a block share the product of two tiles in shared memory, sum(m, n) = sum_k left[k, m]
// right[k, n]: by FMA a thread owns a square of four by four, on tensor cores a warp owns 16 rows and 32
// columns.
//
// kLeft, kRight: distance of two k in the tiles.
#pragma once

#include "cuda/dense/mma.cuh"

namespace hiermt::cuda {

constexpr int kThreadTile = 4;
// Sixteen rows and 32 columns of a warp.
constexpr int kWarpRows = 16;
constexpr int kWarpColumns = 32;

template <class C, int kLeft, int kRight>
struct FmaTile {
  static constexpr int kInner = 1;  // k of one step
  int row, column;
  C sum[kThreadTile][kThreadTile] = {};

  // `member` counts the threads of a tile `columns` wide, row by row.
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
  // f(m, n, sum), column by column.
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
  static constexpr int kInner = 8;
  int row, group, member;
  float sum[kWarpColumns / 8][4] = {};

  // `thread` counts the threads of a tile 32 columns wide, warps from row to row.
  __device__ TensorTile(int thread, int /*columns*/)
      : row(thread / kWarp * kWarpRows), group(thread % kWarp / 4), member(thread % 4) {}

  __device__ static float operand(float value) { return round_to_tf32(value); }
  __device__ __forceinline__ void step(const float* left, const float* right) {
    const float* near = left + member * kLeft + row + group;
    const float* far = near + 4 * kLeft;
    const float a[4] = {near[0], near[8], far[0], far[8]};
#pragma unroll
    for (int tile = 0; tile < kWarpColumns / 8; ++tile) {
      const float* at = right + member * kRight + 8 * tile + group;
      const float b[2] = {at[0], at[4 * kRight]};
      mma_tf32(sum[tile], a, b);
    }
  }
  template <class F>
  __device__ __forceinline__ void for_each(F&& f) const {
#pragma unroll
    for (int tile = 0; tile < kWarpColumns / 8; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) f(row + group + i / 2 * 8, 8 * tile + 2 * member + i % 2, sum[tile][i]);
    }
  }
};

template <class C, bool kTensor, int kLeft, int kRight>
using TileProduct = std::conditional_t<kTensor, TensorTile<kLeft, kRight>, FmaTile<C, kLeft, kRight>>;

// Whether products of tensors stored as S go to tensor cores: 16-bit numbers lose nothing in TF32, float32
// does and must allow it.
template <class S>
constexpr bool use_tensor_cores(bool tf32) {
  return sizeof(S) == 2 || (std::is_same_v<S, float> && tf32);
}

}  // namespace hiermt::cuda
