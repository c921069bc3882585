// Loads, stores and atomics. Every lane's address is checked: alignment, the bounds of shared and local memory
// and, where the process has AddressSanitizer, those of the allocation in global memory.
#include <unordered_map>

#include "counts.h"
#include "warp.h"

extern "C" void* __asan_region_is_poisoned(void* begin, size_t bytes) __attribute__((weak));

namespace ptx {
namespace {

constexpr int kValue = kAddress + 1;

void check(const Warp& warp, const Instruction& i, Space space, int lane, uint64_t at, size_t bytes) {
  const auto shared = reinterpret_cast<uint64_t>(warp.shared);
  const auto report = [&](const char* what) {
    fail(what, "line %d: lane %d: %zu bytes at %lld of shared memory with %zu, address %llx", i.line, lane,
         bytes, static_cast<long long>(at - shared), warp.shared_bytes, static_cast<unsigned long long>(at));
  };
  if (at % bytes != 0) report("alignment");
  if (space == Space::kShared) {
    if (at < shared || at + bytes > shared + warp.shared_bytes) report("shared memory");
  } else if (space == Space::kLocal) {
    const auto begin =
        reinterpret_cast<uint64_t>(warp.local) + static_cast<uint64_t>(lane) * warp.local_bytes;
    if (at < begin || at + bytes > begin + warp.local_bytes) report("local memory");
  } else if (space != Space::kParameter) {
    const bool poisoned = at >= 4096 && __asan_region_is_poisoned != nullptr &&
                          __asan_region_is_poisoned(reinterpret_cast<void*>(at), bytes) != nullptr;
    if (at < 4096 || poisoned) report("global memory");
  }
}

// Whether the addresses in shared memory of the lanes that execute are aligned and inside.
bool all_in_shared(const Warp& warp, const uint64_t* addresses, size_t bytes) {
  const auto shared = reinterpret_cast<uint64_t>(warp.shared);
  if (warp.shared_bytes < bytes) return false;
  const uint64_t last = warp.shared_bytes - bytes, mask = bytes - 1;
  uint64_t bad = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const uint64_t at = addresses[lane] - shared;
    bad |= (warp.exec >> lane & 1) * ((at & mask) | static_cast<uint64_t>(at > last));
  }
  return bad == 0;
}

// Whether all addresses in global memory are aligned and in one allocation without a gap.
bool all_in_global(const Warp& warp, const uint64_t* addresses, size_t bytes) {
  uint64_t least = ~uint64_t{0}, most = 0, bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(warp.exec >> lane & 1)) continue;
    least = addresses[lane] < least ? addresses[lane] : least;
    most = addresses[lane] > most ? addresses[lane] : most;
    bits |= addresses[lane];
  }
  if (bits % bytes != 0 || least < 4096 || most - least > 65536) return false;
  return __asan_region_is_poisoned == nullptr ||
         __asan_region_is_poisoned(reinterpret_cast<void*>(least), most - least + bytes) == nullptr;
}

// Address of each lane that executes, checked and counted.
void resolve(Warp& warp, const Instruction& i, uint64_t* addresses) {
  const auto shared = reinterpret_cast<uint64_t>(warp.shared);
  const uint64_t base = (i.space == Space::kShared ? shared : 0) + static_cast<uint64_t>(i.offset);
  const size_t bytes = size_t{i.bytes} * i.vector;
  if (i.narrow) {
    const uint32_t* at = warp.reg<uint32_t>(i.r[kAddress]);
    for (int lane = 0; lane < kLanes; ++lane) addresses[lane] = base + at[lane];
  } else {
    const uint64_t* at = warp.reg<uint64_t>(i.r[kAddress]);
    for (int lane = 0; lane < kLanes; ++lane) addresses[lane] = base + at[lane];
  }
  Space space = i.space;
  const bool good = space == Space::kParameter ||
                    (space == Space::kShared && all_in_shared(warp, addresses, bytes)) ||
                    (space == Space::kGlobal && all_in_global(warp, addresses, bytes));
  for (int lane = 0; lane < kLanes && !good; ++lane) {
    if (!(warp.exec >> lane & 1)) continue;
    if (i.space == Space::kGeneric) {
      const bool inside = addresses[lane] >= shared && addresses[lane] < shared + warp.shared_bytes;
      space = inside ? Space::kShared : Space::kGlobal;
    }
    check(warp, i, space, lane, addresses[lane], bytes);
  }
  if (warp.sampled && i.site != kNone) count_access(*warp.counts, i, space, addresses, warp.exec);
}

// M: the type in memory, R: of the register.
template <class M, class R>
void load(Warp& warp, const Instruction& i) {
  uint64_t addresses[kLanes];
  resolve(warp, i, addresses);
  for (int k = 0; k < i.vector; ++k) {
    R* d = warp.reg<R>(i.r[k]);
    for (int lane = 0; lane < kLanes; ++lane) {
      if (warp.exec >> lane & 1) d[lane] = static_cast<R>(reinterpret_cast<const M*>(addresses[lane])[k]);
    }
  }
}
template <class M, class R>
void store(Warp& warp, const Instruction& i) {
  uint64_t addresses[kLanes];
  resolve(warp, i, addresses);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(warp.exec >> lane & 1)) continue;
    for (int k = 0; k < i.vector; ++k) {
      reinterpret_cast<M*>(addresses[lane])[k] = static_cast<M>(warp.reg<R>(i.r[k])[lane]);
    }
  }
}
// The lanes one after another. Returns the old value.
template <class T, T (*f)(T, T)>
void atomic(Warp& warp, const Instruction& i) {
  uint64_t addresses[kLanes];
  resolve(warp, i, addresses);
  const T* value = warp.reg<T>(i.r[kValue]);
  T* d = warp.reg<T>(i.r[0]);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (!(warp.exec >> lane & 1)) continue;
    T* at = reinterpret_cast<T*>(addresses[lane]);
    const T old = *at;
    *at = f(old, value[lane]);
    d[lane] = old;
  }
}
template <class T>
T sum(T a, T b) {
  return static_cast<T>(a + b);
}
template <class T>
T larger(T a, T b) {
  return a < b ? b : a;
}
template <class T>
T smaller(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T exchanged(T, T b) {
  return b;
}
template <class T>
T either(T a, T b) {
  return a | b;
}

template <class M>
Handler moving(bool loads, int register_bytes) {
  if (register_bytes == 2) return loads ? Handler(load<M, uint16_t>) : store<M, uint16_t>;
  if (register_bytes == 4) return loads ? Handler(load<M, uint32_t>) : store<M, uint32_t>;
  return loads ? Handler(load<M, uint64_t>) : store<M, uint64_t>;
}

}  // namespace

Handler access(const std::string& operation, const std::string& type, int register_bytes) {
  static const std::unordered_map<std::string, Handler> atomics = {
      {"add.u32", atomic<uint32_t, sum<uint32_t>>},     {"add.s32", atomic<uint32_t, sum<uint32_t>>},
      {"add.u64", atomic<uint64_t, sum<uint64_t>>},     {"max.s32", atomic<int32_t, larger<int32_t>>},
      {"max.u32", atomic<uint32_t, larger<uint32_t>>},  {"min.s32", atomic<int32_t, smaller<int32_t>>},
      {"min.u32", atomic<uint32_t, smaller<uint32_t>>}, {"exch.b32", atomic<uint32_t, exchanged<uint32_t>>},
      {"or.b32", atomic<uint32_t, either<uint32_t>>},
  };
  if (operation != "ld" && operation != "st") {
    const auto found = atomics.find(operation + "." + type);
    return found == atomics.end() ? nullptr : found->second;
  }
  const bool loads = operation == "ld";
  const bool sign = type[0] == 's' && loads;
  const std::string bits = type.substr(1);
  if (bits == "8")
    return sign ? moving<int8_t>(loads, register_bytes) : moving<uint8_t>(loads, register_bytes);
  if (bits == "16")
    return sign ? moving<int16_t>(loads, register_bytes) : moving<uint16_t>(loads, register_bytes);
  if (bits == "32")
    return sign ? moving<int32_t>(loads, register_bytes) : moving<uint32_t>(loads, register_bytes);
  if (bits == "64") return moving<uint64_t>(loads, register_bytes);
  return nullptr;
}

}  // namespace ptx
