// Scratch memory of a thread, reused from call to call: the default allocator would map and unmap it in each
// call, at one page fault per 4 KiB.
//
//   ScratchFrame frame;                       // releases everything taken from it at the end of the scope
//   float* rows = frame.take<float>(count);   // 64-byte aligned, uninitialised
//
// Between calls a thread keeps one block of the size that the largest recent call needed. ScratchCall returns
// memory far above that to the system; release_scratch() returns all of it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "cpu/simd/simd.h"

namespace hiermt::cpu {

// A stack of blocks. A block does not move while a frame is open: a pointer is valid until its frame closes.
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
    if (depth_++ == 0) lock();
    return {top_, top_ == nullptr ? 0 : top_->used};
  }
  HIERMT_INLINE void close(Mark mark) {
    if (--depth_ == 0) return finish();
    // Blocks above the marked one are kept for the next frame, which is likely as large.
    if (top_ != mark.block) rewind(mark.block);
    if (top_ != nullptr) top_->used = mark.used;
  }

  // The rest is for scratch.cpp.
  bool claim();   // makes the calling thread the owner, unless the arena has one
  void vacate();  // ends the ownership and releases all memory
  bool try_lock() { return !busy_.exchange(true, std::memory_order_acquire); }
  void unlock() { busy_.store(false, std::memory_order_release); }
  // With the lock held and no frame open:
  size_t release();  // returns all memory to the system; the result is its size
  void trim();       // returns memory far above the recent need

  ScratchArena* next = nullptr;  // in the list of all arenas

 private:
  void lock();
  void finish();
  void rewind(Block* block);
  void push(size_t bytes);

  Block* top_ = nullptr;    // the block that is being filled, on top of those that are full
  Block* spare_ = nullptr;  // emptied blocks
  size_t below_ = 0;        // bytes in use in the blocks below the top
  int64_t depth_ = 0;       // open frames
  size_t peak_ = 0;         // most bytes in use at once since the last trim()
  size_t last_peak_ = 0;    // peak_ of the period before
  size_t wanted_ = 0;       // capacity of the next first block
  std::atomic<bool> busy_{false};
  std::atomic<bool> owned_{false};
};

ScratchArena& thread_scratch();

// Surrounds one call of an operator. Every few calls the arenas of all threads are trimmed to the recent
// need.
class ScratchCall {
 public:
  ScratchCall() = default;
  ScratchCall(const ScratchCall&) = delete;
  ScratchCall& operator=(const ScratchCall&) = delete;
  ~ScratchCall();
};

// Returns the scratch memory of every thread without a running kernel to the system; the result is its size.
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
}  // namespace hiermt::cpu
