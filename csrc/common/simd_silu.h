// silu(v) = v / (1 + e⁻ᵛ) for vectors of float32, within 2⁻²¹ of the value; below −86,
// where it is smaller than 1e-34, e⁻ᵛ is held. NaN stays NaN. And what its gradient
// makes of another one. Several vectors go through side by side, because one alone is a
// long chain that waits for itself. For files compiled once per instruction set, as
// simd.h.
#pragma once

#include "common/simd.h"

namespace tokenflow::TFX_ISA {
namespace {
namespace simd {

#if defined(__AVX512F__)

// e⁻ᵛ = 2ⁿ · 2ʳ with n in sixteenths, whose fraction is looked up, and |r| ≤ 1/32,
// where three terms are enough; the reciprocal is refined once from 14 bits.
template <int N>
inline void one_plus_exp_minus(const VecF (&v)[N], VecF (&sum)[N]) {
  alignas(64) static constexpr float kSixteenths[16] = {
      1.0f,        1.04427378f, 1.09050773f, 1.13878863f, 1.18920712f, 1.24185781f,
      1.29683955f, 1.35425555f, 1.41421356f, 1.47682615f, 1.54221083f, 1.61049033f,
      1.68179283f, 1.75625216f, 1.83400809f, 1.91520656f};
  const __m512 sixteenths = _mm512_load_ps(kSixteenths);
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 log2e = _mm512_set1_ps(-1.44269504f);
  const __m512 magic = _mm512_set1_ps(786432.0f);  // 1.5 · 2¹⁹: rounds to sixteenths
  __m512 r[N], n[N], e[N];
#define TFX_EACH _Pragma("GCC unroll 8") for (int i = 0; i < N; ++i)
  TFX_EACH r[i] =
      _mm512_range_ps((__m512)v[i], _mm512_set1_ps(86.0f), 2);  // the smaller in size
  TFX_EACH n[i] = _mm512_fmadd_ps(r[i], log2e, magic);
  TFX_EACH e[i] = _mm512_permutexvar_ps(_mm512_castps_si512(n[i]), sixteenths);
  TFX_EACH n[i] = _mm512_sub_ps(n[i], magic);
  TFX_EACH {
    const __m512 rest = _mm512_fmsub_ps(r[i], log2e, n[i]);
    r[i] = _mm512_fmadd_ps(r[i], _mm512_set1_ps(-1.92596299e-8f), rest);
  }
  __m512 p[N];
  TFX_EACH p[i] = _mm512_fmadd_ps(r[i], _mm512_set1_ps(0.0555041087f),
                                  _mm512_set1_ps(0.240226507f));
  TFX_EACH p[i] = _mm512_fmadd_ps(p[i], r[i], _mm512_set1_ps(0.693147181f));
  TFX_EACH p[i] = _mm512_fmadd_ps(p[i], r[i], one);
  TFX_EACH e[i] = _mm512_mul_ps(p[i], e[i]);
  TFX_EACH e[i] = _mm512_scalef_ps(e[i], n[i]);
  TFX_EACH sum[i] = (VecF)_mm512_add_ps(e[i], one);
#undef TFX_EACH
}

#else

// e⁻ᵛ = 2ⁿ times a polynomial of degree 6 on |r| ≤ ln 2 / 2.
template <int N>
inline void one_plus_exp_minus(const VecF (&v)[N], VecF (&sum)[N]) {
  const VecF low = broadcast(-86.0f), high = broadcast(86.0f);
  for (int i = 0; i < N; ++i) {
    VecF x = v[i] < high ? v[i] : high;  // NaN becomes 86; it stays in the numerator
    x = x > low ? -x : -low;
    // Adding 1.5 · 2²³ rounds to an integer, which then stands in the low bits.
    const VecF magic = broadcast(12582912.0f);
    const VecF shifted = x * 1.44269504f + magic;
    const VecF n = shifted - magic;
    // ln 2 in two parts, the first short enough for an exact product with n.
    const VecF r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    VecF p = r * (1.0f / 720) + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const VecI32 power = ((VecI32)shifted + 127) << 23;
    sum[i] = p * (VecF)power + 1.0f;
  }
}

#endif

template <int N>
inline void silu(VecF (&v)[N]) {
  VecF sum[N];
  one_plus_exp_minus(v, sum);
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) v[i] /= sum[i];
}

// gradient ← gradient · silu′(v), with silu′(v) = s · (1 + v · (1 − s)), s = 1 / (1 +
// e⁻ᵛ).
template <int N>
inline void silu_backward(const VecF (&v)[N], VecF (&gradient)[N]) {
  VecF sum[N];
  one_plus_exp_minus(v, sum);
#pragma GCC unroll 8
  for (int i = 0; i < N; ++i) {
    const VecF s = 1.0f / sum[i];
    gradient[i] *= s * (1.0f + v[i] * (1.0f - s));
  }
}

}  // namespace simd
}  // namespace
}  // namespace tokenflow::TFX_ISA
