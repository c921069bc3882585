#include "cpu/support/graph_prepare.h"

#include <algorithm>
#include <vector>

namespace hiermt::cpu {
namespace {

// Smaller blocks are joined with their neighbour, as a task has a fixed cost.
constexpr int64_t kNodesPerBlock = 64;

// Replaces the counts of the rows by the offsets of their first entries.
void exclusive_sum(int32_t* counts, int64_t rows) {
  int32_t sum = 0;
  for (int64_t i = 0; i <= rows; ++i) {
    const int32_t count = counts[i];
    counts[i] = sum;
    sum += count;
  }
}

// Sorts by target: the edges of a row in the given order, then its self loop.
template <class I>
void sort_by_target(const GraphPrepare<I>& p) {
  std::vector<int64_t> loop_edge(p.num_nodes, -1);
  std::fill(p.rowptr, p.rowptr + p.num_nodes + 1, 0);
  for (int64_t i = 0; i < p.num_nodes; ++i) p.rowptr[i] = 1;
  for (int64_t e = 0; e < p.num_edges; ++e) {
    if (p.source[e] != p.target[e]) {
      ++p.rowptr[p.target[e]];
    } else if (p.rule == LoopRule::kGcn) {
      loop_edge[p.target[e]] = e;
    }
  }
  exclusive_sum(p.rowptr, p.num_nodes);

  std::vector<int32_t> next(p.rowptr, p.rowptr + p.num_nodes);
  for (int64_t e = 0; e < p.num_edges; ++e) {
    if (p.source[e] == p.target[e]) continue;
    const int32_t entry = next[p.target[e]]++;
    p.col[entry] = static_cast<int32_t>(p.source[e]);
    p.e_id[entry] = e;
  }
  for (int64_t i = 0; i < p.num_nodes; ++i) {
    p.col[next[i]] = static_cast<int32_t>(i);
    p.e_id[next[i]] = loop_edge[i];
  }
}

// Sorts by source: the entries of a column in the order of their rows.
template <class I>
void sort_by_source(const GraphPrepare<I>& p) {
  const int32_t entries = p.rowptr[p.num_nodes];
  std::fill(p.colptr, p.colptr + p.num_nodes + 1, 0);
  for (int32_t e = 0; e < entries; ++e) ++p.colptr[p.col[e]];
  exclusive_sum(p.colptr, p.num_nodes);
  std::vector<int32_t> next(p.colptr, p.colptr + p.num_nodes);
  for (int64_t row = 0; row < p.num_nodes; ++row) {
    for (int32_t e = p.rowptr[row]; e < p.rowptr[row + 1]; ++e) {
      const int32_t at = next[p.col[e]]++;
      p.row[at] = static_cast<int32_t>(row);
      p.csr2csc[at] = e;
    }
  }
}

template <class I>
void pad(const GraphPrepare<I>& p) {
  for (int64_t e = p.rowptr[p.num_nodes]; e < p.num_edges + p.num_nodes; ++e) {
    p.col[e] = p.row[e] = p.csr2csc[e] = 0;
    p.e_id[e] = -1;
  }
}

// Cuts the nodes into blocks that no edge leaves.
template <class I>
int64_t cut_blocks(const GraphPrepare<I>& p) {
  std::vector<int32_t> last_neighbor(p.num_nodes);
  for (int64_t i = 0; i < p.num_nodes; ++i) last_neighbor[i] = static_cast<int32_t>(i);
  for (int64_t row = 0; row < p.num_nodes; ++row) {
    for (int32_t e = p.rowptr[row]; e < p.rowptr[row + 1]; ++e) {
      const int32_t low = std::min(p.col[e], static_cast<int32_t>(row));
      last_neighbor[low] = std::max({last_neighbor[low], p.col[e], static_cast<int32_t>(row)});
    }
  }
  int64_t blocks = 0;
  int32_t last = -1;  // neighbor of the nodes before the cut
  p.blocks[0] = 0;
  for (int64_t i = 0; i + 1 < p.num_nodes; ++i) {
    last = std::max(last, last_neighbor[i]);
    const int64_t cut = i + 1;
    if (last < cut && cut - p.blocks[blocks] >= kNodesPerBlock && p.num_nodes - cut >= kNodesPerBlock) {
      p.blocks[++blocks] = static_cast<int32_t>(cut);
    }
  }
  if (p.num_nodes > 0) p.blocks[++blocks] = static_cast<int32_t>(p.num_nodes);
  return blocks;
}

}  // namespace

template <class I>
int64_t first_edge_outside(const GraphPrepare<I>& p) {
  for (int64_t e = 0; e < p.num_edges; ++e) {
    const int64_t low = std::min(p.source[e], p.target[e]), high = std::max(p.source[e], p.target[e]);
    if (low < 0 || high >= p.num_nodes) return e;
  }
  return -1;
}

template <class I>
int64_t graph_prepare(const GraphPrepare<I>& p) {
  sort_by_target(p);
  sort_by_source(p);
  pad(p);
  return cut_blocks(p);
}

template int64_t first_edge_outside<int32_t>(const GraphPrepare<int32_t>&);
template int64_t first_edge_outside<int64_t>(const GraphPrepare<int64_t>&);
template int64_t graph_prepare<int32_t>(const GraphPrepare<int32_t>&);
template int64_t graph_prepare<int64_t>(const GraphPrepare<int64_t>&);

}  // namespace hiermt::cpu
