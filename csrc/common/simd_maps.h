// Vectors of float32 read from and written to any element type, and a square of them
// transposed. For files compiled once per instruction set, as simd.h.
#pragma once

#include <utility>

#include "common/floats.h"
#include "common/simd.h"

namespace tokenflow::TFX_ISA {
namespace {
namespace simd {

typedef uint32_t VecU32 __attribute__((vector_size(kBytes)));
typedef uint16_t VecU16 __attribute__((vector_size(kBytes / 2)));

inline VecF load(const Bfloat16* p) {
#if defined(__AVX512F__)
  const __m256i bits = _mm256_loadu_si256((const __m256i*)p);
  return (VecF)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
#elif defined(__AVX2__)
  const __m128i bits = _mm_loadu_si128((const __m128i*)p);
  return (VecF)_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
#else
  VecU16 bits;
  std::memcpy(&bits, p, sizeof bits);
  return (VecF)(__builtin_convertvector(bits, VecU32) << 16);
#endif
}

inline void store(Bfloat16* p, VecF v) {
  const VecU32 bits = (VecU32)v;
  const VecU32 rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const VecU32 wide = v == v ? rounded : VecU32{} + 0x7fc0u;
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16((__m512i)wide));
#elif defined(__AVX2__)
  const __m256i twice = _mm256_packus_epi32((__m256i)wide, (__m256i)wide);
  _mm_storeu_si128((__m128i*)p,
                   _mm256_castsi256_si128(_mm256_permute4x64_epi64(twice, 0x08)));
#else
  const VecU16 half = __builtin_convertvector(wide, VecU16);
  std::memcpy(p, &half, sizeof half);
#endif
}

inline VecF load(const Half* p) {
#if defined(__AVX512F__)
  return (VecF)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
  return (VecF)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  VecF v;
  for (int i = 0; i < kFloats; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}

inline void store(Half* p, VecF v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p,
                      _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kFloats; ++i) from_float(v[i], p[i]);
#endif
}

// The first `count` ≥ 0 lanes; the others of a loaded vector are 0. Of float32: simd.h.
template <class T>
inline VecF load_part(const T* p, int64_t count) {
  VecF v{};
  for (int64_t i = 0; i < count; ++i) v[i] = to_float(p[i]);
  return v;
}
template <class T>
inline void store_part(T* p, VecF v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) from_float(v[i], p[i]);
}

// One step of the transposition: lanes whose bit S is set change places with the other
// vector's lanes where it is not.
template <int S, size_t... L>
inline void swap_lanes(VecF& a, VecF& b, std::index_sequence<L...>) {
  const VecF first = __builtin_shufflevector(a, b, (L & S ? kFloats + L - S : L)...);
  b = __builtin_shufflevector(a, b, (L & S ? kFloats + L : L + S)...);
  a = first;
}
template <int S = 1>
inline void transpose(VecF (&v)[kFloats]) {
  for (int i = 0; i < kFloats; ++i)
    if (!(i & S)) swap_lanes<S>(v[i], v[i + S], std::make_index_sequence<kFloats>{});
  if constexpr (2 * S < kFloats) transpose<2 * S>(v);
}

}  // namespace simd
}  // namespace
}  // namespace tokenflow::TFX_ISA
