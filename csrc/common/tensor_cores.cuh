// Tensor cores and asynchronous copies, one small function per PTX instruction, so that
// kernels read as C++. tests/cuda_on_cpu stands in for each with the layout that PTX
// documents; nothing else in the kernels knows where it runs.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common/floats.h"

#ifdef TFX_CUDA_ON_CPU
#include <tensor_cores_on_cpu.h>
#else

namespace tokenflow {

// What the architecture being compiled has. Kernels are empty where it lacks theirs;
// the launcher picks by the device it finds.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define TFX_HAS_MMA 1
#endif

// Memory that the launch asked for, 128-byte aligned.
__device__ inline unsigned char* dynamic_shared() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

__device__ inline uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// --- sm_80 ---
#if !defined(__CUDA_ARCH__) || defined(TFX_HAS_MMA)

// d += a · b of 16 × 16 and 16 × 8 halves, summed in float32. Lane l holds, as pairs of
// halves, rows l/4 and l/4 + 8 of a at columns 2(l%4) and, in the last two registers, 8
// further on; column l/4 of b at rows 2(l%4) and 8 further on; rows l/4 (d[0], d[1])
// and l/4 + 8 (d[2], d[3]) of d at columns 2(l%4) and the next.
template <class T>
__device__ inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1);
template <>
__device__ inline void mma_m16n8k16<Half>(float (&d)[4], const uint32_t (&a)[4],
                                          uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
__device__ inline void mma_m16n8k16<Bfloat16>(float (&d)[4], const uint32_t (&a)[4],
                                              uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 × 8 matrices of halves; lane l names row l%8 of matrix l/8 and gets columns
// 2(l%4) and the next of row l/4 of each.
__device__ inline void load_matrices(uint32_t (&m)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(shared_address(row))
               : "memory");
}

// Starts a copy of 16 aligned bytes; of zeros where not `valid`, and nothing is read.
__device__ inline void copy_async_16(void* shared, const void* global,
                                     bool valid = true) {
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
      "l"(global), "r"(valid ? 16 : 0)
      : "memory");
}
__device__ inline void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most `pending` of this thread's groups are under way.
template <int pending>
__device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

#endif

}  // namespace tokenflow

#endif  // TFX_CUDA_ON_CPU
