// The arithmetic of group_norm_silu that CPU and CUDA share.
#pragma once

#include <cmath>

#include "common/macros.h"
#include "ops/norm/group_norm_silu.h"

namespace tokenflow {

// What one channel of one picture goes through: silu((x − center) · scale + shift).
struct Affine {
  float center, scale, shift;
};

// Of a group; deviation = √(variance + eps).
struct Moments {
  double mean, deviation;
};

// From Σ x and Σ x², whose squares are exact in float64. NaN passes through.
TFX_HD Moments group_moments(double sum, double squares, double count, double eps) {
  const double mean = sum / count;
  const double spread = squares / count - mean * mean;
  const double variance = spread < 0.0 ? 0.0 : spread;
  return {mean, sqrt(variance + eps)};
}

// The center is the mean rounded to float32 and the shift makes up for that rounding,
// so that a mean 1e4 times the spread costs no digits; one 1e6 times leaves three.
TFX_HD Affine channel_affine(Moments group, float weight, float bias) {
  const float center = static_cast<float>(group.mean);
  const float scale = static_cast<float>(weight / group.deviation);
  const double left = group.mean - center;
  return {center, scale, static_cast<float>(bias - left * scale)};
}

TFX_HD Affine group_affine(double sum, double squares, double count, double eps,
                           float weight, float bias) {
  return channel_affine(group_moments(sum, squares, count, eps), weight, bias);
}

TFX_HD float silu(float v) { return v / (1.0f + expf(-v)); }

}  // namespace tokenflow
