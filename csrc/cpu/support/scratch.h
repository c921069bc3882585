// Scratch memory of a thread: kernels ask for the same few buffers again and again, and the default allocator
// would map and unmap them (one page fault per 4 KiB) in each call.
//
//   ScratchFrame frame;                       // everything taken below is given back at the closing brace
//   float* rows = frame.take<float>(count);   // 64-byte aligned, uninitialised
//
// Between calls a thread keeps one block, as large as the largest of the latest calls needed. Memory far
// above that goes back to the system by itself (ScratchCall), all of it on request (release_scratch).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "cpu/simd/simd.h"

namespace hiermt {
namespace cpu {

// A stack of blocks. A block is never moved while a frame is open, so a pointer stays good until the frame
// that took it closes.
class ScratchArena {
 public:
  static constexpr size_t kAlignment = 64;
  struct Block {
    Block* previous;
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

  // Throws OutOfMemory.
  void* take(int64_t count, size_t size);

  HIERMT_INLINE Mark open() {
    if (depth_++ == 0) acquire();
    return {top_, top_ == nullptr ? 0 : top_->used};
  }
  HIERMT_INLINE void close(Mark mark) {
    if (--depth_ == 0) return finish();
    // Blocks above the marked one stay for the next frame, which most likely is as large.
    if (top_ != mark.block) rewind(mark.block);
    if (top_ != nullptr) top_->used = mark.used;
  }

  // The rest is for scratch.cpp. Each but claim() wants the arena idle and acquired.
  bool claim();  // for the calling thread, if it has no owner
  void vacate();
  bool try_acquire() { return !busy_.exchange(true, std::memory_order_acquire); }
  void let_go() { busy_.store(false, std::memory_order_release); }
  size_t release();  // gives everything back, returns how much
  void trim();

  ScratchArena* next = nullptr;  // in the list of all arenas

 private:
  void acquire();
  void finish();
  void rewind(Block* block);
  void push(size_t bytes);

  Block* top_ = nullptr;    // the block that is being filled, on top of those that are full
  Block* spare_ = nullptr;  // emptied blocks
  size_t below_ = 0;        // bytes in use in the blocks below the top
  int64_t depth_ = 0;       // open frames
  size_t peak_ = 0;         // most bytes in use at once since the last trim()
  size_t wanted_ = 0;       // capacity of the next first block
  size_t before_ = 0;       // peak_ of the period before
  std::atomic<bool> busy_{false};
  std::atomic<bool> owned_{false};
};

ScratchArena& thread_scratch();

// Surrounds one call of an operator: every so many calls the arenas of all threads are trimmed to what the
// latest calls needed.
class ScratchCall {
 public:
  ScratchCall() = default;
  ScratchCall(const ScratchCall&) = delete;
  ScratchCall& operator=(const ScratchCall&) = delete;
  ~ScratchCall();
};

// Gives back the scratch memory of every thread that runs no kernel at the moment; returns the bytes.
size_t release_scratch();

namespace HIERMT_ISA {

class ScratchFrame {
 public:
  ScratchFrame() : arena_(thread_scratch()), mark_(arena_.open()) {}
  ScratchFrame(const ScratchFrame&) = delete;
  ScratchFrame& operator=(const ScratchFrame&) = delete;
  ~ScratchFrame() { arena_.close(mark_); }

  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(arena_.take(count, sizeof(T)));
  }

 private:
  ScratchArena& arena_;
  ScratchArena::Mark mark_;
};

}  // namespace HIERMT_ISA
}  // namespace cpu
}  // namespace hiermt
