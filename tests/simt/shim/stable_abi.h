// The part of torch's stable ABI that csrc/host uses, without torch: tensors in plain memory, a registry of
// operators, and the conversion of a message to the arguments of one. The host entries compile unchanged
// against it, so that the harness runs their checks and calls an operator by its own argument list.
//
// Each tensor has an allocation of its own, of exactly its size. Memory of a new tensor is filled with NaN.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

namespace torch::headeronly {

// With the numbers of torch.
enum class ScalarType : int8_t {
  Byte = 0,
  Int = 3,
  Long = 4,
  Half = 5,
  Float = 6,
  Double = 7,
  Bool = 11,
  BFloat16 = 15
};

inline const char* toString(ScalarType type) {
  switch (type) {
    case ScalarType::Byte:
      return "Byte";
    case ScalarType::Int:
      return "Int";
    case ScalarType::Long:
      return "Long";
    case ScalarType::Half:
      return "Half";
    case ScalarType::Float:
      return "Float";
    case ScalarType::Double:
      return "Double";
    case ScalarType::Bool:
      return "Bool";
    case ScalarType::BFloat16:
      return "BFloat16";
  }
  return "another type";
}

inline size_t element_size(ScalarType type) {
  switch (type) {
    case ScalarType::Byte:
    case ScalarType::Bool:
      return 1;
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return 2;
    case ScalarType::Int:
    case ScalarType::Float:
      return 4;
    default:
      return 8;
  }
}

class IntHeaderOnlyArrayRef {
 public:
  IntHeaderOnlyArrayRef(const int64_t* data, size_t size) : data_(data), size_(size) {}
  const int64_t* begin() const { return data_; }
  const int64_t* end() const { return data_ + size_; }

 private:
  const int64_t* data_;
  size_t size_;
};

}  // namespace torch::headeronly

namespace torch::stable {

using headeronly::IntHeaderOnlyArrayRef;
using headeronly::ScalarType;

struct Device {
  bool cuda = false;
};

class Tensor {
 public:
  Tensor() = default;
  Tensor(ScalarType type, std::vector<int64_t> sizes, std::vector<int64_t> strides, Device device,
         std::shared_ptr<char> memory, int64_t bytes)
      : type_(type),
        device_(device),
        sizes_(std::move(sizes)),
        strides_(std::move(strides)),
        memory_(std::move(memory)),
        bytes_(bytes) {}

  int64_t dim() const { return static_cast<int64_t>(sizes_.size()); }
  int64_t size(int64_t i) const { return sizes_.at(static_cast<size_t>(i)); }
  int64_t stride(int64_t i) const { return strides_.at(static_cast<size_t>(i)); }
  IntHeaderOnlyArrayRef sizes() const { return {sizes_.data(), sizes_.size()}; }
  int64_t numel() const;
  bool is_contiguous() const;
  bool is_cuda() const { return device_.cuda; }
  bool is_cpu() const { return !device_.cuda; }
  int32_t get_device_index() const { return device_.cuda ? 0 : -1; }
  Device device() const { return device_; }
  ScalarType scalar_type() const { return type_; }
  size_t element_size() const { return headeronly::element_size(type_); }
  int64_t storage_offset() const { return 0; }
  const Tensor* get() const { return this; }
  int64_t storage_bytes() const { return bytes_; }
  std::shared_ptr<char> memory(int64_t skipped = 0) const { return {memory_, memory_.get() + skipped}; }
  // nullptr without elements, as of a tensor of torch.
  const void* const_data_ptr() const { return mutable_data_ptr(); }
  void* mutable_data_ptr() const { return numel() == 0 ? nullptr : memory_.get(); }

 private:
  ScalarType type_{};
  Device device_;
  std::vector<int64_t> sizes_, strides_;
  std::shared_ptr<char> memory_;
  int64_t bytes_ = 0;
};

Tensor empty(IntHeaderOnlyArrayRef sizes, ScalarType type, std::optional<int> layout = std::nullopt,
             Device device = {});
Tensor contiguous(const Tensor& tensor);
Tensor narrow(const Tensor& tensor, int64_t dim, int64_t start, int64_t length);
Tensor clone(const Tensor& tensor);

}  // namespace torch::stable

inline int aoti_torch_get_storage_size(const torch::stable::Tensor* tensor, int64_t* bytes) {
  *bytes = tensor->storage_bytes();
  return 0;
}
inline size_t aoti_torch_dtype_element_size(int32_t type) {
  return torch::headeronly::element_size(static_cast<torch::headeronly::ScalarType>(type));
}
#define TORCH_ERROR_CODE_CHECK(call) static_cast<void>(call)

namespace simt {

using torch::stable::Tensor;

// Bytes of memory behind `left` bytes that must not be touched: data of a tensor keeps its offset from an
// aligned address, so that a vector access that is not aligned shows.
std::shared_ptr<char> allocate(int64_t bytes, size_t left = 0);
// The same for a tensor that an operator makes.
std::shared_ptr<char> allocate_counted(int64_t bytes);
// The most bytes that such tensors, results and workspaces, have had at once.
int64_t peak_bytes();

// The values of one call, read from stdin in the order of the operator. Each has a tag before it: n none,
// i integer or bool, d double, t tensor, l list of tensors.
class Reader {
 public:
  template <class T>
  T take();
};
template <>
int64_t Reader::take<int64_t>();
template <>
bool Reader::take<bool>();
template <>
double Reader::take<double>();
template <>
Tensor Reader::take<Tensor>();
template <>
std::optional<Tensor> Reader::take<std::optional<Tensor>>();
template <>
std::vector<Tensor> Reader::take<std::vector<Tensor>>();

using Results = std::vector<Tensor>;

// Writes dtype, dimensions, sizes and values to stdout.
void write(const Tensor& tensor);

inline Results results_of(Tensor tensor) {
  return {std::move(tensor)};
}
inline Results results_of(Results tensors) {
  return tensors;
}
template <class... T>
Results results_of(const std::tuple<T...>& tensors) {
  return std::apply([](const auto&... tensor) { return Results{tensor...}; }, tensors);
}

// An operator behind one signature.
using Boxed = std::function<Results(Reader&)>;

template <class R, class... A>
Boxed box(R (*function)(A...)) {
  return [function](Reader& reader) {
    // Braces evaluate from left to right.
    std::tuple<A...> arguments{reader.take<A>()...};
    return results_of(std::apply(function, std::move(arguments)));
  };
}

std::map<std::string, Boxed>& operators();

// What a host entry registers for one device, which is all that a program has: CUDA in the harness.
struct Library {
  bool has_device;
  void impl(const char* name, Boxed boxed) const {
    if (has_device) operators()[name] = std::move(boxed);
  }
};

}  // namespace simt

#ifndef HIERMT_SHIM_DEVICE
#define HIERMT_SHIM_DEVICE "CUDA"
#endif
#define TORCH_BOX(function) simt::box(function)
#define STABLE_TORCH_LIBRARY_IMPL(ns, key, m)                         \
  static void hiermt_register_##key(const simt::Library& m);          \
  [[maybe_unused]] static const bool hiermt_registered_##key = [] {   \
    hiermt_register_##key({std::string(#key) == HIERMT_SHIM_DEVICE}); \
    return true;                                                      \
  }();                                                                \
  static void hiermt_register_##key(const simt::Library& m)
