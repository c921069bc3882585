#include "scratch.h"

#include <cstdlib>
#include <new>

namespace hiermt {
namespace cpu {

namespace {

constexpr size_t kHeader = ScratchArena::kAlignment;
constexpr size_t kSmallestBlock = size_t{1} << 20;

}  // namespace

ScratchArena::~ScratchArena() {
  while (first_ != nullptr) {
    Block* next = first_->next;
    std::free(first_);
    first_ = next;
  }
}

void* ScratchArena::take(size_t bytes) {
  bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  while (current_ == nullptr || current_->capacity - current_->used < bytes) advance(bytes);
  void* result = reinterpret_cast<char*>(current_) + kHeader + current_->used;
  current_->used += bytes;
  return result;
}

// Makes current_ the next block, or a new one in its place when the next one is too small.
void ScratchArena::advance(size_t bytes) {
  static_assert(sizeof(Block) <= kHeader, "the header fits before the first aligned byte");
  Block** link = current_ == nullptr ? &first_ : &current_->next;
  if (*link == nullptr || (*link)->capacity < bytes) {
    const size_t capacity = bytes > kSmallestBlock ? bytes : kSmallestBlock;
    Block* block = static_cast<Block*>(std::aligned_alloc(kAlignment, kHeader + capacity));
    if (block == nullptr) throw std::bad_alloc();
    block->next = *link;
    block->capacity = capacity;
    *link = block;
  }
  current_ = *link;
  current_->used = 0;
}

ScratchArena& thread_scratch() {
  static thread_local ScratchArena arena;
  return arena;
}

}  // namespace cpu
}  // namespace hiermt
