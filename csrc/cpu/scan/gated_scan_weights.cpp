// The parameters of the gates, packed in the order of the products of the scan, and their gradients, added up
// from the sums of the backward.
#include "cpu/scan/gated_scan.h"
#include "cpu/support/parallel.h"

namespace hiermt::cpu::HIERMT_ISA {

namespace {

// to[lane] = weight[j, column], lane j of vector v.
template <class S>
void pack_column(Compute<S>* to, const S* weight, int64_t row_stride, int64_t column, int64_t hidden,
                 int64_t v) {
  using C = Compute<S>;
  for (int l = 0; l < kLanes<C>; ++l) {
    const int64_t j = v * kLanes<C> + l;
    to[l] = j < hidden ? to_compute(weight[j * row_stride + column]) : C(0);
  }
}

// to[lane] = weight[j, first + k], lane k of vector v, for k < count.
template <class S>
void pack_row(Compute<S>* to, const S* weight, int64_t row_stride, int64_t j, int64_t first, int64_t count,
              int64_t v) {
  using C = Compute<S>;
  for (int l = 0; l < kLanes<C>; ++l) {
    const int64_t k = v * kLanes<C> + l;
    to[l] = k < count ? to_compute(weight[j * row_stride + first + k]) : C(0);
  }
}

}  // namespace

template <class S>
PackedGates<Compute<S>> pack_gates(const GateWeights<S>& weights, int64_t inputs, int64_t hidden,
                                   ScratchFrame& frame) {
  using C = Compute<S>;
  constexpr int L = kLanes<C>;
  const int64_t vectors = vectors_for<C>(hidden), stride = inputs + hidden;
  C* bias = frame.take<C>(vectors * 3 * L);
  C* input = frame.take<C>(vectors * inputs * 3 * L);
  C* state_ur = frame.take<C>(vectors * hidden * 2 * L);
  C* state_c = frame.take<C>(vectors * hidden * L);
  const S* weight[3] = {weights.u_weight, weights.r_weight, weights.c_weight};
  const S* gate_bias[3] = {weights.u_bias, weights.r_bias, weights.c_bias};
  for (int64_t v = 0; v < vectors; ++v) {
    for (int gate = 0; gate < 3; ++gate) {
      pack_column(bias + (v * 3 + gate) * L, gate_bias[gate], 1, 0, hidden, v);
      for (int64_t k = 0; k < inputs; ++k) {
        pack_column(input + ((v * inputs + k) * 3 + gate) * L, weight[gate], stride, k, hidden, v);
      }
      for (int64_t k = 0; k < hidden; ++k) {
        C* to = gate < 2 ? state_ur + ((v * hidden + k) * 2 + gate) * L : state_c + (v * hidden + k) * L;
        pack_column(to, weight[gate], stride, inputs + k, hidden, v);
      }
    }
  }
  return {vectors, bias, input, state_ur, state_c};
}

template <class S>
PackedGatesTransposed<Compute<S>> pack_gates_transposed(const GatedScanForward<S>& p, bool need_x,
                                                        ScratchFrame& frame) {
  using C = Compute<S>;
  constexpr int L = kLanes<C>;
  const GateWeights<S>& weights = p.weights;
  const int64_t channels = p.x.channels, hidden = p.hidden;
  const int64_t vectors = vectors_for<C>(hidden), g_vectors = vectors_for<C>(p.g_channels);
  const int64_t outputs = g_vectors + (need_x ? vectors_for<C>(channels) : 0);
  const int64_t inputs = channels + p.g_channels, stride = inputs + hidden;
  C* state_c = frame.take<C>(vectors * hidden * L);
  C* state_ur = frame.take<C>(vectors * 2 * hidden * L);
  C* input = frame.take<C>(outputs * 3 * hidden * L);
  const S* weight[3] = {weights.u_weight, weights.r_weight, weights.c_weight};
  // Where vector v of `count` is in row `row` of `rows`: a pair of vectors is interleaved.
  const auto place = [](C* packed, int64_t count, int64_t v, int64_t rows, int64_t row) {
    const int64_t pair = v - v % 2, together = pair + 1 < count ? 2 : 1;
    return packed + (pair * rows + row * together + v - pair) * L;
  };
  for (int64_t j = 0; j < hidden; ++j) {
    for (int64_t v = 0; v < vectors; ++v) {
      pack_row(place(state_c, vectors, v, hidden, j), weight[2], stride, j, inputs, hidden, v);
      for (int gate = 0; gate < 2; ++gate) {
        C* to = place(state_ur, vectors, v, 2 * hidden, gate * hidden + j);
        pack_row(to, weight[gate], stride, j, inputs, hidden, v);
      }
    }
    for (int64_t v = 0; v < outputs; ++v) {
      for (int gate = 0; gate < 3; ++gate) {
        C* to = place(input, outputs, v, 3 * hidden, gate * hidden + j);
        if (v < g_vectors) {
          pack_row(to, weight[gate], stride, j, channels, p.g_channels, v);
        } else {
          pack_row(to, weight[gate], stride, j, 0, channels, v - g_vectors);
        }
      }
    }
  }
  return {vectors, g_vectors, outputs, state_c, state_ur, input};
}

template <class C>
int64_t gate_sums_size(int64_t inputs, int64_t hidden) {
  return (1 + inputs + hidden) * 3 * vectors_for<C>(hidden) * kLanes<C>;
}

template <class C>
void finish_gate_grads(const C* sums, int64_t groups, int64_t inputs, int64_t hidden,
                       const GateGrads<C>& grads) {
  const int64_t columns = inputs + hidden, padded = vectors_for<C>(hidden) * kLanes<C>;
  const int64_t size = gate_sums_size<C>(inputs, hidden);
  C* weight[3] = {grads.u_weight, grads.r_weight, grads.c_weight};
  C* bias[3] = {grads.u_bias, grads.r_bias, grads.c_bias};
  parallel_for(columns + 1, [&](int64_t k) {
    ScratchFrame frame;
    C* total = frame.take<C>(3 * padded);
    for (int64_t j = 0; j < 3 * padded; j += kLanes<C>) {
      // Eight interleaved sums, then a tree: fewer roundings in a row than one long sum.
      Vec<C> sum[8] = {};
      for (int64_t group = 0; group < groups; ++group) {
        sum[group % 8] += load(sums + group * size + k * 3 * padded + j);
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
        (k == 0 ? to[j] : to[j * columns + k - 1]) = total[gate * padded + j];
      }
    }
  });
}

template int64_t gate_sums_size<float>(int64_t, int64_t);
template int64_t gate_sums_size<double>(int64_t, int64_t);
template void finish_gate_grads<float>(const float*, int64_t, int64_t, int64_t, const GateGrads<float>&);
template void finish_gate_grads<double>(const double*, int64_t, int64_t, int64_t, const GateGrads<double>&);

#define HIERMT_INSTANTIATE_PACKS(S)                                                                       \
  template PackedGates<Compute<S>> pack_gates<S>(const GateWeights<S>&, int64_t, int64_t, ScratchFrame&); \
  template PackedGatesTransposed<Compute<S>> pack_gates_transposed<S>(const GatedScanForward<S>&, bool,   \
                                                                      ScratchFrame&);
HIERMT_INSTANTIATE_PACKS(float)
HIERMT_INSTANTIATE_PACKS(double)
HIERMT_INSTANTIATE_PACKS(BFloat16)

}  // namespace hiermt::cpu::HIERMT_ISA
