// What the cotangents of the gates' projections say about a day: the gradients of x and g, and of what
// multiplies them.
#pragma once

#include "cpu/scan/gated_scan_backward_tile.h"

namespace hiermt {
namespace cpu {
namespace HIERMT_ISA {

// Days of one node that are taken together: their rows stay in the first-level cache.
constexpr int64_t kChunkDays = 64;

template <class S>
class DayGradients {
 public:
  using C = Compute<S>;
  using V = Vec<C>;
  static constexpr int kL = kLanes<C>;

  DayGradients(const GatedScanWindowsBackward<S, C>& p, const PackedGatesTransposed<C>& packed,
               ScratchFrame& frame)
      : p_(p),
        f_(p.forward),
        packed_(packed),
        len_(p.forward.x.channels, p.forward.hidden),
        row_length_(len_.row(len_.inputs)) {
    rows_ = frame.take<C>(kChunkDays * row_length_);
  }

  // Products are taken of whole blocks of rows: behind the last one so many elements are read and not used.
  static int64_t room(const ScanLengths<C>& len) { return kBlockRows * 3 * len.padded; }

  // Days [first, first + count) of a node; dz: [count, 3, V L] cotangents of z_u, z_r, z_c; adds to `sums`
  // unless nullptr.
  void run(int64_t node, int64_t first, int64_t count, const C* dz, C* sums) const {
    const int64_t stride = 3 * len_.padded;
    while (count > 0) {
      const int64_t rows = count < kChunkDays ? count : kChunkDays;
      for (int64_t v = 0; v + 1 < packed_.outputs; v += 2) write<2>(node, first, rows, dz, v);
      if (packed_.outputs % 2 != 0) write<1>(node, first, rows, dz, packed_.outputs - 1);
      if (sums != nullptr) {
        for (int64_t i = 0; i < rows; ++i) copy_row(node, first + i, rows_ + i * row_length_);
        for (int64_t v = 0; v < len_.vectors; ++v) {
          add_outer_product<3>(sums + v * kL, stride, rows_, row_length_, len_.inputs, dz + v * kL, stride,
                               len_.padded, rows);
        }
      }
      first += rows;
      count -= rows;
      dz += rows * stride;
    }
  }

  void clear(int64_t node, int64_t day) const {
    for (int64_t v = 0; v < packed_.outputs; ++v) write_input(node, day, v, V{});
  }

 private:
  // A store may run over into the next part, which is written after it.
  HIERMT_INLINE void copy_row(int64_t node, int64_t day, C* to) const {
    const SequenceView<S>& x = f_.x;
    *to++ = C(1);
    const S* from = x.data + node * x.stride_node + day * x.stride_time;
    if (x.stride_channel == 1) {
      copy(to, from, x.channels);
    } else {
      for (int64_t k = 0; k < x.channels; ++k) to[k] = to_compute(from[k * x.stride_channel]);
    }
    copy(to + x.channels, f_.g + (node * f_.days + day) * f_.hidden, f_.hidden);
  }

  HIERMT_INLINE void copy(C* to, const S* from, int64_t channels) const {
    for (int64_t v = 0; v * kL < channels; ++v) store(to + v * kL, load_lanes(from, channels, v));
  }

  // g and x through all three gates: kVectors output vectors from the v-th on, of kBlockRows days at a time.
  template <int kVectors>
  HIERMT_INLINE void write(int64_t node, int64_t day, int64_t count, const C* dz, int64_t v) const {
    const C* weights = packed_.input + v * 3 * f_.hidden * kL;
    const int64_t gate_stride = f_.hidden * kVectors * kL;
    for (int64_t first = 0; first < count; first += kBlockRows) {
      V dx[kVectors][kBlockRows];
      for (int k = 0; k < kVectors; ++k) {
        for (int i = 0; i < kBlockRows; ++i) dx[k][i] = V{};
      }
      for (int gate = 0; gate < 3; ++gate) {
        add_product<kVectors>(dx, dz + (first * 3 + gate) * len_.padded, 3 * len_.padded, f_.hidden,
                              weights + gate * gate_stride);
      }
      for (int i = 0; i < kBlockRows && first + i < count; ++i) {
        for (int k = 0; k < kVectors; ++k) write_input(node, day + first + i, v + k, dx[k][i]);
      }
    }
  }

  HIERMT_INLINE void write_input(int64_t node, int64_t day, int64_t v, V value) const {
    const int64_t row = node * f_.days + day;
    if (v >= len_.vectors) {
      store_lanes(p_.d_x + row * f_.x.channels, f_.x.channels, v - len_.vectors, value);
    } else if (p_.d_g != nullptr) {
      store_lanes(p_.d_g + row * f_.hidden, f_.hidden, v, value);
    }
  }

  const GatedScanWindowsBackward<S, C> p_;
  const GatedScanWindowsForward<S>& f_ = p_.forward;
  const PackedGatesTransposed<C> packed_;
  const ScanLengths<C> len_;
  const int64_t row_length_;
  C* rows_;  // [kChunkDays, row]   1, x, g
};

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt
