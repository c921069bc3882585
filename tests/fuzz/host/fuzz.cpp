// Calls every operator of csrc/host on the kernels of the CPU: a valid call, of which a few arguments are then
// forged. A valid one must be taken, a forged one must throw or return; sanitizers see the rest.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "calls.h"

namespace fuzz {
namespace {

using torch::headeronly::ScalarType;

const ScalarType kTypes[] = {ScalarType::Byte,  ScalarType::Int,    ScalarType::Long, ScalarType::Half,
                             ScalarType::Float, ScalarType::Double, ScalarType::Bool, ScalarType::BFloat16};
// Small ones, and such as no memory holds: what is between takes time alone.
const int64_t kSizes[] = {0,  1,  2,   3,   4,         5,         7,         8,         13,
                          16, 17, 100, 200, 1ll << 31, 1ll << 32, 1ll << 40, 1ll << 47, 1ll << 59};
const int64_t kIntegers[] = {0,
                             1,
                             2,
                             3,
                             7,
                             16,
                             -1,
                             -2,
                             -7,
                             1000,
                             1ll << 31,
                             1ll << 32,
                             1ll << 48,
                             1ll << 61,
                             1ll << 62,
                             INT64_MAX,
                             INT64_MIN,
                             INT32_MAX,
                             INT32_MIN,
                             INT64_MAX / 7,
                             INT64_MAX / 6 + 1,
                             INT64_MIN / 7};
const double kNumbers[] = {0.0, -1.0, 1e308, -1e308, __builtin_inf(), -__builtin_inf(), __builtin_nan("")};

struct Parts {
  explicit Parts(const Tensor& tensor)
      : type(tensor.scalar_type()),
        device(tensor.device()),
        memory(tensor.memory()),
        bytes(tensor.storage_bytes()) {
    for (int64_t i = 0; i < tensor.dim(); ++i) {
      sizes.push_back(tensor.size(i));
      strides.push_back(tensor.stride(i));
    }
  }
  Tensor made() const { return {type, sizes, strides, device, memory, bytes}; }

  ScalarType type;
  torch::stable::Device device;
  std::shared_ptr<char> memory;
  int64_t bytes;
  std::vector<int64_t> sizes, strides;
};

// What torch itself can count.
bool countable(const std::vector<int64_t>& sizes) {
  double product = 1;
  for (const int64_t size : sizes) product *= static_cast<double>(size > 0 ? size : 1);
  return product < 4e18;
}

Tensor copy_of(const Tensor& tensor) {
  Parts parts(tensor);
  parts.memory = simt::allocate(parts.bytes);
  // A tensor that was forged to be empty still has memory, to which it gives no pointer.
  if (parts.bytes > 0)
    std::memcpy(parts.memory.get(), tensor.memory().get(), static_cast<size_t>(parts.bytes));
  return parts.made();
}

// On the CPU alone: a tensor of another device is not dispatched here.
Tensor forged(FuzzedDataProvider& data, const Tensor& tensor) {
  Parts parts(tensor);
  const size_t dims = parts.sizes.size();
  const size_t axis = dims == 0 ? 0 : data.ConsumeIntegralInRange<size_t>(0, dims - 1);
  switch (data.ConsumeIntegralInRange<int>(0, 8)) {
    case 0:
      // As torch converts: memory of the new type.
      return random_tensor(
          data, data.PickValueInArray(kTypes),
          countable(parts.sizes) && tensor.numel() < 4096 ? parts.sizes : std::vector<int64_t>{}, 3);
    case 1:
      if (dims > 0) parts.sizes[axis] = data.PickValueInArray(kSizes);
      break;
    case 2:  // one number in any shape
      if (dims > 0) {
        parts.sizes[axis] = data.PickValueInArray(kSizes);
        parts.strides[axis] = 0;
      }
      break;
    case 3:
      if (dims > 0) parts.strides[axis] = data.ConsumeBool() ? data.PickValueInArray(kSizes) : 1;
      break;
    case 4:  // metadata without the memory
      parts.bytes = data.ConsumeIntegralInRange<int64_t>(0, parts.bytes);
      parts.memory = simt::allocate(parts.bytes);
      if (parts.bytes > 0) std::memset(parts.memory.get(), 0, static_cast<size_t>(parts.bytes));
      break;
    case 5:
      if (data.ConsumeBool() && dims > 0) {
        parts.sizes.pop_back();
        parts.strides.pop_back();
      } else {
        parts.sizes.push_back(1);
        parts.strides.push_back(1);
      }
      break;
    case 6:
      if (dims > 1) {
        std::swap(parts.sizes[0], parts.sizes[axis]);
        std::swap(parts.strides[0], parts.strides[axis]);
      }
      break;
    default: {
      // Other numbers.
      Tensor copy = copy_of(tensor);
      const auto width = static_cast<int64_t>(copy.element_size());
      if (copy.storage_bytes() < width) return copy;
      const int64_t at = data.ConsumeIntegralInRange<int64_t>(0, copy.storage_bytes() / width - 1);
      char* slot = copy.memory().get() + at * width;
      const int64_t value =
          data.ConsumeBool() ? data.PickValueInArray(kIntegers) : data.ConsumeIntegral<int8_t>();
      if (copy.scalar_type() == ScalarType::Bool) {
        *slot = static_cast<char>(value & 1);
      } else {
        std::memcpy(slot, &value, static_cast<size_t>(width));
      }
      return copy;
    }
  }
  return countable(parts.sizes) ? parts.made() : tensor;
}

void forge(FuzzedDataProvider& data, Call& call) {
  Value& value = call.arguments[data.ConsumeIntegralInRange<size_t>(0, call.arguments.size() - 1)];
  if (auto* number = std::get_if<int64_t>(&value)) {
    *number = data.ConsumeBool() ? data.PickValueInArray(kIntegers) : data.ConsumeIntegral<int64_t>();
  } else if (auto* real = std::get_if<double>(&value)) {
    *real = data.PickValueInArray(kNumbers);
  } else if (auto* tensor = std::get_if<std::optional<Tensor>>(&value)) {
    if (!*tensor || data.ConsumeIntegralInRange<int>(0, 9) == 0) {
      // Another argument of the call, or none.
      const Value& other = call.arguments[data.ConsumeIntegralInRange<size_t>(0, call.arguments.size() - 1)];
      const auto* found = std::get_if<std::optional<Tensor>>(&other);
      *tensor = found == nullptr ? std::nullopt : *found;
    } else {
      *tensor = forged(data, **tensor);
    }
  } else {
    List& list = std::get<List>(value);
    const int kind = data.ConsumeIntegralInRange<int>(0, 5);
    if (list.empty()) return;
    const size_t at = data.ConsumeIntegralInRange<size_t>(0, list.size() - 1);
    if (kind == 0) {
      list.erase(list.begin() + static_cast<int64_t>(at));
    } else if (kind == 1) {
      const List first(list.begin(), list.begin() + static_cast<int64_t>(at) + 1);
      list.insert(list.end(), first.begin(), first.end());
    } else if (kind == 2) {
      std::swap(list[0], list[at]);
    } else {
      list[at] = forged(data, list[at]);
    }
  }
}

}  // namespace
}  // namespace fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  FuzzedDataProvider data(bytes, size);
  fuzz::Call call{};
  try {
    call = fuzz::valid_call(data);
    fuzz::run(call);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s refuses a valid call: %s\n", call.op.c_str(), error.what());
    std::abort();
  }
  const int count = data.ConsumeIntegralInRange<int>(1, 4);
  try {
    for (int i = 0; i < count; ++i) fuzz::forge(data, call);
    fuzz::run(call);
  } catch (const std::exception&) {
    // Refused.
  }
  return 0;
}
