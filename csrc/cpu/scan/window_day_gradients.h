// The backward of the input projection z = W [x, g] + b of a day: d_x, d_g and the gradients of W and b from
// d_z.
#pragma once

#include "cpu/scan/gated_scan_backward_tile.h"

namespace hiermt::cpu::HIERMT_ISA {

// Days of one node processed together: their rows stay in the first-level cache.
constexpr int64_t kChunkDays = 64;

template <class S>
class DayGradients {
 public:
  using C = Compute<S>;
  using V = Vec<C>;
  static constexpr int L = kLanes<C>;

  DayGradients(const GatedScanBackward<S, C>& p, const PackedGatesTransposed<C>& packed, ScratchFrame& frame)
      : p_(p),
        f_(p.forward),
        packed_(packed),
        len_(p.forward.x.channels + p.forward.g_channels, p.forward.hidden),
        row_length_(len_.row(len_.inputs)) {
    rows_ = frame.take<C>(kChunkDays * row_length_);
  }

  // Elements past the last row that are read and not used, as products run over whole blocks of rows.
  static int64_t room(const ScanLengths<C>& len) { return kBlockRows * 3 * len.padded; }

  // The days [first, first + count) of a node from their d_z [count, 3, vectors L]. Adds to `sums` unless
  // nullptr.
  void run(int64_t node, int64_t first, int64_t count, const C* d_z, C* sums) const {
    const int64_t stride = 3 * len_.padded;
    while (count > 0) {
      const int64_t rows = min(count, kChunkDays);
      in_pairs(packed_.outputs,
               [&](auto together, int64_t v) { write<together()>(node, first, rows, d_z, v); });
      for (int64_t i = 0; i < rows; ++i) {
        // Of weights that are not finite, zero cotangents would make NaN.
        if (absent(node, first + i)) clear(node, first + i);
      }
      if (sums != nullptr) {
        for (int64_t i = 0; i < rows; ++i) copy_day(node, first + i, rows_ + i * row_length_);
        for (int64_t v = 0; v < len_.vectors; ++v) {
          add_outer_product<3>(sums + v * L, stride, rows_, row_length_, len_.inputs, d_z + v * L, stride,
                               len_.padded, rows);
        }
      }
      first += rows;
      count -= rows;
      d_z += rows * stride;
    }
  }

  void clear(int64_t node, int64_t day) const {
    for (int64_t v = 0; v < packed_.outputs; ++v) write_input(node, day, v, V{});
  }

 private:
  HIERMT_INLINE bool absent(int64_t node, int64_t day) const {
    return f_.present != nullptr && !f_.present[node * f_.steps + day];
  }

  HIERMT_INLINE void copy_day(int64_t node, int64_t day, C* to) const {
    if (absent(node, day)) {
      no_inputs(to, f_.x.channels, f_.g_channels);
      return;
    }
    const SequenceView<S>& x = f_.x;
    copy_inputs(to, x.data + node * x.stride_node + day * x.stride_time, x.stride_channel, x.channels,
                f_.g + (node * f_.steps + day) * f_.g_channels, f_.g_channels);
  }

  // d_g and d_x: the vectors [v, v + kVectors).
  template <int kVectors>
  HIERMT_INLINE void write(int64_t node, int64_t day, int64_t count, const C* d_z, int64_t v) const {
    for (int64_t first = 0; first < count; first += kBlockRows) {
      V d_input[kVectors][kBlockRows] = {};
      input_cotangents(packed_, v, d_z + first * 3 * len_.padded, 3 * len_.padded, f_.hidden, d_input);
      for (int i = 0; i < kBlockRows && first + i < count; ++i) {
        for (int k = 0; k < kVectors; ++k) write_input(node, day + first + i, v + k, d_input[k][i]);
      }
    }
  }

  HIERMT_INLINE void write_input(int64_t node, int64_t day, int64_t v, V value) const {
    const int64_t row = node * f_.steps + day;
    if (v >= packed_.g_vectors) {
      store_lanes(p_.d_x + row * f_.x.channels, f_.x.channels, v - packed_.g_vectors, value);
    } else if (p_.d_g != nullptr) {
      store_lanes(p_.d_g + row * f_.hidden, f_.hidden, v, value);
    }
  }

  const GatedScanBackward<S, C> p_;
  const GatedScanForward<S>& f_ = p_.forward;
  const PackedGatesTransposed<C> packed_;
  const ScanLengths<C> len_;
  const int64_t row_length_;
  C* rows_;  // [kChunkDays, row]   1, x, g
};

}  // namespace hiermt::cpu::HIERMT_ISA
