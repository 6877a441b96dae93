// A few vector types and the operations that the compiler's vector extension does not
// spell, for files compiled once per instruction set. Everything is in an unnamed
// namespace: two instruction sets must never share one of these functions.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
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

// f(0), f(1), … f(N − 1), each with its number as a constant: arrays that only such
// numbers index live in registers.
template <int N, class F>
[[gnu::always_inline]] inline void unroll(F f) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int, I>{}), ...);
  }(std::make_integer_sequence<int, N>{});
}

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
inline VecI32 load(const int32_t* p) {
  VecI32 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, VecF v) { std::memcpy(p, &v, sizeof v); }

// The first `count` ≥ 0 of a vector; the other lanes are 0.
inline VecF load_part(const float* p, int64_t count) {
  if (count >= kFloats) return load(p);
#if defined(__AVX512F__)
  return (VecF)_mm512_maskz_loadu_ps((1u << count) - 1, p);
#else
  VecF v{};
  std::memcpy(&v, p, count * sizeof(float));
  return v;
#endif
}

inline VecD load_as_double(const float* p) {
#if defined(__AVX512F__)
  return (VecD)_mm512_cvtps_pd(_mm256_loadu_ps(p));
#elif defined(__AVX2__)
  return (VecD)_mm256_cvtps_pd(_mm_loadu_ps(p));
#else
  VecHalfF half;
  std::memcpy(&half, p, sizeof half);
  return __builtin_convertvector(half, VecD);
#endif
}

// The lower (0) or upper (1) half of the lanes.
inline VecD half_as_double(VecF v, int which) {
  VecHalfF half;
  std::memcpy(&half, reinterpret_cast<const char*>(&v) + which * sizeof half,
              sizeof half);
  return __builtin_convertvector(half, VecD);
}

inline float sum(VecF v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float total = 0.0f;
  for (int i = 0; i < kFloats / 2; ++i) total += v[i] + v[i + kFloats / 2];
  return total;
#endif
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

// Nearest integers of |x| < 2²², as floats; halves to the even one.
inline VecF nearest(VecF x) {
  const VecF magic = broadcast(12582912.0f);  // 1.5 · 2²³
  return (x + magic) - magic;
}

// All of them by one operation, pairwise, so that none waits for more than a few
// others.
template <int N, class V, class Op>
[[gnu::always_inline]] inline V reduce(const V (&v)[N], Op op) {
  if constexpr (N == 1) {
    return v[0];
  } else {
    V half[(N + 1) / 2];
    unroll<N / 2>([&](auto i) { half[i] = op(v[2 * i], v[2 * i + 1]); });
    if constexpr (N % 2) half[N / 2] = v[N - 1];
    return reduce(half, op);
  }
}

// Bit i: is !(a <= b) in lane i? True where either is NaN.
inline uint32_t lanes_not_le(VecF a, VecF b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NLE_UQ);
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_NLE_UQ));
#else
  const VecI32 mask = a <= b;
  int32_t le[kFloats];  // gcc's sanitizer loses a vector that is indexed by a variable
  std::memcpy(le, &mask, sizeof le);
  uint32_t lanes = 0;
  for (int i = 0; i < kFloats; ++i) lanes |= (le[i] ? 0u : 1u) << i;
  return lanes;
#endif
}

inline bool any_not_le(VecF a, VecF b) { return lanes_not_le(a, b) != 0; }

}  // namespace simd
}  // namespace
}  // namespace tokenflow::TFX_ISA
