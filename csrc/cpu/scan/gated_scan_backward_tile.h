// Backward of the gated scan on one tile of nodes. Derivatives are functions of the saved outputs: with y a
// gate after its nonlinearity, sigmoid' = y (1 - y) and tanh' = 1 - y^2. The tile walks back through time;
// the rows that the parameter gradients need are kept for a few steps and then multiplied at once.
#pragma once

#include <type_traits>

#include "cpu/scan/gated_scan.h"

namespace hiermt {
namespace cpu {
namespace HIERMT_ISA {

// Steps whose rows are kept: a tile's rows then stay in the first-level cache, or, of wide ones, amortise the
// sums that leave it.
constexpr int64_t kChunkSteps = 8;
constexpr int64_t kWideChunkSteps = 16;
constexpr int64_t kWideVectors = 4;
template <class C>
struct ScanLengths {
  ScanLengths(int64_t channels, int64_t hidden)
      : vectors(vectors_for<C>(hidden)),
        padded(vectors * kLanes<C>),
        inputs(1 + channels + hidden),
        gates(odd_vectors(3 * padded)),
        chunk_steps(vectors < kWideVectors ? kChunkSteps : kWideChunkSteps) {}
  // Of a row with so many channels, and room for the last store to run over.
  static int64_t row(int64_t channels) { return odd_vectors(channels + 2 * kLanes<C> - 1); }
  // Whole vectors that hold `count` elements; an odd number, so that a column meets every set of the cache.
  static int64_t odd_vectors(int64_t count) { return (count / kLanes<C> | 1) * kLanes<C>; }
  int64_t vectors;
  int64_t padded;  // V L
  int64_t inputs;  // 1, x, g
  int64_t gates;   // dz of the three gates
  int64_t chunk_steps;
};

// Where the rows of a tile's g are, and where what it finds goes.
template <class S, class C>
struct ScanRows {
  const S* g;  // [count, T, H]
  S* d_g;      // [count, T, H] or nullptr
  C* sums;     // gate_sums_size, added to, or nullptr
  C* dz;       // inputs elsewhere: [count, T, 3, V L] at dz_stride_node, added to
  int64_t dz_stride_node;
};

// kInputs: the gradients of x, g and what multiplies them are this tile's matter. Without, it gives the
// cotangents of what the gates take from x and g, and nothing else of theirs.
template <class S, bool kInputs>
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
        inputs_(kInputs ? len_.inputs : 0),
        row_length_(len_.row(inputs_ + 2 * p.forward.hidden)),
        chunks_((f_.steps + len_.chunk_steps - 1) / len_.chunk_steps) {
    const int64_t rows = len_.chunk_steps * kTileRows;
    rows_ = frame.take<C>(rows * row_length_);
    dz_ = frame.take<C>(rows * len_.gates);
    dh_ = frame.take<C>(kTileRows * len_.padded);
  }

  void run(int64_t first, int count, const ScanRows<S, C>& rows) {
    first_ = first;
    count_ = count;
    own_ = rows;
    start();
    for (int64_t chunk = chunks_ - 1; chunk >= 0; --chunk) {
      const int64_t begin = chunk * f_.steps / chunks_, end = (chunk + 1) * f_.steps / chunks_;
      for (int64_t t = end - 1; t >= begin; --t) {
        set_rows(t, end - 1 - t);
        for (int64_t v = 0; v < len_.vectors; ++v) differentiate_update(v, t);
        in_pairs(len_.vectors, [&](auto together, int64_t v) { differentiate_reset<together()>(v, t); });
        in_pairs(len_.vectors, [&](auto together, int64_t v) {
          if (t > kPrefetchSteps) prefetch_rows(t - kPrefetchSteps, v, v + together());
          add_state<together()>(v);
        });
      }
      if constexpr (kInputs) {
        in_pairs(packed_.outputs, [&](auto together, int64_t v) { write_inputs<together()>(v, begin, end); });
      } else {
        for (int64_t t = begin; t < end; ++t) add_cotangents(t, end - 1 - t);
      }
      if (own_.sums != nullptr) add_parameters(own_.sums, (end - begin) * count_);
    }
    if (p_.d_h0 != nullptr) finish();
  }

 private:
  // run(2, v) for pairs of vectors, run(1, v) for a last one alone.
  template <class Run>
  static HIERMT_INLINE void in_pairs(int64_t vectors, Run&& run) {
    for (int64_t v = 0; v + 1 < vectors; v += 2) run(std::integral_constant<int, 2>{}, v);
    if (vectors % 2 != 0) run(std::integral_constant<int, 1>{}, vectors - 1);
  }
  // Nodes whose products with kVectors vectors stay in the registers together.
  template <int kVectors>
  static constexpr int kNodes = kVectors == 1 ? kTileRows : kBlockRows;

  HIERMT_INLINE int64_t node(int i) const { return first_ + (i < count_ ? i : 0); }
  HIERMT_INLINE int64_t at(int i, int64_t t) const { return node(i) * f_.steps + t; }

  void start() {
    for (int i = 0; i < kTileRows; ++i) {
      for (int64_t v = 0; v < len_.vectors; ++v) {
        const V dh = p_.d_h_last == nullptr ? V{} : load_channels(p_.d_h_last + node(i) * f_.hidden, v);
        store(dh_ + i * len_.padded + v * kL, dh);
      }
    }
  }

  // The rows of some nodes, the share of the vectors [v, end): all at once would wait for the memory.
  // Inline, or GCC takes it for a function without effect and drops the call.
  HIERMT_INLINE void prefetch_rows(int64_t t, int64_t v, int64_t end) const {
    const int64_t last = end * count_ / len_.vectors;
    for (int64_t i = v * count_ / len_.vectors; i < last; ++i) {
      prefetch(gate(i, t, 0), 3 * f_.hidden);
      prefetch(f_.h + (at(i, t) - 1) * f_.hidden, f_.hidden);
      if (p_.d_h != nullptr) prefetch(p_.d_h + at(i, t) * f_.hidden, f_.hidden);
      if constexpr (kInputs) {
        const int64_t row = i * f_.steps + t;
        prefetch(x_row(i, t), f_.x.stride_channel == 1 ? f_.x.channels : 1);
        prefetch(own_.g + row * f_.hidden, f_.hidden);
        if (own_.d_g != nullptr) prefetch_to_write(own_.d_g + row * f_.hidden, f_.hidden);
        if (p_.d_x != nullptr) prefetch_to_write(p_.d_x + at(i, t) * f_.x.channels, f_.x.channels);
      }
    }
  }

  // The rows of this step: 1, x and g are copied, h and r * h follow. A store may run over into the next
  // part, which is written after it. Rows past the count repeat the first node, until the next step writes
  // over them.
  void set_rows(int64_t t, int64_t step) {
    row_ = rows_ + step * count_ * row_length_;
    for (int gate = 0; gate < 3; ++gate)
      dz_row_[gate] = dz_ + step * count_ * len_.gates + gate * len_.padded;
    if constexpr (!kInputs) return;
    for (int i = 0; i < kTileRows; ++i) {
      C* to = row_ + i * row_length_;
      *to++ = C(1);
      const SequenceView<S>& x = f_.x;
      const S* from = x_row(i, t);
      if (x.stride_channel == 1) {
        copy(to, from, x.channels);
      } else {
        for (int64_t k = 0; k < x.channels; ++k) to[k] = to_compute(from[k * x.stride_channel]);
      }
      copy(to + x.channels, own_.g + (at(i, t) - first_ * f_.steps) * f_.hidden, f_.hidden);
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
      if (p_.d_h != nullptr) dh += load_channels(p_.d_h + at(i, t) * f_.hidden, v);
      store(dz_row_[0] + i * len_.gates + v * kL, dh * (h - c) * (u * (one - u)));
      store(dz_row_[2] + i * len_.gates + v * kL, dh * (one - u) * (one - c * c));
      store(carry, dh * u);
      store(row_ + i * row_length_ + inputs_ + v * kL, h);
    }
  }

  // c reads r h: cotangents of z_r and, through r, of h. kVectors vectors from the v-th on.
  template <int kVectors>
  HIERMT_INLINE void differentiate_reset(int64_t v, int64_t t) {
    const V one = broadcast(C(1));
    for (int first = 0; first < kTileRows; first += kNodes<kVectors>) {
      V drh[kVectors][kNodes<kVectors>] = {};
      add_product<kVectors>(drh, dz_row_[2] + first * len_.gates, len_.gates, f_.hidden,
                            packed_.state_c + v * f_.hidden * kL);
      for (int k = 0; k < kVectors; ++k) {
        for (int n = 0; n < kNodes<kVectors>; ++n) {
          const int i = first + n;
          const int64_t lane = (v + k) * kL;
          const V r = load_channels(gate(i, t, 1), v + k);
          const V h = load(row_ + i * row_length_ + inputs_ + lane);
          C* carry = dh_ + i * len_.padded + lane;
          store(dz_row_[1] + i * len_.gates + lane, drh[k][n] * h * (r * (one - r)));
          store(carry, fma(drh[k][n], r, load(carry)));
          store(row_ + i * row_length_ + inputs_ + f_.hidden + lane, r * h);
        }
      }
    }
  }

  // h through z_u and z_r.
  template <int kVectors>
  HIERMT_INLINE void add_state(int64_t v) {
    const C* weights = packed_.state_ur + v * 2 * f_.hidden * kL;
    for (int first = 0; first < kTileRows; first += kNodes<kVectors>) {
      V dh[kVectors][kNodes<kVectors>] = {};
      for (int gate = 0; gate < 2; ++gate) {
        add_product<kVectors>(dh, dz_row_[gate] + first * len_.gates, len_.gates, f_.hidden,
                              weights + gate * f_.hidden * kVectors * kL);
      }
      // The larger terms come last: they would be rounded again with every product.
      for (int k = 0; k < kVectors; ++k) {
        for (int i = 0; i < kNodes<kVectors>; ++i) {
          C* carry = dh_ + (first + i) * len_.padded + (v + k) * kL;
          store(carry, load(carry) + dh[k][i]);
        }
      }
    }
  }

  // Other windows add to the same days, in the order in which they are run.
  HIERMT_INLINE void add_cotangents(int64_t t, int64_t step) const {
    for (int i = 0; i < count_; ++i) {
      const C* from = dz_ + (step * count_ + i) * len_.gates;
      C* to = own_.dz + i * own_.dz_stride_node + t * 3 * len_.padded;
      for (int64_t j = 0; j < 3 * len_.padded; j += kL) store(to + j, load(to + j) + load(from + j));
    }
  }

  // g and x through all three gates, in the steps [begin, end): kVectors output vectors from the v-th on, of
  // some nodes at a time, so that wide weights serve many rows before they leave the cache.
  template <int kVectors>
  HIERMT_INLINE void write_inputs(int64_t v, int64_t begin, int64_t end) {
    const C* weights = packed_.input + v * 3 * f_.hidden * kL;
    for (int64_t t = begin; t < end; ++t) {
      for (int first = 0; first < count_; first += kBlockRows) {
        const C* dz = dz_ + ((end - 1 - t) * count_ + first) * len_.gates;
        V dx[kVectors][kBlockRows] = {};
        for (int gate = 0; gate < 3; ++gate) {
          add_product<kVectors>(dx, dz + gate * len_.padded, len_.gates, f_.hidden,
                                weights + gate * f_.hidden * kVectors * kL);
        }
        for (int i = 0; i < kBlockRows && first + i < count_; ++i) {
          for (int k = 0; k < kVectors; ++k) write_input(first + i, t, v + k, dx[k][i]);
        }
      }
    }
  }

  HIERMT_INLINE void write_input(int i, int64_t t, int64_t v, V value) const {
    if (v < len_.vectors) {
      if (own_.d_g != nullptr) {
        store_lanes(own_.d_g + (i * f_.steps + t) * f_.hidden, f_.hidden, v, value);
      }
      return;
    }
    S* row = p_.d_x + at(i, t) * f_.x.channels;
    v -= len_.vectors;
    if (p_.accumulate_grad_x) value += load_lanes(row, f_.x.channels, v);
    store_lanes(row, f_.x.channels, v, value);
  }

  void add_parameters(C* sums, int64_t rows) const {
    const int64_t stride = 3 * len_.padded;
    const C* state = rows_ + inputs_;
    C* state_sums = sums + len_.inputs * stride;
    for (int64_t v = 0; v < len_.vectors; ++v) {
      const C* dz = dz_ + v * kL;
      if constexpr (kInputs) {
        add_outer_product<3>(sums + v * kL, stride, rows_, row_length_, inputs_, dz, len_.gates, len_.padded,
                             rows);
      }
      add_outer_product<2>(state_sums + v * kL, stride, state, row_length_, f_.hidden, dz, len_.gates,
                           len_.padded, rows);
    }
    in_pairs(len_.vectors, [&](auto together, int64_t v) {
      const int64_t lane = 2 * len_.padded + v * kL;
      add_outer_product<together()>(state_sums + lane, stride, state + f_.hidden, row_length_, f_.hidden,
                                    dz_ + lane, len_.gates, int64_t{kL}, rows);
    });
  }

  void finish() const {
    for (int i = 0; i < count_; ++i) {
      for (int64_t v = 0; v < len_.vectors; ++v) {
        store_lanes(p_.d_h0 + node(i) * f_.hidden, f_.hidden, v, load(dh_ + i * len_.padded + v * kL));
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
  const ScanLengths<C> len_;
  const int64_t inputs_;  // of a row
  const int64_t row_length_;
  const int64_t chunks_;
  int64_t first_ = 0;
  int count_ = 0;
  ScanRows<S, C> own_{};
  C* rows_;           // [chunk_steps * kTileRows, row]        (1, x, g,) h, r * h
  C* dz_;             // [chunk_steps * kTileRows, gates]      cotangents of z_u, z_r, z_c
  C* dh_;             // [kTileRows, V L]                      cotangent of the state
  C* row_ = nullptr;  // of this step and the tile's first node
  C* dz_row_[3] = {};
};

// Groups of work with sums of parameter gradients of their own, of so many elements each. They follow from
// the problem alone.
HIERMT_INLINE int64_t sum_groups(int64_t tasks, int64_t sums) {
  constexpr int64_t kMostGroups = 64, kFewestGroups = 8, kMostSums = int64_t{1} << 20;
  int64_t groups = kMostGroups;
  while (groups > kFewestGroups && groups * sums > kMostSums) groups /= 2;
  return tasks < groups ? tasks : groups;
}

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt
