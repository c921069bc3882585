#include "cpu/support/scratch.h"

#include <sys/mman.h>

#include <algorithm>

#include "cpu/support/out_of_memory.h"

namespace hiermt::cpu {

namespace {

constexpr size_t kHeader = ScratchArena::kAlignment;
constexpr size_t kSmallestBlock = size_t{1} << 20;
// trim() keeps a block of up to kFloor bytes, or of up to kExcess times the recent need.
constexpr size_t kFloor = size_t{4} << 20;
constexpr size_t kExcess = 2;
// Operator calls, on any thread, between two trims.
constexpr uint64_t kPeriod = 8;

std::atomic<ScratchArena*> g_arenas{nullptr};
std::atomic<uint64_t> g_calls{0};

// Pages from the system, since free() may keep memory instead of returning it.
void* map(size_t bytes) {
  void* const pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED)
    throw OutOfMemory("the working memory of the CPU kernels", static_cast<double>(bytes));
  return pages;
}

size_t drop(ScratchArena::Block*& block) {
  size_t bytes = 0;
  while (block != nullptr) {
    ScratchArena::Block* const previous = block->previous;
    const size_t size = kHeader + block->capacity;
    munmap(block, size);
    bytes += size;
    block = previous;
  }
  return bytes;
}

// The arena of a thread. Arenas outlive their threads: a new thread takes over a vacant one.
struct Holder {
  ScratchArena* arena = nullptr;

  Holder() {
    for (arena = g_arenas.load(std::memory_order_acquire); arena != nullptr; arena = arena->next) {
      if (arena->claim()) return;
    }
    arena = new ScratchArena();
    arena->claim();
    arena->next = g_arenas.load(std::memory_order_relaxed);
    while (!g_arenas.compare_exchange_weak(arena->next, arena, std::memory_order_release)) {
    }
  }
  ~Holder() { arena->vacate(); }
};

template <class Body>
void for_each_idle(Body&& body) {
  for (auto* arena = g_arenas.load(std::memory_order_acquire); arena != nullptr; arena = arena->next) {
    if (!arena->try_lock()) continue;
    body(*arena);
    arena->unlock();
  }
}

}  // namespace

void* ScratchArena::take(int64_t count, size_t size) {
  constexpr size_t kMost = size_t{1} << 60;
  const size_t items = count > 0 ? static_cast<size_t>(count) : 0;
  if (items > kMost / size) {
    throw OutOfMemory("the working memory of the CPU kernels",
                      static_cast<double>(items) * static_cast<double>(size));
  }
  const size_t bytes = (items * size + kAlignment - 1) / kAlignment * kAlignment;
  if (top_ == nullptr || top_->capacity - top_->used < bytes) push(bytes);
  void* const result = reinterpret_cast<char*>(top_) + kHeader + top_->used;
  top_->used += bytes;
  peak_ = std::max(peak_, below_ + top_->used);
  return result;
}

// Makes a spare block that is large enough, or a new one, the top.
void ScratchArena::push(size_t bytes) {
  static_assert(sizeof(Block) <= kHeader, "the header fits before the first aligned byte");
  Block** link = &spare_;
  while (*link != nullptr && (*link)->capacity < bytes) link = &(*link)->previous;
  Block* block = *link;
  if (block != nullptr) {
    *link = block->previous;
  } else {
    size_t capacity = std::max(bytes, kSmallestBlock);
    if (top_ == nullptr) capacity = std::max(capacity, wanted_);
    block = static_cast<Block*>(map(kHeader + capacity));
    block->capacity = capacity;
  }
  if (top_ != nullptr) below_ += top_->used;
  block->previous = top_;
  block->used = 0;
  top_ = block;
}

void ScratchArena::rewind(Block* block) {
  while (top_ != block) {
    Block* const emptied = top_;
    top_ = emptied->previous;
    if (top_ != nullptr) below_ -= top_->used;
    emptied->previous = spare_;
    spare_ = emptied;
  }
}

// Closes the outermost frame. Several blocks are released in favour of a single one of their size, which is
// allocated when it is needed.
void ScratchArena::finish() {
  if (top_ != nullptr && (top_->previous != nullptr || spare_ != nullptr)) {
    wanted_ = std::max(peak_, last_peak_);
    below_ = 0;
    drop(top_);
    drop(spare_);
  } else if (top_ != nullptr) {
    top_->used = 0;
  }
  unlock();
}

void ScratchArena::lock() {
  while (!try_lock()) {  // another thread is trimming it, which is short
  }
}

bool ScratchArena::claim() {
  return !owned_.exchange(true, std::memory_order_acq_rel);
}

void ScratchArena::vacate() {
  lock();
  release();
  unlock();
  owned_.store(false, std::memory_order_release);
}

size_t ScratchArena::release() {
  peak_ = last_peak_ = wanted_ = 0;
  return drop(top_) + drop(spare_);
}

// The recent need covers two periods, so that a training loop, which alternates large and small calls, keeps
// its memory.
void ScratchArena::trim() {
  const size_t need = std::max(peak_, last_peak_);
  last_peak_ = peak_;
  peak_ = 0;
  wanted_ = std::min(wanted_, need);
  if (top_ == nullptr || top_->capacity <= std::max(kFloor, kExcess * need)) return;
  drop(top_);
}

ScratchArena& thread_scratch() {
  static thread_local Holder holder;
  return *holder.arena;
}

ScratchCall::~ScratchCall() {
  if (g_calls.fetch_add(1, std::memory_order_relaxed) % kPeriod != kPeriod - 1) return;
  for_each_idle([](ScratchArena& arena) { arena.trim(); });
}

size_t release_scratch() {
  size_t bytes = 0;
  for_each_idle([&](ScratchArena& arena) { bytes += arena.release(); });
  return bytes;
}

}  // namespace hiermt::cpu
