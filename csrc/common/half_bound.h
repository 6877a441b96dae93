/*
The error bound of a sweep in float16 with float32 accumulation, once for CPU and CUDA.

Rows are scaled by powers of two, which is exact, and rounded to float16. With a, b the
scaled rows, a', b' the rounded ones and r = ‖a − a'‖, ρ ≥ ‖b − b'‖ measured,

    |a'·b' − a·b| ≤ |(a − a')·b| + |a'·(b − b')| ≤ r·‖b‖ + ‖a'‖·ρ       (Cauchy–Schwarz)

Products of float16 are exact in float32. A tensor core adds them in groups of at least
four, each group together with the running sum: terms are cut at 2⁻²³ of the largest,
and so is the result. No term and no partial sum exceeds M = ‖a'‖·(‖b‖ + ρ), so width
products, a running sum and a result per group lose less than 1.5·width·2⁻²³·M. Sums in
float32 in any other order, rounded or truncated, lose less. An offset is rounded,
scaled and subtracted: three roundings of 2⁻²⁴ of it or of the result; a threshold made
of two such numbers costs one more. The spare units pay for that.
*/
#pragma once

#include "common/floats.h"
#include "common/numerics.h"

namespace tokenflow {

// The e with norm·2^e in [2¹⁴, 2¹⁵): no element overflows float16, and what rounds to
// zero is 2⁻³⁹ of the norm.
TFX_HD int half_exponent(double norm) {
  if (!(norm > 0.0)) return 0;
  int e;
  frexp(norm, &e);
  return 15 - e;
}

// The same for a query of a book scaled by 2^book: at most 60 above, so that offsets,
// which are scaled by 2^(query + book), stay below 2⁹⁶ where those of the book itself
// are ordinary.
TFX_HD int query_exponent(double norm, int book) {
  const int e = half_exponent(norm);
  return norm > 0.0 && e < book + 60 ? e : book + 60;
}

TFX_HD double power_of_two(int e) { return ldexp(1.0, e); }

// Squared norms of a row that was rounded, and of what rounding took.
struct HalfNorms {
  double rounded = 0.0;
  double residual = 0.0;
};

// One element of such a row.
TFX_HD Half to_half(float x, double scale, HalfNorms& norms) {
  const double exact = static_cast<double>(x) * scale;
  Half half;
  from_float(static_cast<float>(exact), half);
  const double rounded = to_float(half);
  norms.rounded += rounded * rounded;
  norms.residual += (exact - rounded) * (exact - rounded);
  return half;
}

// The bound, for scaled rows and the scaled largest offset. NaN where float32 could
// overflow: then no comparison rules an entry out.
TFX_HD double half_sweep_error(const HalfNorms& query, double book_norm,
                               double book_residual, double offset, int64_t width) {
  const double rounded = sqrt(query.rounded), residual = sqrt(query.residual);
  const double magnitude = rounded * (book_norm + book_residual);
  if (!(magnitude < 1e37) || !(offset < 1e37))
    return std::numeric_limits<double>::quiet_NaN();
  const double units = static_cast<double>(width + 32);
  return 1.01 * (residual * book_norm + rounded * book_residual +
                 (units * magnitude + 2.0 * offset) * 2.384185791015625e-07 + 1.0);
}

}  // namespace tokenflow
