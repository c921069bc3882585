// The whole backward of a gated scan in one launch (equations in scan/gated_scan_backward.cu): the gates again, the
// recurrence, the gradients of the weights and those of x and g. Neither the gates nor their cotangents are stored.
//
// A pair of warps owns 16 nodes. One goes back through their steps and puts what it found into shared memory; the other
// is a step behind and takes it on to the gradients of x, g and the weights. All products are on tensor cores
// (dense/mma.cuh). As in a dense layer (dense/linear.cuh) lane 4 g + m has the channels 4m to 4m + 3 of the nodes g and
// g + 8. The gradients of the weights are sums over nodes and steps in registers (dense/weight_grad.cuh).
#include "cuda/fused/scan_backward.cuh"
#include "cuda/fused/scan_backward.h"

namespace hiermt::cuda {
namespace {

// The nodes of a lane, g and g + 8 of the 16 from `first` on.
struct LaneNodes {
  int node[2];
  bool inside[2];

  __device__ LaneNodes(int first, int nodes) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      // Lanes past the last node repeat it and write nothing.
      const int n = first + static_cast<int>(threadIdx.x) % kWarp / 4 + 8 * i;
      inside[i] = n < nodes;
      node[i] = inside[i] ? n : nodes - 1;
    }
  }
};

// Calls f(i, k) for the values of a lane.
template <class F>
__device__ __forceinline__ void for_each_value(F&& f) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int k = 0; k < 4; ++k) f(i, k);
  }
}

// The warps of a block wait for each other, from either of two places: PTX's bar.sync counts warps.
__device__ __forceinline__ void hand_over() {
  __syncthreads();
}

template <class S, Products kHow, bool kMasked>
struct PairOfWarps {
  using T = ScanBackwardTraits;
  using Operands = NodeOperands<kHow>;
  const GatedScanBackward<S, float>& p;
  const ScanWeights<S, kHow>& weights;
  float* rows;  // of a step and the one before
  int hidden, channel = static_cast<int>(threadIdx.x) % 4 * 4;

  // What a step reads of the nodes of a lane.
  struct Input {
    Quads x, g, state;
    bool there[2];
  };

  __device__ __forceinline__ const S* row_of(const S* data, int row) const {
    return data != nullptr ? data + static_cast<int64_t>(row) * hidden : nullptr;
  }
  __device__ __forceinline__ bool there(const LaneNodes& at, int i, int t) const {
    const GatedScanForward<S>& f = p.forward;
    return at.inside[i] && (!kMasked || f.present[at.node[i] * static_cast<int>(f.steps) + t]);
  }
  __device__ __forceinline__ Term<kHow> to_gate(int gate, int piece, const Operands& operands) const {
    return {piece, operands, GateMatrix::to_gate(gate, piece == kResetState ? kState : piece)};
  }
  __device__ __forceinline__ Term<kHow> from_gate(int gate, int piece, const Operands& operands) const {
    return {kOfGates + gate, operands, GateMatrix::from_gate(gate, piece)};
  }

  // The first warp: from the last step to the first, `turn` counts them.
  __device__ __forceinline__ void recur(const LaneNodes& at, int& turn) const {
    const GatedScanForward<S>& f = p.forward;
    const int steps = static_cast<int>(f.steps), channels = static_cast<int>(f.x.channels);
    const bool packed_x = packs<4>(f.x), packed_g = packs<4>(f.g, hidden),
               packed_d_h = packs<4>(p.d_h, hidden), packed_states = packs<4>(f.h, hidden) && packs<4>(f.h0);
    int64_t offset_x[2];
    Quads carry;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int template_nodes = static_cast<int>(f.num_nodes), copy = at.node[i] / template_nodes;
      offset_x[i] = copy * f.x.stride_copy + (at.node[i] - copy * template_nodes) * f.x.stride_node;
      load_part(row_of(p.d_h_last, at.node[i]), channel, hidden, 1, packs<4>(p.d_h_last, hidden), carry[i]);
    }
    const auto read = [&](int t, Input& in) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = at.node[i] * steps + t;
        in.there[i] = there(at, i, t);
        const S* const x = in.there[i] ? f.x.data + (offset_x[i] + t * f.x.stride_time) : nullptr;
        load_part(x, channel, channels, f.x.stride_channel, packed_x, in.x[i]);
        load_part(in.there[i] ? row_of(f.g, row) : nullptr, channel, hidden, 1, packed_g, in.g[i]);
        load_part(t > 0 ? row_of(f.h, row - 1) : row_of(f.h0, at.node[i]), channel, hidden, 1, packed_states,
                  in.state[i]);
      }
    };
    Input next;
    if (steps > 0) read(steps - 1, next);
#pragma unroll 1
    for (int t = steps - 1; t >= 0; --t, ++turn) {
      const ExchangedRows out{rows + turn % 2 * ExchangedRows::kValues};
      const Input in = next;
      Quads u, r, c, reset_state, d_h, d_u, d_r, d_c;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        load_part(row_of(p.d_h, at.node[i] * steps + t), channel, hidden, 1, packed_d_h, d_h[i]);
      }
      out.put(kX, in.x, in.there);
      out.put(kG, in.g, in.there);
      out.put(kState, in.state, in.there);
      {
        const Operands x(in.x), g(in.g), state(in.state);
        const auto gate = [&](int of, int piece, const Operands& recurrent) {
          return weights.product(
              out, [&](Quads& values) { weights.bias(of, values); }, to_gate(of, kX, x), to_gate(of, kG, g),
              to_gate(of, piece, recurrent));
        };
        const auto z_u = gate(0, kState, state), z_r = gate(1, kState, state);
        for_each_value([&](int i, int k) {
          u[i][k] = sigmoid(z_u.value(i, k));
          r[i][k] = sigmoid(z_r.value(i, k));
          reset_state[i][k] = r[i][k] * in.state[i][k];
        });
        out.put(kResetState, reset_state, in.there);
        const auto z_c = gate(2, kResetState, Operands(reset_state));
        for_each_value([&](int i, int k) { c[i][k] = tanh(z_c.value(i, k)); });
      }
      // Here the operands have freed their registers.
      if (t > 0) read(t - 1, next);
      for_each_value([&](int i, int k) {
        const float d = d_h[i][k] += carry[i][k];
        d_c[i][k] = in.there[i] ? d * (1.0f - u[i][k]) * (1.0f - c[i][k] * c[i][k]) : 0.0f;
        d_u[i][k] = in.there[i] ? d * (in.state[i][k] - c[i][k]) * u[i][k] * (1.0f - u[i][k]) : 0.0f;
      });
      out.put(kOfGates, d_u, in.there);
      out.put(kOfGates + 2, d_c, in.there);
      const auto d_s = weights.product(out, [](Quads&) {}, from_gate(2, kState, Operands(d_c)));
      for_each_value([&](int i, int k) {
        const float d = d_s.value(i, k);
        d_r[i][k] = in.there[i] ? d * in.state[i][k] * r[i][k] * (1.0f - r[i][k]) : 0.0f;
        carry[i][k] = d_h[i][k] * u[i][k] + d * r[i][k];
      });
      out.put(kOfGates + 1, d_r, in.there);
      const auto sums = weights.product(
          out, [&](Quads& values) { for_each_value([&](int i, int k) { values[i][k] = carry[i][k]; }); },
          from_gate(0, kState, Operands(d_u)), from_gate(1, kState, Operands(d_r)));
      for_each_value([&](int i, int k) { carry[i][k] = in.there[i] ? sums.value(i, k) : d_h[i][k]; });
      hand_over();
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (p.d_h0 == nullptr || !at.inside[i]) continue;
      store_part(p.d_h0 + static_cast<int64_t>(at.node[i]) * hidden, channel, hidden,
                 packs<4>(p.d_h0, hidden), carry[i]);
    }
  }

  // The second warp, of the same steps: writes the gradients of x and g, and adds to those of the weights.
  template <class Grads>
  __device__ __forceinline__ void collect(const LaneNodes& at, int& turn, Grads& grads) const {
    const int steps = static_cast<int>(p.forward.steps), channels = static_cast<int>(p.forward.x.channels);
    const bool packed_d_x = packs<4>(p.d_x, channels), packed_d_g = packs<4>(p.d_g, hidden);
#pragma unroll 1
    for (int t = steps - 1; t >= 0; --t, ++turn) {
      const ExchangedRows in{rows + turn % 2 * ExchangedRows::kValues};
      hand_over();
      if (p.d_x != nullptr || p.d_g != nullptr) {
        const auto operands_of = [&](int gate) {
          Quads values;
          in.take(kOfGates + gate, values);
          return Operands(values);
        };
        const Operands of_u = operands_of(0), of_r = operands_of(1), of_c = operands_of(2);
        // Zeros where the node is not there, for zero times a weight that is not finite is not zero.
        const auto write = [&](int piece, S* to, int width, bool packed) {
          if (to == nullptr) return;
          const auto sums = weights.product(
              in, [](Quads&) {}, from_gate(0, piece, of_u), from_gate(1, piece, of_r),
              from_gate(2, piece, of_c));
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float values[4];
#pragma unroll
            for (int k = 0; k < 4; ++k) values[k] = there(at, i, t) ? sums.value(i, k) : 0.0f;
            S* const row = to + static_cast<int64_t>(at.node[i] * steps + t) * width;
            if (at.inside[i]) store_part(row, channel, width, packed, values);
          }
        };
        write(kG, p.d_g, hidden, packed_d_g);
        write(kX, p.d_x, channels, packed_d_x);
      }
      const auto pairs_of = [&](int piece, typename Grads::Pairs& pairs) {
#pragma unroll
        for (int q = 0; q < Grads::kRows; ++q) {
          in.get(piece, static_cast<int>(threadIdx.x) % 4 + 4 * q, pairs[q]);
        }
      };
      grads.add(
          3, [&](int gate, auto& pairs) { pairs_of(kOfGates + gate, pairs); },
          [&](int piece, bool reset, auto& pairs) { pairs_of(reset ? kResetState : piece, pairs); },
          [](int piece) { return piece == kState; });
    }
  }
};

struct ScanBackwardMemory {
  using T = ScanBackwardTraits;
  static constexpr int kRows = 3 * WeightGradTraits::kChannels, kSums = kRows * WeightGradTraits::kStride;
  float *rows, *sums, *biases;  // of each pair
  int* wrong;

  __device__ explicit ScanBackwardMemory(SharedMemory& memory)
      : rows(memory.take<float>(T::kPairs * 2 * ExchangedRows::kValues)),
        sums(memory.take<float>(T::kPairs * kSums)),
        biases(memory.take<float>(T::kPairs * kRows)),
        wrong(memory.take<int>(T::kPairs)) {}
  static size_t bytes() {
    return padded_bytes<float>(T::kPairs * 2 * ExchangedRows::kValues) +
           padded_bytes<float>(T::kPairs * kSums) + padded_bytes<float>(T::kPairs * kRows) +
           padded_bytes<int>(T::kPairs);
  }
};

template <class S, bool kRounded, bool kMasked>
__global__ void __launch_bounds__(ScanBackwardTraits::kThreads, 2)
    scan_backward_kernel(GatedScanBackward<S, float> p, float* partial, int nodes) {
  using T = ScanBackwardTraits;
  constexpr Products kHow = kProductsOf<float, kRounded>;
  const int channels = static_cast<int>(p.forward.x.channels), hidden = static_cast<int>(p.forward.hidden);
  const int warp = static_cast<int>(threadIdx.x) / kWarp, pair = warp / 2;
  const GateWidths widths{channels, hidden};
  SharedMemory shared;
  const ScanWeights<S, kHow> weights(p.forward.weights, widths, shared);
  const ScanBackwardMemory memory(shared);
  const PairOfWarps<S, kHow, kMasked> warps{p, weights, memory.rows + pair * 2 * ExchangedRows::kValues,
                                            hidden};
  const auto for_each_group = [&](auto&& run) {
    const int stride = T::kPairs * T::kNodes;
    for (int first = static_cast<int>(blockIdx.x) * stride; first < nodes;
         first += static_cast<int>(gridDim.x) * stride) {
      run(LaneNodes(first + pair * T::kNodes, nodes));
    }
  };
  // Leaves the sums for the gradients of the weights, computed as `how` says.
  const auto collect = [&](auto how, auto repair) {
    int turn = 0;
    GradSums<float, decltype(how)::value, 3, true> grads;
    for_each_group([&](const LaneNodes& at) { warps.collect(at, turn, grads); });
    const bool wrong = grads.template store_sums<decltype(repair)::value>(
        memory.sums + pair * memory.kSums, memory.biases + pair * memory.kRows);
    const bool any = __ballot_sync(kFullMask, wrong) != 0;
    if (threadIdx.x % kWarp == 0) memory.wrong[pair] = any;
  };
  for (bool again = false;; again = true) {
    if (warp % 2 == 0) {
      int turn = 0;
      for_each_group([&](const LaneNodes& at) { warps.recur(at, turn); });
    } else if (!again) {
      collect(std::integral_constant<Products, kHow>{}, std::false_type{});
    } else if constexpr (kHow == Products::kSplit) {
      collect(std::integral_constant<Products, Products::kExact>{}, std::true_type{});
    }
    __syncthreads();
    int wrong = 0;
    for (int i = 0; i < T::kPairs; ++i) wrong |= memory.wrong[i];
    __syncthreads();
    // A sum is NaN or infinite: all again, with the sums for the weights computed without tensor cores. Those without
    // Inf keep their bits.
    if (kHow != Products::kSplit || again || wrong == 0) break;
  }
  put_grad_sums<3, T::kPairs>(
      memory.sums, memory.biases, ColumnBlocks<3>(widths), widths, 0, 0, hidden,
      partial + static_cast<int64_t>(blockIdx.x) * 3 * hidden * (channels + 2 * hidden + 1));
}

template <class S, bool kRounded>
size_t scan_backward_bytes() {
  return ScanWeights<S, kProductsOf<float, kRounded>>::bytes() + ScanBackwardMemory::bytes();
}

template <class S>
int64_t blocks_of(const GatedScanForward<S>& p) {
  using T = ScanBackwardTraits;
  const int64_t blocks = ceil_div<int64_t>(p.copies * p.num_nodes, T::kPairs * T::kNodes);
  return blocks < T::kMaxBlocks ? blocks : T::kMaxBlocks;
}

}  // namespace

template <class S>
bool fused_scan_backward_fits(const GatedScanForward<S>& p) {
  if constexpr (!std::is_same_v<S, double>) {
    const bool narrow = p.hidden > 0 && p.hidden <= ScanBackwardTraits::kChannels && p.x.channels > 0 &&
                        p.x.channels <= ScanBackwardTraits::kChannels;
    return narrow && p.windows == nullptr && p.g_channels == p.hidden &&
           dispatch_rounded(rounds_operands<S>(p.tf32), [](auto rounded) {
             return scan_backward_bytes<S, decltype(rounded)::value>() <= shared_memory_limit();
           });
  }
  return false;
}

template <class S>
int64_t fused_scan_backward_values(const GatedScanForward<S>& p) {
  return blocks_of(p) * 3 * p.hidden * (p.x.channels + 2 * p.hidden + 1);
}

template <class S>
int64_t fused_scan_backward(const GatedScanBackward<S, Compute<S>>& p, Compute<S>* partial, Stream& on) {
  const GatedScanForward<S>& f = p.forward;
  if constexpr (!std::is_same_v<S, double>) {
    dispatch_rounded(rounds_operands<S>(f.tf32), [&](auto rounded) {
      constexpr bool kRounded = decltype(rounded)::value;
      dispatch_masked(f.present, [&](auto masked) {
        launch(scan_backward_kernel<S, kRounded, masked>, blocks_of(f), ScanBackwardTraits::kThreads,
               scan_backward_bytes<S, kRounded>(), on, p, partial, f.copies * f.num_nodes);
      });
    });
  }
  return blocks_of(f);
}

#define HIERMT_INSTANTIATE(S)                                                 \
  template bool fused_scan_backward_fits<S>(const GatedScanForward<S>&);      \
  template int64_t fused_scan_backward_values<S>(const GatedScanForward<S>&); \
  template int64_t fused_scan_backward<S>(const GatedScanBackward<S, Compute<S>>&, Compute<S>*, Stream&);
HIERMT_FOR_EACH_STORAGE(HIERMT_INSTANTIATE)
#undef HIERMT_INSTANTIATE

}  // namespace hiermt::cuda
