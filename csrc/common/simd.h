// A few vector types and the four operations the compiler's vector extension does not
// spell, for files compiled once per instruction set. Everything is in an unnamed
// namespace: two instruction sets must never share one of these functions.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace tokenflow::TFX_ISA {
namespace {
namespace simd {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kFloats = kBytes / 4;
constexpr int kDoubles = kBytes / 8;

typedef float VecF __attribute__((vector_size(kBytes)));
typedef float VecHalfF __attribute__((vector_size(kBytes / 2)));
typedef double VecD __attribute__((vector_size(kBytes)));
typedef int64_t VecI64 __attribute__((vector_size(kBytes)));
typedef int32_t VecI32 __attribute__((vector_size(kBytes)));

inline VecF load(const float* p) {
  VecF v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline VecD load(const double* p) {
  VecD v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, VecF v) { std::memcpy(p, &v, sizeof v); }

inline VecD load_as_double(const float* p) {
  VecHalfF half;
  std::memcpy(&half, p, sizeof half);
  return __builtin_convertvector(half, VecD);
}

inline VecF broadcast(float x) {
#if defined(__AVX512F__)
  return (VecF)_mm512_set1_ps(x);
#elif defined(__AVX2__)
  return (VecF)_mm256_set1_ps(x);
#else
  return VecF{x, x, x, x};
#endif
}

// Where either is NaN the result is unspecified.
inline VecF max(VecF a, VecF b) {
#if defined(__AVX512F__)
  return (VecF)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (VecF)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

// Is !(a <= b) in some lane? True where either is NaN.
inline bool any_not_le(VecF a, VecF b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NLE_UQ) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_NLE_UQ)) != 0;
#else
  VecI32 le = a <= b;
  return (le[0] & le[1] & le[2] & le[3]) == 0;
#endif
}

}  // namespace simd
}  // namespace
}  // namespace tokenflow::TFX_ISA
