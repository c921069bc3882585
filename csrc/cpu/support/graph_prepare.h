// Sorts edges by target (CSR) and by source (CSC) under the self-loop rule of a convolution. Integer work,
// compiled once.
#pragma once

#include <cstdint>

namespace hiermt::cpu {

enum class LoopRule : int { kGatV2 = 0, kGcn = 1 };

// GATv2 replaces self loops; GCN keeps a given self loop and adds the missing ones. There are E = num_edges +
// num_nodes entries; those past rowptr[num_nodes], one per dropped self loop, are padding.
template <class I>
struct GraphPrepare {
  int64_t num_nodes;
  int64_t num_edges;
  const I* source;  // [num_edges]
  const I* target;  // [num_edges]
  LoopRule rule;
  int32_t* rowptr;   // [num_nodes + 1]
  int32_t* col;      // [E]
  int64_t* e_id;     // [E] edge of an entry, -1 for an added self loop and padding
  int32_t* colptr;   // [num_nodes + 1]
  int32_t* row;      // [E]
  int32_t* csr2csc;  // [E]
  int32_t* blocks;   // [num_nodes + 1], of which the first result + 1 are used
};

// The first edge with an end outside [0, num_nodes), or -1. Writes nothing.
template <class I>
int64_t first_edge_outside(const GraphPrepare<I>& p);

// Requires first_edge_outside(p) == -1. Returns the number of blocks.
template <class I>
int64_t graph_prepare(const GraphPrepare<I>& p);

}  // namespace hiermt::cpu
