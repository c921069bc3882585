// What a launcher works on: a CUDA stream and device memory for what lies between its kernels.
//
// A launcher runs twice. A Stream without memory counts the bytes that it takes and launches nothing; with so many
// bytes the same calls launch. It neither synchronises nor allocates, so a CUDA graph can capture it. What it takes is
// not initialised, and free again when the stream has passed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hiermt::cuda {

class Stream {
 public:
  Stream() = default;
  // `handle` is a cudaStream_t.
  Stream(void* handle, void* memory)
      : handle_(handle), memory_(reinterpret_cast<uintptr_t>(memory)), counts_(false) {}

  // Device memory until the end of the Frame around the call.
  template <class T>
  T* take(size_t count) {
    T* const at = reinterpret_cast<T*>(memory_ + used_);
    used_ += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    if (used_ > bytes_) bytes_ = used_;
    return at;
  }
  // Calls launcher(handle) -> cudaError_t, but not after an error.
  template <class Launcher>
  void run(Launcher&& launcher) {
    if (!counts_ && error_ == 0) error_ = static_cast<int>(launcher(handle_));
  }
  size_t bytes() const { return bytes_; }  // the most that was taken at once
  int error() const { return error_; }     // a cudaError_t, the first

  // Gives back at its end what was taken since its beginning.
  class Frame {
   public:
    explicit Frame(Stream& on) : on_(on), used_(on.used_) {}
    ~Frame() { on_.used_ = used_; }
    Frame(const Frame&) = delete;
    Frame& operator=(const Frame&) = delete;

   private:
    Stream& on_;
    const size_t used_;
  };

 private:
  static constexpr size_t kAlignment = 256;
  void* handle_ = nullptr;
  uintptr_t memory_ = kAlignment;  // while it counts, no address may be null: that would mean "not wanted"
  bool counts_ = true;
  size_t used_ = 0, bytes_ = 0;
  int error_ = 0;
};

}  // namespace hiermt::cuda
