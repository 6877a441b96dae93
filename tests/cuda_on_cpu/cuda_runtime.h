// The part of CUDA that our kernels use, on the CPU: every CUDA thread is a fiber with
// its own stack, and runs until it waits for others. Barriers, shared memory and
// atomics mean what they mean on a GPU; the thread sanitizer is told of the fibers and
// of the barriers alone, so that it sees what racecheck would. Found in place of the
// real header by tests/ops/test_cuda_on_cpu.py, which also rewrites kernel<<<…>>>(…) to
// launch(…).
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <vector>

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#else
inline void* __tsan_get_current_fiber() { return nullptr; }
inline void* __tsan_create_fiber(unsigned) { return nullptr; }
inline void __tsan_destroy_fiber(void*) {}
inline void __tsan_switch_to_fiber(void*, unsigned) {}
inline void __tsan_acquire(void*) {}
inline void __tsan_release(void*) {}
inline void AnnotateIgnoreReadsBegin(const char*, int) {}
inline void AnnotateIgnoreReadsEnd(const char*, int) {}
inline void AnnotateIgnoreWritesBegin(const char*, int) {}
inline void AnnotateIgnoreWritesEnd(const char*, int) {}
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static  // blocks run one after another
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)

using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct __align__(16) uint4 { unsigned x, y, z, w; };
struct __align__(8) uint2 { unsigned x, y; };
struct __align__(8) float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };

namespace cuda_on_cpu {

constexpr unsigned kWarp = 32;
constexpr size_t kStack = 1 << 17;
inline int capability_major = 9;  // of the device that is stood in for
inline int votes = 0;             // calls of __syncthreads_or

constexpr size_t kSlot = 64;  // bytes that a lane can show to its warp at once

// The book-keeping of this file, which is no race of the kernel's.
struct Unwatched {
  Unwatched() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unwatched() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};

struct Coordinate {
  unsigned value = 0;
  operator unsigned() const {
    const Unwatched unwatched;
    return *const_cast<const volatile unsigned*>(&value);
  }
};
struct ThreadIndex {
  Coordinate x;
  static constexpr unsigned y = 0, z = 0;
};

}  // namespace cuda_on_cpu

inline cuda_on_cpu::ThreadIndex threadIdx;
inline dim3 blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

// Opens when the threads that are expected have all come.
struct Barrier {
  unsigned come = 0;
  unsigned long long opened = 0;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  void* sanitizer = nullptr;
  bool alive = true;
  unsigned exchanges = 0;           // so far, which says what slots come next
  const Barrier* waits = nullptr;   // runs again once this was opened more than
  unsigned long long opened = 0;    // so often,
  unsigned long long returned = 0;  // or more than so many threads have returned
};

struct Warp {
  Barrier barrier;
  unsigned char slot[2][kWarp][kSlot];  // two, so that one barrier per exchange does
};

struct FreeShared {
  void operator()(unsigned char* p) const {
    ::operator delete[](p, std::align_val_t{1024});
  }
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Barrier barrier;
  unsigned alive = 0;
  unsigned long long returned = 0;
  std::unique_ptr<unsigned char[], FreeShared> shared;  // the dynamic part
  ucontext_t scheduler;
  void* scheduler_sanitizer = nullptr;
  int any = 0;
  char begin, end;  // blocks, and launches, run one after another: what tells so
};
inline Block block;

inline Fiber& me() { return block.fibers[threadIdx.x]; }
inline Warp& my_warp() { return block.warps[threadIdx.x / kWarp]; }

inline unsigned alive_of_warp(unsigned mask) {
  const unsigned first = threadIdx.x / kWarp * kWarp;
  unsigned alive = 0;
  for (unsigned lane = 0; lane < kWarp && first + lane < blockDim.x; ++lane)
    alive += (mask >> lane & 1) && block.fibers[first + lane].alive;
  return alive;
}

// Until `barrier` was opened more than so often, or a thread has returned.
inline void let_others_run(const Barrier& barrier, unsigned long long opened) {
  me().waits = &barrier;
  me().opened = opened;
  me().returned = block.returned;
  __tsan_switch_to_fiber(block.scheduler_sanitizer, 1);
  swapcontext(&me().context, &block.scheduler);
}

// `expected` may fall while threads wait: some return without coming here.
template <class Expected>
void arrive_and_wait(Barrier& barrier, Expected expected) {
  const Unwatched unwatched;
  const unsigned long long opened = barrier.opened;
  __tsan_release(&barrier);
  ++barrier.come;
  while (barrier.opened == opened) {
    if (barrier.come >= expected()) {
      barrier.come = 0;
      ++barrier.opened;
      break;
    }
    let_others_run(barrier, opened);
  }
  me().waits = nullptr;
  __tsan_acquire(&barrier);
}

inline void warp_barrier(unsigned mask) {
  arrive_and_wait(my_warp().barrier, [mask] { return alive_of_warp(mask); });
}

// Every lane shows its value to its warp; at(lane) is what a lane showed, until the
// exchange after the next.
template <class T>
auto exchange(unsigned mask, const T& value) {
  static_assert(sizeof(T) <= kSlot);
  const Unwatched unwatched;
  auto& slots = my_warp().slot[me().exchanges++ % 2];
  std::memcpy(slots[threadIdx.x % kWarp], &value, sizeof value);
  warp_barrier(mask);
  return [&slots](unsigned lane) {
    const Unwatched unwatched;
    T shown;
    std::memcpy(&shown, slots[lane], sizeof shown);
    return shown;
  };
}

}  // namespace cuda_on_cpu

inline void __syncthreads() {
  using namespace cuda_on_cpu;
  arrive_and_wait(block.barrier, [] { return block.alive; });
}
inline void __syncwarp(unsigned mask = 0xffffffffu) { cuda_on_cpu::warp_barrier(mask); }

inline int __syncthreads_or(int predicate) {
  __syncthreads();
  if (predicate) std::atomic_ref(cuda_on_cpu::block.any) = 1;
  __syncthreads();
  const int result = cuda_on_cpu::block.any;
  __syncthreads();
  if (threadIdx.x == 0) {
    cuda_on_cpu::block.any = 0;
    ++cuda_on_cpu::votes;
  }
  __syncthreads();
  return result;
}

// A lane outside of the segment of `width` keeps its own value, as on a GPU.
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  const int mine = threadIdx.x % 32, first = mine / width * width;
  return cuda_on_cpu::exchange(mask, value)(first + (lane % width + width) % width);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const int mine = threadIdx.x % 32, other = mine ^ bits;
  const auto at = cuda_on_cpu::exchange(mask, value);
  return other / width == mine / width ? at(other) : value;
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int offset, int width = 32) {
  const int mine = threadIdx.x % 32, other = mine + offset;
  const auto at = cuda_on_cpu::exchange(mask, value);
  return other / width == mine / width ? at(other) : value;
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int offset, int width = 32) {
  const int mine = threadIdx.x % 32, other = mine - offset;
  const auto at = cuda_on_cpu::exchange(mask, value);
  return other >= mine / width * width ? at(other) : value;
}

inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  const auto at = cuda_on_cpu::exchange(mask, predicate);
  unsigned ballot = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1) ballot |= static_cast<unsigned>(at(lane)) << lane;
  return ballot;
}
inline bool __any_sync(unsigned mask, bool predicate) {
  return __ballot_sync(mask, predicate) != 0;
}

inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }

// Each thread as a warp of its own, which every use of these must allow.
inline unsigned __activemask() { return 1u << threadIdx.x % 32; }
inline unsigned __match_any_sync(unsigned mask, int64_t) { return mask; }

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
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }

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

inline int __float_as_int(float x) {
  int bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float __int_as_float(int bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// --- the runtime API ---

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrComputeCapabilityMajor
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

namespace cuda_on_cpu {
inline int shared_limit = 232448;  // of dynamic shared memory in a block
}

inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = which == cudaDevAttrMultiProcessorCount      ? 4  // a book is cut into parts
           : which == cudaDevAttrComputeCapabilityMajor ? cuda_on_cpu::capability_major
                                                        : cuda_on_cpu::shared_limit;
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, cudaFuncAttribute, int bytes) {
  if (bytes > cuda_on_cpu::shared_limit) std::abort();
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t) {
  std::memset(at, value, bytes);
  return cudaSuccess;
}

namespace cuda_on_cpu {

inline std::function<void()> kernel_to_run;

inline void run_fiber() {
  __tsan_acquire(&block.begin);
  kernel_to_run();
  __tsan_release(&block.end);
  void* scheduler;
  {
    const Unwatched unwatched;
    me().alive = false;
    --block.alive;
    ++block.returned;
    scheduler = block.scheduler_sanitizer;
  }
  __tsan_switch_to_fiber(scheduler, 1);
  setcontext(&block.scheduler);
}

inline bool may_run(const Fiber& fiber) {
  return fiber.alive && !(fiber.waits && fiber.waits->opened == fiber.opened &&
                          fiber.returned == block.returned);
}

// Threads take turns until all have returned.
inline void run_block() {
  while (block.alive > 0) {
    bool ran = false;
    for (unsigned t = 0; t < blockDim.x; ++t) {
      Fiber& fiber = block.fibers[t];
      if (!may_run(fiber)) continue;
      ran = true;
      threadIdx.x.value = t;
      __tsan_switch_to_fiber(fiber.sanitizer, 1);
      swapcontext(&block.scheduler, &fiber.context);
    }
    if (!ran) {
      std::fprintf(stderr, "threads wait for others that never come\n");
      std::abort();
    }
  }
}

template <class Kernel>
void launch(dim3 grid, dim3 threads, size_t shared, cudaStream_t, Kernel kernel) {
  if (threads.y != 1 || threads.z != 1 || grid.x == 0) std::abort();
  if (shared > static_cast<size_t>(shared_limit)) std::abort();
  const Unwatched unwatched;
  blockDim = threads;
  gridDim = grid;
  kernel_to_run = kernel;
  block.scheduler_sanitizer = __tsan_get_current_fiber();
  block.fibers = std::vector<Fiber>(threads.x);
  for (Fiber& fiber : block.fibers) fiber.sanitizer = __tsan_create_fiber(0);
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y, z);
        // Exactly the bytes asked for, and never zeros.
        block.shared.reset(new (std::align_val_t{1024}) unsigned char[shared]);
        std::memset(block.shared.get(), 0xcd, shared);
        block.warps = std::vector<Warp>((threads.x + kWarp - 1) / kWarp);
        block.barrier = {};
        block.alive = threads.x;
        for (Fiber& fiber : block.fibers) {
          fiber.alive = true;
          fiber.waits = nullptr;
          getcontext(&fiber.context);
          fiber.context.uc_stack.ss_sp = fiber.stack.get();
          fiber.context.uc_stack.ss_size = kStack;
          makecontext(&fiber.context, run_fiber, 0);
        }
        __tsan_release(&block.begin);
        run_block();
        __tsan_acquire(&block.end);
      }
  for (Fiber& fiber : block.fibers) __tsan_destroy_fiber(fiber.sanitizer);
}

}  // namespace cuda_on_cpu
