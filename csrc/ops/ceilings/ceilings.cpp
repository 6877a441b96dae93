#include "ops/ceilings/ceilings.h"

namespace tokenflow {

double fma_ceiling(int64_t rounds) { return TFX_CALL_SIMD(fma_loop, rounds); }

double int8_ceiling(int64_t rounds) { return TFX_CALL_SIMD(int8_loop, rounds); }

const char* int8_instruction() { return TFX_CALL_SIMD(int8_name); }

double copy_ceiling(const void* from, void* to, int64_t bytes, int64_t rounds,
                    bool around) {
  for (int64_t i = 0; i < rounds; ++i)
    TFX_CALL_SIMD(copy_loop, from, to, bytes, around);
  return 2.0 * static_cast<double>(bytes) * static_cast<double>(rounds);
}

}  // namespace tokenflow
