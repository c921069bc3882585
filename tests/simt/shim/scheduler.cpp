// Scheduler of the SIMT harness: one fiber per thread of a block, switched at barriers and warp functions. A fiber that
// waits continues the next one itself. Compiled without the sanitizers, which look at the kernels.
#include "scheduler.h"

#include <sanitizer/common_interface_defs.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "fault.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace simt {
namespace {

// Not a power of two: the same variable of many threads would share a few places of the caches.
constexpr size_t kStackBytes = 256 * 1024 + 4096 + 17 * 64;
constexpr size_t kMaxFibers = 1024;
constexpr int kWarpLanes = 32;
// A NaN as float and as double, and a negative index as int32.
constexpr uint32_t kPoison = 0xfff7deadu;

enum class State { kReady, kWaiting, kDone };

struct Fiber {
  void* stack_pointer = nullptr;
  uint3 index{};
  State state = State::kReady;
  Collective kind{};
  unsigned mask = 0;
  int line = 0;
  Together together = nullptr;
  uint64_t value = 0;
  uint64_t received[kWarpLanes] = {};
};

struct Piece {
  size_t bytes;
  std::unique_ptr<void, void (*)(void*)> memory;
};

struct Block {
  std::vector<Fiber> fibers;
  size_t threads = 0;
  size_t shared_bytes = 0;
  // By offset; an empty piece begins where the next one does.
  std::map<std::pair<size_t, bool>, Piece> shared;
  const std::function<void()>* body = nullptr;
  // Threads run in this order, round after round; `at` is the next place in it.
  std::vector<size_t> order;
  size_t at = 0;
  // Threads that have not left the kernel.
  size_t left = 0;
  // Whether one has run in this round.
  bool progress = false;
};

Block block;
Fiber* running = nullptr;
// Of the code that launches.
void* host_stack_pointer = nullptr;

#if !defined(__x86_64__)
#error "the SIMT harness switches stacks on x86-64 only"
#endif

// Saves the callee-saved registers on the current stack, stores the stack pointer in *from and continues at
// `to`.
extern "C" void hiermt_simt_switch(void** from, void* to);
asm(R"(
.text
.globl hiermt_simt_switch
hiermt_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

// The stacks of all fibers, one beside the other.
char* stacks() {
  static char* const all = [] {
    void* memory = mmap(nullptr, kMaxFibers * kStackBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) fail("harness", "no memory for the fibers");
    return static_cast<char*>(memory);
  }();
  return all;
}

// What AddressSanitizer takes for the stack: within the stacks of a block, fibers switch without a word to it.
class OnFibers {
 public:
  explicit OnFibers(size_t count) {
    __sanitizer_start_switch_fiber(&fake_stack_, stacks(), count * kStackBytes);
    __sanitizer_finish_switch_fiber(nullptr, &host_, &host_bytes_);
  }
  ~OnFibers() {
    __sanitizer_start_switch_fiber(nullptr, host_, host_bytes_);
    __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
  }
  OnFibers(const OnFibers&) = delete;
  OnFibers& operator=(const OnFibers&) = delete;

 private:
  void* fake_stack_ = nullptr;
  const void* host_ = nullptr;
  size_t host_bytes_ = 0;
};

Fiber* next_ready();

// Continues the next fiber, or the host when all are done.
void leave(void** from) {
  Fiber* const next = next_ready();
  if (next != nullptr && from == &next->stack_pointer) return;
  running = next;
  if (next != nullptr) threadIdx = next->index;
  hiermt_simt_switch(from, next == nullptr ? host_stack_pointer : next->stack_pointer);
}

void fiber_main() {
  (*block.body)();
  running->state = State::kDone;
  --block.left;
  leave(&running->stack_pointer);
  std::abort();
}

void prepare(size_t i) {
  Fiber& fiber = block.fibers[i];
  void** top = reinterpret_cast<void**>(stacks() + (i + 1) * kStackBytes);
  *--top = nullptr;  // keeps the stack 16-byte aligned at the entry of fiber_main
  *--top = reinterpret_cast<void*>(&fiber_main);
  for (int register_ = 0; register_ < 6; ++register_) *--top = nullptr;
  fiber.stack_pointer = top;
  fiber.state = State::kReady;
}

// Releases the lanes of a warp function once all of them have called it.
bool release_warp(size_t first, const Fiber& caller) {
  // In the usual order of threads the last lane comes last: it tells at once that the others wait for it.
  for (int lane = kWarpLanes - 1; lane >= 0; --lane) {
    if (!(caller.mask >> lane & 1)) continue;
    if (first + lane >= block.threads) {
      fail("divergence", "line %d: the mask %08x names lane %d, which the block does not have", caller.line,
           caller.mask, lane);
    }
    const Fiber& other = block.fibers[first + lane];
    if (other.state == State::kDone) {
      fail("divergence", "line %d: lane %d of the mask %08x has left the kernel", caller.line, lane,
           caller.mask);
    }
    if (other.state != State::kWaiting) return false;
    if (other.kind == Collective::kBarrier || other.line != caller.line || other.kind != caller.kind ||
        other.mask != caller.mask || other.together != caller.together) {
      return false;
    }
  }
  uint64_t values[kWarpLanes] = {};
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    if (caller.mask >> lane & 1) values[lane] = block.fibers[first + lane].value;
  }
  if (caller.together != nullptr) caller.together(values);
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    if (!(caller.mask >> lane & 1)) continue;
    Fiber& to = block.fibers[first + lane];
    // Each lane has a copy, since another one may come to its next function before this one has read.
    if (caller.kind != Collective::kSyncWarp) std::memcpy(to.received, values, sizeof(values));
    to.state = State::kReady;
  }
  return true;
}

bool release_barrier() {
  int line = 0;
  for (size_t i = 0; i < block.threads; ++i) {
    const Fiber& fiber = block.fibers[i];
    if (fiber.state == State::kDone)
      fail("divergence", "a thread has left the kernel while others wait at a barrier");
    if (fiber.kind != Collective::kBarrier) return false;
    if (line != 0 && fiber.line != line) {
      fail("divergence", "threads wait at the barriers of line %d and of line %d", line, fiber.line);
    }
    line = fiber.line;
  }
  for (size_t i = 0; i < block.threads; ++i) block.fibers[i].state = State::kReady;
  return true;
}

// The next fiber that can run; none when all are done.
Fiber* next_ready() {
  while (true) {
    while (block.at < block.threads) {
      Fiber& fiber = block.fibers[block.order[block.at++]];
      if (fiber.state != State::kReady) continue;
      block.progress = true;
      return &fiber;
    }
    if (block.left == 0) return nullptr;
    block.at = 0;
    const bool progress = block.progress;
    block.progress = false;
    if (progress || release_barrier()) continue;
    for (size_t i : block.order) {
      const Fiber& fiber = block.fibers[i];
      if (fiber.kind != Collective::kBarrier) {
        release_warp(i / kWarpLanes * kWarpLanes, fiber);
        fail("divergence", "line %d: lanes of the mask %08x wait for lanes that never call it", fiber.line,
             fiber.mask);
      }
    }
  }
}

void run_block(std::vector<size_t> order) {
  for (size_t i = 0; i < block.threads; ++i) prepare(i);
  block.shared.clear();
  block.order = std::move(order);
  block.at = 0;
  block.left = block.threads;
  block.progress = false;
  leave(&host_stack_pointer);
}

}  // namespace

void fail(const char* detector, const char* format, ...) {
  char where[64];
  std::snprintf(where, sizeof(where), "block (%u, %u, %u)", blockIdx.x, blockIdx.y, blockIdx.z);
  va_list arguments;
  va_start(arguments, format);
  ptx::end_with_fault(detector, where, format, arguments);
}

int lane() {
  return static_cast<int>(static_cast<size_t>(running - block.fibers.data()) % kWarpLanes);
}

const uint64_t* meet(Collective kind, unsigned mask, uint64_t value, int line) {
  return meet(kind, mask, value, line, nullptr);
}

const uint64_t* meet(Collective kind, unsigned mask, uint64_t value, int line, Together together) {
  Fiber& self = *running;
  const size_t number = static_cast<size_t>(&self - block.fibers.data());
  if (kind != Collective::kBarrier && !(mask >> number % kWarpLanes & 1)) {
    fail("divergence", "line %d: lane %d calls with the mask %08x, which leaves it out", line, lane(), mask);
  }
  self.kind = kind;
  self.mask = mask;
  self.line = line;
  self.together = together;
  self.value = value;
  self.state = State::kWaiting;
  if (kind != Collective::kBarrier) release_warp(number / kWarpLanes * kWarpLanes, self);
  leave(&self.stack_pointer);
  return self.received;
}

void* shared(size_t begin, size_t bytes) {
  if (begin + bytes > block.shared_bytes) {
    fail("shared memory", "%zu bytes taken, the launch gave %zu", begin + bytes, block.shared_bytes);
  }
  const std::pair<size_t, bool> place{begin, bytes == 0};
  const auto found = block.shared.find(place);
  if (found != block.shared.end()) {
    if (found->second.bytes != bytes) fail("shared memory", "threads disagree about the piece at %zu", begin);
    return found->second.memory.get();
  }
  void* memory = nullptr;
  if (posix_memalign(&memory, 16, bytes == 0 ? 1 : bytes) != 0) fail("harness", "out of memory");
  for (size_t i = 0; i < bytes; ++i) static_cast<unsigned char*>(memory)[i] = kPoison >> (i % 4 * 8) & 0xff;
  block.shared.emplace(place, Piece{bytes, {memory, &std::free}});
  return memory;
}

void run_grid(dim3 grid, dim3 threads, size_t shared_bytes, const std::function<void()>& body, Order order) {
  const size_t count = size_t{threads.x} * threads.y * threads.z;
  if (block.fibers.size() < count) block.fibers.resize(count);
  block.threads = count;
  block.shared_bytes = shared_bytes;
  block.body = &body;
  blockDim = threads;
  gridDim = grid;
  for (size_t i = 0; i < count; ++i) {
    block.fibers[i].index = {static_cast<unsigned>(i % threads.x),
                             static_cast<unsigned>(i / threads.x % threads.y),
                             static_cast<unsigned>(i / threads.x / threads.y)};
  }
  const OnFibers stack(count);
  for (size_t i : order(size_t{grid.x} * grid.y * grid.z)) {
    blockIdx = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                static_cast<unsigned>(i / grid.x / grid.y)};
    run_block(order(count));
  }
  block.shared.clear();
}

}  // namespace simt
