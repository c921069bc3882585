// Edges sorted by target and by source under a convolution's self-loop rule. Integer work, compiled once.
#pragma once

#include <cstdint>

namespace hiermt {
namespace cpu {

enum class LoopRule : int { kGatV2 = 0, kGcn = 1 };

// S nodes, E0 edges as given, E = E0 + S entries; those past rowptr[S], one per dropped loop, are padding.
template <class I>
struct GraphPrepare {
  int64_t num_nodes;  // S
  int64_t num_edges;  // E0
  const I* source;    // [E0]
  const I* target;    // [E0]
  LoopRule rule;
  int32_t* rowptr;   // [S + 1]
  int32_t* col;      // [E]
  int64_t* e_id;     // [E]
  int32_t* colptr;   // [S + 1]
  int32_t* row;      // [E]
  int32_t* csr2csc;  // [E]
  int32_t* blocks;   // [S + 1], of which the first result + 1 are used
};

// The first edge with an end outside [0, S), or -1; nothing has been written then.
template <class I>
int64_t first_edge_outside(const GraphPrepare<I>& p);

// Needs all edges inside. Returns the number of blocks.
template <class I>
int64_t graph_prepare(const GraphPrepare<I>& p);

}  // namespace cpu
}  // namespace hiermt
