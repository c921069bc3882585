// The launchers of csrc/cuda/gated_scan_windows.h, for runner.cpp.
#pragma once

#include <cstdlib>

#include "arguments.h"
#include "cuda/scan/gated_scan_windows.h"

namespace simt {

template <class S>
hiermt::GatedScanWindowsForward<S> read_gated_scan_windows(Arguments& a) {
  hiermt::GatedScanWindowsForward<S> p{};
  p.windows.given = true;
  p.windows.count = a.integer();
  p.num_nodes = a.integer();
  p.days = a.integer();
  p.windows.steps = a.integer();
  p.hidden = a.integer();
  p.x.channels = a.integer();
  p.x.stride_copy = 0;
  p.x.stride_node = a.integer();
  p.x.stride_time = a.integer();
  p.x.stride_channel = a.integer();
  p.x.data = a.in<S>();
  p.g = a.in<S>();
  p.windows.starts = a.in<int64_t>();
  p.weights = {a.in<S>(), a.in<S>(), a.in<S>(), a.in<S>(), a.in<S>(), a.in<S>()};
  p.tf32 = std::getenv("HIERMT_SIMT_TF32") != nullptr;
  return p;
}

template <class S>
int run_gated_scan_windows(Arguments& a) {
  hiermt::GatedScanWindowsForward<S> p = read_gated_scan_windows<S>(a);
  p.h = a.out<S>();
  p.h_last = a.out<S>();
  const ScratchMemory memory(hiermt::cuda::gated_scan_windows_forward_workspace(p));
  return hiermt::cuda::gated_scan_windows_forward(p, memory.data(), nullptr);
}

template <class S>
int run_gated_scan_windows_backward(Arguments& a) {
  using C = hiermt::Compute<S>;
  hiermt::GatedScanWindowsBackward<S, C> p{};
  p.forward = read_gated_scan_windows<S>(a);
  p.forward.h = const_cast<S*>(a.in<S>());
  p.d_h = a.in<S>();
  p.d_h_last = a.in<S>();
  p.d_x = a.out<S>();
  p.d_g = a.out<S>();
  p.grads = {a.out<C>(), a.out<C>(), a.out<C>(), a.out<C>(), a.out<C>(), a.out<C>()};
  const ScratchMemory memory(hiermt::cuda::gated_scan_windows_backward_workspace(p));
  return hiermt::cuda::gated_scan_windows_backward(p, memory.data(), nullptr);
}

}  // namespace simt
