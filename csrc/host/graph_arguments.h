// The arguments that every operator on a graph takes: the CSR list and the node sequence x.
#pragma once

#include <vector>

#include "host/tensors.h"
#include "params.h"

namespace hiermt {

inline void check_offsets(const char* op, const char* argument, const Tensor& offsets, int64_t end) {
  const int32_t* values = data<int32_t>(offsets);
  const int64_t rows = offsets.numel() - 1;
  bool rises = values[0] == 0 && values[rows] <= end;
  for (int64_t i = 0; i < rows; ++i) rises &= values[i] <= values[i + 1];
  if (!rises) fail(op, argument, "expected offsets that rise from 0 to at most ", end);
}

// values[first, last) all lie in [low, high).
inline void check_range(const char* op, const char* argument, const int32_t* values, int64_t first,
                        int64_t last, int32_t low, int32_t high) {
  bool inside = true;
  for (int64_t i = first; i < last; ++i) inside &= (values[i] >= low) & (values[i] < high);
  if (!inside) fail(op, argument, "expected values in [", low, ", ", high, ") at ", first, " to ", last);
}

// The kernels of the CPU follow the lists of a block without looking, and keep no more than the block's nodes
// and entries. On a GPU to look would wait for the device.
inline void check_lists(const char* op, const CsrGraph& graph, const std::vector<Tensor>& csr) {
  check_offsets(op, "rowptr", csr[0], graph.num_entries);
  check_offsets(op, "colptr", csr[2], graph.num_entries);
  for (int64_t k = 0; k < graph.num_blocks; ++k) {
    const int32_t low = graph.blocks[k], high = graph.blocks[k + 1];
    const int32_t first = graph.rowptr[low], last = graph.rowptr[high];
    check_range(op, "col", graph.col, first, last, low, high);
    check_range(op, "row", graph.row, graph.colptr[low], graph.colptr[high], low, high);
    check_range(op, "csr2csc", graph.csr2csc, graph.colptr[low], graph.colptr[high], first, last);
  }
}

// csr = rowptr, col, colptr, row, csr2csc, schedule of a template with S nodes; x holds N = copies * S
// nodes. The schedule is [K + 1] blocks for a CPU, and [S] or [0] nodes in order for a GPU.
inline CsrGraph graph_of(const char* op, const std::vector<Tensor>& csr, const Tensor& x) {
  if (csr.size() != 6) fail(op, "csr", "expected 6 tensors, got ", csr.size());
  const char* const names[] = {"rowptr", "col", "colptr", "row", "csr2csc", "schedule"};
  for (size_t i = 0; i < csr.size(); ++i) {
    check_dtype(op, names[i], csr[i], ScalarType::Int);
    check_contiguous(op, names[i], csr[i]);
    // What graph_prepare returns last stays on the CPU; a GPU does not read it.
    if (i < 5 || !csr[i].is_cpu()) check_device(op, names[i], csr[i], "x", x);
  }
  check_shape(op, "rowptr", csr[0], {"S + 1"});
  const int64_t nodes = csr[0].numel() - 1, entries = csr[1].numel();
  if (nodes < 0) fail(op, "rowptr", "expected a shape [S + 1], got [0]");
  check_shape(op, "col", csr[1], {"E"});
  check_shape(op, "colptr", csr[2], {nodes + 1});
  check_shape(op, "row", csr[3], {entries});
  check_shape(op, "csr2csc", csr[4], {entries});
  const Tensor& schedule = csr[5];
  const bool ordered = !schedule.is_cpu() && schedule.numel() > 0;
  check_shape(op, "schedule", schedule, {ordered ? Extent(nodes) : "K + 1"});
  check_shape(op, "x", x, {"N", "T", "F"});
  const int64_t rows = x.size(0);
  if (nodes == 0 ? rows != 0 : rows % nodes != 0) {
    fail(op, "x", "expected a multiple of the graph's ", nodes, " nodes in dimension 0, got ", rows);
  }
  const int64_t blocks = x.is_cpu() && schedule.numel() > 0 ? schedule.numel() - 1 : 0;
  const int32_t* cut = x.is_cpu() ? data<int32_t>(schedule) : nullptr;
  bool covers = nodes == 0 || !x.is_cpu() || (blocks > 0 && cut[0] == 0 && cut[blocks] == nodes);
  for (int64_t k = 0; covers && k < blocks; ++k) covers = cut[k] <= cut[k + 1];
  if (!covers) fail(op, "schedule", "expected ranges that cover the ", nodes, " nodes in order");
  const CsrGraph graph{nodes,
                       entries,
                       nodes == 0 ? 0 : rows / nodes,
                       blocks,
                       data<int32_t>(csr[0]),
                       data<int32_t>(csr[1]),
                       data<int32_t>(csr[2]),
                       data<int32_t>(csr[3]),
                       data<int32_t>(csr[4]),
                       cut,
                       ordered ? data<int32_t>(schedule) : nullptr};
  if (x.is_cpu() && nodes > 0) check_lists(op, graph, csr);
  return graph;
}

// The largest of the tensors that a convolution to `hidden` channels works with, with room for padding.
inline void check_conv_size(const char* op, const CsrGraph& graph, const Tensor& x, int64_t hidden) {
  const int64_t channels = x.size(2);
  check_count(op, "x", {channels, 64});
  check_count(op, "x", {hidden, 64});
  check_count(op, "x", {x.size(0), x.size(1), channels + 4 * hidden});
  check_count(op, "x", {graph.num_nodes, 64, channels + 4 * hidden});
  check_count(op, "x", {hidden, channels + 4 * hidden});
}

// x [copies * nodes, T, F], any strides.
template <class S>
SequenceView<S> view_of(const Tensor& x, int64_t nodes) {
  return {data<S>(x), x.size(2), nodes * x.stride(0), x.stride(0), x.stride(1), x.stride(2)};
}

// Which nodes of x [N, T, F] are there at each step, [N, T].
inline void check_present(const char* op, const Tensor& present, const Tensor& x) {
  check_shape(op, "present", present, {x.size(0), x.size(1)});
  check_dtype(op, "present", present, ScalarType::Bool);
  check_device(op, "present", present, "x", x);
  check_contiguous(op, "present", present);
}

// A dense parameter whose extents of one do not matter: [1, 1, H] serves as [H].
inline void check_flat_parameter(const char* op, const char* argument, const Tensor& tensor, int64_t count,
                                 const char* like_name, const Tensor& like) {
  check_memory(op, argument, tensor);
  bool fits = tensor.numel() == count;
  for (int64_t i = 0; i < tensor.dim(); ++i) fits &= tensor.size(i) == 1 || tensor.size(i) == count;
  if (!fits) fail(op, argument, "expected ", count, " elements, got shape ", shape_of(tensor));
  check_dtype(op, argument, tensor, like.scalar_type());
  check_device(op, argument, tensor, like_name, like);
  check_contiguous(op, argument, tensor);
}

// Uninitialised, in the shape of `param` and the dtype that its gradient is computed in; empty if not wanted.
inline Tensor gradient_of(const Tensor& param, bool wanted) {
  const ScalarType dtype = compute_dtype(param.scalar_type());
  if (!wanted) return empty({0}, dtype, param);
  return allocated(param, "a gradient", static_cast<double>(param.numel()),
                   aoti_torch_dtype_element_size(static_cast<int32_t>(dtype)),
                   [&] { return torch::stable::empty(param.sizes(), dtype, std::nullopt, param.device()); });
}

}  // namespace hiermt
