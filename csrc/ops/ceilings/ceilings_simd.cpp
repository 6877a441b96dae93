/*
ceilings, CPU loops. Compiled once per instruction set; meaning: ceilings.h.

Algorithm  Twelve independent accumulators hide the latency of an operation on every
           machine we know (four cycles, two a cycle, would need eight). An empty asm
           per operand keeps the compiler from lifting an operation out of the loop.
Numerics   None: values are thrown away.
Needs      VNNI is asked for at run time, because no instruction set of ours implies it.
*/
#include <cstring>

#include "common/simd.h"
#include "ops/ceilings/ceilings.h"

#if defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace tokenflow::TFX_ISA {
namespace {

using simd::VecF;

constexpr int kChains = 12;
typedef int8_t VecI8 __attribute__((vector_size(simd::kBytes)));
typedef int16_t VecI16 __attribute__((vector_size(simd::kBytes)));

// The compiler must take v for something it has not seen.
template <class Vec>
inline void hide(Vec& v) {
#if defined(__AVX512F__)
  asm volatile("" : "+v"(v));
#elif defined(__x86_64__)
  asm volatile("" : "+x"(v));
#elif defined(__aarch64__)
  asm volatile("" : "+w"(v));
#else
  asm volatile("" : "+m"(v));
#endif
}

// One turn per chain: acc = step(acc). Returns lanes · chains · rounds · 2.
template <class Vec, class Step>
inline __attribute__((always_inline)) double turn(int64_t rounds, int products,
                                                  Step step) {
  Vec acc[kChains] = {};
#pragma GCC unroll 12
  for (int c = 0; c < kChains; ++c) hide(acc[c]);  // equal ones would be merged
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) acc[c] = step(acc[c]);
  }
#pragma GCC unroll 12
  for (int c = 0; c < kChains; ++c) hide(acc[c]);
  return 2.0 * products * kChains * static_cast<double>(rounds);
}

#if defined(__AVX512F__)
#define TFX_VNNI "avx512vnni"
__attribute__((target(TFX_VNNI))) double vnni_loop(int64_t rounds) {
  __m512i a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(2), acc[kChains] = {};
  hide(a);
  hide(b);
#pragma GCC unroll 12
  for (int c = 0; c < kChains; ++c) hide(acc[c]);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) acc[c] = _mm512_dpbusd_epi32(acc[c], a, b);
  }
#pragma GCC unroll 12
  for (int c = 0; c < kChains; ++c) hide(acc[c]);
  return 2.0 * 64 * kChains * static_cast<double>(rounds);
}
#elif defined(__AVX2__)
#define TFX_VNNI "avxvnni"
__attribute__((target(TFX_VNNI))) double vnni_loop(int64_t rounds) {
  __m256i a = _mm256_set1_epi8(1), b = _mm256_set1_epi8(2), acc[kChains] = {};
  hide(a);
  hide(b);
#pragma GCC unroll 12
  for (int c = 0; c < kChains; ++c) hide(acc[c]);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) acc[c] = _mm256_dpbusd_avx_epi32(acc[c], a, b);
  }
#pragma GCC unroll 12
  for (int c = 0; c < kChains; ++c) hide(acc[c]);
  return 2.0 * 32 * kChains * static_cast<double>(rounds);
}
#endif

}  // namespace

double fma_loop(int64_t rounds) {
  VecF a = simd::broadcast(0.5f), b = simd::broadcast(0.25f);
  hide(a);
  hide(b);
  return turn<VecF>(rounds, simd::kFloats, [&](VecF v) { return v * a + b; });
}

double int8_loop(int64_t rounds) {
#if defined(TFX_VNNI)
  if (__builtin_cpu_supports(TFX_VNNI)) return vnni_loop(rounds);
#endif
#if defined(__AVX512F__) || defined(__AVX2__)
  VecI8 a = {}, b = {};
  hide(a);
  return turn<VecI16>(rounds, simd::kBytes, [&](VecI16 v) {
    hide(b);
#if defined(__AVX512F__)
    return v + (VecI16)_mm512_maddubs_epi16((__m512i)a, (__m512i)b);
#else
    return v + (VecI16)_mm256_maddubs_epi16((__m256i)a, (__m256i)b);
#endif
  });
#elif defined(__ARM_FEATURE_DOTPROD)
  int8x16_t a = vdupq_n_s8(1), b = vdupq_n_s8(2);
  hide(a);
  hide(b);
  return turn<int32x4_t>(rounds, 16, [&](int32x4_t v) { return vdotq_s32(v, a, b); });
#else
  VecI16 a = {}, b = {};
  hide(a);
  return turn<VecI16>(rounds, simd::kBytes / 2, [&](VecI16 v) {
    hide(b);
    return v + a * b;
  });
#endif
}

const char* int8_name() {
#if defined(TFX_VNNI)
  if (__builtin_cpu_supports(TFX_VNNI)) return "vpdpbusd";
#endif
#if defined(__AVX512F__) || defined(__AVX2__)
  return "vpmaddubsw + vpaddw";
#elif defined(__ARM_FEATURE_DOTPROD)
  return "sdot";
#else
  return "int16 multiply and add";
#endif
}

void copy_loop(const void* from, void* to, int64_t bytes, bool around) {
#if defined(__AVX512F__) || defined(__AVX2__)
  if (around) {
    const auto* source = static_cast<const float*>(from);
    auto* target = static_cast<float*>(to);
    const int64_t whole = bytes / simd::kBytes * simd::kFloats;
    for (int64_t i = 0; i < whole; i += simd::kFloats) {
#if defined(__AVX512F__)
      _mm512_stream_ps(target + i, (__m512)simd::load(source + i));
#else
      _mm256_stream_ps(target + i, (__m256)simd::load(source + i));
#endif
    }
    _mm_sfence();
    std::memcpy(target + whole, source + whole, bytes % simd::kBytes);
    return;
  }
#endif
  std::memcpy(to, from, bytes);
}

}  // namespace tokenflow::TFX_ISA
