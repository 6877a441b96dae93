// What this machine can do at most, as loops: no tensor op, a yardstick for timings.
// Each runs on the calling thread; tokenflow.benchmark starts one on every thread.
#pragma once

#include <cstdint>

#include "common/isa.h"

namespace tokenflow {

// `rounds` turns of independent float32 multiply-adds; returns operations done, a
// multiply-add counted as two.
double fma_ceiling(int64_t rounds);
// The same of int8 products added into wider integers.
double int8_ceiling(int64_t rounds);
// `rounds` copies of `bytes` bytes; `around` writes past the caches. Returns bytes
// moved, read and written.
double copy_ceiling(const void* from, void* to, int64_t bytes, int64_t rounds,
                    bool around);
// The instruction that int8_ceiling counts on here.
const char* int8_instruction();

// --- once per instruction set (ceilings_simd.cpp) ---
TFX_DECLARE_SIMD(double fma_loop(int64_t rounds))
TFX_DECLARE_SIMD(double int8_loop(int64_t rounds))
TFX_DECLARE_SIMD(const char* int8_name())
TFX_DECLARE_SIMD(void copy_loop(const void* from, void* to, int64_t bytes, bool around))

}  // namespace tokenflow
