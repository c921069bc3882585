#include "stable_abi.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <numeric>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace torch::stable {
namespace {

int64_t product(const std::vector<int64_t>& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
}

std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(sizes[i], 1);
  return strides;
}

}  // namespace

int64_t Tensor::numel() const {
  return product(sizes_);
}

bool Tensor::is_contiguous() const {
  const std::vector<int64_t> expected = contiguous_strides(sizes_);
  bool same = true;
  for (size_t i = 0; i < sizes_.size(); ++i) same = same && (sizes_[i] == 1 || strides_[i] == expected[i]);
  return same || numel() == 0;
}

Tensor empty(IntHeaderOnlyArrayRef shape, ScalarType type, std::optional<int>, Device device) {
  std::vector<int64_t> sizes(shape.begin(), shape.end());
  const int64_t bytes = product(sizes) * static_cast<int64_t>(headeronly::element_size(type));
  std::shared_ptr<char> memory = simt::allocate_counted(bytes);
  std::memset(memory.get(), 0xff, static_cast<size_t>(bytes));
  std::vector<int64_t> strides = contiguous_strides(sizes);
  return {type, std::move(sizes), std::move(strides), device, std::move(memory), bytes};
}

Tensor contiguous(const Tensor& tensor) {
  Tensor result = empty(tensor.sizes(), tensor.scalar_type(), std::nullopt, tensor.device());
  const size_t size = tensor.element_size();
  const auto* from = static_cast<const char*>(tensor.const_data_ptr());
  auto* to = static_cast<char*>(result.mutable_data_ptr());
  for (int64_t i = 0; i < tensor.numel(); ++i, to += size) {
    int64_t rest = i, at = 0;
    for (int64_t axis = tensor.dim(); axis-- > 0;) {
      at += rest % tensor.size(axis) * tensor.stride(axis);
      rest /= tensor.size(axis);
    }
    std::memcpy(to, from + at * static_cast<int64_t>(size), size);
  }
  return result;
}

Tensor narrow(const Tensor& tensor, int64_t dim, int64_t start, int64_t length) {
  std::vector<int64_t> sizes, strides;
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) {
    sizes.push_back(axis == dim ? length : tensor.size(axis));
    strides.push_back(tensor.stride(axis));
  }
  const int64_t skipped = start * tensor.stride(dim) * static_cast<int64_t>(tensor.element_size());
  return {tensor.scalar_type(), std::move(sizes),       std::move(strides),
          tensor.device(),      tensor.memory(skipped), tensor.storage_bytes() - skipped};
}
Tensor clone(const Tensor& tensor) {
  return contiguous(tensor);
}

}  // namespace torch::stable

namespace simt {

std::shared_ptr<char> allocate(int64_t bytes, size_t left) {
  auto* const begin = static_cast<char*>(std::malloc(left + static_cast<size_t>(bytes)));
  if (begin == nullptr) throw std::bad_alloc();
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(begin, left);
#endif
  return {begin + left, [begin](char*) { std::free(begin); }};
}

namespace {
int64_t allocated = 0, most_allocated = 0;
}  // namespace

std::shared_ptr<char> allocate_counted(int64_t bytes) {
  std::shared_ptr<char> memory = allocate(bytes);
  allocated += bytes;
  most_allocated = std::max(most_allocated, allocated);
  return {memory.get(), [memory, bytes](char*) { allocated -= bytes; }};
}

int64_t peak_bytes() {
  return most_allocated;
}

std::map<std::string, Boxed>& operators() {
  static std::map<std::string, Boxed> all;
  return all;
}

}  // namespace simt
