#include "counts.h"

#include <algorithm>
#include <map>
#include <unordered_set>

namespace ptx {

const char* const kClassNames[kClasses] = {
    "ffma",        "float",        "double", "mufu",    "integer", "mma",    "load_shared", "store_shared",
    "load_global", "store_global", "local",  "shuffle", "barrier", "branch", "free",
};

namespace {

constexpr int kBanks = 32;
constexpr uint64_t kSector = 32;

// Shared memory serves the lanes of 128 bytes at a time: 32, 16 or 8 lanes of 4, 8 or 16 bytes. Such a pass
// takes as many wavefronts as the most loaded bank has distinct words. A pass that reads the words of an
// earlier one is served with it.
uint64_t wavefronts(const uint64_t* addresses, uint32_t lanes, uint32_t bytes) {
  const int width = static_cast<int>(bytes < 4 ? 1 : bytes / 4), group = kLanes / std::max(width, 1);
  uint64_t words[4][kLanes];
  size_t sizes[4] = {};
  uint64_t total = 0;
  int passes = 0;
  for (int first = 0; first < kLanes; first += group) {
    uint64_t* pass = words[passes];
    size_t count = 0;
    for (int lane = first; lane < first + group; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      for (int k = 0; k < width; ++k) pass[count++] = addresses[lane] / 4 + static_cast<uint64_t>(k);
    }
    if (count == 0) continue;
    std::sort(pass, pass + count);
    count = static_cast<size_t>(std::unique(pass, pass + count) - pass);
    bool repeated = false;
    for (int other = 0; other < passes; ++other) {
      repeated = repeated || (sizes[other] == count && std::equal(pass, pass + count, words[other]));
    }
    if (repeated) continue;
    sizes[passes++] = count;
    uint64_t loads[kBanks] = {}, most = 0;
    for (size_t i = 0; i < count; ++i) most = std::max(most, ++loads[pass[i] % kBanks]);
    total += most;
  }
  return total;
}

uint64_t sectors(const uint64_t* addresses, uint32_t lanes, uint32_t bytes) {
  uint64_t all[kLanes];
  size_t count = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (lanes >> lane & 1) all[count++] = addresses[lane] / kSector;
  }
  (void)bytes;  // an aligned access of up to 16 bytes lies in one sector
  std::sort(all, all + count);
  return static_cast<uint64_t>(std::unique(all, all + count) - all);
}

// Slots of the registers whose values come from one that was read from global memory.
std::unordered_set<uint32_t> from_global(const Kernel& kernel) {
  std::unordered_set<uint32_t> found;
  const auto add = [&](uint32_t slot) {
    return slot != 0 && found.insert(slot).second;  // the first is not a register of the kernel
  };
  for (bool more = true; more;) {
    more = false;
    for (const Instruction& one : kernel.code) {
      if (one.cost[0].kind == kLoadGlobal) {
        for (int k = 0; k < one.vector; ++k) more = add(one.r[k]) || more;
      } else if (one.space == Space::kNone) {
        const bool reads = std::any_of(std::begin(one.r) + 1, std::end(one.r),
                                       [&](uint32_t at) { return found.count(at) > 0; });
        more = (reads && add(one.r[0])) || more;
      }
    }
  }
  return found;
}

}  // namespace

void count_access(Counts& counts, const Instruction& access, Space space, const uint64_t* addresses,
                  uint32_t lanes) {
  const uint32_t bytes = uint32_t{access.bytes} * access.vector;
  counts.transactions[access.site] +=
      space == Space::kShared ? wavefronts(addresses, lanes, bytes) : sectors(addresses, lanes, bytes);
}

void write(std::FILE* file, const Kernel& kernel, const Counts& counts) {
  double classes[kClasses] = {}, wide_shared = 0, wavefronts = 0, sectors = 0, gathers = 0, of_gathers = 0;
  std::map<int, double> lines;
  const std::unordered_set<uint32_t> gathered = from_global(kernel);
  for (size_t b = 0; b < kernel.blocks.size(); ++b) {
    const auto visits = static_cast<double>(counts.visits[b]);
    const double scale = counts.sampled[b] > 0 ? visits / static_cast<double>(counts.sampled[b]) : 0;
    for (uint32_t i = kernel.blocks[b].begin; i < kernel.blocks[b].end; ++i) {
      const Instruction& one = kernel.code[i];
      for (const Cost& cost : one.cost) {
        const double count = visits * static_cast<double>(cost.count);
        classes[cost.kind] += count;
        if (cost.kind != kFree && count > 0) lines[one.line] += count;
      }
      if (one.site == kNone) continue;
      const double moved = scale * static_cast<double>(counts.transactions[one.site]);
      (one.space == Space::kShared ? wavefronts : sectors) += moved;
      if (one.space != Space::kShared || one.bytes * one.vector != 16) continue;
      wide_shared += visits;
      if (one.cost[0].kind != kLoadShared || gathered.count(one.r[kAddress]) == 0) continue;
      gathers += visits;
      of_gathers += moved;
    }
  }
  std::fprintf(file,
               "{\"kernel\": \"%s\", \"launches\": %llu, \"blocks\": %llu, \"warps\": %llu, \"threads\": %u, "
               "\"shared_bytes\": %zu, \"shared_16_bytes\": %.0f, \"wavefronts\": %.0f, \"sectors\": %.0f, "
               "\"gathers\": %.0f, \"gather_wavefronts\": %.0f",
               kernel.name.c_str(), static_cast<unsigned long long>(counts.launches),
               static_cast<unsigned long long>(counts.blocks), static_cast<unsigned long long>(counts.warps),
               counts.threads, counts.shared_bytes, wide_shared, wavefronts, sectors, gathers, of_gathers);
  for (int i = 0; i < kFree; ++i) std::fprintf(file, ", \"%s\": %.0f", kClassNames[i], classes[i]);
  // Instructions by the line of the kernel's text.
  const char* separator = "";
  std::fprintf(file, ", \"lines\": {");
  for (const auto& [line, count] : lines) {
    std::fprintf(file, "%s\"%d\": %.0f", separator, line, count);
    separator = ", ";
  }
  std::fprintf(file, "}}\n");
}

}  // namespace ptx
