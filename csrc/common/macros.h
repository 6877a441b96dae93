// What every kernel file may assume: one word for code that runs on both sides, and
// one for code compiled once per instruction set.
#pragma once

#ifdef __CUDACC__
#define TFX_HD __host__ __device__ inline
#else
#define TFX_HD static inline
#endif

// In <op>_simd.cpp files TFX_ISA names the instruction set being compiled; everything
// there lives in tokenflow::TFX_ISA and in unnamed namespaces, so that no function
// compiled for AVX-512 can be picked by the linker for a machine without it.
