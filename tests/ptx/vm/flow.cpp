// Basic blocks, and the immediate post-dominator of each.
#include <algorithm>

#include "kernel.h"

namespace ptx {
namespace {

using Edges = std::vector<std::vector<uint32_t>>;

// Blocks in reverse post-order of the reversed graph, the common end (index `end`) first.
std::vector<uint32_t> reverse_order(const Edges& before, uint32_t end) {
  std::vector<uint32_t> order;
  std::vector<uint8_t> seen(before.size(), 0);
  std::vector<std::pair<uint32_t, size_t>> stack = {{end, 0}};
  seen[end] = 1;
  while (!stack.empty()) {
    auto& [block, next] = stack.back();
    if (next < before[block].size()) {
      const uint32_t other = before[block][next++];
      if (!seen[other]) {
        seen[other] = 1;
        stack.push_back({other, 0});
      }
    } else {
      order.push_back(block);
      stack.pop_back();
    }
  }
  std::reverse(order.begin(), order.end());
  return order;
}

// Of each block the nearest block that every way to the end passes (Cooper, Harvey and Kennedy, 2001).
std::vector<uint32_t> post_dominators(const Edges& after, const Edges& before, uint32_t end) {
  const std::vector<uint32_t> order = reverse_order(before, end);
  std::vector<uint32_t> rank(after.size(), kNone), found(after.size(), kNone);
  for (uint32_t i = 0; i < order.size(); ++i) rank[order[i]] = i;
  found[end] = end;
  for (bool changed = true; changed;) {
    changed = false;
    for (uint32_t block : order) {
      if (block == end) continue;
      uint32_t common = kNone;
      for (uint32_t other : after[block]) {
        if (found[other] == kNone) continue;
        if (common == kNone) {
          common = other;
          continue;
        }
        for (uint32_t a = other; a != common;) {
          if (rank[a] > rank[common]) {
            a = found[a];
          } else {
            common = found[common];
          }
        }
      }
      if (common != found[block]) {
        found[block] = common;
        changed = true;
      }
    }
  }
  return found;
}

}  // namespace

void find_blocks(Kernel& kernel) {
  const auto size = static_cast<uint32_t>(kernel.code.size());
  std::vector<uint8_t> starts(size + 1, 0);
  starts[0] = 1;
  for (uint32_t i = 0; i < size; ++i) {
    if (kernel.code[i].flow != Flow::kNext) starts[i + 1] = 1;
    if (kernel.code[i].flow == Flow::kBranch) starts[kernel.code[i].target] = 1;
  }
  kernel.block_at.assign(size, kNone);
  for (uint32_t i = 0; i < size; ++i) {
    if (starts[i]) {
      kernel.block_at[i] = static_cast<uint32_t>(kernel.blocks.size());
      kernel.blocks.push_back({i, i + 1, kEnd});
    } else {
      kernel.blocks.back().end = i + 1;
    }
  }
  const auto end = static_cast<uint32_t>(kernel.blocks.size());
  Edges after(end + 1), before(end + 1);
  const auto connect = [&](uint32_t from, uint32_t to) {
    after[from].push_back(to);
    before[to].push_back(from);
  };
  for (uint32_t b = 0; b < end; ++b) {
    const Instruction& last = kernel.code[kernel.blocks[b].end - 1];
    if (last.flow == Flow::kBranch) connect(b, kernel.block_at[last.target]);
    if (last.flow == Flow::kExit) connect(b, end);
    const bool falls = last.flow == Flow::kNext || last.flow == Flow::kBarrier || last.guard != kNone;
    if (falls && b + 1 == end) fail("ptx", "%s runs past its end", kernel.name.c_str());
    if (falls) connect(b, b + 1);
  }
  const std::vector<uint32_t> found = post_dominators(after, before, end);
  for (uint32_t b = 0; b < end; ++b) {
    if (found[b] != kNone && found[b] != end) kernel.blocks[b].reconvergence = kernel.blocks[found[b]].begin;
  }
}

}  // namespace ptx
