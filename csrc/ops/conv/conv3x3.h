// Raw-pointer contract of conv3x3, CPU. Meaning: the reference in
// tokenflow_ext/ops/conv3x3.py.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/parallel.h"

namespace tokenflow {

struct Conv3x3 {
  int64_t batch, in_channels, out_channels, height, width;
  const float* x;  // [batch, height, width, in_channels]
  // What x goes through first: null, or [batch][3][in_channels] centers, scales and
  // shifts of silu((x − center) · scale + shift).
  const float* affine;
  const float* panels;    // the weights, as conv3x3_pack leaves them
  const float* bias;      // [out_channels], or null
  const float* residual;  // [batch, height, width, out_channels], added to y, or null
  float* y;               // [batch, height, width, out_channels]
};

constexpr int64_t kConvBlock = 32;  // output channels that are computed together

// Floats of the packed weights: [block][16][in_channels][kConvBlock].
int64_t conv3x3_panels_size(int64_t in_channels, int64_t out_channels);
// `weight`: [out_channels, in_channels, 3, 3].
void conv3x3_pack(const float* weight, int64_t in_channels, int64_t out_channels,
                  float* panels, const Parallel& parallel);

// [batch, rows, columns] → [batch, columns, rows].
void conv3x3_transpose(const float* in, int64_t batch, int64_t rows, int64_t columns,
                       float* out, const Parallel& parallel);

void conv3x3_cpu(const Conv3x3& op, const Parallel& parallel);

// --- the CPU sweep, once per instruction set (conv3x3_simd.cpp) ---

// Input channels [first, last) of one block of panels; at most kConvRun of them.
constexpr int64_t kConvRun = 16;
TFX_DECLARE_SIMD(void conv3x3_pack_run(const float* weight, int64_t in_channels,
                                       int64_t out_channels, int64_t block,
                                       int64_t first, int64_t last, float* panels))
// rows × columns → columns × rows; strides count floats.
TFX_DECLARE_SIMD(void conv3x3_transpose_part(const float* in, int64_t in_stride,
                                             int64_t rows, int64_t columns, float* out,
                                             int64_t out_stride))

// 2×2 outputs make a tile. A piece: tiles [row, row + rows) × [column, column +
// columns) of the b-th picture, and blocks [first, last) of output channels.
struct ConvPiece {
  int64_t b, row, rows, column, columns, first, last;
};

// Floats of scratch for pieces of at most rows × columns tiles, aligned to 64 bytes.
TFX_DECLARE_SIMD(int64_t conv3x3_scratch_size(const Conv3x3& op, int64_t rows,
                                              int64_t columns))
TFX_DECLARE_SIMD(void conv3x3_piece(const Conv3x3& op, const ConvPiece& piece,
                                    float* scratch))

}  // namespace tokenflow
