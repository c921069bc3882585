// The arguments that every operator on a graph takes: the CSR list and the node sequence x.
#pragma once

#include <vector>

#include "params.h"
#include "tensors.h"

namespace hiermt {

// csr = rowptr, col, t_rowptr, t_row, t_perm, blocks of a template with S nodes; x holds N = copies * S
// nodes.
inline CsrGraph graph_of(const char* op, const std::vector<Tensor>& csr, const Tensor& x) {
  if (csr.size() != 6) fail(op, "csr", "expected 6 tensors, got ", csr.size());
  const char* const names[] = {"rowptr", "col", "t_rowptr", "t_row", "t_perm", "blocks"};
  for (size_t i = 0; i < csr.size(); ++i) {
    check_dtype(op, names[i], csr[i], ScalarType::Int);
    check_contiguous(op, names[i], csr[i]);
    if (i < 5) check_device(op, names[i], csr[i], "x", x);
  }
  if (!csr[5].is_cpu()) fail(op, "blocks", "expected a CPU tensor, got one on ", device_of(csr[5]));
  check_shape(op, "rowptr", csr[0], {"S + 1"});
  const int64_t nodes = csr[0].numel() - 1, entries = csr[1].numel();
  if (nodes < 0) fail(op, "rowptr", "expected a shape [S + 1], got [0]");
  check_shape(op, "col", csr[1], {"E"});
  check_shape(op, "t_rowptr", csr[2], {nodes + 1});
  check_shape(op, "t_row", csr[3], {entries});
  check_shape(op, "t_perm", csr[4], {entries});
  check_shape(op, "blocks", csr[5], {"K + 1"});
  check_shape(op, "x", x, {"N", "T", "F"});
  const int64_t rows = x.size(0);
  if (nodes == 0 ? rows != 0 : rows % nodes != 0) {
    fail(op, "x", "expected a multiple of the graph's ", nodes, " nodes in dimension 0, got ", rows);
  }
  const int64_t blocks = csr[5].numel() > 0 ? csr[5].numel() - 1 : 0;
  const int32_t* cut = data<int32_t>(csr[5]);
  bool covers = nodes == 0 || (blocks > 0 && cut[0] == 0 && cut[blocks] == nodes);
  for (int64_t k = 0; covers && k < blocks; ++k) covers = cut[k] <= cut[k + 1];
  if (!covers) fail(op, "blocks", "expected ranges that cover the ", nodes, " nodes in order");
  return {nodes,
          entries,
          nodes == 0 ? 0 : rows / nodes,
          blocks,
          data<int32_t>(csr[0]),
          data<int32_t>(csr[1]),
          data<int32_t>(csr[2]),
          data<int32_t>(csr[3]),
          data<int32_t>(csr[4]),
          data<int32_t>(csr[5])};
}

// x [copies * nodes, T, F], any strides.
template <class S>
SequenceView<S> view_of(const Tensor& x, int64_t nodes) {
  return {data<S>(x), x.size(2), nodes * x.stride(0), x.stride(0), x.stride(1), x.stride(2)};
}

// A dense parameter whose extents of one do not matter: [1, 1, H] serves as [H].
inline void check_flat_parameter(const char* op, const char* argument, const Tensor& tensor, int64_t count,
                                 const char* like_name, const Tensor& like) {
  if (tensor.numel() != count)
    fail(op, argument, "expected ", count, " elements, got shape ", shape_of(tensor));
  check_dtype(op, argument, tensor, like.scalar_type());
  check_device(op, argument, tensor, like_name, like);
  check_contiguous(op, argument, tensor);
}

// Uninitialised, in the shape of `param` and the dtype that its gradient is computed in; empty if not wanted.
inline Tensor gradient_of(const Tensor& param, bool wanted) {
  const ScalarType dtype = compute_dtype(param.scalar_type());
  if (!wanted) return empty({0}, dtype, param);
  return torch::stable::empty(param.sizes(), dtype, std::nullopt, param.device());
}

}  // namespace hiermt
