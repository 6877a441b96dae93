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

// From Σ x and Σ x² of the channel's group. The squares are exact in float64; the
// center is the mean rounded to float32 and the shift makes up for that rounding, so
// that a mean 1e4 times the spread costs no digits; one 1e6 times leaves three. NaN
// passes through.
TFX_HD Affine group_affine(double sum, double squares, double count, double eps,
                           float weight, float bias) {
  const double mean = sum / count;
  const double spread = squares / count - mean * mean;
  const double variance = spread < 0.0 ? 0.0 : spread;
  const float center = static_cast<float>(mean);
  const float scale = static_cast<float>(weight / sqrt(variance + eps));
  const double left = mean - center;
  return {center, scale, static_cast<float>(bias - left * scale)};
}

TFX_HD float silu(float v) { return v / (1.0f + expf(-v)); }

}  // namespace tokenflow
