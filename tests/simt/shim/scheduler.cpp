// Scheduler of the SIMT harness: one fiber per thread of a block, switched at barriers and warp functions.
#include "scheduler.h"

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace simt {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr int kWarpLanes = 32;
// A NaN as float and as double, and a negative index as int32.
constexpr uint32_t kPoison = 0xfff7deadu;

enum class State { kReady, kWaiting, kDone };

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  void* fake_stack = nullptr;
  uint3 index{};
  State state = State::kReady;
  Collective kind{};
  unsigned mask = 0;
  int line = 0;
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
};

Block block;
Fiber* running = nullptr;
void* scheduler_stack_pointer = nullptr;
[[maybe_unused]] void* scheduler_fake_stack = nullptr;
[[maybe_unused]] const void* scheduler_stack = nullptr;
[[maybe_unused]] size_t scheduler_stack_bytes = 0;

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

void enter_fiber_stack(void* fake_stack, bool first_time) {
#if defined(__SANITIZE_ADDRESS__)
  const void* stack = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(fake_stack, &stack, &bytes);
  if (scheduler_stack == nullptr && first_time) {
    scheduler_stack = stack;
    scheduler_stack_bytes = bytes;
  }
#endif
  (void)fake_stack;
  (void)first_time;
}

void leave_to_scheduler(bool last) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &running->fake_stack, scheduler_stack,
                                 scheduler_stack_bytes);
#endif
  (void)last;
  Fiber* self = running;
  hiermt_simt_switch(&self->stack_pointer, scheduler_stack_pointer);
  enter_fiber_stack(self->fake_stack, false);
}

void fiber_main() {
  enter_fiber_stack(nullptr, true);
  (*block.body)();
  running->state = State::kDone;
  leave_to_scheduler(true);
  std::abort();
}

void resume(Fiber& fiber) {
  running = &fiber;
  threadIdx = fiber.index;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack, kStackBytes);
#endif
  hiermt_simt_switch(&scheduler_stack_pointer, fiber.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

void prepare(Fiber& fiber) {
  if (fiber.stack == nullptr) {
    void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail("harness", "no memory for a fiber");
    fiber.stack = static_cast<char*>(memory);
  }
  void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes);
  *--top = nullptr;  // keeps the stack 16-byte aligned at the entry of fiber_main
  *--top = reinterpret_cast<void*>(&fiber_main);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
  fiber.state = State::kReady;
}

// Releases the lanes of a warp function once all of them have called it.
bool release_warp(size_t first, const Fiber& caller) {
  for (int lane = 0; lane < kWarpLanes; ++lane) {
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
        other.mask != caller.mask) {
      return false;
    }
  }
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    if (!(caller.mask >> lane & 1)) continue;
    Fiber& to = block.fibers[first + lane];
    for (int from = 0; from < kWarpLanes; ++from) {
      to.received[from] = caller.mask >> from & 1 ? block.fibers[first + from].value : 0;
    }
  }
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    if (caller.mask >> lane & 1) block.fibers[first + lane].state = State::kReady;
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

void run_block(const std::vector<size_t>& order) {
  for (size_t i = 0; i < block.threads; ++i) prepare(block.fibers[i]);
  block.shared.clear();
  while (true) {
    bool progress = false, done = true;
    for (size_t i : order) {
      Fiber& fiber = block.fibers[i];
      if (fiber.state == State::kReady) {
        resume(fiber);
        progress = true;
        if (fiber.state == State::kWaiting && fiber.kind != Collective::kBarrier) {
          release_warp(i / kWarpLanes * kWarpLanes, fiber);
        }
      }
      done = done && fiber.state == State::kDone;
    }
    if (done) return;
    if (progress) continue;
    if (release_barrier()) continue;
    for (size_t i : order) {
      const Fiber& fiber = block.fibers[i];
      if (fiber.kind != Collective::kBarrier) {
        release_warp(i / kWarpLanes * kWarpLanes, fiber);
        fail("divergence", "line %d: lanes of the mask %08x wait for lanes that never call it", fiber.line,
             fiber.mask);
      }
    }
  }
}

}  // namespace

void fail(const char* detector, const char* format, ...) {
  std::fprintf(stderr, "simt: %s: block (%u, %u, %u): ", detector, blockIdx.x, blockIdx.y, blockIdx.z);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  std::fflush(stderr);
  _exit(70);
}

int lane() {
  return static_cast<int>(static_cast<size_t>(running - block.fibers.data()) % kWarpLanes);
}

const uint64_t* meet(Collective kind, unsigned mask, uint64_t value, int line) {
  if (kind != Collective::kBarrier && !(mask >> lane() & 1)) {
    fail("divergence", "line %d: lane %d calls with the mask %08x, which leaves it out", line, lane(), mask);
  }
  running->kind = kind;
  running->mask = mask;
  running->line = line;
  running->value = value;
  running->state = State::kWaiting;
  leave_to_scheduler(false);
  return running->received;
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
  for (size_t i : order(size_t{grid.x} * grid.y * grid.z)) {
    blockIdx = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                static_cast<unsigned>(i / grid.x / grid.y)};
    run_block(order(count));
  }
  block.shared.clear();
}

}  // namespace simt
