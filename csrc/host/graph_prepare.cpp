// Host entry of hiermt::graph_prepare.
#include "cpu/support/graph_prepare.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "cuda/operators.h"
#include "host/device_call.h"

namespace hiermt {
namespace {

// All nodes as one block, on the CPU.
constexpr int64_t kTwo[] = {2};
Tensor one_block(int64_t num_nodes) {
  const torch::headeronly::IntHeaderOnlyArrayRef shape(kTwo, 1);
  const Tensor blocks = torch::stable::empty(shape, ScalarType::Int);
  int32_t* const cuts = mutable_data<int32_t>(blocks);
  cuts[0] = 0;
  cuts[1] = static_cast<int32_t>(num_nodes);
  return blocks;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> graph_prepare(Tensor edge_index,
                                                                                 int64_t num_nodes,
                                                                                 int64_t rule) {
  constexpr const char* op = "graph_prepare";
  check_shape(op, "edge_index", edge_index, {2, "E"});
  if (num_nodes < 0) fail(op, "num_nodes", "expected a count, got ", num_nodes);
  if (rule != 0 && rule != 1) fail(op, "rule", "expected 0 (GATv2) or 1 (GCN), got ", rule);
  const int64_t edges = edge_index.size(1);
  if (num_nodes > std::numeric_limits<int32_t>::max() - edges) {
    fail(op, "edge_index", "expected nodes and edges whose sum fits 32 bits, got ", num_nodes, " + ", edges);
  }
  edge_index = dense(edge_index);
  return dispatch_index(op, "edge_index", edge_index, [&](auto type) {
    using I = typename decltype(type)::type;
    const int64_t entries = edges + num_nodes;
    const I* ends = data<I>(edge_index);
    GraphPrepare<I> p{num_nodes, edges,   ends,    ends + edges, static_cast<LoopRule>(rule),
                      nullptr,   nullptr, nullptr, nullptr,      nullptr,
                      nullptr,   nullptr};
    const bool on_cpu = edge_index.is_cpu();
    // On the device the kernels drop such edges: to report them would take a synchronisation.
    const int64_t outside = on_cpu ? cpu::first_edge_outside(p) : -1;
    if (outside >= 0) {
      fail(op, "edge_index", "edge ", outside, " (", p.source[outside], " -> ", p.target[outside],
           ") is outside the nodes [0, ", num_nodes, ")");
    }
    const auto ints = [&](int64_t count) { return empty({count}, ScalarType::Int, edge_index); };
    Tensor rowptr = ints(num_nodes + 1), col = ints(entries), colptr = ints(num_nodes + 1);
    Tensor row = ints(entries), csr2csc = ints(entries), blocks = ints(num_nodes + 1);
    Tensor e_id = empty({entries}, ScalarType::Long, edge_index);
    p.rowptr = mutable_data<int32_t>(rowptr);
    p.col = mutable_data<int32_t>(col);
    p.e_id = mutable_data<int64_t>(e_id);
    p.colptr = mutable_data<int32_t>(colptr);
    p.row = mutable_data<int32_t>(row);
    p.csr2csc = mutable_data<int32_t>(csr2csc);
    p.blocks = mutable_data<int32_t>(blocks);
    if constexpr (kWithCuda) {
      if (!on_cpu) {
        call_cuda(op, edge_index, [&](cuda::Stream& on) { cuda::graph_prepare(p, on); });
        return std::make_tuple(rowptr, col, e_id, colptr, row, csr2csc, one_block(num_nodes));
      }
    }
    int64_t count = 0;
    try {
      count = cpu::graph_prepare(p);
    } catch (const std::bad_alloc&) {
      throw OutOfMemory("the lists of a graph", static_cast<double>(num_nodes) * sizeof(int64_t));
    }
    // A copy: a view would keep S + 1 numbers alive for a handful.
    blocks = torch::stable::clone(torch::stable::narrow(blocks, 0, 0, count + 1));
    return std::make_tuple(rowptr, col, e_id, colptr, row, csr2csc, blocks);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(hiermt, CPU, m) {
  m.impl("graph_prepare", TORCH_BOX(&graph_prepare));
}

#ifdef HIERMT_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(hiermt, CUDA, m) {
  m.impl("graph_prepare", TORCH_BOX(&graph_prepare));
}
#endif

}  // namespace hiermt
