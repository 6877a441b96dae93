// Raw-pointer contract of the gradient of group_norm_silu on CPU. Meaning: `gradients`
// in tokenflow_ext/ops/group_norm_silu.py.
#pragma once

#include "ops/norm/group_norm_silu.h"

namespace tokenflow {

struct GroupNormSiluBackward {
  GroupNormSilu op;    // what went forward; `y` is the gradient of x
  const void* grad;    // of the result; dtype and layout of x
  float* weight_grad;  // [channels]
  float* bias_grad;    // [channels]
};

void group_norm_silu_backward_cpu(const GroupNormSiluBackward& back,
                                  const Parallel& parallel);

// --- the CPU loops, once per instruction set (group_norm_silu_backward_simd.cpp) ---

// What the loops know of each channel, in rows of piece.channels values: what it went
// through (Affine), and the gradient of x is d · scale + (x − center) · slope + level,
// with d = grad · silu′.
enum NormRow { kCenter, kScale, kShift, kSlope, kLevel, kNormRows };

// Σ d and Σ d · (x − center) of a piece into sums[2][piece.channels]. Contiguous: a
// piece is whole channels of a picture.
TFX_DECLARE_SIMD(void norm_backward_sums(const GroupNormSiluBackward& back,
                                         const NormPiece& piece, const float* rows,
                                         double* sums))
// The gradient of x of a piece.
TFX_DECLARE_SIMD(void norm_backward_apply(const GroupNormSiluBackward& back,
                                          const NormPiece& piece, const float* rows))

}  // namespace tokenflow
