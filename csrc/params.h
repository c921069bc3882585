// The pointer contract that the CPU and the CUDA kernels share: plain structs, passed by value,
// no torch type in sight.
//
// Letters:  B copies of one template graph, S nodes in the template, N = B * S nodes in all
//           (node n = copy * S + node), T time steps, F input channels, H hidden channels,
//           E entries of the CSR after the convolution's self-loop rule, K closed node blocks.
//
// Rules for every pointer: it outlives the call; outputs are written completely and never alias an
// input; nullptr means "not given" for an optional input and "not wanted" for an optional output.
// Dense tensors are contiguous, last index fastest, unless a stride is named. Strides count elements.
//
// `S` (Storage) is the element type in memory: float, double, bfloat16 or half. Arithmetic runs in
// Compute<S>: double for double, float for everything else. Gradients of parameters are Compute<S>.
#pragma once

#include <cstdint>

namespace hiermt {

// kLeakySigmoid, leaky_relu and then sigmoid, ends the stack of a layer whose activation comes after each
// convolution.
enum class Activation : int { kNone = 0, kLeakyRelu = 1, kSigmoid = 2, kLeakySigmoid = 3 };

// Slope of the activation between (or after) the convolutions, and of the one inside a GATv2 score.
constexpr double kActivationSlope = 0.01;
constexpr double kAttentionSlope = 0.2;
// What PyG adds to a softmax denominator.
constexpr double kSoftmaxEpsilon = 1e-16;

// A template graph with its edges sorted by target, and the same edges sorted by source.
// Entry e of row i is the edge col[e] -> i. Entry p of transposed row j is the edge j -> row[p],
// which stands at position csr2csc[p] of the forward CSR.
// blocks cuts [0, S) into ranges that no edge leaves; order lists the nodes by decreasing degree.
struct CsrGraph {
  int64_t num_nodes;       // S
  int64_t num_entries;     // E
  int64_t copies;          // B
  int64_t num_blocks;      // K
  const int32_t* rowptr;   // [S + 1]
  const int32_t* col;      // [E]
  const int32_t* colptr;   // [S + 1]
  const int32_t* row;      // [E]
  const int32_t* csr2csc;  // [E]
  const int32_t* blocks;   // [K + 1], of CPU kernels alone
  const int32_t* order;    // [S], of CUDA kernels alone; may be nullptr
};

// Which self loops a convolution adds, removes or keeps.
enum class LoopRule : int { kGatV2 = 0, kGcn = 1 };

// Edges to be sorted by target and by source under a self-loop rule. E = E0 + S entries; those past
// rowptr[S], one per dropped loop, are padding.
template <class I>
struct GraphPrepare {
  int64_t num_nodes;  // S
  int64_t num_edges;  // E0
  const I* source;    // [E0]
  const I* target;    // [E0]
  LoopRule rule;
  int32_t* rowptr;   // [S + 1]
  int32_t* col;      // [E]
  int64_t* e_id;     // [E] edge of an entry, -1 for a loop that was added
  int32_t* colptr;   // [S + 1]
  int32_t* row;      // [E]
  int32_t* csr2csc;  // [E]
  int32_t* blocks;   // [S + 1], of which the first K + 1 are used; not written by CUDA
};

// x[copy, node, t, c] = data[copy * stride_copy + node * stride_node + t * stride_time + c * stride_channel].
// Any strides: a transposed layout, an unfolded window and a slice are all read in place.
template <class S>
struct SequenceView {
  const S* data;
  int64_t channels;
  int64_t stride_copy;
  int64_t stride_node;
  int64_t stride_time;
  int64_t stride_channel;
};

// Parameters of one GATv2Conv(heads=1), PyG's layout: weight [out, in].
template <class S>
struct GatV2Weights {
  const S* lin_l_weight;     // [H, F]   source side, also the message
  const S* lin_l_bias;       // [H]
  const S* lin_r_weight;     // [H, F]   target side
  const S* lin_r_bias;       // [H]
  const S* att;              // [H]
  const S* lin_edge_weight;  // [H] or nullptr: no edge term
  const S* bias;             // [H]
};

template <class C>
struct GatV2Grads {  // same shapes, each may be nullptr
  C* lin_l_weight;
  C* lin_l_bias;
  C* lin_r_weight;
  C* lin_r_bias;
  C* att;
  C* lin_edge_weight;
  C* bias;
};

template <class S>
struct GcnWeights {
  const S* lin_weight;  // [H, F]
  const S* bias;        // [H]
};

template <class C>
struct GcnGrads {
  C* lin_weight;
  C* bias;
};

// A stack of graph convolutions over all time steps; leaky_relu follows each of them but the last. A node that
// is not there at a step is no source, its rows of the results are zero, and neither its x nor the weights of
// its edges are read. Of a GATv2 the weight of a loop, the last entry of its row, is then that of the step:
// edge_weight is not read there.
template <class S>
struct ConvStackForward {
  CsrGraph graph;
  SequenceView<S> x;     // F channels
  int64_t steps;         // T
  int64_t hidden;        // H
  const S* edge_weight;  // [E] weight (GATv2) or norm d_j^-1/2 w_ij d_i^-1/2 (GCN) in CSR order, or nullptr
  const bool*
      present;  // [N, T] which nodes are there, or nullptr: all; then a GCN's edge_weight is w_ij, too
  int64_t conv_layers;
  const GatV2Weights<S>* gat;  // [conv_layers], or nullptr: GCN
  const GcnWeights<S>* gcn;    // [conv_layers] without gat
  Activation last;             // after the last convolution
  S* out;                      // [N, T, H]; in a layer nullptr where only the scan reads it
  bool tf32 = false;           // CUDA may round the operands of dense float32 products to TF32
};

template <class S, class C>
struct ConvStackBackward {
  ConvStackForward<S> forward;  // out holds the saved output, read only
  const S* d_out;               // [N, T, H] cotangent of out
  S* d_x;                       // [N, T, F] contiguous, or nullptr
  bool accumulate_d_x;          // added to what is there
  const GatV2Grads<C>* gat;     // [conv_layers], or nullptr: no gradient of a parameter
  const GcnGrads<C>* gcn;       // the same without forward.gat
  C* d_edge_weight;             // [E] in CSR order, or nullptr
};

// The three gates read [x, g, h] (the candidate: [x, g, r * h]); weight [H, F + 2H], columns in that order.
// Without g they read [x, h]; weight [H, F + H].
template <class S>
struct GateWeights {
  const S* u_weight;
  const S* u_bias;
  const S* r_weight;
  const S* r_bias;
  const S* c_weight;
  const S* c_bias;
};

template <class C>
struct GateGrads {
  C* u_weight;
  C* u_bias;
  C* r_weight;
  C* r_bias;
  C* c_weight;
  C* c_bias;
};

// Windows of consecutive days out of one series: node n = window * S + stock.
struct DayWindows {
  int64_t count;          // B
  int64_t steps;          // T
  const int64_t* starts;  // [B] first days, each in [0, D - T]; where the tensors are
  const int64_t* order;   // [B] windows in the order of their first days; CPU only
};

// Gates and recurrence of the T-GCN cell. With windows, x and g are those of one series: copies is 1, steps
// its D days, and h0, h, h_last and gates belong to the N = B * S nodes and T steps of the windows. The input
// projection is then computed once a day. Absent nodes hold their state; their x and g are not read.
template <class S>
struct GatedScanForward {
  int64_t copies;       // B
  int64_t num_nodes;    // S, so that x may be strided
  int64_t steps;        // T
  int64_t hidden;       // H
  SequenceView<S> x;    // F channels
  const S* g;           // [N, T, H], or nullptr without
  int64_t g_channels;   // H, or 0 without g: the gates then read [x, h]
  const S* h0;          // [N, H] or nullptr: zeros
  const bool* present;  // [N, T] which nodes are there, or nullptr: all; with windows [S, D] of the series
  GateWeights<S> weights;
  S* h;                       // [N, T, H], or nullptr when only the last state is wanted
  S* h_last;                  // [N, H], or nullptr
  S* gates;                   // [N, T, 3, H] u, r, c after their nonlinearity, or nullptr when not training
  const DayWindows* windows;  // host memory; nullptr: none
  bool tf32 = false;          // CUDA may round the operands of dense float32 products to TF32
};

template <class S, class C>
struct GatedScanBackward {
  GatedScanForward<S> forward;  // h and gates hold the saved values, read only; CUDA does without gates
  const S* d_h;                 // [N, T, H] cotangent of h, or nullptr
  const S* d_h_last;            // [N, H] cotangent of h_last, or nullptr
  S* d_x;                       // [N, T, F] or nullptr
  S* d_g;                       // [N, T, H] or nullptr
  S* d_h0;                      // [N, H] or nullptr
  GateGrads<C> grads;
};

// One T-GCN layer: g = sigmoid(convolution stack of x), then the gated scan of x and g.
template <class S>
struct TgcnLayerForward {
  ConvStackForward<S> stack;  // out is g, or nullptr when not training
  GatedScanForward<S> scan;   // of the same x; g is not read, stack.out stands for it
};

template <class S, class C>
struct TgcnLayerBackward {
  ConvStackBackward<S, C> stack;  // d_out is not read; d_x is added to what the scan left there
  GatedScanBackward<S, C> scan;   // d_x as in the stack; d_g is not written
};

// Output linear, two heads of two classes each. K channels between the output linear and the heads.
template <class S>
struct DecisionWeights {
  const S* out_weight;        // [K, H]
  const S* out_bias;          // [K]
  const S* signal_weight;     // [2, K]   noise, signal
  const S* signal_bias;       // [2]
  const S* direction_weight;  // [2, K]   down, up
  const S* direction_bias;    // [2]
};

// Each may be nullptr.
template <class S>
struct DecisionOutputs {
  S* probabilities;      // [N, 4]   noise, signal, down, up
  int64_t* predictions;  // [N]      0 Down, 1 Neutral, 2 Up
  S* confidences;        // [N]      of the direction where there is a signal, else of the signal head
};

template <class S>
struct DecisionForward {
  int64_t rows;      // N
  int64_t hidden;    // H
  int64_t features;  // K
  const S* h;        // h[n, c] = h[n * stride_row + c]
  int64_t stride_row;
  DecisionWeights<S> weights;
  double threshold;     // signal iff P(signal) > threshold
  S* signal_logits;     // [N, 2] or nullptr
  S* direction_logits;  // [N, 2] or nullptr
  DecisionOutputs<S> outputs;
};

template <class S>
struct TgcnLayerDecision {
  TgcnLayerForward<S> layer;    // without scan.h and scan.h_last
  DecisionForward<S> decision;  // of the last state: h is not read
};

template <class S>
struct DecisionFromLogits {
  int64_t rows;               // N
  const S* signal_logits;     // [N, 2]
  const S* direction_logits;  // [N, 2]
  double threshold;
  DecisionOutputs<S> outputs;
};

template <class C>
struct DecisionGrads {  // shapes as in DecisionWeights
  C* out_weight;
  C* out_bias;
  C* signal_weight;
  C* signal_bias;
  C* direction_weight;
  C* direction_bias;
};

template <class S, class C>
struct DecisionBackward {
  int64_t rows;
  int64_t hidden;
  int64_t features;
  const S* h;  // as in the forward
  int64_t stride_row;
  DecisionWeights<S> weights;   // the heads' biases are not read
  const S* d_signal_logits;     // [N, 2], or nullptr: the head was not used, its weights are not read
  const S* d_direction_logits;  // [N, 2], or nullptr
  S* d_h;                       // [N, H] or nullptr
  bool need_params;             // else none of `grads` is written
  DecisionGrads<C> grads;
};

// What changes the cross entropy of a row from -log p of its class, y:
//   (1 - p_y)^gamma * ((1 - smoothing) * weight[y] * -log p_y + smoothing / 2 * sum_c weight[c] * -log p_c)
struct LossOptions {
  const double* signal_weight;     // [2] or nullptr: 1 each
  const double* direction_weight;  // likewise
  double label_smoothing;          // in [0, 1]
  double focal_gamma;              // >= 0

  constexpr bool none() const {
    return signal_weight == nullptr && direction_weight == nullptr && label_smoothing == 0 &&
           focal_gamma == 0;
  }
};

// Cross entropy of two heads of two classes; the second one counts over the rows of the mask. A row outside
// row_mask counts for neither.
template <class S>
struct MultitaskLossForward {
  int64_t rows;                      // N
  const S* signal_logits;            // [N, 2]
  const S* direction_logits;         // [N, 2]
  const int64_t* signal_targets;     // [N]   0 or 1 where the row counts, anything elsewhere
  const int64_t* direction_targets;  // [N]   likewise
  const bool* mask;                  // [N] or nullptr: all rows
  const bool* row_mask;              // [N] or nullptr: all rows
  bool masked, row_masked;           // whether there are masks: those of no rows have no address
  double lambda_direction;
  LossOptions options;
  S* total;  // scalars
  S* signal;
  S* direction;
  double* norms;  // [2]   weight of the rows that count for the signal, and for the direction
};

template <class S>
struct MultitaskLossBackward {
  MultitaskLossForward<S> forward;  // norms hold the saved values; the losses are not read
  const S* d_total;                 // cotangents of the scalars, each may be nullptr
  const S* d_signal;
  const S* d_direction;
  S* d_signal_logits;     // [N, 2] or nullptr
  S* d_direction_logits;  // [N, 2] or nullptr
};

}  // namespace hiermt
