// Raw-pointer contract of upsample_conv, shared by CPU and CUDA. Meaning: the reference
// in tokenflow_ext/ops/upsample_conv.py.
#pragma once

#include <cstdint>

#include "common/floats.h"
#include "common/isa.h"
#include "common/parallel.h"

namespace tokenflow {

struct UpsampleConv {
  int64_t batch, in_channels, out_channels, height, width;  // size of x
  Element element;                                          // of x and y
  const void* x;  // contiguous [b, c, h, w], or channels_last
  bool x_channels_last;
  const float* weight;  // [out_channels, in_channels, 3, 3]
  const float* bias;    // [out_channels], or null
  void* y;              // [b, out_channels, 2h, 2w]
  bool y_channels_last;

  // The CPU sweep reads float32 pixels side by side; another x is copied first.
  bool needs_pixels() const { return !(x_channels_last && element == Element::f32); }
};

// `pixels`: [batch, height, width, in_channels], where needs_pixels(); else unused.
void upsample_conv_cpu(const UpsampleConv& op, float* pixels, const Parallel& parallel);

// What the CUDA kernels read in place of op.weight and op.bias: the element type of x.
struct UpsampleParameters {
  const void* weight;  // [out_channels, in_channels, 3, 3]
  int64_t strides[4];  // of it, in elements
  const void* bias;    // [out_channels], or null
};

// Bytes of device memory needed beside the arguments; op.x decides too.
int64_t upsample_conv_cuda_workspace(const UpsampleConv& op);
void upsample_conv_cuda(const UpsampleConv& op, const UpsampleParameters& given,
                        void* workspace, int device, void* stream);

// The body of the CUDA kernel over the same grid, so that tests reach it.
void upsample_conv_plain_cpu(const UpsampleConv& op, const Parallel& parallel);

// --- the CPU sweep, once per instruction set (upsample_conv_simd.cpp) ---

// Output channels of one block, and how many blocks a job works on at most.
TFX_DECLARE_SIMD(int64_t upsample_block_channels())
TFX_DECLARE_SIMD(int64_t upsample_most_blocks())
// Floats of the panels: the weights of a job's blocks as its products read them.
TFX_DECLARE_SIMD(int64_t upsample_panel_size(const UpsampleConv& op))
TFX_DECLARE_SIMD(int64_t upsample_scratch_size(const UpsampleConv& op))
// Copies row `row` of the b-th x to float32 pixels.
TFX_DECLARE_SIMD(void upsample_pack_pixels(const UpsampleConv& op, int64_t b,
                                           int64_t row, float* pixels))
// Writes what rows first ≤ p < last ≤ height / 2 + 1 of cells complete: rows 4p − 1 to
// 4p + 2 of y that exist, of `blocks` blocks of channels. Fills `panels` first unless
// they are `packed`. `panels` and `scratch` are aligned to 64 bytes.
TFX_DECLARE_SIMD(void upsample_rows(const UpsampleConv& op, const float* pixels,
                                    int64_t b, int64_t block, int64_t blocks,
                                    int64_t first, int64_t last, float* panels,
                                    bool packed, float* scratch))

}  // namespace tokenflow
