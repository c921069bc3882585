// Thread-local scratch memory that only grows: kernels ask for the same few buffers again and again, and the
// default allocator would map and unmap them (one page fault per 4 KiB) in each call.
//
//   ScratchFrame frame;                       // everything taken below is given back at the closing brace
//   float* rows = frame.take<float>(count);   // 64-byte aligned, uninitialised
#pragma once

#include <cstddef>
#include <cstdint>

#include "simd.h"

namespace hiermt {
namespace cpu {

// A stack of blocks. A block is never moved or freed before its thread ends, so a pointer stays good until
// the frame that took it closes.
class ScratchArena {
 public:
  static constexpr size_t kAlignment = 64;
  struct Block {
    Block* next;
    size_t capacity;
    size_t used;
  };
  struct Mark {
    Block* block;
    size_t used;
  };

  ScratchArena() = default;
  ScratchArena(const ScratchArena&) = delete;
  ScratchArena& operator=(const ScratchArena&) = delete;
  ~ScratchArena();

  void* take(size_t bytes);

  HIERMT_INLINE Mark mark() const { return {current_, current_ == nullptr ? 0 : current_->used}; }
  // Blocks past the marked one are emptied as they are entered again.
  HIERMT_INLINE void release(Mark mark) {
    current_ = mark.block;
    if (current_ != nullptr) current_->used = mark.used;
  }

 private:
  void advance(size_t bytes);

  Block* first_ = nullptr;
  Block* current_ = nullptr;
};

ScratchArena& thread_scratch();

namespace HIERMT_ISA {

class ScratchFrame {
 public:
  ScratchFrame() : arena_(thread_scratch()), mark_(arena_.mark()) {}
  ScratchFrame(const ScratchFrame&) = delete;
  ScratchFrame& operator=(const ScratchFrame&) = delete;
  ~ScratchFrame() { arena_.release(mark_); }

  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(arena_.take(static_cast<size_t>(count > 0 ? count : 0) * sizeof(T)));
  }

 private:
  ScratchArena& arena_;
  ScratchArena::Mark mark_;
};

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt
