// The gated scan, backward, on one tile of nodes, from the saved u, r, c and h. With h the previous state:
//
//   d_z_u = d_h_t (h - c) u (1 - u)        d_z_c = d_h_t (1 - u) (1 - c^2)
//   d_rh  = W_c^T d_z_c                    d_z_r = d_rh h r (1 - r)
//   d_h   = d_h_t u + d_rh r + W_u^T d_z_u + W_r^T d_z_r
//
// Where a node is not there, every gradient of the step is zero and d_h passes through, whatever the weights and
// states are: zero times what is not finite is not zero.
//
// The tile runs backward through time. The rows of a chunk of steps are kept and then multiplied together for
// the gradients of the parameters.
#pragma once

#include "cpu/scan/gated_scan_backward_sizes.h"

namespace hiermt::cpu::HIERMT_ISA {

// Input and outputs of one tile beside those of the scan.
template <class S, class C>
struct TileArguments {
  const S* g;  // [count, T, H], or nullptr without
  S* d_g;      // [count, T, H] or nullptr
  C* sums;     // [gate_sums_size] added to, or nullptr
  C* d_z;      // [count, T, 3, vectors L] at d_z_stride_node, added to; without kInputs only
  int64_t d_z_stride_node;
  const bool* present;  // of the first node and step, nodes `stride_present` apart; nullptr: all are there
  int64_t stride_present;
};

// Nodes whose rows are prefetched at the end of the tile before.
struct NextTile {
  int64_t first, count;
};

// kInputs: the tile computes d_x, d_g and the gradients of the bias and of the columns of x and g. Otherwise
// it adds d_z, the cotangents of the input projection, to arguments.d_z instead.
template <class S, bool kInputs>
class BackwardTile {
 public:
  using C = Compute<S>;
  using V = Vec<C>;
  static constexpr int L = kLanes<C>;

  BackwardTile(const GatedScanBackward<S, C>& p, const PackedGatesTransposed<C>& packed, ScratchFrame& frame)
      : p_(p),
        f_(p.forward),
        packed_(packed),
        len_(p.forward.x.channels + p.forward.g_channels, p.forward.hidden),
        inputs_(kInputs ? len_.inputs : 0),
        row_length_(len_.row(inputs_ + 2 * p.forward.hidden)),
        chunks_((f_.steps + len_.chunk_steps - 1) / len_.chunk_steps) {
    const int64_t rows = len_.chunk_steps * kTileRows;
    rows_ = frame.take<C>(rows * row_length_);
    d_z_ = frame.take<C>((rows + kPairRows) * len_.gates);  // with room for the last block to run over
    d_h_ = frame.take<C>(kTileRows * len_.padded);
    held_ = frame.take<C>(f_.present == nullptr ? 0 : kTileRows * len_.padded);
  }

  // The nodes [first, first + count), count <= kTileRows; `next` are those of the next call, if any.
  void run(int64_t first, int count, const NextTile& next, const TileArguments<S, C>& arguments) {
    first_ = first;
    count_ = count;
    arguments_ = arguments;
    start();
    if constexpr (kInputs) {
      for (int i = 0; i < kTileRows; ++i) x_base_[i] = x_of(node(i));
      for (int64_t i = 0; i < next.count; ++i) x_ahead_[i] = x_of(next.first + i);
    }
    for (int64_t chunk = chunks_ - 1; chunk >= 0; --chunk) {
      const int64_t begin = chunk * f_.steps / chunks_, end = (chunk + 1) * f_.steps / chunks_;
      for (int64_t t = end - 1; t >= begin; --t) {
        set_rows(t, end - 1 - t);
        if (arguments_.present != nullptr) keep_cotangents(t);
        for (int64_t v = 0; v < len_.vectors; ++v) update_backward(v, t);
        in_pairs(len_.vectors, [&](auto together, int64_t v) { reset_backward<together()>(v, t); });
        in_pairs(len_.vectors, [&](auto together, int64_t v) {
          prefetch_ahead(t - kPrefetchSteps, next, v, v + together());
          state_backward<together()>(v);
        });
        if (arguments_.present != nullptr) hold_cotangents(t);
      }
      if constexpr (kInputs) {
        in_pairs(packed_.outputs,
                 [&](auto together, int64_t v) { inputs_backward<together()>(v, begin, end); });
        if (arguments_.present != nullptr) clear_inputs(begin, end);
      } else {
        for (int64_t t = begin; t < end; ++t) add_cotangents(t, end - 1 - t);
      }
      if (arguments_.sums != nullptr) add_parameters(arguments_.sums, (end - begin) * count_);
    }
    if (p_.d_h0 != nullptr) finish();
  }

 private:
  // Nodes whose products with kVectors vectors fit into the registers.
  template <int kVectors>
  static constexpr int kNodes = kVectors == 1 ? kTileRows : kBlockRows;

  HIERMT_INLINE int64_t node(int i) const { return first_ + (i < count_ ? i : 0); }
  HIERMT_INLINE int64_t at(int i, int64_t t) const { return node(i) * f_.steps + t; }
  HIERMT_INLINE bool absent(int i, int64_t t) const {
    const bool* const present = arguments_.present;
    return present != nullptr && !present[(i < count_ ? i : 0) * arguments_.stride_present + t];
  }

  void start() {
    for (int i = 0; i < kTileRows; ++i) {
      for (int64_t v = 0; v < len_.vectors; ++v) {
        const V d_h = p_.d_h_last == nullptr ? V{} : load_channels(p_.d_h_last + node(i) * f_.hidden, v);
        store(d_h_ + i * len_.padded + v * L, d_h);
      }
    }
  }

  // Prefetches the rows of step t that fall to the vectors [v, end): those of all nodes at once would stall on
  // memory. Steps before the first are the last ones of the next tile.
  HIERMT_INLINE void prefetch_ahead(int64_t t, const NextTile& next, int64_t v, int64_t end) const {
    if (t >= 0) {
      prefetch_rows(first_, count_, x_base_, t, v, end);
    } else if (t + f_.steps >= 0) {
      prefetch_rows(next.first, next.count, x_ahead_, t + f_.steps, v, end);
    }
  }

  // Inlined, as GCC drops the call of a function with no effect but prefetches.
  HIERMT_INLINE void prefetch_rows(int64_t first, int64_t count, const S* const* x, int64_t t, int64_t v,
                                   int64_t end) const {
    const int64_t last = end * count / len_.vectors;
    for (int64_t i = v * count / len_.vectors; i < last; ++i) {
      const int64_t at = (first + i) * f_.steps + t;
      prefetch(f_.gates + at * 3 * f_.hidden, 3 * f_.hidden);
      if (t > 0) prefetch(f_.h + (at - 1) * f_.hidden, f_.hidden);
      if (p_.d_h != nullptr) prefetch(p_.d_h + at * f_.hidden, f_.hidden);
      if constexpr (kInputs) {
        const int64_t row = at - first_ * f_.steps;
        prefetch(x[i] + t * f_.x.stride_time, f_.x.stride_channel == 1 ? f_.x.channels : 1);
        prefetch(arguments_.g + row * f_.g_channels, f_.g_channels);
        if (arguments_.d_g != nullptr) prefetch_to_write(arguments_.d_g + row * f_.hidden, f_.hidden);
        if (p_.d_x != nullptr) prefetch_to_write(p_.d_x + at * f_.x.channels, f_.x.channels);
      }
    }
  }

  // Finds the rows of a step and copies 1, x and g; h and r h are written later, over what a copy ran over.
  // Rows past the count repeat the first node until the next step overwrites them.
  void set_rows(int64_t t, int64_t step) {
    row_ = rows_ + step * count_ * row_length_;
    for (int gate = 0; gate < 3; ++gate)
      d_z_row_[gate] = d_z_ + step * count_ * len_.gates + gate * len_.padded;
    if constexpr (!kInputs) return;
    const int64_t channels = f_.x.channels, stride_channel = f_.x.stride_channel, g_channels = f_.g_channels;
    const int64_t x_step = t * f_.x.stride_time, g_row = f_.steps * g_channels, row_length = row_length_;
    const S* const g = arguments_.g + t * g_channels;
    const int64_t count = count_;
    C* const to = row_;
    for (int i = 0; i < kTileRows; ++i) {
      if (absent(i, t)) {
        no_inputs(to + i * row_length, channels, g_channels);
      } else {
        copy_inputs(to + i * row_length, x_base_[i] + x_step, stride_channel, channels,
                    g + (i < count ? i : 0) * g_row, g_channels);
      }
    }
  }

  // d_z_u, d_z_c and the term d_h_t u of d_h. What the loops over the rows need stands in locals: a store of a
  // vector may alias any member.
  HIERMT_INLINE void update_backward(int64_t v, int64_t t) {
    const V one = broadcast(C(1));
    const int64_t hidden = f_.hidden, steps = f_.steps, padded = len_.padded, gates = len_.gates;
    const int64_t row_length = row_length_, count = count_, first = first_ * steps + t;
    const S* const u_c = f_.gates + first * 3 * hidden;
    const S* const d_out = p_.d_h == nullptr ? nullptr : p_.d_h + first * hidden;
    const S* before = f_.h0 == nullptr ? nullptr : f_.h0 + first_ * hidden;
    int64_t before_row = hidden;
    if (t > 0) {
      before = f_.h + (first - 1) * hidden;
      before_row = steps * hidden;
    }
    C* const carry = d_h_ + v * L;
    C* const d_z_u = d_z_row_[0] + v * L;
    C* const d_z_c = d_z_row_[2] + v * L;
    C* const h_row = row_ + inputs_ + v * L;
    for (int i = 0; i < kTileRows; ++i) {
      const int64_t node = i < count ? i : 0, row = node * steps * hidden;
      const V u = load_lanes(u_c + 3 * row, hidden, v);
      const V c = load_lanes(u_c + 3 * row + 2 * hidden, hidden, v);
      const V h = before == nullptr ? V{} : load_lanes(before + node * before_row, hidden, v);
      V d_h = load(carry + i * padded);
      if (d_out != nullptr) d_h += load_lanes(d_out + row, hidden, v);
      store(d_z_u + i * gates, d_h * (h - c) * (u * (one - u)));
      store(d_z_c + i * gates, d_h * (one - u) * (one - c * c));
      store(carry + i * padded, d_h * u);
      store(h_row + i * row_length, h);
    }
  }

  // d_z_r and the term d_rh r of d_h, for the vectors [v, v + kVectors).
  template <int kVectors>
  HIERMT_INLINE void reset_backward(int64_t v, int64_t t) {
    const V one = broadcast(C(1));
    const int64_t hidden = f_.hidden, padded = len_.padded, gates = len_.gates, row_length = row_length_;
    const int64_t gates_row = f_.steps * 3 * hidden, count = count_;
    const S* const r_row = gate(0, t, 1);
    const C* const d_z_c = d_z_row_[2];
    const C* const weights = packed_.state_c + v * hidden * L;
    for (int first = 0; first < kTileRows; first += kNodes<kVectors>) {
      V d_rh[kVectors][kNodes<kVectors>] = {};
      add_product<kVectors>(d_rh, d_z_c + first * gates, gates, hidden, weights);
      for (int k = 0; k < kVectors; ++k) {
        const int64_t lane = (v + k) * L;
        C* const carry = d_h_ + lane;
        C* const d_z_r = d_z_row_[1] + lane;
        C* const h_row = row_ + inputs_ + lane;
        for (int n = 0; n < kNodes<kVectors>; ++n) {
          const int64_t i = first + n;
          const V r = load_lanes(r_row + (i < count ? i : 0) * gates_row, hidden, v + k);
          const V h = load(h_row + i * row_length);
          store(d_z_r + i * gates, d_rh[k][n] * h * (r * (one - r)));
          store(carry + i * padded, fma(d_rh[k][n], r, load(carry + i * padded)));
          store(h_row + hidden + i * row_length, r * h);
        }
      }
    }
  }

  // The terms of d_h through z_u and z_r.
  template <int kVectors>
  HIERMT_INLINE void state_backward(int64_t v) {
    const int64_t hidden = f_.hidden, padded = len_.padded, gates = len_.gates;
    const C* const weights = packed_.state_ur + v * 2 * hidden * L;
    const C* const d_z = d_z_row_[0];
    C* const carry = d_h_ + v * L;
    const int together = padded == hidden ? 2 : 1;
    for (int first = 0; first < kTileRows; first += kNodes<kVectors>) {
      V d_h[kVectors][kNodes<kVectors>] = {};
      for (int gate = 0; gate < 2; gate += together) {
        add_product<kVectors>(d_h, d_z + gate * padded + first * gates, gates, together * hidden,
                              weights + gate * hidden * kVectors * L);
      }
      // The products are summed first: added to the larger terms, each would round at their magnitude.
      for (int k = 0; k < kVectors; ++k) {
        for (int i = 0; i < kNodes<kVectors>; ++i) {
          C* const to = carry + (first + i) * padded + k * L;
          store(to, load(to) + d_h[k][i]);
        }
      }
    }
  }

  // held = d_h_t of the nodes that are not there at step t.
  void keep_cotangents(int64_t t) {
    for (int i = 0; i < count_; ++i) {
      if (!absent(i, t)) continue;
      for (int64_t v = 0; v < len_.vectors; ++v) {
        V d_h = load(d_h_ + i * len_.padded + v * L);
        if (p_.d_h != nullptr) d_h += load_channels(p_.d_h + at(i, t) * f_.hidden, v);
        store(held_ + i * len_.padded + v * L, d_h);
      }
    }
  }

  // Takes back what the step t did to them.
  void hold_cotangents(int64_t t) {
    for (int i = 0; i < count_; ++i) {
      if (!absent(i, t)) continue;
      C* const h_row = row_ + i * row_length_ + inputs_;
      for (int64_t c = 0; c < 2 * f_.hidden; ++c) h_row[c] = C(0);
      for (int64_t v = 0; v < len_.vectors; ++v) {
        store(d_h_ + i * len_.padded + v * L, load(held_ + i * len_.padded + v * L));
        for (C* const gate : d_z_row_) store(gate + i * len_.gates + v * L, V{});
      }
    }
  }

  // d_g and d_x of the steps [begin, end) of the nodes that are not there.
  void clear_inputs(int64_t begin, int64_t end) const {
    for (int i = 0; i < count_; ++i) {
      for (int64_t t = begin; t < end; ++t) {
        if (!absent(i, t)) continue;
        for (int64_t v = 0; v < packed_.outputs; ++v) {
          const InputTarget to = target_of(v);
          if (to.data == nullptr) continue;
          store_lanes(to.data + (i * f_.steps + t) * to.channels, to.channels, to.vector, V{});
        }
      }
    }
  }

  // Windows that share a day add to it in the order in which they run.
  HIERMT_INLINE void add_cotangents(int64_t t, int64_t step) const {
    for (int i = 0; i < count_; ++i) {
      const C* from = d_z_ + (step * count_ + i) * len_.gates;
      C* to = arguments_.d_z + i * arguments_.d_z_stride_node + t * 3 * len_.padded;
      for (int64_t j = 0; j < 3 * len_.padded; j += L) store(to + j, load(to + j) + load(from + j));
    }
  }

  // d_g and d_x of the steps [begin, end): the vectors [v, v + kVectors) of all rows, so that their weights
  // are used many times before they leave the cache.
  template <int kVectors>
  HIERMT_INLINE void inputs_backward(int64_t v, int64_t begin, int64_t end) {
    InputTarget to[kVectors];
    for (int k = 0; k < kVectors; ++k) to[k] = target_of(v + k);
    int i = 0;
    int64_t t = end - 1;
    for (int64_t first = 0; t >= begin; first += kPairRows) {
      V d_input[kVectors][kPairRows] = {};
      input_cotangents(packed_, v, d_z_ + first * len_.gates, len_.gates, f_.hidden, d_input);
#pragma GCC unroll 12
      for (int row = 0; row < kPairRows; ++row) {
        if (t < begin) break;
        const int64_t at = i * f_.steps + t;
#pragma GCC unroll 2
        for (int k = 0; k < kVectors; ++k) {
          if (to[k].data != nullptr) {
            store_lanes(to[k].data + at * to[k].channels, to[k].channels, to[k].vector, d_input[k][row]);
          }
        }
        if (++i == count_) {
          i = 0;
          --t;
        }
      }
    }
  }

  // d_g or d_x of the tile, and which vector of its rows.
  struct InputTarget {
    S* data;
    int64_t channels, vector;
  };
  HIERMT_INLINE InputTarget target_of(int64_t v) const {
    if (v < packed_.g_vectors) return {arguments_.d_g, f_.hidden, v};
    const int64_t channels = f_.x.channels;
    return {p_.d_x + first_ * f_.steps * channels, channels, v - packed_.g_vectors};
  }

  void add_parameters(C* sums, int64_t rows) const {
    const int64_t stride = 3 * len_.padded;
    const C* state = rows_ + inputs_;
    C* state_sums = sums + len_.inputs * stride;
    for (int64_t v = 0; v < len_.vectors; ++v) {
      const C* d_z = d_z_ + v * L;
      if constexpr (kInputs) {
        add_outer_product<3>(sums + v * L, stride, rows_, row_length_, inputs_, d_z, len_.gates, len_.padded,
                             rows);
      }
      add_outer_product<2>(state_sums + v * L, stride, state, row_length_, f_.hidden, d_z, len_.gates,
                           len_.padded, rows);
    }
    in_pairs(len_.vectors, [&](auto together, int64_t v) {
      const int64_t lane = 2 * len_.padded + v * L;
      add_outer_product<together()>(state_sums + lane, stride, state + f_.hidden, row_length_, f_.hidden,
                                    d_z_ + lane, len_.gates, int64_t{L}, rows);
    });
  }

  void finish() const {
    for (int i = 0; i < count_; ++i) {
      for (int64_t v = 0; v < len_.vectors; ++v) {
        store_lanes(p_.d_h0 + node(i) * f_.hidden, f_.hidden, v, load(d_h_ + i * len_.padded + v * L));
      }
    }
  }

  HIERMT_INLINE const S* x_of(int64_t node) const {
    const SequenceView<S>& x = f_.x;
    return x.data + node / f_.num_nodes * x.stride_copy + node % f_.num_nodes * x.stride_node;
  }
  HIERMT_INLINE const S* gate(int i, int64_t t, int gate) const {
    return f_.gates + (at(i, t) * 3 + gate) * f_.hidden;
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
  TileArguments<S, C> arguments_{};
  const S* x_base_[kTileRows];   // x of the first step; with kInputs
  const S* x_ahead_[kTileRows];  // the same of the next tile
  C* rows_;                      // [chunk_steps * kTileRows, row_length]   (1, x, g,) h, r h
  C* d_z_;                       // [chunk_steps * kTileRows, gates]        d_z_u, d_z_r, d_z_c
  C* d_h_;                       // [kTileRows, vectors L]
  C* held_;                      // the same, with a mask
  C* row_ = nullptr;             // of the current step and the first node
  C* d_z_row_[3] = {};
};

}  // namespace hiermt::cpu::HIERMT_ISA
