// Sorts edges by target (CSR) and by source (CSC) under the self-loop rule of a convolution. Integer work,
// compiled once.
#pragma once

#include "params.h"

namespace hiermt::cpu {

// The first edge with an end outside [0, num_nodes), or -1. Writes nothing.
template <class I>
int64_t first_edge_outside(const GraphPrepare<I>& p);

// Requires first_edge_outside(p) == -1. Returns the number of blocks.
template <class I>
int64_t graph_prepare(const GraphPrepare<I>& p);

}  // namespace hiermt::cpu
