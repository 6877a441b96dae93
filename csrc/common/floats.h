// The element types of maps, read and written as float32 on both sides. 16-bit values
// are rounded to nearest, ties to even; NaN stays NaN.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/macros.h"
#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace tokenflow {

enum class Element { f32, bf16, f16 };

struct Bfloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

TFX_HD float to_float(float x) { return x; }

TFX_HD float to_float(Bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

TFX_HD float to_float(Half x) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(x.bits));
#else
  // Shift sign, exponent and fraction to their places in float32; 2¹¹² mends the bias
  // of the exponent, subnormals included, exactly.
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  uint32_t bits = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  float value;
  if (bits >= 0x0f800000u) {  // Inf, NaN
    bits |= 0x7f800000u;
    memcpy(&value, &bits, sizeof value);
  } else {
    memcpy(&value, &bits, sizeof value);
    value *= 5.192296858534828e33f;
  }
  memcpy(&bits, &value, sizeof bits);
  bits |= sign;
  memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

TFX_HD void from_float(float value, float& x) { x = value; }

TFX_HD void from_float(float value, Bfloat16& x) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  x.bits = value != value
               ? static_cast<uint16_t>(0x7fc0)
               : static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

TFX_HD void from_float(float value, Half& x) {
#ifdef __CUDA_ARCH__
  x.bits = __half_as_ushort(__float2half_rn(value));
#else
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  uint16_t half;
  if (bits > 0x7f800000u) {
    half = 0x7e00;
  } else if (bits >= 0x477ff000u) {  // rounds to 65536 or more
    half = 0x7c00;
  } else if (bits >= 0x38800000u) {  // normal: rebias, round at bit 13
    half = static_cast<uint16_t>((bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >>
                                 13);
  } else {  // subnormal: the addition of 0.5 leaves the rounded fraction below
    float magnitude;
    memcpy(&magnitude, &bits, sizeof magnitude);
    magnitude += 0.5f;
    memcpy(&bits, &magnitude, sizeof bits);
    half = static_cast<uint16_t>(bits - 0x3f000000u);
  }
  x.bits = static_cast<uint16_t>(sign | half);
#endif
}

// Calls f(pointer to the element type) for the type that `element` names.
template <class F>
static inline void with_element(Element element, F&& f) {
  if (element == Element::f32) return f(static_cast<float*>(nullptr));
  if (element == Element::bf16) return f(static_cast<Bfloat16*>(nullptr));
  f(static_cast<Half*>(nullptr));
}

}  // namespace tokenflow
