// What every launcher in a .cu file needs: the device guard and the error check.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace tokenflow {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("tokenflow_ext: ") + what + ": " +
                             cudaGetErrorString(error));
}

// Makes `device` current for this scope; the runtime is linked statically, and the
// current device is kept by the driver per thread, so it is put back.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check_cuda(cudaGetDevice(&previous_), "cudaGetDevice");
    if (device != previous_) check_cuda(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceGuard() { cudaSetDevice(previous_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
};

// Blocks for one thread per item; 2³¹ − 1 of them are allowed. No items, no launch:
// callers return before.
inline unsigned launch_blocks(int64_t items, int threads) {
  return static_cast<unsigned>((items + threads - 1) / threads);
}

// This thread's item in such a launch.
__device__ inline int64_t launch_item() {
  return blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
}

// Pieces of one allocation, each at a multiple of 256 bytes.
struct Carver {
  char* base;
  int64_t used = 0;
  template <typename T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(base + used);
    used += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return piece;
  }
};

}  // namespace tokenflow
