// Backward of the gated scan. Derivatives are functions of the saved outputs: with y a gate after its
// nonlinearity, sigmoid' = y (1 - y) and tanh' = 1 - y^2. A tile of nodes walks back through time; the rows
// that the parameter gradients need are kept for a few steps and then multiplied at once.
#include "gated_scan.h"
#include "kernels.h"
#include "parallel.h"

namespace hiermt {
namespace cpu {
namespace HIERMT_ISA {

namespace {

// Steps whose rows are kept: a tile's rows then stay in the first-level cache.
constexpr int64_t kChunkSteps = 8;
// Groups of nodes with sums of parameter gradients of their own. They follow from the problem alone.
constexpr int64_t kMostGroups = 64;
constexpr int64_t kFewestGroups = 8;
constexpr int64_t kMostSums = int64_t{1} << 22;

template <class C>
struct Lengths {
  Lengths(int64_t channels, int64_t hidden)
      : vectors(vectors_for<C>(hidden)),
        padded(vectors * kLanes<C>),
        inputs(1 + channels + hidden),
        sums((inputs + hidden) * 3 * padded),
        row((inputs + 2 * hidden + 2 * kLanes<C> - 1) / kLanes<C> * kLanes<C>) {}
  int64_t vectors;
  int64_t padded;  // V L
  int64_t inputs;  // 1, x, g
  int64_t sums;
  int64_t row;  // 1, x, g, h, r * h, and room for the last store to run over
};

template <class S>
class BackwardTile {
 public:
  using C = Compute<S>;
  using V = Vec<C>;
  static constexpr int kL = kLanes<C>;

  BackwardTile(const GatedScanBackward<S, C>& p, const PackedGatesTransposed<C>& packed, ScratchFrame& frame)
      : p_(p),
        f_(p.forward),
        packed_(packed),
        len_(p.forward.x.channels, p.forward.hidden),
        chunks_((f_.steps + kChunkSteps - 1) / kChunkSteps) {
    constexpr int64_t kRows = kChunkSteps * kTileRows;
    rows_ = frame.take<C>(kRows * len_.row);
    dz_ = frame.take<C>(kRows * 3 * len_.padded);
    dh_ = frame.take<C>(kTileRows * len_.padded);
  }

  void run(int64_t first, int count, const S* g, S* grad_g, C* sums) {
    first_ = first;
    count_ = count;
    g_ = g;
    grad_g_ = grad_g;
    start();
    for (int64_t chunk = chunks_ - 1; chunk >= 0; --chunk) {
      const int64_t begin = chunk * f_.steps / chunks_, end = (chunk + 1) * f_.steps / chunks_;
      for (int64_t t = end - 1; t >= begin; --t) {
        if (t > kPrefetchSteps) prefetch_rows(t - kPrefetchSteps);
        set_rows(t, end - 1 - t);
        for (int64_t v = 0; v < len_.vectors; ++v) differentiate_update(v, t);
        for (int64_t v = 0; v < len_.vectors; ++v) differentiate_reset(v, t);
        for (int64_t v = 0; v < len_.vectors; ++v) add_state(v);
        for (int64_t v = 0; v + 1 < packed_.outputs; v += 2) write_inputs<2>(v, t);
        if (packed_.outputs % 2 != 0) write_inputs<1>(packed_.outputs - 1, t);
      }
      if (sums != nullptr) add_parameters(sums, (end - begin) * count_);
    }
    if (p_.grad_h0 != nullptr) finish();
  }

 private:
  HIERMT_INLINE int64_t node(int i) const { return first_ + (i < count_ ? i : 0); }
  HIERMT_INLINE int64_t at(int i, int64_t t) const { return node(i) * f_.steps + t; }

  void start() {
    for (int i = 0; i < kTileRows; ++i) {
      for (int64_t v = 0; v < len_.vectors; ++v) {
        const V dh = p_.grad_h_last == nullptr ? V{} : load_channels(p_.grad_h_last + node(i) * f_.hidden, v);
        store(dh_ + i * len_.padded + v * kL, dh);
      }
    }
  }

  // Inline, or GCC takes it for a function without effect and drops the call.
  HIERMT_INLINE void prefetch_rows(int64_t t) const {
    for (int i = 0; i < count_; ++i) {
      const int64_t row = i * f_.steps + t;
      prefetch(gate(i, t, 0), 3 * f_.hidden);
      prefetch(f_.h + (at(i, t) - 1) * f_.hidden, f_.hidden);
      prefetch(x_row(i, t), f_.x.stride_channel == 1 ? f_.x.channels : 1);
      prefetch(g_ + row * f_.hidden, f_.hidden);
      if (p_.grad_h != nullptr) prefetch(p_.grad_h + at(i, t) * f_.hidden, f_.hidden);
      if (grad_g_ != nullptr) prefetch_to_write(grad_g_ + row * f_.hidden, f_.hidden);
      if (p_.grad_x != nullptr) prefetch_to_write(p_.grad_x + at(i, t) * f_.x.channels, f_.x.channels);
    }
  }

  // The rows of this step: 1, x and g are copied, h and r * h follow. A store may run over into the next
  // part, which is written after it. Rows past the count repeat the first node, until the next step writes
  // over them.
  void set_rows(int64_t t, int64_t step) {
    row_ = rows_ + step * count_ * len_.row;
    for (int gate = 0; gate < 3; ++gate) dz_row_[gate] = dz_ + (step * count_ * 3 + gate) * len_.padded;
    for (int i = 0; i < kTileRows; ++i) {
      C* to = row_ + i * len_.row;
      *to++ = C(1);
      const SequenceView<S>& x = f_.x;
      const S* from = x_row(i, t);
      if (x.stride_channel == 1) {
        copy(to, from, x.channels);
      } else {
        for (int64_t k = 0; k < x.channels; ++k) to[k] = to_compute(from[k * x.stride_channel]);
      }
      copy(to + x.channels, g_ + (at(i, t) - first_ * f_.steps) * f_.hidden, f_.hidden);
    }
  }

  HIERMT_INLINE void copy(C* to, const S* from, int64_t channels) const {
    for (int64_t v = 0; v * kL < channels; ++v) store(to + v * kL, load_lanes(from, channels, v));
  }

  // h_t = u h + (1 - u) c: cotangents of z_u, z_c and the direct one of h.
  HIERMT_INLINE void differentiate_update(int64_t v, int64_t t) {
    const V one = broadcast(C(1));
    for (int i = 0; i < kTileRows; ++i) {
      const V u = load_channels(gate(i, t, 0), v);
      const V c = load_channels(gate(i, t, 2), v);
      const V h = previous_state(i, t, v);
      C* carry = dh_ + i * len_.padded + v * kL;
      V dh = load(carry);
      if (p_.grad_h != nullptr) dh += load_channels(p_.grad_h + at(i, t) * f_.hidden, v);
      store(dz_row_[0] + i * 3 * len_.padded + v * kL, dh * (h - c) * (u * (one - u)));
      store(dz_row_[2] + i * 3 * len_.padded + v * kL, dh * (one - u) * (one - c * c));
      store(carry, dh * u);
      store(row_ + i * len_.row + len_.inputs + v * kL, h);
    }
  }

  // c reads r h: cotangents of z_r and, through r, of h.
  HIERMT_INLINE void differentiate_reset(int64_t v, int64_t t) {
    const V one = broadcast(C(1));
    V drh[1][kTileRows];
    for (int i = 0; i < kTileRows; ++i) drh[0][i] = V{};
    add_product<1>(drh, dz_row_[2], 3 * len_.padded, f_.hidden, packed_.state_c + v * f_.hidden * kL);
    for (int i = 0; i < kTileRows; ++i) {
      const V r = load_channels(gate(i, t, 1), v);
      const V h = previous_state(i, t, v);
      C* carry = dh_ + i * len_.padded + v * kL;
      store(dz_row_[1] + i * 3 * len_.padded + v * kL, drh[0][i] * h * (r * (one - r)));
      store(carry, fma(drh[0][i], r, load(carry)));
      store(row_ + i * len_.row + len_.inputs + f_.hidden + v * kL, r * h);
    }
  }

  // h through z_u and z_r.
  HIERMT_INLINE void add_state(int64_t v) {
    const C* weights = packed_.state_ur + v * 2 * f_.hidden * kL;
    V dh[1][kTileRows];
    for (int i = 0; i < kTileRows; ++i) dh[0][i] = V{};
    add_product<1>(dh, dz_row_[0], 3 * len_.padded, f_.hidden, weights);
    add_product<1>(dh, dz_row_[1], 3 * len_.padded, f_.hidden, weights + f_.hidden * kL);
    // The larger terms come last: they would be rounded again with every product.
    for (int i = 0; i < kTileRows; ++i) {
      C* carry = dh_ + i * len_.padded + v * kL;
      store(carry, load(carry) + dh[0][i]);
    }
  }

  // g and x through all three gates: kVectors output vectors from the v-th on, of kBlockRows nodes at a time.
  template <int kVectors>
  HIERMT_INLINE void write_inputs(int64_t v, int64_t t) {
    const C* weights = packed_.input + v * 3 * f_.hidden * kL;
    const int64_t gate_stride = f_.hidden * kVectors * kL;
    for (int first = 0; first < kTileRows; first += kBlockRows) {
      V dx[kVectors][kBlockRows];
      for (int k = 0; k < kVectors; ++k) {
        for (int i = 0; i < kBlockRows; ++i) dx[k][i] = V{};
      }
      for (int gate = 0; gate < 3; ++gate) {
        add_product<kVectors>(dx, dz_row_[gate] + first * 3 * len_.padded, 3 * len_.padded, f_.hidden,
                              weights + gate * gate_stride);
      }
      for (int i = 0; i < kBlockRows; ++i) {
        if (first + i >= count_) break;
        for (int k = 0; k < kVectors; ++k) write_input(first + i, t, v + k, dx[k][i]);
      }
    }
  }

  HIERMT_INLINE void write_input(int i, int64_t t, int64_t v, V value) const {
    if (v < len_.vectors) {
      if (grad_g_ != nullptr) store_lanes(grad_g_ + (i * f_.steps + t) * f_.hidden, f_.hidden, v, value);
      return;
    }
    S* row = p_.grad_x + at(i, t) * f_.x.channels;
    v -= len_.vectors;
    if (p_.accumulate_grad_x) value += load_lanes(row, f_.x.channels, v);
    store_lanes(row, f_.x.channels, v, value);
  }

  void add_parameters(C* sums, int64_t rows) const {
    const int64_t stride = 3 * len_.padded;
    for (int64_t v = 0; v < len_.vectors; ++v) {
      C* to = sums + v * kL;
      C* to_state = to + len_.inputs * stride;
      const C* state = rows_ + len_.inputs;
      const C* dz = dz_ + v * kL;
      add_outer_product<3>(to, stride, rows_, len_.row, len_.inputs, dz, stride, len_.padded, rows);
      add_outer_product<2>(to_state, stride, state, len_.row, f_.hidden, dz, stride, len_.padded, rows);
      add_outer_product<1>(to_state + 2 * len_.padded, stride, state + f_.hidden, len_.row, f_.hidden,
                           dz + 2 * len_.padded, stride, len_.padded, rows);
    }
  }

  void finish() const {
    for (int i = 0; i < count_; ++i) {
      for (int64_t v = 0; v < len_.vectors; ++v) {
        store_lanes(p_.grad_h0 + node(i) * f_.hidden, f_.hidden, v, load(dh_ + i * len_.padded + v * kL));
      }
    }
  }

  HIERMT_INLINE const S* x_row(int i, int64_t t) const {
    const SequenceView<S>& x = f_.x;
    return x.data + node(i) / f_.num_nodes * x.stride_copy + node(i) % f_.num_nodes * x.stride_node +
           t * x.stride_time;
  }
  HIERMT_INLINE const S* gate(int i, int64_t t, int gate) const {
    return f_.gates + (at(i, t) * 3 + gate) * f_.hidden;
  }
  HIERMT_INLINE V previous_state(int i, int64_t t, int64_t v) const {
    if (t > 0) return load_channels(f_.h + (at(i, t) - 1) * f_.hidden, v);
    return f_.h0 == nullptr ? V{} : load_channels(f_.h0 + node(i) * f_.hidden, v);
  }
  HIERMT_INLINE V load_channels(const S* row, int64_t v) const { return load_lanes(row, f_.hidden, v); }

  const GatedScanBackward<S, C> p_;
  const GatedScanForward<S>& f_ = p_.forward;
  const PackedGatesTransposed<C> packed_;
  const Lengths<C> len_;
  const int64_t chunks_;
  int64_t first_ = 0;
  int count_ = 0;
  const S* g_ = nullptr;
  S* grad_g_ = nullptr;
  C* rows_;           // [kChunkSteps * kTileRows, row]        1, x, g, h, r * h
  C* dz_;             // [kChunkSteps * kTileRows, 3, V L]     cotangents of z_u, z_r, z_c
  C* dh_;             // [kTileRows, V L]                          cotangent of the state
  C* row_ = nullptr;  // of this step and the tile's first node
  C* dz_row_[3] = {};
};

// weight[j, column ...] for the lanes of vector v, which cover columns [first, first + count).
template <class S>
void pack_row(Compute<S>* to, const S* weight, int64_t row_stride, int64_t j, int64_t first, int64_t count,
              int64_t v) {
  using C = Compute<S>;
  for (int l = 0; l < kLanes<C>; ++l) {
    const int64_t k = v * kLanes<C> + l;
    to[l] = k < count ? to_compute(weight[j * row_stride + first + k]) : C(0);
  }
}

template <class C>
int64_t groups_for(int64_t nodes, int64_t sums) {
  const int64_t tiles = (nodes + kTileRows - 1) / kTileRows;
  int64_t groups = kMostGroups;
  while (groups > kFewestGroups && groups * sums > kMostSums) groups /= 2;
  return tiles < groups ? tiles : groups;
}

}  // namespace

template <class S>
PackedGatesTransposed<Compute<S>> pack_gates_transposed(const GateWeights<S>& weights, int64_t channels,
                                                        int64_t hidden, bool need_x, ScratchFrame& frame) {
  using C = Compute<S>;
  constexpr int kL = kLanes<C>;
  const int64_t vectors = vectors_for<C>(hidden);
  const int64_t outputs = vectors + (need_x ? vectors_for<C>(channels) : 0);
  const int64_t inputs = channels + hidden, stride = inputs + hidden;
  C* state_c = frame.take<C>(vectors * hidden * kL);
  C* state_ur = frame.take<C>(vectors * 2 * hidden * kL);
  C* input = frame.take<C>(outputs * 3 * hidden * kL);
  const S* weight[3] = {weights.u_weight, weights.r_weight, weights.c_weight};
  for (int64_t v = 0; v < vectors; ++v) {
    for (int64_t j = 0; j < hidden; ++j) {
      pack_row(state_c + (v * hidden + j) * kL, weight[2], stride, j, inputs, hidden, v);
      for (int gate = 0; gate < 2; ++gate) {
        C* to = state_ur + ((v * 2 + gate) * hidden + j) * kL;
        pack_row(to, weight[gate], stride, j, inputs, hidden, v);
      }
    }
  }
  for (int64_t v = 0; v < outputs; ++v) {
    const int64_t pair = v - v % 2, together = pair + 1 < outputs ? 2 : 1;
    for (int gate = 0; gate < 3; ++gate) {
      for (int64_t j = 0; j < hidden; ++j) {
        C* to = input + (pair * 3 * hidden + (gate * hidden + j) * together + v - pair) * kL;
        if (v < vectors) {
          pack_row(to, weight[gate], stride, j, channels, hidden, v);
        } else {
          pack_row(to, weight[gate], stride, j, 0, channels, v - vectors);
        }
      }
    }
  }
  return {vectors, outputs, state_c, state_ur, input};
}

template <class C>
int64_t gate_sums_size(int64_t channels, int64_t hidden) {
  return Lengths<C>(channels, hidden).sums;
}

template <class S>
void gated_scan_backward_range(const GatedScanBackward<S, Compute<S>>& p,
                               const PackedGatesTransposed<Compute<S>>& packed, int64_t begin, int64_t end,
                               const S* g, S* grad_g, Compute<S>* sums) {
  ScratchFrame frame;
  BackwardTile<S> tile(p, packed, frame);
  const int64_t row = p.forward.steps * p.forward.hidden;
  for (int64_t first = begin; first < end; first += kTileRows) {
    const int count = static_cast<int>(end - first < kTileRows ? end - first : kTileRows);
    tile.run(first, count, g + (first - begin) * row,
             grad_g == nullptr ? nullptr : grad_g + (first - begin) * row, sums);
  }
}

template <class C>
void finish_gate_grads(const C* sums, int64_t groups, int64_t channels, int64_t hidden,
                       const GateGrads<C>& grads) {
  const Lengths<C> len(channels, hidden);
  const int64_t columns = len.inputs - 1 + hidden;
  C* weight[3] = {grads.u_weight, grads.r_weight, grads.c_weight};
  C* bias[3] = {grads.u_bias, grads.r_bias, grads.c_bias};
  parallel_for(columns + 1, [&](int64_t k) {
    ScratchFrame frame;
    C* total = frame.take<C>(3 * len.padded);
    for (int64_t j = 0; j < 3 * len.padded; j += kLanes<C>) {
      // Several sums side by side, then a tree: fewer roundings than one long sum has.
      Vec<C> sum[8] = {};
      for (int64_t group = 0; group < groups; ++group) {
        sum[group % 8] += load(sums + group * len.sums + k * 3 * len.padded + j);
      }
      for (int half = 4; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) sum[i] += sum[i + half];
      }
      store(total + j, sum[0]);
    }
    for (int gate = 0; gate < 3; ++gate) {
      C* to = k == 0 ? bias[gate] : weight[gate];
      if (to == nullptr) continue;
      for (int64_t j = 0; j < hidden; ++j) {
        (k == 0 ? to[j] : to[j * columns + k - 1]) = total[gate * len.padded + j];
      }
    }
  });
}

template <class S>
void gated_scan_backward(const GatedScanBackward<S, Compute<S>>& p) {
  using C = Compute<S>;
  const GatedScanForward<S>& f = p.forward;
  const int64_t nodes = f.copies * f.num_nodes, channels = f.x.channels, row = f.steps * f.hidden;
  const GateGrads<C>& grads = p.grads;
  const bool need_parameters = grads.u_weight != nullptr || grads.u_bias != nullptr ||
                               grads.r_weight != nullptr || grads.r_bias != nullptr ||
                               grads.c_weight != nullptr || grads.c_bias != nullptr;
  if (f.hidden == 0) return;
  ScratchFrame frame;
  const PackedGatesTransposed<C> packed =
      pack_gates_transposed(f.weights, channels, f.hidden, p.grad_x != nullptr, frame);
  const int64_t size = gate_sums_size<C>(channels, f.hidden);
  const int64_t groups = groups_for<C>(nodes, size), tiles = (nodes + kTileRows - 1) / kTileRows;
  C* sums = need_parameters ? frame.take<C>(groups * size) : nullptr;
  parallel_for(groups, [&](int64_t group) {
    const Range range = split(tiles, groups, group);
    const int64_t begin = range.begin * kTileRows;
    const int64_t end = range.end * kTileRows < nodes ? range.end * kTileRows : nodes;
    C* group_sums = need_parameters ? sums + group * size : nullptr;
    for (int64_t i = 0; i < (need_parameters ? size : 0); ++i) group_sums[i] = C(0);
    gated_scan_backward_range(p, packed, begin, end, f.g + begin * row,
                              p.grad_g == nullptr ? nullptr : p.grad_g + begin * row, group_sums);
  });
  if (need_parameters) finish_gate_grads(sums, groups, channels, f.hidden, grads);
}

HIERMT_INSTANTIATE(gated_scan_backward)

template int64_t gate_sums_size<float>(int64_t, int64_t);
template int64_t gate_sums_size<double>(int64_t, int64_t);
template void finish_gate_grads<float>(const float*, int64_t, int64_t, int64_t, const GateGrads<float>&);
template void finish_gate_grads<double>(const double*, int64_t, int64_t, int64_t, const GateGrads<double>&);

#define HIERMT_INSTANTIATE_RANGE(S)                                                                      \
  template PackedGatesTransposed<Compute<S>> pack_gates_transposed<S>(const GateWeights<S>&, int64_t,    \
                                                                      int64_t, bool, ScratchFrame&);     \
  template void gated_scan_backward_range<S>(const GatedScanBackward<S, Compute<S>>&,                    \
                                             const PackedGatesTransposed<Compute<S>>&, int64_t, int64_t, \
                                             const S*, S*, Compute<S>*);
HIERMT_INSTANTIATE_RANGE(float)
HIERMT_INSTANTIATE_RANGE(double)
HIERMT_INSTANTIATE_RANGE(BFloat16)

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt
