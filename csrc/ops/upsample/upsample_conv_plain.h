// The body of the CUDA kernel: one 2×2 block of outputs of one channel, straight from
// the definition. Shared with a CPU loop, so that tests run what the GPU runs.
#pragma once

#include "common/macros.h"
#include "ops/upsample/upsample_conv.h"

namespace tokenflow {

// Strides in elements, so that one body serves every memory format.
template <class T>
struct UpsampleView {
  const T* x;
  const float* weight;
  const float* bias;
  T* y;
  int64_t in_channels, out_channels, height, width;
  int64_t x_batch, x_channel, x_row, x_column;
  int64_t y_batch, y_channel, y_row, y_column;
  bool channels_inside;  // neighbouring items differ in channel, else in column
};

// Items of the grid: one per picture, output channel and pixel of x.
TFX_HD int64_t upsample_grid(const UpsampleConv& op) {
  return op.batch * op.out_channels * op.height * op.width;
}

template <class T>
UpsampleView<T> upsample_view(const UpsampleConv& op, const T*) {
  const int64_t h = op.height, w = op.width, c = op.in_channels, o = op.out_channels;
  const bool xl = op.x_channels_last, yl = op.y_channels_last;
  return {static_cast<const T*>(op.x),
          op.weight,
          op.bias,
          static_cast<T*>(op.y),
          c,
          o,
          h,
          w,
          c * h * w,
          xl ? 1 : h * w,
          xl ? w * c : w,
          xl ? c : 1,
          4 * o * h * w,
          yl ? 1 : 4 * h * w,
          yl ? 2 * w * o : 2 * w,
          yl ? o : 1,
          yl};
}

// Row (or column) 0, 1, 2 around the pixel that output p of its pair reads with tap a.
TFX_HD int source_of(int p, int a) { return (p + a + 1) / 2; }

template <class T>
TFX_HD void upsample_conv_item(const UpsampleView<T>& v, int64_t item) {
  int64_t b, o, i, j;
  if (v.channels_inside) {
    o = item % v.out_channels, item /= v.out_channels;
    j = item % v.width, item /= v.width;
    i = item % v.height, b = item / v.height;
  } else {
    j = item % v.width, item /= v.width;
    i = item % v.height, item /= v.height;
    o = item % v.out_channels, b = item / v.out_channels;
  }
  const float start = v.bias ? v.bias[o] : 0.0f;
  float sums[2][2] = {{start, start}, {start, start}};
  const T* x = v.x + b * v.x_batch + i * v.x_row + j * v.x_column;
  const float* weight = v.weight + o * v.in_channels * 9;
  for (int64_t c = 0; c < v.in_channels; ++c) {
    float around[3][3];
    for (int r = -1; r <= 1; ++r)
      for (int s = -1; s <= 1; ++s) {
        const bool inside =
            i + r >= 0 && i + r < v.height && j + s >= 0 && j + s < v.width;
        around[r + 1][s + 1] =
            inside ? to_float(x[c * v.x_channel + r * v.x_row + s * v.x_column]) : 0.0f;
      }
    for (int p = 0; p < 2; ++p)
      for (int q = 0; q < 2; ++q) {
        float sum = 0.0f;  // of one channel, so that rounding grows with channels only
        for (int tap = 0; tap < 9; ++tap)
          sum += weight[c * 9 + tap] *
                 around[source_of(p, tap / 3)][source_of(q, tap % 3)];
        sums[p][q] += sum;
      }
  }
  T* y = v.y + b * v.y_batch + o * v.y_channel + 2 * i * v.y_row + 2 * j * v.y_column;
  for (int p = 0; p < 2; ++p)
    for (int q = 0; q < 2; ++q) from_float(sums[p][q], y[p * v.y_row + q * v.y_column]);
}

}  // namespace tokenflow
