// The part of CUDA that our kernels use, on the CPU: every CUDA thread is a thread, so
// that barriers, shared memory and atomics mean what they mean on a GPU, and sanitizers
// see what racecheck and memcheck would. Found in place of the real header by
// tests/ops/test_cuda_on_cpu.py, which also rewrites kernel<<<…>>>(…) to launch(…).
#pragma once

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static  // blocks run one after another
#define __launch_bounds__(...)

using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline thread_local dim3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace cuda_on_cpu {

inline std::unique_ptr<std::barrier<>> block_barrier;
inline std::atomic<int> any;
inline double exchange[1024];

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::block_barrier->arrive_and_wait(); }

inline int __syncthreads_or(int predicate) {
  __syncthreads();
  if (predicate) cuda_on_cpu::any = 1;
  __syncthreads();
  const int result = cuda_on_cpu::any;
  __syncthreads();
  if (threadIdx.x == 0) cuda_on_cpu::any = 0;
  __syncthreads();
  return result;
}

// Callers let all threads of a block come here together.
inline double __shfl_down_sync(unsigned, double value, int offset) {
  cuda_on_cpu::exchange[threadIdx.x] = value;
  __syncthreads();
  const bool inside =
      threadIdx.x % 32 + offset < 32 && threadIdx.x + offset < blockDim.x;
  const double result = inside ? cuda_on_cpu::exchange[threadIdx.x + offset] : value;
  __syncthreads();
  return result;
}

// Each thread as a warp of its own, which every use of these must allow.
inline unsigned __activemask() { return 1u << threadIdx.x % 32; }
inline unsigned __match_any_sync(unsigned mask, int64_t) { return mask; }
inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }

template <class T>
T atomicAdd(T* at, T value) {
  return std::atomic_ref<T>(*at).fetch_add(value);
}
template <class T>
T atomicMax(T* at, T value) {
  std::atomic_ref<T> cell(*at);
  T old = cell.load();
  while (old < value && !cell.compare_exchange_weak(old, value)) {
  }
  return old;
}
template <class T>
T atomicMin(T* at, T value) {
  std::atomic_ref<T> cell(*at);
  T old = cell.load();
  while (value < old && !cell.compare_exchange_weak(old, value)) {
  }
  return old;
}

inline long long __double_as_longlong(double x) {
  long long bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline double __longlong_as_double(long long bits) {
  double x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// --- the runtime API ---

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };

inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  return *value = 4, cudaSuccess;  // enough for a book to be cut into parts
}
inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  std::memset(at, value, bytes);
  return cudaSuccess;
}

namespace cuda_on_cpu {

template <class Kernel>
void launch(dim3 grid, dim3 block, size_t, cudaStream_t, Kernel kernel) {
  if (block.y != 1 || block.z != 1 || grid.x == 0) std::abort();
  block_barrier = std::make_unique<std::barrier<>>(block.x);
  blockDim = block;
  gridDim = grid;
  std::barrier<> between(block.x);
  std::vector<std::jthread> threads;
  for (unsigned t = 0; t < block.x; ++t)
    threads.emplace_back([&, t] {
      threadIdx = dim3(t, 0, 0);
      for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
          for (unsigned x = 0; x < grid.x; ++x) {
            blockIdx = dim3(x, y, z);
            kernel();
            between.arrive_and_wait();
          }
    });
}

}  // namespace cuda_on_cpu
