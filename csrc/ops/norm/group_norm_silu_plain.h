// The arithmetic of group_norm_silu, and the bodies of its three CUDA kernels. Shared
// with a CPU loop, so that tests run what the GPU runs.
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

// One block of threads sums kNormChunk elements of a group.
constexpr int kNormThreads = 256;
constexpr int64_t kNormChunk = kNormThreads * 32;

TFX_HD int64_t norm_chunks(const GroupNormSilu& op) {
  return (op.channels / op.groups * op.area + kNormChunk - 1) / kNormChunk;
}

struct NormWorkspace {
  double* partial;  // [batch, groups, chunks, 2]
  Affine* affine;   // [batch, channels]
};

TFX_HD NormWorkspace norm_workspace(const GroupNormSilu& op, void* memory) {
  double* partial = static_cast<double*>(memory);
  double* end = partial + op.batch * op.groups * norm_chunks(op) * 2;
  return {partial, reinterpret_cast<Affine*>(end)};
}

// Where element e of group `item` lies, in the order of memory.
TFX_HD int64_t norm_element(const GroupNormSilu& op, int64_t item, int64_t e) {
  const int64_t width = op.channels / op.groups;
  if (!op.channels_last) return item * width * op.area + e;
  const int64_t b = item / op.groups, g = item % op.groups;
  return (b * op.area + e / width) * op.channels + g * width + e % width;
}

// Kernel 1: what one thread adds up of one chunk of one group.
template <class T>
TFX_HD void norm_partial_item(const GroupNormSilu& op, const T* x, int64_t item,
                              int64_t chunk, int64_t thread, double* sum,
                              double* squares) {
  const int64_t count = op.channels / op.groups * op.area;
  const int64_t end =
      (chunk + 1) * kNormChunk < count ? (chunk + 1) * kNormChunk : count;
  for (int64_t e = chunk * kNormChunk + thread; e < end; e += kNormThreads) {
    const double v = to_float(x[norm_element(op, item, e)]);
    *sum += v;
    *squares += v * v;
  }
}

// Kernel 2: one channel of one picture.
TFX_HD void norm_affine_item(const GroupNormSilu& op, const NormWorkspace& w,
                             int64_t item) {
  const int64_t b = item / op.channels, c = item % op.channels;
  const int64_t width = op.channels / op.groups, chunks = norm_chunks(op);
  const double* partial = w.partial + (b * op.groups + c / width) * chunks * 2;
  double sum = 0.0, squares = 0.0;
  for (int64_t k = 0; k < chunks; ++k) {
    sum += partial[2 * k];
    squares += partial[2 * k + 1];
  }
  w.affine[item] = group_affine(sum, squares, static_cast<double>(width * op.area),
                                op.eps, op.weight[c], op.bias[c]);
}

// Kernel 3: one element.
template <class T>
TFX_HD void norm_apply_item(const GroupNormSilu& op, const NormWorkspace& w, const T* x,
                            T* y, int64_t item) {
  const int64_t picture = op.channels * op.area, b = item / picture;
  const int64_t c = op.channels_last ? item % op.channels : item % picture / op.area;
  const Affine a = w.affine[b * op.channels + c];
  from_float(silu((to_float(x[item]) - a.center) * a.scale + a.shift), y[item]);
}

}  // namespace tokenflow
