// Raw-pointer contract of group_norm_silu, shared by CPU and CUDA. Meaning: the
// reference in tokenflow_ext/ops/group_norm_silu.py.
#pragma once

#include <cstdint>

#include "common/floats.h"
#include "common/isa.h"
#include "common/parallel.h"

namespace tokenflow {

struct GroupNormSilu {
  int64_t batch, channels, area, groups;
  double eps;
  Element element;     // of x and y
  bool channels_last;  // x and y: [batch, area, channels], else [batch, channels, area]
  const void* x;
  const float* weight;  // [channels]
  const float* bias;    // [channels]
  void* y;              // may be x
};

// channels_last: some channels of positions [first, last) of the b-th picture.
struct NormPiece {
  int64_t b, first, last, channel, channels;
};

void group_norm_silu_cpu(const GroupNormSilu& op, const Parallel& parallel);

// channels_last: what x goes through before SiLU, for an op that does both on its way:
// affine[batch][3][channels], centers, scales and shifts. `y` is not used.
void group_norm_affine_cpu(const GroupNormSilu& op, float* affine,
                           const Parallel& parallel);

// Bytes of device memory that the CUDA kernels need beside their arguments.
int64_t group_norm_silu_cuda_workspace(const GroupNormSilu& op);
void group_norm_silu_cuda(const GroupNormSilu& op, void* workspace, int device,
                          void* stream);

// --- the CPU loops, once per instruction set (group_norm_silu_simd.cpp) ---

// Contiguous: the whole work for group `item` = b · groups + g.
TFX_DECLARE_SIMD(void norm_group(const GroupNormSilu& op, int64_t item))
// Contiguous: Σ x and Σ x² of that group.
TFX_DECLARE_SIMD(void norm_group_sums(const GroupNormSilu& op, int64_t item,
                                      double* sums))
// channels_last: Σ x and Σ x² of a piece into sums[2][piece.channels]; scratch: three
// floats for each of its channels.
TFX_DECLARE_SIMD(void norm_sums(const GroupNormSilu& op, const NormPiece& piece,
                                double* sums, float* scratch))
// channels_last: applies affine[3][piece.channels] (centers, scales, shifts) and SiLU.
TFX_DECLARE_SIMD(void norm_apply(const GroupNormSilu& op, const NormPiece& piece,
                                 const float* affine))

}  // namespace tokenflow
