// A warp: 32 lanes that execute an instruction together, those of them that are active.
//
// Lanes that part at a branch meet again at its immediate post-dominator, as on a GPU. Each instruction
// therefore runs, and is counted, as often as a GPU issues it.
#pragma once

#include <cstring>
#include <memory>

#include "kernel.h"

namespace ptx {

struct Counts;

struct Warp {
  unsigned char* file = nullptr;  // registers: a register is 32 values side by side, a predicate 32 bits
  uint32_t exec = 0;              // lanes that execute the instruction
  uint32_t alive = 0;             // lanes that have not left the kernel
  unsigned char* shared = nullptr;
  size_t shared_bytes = 0;
  unsigned char* local = nullptr;
  size_t local_bytes = 0;
  const Kernel* kernel = nullptr;
  Counts* counts = nullptr;
  bool sampled = false;  // addresses are counted, too

  template <class T>
  T* reg(uint32_t at) {
    return reinterpret_cast<T*>(file + at);
  }
  uint32_t& predicate(uint32_t at) { return *reg<uint32_t>(at); }

  // Runs until a barrier or the end of the kernel; true at a barrier.
  bool run();
  void start(uint32_t lanes);

 private:
  struct Entry {
    uint32_t pc, until, mask;
  };
  void part(uint32_t taken, uint32_t target, uint32_t next, uint32_t meeting);
  void leave(uint32_t lanes);

  std::unique_ptr<Entry[]> stack_;
  size_t depth_ = 0, capacity_ = 0;
  void push(Entry entry);
};

// d[lane] = f(lane) for the lanes that execute. Registers overlap wholly or not at all. Lanes that have left
// the kernel may be written.
template <class D, class F>
inline void each_lane(Warp& warp, D* __restrict d, F&& f) {
  if (warp.exec == warp.alive) {
#pragma GCC ivdep
    for (int lane = 0; lane < kLanes; ++lane) d[lane] = f(lane);
  } else {
    for (int lane = 0; lane < kLanes; ++lane) {
      if (warp.exec >> lane & 1) d[lane] = f(lane);
    }
  }
}

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

// The handler of an opcode, or nullptr. Each file knows its own.
Handler arithmetic(const std::string& opcode);
Handler comparison(const std::string& opcode);
Handler conversion(const std::string& opcode);
Handler collective(const std::string& opcode);
// Of a load, a store or an atomic: by what it does, the bytes of a value in memory and in its register.
Handler access(const std::string& operation, const std::string& type, int register_bytes);

}  // namespace ptx
