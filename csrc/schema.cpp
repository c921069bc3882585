// Every operator of the namespace `hiermt`, each under its contract. Host entries in csrc/host/<op>.cpp
// register the implementations for CPU and CUDA; fake, autograd, autocast and vmap rules live in hiermt/ops/;
// the twin of an operator has the same name in hiermt/reference/.
//
// Letters: B copies of one template graph, S nodes in the template, N = B * S nodes in all (node n = copy * S
// + node), T time steps, F input channels, H hidden channels, E entries of the CSR after the convolution's
// self-loop rule, E0 edges as given, K channels between two linears.
//
// csr: rowptr [S+1], col [E], colptr [S+1], row [E], csr2csc [E], schedule, all int32. The schedule is how the kernels
// walk the nodes: on a CPU [K+1] cuts of [0, S) that no edge crosses, on a GPU [S] nodes by decreasing degree, or [0].
// On a GPU the values of all lists are trusted, as hiermt.Graph makes them there: to look would wait for the device.
// dtypes: float is any of float32, float64, bfloat16 and, on CUDA, float16; one call sees one of them.
// Gradients of parameters have the dtype that the kernel computes in: float64 for float64, else float32.
// Outputs are contiguous. An output that is not wanted is an empty tensor.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(hiermt, m) {
  // Sorts edges by target (rowptr, col) and by source (colptr, row, csr2csc) under a self-loop rule.
  //   edge_index [2, E0] int32 or int64, sources in row 0; rule 0: GATv2, 1: GCN
  //   -> rowptr [S+1], col [E], e_id [E] int64 (column of edge_index, -1 for an added loop), colptr [S+1],
  //      row [E], csr2csc [E], blocks [any]: cuts of [0, S) that no edge crosses. E = E0 + S; the entries
  //      past rowptr[S], one for each dropped loop, are padding.
  m.def(
      "graph_prepare(Tensor edge_index, SymInt num_nodes, int rule) -> "
      "(Tensor rowptr, Tensor col, Tensor e_id, Tensor colptr, Tensor row, Tensor csr2csc, Tensor blocks)");

  // A stack of convolutions over all time steps, GATv2 with one head or GCN. leaky_relu (slope 0.01) follows
  // each of them but the last; `activation` follows the last: 0 none, 1 leaky_relu, 2 sigmoid, 3 leaky_relu
  // and then sigmoid.
  //   x [N, T, F], any strides
  //   edge_weight [E] in CSR order: the weight (GATv2 with an edge term) or the norm (GCN); with `present` the
  //     weight of a GCN, too, and that of a GATv2's loop, the last entry of its row, is not read
  //   conv_params, convolution after convolution, inputs F or H:
  //     GATv2 lin_l.weight [H, F], lin_l.bias [H], lin_r.weight [H, F], lin_r.bias [H], att [H], bias [H]
  //     and, with an edge term, lin_edge [H]; GCN lin.weight [H, F], bias [H]
  //   present [N, T] bool, contiguous: the nodes that are there at a step; all if None. The others are no
  //     source, to no softmax, degree or mean; their rows of the result are zero, and neither their x nor the
  //     weights of their edges are read.
  //   tf32: CUDA may round the operands of dense float32 products to TF32
  //   -> [N, T, H]
  m.def(
      "conv_stack(Tensor x, Tensor[] csr, Tensor? edge_weight, Tensor[] conv_params, Tensor? present, "
      "*, "
      "int conv_layers, int activation, bool tf32) -> Tensor");

  // out: what conv_stack returned; d_out: its cotangent, contiguous
  //   -> d_x [N, T, F], the gradients of conv_params and of edge_weight
  m.def(
      "conv_stack_backward(Tensor d_out, Tensor x, Tensor[] csr, Tensor? edge_weight, Tensor[] conv_params, "
      "Tensor? present, Tensor out, *, int conv_layers, int activation, bool tf32, bool need_x, bool "
      "need_conv, "
      "bool need_edge_weight) -> Tensor[]");

  // Gates and recurrence of the T-GCN cell, over the steps of x or over windows of a series.
  //   x [N, T, F], any strides; g [N, T, H]; h0 [N, H], zeros if None
  //   gates: weight [H, F + 2H] and bias [H] of u, r and c; without g they read x and h, and the weights are
  //     [H, F + H]
  //   starts [B] int64: first days of windows of `steps` days; x [S, D, F] and g [S, D, H] are then those of
  //     the series, and everything else has N = B * S nodes, node n = window * S + stock, and T = steps. The
  //     input projection is computed once a day. A window outside the series is refused on the CPU; on CUDA
  //     its values mean nothing. Without starts, steps is not read.
  //   present [N, T] bool, contiguous, with starts [S, D]: where a node is there; all if None. The others hold
  //     their state; their x and g are not read.
  //   save: keep what the backward reads, on the CPU 4 H elements a node and step; CUDA keeps h and computes
  //     the gates again
  //   tf32: CUDA may round the operands of dense float32 products to TF32
  //   -> out [N, T, H] if `sequence`, else [N, H]; if saved: h [N, T, H] unless it is `out`; on the CPU
  //      u, r, c [N, T, 3, H]
  m.def(
      "gated_scan(Tensor x, Tensor? g, Tensor? h0, Tensor[] gates, Tensor? starts, Tensor? present, *, "
      "SymInt steps, bool sequence, bool save, bool tf32) -> (Tensor out, Tensor h, Tensor saved)");

  // d_out: the cotangent of out, contiguous; h: the whole sequence; saved: not read by CUDA
  //   -> d_x and d_g in the shapes of x and g, zero on a day of no window; d_h0 [N, H]; the gradients of the
  //      6 gate parameters
  m.def(
      "gated_scan_backward(Tensor d_out, Tensor x, Tensor? g, Tensor? h0, Tensor[] gates, Tensor? starts, "
      "Tensor? present, Tensor h, Tensor saved, *, SymInt steps, bool sequence, bool tf32, bool need_x, "
      "bool need_g, "
      "bool need_h0, bool need_gates) -> Tensor[]");

  // One T-GCN layer: g = sigmoid(conv_stack of x), then gated_scan of x and g.
  //   x, csr, edge_weight, conv_params, conv_layers, tf32: as for conv_stack
  //   gate_params, h0, starts, present, steps, sequence: as for gated_scan; g and the convolutions are computed once a
  //     day
  //   between: leaky_relu between the convolutions only, or after the last one too, before the sigmoid
  //   save: keep what the backward reads, on the CPU 5 H elements a node and step, on CUDA 2 H
  //   -> as gated_scan, and if saved: g [N, T, H], with starts [S, D, H]
  m.def(
      "tgcn_layer(Tensor x, Tensor[] csr, Tensor? edge_weight, Tensor[] conv_params, Tensor[] gate_params, "
      "Tensor? h0, Tensor? starts, Tensor? present, *, SymInt steps, int conv_layers, bool between, "
      "bool sequence, bool save, bool tf32) -> (Tensor out, Tensor h, Tensor gates, Tensor g)");

  // d_out: the cotangent of out, contiguous; h: the whole sequence; gates: not read by CUDA
  //   -> d_x in the shape of x, the gradients of conv_params and of gate_params, d_h0 [N, H], the gradient of
  //      edge_weight
  m.def(
      "tgcn_layer_backward(Tensor d_out, Tensor x, Tensor[] csr, Tensor? edge_weight, Tensor[] conv_params, "
      "Tensor[] gate_params, Tensor? h0, Tensor? starts, Tensor? present, Tensor h, Tensor gates, Tensor g, "
      "*, "
      "SymInt steps, int conv_layers, bool between, bool sequence, bool tf32, bool need_x, bool need_conv, "
      "bool need_gates, bool need_h0, bool need_edge_weight) -> Tensor[]");

  // Output linear [K, H], signal and direction heads [2, K], softmax, decision, in one pass over h [N, H]
  // (any strides). A row is a signal iff P(signal) > threshold.
  //   outputs: bits 1 logits, 2 probabilities, 4 predictions, 8 confidences
  //   -> signal_logits [N, 2], direction_logits [N, 2], probabilities [N, 4] (noise, signal, down, up),
  //      predictions [N] int64 (0 Down, 1 Neutral, 2 Up), confidences [N]
  m.def(
      "decision(Tensor h, Tensor out_weight, Tensor out_bias, Tensor signal_weight, Tensor signal_bias, "
      "Tensor direction_weight, Tensor direction_bias, float threshold, int outputs) -> "
      "(Tensor signal_logits, Tensor direction_logits, Tensor probabilities, Tensor predictions, "
      "Tensor confidences)");

  // `tgcn_layer` and then `decision` of its last state, bitwise equal to both calls. For inference: no gradient.
  //   head_params: the six parameters of `decision`, in its order
  //   -> as `decision`
  m.def(
      "tgcn_layer_decision(Tensor x, Tensor[] csr, Tensor? edge_weight, Tensor[] conv_params, "
      "Tensor[] gate_params, Tensor[] head_params, Tensor? h0, Tensor? starts, Tensor? present, *, "
      "float threshold, int outputs, SymInt steps, int conv_layers, bool between, bool tf32) -> "
      "(Tensor signal_logits, Tensor direction_logits, Tensor probabilities, Tensor predictions, "
      "Tensor confidences)");

  // Cotangents of the logits, [N, 2] each, None for those of a head that was not used, to those of everything
  // they depend on.
  //   -> d_h [N, H], d_out_weight [K, H], d_out_bias [K], d_signal_weight [2, K], d_signal_bias [2],
  //      d_direction_weight [2, K], d_direction_bias [2]
  m.def(
      "decision_backward(Tensor? d_signal_logits, Tensor? d_direction_logits, Tensor h, Tensor out_weight, "
      "Tensor out_bias, Tensor signal_weight, Tensor direction_weight, bool need_h, bool need_params) -> "
      "(Tensor d_h, Tensor d_out_weight, Tensor d_out_bias, Tensor d_signal_weight, Tensor d_signal_bias, "
      "Tensor d_direction_weight, Tensor d_direction_bias)");

  // The decision alone, from logits [N, 2] (any strides); outputs as in `decision`, bits 2 to 8.
  m.def(
      "decision_from_logits(Tensor signal_logits, Tensor direction_logits, float threshold, int outputs) -> "
      "(Tensor probabilities, Tensor predictions, Tensor confidences)");

  // Cross entropy of the signal head, plus that of the direction head over the rows of the mask: the mean,
  // weighted by the class of each row. A row outside row_mask counts for neither head.
  //   logits [N, 2]; targets [N] int64, 0 or 1, anything where they do not count; mask, row_mask [N] bool or
  //   all; weights of the classes [2] float64, or 1 each
  //   -> total, signal, direction: scalars; norms [2] float64: weight of the rows that count for each head
  m.def(
      "multitask_loss(Tensor signal_logits, Tensor direction_logits, Tensor signal_targets, "
      "Tensor direction_targets, Tensor? mask, float lambda_direction, Tensor? signal_weight=None, "
      "Tensor? direction_weight=None, float label_smoothing=0.0, float focal_gamma=0.0, "
      "Tensor? row_mask=None) -> (Tensor total, Tensor signal, Tensor direction, Tensor norms)");

  // Cotangents of the three losses, scalars, to those of the logits, [N, 2] each.
  m.def(
      "multitask_loss_backward(Tensor? d_total, Tensor? d_signal, Tensor? d_direction, "
      "Tensor signal_logits, Tensor direction_logits, Tensor signal_targets, Tensor direction_targets, "
      "Tensor? mask, Tensor norms, float lambda_direction, bool need_signal, bool need_direction, "
      "Tensor? signal_weight=None, Tensor? direction_weight=None, float label_smoothing=0.0, "
      "float focal_gamma=0.0, Tensor? row_mask=None) -> (Tensor d_signal_logits, Tensor d_direction_logits)");
}
