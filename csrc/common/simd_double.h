// float64 vectors: exact products of float32 values summed in a written order, and
// their quotients. For files compiled once per instruction set, as simd.h, and with
// -ffp-contract=off: what is fused is written multiply_add.
#pragma once

#include <cmath>
#include <limits>
#include <utility>

#include "common/simd.h"

namespace tokenflow::TFX_ISA {
namespace {
namespace simd {

inline VecD broadcast(double x) {
#if defined(__AVX512F__)
  return (VecD)_mm512_set1_pd(x);
#elif defined(__AVX2__)
  return (VecD)_mm256_set1_pd(x);
#else
  return VecD{x, x};
#endif
}

// a·b + c, in one rounding where the machine can: the same bits where a·b is exact.
inline VecD multiply_add(VecD a, VecD b, VecD c) {
#if defined(__AVX512F__)
  return (VecD)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__AVX2__)
  return (VecD)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}

// float32(x / by), given inverse = 1 / by, for x that are float32 values and by finite.
// With fused multiply-add, without a division: the rounding error of x · inverse is
// mended once, which leaves the quotient at most 2⁻¹⁰⁴ of itself off before its last
// rounding. That can round to another float64 than a division does, but not to one on
// another side of the middle of two float32 values: X · 2^s = B · (f · 2^t ± 1), off by
// at most 8 in 2^107, with f odd and of at most 25 bits, has no solution for a 53-bit B
// and a 24-bit X. The signs are chosen so that −0 stays −0.
inline VecD quotient(VecD x, VecD by, VecD inverse) {
#if defined(__AVX512F__)
  const __m512d q = (__m512d)(x * inverse), d = (__m512d)inverse;
  const __m512d over = _mm512_fmsub_pd(q, (__m512d)by, (__m512d)x);
  return (VecD)_mm512_fnmadd_pd(over, d, q);
#elif defined(__AVX2__)
  const __m256d q = (__m256d)(x * inverse), d = (__m256d)inverse;
  const __m256d over = _mm256_fmsub_pd(q, (__m256d)by, (__m256d)x);
  return (VecD)_mm256_fnmadd_pd(over, d, q);
#else
  return x / by;
#endif
}

inline VecD square_root(VecD x) {
#if defined(__AVX512F__)
  return (VecD)_mm512_sqrt_pd((__m512d)x);
#elif defined(__AVX2__)
  return (VecD)_mm256_sqrt_pd((__m256d)x);
#else
  return VecD{std::sqrt(x[0]), std::sqrt(x[1])};
#endif
}

inline void store(double* p, VecD v) { std::memcpy(p, &v, sizeof v); }

inline VecHalfF narrow(VecD v) {
#if defined(__AVX512F__)
  return (VecHalfF)_mm512_cvtpd_ps((__m512d)v);
#elif defined(__AVX2__)
  return (VecHalfF)_mm256_cvtpd_ps((__m256d)v);
#else
  return __builtin_convertvector(v, VecHalfF);
#endif
}
inline void store_as_float(float* p, VecD v) {
  const VecHalfF half = narrow(v);
  std::memcpy(p, &half, sizeof half);
}

// The first `count` of a vector; the other lanes of what is loaded are 0.
inline VecD load_part_as_double(const float* p, int64_t count) {
  if (count >= kDoubles) return load_as_double(p);
  float part[kDoubles] = {};
  std::memcpy(part, p, count * sizeof(float));
  return load_as_double(part);
}
inline void store_part_as_float(float* p, VecD v, int64_t count) {
  if (count >= kDoubles) return store_as_float(p, v);
  const VecHalfF half = narrow(v);
  std::memcpy(p, &half, count * sizeof(float));
}

// Lanes whose bit S is set change places with the other vector's where it is not.
template <int S, size_t... L>
inline void swap_lanes(VecD& a, VecD& b, std::index_sequence<L...>) {
  const VecD first = __builtin_shufflevector(a, b, (L & S ? kDoubles + L - S : L)...);
  b = __builtin_shufflevector(a, b, (L & S ? kDoubles + L : L + S)...);
  a = first;
}
template <int S = 1>
inline void transpose(VecD (&v)[kDoubles]) {
  for (int i = 0; i < kDoubles; ++i)
    if (!(i & S)) swap_lanes<S>(v[i], v[i + S], std::make_index_sequence<kDoubles>{});
  if constexpr (2 * S < kDoubles) transpose<2 * S>(v);
}

// Vectors that hold one value in each of eight lanes, whatever the instruction set.
constexpr int kEighths = 8 / kDoubles;

template <int S, size_t... L>
inline VecD add_lanes(VecD v, std::index_sequence<L...> lanes) {
  v += __builtin_shufflevector(v, v, (L ^ S)...);
  if constexpr (S > 1) return add_lanes<S / 2>(v, lanes);
  return v;
}

// The sum of eight lanes, ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)) everywhere.
inline double sum_of_lanes(VecD (&v)[kEighths]) {
  for (int half = kEighths / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) v[i] += v[i + half];
  return add_lanes<kDoubles / 2>(v[0], std::make_index_sequence<kDoubles>{})[0];
}

}  // namespace simd
}  // namespace
}  // namespace tokenflow::TFX_ISA
