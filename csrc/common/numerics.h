/*
The arithmetic that decides, once for CPU and CUDA. docs/numerics.md is the contract;
tokenflow_ext/reference.py says the same in torch.

The product of two float32 numbers is exact in float64, so a sum written in one order
has one result, with or without fused multiply-add. Where a rounded product meets an
addition (the offset of unnormalised entries) the two are kept apart by round_product.
*/
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "common/macros.h"

namespace tokenflow {

// Infinity and NaN: every exponent bit set. Not std::isfinite, which differs in name
// between host and device compilers.
TFX_HD bool is_finite(double x) { return x - x == 0.0; }

// a·b rounded to float64 before anybody can fuse it into an addition.
TFX_HD double round_product(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;  // host code is compiled with -ffp-contract=off
#endif
}

// Σ x_d², in order, in float64. `stride` counts elements.
TFX_HD double sum_of_squares(const float* x, int64_t width, int64_t stride = 1) {
  double sum = 0.0;
  for (int64_t d = 0; d < width; ++d) {
    double v = x[d * stride];
    sum += v * v;
  }
  return sum;
}

// max(‖x‖, 1e-12): what a row is divided by. NaN stays.
TFX_HD double row_norm(double squares) {
  double norm = sqrt(squares);
  return norm < 1e-12 ? 1e-12 : norm;
}

TFX_HD float normalized(float x, double norm) {
  return static_cast<float>(static_cast<double>(x) / norm);
}

// Bound on Σ x² of a row of unit length: rounding makes an element at most 2⁻²⁴ larger.
constexpr double kUnitSquares = 1.0 + 0x1p-20;

// Writes one half of an entry as it is compared; returns its squared norm as given.
TFX_HD double write_half(const float* in, int64_t width, bool normalize, float* out) {
  const double squares = sum_of_squares(in, width);
  const double norm = row_norm(squares);
  for (int64_t d = 0; d < width; ++d)
    out[d] = normalize ? normalized(in[d], norm) : in[d];
  return squares;
}

// Σ a_d·b_d in float64, d = 0, 1, 2, … in order.
TFX_HD double exact_dot(const float* a, int64_t stride_a, const float* b,
                        int64_t width) {
  double sum = 0.0;
  for (int64_t d = 0; d < width; ++d)
    sum += static_cast<double>(a[d * stride_a]) * static_cast<double>(b[d]);
  return sum;
}

// What is subtracted from the dot product of an unnormalised entry.
TFX_HD double entry_offset(double semantic_squares, double pixel_squares,
                           float weight) {
  return 0.5 *
         (semantic_squares + round_product(static_cast<double>(weight), pixel_squares));
}

// Bound on |float32 sweep − exact score| for one query, whatever the order of the
// sweep's additions and with or without fused multiply-add: every partial result is at
// most magnitude = ‖a‖·max‖b‖ + max offset, each of the width + 1 additions, the
// products and the rounded offset errs by 2⁻²⁴ of that, and each operation may lose
// 2⁻¹⁴⁹ to underflow. Rounding the threshold to float32 is paid by the spare units.
// NaN where float32 could overflow: then no comparison rules an entry out.
TFX_HD double sweep_error(double magnitude, int64_t width) {
  if (!(magnitude < 1e37)) return std::numeric_limits<double>::quiet_NaN();
  double units = static_cast<double>(width + 8);
  return units * 1.01 * (magnitude * 5.9604644775390625e-08 + 1.5e-45);
}

// Adaptive mean pooling: bin `o` of `out` covers [first, last) of `in` cells.
TFX_HD int64_t bin_first(int64_t o, int64_t in, int64_t out) { return o * in / out; }
TFX_HD int64_t bin_last(int64_t o, int64_t in, int64_t out) {
  return ((o + 1) * in + out - 1) / out;
}

// First of the four source cells (may be −1: clamp each) of enlarged cell `o`: the
// integer floor of the exact position ((2o + 1)·n − H) / (2H), minus one.
TFX_HD int64_t bicubic_first(int64_t o, int64_t in, int64_t out) {
  int64_t numerator = (2 * o + 1) * in - out, denominator = 2 * out;
  int64_t floor = numerator >= 0 ? numerator / denominator
                                 : -((-numerator + denominator - 1) / denominator);
  return floor - 1;
}

// Does an index name one of n things?
TFX_HD bool is_inside(int64_t i, int64_t n) { return i >= 0 && i < n; }

TFX_HD int64_t clamp_index(int64_t i, int64_t n) {
  return i < 0 ? 0 : i >= n ? n - 1 : i;
}

}  // namespace tokenflow
