#include "machine.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <new>
#include <sstream>
#include <string>

#include "counts.h"
#include "fault.h"
#include "warp.h"

extern "C" char __executable_start;  // of the linker

namespace ptx {
namespace {

// A NaN as float and as double, and a negative index.
constexpr uint32_t kPoison = 0xfff7deadu;

struct Place {
  std::string path;
  size_t begin = 0, bytes = 0;
};

struct Loaded {
  Kernel kernel;
  Counts counts;
};

// Addresses of the kernels that a fork has decoded; the process that forks sees them, too.
struct Decoded {
  static constexpr size_t kMost = 64;
  size_t count = 0;
  uint64_t at[kMost] = {};
};

Decoded* shared_decoded() {
  static auto* const found = [] {
    void* memory = mmap(nullptr, sizeof(Decoded), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) fail("ptx", "no memory to share with forks");
    return new (memory) Decoded;
  }();
  return found;
}

std::map<uint64_t, Place> read_places() {
  std::map<uint64_t, Place> places;
  const char* path = std::getenv("HIERMT_SIMT_PTX");
  if (path == nullptr) return places;
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    uint64_t at = 0;
    Place place;
    words >> std::hex >> at >> std::dec >> place.begin >> place.bytes >> place.path;
    places[at] = place;
  }
  if (places.empty()) fail("ptx", "no kernels in %s", path);
  return places;
}

const std::map<uint64_t, Place>& places() {
  static const std::map<uint64_t, Place> found = read_places();
  return found;
}

std::string read_source(const Place& place) {
  std::ifstream file(place.path, std::ios::binary);
  std::string text(place.bytes, ' ');
  file.seekg(static_cast<std::streamoff>(place.begin));
  if (!file.read(text.data(), static_cast<std::streamsize>(place.bytes)))
    fail("ptx", "cannot read %s", place.path.c_str());
  return text;
}

struct Library {
  std::map<uint64_t, std::unique_ptr<Loaded>> kernels;  // by their addresses in the program

  template <class Write>
  void append(const char* variable, Write&& write_one) const {
    const char* path = std::getenv(variable);
    std::FILE* file = path != nullptr ? std::fopen(path, "a") : nullptr;
    if (file == nullptr) return;
    for (const auto& [at, one] : kernels) {
      if (one->counts.launches > 0) write_one(file, *one);
    }
    std::fclose(file);
  }
  Loaded& add(uint64_t at, const std::string& text) {
    std::unique_ptr<Loaded>& slot = kernels[at];
    slot = std::make_unique<Loaded>();
    slot->kernel = decode(text);
    slot->counts.visits.assign(slot->kernel.blocks.size(), 0);
    slot->counts.sampled.assign(slot->kernel.blocks.size(), 0);
    slot->counts.transactions.assign(slot->kernel.sites, 0);
    return *slot;
  }
  Loaded& get(uint64_t at) {
    const auto found = kernels.find(at);
    if (found != kernels.end()) return *found->second;
    const auto place = places().find(at);
    if (place == places().end())
      fail("ptx", "the kernel at %llx has no PTX", static_cast<unsigned long long>(at));
    Loaded& loaded = add(at, read_source(place->second));
    Decoded& decoded = *shared_decoded();
    if (decoded.count < Decoded::kMost) decoded.at[decoded.count++] = at;
    return loaded;
  }
};
Library library;
const Kernel* running = nullptr;

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<unsigned char, Free>;

// From malloc, so that AddressSanitizer knows its bounds.
Memory allocate(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, bytes == 0 ? 1 : bytes) != 0) fail("harness", "out of memory");
  return Memory(static_cast<unsigned char*>(memory));
}

void poison(unsigned char* memory, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) memory[i] = static_cast<unsigned char>(kPoison >> (i % 4 * 8));
}

// The threads of one block; the same memory serves one block after another.
class ThreadBlock {
 public:
  ThreadBlock(Loaded& loaded, const Geometry& geometry, const unsigned char* parameters)
      : loaded_(loaded),
        geometry_(geometry),
        threads_(geometry.block[0] * geometry.block[1] * geometry.block[2]) {
    const Kernel& kernel = loaded.kernel;
    shared_ = allocate(geometry.shared_bytes);
    warps_.resize((threads_ + kLanes - 1) / kLanes);
    for (Warp& warp : warps_) {
      files_.push_back(allocate(kernel.file_bytes));
      local_.push_back(allocate(kernel.local_bytes * kLanes));
      warp.file = files_.back().get();
      std::memset(warp.file, 0xff, kernel.file_bytes);
      warp.shared = shared_.get();
      warp.shared_bytes = geometry.shared_bytes;
      warp.local = local_.back().get();
      warp.local_bytes = kernel.local_bytes;
      warp.kernel = &kernel;
      warp.counts = &loaded.counts;
      fill_constants(warp, reinterpret_cast<uint64_t>(parameters));
    }
  }

  void run(const unsigned* index, bool sampled, const std::vector<size_t>& order) {
    poison(shared_.get(), geometry_.shared_bytes);
    std::vector<uint64_t> before;
    if (sampled) before = loaded_.counts.visits;
    for (size_t w = 0; w < warps_.size(); ++w) start(w, index, sampled);
    std::vector<uint8_t> waits(warps_.size(), 1);
    for (size_t waiting = warps_.size(); waiting > 0;) {
      waiting = 0;
      for (size_t w : order) {
        if (waits[w]) waits[w] = warps_[w].run();
        waiting += waits[w];
      }
      check_barrier(waits, waiting);
    }
    if (!sampled) return;
    for (size_t b = 0; b < before.size(); ++b)
      loaded_.counts.sampled[b] += loaded_.counts.visits[b] - before[b];
  }

  size_t warps() const { return warps_.size(); }
  unsigned threads() const { return threads_; }

 private:
  uint32_t lanes_of(size_t w) const {
    const size_t left = threads_ - w * kLanes;
    return left >= kLanes ? ~0u : (1u << left) - 1;
  }

  // A thread that has left the kernel does not come to a barrier.
  void check_barrier(const std::vector<uint8_t>& waits, size_t waiting) const {
    if (waiting == 0) return;
    for (size_t w = 0; w < warps_.size(); ++w) {
      if (!waits[w] || warps_[w].alive != lanes_of(w)) {
        fail("divergence", "a thread has left the kernel while others wait at a barrier");
      }
    }
  }

  void start(size_t w, const unsigned* index, bool sampled) {
    Warp& warp = warps_[w];
    warp.start(lanes_of(w));
    warp.sampled = sampled;
    if (warp.local_bytes > 0) poison(warp.local, warp.local_bytes * kLanes);
    for (const SpecialSlot& slot : loaded_.kernel.specials) {
      for (size_t lane = 0; lane < kLanes; ++lane) {
        const size_t thread = w * kLanes + lane;
        const size_t position[3] = {thread % geometry_.block[0],
                                    thread / geometry_.block[0] % geometry_.block[1],
                                    thread / geometry_.block[0] / geometry_.block[1]};
        switch (slot.kind) {
          case Special::kThread:
            warp.reg<uint32_t>(slot.at)[lane] = static_cast<uint32_t>(position[slot.axis]);
            break;
          case Special::kThreads:
            warp.reg<uint32_t>(slot.at)[lane] = geometry_.block[slot.axis];
            break;
          case Special::kBlock:
            warp.reg<uint32_t>(slot.at)[lane] = index[slot.axis];
            break;
          case Special::kBlocks:
            warp.reg<uint32_t>(slot.at)[lane] = geometry_.grid[slot.axis];
            break;
          case Special::kLane:
            warp.reg<uint32_t>(slot.at)[lane] = static_cast<uint32_t>(lane);
            break;
          case Special::kLocalBase:
            warp.reg<uint64_t>(slot.at)[lane] = reinterpret_cast<uint64_t>(warp.local) +
                                                lane * warp.local_bytes + static_cast<uint64_t>(slot.axis);
        }
      }
    }
  }

  static void fill_constants(Warp& warp, uint64_t parameters) {
    for (const Constant& one : warp.kernel->constants) {
      const uint64_t bits = one.bits + (one.parameter ? parameters : 0);
      if (one.bytes == 0) {
        warp.predicate(one.at) = static_cast<uint32_t>(bits);
        continue;
      }
      for (size_t lane = 0; lane < kLanes; ++lane)
        std::memcpy(warp.file + one.at + lane * one.bytes, &bits, one.bytes);
    }
  }

  Loaded& loaded_;
  const Geometry& geometry_;
  unsigned threads_;
  Memory shared_;
  std::vector<Memory> files_, local_;
  std::vector<Warp> warps_;
};

// The arguments as the kernel reads them. Each has the size that the compiled code expects.
Memory parameters_of(const Kernel& kernel, const std::vector<Argument>& arguments) {
  Memory memory = allocate(kernel.parameter_bytes);
  if (arguments.size() != kernel.parameters.size()) {
    fail("ptx", "%zu arguments for %zu parameters", arguments.size(), kernel.parameters.size());
  }
  for (size_t i = 0; i < arguments.size(); ++i) {
    const Parameter& parameter = kernel.parameters[i];
    if (arguments[i].bytes != parameter.bytes) {
      fail("ptx", "argument %zu has %zu bytes, the kernel reads %zu", i, arguments[i].bytes, parameter.bytes);
    }
    std::memcpy(memory.get() + parameter.offset, arguments[i].data, parameter.bytes);
  }
  return memory;
}

size_t sampled_blocks() {
  if (std::getenv("HIERMT_SIMT_COUNTS") == nullptr) return 0;
  const char* text = std::getenv("HIERMT_SIMT_SAMPLE");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : 8;
}

void run(Loaded& loaded, const Geometry& geometry, const std::vector<Argument>& arguments,
         std::vector<size_t> (*order)(size_t count)) {
  running = &loaded.kernel;
  const Memory parameters = parameters_of(loaded.kernel, arguments);
  ThreadBlock block(loaded, geometry, parameters.get());
  if (block.threads() > loaded.kernel.max_threads) {
    fail("launch bounds", "%u threads a block, the kernel allows %u", block.threads(),
         loaded.kernel.max_threads);
  }
  const size_t blocks = size_t{geometry.grid[0]} * geometry.grid[1] * geometry.grid[2];
  const size_t samples = std::min(sampled_blocks(), blocks);
  Counts& counts = loaded.counts;
  ++counts.launches;
  counts.blocks += blocks;
  counts.warps += blocks * block.warps();
  counts.threads = std::max(counts.threads, block.threads());
  counts.shared_bytes = std::max(counts.shared_bytes, geometry.shared_bytes);
  for (size_t i : order(blocks)) {
    const unsigned index[3] = {static_cast<unsigned>(i % geometry.grid[0]),
                               static_cast<unsigned>(i / geometry.grid[0] % geometry.grid[1]),
                               static_cast<unsigned>(i / geometry.grid[0] / geometry.grid[1])};
    // Spread over the launch, the first and the last among them.
    const bool sampled =
        samples > 0 && (i * samples / blocks != (i + 1) * samples / blocks || samples == blocks);
    block.run(index, sampled, order(block.warps()));
  }
  running = nullptr;
}

std::vector<size_t> in_order(size_t count) {
  std::vector<size_t> order(count);
  for (size_t i = 0; i < count; ++i) order[i] = i;
  return order;
}

}  // namespace

void fail(const char* detector, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  end_with_fault(detector, running != nullptr ? running->name.c_str() : "PTX", format, arguments);
}

void launch(const void* kernel, const Geometry& geometry, const std::vector<Argument>& arguments,
            std::vector<size_t> (*order)(size_t count)) {
  const auto at = static_cast<uint64_t>(static_cast<const char*>(kernel) - &__executable_start);
  run(library.get(at), geometry, arguments, order);
}

void run_text(const std::string& text, const Geometry& geometry, const std::vector<Argument>& arguments) {
  run(library.add(0, text), geometry, arguments, in_order);
}

size_t decode_all(const std::string& text) {
  size_t count = 0;
  constexpr const char* kEntry = ".entry ";
  for (size_t begin = text.find(kEntry); begin != std::string::npos; ++count) {
    const size_t end = text.find(kEntry, begin + 1);
    decode(text.substr(begin, end - begin));
    begin = end;
  }
  return count;
}

void before_forks() {
  Decoded& decoded = *shared_decoded();
  // What is decoded here is noted, too.
  for (size_t i = 0, count = decoded.count; i < count; ++i) library.get(decoded.at[i]);
  decoded.count = 0;
}

void write_counts() {
  library.append("HIERMT_SIMT_COUNTS",
                 [](std::FILE* file, const Loaded& one) { write(file, one.kernel, one.counts); });
  library.append("HIERMT_SIMT_NAMES", [](std::FILE* file, const Loaded& one) {
    std::fprintf(file, "%s\n", one.kernel.name.c_str());
  });
}

}  // namespace ptx
