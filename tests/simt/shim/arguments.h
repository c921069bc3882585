// Arguments of an operator, read from stdin, and its reply on stdout: integers, input arrays and output
// arrays in the order of the operator. Each array is an allocation of exactly its size. Outputs are
// initialised with NaN.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace simt {

class Arguments {
 public:
  Arguments() {
    integers_.resize(read_one());
    read(integers_.data(), integers_.size() * sizeof(int64_t));
    inputs_.resize(read_one());
    for (Array& input : inputs_) {
      input = allocate(read_one());
      if (input.bytes > 0) read(input.data, input.bytes);
    }
    outputs_.resize(read_one());
    for (Array& output : outputs_) {
      output = allocate(read_one());
      if (output.bytes > 0) std::memset(output.data, 0xff, output.bytes);
    }
  }

  int64_t integer() { return integers_.at(next_integer_++); }
  template <class T>
  const T* in() {
    return static_cast<const T*>(inputs_.at(next_input_++).data);
  }
  template <class T>
  T* out() {
    return static_cast<T*>(outputs_.at(next_output_++).data);
  }

  void reply(int64_t status) const {
    write(&status, sizeof(status));
    for (const Array& output : outputs_) {
      if (output.bytes > 0) write(output.data, output.bytes);
    }
    std::fflush(stdout);
  }

 private:
  struct Array {
    void* data = nullptr;
    int64_t bytes = -1;  // -1: not given, a null pointer
  };

  static Array allocate(int64_t bytes) {
    return bytes < 0 ? Array{} : Array{std::malloc(static_cast<size_t>(bytes)), bytes};
  }
  static void read(void* to, size_t bytes) {
    if (std::fread(to, 1, bytes, stdin) != bytes) std::exit(64);
  }
  static void write(const void* from, size_t bytes) {
    if (std::fwrite(from, 1, bytes, stdout) != bytes) std::exit(64);
  }
  static int64_t read_one() {
    int64_t value = 0;
    read(&value, sizeof(value));
    return value;
  }

  std::vector<int64_t> integers_;
  std::vector<Array> inputs_, outputs_;
  size_t next_integer_ = 0, next_input_ = 0, next_output_ = 0;
};

// Workspace of a launcher: exactly `bytes`, initialised with NaN. nullptr if the allocation fails.
class ScratchMemory {
 public:
  explicit ScratchMemory(size_t bytes) : data_(std::malloc(bytes)) {
    if (data_ != nullptr) std::memset(data_, 0xff, bytes);
  }
  ScratchMemory(const ScratchMemory&) = delete;
  ~ScratchMemory() { std::free(data_); }
  void* data() const { return data_; }

 private:
  void* data_;
};

}  // namespace simt
