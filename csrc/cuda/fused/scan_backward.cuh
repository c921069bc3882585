// Building blocks of the whole backward of a gated scan (scan_backward.cu): the weights of the gates as operands of tensor
// cores, and what the warps of a block hand to each other.
#pragma once

#include "cuda/dense/weight_grad.cuh"
#include "cuda/scan/gated_scan.cuh"

namespace hiermt::cuda {

struct ScanBackwardTraits {
  // Of a block: pairs of warps, which share the weights; a pair owns 16 nodes.
  static constexpr int kPairs = 2, kThreads = 2 * kPairs * kWarp;
  static constexpr int kNodes = 16, kChannels = kBlockColumns;
  static constexpr int64_t kMaxBlocks = 264;  // each has a partial sum of the gradients
  // Of the rows that a warp exchanges. Lanes that read pairs of four nodes meet different banks.
  static constexpr int kStride = kChannels + 8;
};

// What the gates read, and what the warps exchange: a row of 16 channels of each node.
enum Piece : int { kX, kG, kState, kResetState, kOfGates, kPieces = kOfGates + 3 };

// The widths of [x, g, h].
struct GateWidths {
  int x, hidden;

  __device__ int width(int piece) const { return piece == kX ? x : hidden; }
};

// Values of the nodes of a lane.
using Quads = float[2][4];

// The same as operands of a product.
template <Products kHow>
struct NodeOperands {
  Operand<float, kHow, 4> step[2];

  __device__ __forceinline__ explicit NodeOperands(const Quads& values) {
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      step[s] = Operand<float, kHow, 4>(
          {values[0][2 * s], values[1][2 * s], values[0][2 * s + 1], values[1][2 * s + 1]});
    }
  }
};

// A matrix of weights between a piece of the input and a gate, forward or transposed.
struct GateMatrix {
  static constexpr int kCount = 2 * 3 * 3;
  int index;

  static __device__ __forceinline__ GateMatrix to_gate(int gate, int piece) { return {gate * 3 + piece}; }
  static __device__ __forceinline__ GateMatrix from_gate(int gate, int piece) {
    return {9 + gate * 3 + piece};
  }
  __device__ bool transposed() const { return index >= 9; }
  __device__ int gate() const { return index / 3 % 3; }
  __device__ int piece() const { return index % 3; }
};

// Rows of a pair's nodes in shared memory: written by channels of a node, read so, too, or by nodes of two channels.
struct ExchangedRows {
  using T = ScanBackwardTraits;
  float* data;

  static constexpr int kValues = kPieces * T::kNodes * T::kStride;

  __device__ __forceinline__ void put(int piece, const Quads& values, const bool (&there)[2]) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float kept[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) kept[k] = there[i] ? values[i][k] : 0.0f;
      store_quad(at(piece, lane / 4 + 8 * i) + lane % 4 * 4, kept);
    }
  }
  __device__ __forceinline__ void take(int piece, Quads& values) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int i = 0; i < 2; ++i) load_quad(at(piece, lane / 4 + 8 * i) + lane % 4 * 4, values[i]);
  }
  // A channel of a node of this lane.
  __device__ __forceinline__ float value(int piece, int i, int channel) const {
    return at(piece, static_cast<int>(threadIdx.x) % kWarp / 4 + 8 * i)[channel];
  }
  __device__ __forceinline__ void get(int piece, int node, float (&pair)[2]) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const Pack<float, 2> read = *reinterpret_cast<const Pack<float, 2>*>(at(piece, node) + lane / 4 * 2);
    pair[0] = read.values[0], pair[1] = read.values[1];
  }

 private:
  __device__ __forceinline__ float* at(int piece, int node) const {
    return data + (piece * T::kNodes + node) * T::kStride;
  }
};

// A piece that a matrix multiplies.
template <Products kHow>
struct Term {
  int piece;
  const NodeOperands<kHow>& operands;
  GateMatrix matrix;
};

// All weights of the gates as operands in shared memory, and the biases.
template <class S, Products kHow>
struct ScanWeights {
  using Stored = StoredOperand<float, kHow>;
  using Sums = LinearSums<float, kHow, 1, 1>;
  static constexpr int kSteps = LinearTraits::kSteps, kParts = LinearTraits::kParts;
  static constexpr int kOperands = GateMatrix::kCount * kSteps * kParts;
  GateWeights<S> weights;
  GateWidths widths;
  Stored* operands;
  float* biases;  // [3, 16]

  __device__ ScanWeights(const GateWeights<S>& weights_, GateWidths widths_, SharedMemory& memory)
      : weights(weights_),
        widths(widths_),
        operands(memory.take<Stored>(kOperands * kWarp)),
        biases(memory.take<float>(3 * ScanBackwardTraits::kChannels)) {
    constexpr int kChannels = ScanBackwardTraits::kChannels;
    const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
    for (int i = thread / kWarp; i < kOperands; i += 2 * ScanBackwardTraits::kPairs) {
      float pair[2];
      pair_of(lane, {i / (kSteps * kParts)}, i / kParts % kSteps, i % kParts, pair);
      operands[i * kWarp + lane].store(pair);
    }
    for (int i = thread; i < 3 * kChannels; i += ScanBackwardTraits::kThreads) {
      const int c = i % kChannels;
      biases[i] = c < widths.hidden ? load(gate_bias(weights, i / kChannels) + c) : 0.0f;
    }
    __syncthreads();
  }
  static size_t bytes() {
    return padded_bytes<Stored>(kOperands * kWarp) + padded_bytes<float>(3 * ScanBackwardTraits::kChannels);
  }
  // The weight by which channel k adds to channel c, or nullptr outside the matrix.
  __device__ const S* at(GateMatrix matrix, int k, int c) const {
    const int channel = matrix.transposed() ? k : c, input = matrix.transposed() ? c : k;
    if (channel >= widths.hidden || input >= widths.width(matrix.piece())) return nullptr;
    const int source = matrix.piece() == kX ? 0 : widths.x + (matrix.piece() == kG ? 0 : widths.hidden);
    return gate_weight(weights, matrix.gate()) + channel * (widths.x + 2 * widths.hidden) + source + input;
  }
  // What a lane holds of an operand; zeros outside the matrix.
  __device__ void pair_of(int lane, GateMatrix matrix, int step, int part, float (&pair)[2]) const {
    const int n = lane / 4, k = lane % 4 * 4 + 2 * step, c = n / 2 * 4 + n % 2 + 2 * part;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const S* const weight = at(matrix, k + i, c);
      pair[i] = weight != nullptr ? load(weight) : 0.0f;
    }
  }
  __device__ __forceinline__ void bias(int gate, Quads& values) const {
    const int at = gate * ScanBackwardTraits::kChannels + static_cast<int>(threadIdx.x) % 4 * 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) load_quad(biases + at, values[i]);
  }

  // The sum of the terms and of what start(values) begins with.
  template <class Start, class... Terms>
  __device__ __forceinline__ Sums product(const ExchangedRows& rows, Start&& start,
                                          const Terms&... terms) const {
    Sums sums;
    Quads first = {};
    start(first);
#pragma unroll
    for (int i = 0; i < 2; ++i) sums.set(i, first[i]);
    (add(sums, terms), ...);
    if constexpr (kHow == Products::kSplit) {
      // Inf - Inf in the rest of an operand may have made a NaN. It is computed again without tensor cores; other sums
      // keep their bits.
      if (__ballot_sync(kFullMask, !sums.finite()) != 0) repair(sums, rows, start, terms...);
    }
    return sums;
  }

 private:
  __device__ __forceinline__ void add(Sums& sums, const Term<kHow>& term) const {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      Operand<float, kHow, 2> b[kSteps];
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        b[step] = operands[((term.matrix.index * kSteps + step) * kParts + part) * kWarp + lane].load();
      }
      multiply(sums.sum[0][0][part], term.operands.step, b);
    }
  }
  template <class Start, class... Terms>
  __device__ __forceinline__ void repair(Sums& sums, const ExchangedRows& rows, Start&& start,
                                         const Terms&... terms) const {
    __syncwarp();
#pragma unroll 1
    for (int value = 0; value < 8; ++value) {
      float exact = 0.0f;
      Quads first = {};
      start(first);
#pragma unroll
      for (int i = 0; i < 8; ++i) exact = i == value ? first[i / 4][i % 4] : exact;
      (add_exactly(exact, value / 4, value % 4, rows, terms), ...);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float values[4];
        sums.get(i, values);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          values[k] = 4 * i + k == value && !(values[k] == values[k]) ? exact : values[k];
        }
        sums.set(i, values);
      }
    }
  }
  __device__ __forceinline__ void add_exactly(float& sum, int i, int k, const ExchangedRows& rows,
                                              const Term<kHow>& term) const {
#pragma unroll 1
    for (int channel = 0; channel < ScanBackwardTraits::kChannels; ++channel) {
      const S* const weight = at(term.matrix, channel, static_cast<int>(threadIdx.x) % 4 * 4 + k);
      if (weight != nullptr) sum += rows.value(term.piece, i, channel) * load(weight);
    }
  }
};

}  // namespace hiermt::cuda
