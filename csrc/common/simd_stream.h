// Stores past the caches, for results that outlive them: a line that is written whole
// is not read first. For files compiled once per instruction set, as simd.h.
#pragma once

#include "common/floats.h"
#include "common/simd_maps.h"

namespace tokenflow::TFX_ISA {
namespace {
namespace simd {

template <class T>
inline void stream(T* p, VecF v) {
  store(p, v);
}
#if defined(__AVX512F__)  // a vector is a line: p is aligned
inline void stream(float* p, VecF v) { _mm512_stream_ps(p, (__m512)v); }
inline void end_stream() { _mm_sfence(); }
#else
inline void end_stream() {}
#endif

// Is a result worth it, `elements` of them in runs of `run`? From 8 MB on.
inline bool streams(Element element, const void* y, int64_t elements, int64_t run) {
  constexpr int64_t kLeast = 2 << 20;
  return element == Element::f32 && elements >= kLeast && run % kFloats == 0 &&
         reinterpret_cast<uintptr_t>(y) % kBytes == 0;
}

}  // namespace simd
}  // namespace
}  // namespace tokenflow::TFX_ISA
