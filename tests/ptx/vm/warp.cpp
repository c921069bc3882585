#include "warp.h"

#include <algorithm>

#include "counts.h"

namespace ptx {

void Warp::push(Entry entry) {
  if (depth_ == capacity_) {
    const size_t capacity = capacity_ == 0 ? 32 : 2 * capacity_;
    std::unique_ptr<Entry[]> larger(new Entry[capacity]);
    std::copy_n(stack_.get(), depth_, larger.get());
    stack_ = std::move(larger);
    capacity_ = capacity;
  }
  stack_[depth_++] = entry;
}

void Warp::start(uint32_t lanes) {
  alive = lanes;
  depth_ = 0;
  push({0, kEnd, lanes});
}

// The lanes `taken` of the running entry go to `target`, the others to `next`; both until `meeting`.
void Warp::part(uint32_t taken, uint32_t target, uint32_t next, uint32_t meeting) {
  Entry& top = stack_[depth_ - 1];
  const uint32_t others = top.mask & ~taken;
  if (others == 0) {
    top.pc = target;
  } else if (taken == 0) {
    top.pc = next;
  } else {
    top.pc = meeting;
    if (next != meeting) push({next, meeting, others});
    if (target != meeting) push({target, meeting, taken});
  }
}

void Warp::leave(uint32_t lanes) {
  alive &= ~lanes;
  for (size_t i = 0; i < depth_; ++i) stack_[i].mask &= ~lanes;
}

bool Warp::run() {
  while (depth_ > 0) {
    Entry& top = stack_[depth_ - 1];
    if (top.mask == 0 || top.pc == top.until) {
      --depth_;
      continue;
    }
    const uint32_t index = kernel->block_at[top.pc];
    const Block& block = kernel->blocks[index];
    const uint32_t mask = top.mask;
    count_block(*counts, index);
    for (uint32_t pc = block.begin; pc < block.end; ++pc) {
      const Instruction& one = kernel->code[pc];
      exec = mask;
      if (one.guard != kNone) {
        const uint32_t guard = predicate(one.guard);
        exec &= one.negated ? ~guard : guard;
      }
      if (one.run != nullptr) {
        if (exec != 0) one.run(*this, one);
        continue;
      }
      if (one.flow == Flow::kBranch) {
        part(exec, one.target, pc + 1, block.reconvergence);
      } else if (one.flow == Flow::kExit) {
        top.pc = pc + 1;
        leave(exec);
      } else {
        if (exec != alive)
          fail("divergence", "line %d: a barrier with lanes %08x of %08x", one.line, exec, alive);
        top.pc = pc + 1;
        return true;
      }
      break;
    }
    if (kernel->code[block.end - 1].flow == Flow::kNext) stack_[depth_ - 1].pc = block.end;
  }
  return false;
}

}  // namespace ptx
