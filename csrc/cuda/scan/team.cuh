// Who computes what in a scan over steps. A block owns 16 nodes, and each of its warps 16 channels of them: it multiplies
// the states of the nodes, [16, H], by its columns of the recurrent weights on tensor cores, as a dense layer does
// (dense/linear.cuh). Lane 4 g + m holds the channels 4m to 4m + 3 of the nodes g and g + 8, before and after a product,
// so a single warp exchanges nothing; several do in shared memory.
//
// Up to 16 channels a lane keeps its weights in registers. Above, they are in shared memory, or in a packed copy in
// global memory where they do not fit.
#pragma once

#include "cuda/scan/gated_scan.cuh"

namespace hiermt::cuda {

struct ScanTraits {
  static constexpr int kNodes = 16, kChannels = kBlockColumns;
  static constexpr int kMostWarps = kMaxHidden / kChannels;
  // Of a block of 16 states: steps of 8 of them, and parts of 8 channels.
  static constexpr int kSteps = LinearTraits::kSteps, kParts = LinearTraits::kParts;
  static constexpr int kOperands = kSteps * kParts;
};

// The recurrent weights as operands: `gate` takes state k to channel c, or if kTransposed channel k to state c.
template <class S, bool kTransposed>
struct RecurrentWeights {
  using C = Compute<S>;
  using Pair = Pack<C, 2>;
  GateWeights<S> weights;
  int first, hidden;

  explicit RecurrentWeights(const GatedScanForward<S>& p)
      : weights(p.weights),
        first(static_cast<int>(p.x.channels + p.g_channels)),
        hidden(static_cast<int>(p.hidden)) {}

  // What a lane holds of an operand: of 16 states from `block`, of 16 channels from `warp`. Zeros outside.
  __device__ Pair pair(int lane, int warp, int gate, int block, int operand) const {
    const int step = operand / ScanTraits::kParts, part = operand % ScanTraits::kParts, n = lane / 4;
    const int k = block * ScanTraits::kChannels + lane % 4 * 4 + 2 * step;
    const int c = warp * ScanTraits::kChannels + n / 2 * 4 + n % 2 + 2 * part;
    Pair pair;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = kTransposed ? k + i : c, column = kTransposed ? c : k + i;
      const bool inside = row < hidden && column < hidden;
      pair.values[i] =
          inside ? load(gate_weight(weights, gate) + row * (first + hidden) + first + column) : C(0);
    }
    return pair;
  }
  // All pairs are in the order [warp][gate][block][operand][lane].
  __host__ __device__ int blocks() const { return ceil_div(hidden, ScanTraits::kChannels); }
  __host__ __device__ int pairs() const { return pairs(hidden); }
  __host__ __device__ static int pairs(int hidden) {
    const int blocks = ceil_div(hidden, ScanTraits::kChannels);
    return 3 * blocks * blocks * ScanTraits::kOperands * kWarp;
  }
  __device__ Pair pair(int i) const {
    const int operand = i / kWarp % ScanTraits::kOperands, at = i / (kWarp * ScanTraits::kOperands);
    const int block = at % blocks(), gate = at / blocks() % 3, warp = at / blocks() / 3;
    return pair(i % kWarp, warp, gate, block, operand);
  }
};

template <class S, bool kTransposed>
__global__ void pack_recurrent_kernel(RecurrentWeights<S, kTransposed> weights, Pack<Compute<S>, 2>* packed) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < weights.pairs()) packed[i] = weights.pair(i);
}

enum class WeightsIn { kRegisters, kShared, kPacked };

// kHidden is the number of channels, or 0 if it is known at run time only.
template <class S, int kHidden, WeightsIn kIn, bool kTransposed>
class ScanTeam {
 public:
  using C = Compute<S>;
  using T = ScanTraits;
  using Weights = RecurrentWeights<S, kTransposed>;
  using Pair = typename Weights::Pair;
  static constexpr Products kHow = kProductsOf<C, sizeof(S) == 2>;
  static constexpr int kWarps = kHidden != 0 ? ceil_div(kHidden, T::kChannels) : T::kMostWarps;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr bool kAlone = kHidden != 0 && kWarps == 1;
  // Of a multiprocessor, 0 if ptxas may choose: it would give few warps too few registers, and spill.
  static constexpr int kMinBlocks = kHidden != 0 ? 1 : 0;
  // Whether the values of a step are read while the one before is computed: where registers are free.
  static constexpr bool kPrefetch = kAlone;
  template <int kGates>
  using Sums = LinearSums<C, kHow, kGates, 1>;

  __device__ ScanTeam(const Weights& weights, const Pair* packed, SharedMemory& memory)
      : weights_(weights), memory_pairs_(packed) {
    if constexpr (kIn == WeightsIn::kRegisters) {
#pragma unroll
      for (int i = 0; i < kRegisterOperands; ++i) {
        const Pair pair = weights_.pair(lane(), warp(), i / T::kOperands / kWarps, i / T::kOperands % kWarps,
                                        i % T::kOperands);
        operands_[i] = Operand<C, kHow, 2>(pair.values);
      }
    }
    if constexpr (kIn == WeightsIn::kShared) {
      Pair* const copy = memory.take<Pair>(weights_.pairs());
      for (int i = static_cast<int>(threadIdx.x); i < weights_.pairs(); i += static_cast<int>(blockDim.x)) {
        copy[i] = weights_.pair(i);
      }
      memory_pairs_ = copy;
    }
  }
  __device__ __forceinline__ int hidden() const { return kHidden != 0 ? kHidden : weights_.hidden; }
  // The first of four channels of this lane, and its nodes.
  __device__ __forceinline__ int channel() const { return warp() * T::kChannels + lane() % 4 * 4; }
  __device__ __forceinline__ int node(int i) const {
    return static_cast<int>(blockIdx.x) * T::kNodes + lane() / 4 + 8 * i;
  }
  // Reads the channels of this lane in a row of H values, zeros past its end, or writes those inside it. `packed` is
  // whether quads of the row are aligned.
  template <class Value>
  __device__ __forceinline__ void read(const Value* row, bool packed, C (&values)[4]) const {
    if constexpr (kWhole) {
      if (row == nullptr) {
#pragma unroll
        for (int k = 0; k < 4; ++k) values[k] = C(0);
        return;
      }
      if (packed) return load_quad(row + channel(), values);
    }
    load_part(row, channel(), hidden(), 1, packed, values);
  }
  template <class Value>
  __device__ __forceinline__ void write(Value* row, bool packed, const C (&values)[4]) const {
    if (kWhole && packed) return store_quad(row + channel(), values);
    store_part(row, channel(), hidden(), packed, values);
  }

  // A value of each channel of each node, [16, H]: what this lane puts there, all warps read after sync().
  class Exchange {
   public:
    __device__ Exchange(const ScanTeam& team, SharedMemory& memory) : team_(team) {
      if constexpr (!kAlone) shared_ = memory.take<C>(values(team.hidden()));
    }
    __host__ __device__ static int values(int hidden) { return T::kNodes * stride(hidden); }
    // Two neighbouring nodes meet different banks.
    __host__ __device__ static int stride(int hidden) {
      return ceil_div(hidden, T::kChannels) / 2 * 2 * T::kChannels + T::kChannels;
    }
    __device__ __forceinline__ void put(const C (&values)[2][4]) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          // Zeros behind the last channel: not even a NaN times a zero weight counts.
          own_[i][k] = kWhole || team_.channel() + k < team_.hidden() ? values[i][k] : C(0);
        }
        if constexpr (!kAlone) store_quad(at(i, team_.warp()), own_[i]);
      }
    }
    __device__ __forceinline__ void get(int block, C (&values)[2][4]) const {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if constexpr (!kAlone) load_quad(at(i, block), values[i]);
#pragma unroll
        for (int k = 0; kAlone && k < 4; ++k) values[i][k] = own_[i][k];
      }
    }

   private:
    __device__ __forceinline__ C* at(int i, int block) const {
      const int node = lane() / 4 + 8 * i;
      return shared_ + node * stride(team_.hidden()) + block * T::kChannels + lane() % 4 * 4;
    }
    const ScanTeam& team_;
    C own_[2][4];
    C* shared_ = nullptr;
  };
  // The memory of an exchange of several warps, the first or the second that was made.
  __device__ static C* exchanged(int hidden, int which) {
    const size_t weights = kIn == WeightsIn::kShared ? padded_bytes<Pair>(Weights::pairs(hidden)) : 0;
    SharedMemory memory(weights + which * padded_bytes<C>(Exchange::values(hidden)));
    return memory.take<C>(Exchange::values(hidden));
  }
  __device__ __forceinline__ void sync() const {
    if constexpr (!kAlone) __syncthreads();
  }

  // sums += the values times the weights of kGates gates from `gate` on.
  template <int kGates>
  __device__ __forceinline__ void multiply(Sums<kGates>& sums, int gate, const Exchange& values) const {
    const auto add = [&](auto& to, auto&& weight) {
#pragma unroll 1
      for (int block = 0; block < blocks(); ++block) {
        C quads[2][4];
        values.get(block, quads);
        to.add(quads, [&](int step, int group, int part) {
          return weight(gate + group, block, step * T::kParts + part);
        });
      }
    };
    Sums<kGates> found = sums;
    add(found, [&](int of, int block, int operand) { return weight_of(of, block, operand); });
    if constexpr (kHow == Products::kSplit) {
      // Inf - Inf in the rest of an operand may have made a NaN. Such a sum is computed again without tensor cores; the
      // others keep their bits.
      if (__ballot_sync(kFullMask, !found.finite()) != 0) {
        LinearSums<C, Products::kExact, kGates, 1> exact;
        each_quad<kGates>([&](int i) { take_quad(exact, sums, i, [](C, C value) { return value; }); });
        add(exact, [&](int of, int block, int operand) {
          return Operand<C, Products::kExact, 2>(weights_.pair(lane(), warp(), of, block, operand).values);
        });
        each_quad<kGates>([&](int i) {
          take_quad(found, exact, i, [](C split, C value) { return split == split ? split : value; });
        });
      }
    }
    sums = found;
  }

 private:
  static constexpr bool kWhole = kHidden != 0 && kHidden % T::kChannels == 0;
  static constexpr int kRegisterOperands = kIn == WeightsIn::kRegisters ? 3 * T::kOperands : 1;
  static_assert(kIn != WeightsIn::kRegisters || kAlone);

  __device__ static __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % kWarp; }
  __device__ static __forceinline__ int warp() { return kAlone ? 0 : static_cast<int>(threadIdx.x) / kWarp; }
  __device__ __forceinline__ int blocks() const {
    return kHidden != 0 ? kWarps : static_cast<int>(blockDim.x) / kWarp;
  }
  __device__ __forceinline__ Operand<C, kHow, 2> weight_of(int gate, int block, int operand) const {
    if constexpr (kIn == WeightsIn::kRegisters) {
      return operands_[gate * T::kOperands + operand];
    } else {
      const int at = ((warp() * 3 + gate) * blocks() + block) * T::kOperands + operand;
      const Pair pair = memory_pairs_[at * kWarp + lane()];
      return Operand<C, kHow, 2>(pair.values);
    }
  }
  template <int kGates, class F>
  __device__ static __forceinline__ void each_quad(F&& f) {
#pragma unroll
    for (int i = 0; i < 2 * kGates; ++i) f(i);
  }
  // Quad i of `to` is choose(its value, that of `from`).
  template <class To, class From, class Choose>
  __device__ static __forceinline__ void take_quad(To& to, const From& from, int i, Choose&& choose) {
    C values[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) values[k] = choose(to.value(i, k), from.value(i, k));
    to.set(i, values);
  }

  Weights weights_;
  const Pair* memory_pairs_;
  Operand<C, kHow, 2> operands_[kRegisterOperands];
};

// How the kernel of a team is launched.
template <class Team_>
struct ScanLaunch {
  using Team = Team_;
  int64_t blocks, threads;
  size_t shared_bytes;
  typename Team::Weights weights;
  const typename Team::Pair* packed;  // the packed copy of the weights, or nullptr
};

// Calls f(ScanLaunch) for the team of a scan whose kernel exchanges `exchanges` arrays.
template <class S, bool kTransposed, class F>
void dispatch_team(const GatedScanForward<S>& p, int exchanges, Stream& on, F&& f) {
  using Weights = RecurrentWeights<S, kTransposed>;
  using Pair = typename Weights::Pair;
  const Weights weights(p);
  const int64_t blocks = ceil_div<int64_t>(p.copies * p.num_nodes, ScanTraits::kNodes);
  const int64_t threads = int64_t{weights.blocks()} * kWarp;
  const auto run = [&](auto constant, auto in, size_t weight_bytes, const Pair* packed) {
    using Team = ScanTeam<S, decltype(constant)::value, decltype(in)::value, kTransposed>;
    const size_t exchange = padded_bytes<Compute<S>>(Team::Exchange::values(weights.hidden));
    const size_t bytes = Team::kAlone ? 0 : exchanges * exchange + weight_bytes;
    if constexpr (!Team::kAlone) {
      if (bytes > shared_memory_limit()) return false;
    }
    f(ScanLaunch<Team>{blocks, threads, bytes, weights, packed});
    return true;
  };
  const auto in_registers = [&](auto constant) {
    run(constant, std::integral_constant<WeightsIn, WeightsIn::kRegisters>{}, 0, nullptr);
  };
  // The packed copy is always read by the generic kernel: no supported GPU has too little shared memory for the weights
  // of 64 channels.
  const auto in_memory = [&](auto constant) {
    if (run(constant, std::integral_constant<WeightsIn, WeightsIn::kShared>{},
            padded_bytes<Pair>(weights.pairs()), nullptr)) {
      return;
    }
    Pair* const packed = on.take<Pair>(weights.pairs());
    constexpr int kThreads = 256;
    launch(pack_recurrent_kernel<S, kTransposed>, ceil_div(weights.pairs(), kThreads), kThreads, 0, on,
           weights, packed);
    run(std::integral_constant<int, 0>{}, std::integral_constant<WeightsIn, WeightsIn::kPacked>{}, 0, packed);
  };
  if constexpr (!std::is_same_v<S, double>) {
    if (p.hidden == 8) return in_registers(std::integral_constant<int, 8>{});
    if (p.hidden == 16) return in_registers(std::integral_constant<int, 16>{});
    if (p.hidden == 32) return in_memory(std::integral_constant<int, 32>{});
    if (p.hidden == 64) return in_memory(std::integral_constant<int, 64>{});
  }
  in_memory(std::integral_constant<int, 0>{});
}

}  // namespace hiermt::cuda
