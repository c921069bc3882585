// The gated scan, forward. Lanes are hidden channels. A tile of nodes runs through all steps together, with
// the sums of the input and the state products of a step in registers. Where a node is not there, u = 1, r = 0
// and c = h are saved, so that every gradient of the step but that of h is zero, and h passes through.
#include "cpu/scan/gated_scan.h"

#include "cpu/simd/vmath.h"
#include "cpu/support/kernels.h"
#include "cpu/support/parallel.h"

namespace hiermt::cpu::HIERMT_ISA {

namespace {

// Tiles of one task: few enough to balance the load, many enough to amortise the call.
constexpr int64_t kTaskTiles = 4;
// Smaller problems are split into up to this many tasks of fewer tiles, for an even load.
constexpr int64_t kSmallTasks = 32;

template <class S>
class ForwardTile {
 public:
  using C = Compute<S>;
  using V = Vec<C>;
  static constexpr int L = kLanes<C>;
  static constexpr bool kInPlace = sizeof(S) == sizeof(C);

  ForwardTile(const GatedScanForward<S>& p, const PackedGates<C>& packed, ScratchFrame& frame)
      : p_(p), packed_(packed), padded_(packed.vectors * L) {
    h_ = frame.take<C>(kTileRows * padded_);
    rh_ = frame.take<C>(kTileRows * padded_);
    z_ = frame.take<C>(3 * kTileRows * padded_);
    x_ = frame.take<C>(kTileRows * (p.x.channels + L));
    g_ = frame.take<C>(kTileRows * (p.g_channels + L));
    held_ = frame.take<C>(p.present == nullptr ? 0 : kTileRows * padded_);
  }

  // Nodes [first, first + count), count <= kTileRows; z, if there is a projection, is that of the first. `next`
  // of the nodes after them run next.
  void run(int64_t first, int count, int64_t next, const InputProjection<S>* z) {
    start(first, count, z);
    for (int64_t i = 0; i < (projected_ ? 0 : next); ++i) x_ahead_[i] = x_of(first + count + i);
    for (int64_t t = 0; t < p_.steps; ++t) {
      if (!projected_) set_inputs(t);
      for (int64_t v = 0; v < packed_.vectors; ++v) {
        prefetch_ahead(t + kPrefetchSteps, next, v);
        for (int i = 0; i < kTileRows; i += kBlockRows) set_z(v, i, t);
      }
      for (int64_t v = 0; v < packed_.vectors; ++v) gate(v, t);
      if (p_.present != nullptr) keep_states();
      for (int64_t v = 0; v < packed_.vectors; ++v) update(v, t);
      if (p_.present != nullptr) hold_states(t);
    }
    if (p_.h_last != nullptr) finish();
  }

 private:
  void start(int64_t first, int count, const InputProjection<S>* z) {
    first_ = first;
    count_ = count;
    projected_ = z != nullptr;
    const SequenceView<S>& x = p_.x;
    for (int i = 0; i < kTileRows; ++i) {
      // Rows past the count repeat the first node; their results are not stored.
      const int64_t node = first + (i < count ? i : 0);
      if (p_.present != nullptr) {
        present_[i] =
            projected_ ? z->present + (node - first) * z->stride_present : p_.present + node * p_.steps;
      }
      if (projected_) {
        z_base_[i] = z->data + (node - first) * z->stride_node;
      } else {
        x_base_[i] = x_of(node);
        g_base_[i] = p_.g + node * p_.steps * p_.g_channels;
      }
      for (int64_t v = 0; v < packed_.vectors; ++v) {
        const V h0 = p_.h0 == nullptr ? V{} : load_channels(p_.h0 + node * p_.hidden, v);
        store(h_ + i * padded_ + v * L, h0);
      }
    }
    if (projected_) {
      z_stride_node_ = z->stride_node;
      z_stride_time_ = z->stride_time;
      return;
    }
    const bool equally_spaced = x.stride_copy == p_.num_nodes * x.stride_node ||
                                first / p_.num_nodes == (first + kTileRows - 1) / p_.num_nodes;
    g_in_place_ = kInPlace && count == kTileRows;
    x_in_place_ = g_in_place_ && equally_spaced && x.stride_channel == 1;
  }

  // Prefetches the rows of step t that fall to vector v: those of all nodes at once would stall on memory. Steps
  // past the last are the first ones of the next tile.
  HIERMT_INLINE void prefetch_ahead(int64_t t, int64_t next, int64_t v) const {
    if (t < p_.steps) {
      prefetch_rows(0, count_, x_base_, t, v);
    } else if (t - p_.steps < p_.steps) {
      prefetch_rows(count_, next, x_ahead_, t - p_.steps, v);
    }
  }

  // Of `count` nodes, `skipped` after the first. Inlined, as GCC drops the call of a function with no effect but
  // prefetches.
  HIERMT_INLINE void prefetch_rows(int64_t skipped, int64_t count, const S* const* x, int64_t t,
                                   int64_t v) const {
    const int64_t last = (v + 1) * count / packed_.vectors;
    for (int64_t i = v * count / packed_.vectors; i < last; ++i) {
      const int64_t row = (first_ + skipped + i) * p_.steps + t;
      if (projected_) {
        prefetch(z_base_[0] + (skipped + i) * z_stride_node_ + t * z_stride_time_, 3 * p_.hidden);
      } else {
        prefetch(x[i] + t * p_.x.stride_time, p_.x.stride_channel == 1 ? p_.x.channels : 1);
        prefetch(p_.g + row * p_.g_channels, p_.g_channels);
      }
      if (p_.gates != nullptr) prefetch_to_write(p_.gates + row * 3 * p_.hidden, 3 * p_.hidden);
      if (p_.h != nullptr) prefetch_to_write(p_.h + row * p_.hidden, p_.hidden);
    }
  }

  // Finds the rows of x and g of a step: in place, or copied if they are of another type, not equally spaced
  // or fewer than kTileRows.
  void set_inputs(int64_t t) {
    const SequenceView<S>& x = p_.x;
    if constexpr (kInPlace) {
      x_rows_ = x_base_[0] + t * x.stride_time;
      x_stride_ = x.stride_node;
      g_rows_ = g_base_[0] + t * p_.g_channels;
      g_stride_ = p_.steps * p_.g_channels;
    }
    if (!x_in_place_) {
      x_rows_ = x_;
      x_stride_ = x.channels + L;
      for (int i = 0; i < kTileRows; ++i) {
        copy_row(x_ + i * x_stride_, x_base_[i] + t * x.stride_time, x.stride_channel, x.channels);
      }
    }
    if (!g_in_place_) {
      g_rows_ = g_;
      g_stride_ = p_.g_channels + L;
      for (int i = 0; i < kTileRows; ++i) {
        copy_row(g_ + i * g_stride_, g_base_[i] + t * p_.g_channels, 1, p_.g_channels);
      }
    }
  }

  // z_u, z_r and the input projection of z_c, vector v of the rows [i, i + kBlockRows).
  HIERMT_INLINE void set_z(int64_t v, int i, int64_t t) {
    V z[3][kBlockRows];
    if (projected_) {
      for (int gate = 0; gate < 3; ++gate) {
        for (int row = 0; row < kBlockRows; ++row) {
          z[gate][row] = load_channels(z_base_[i + row] + t * z_stride_time_ + gate * p_.hidden, v);
        }
      }
    } else {
      input_projection(packed_, v, x_rows_ + i * x_stride_, x_stride_, p_.x.channels, g_rows_ + i * g_stride_,
                       g_stride_, p_.g_channels, z);
    }
    add_product<2>(z, h_ + i * padded_, padded_, p_.hidden, packed_.state_ur + v * p_.hidden * 2 * L);
    for (int gate = 0; gate < 3; ++gate) {
      for (int row = 0; row < kBlockRows; ++row) store(z_at(gate, v, i + row), z[gate][row]);
    }
  }

  // What the loops over the rows need stands in locals: a store of a vector may alias any member.
  HIERMT_INLINE void gate(int64_t v, int64_t t) {
    const int64_t hidden = p_.hidden, padded = padded_, row = 3 * hidden * p_.steps;
    S* const gates = p_.gates == nullptr ? nullptr : gates_at(0, t, 0);
    const int saved = gates == nullptr ? 0 : count_;
    C* const z_u = z_at(0, v, 0);
    C* const z_r = z_at(1, v, 0);
    const C* const h = h_ + v * L;
    C* const rh = rh_ + v * L;
    for (int i = 0; i < kTileRows; ++i) {
      const V u = sigmoid(load(z_u + i * L));
      const V r = sigmoid(load(z_r + i * L));
      store(z_u + i * L, u);
      store(rh + i * padded, r * load(h + i * padded));
      if (i < saved) {
        store_lanes(gates + i * row, hidden, v, u);
        store_lanes(gates + i * row + hidden, hidden, v, r);
      }
    }
  }

  HIERMT_INLINE void update(int64_t v, int64_t t) {
    const int64_t hidden = p_.hidden, padded = padded_, row = hidden * p_.steps;
    V z[1][kTileRows];
    C* const z_c = z_at(2, v, 0);
    for (int i = 0; i < kTileRows; ++i) z[0][i] = load(z_c + i * L);
    add_product<1>(z, rh_, padded, hidden, packed_.state_c + v * hidden * L);
    for (int i = 0; i < kTileRows; ++i) store(z_c + i * L, z[0][i]);
    S* const c_out = p_.gates == nullptr ? nullptr : gates_at(0, t, 2);
    S* const h_out = p_.h == nullptr ? nullptr : p_.h + (first_ * p_.steps + t) * hidden;
    const int saved_c = c_out == nullptr ? 0 : count_, saved_h = h_out == nullptr ? 0 : count_;
    const C* const z_u = z_at(0, v, 0);
    C* const state = h_ + v * L;
    for (int i = 0; i < kTileRows; ++i) {
      const V u = load(z_u + i * L);
      const V c = tanh(load(z_c + i * L));
      const V h = fma(u, load(state + i * padded) - c, c);  // u h + (1 - u) c
      store(state + i * padded, h);
      if (i < saved_c) store_lanes(c_out + i * 3 * row, hidden, v, c);
      if (i < saved_h) store_lanes(h_out + i * row, hidden, v, h);
    }
  }

  void keep_states() {
    for (int64_t i = 0; i < kTileRows * padded_; i += L) store(held_ + i, load(h_ + i));
  }

  // Takes back what the step t did to nodes that are not there.
  void hold_states(int64_t t) {
    for (int i = 0; i < kTileRows; ++i) {
      if (present_[i][t]) continue;
      for (int64_t v = 0; v < packed_.vectors; ++v) {
        const V h = load(held_ + i * padded_ + v * L);
        store(h_ + i * padded_ + v * L, h);
        if (i >= count_) continue;
        if (p_.h != nullptr) store_channels(p_.h + ((first_ + i) * p_.steps + t) * p_.hidden, v, h);
        if (p_.gates == nullptr) continue;
        store_channels(gates_at(i, t, 0), v, broadcast(C(1)));
        store_channels(gates_at(i, t, 1), v, zero<C>());
        store_channels(gates_at(i, t, 2), v, h);
      }
    }
  }

  void finish() {
    for (int i = 0; i < count_; ++i) {
      for (int64_t v = 0; v < packed_.vectors; ++v) {
        store_channels(p_.h_last + (first_ + i) * p_.hidden, v, load(h_ + i * padded_ + v * L));
      }
    }
  }

  HIERMT_INLINE const S* x_of(int64_t node) const {
    return p_.x.data + node / p_.num_nodes * p_.x.stride_copy + node % p_.num_nodes * p_.x.stride_node;
  }
  HIERMT_INLINE C* z_at(int gate, int64_t v, int i) const {
    return z_ + ((gate * packed_.vectors + v) * kTileRows + i) * L;
  }
  HIERMT_INLINE S* gates_at(int i, int64_t t, int gate) const {
    return p_.gates + (((first_ + i) * p_.steps + t) * 3 + gate) * p_.hidden;
  }
  HIERMT_INLINE V load_channels(const S* row, int64_t v) const { return load_lanes(row, p_.hidden, v); }
  HIERMT_INLINE void store_channels(S* row, int64_t v, V value) const {
    store_lanes(row, p_.hidden, v, value);
  }

  const GatedScanForward<S> p_;
  const PackedGates<C> packed_;
  const int64_t padded_;
  bool projected_ = false;
  bool x_in_place_ = false;
  bool g_in_place_ = false;
  int64_t first_ = 0;
  int count_ = 0;
  C* h_;     // [kTileRows, vectors L]
  C* rh_;    // [kTileRows, vectors L] r h
  C* z_;     // [3, vectors, kTileRows, L] z_u (then u), z_r, z_c
  C* x_;     // [kTileRows, F + L] copies, if needed
  C* g_;     // [kTileRows, H + L]
  C* held_;  // [kTileRows, vectors L] h before a step, with a mask
  const S* x_base_[kTileRows];
  const S* x_ahead_[kTileRows];  // of the next tile
  const S* g_base_[kTileRows];
  const S* z_base_[kTileRows];
  const bool* present_[kTileRows];
  const C* x_rows_ = nullptr;
  const C* g_rows_ = nullptr;
  int64_t z_stride_node_ = 0;
  int64_t z_stride_time_ = 0;
  int64_t x_stride_ = 0;
  int64_t g_stride_ = 0;
};

}  // namespace

template <class S>
void gated_scan_forward_range(const GatedScanForward<S>& p, const PackedGates<Compute<S>>& packed,
                              int64_t begin, int64_t end, const InputProjection<S>* z) {
  ScratchFrame frame;
  ForwardTile<S> tile(p, packed, frame);
  for (int64_t first = begin; first < end; first += kTileRows) {
    const int count = static_cast<int>(min(end - first, kTileRows));
    const int64_t next = min(end - first - count, kTileRows);
    if (z == nullptr) {
      tile.run(first, count, next, nullptr);
    } else {
      const S* const data = z->data + (first - begin) * z->stride_node;
      InputProjection<S> own = *z;
      own.data = data;
      if (own.present != nullptr) own.present += (first - begin) * own.stride_present;
      tile.run(first, count, next, &own);
    }
  }
}

template <class S>
void gated_scan_forward(const GatedScanForward<S>& p) {
  if (p.windows != nullptr) return gated_scan_windows_forward(p);
  const int64_t nodes = p.copies * p.num_nodes;
  if (nodes == 0 || p.hidden == 0) return;
  ScratchFrame frame;
  const PackedGates<Compute<S>> packed = pack_gates(p.weights, p.x.channels + p.g_channels, p.hidden, frame);
  const int64_t tiles = (nodes + kTileRows - 1) / kTileRows;
  const int64_t fewest = min(tiles, kSmallTasks);
  const int64_t tasks = tiles / kTaskTiles > fewest ? tiles / kTaskTiles : fewest;
  parallel_for(tasks, [&](int64_t task) {
    const Range range = split(tiles, tasks, task);
    const int64_t begin = range.begin * kTileRows, end = min(range.end * kTileRows, nodes);
    gated_scan_forward_range<S>(p, packed, begin, end, nullptr);
  });
}

HIERMT_INSTANTIATE(gated_scan_forward)

#define HIERMT_INSTANTIATE_RANGE(S)                                                                     \
  template void gated_scan_forward_range<S>(const GatedScanForward<S>&, const PackedGates<Compute<S>>&, \
                                            int64_t, int64_t, const InputProjection<S>*);
HIERMT_INSTANTIATE_RANGE(float)
HIERMT_INSTANTIATE_RANGE(double)
HIERMT_INSTANTIATE_RANGE(BFloat16)

}  // namespace hiermt::cpu::HIERMT_ISA
