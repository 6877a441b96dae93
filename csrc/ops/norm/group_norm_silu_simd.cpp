/*
group_norm_silu, CPU loops. Compiled once per instruction set; meaning:
group_norm_silu.h.

Algorithm  One pass adds x and x² in float64, one pass applies the affine map and
           SiLU. A contiguous group is one run of memory, passed twice in cache.
Numerics   Squares of float32 are exact in float64. e⁻ᵛ is 2ⁿ times a polynomial of
           degree 6 on |r| ≤ ln 2 / 2, within 2⁻²² of the value; beyond ±87 it is held,
           where silu is v or below 1e-35.
*/
#include "common/simd_maps.h"
#include "ops/norm/group_norm_silu.h"
#include "ops/norm/group_norm_silu_plain.h"

namespace tokenflow::TFX_ISA {
namespace {

using simd::VecD;
using simd::VecF;
using simd::VecHalfF;

constexpr int kLanes = simd::kFloats;
constexpr int64_t kUnroll = 2;

VecF exp_of(VecF x) {
  const VecF low = simd::broadcast(-87.0f), high = simd::broadcast(87.0f);
  x = x < high ? x : high;  // NaN becomes 87; silu is NaN by its numerator
  x = x > low ? x : low;
  // Adding 1.5 · 2²³ rounds to an integer, which then stands in the low bits.
  const VecF magic = simd::broadcast(12582912.0f);
  const VecF shifted = x * 1.44269504f + magic;
  const VecF n = shifted - magic;
  // ln 2 in two parts, the first short enough for an exact product with n.
  const VecF r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  VecF p = r * (1.0f / 720) + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const simd::VecI32 power = ((simd::VecI32)shifted + 127) << 23;
  return p * (VecF)power;
}

VecF silu_of(VecF v) { return v / (exp_of(-v) + 1.0f); }

VecD low_half(VecF v) {
  VecHalfF half;
  std::memcpy(&half, &v, sizeof half);
  return __builtin_convertvector(half, VecD);
}
VecD high_half(VecF v) {
  VecHalfF half;
  std::memcpy(&half, reinterpret_cast<const char*>(&v) + sizeof half, sizeof half);
  return __builtin_convertvector(half, VecD);
}

// Σ x and Σ x² per lane.
struct Moments {
  VecD sum[2] = {}, squares[2] = {};

  void add(VecF v) {
    const VecD a = low_half(v), b = high_half(v);
    sum[0] += a;
    sum[1] += b;
    squares[0] += a * a;
    squares[1] += b * b;
  }
};

double total(VecD a, VecD b) {
  const VecD both = a + b;
  double sum = 0.0;
  for (int i = 0; i < simd::kDoubles; ++i) sum += both[i];
  return sum;
}

VecF apply_of(VecF x, VecF center, VecF scale, VecF shift) {
  return silu_of((x - center) * scale + shift);
}

template <class T>
void apply(const T* x, int64_t count, Affine affine, T* y) {
  const VecF center = simd::broadcast(affine.center);
  const VecF scale = simd::broadcast(affine.scale);
  const VecF shift = simd::broadcast(affine.shift);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    simd::store(y + i, apply_of(simd::load(x + i), center, scale, shift));
  if (const int64_t rest = count - i; rest > 0)
    simd::store_part(
        y + i, apply_of(simd::load_part(x + i, rest), center, scale, shift), rest);
}

template <class T>
void group(const GroupNormSilu& op, int64_t item, const T* x, T* y) {
  const int64_t width = op.channels / op.groups, count = width * op.area;
  x += item * count;
  y += item * count;
  Moments moments[kUnroll];
  int64_t i = 0;
  for (; i + kUnroll * kLanes <= count; i += kUnroll * kLanes)
    for (int64_t u = 0; u < kUnroll; ++u)
      moments[u].add(simd::load(x + i + u * kLanes));
  for (; i < count; i += kLanes)
    moments[0].add(simd::load_part(x + i, count - i < kLanes ? count - i : kLanes));
  const double sum = total(moments[0].sum[0] + moments[1].sum[0],
                           moments[0].sum[1] + moments[1].sum[1]);
  const double squares = total(moments[0].squares[0] + moments[1].squares[0],
                               moments[0].squares[1] + moments[1].squares[1]);
  for (int64_t c = 0; c < width; ++c) {
    const int64_t channel = item % op.groups * width + c;
    const Affine affine = group_affine(sum, squares, static_cast<double>(count), op.eps,
                                       op.weight[channel], op.bias[channel]);
    apply(x + c * op.area, op.area, affine, y + c * op.area);
  }
}

void add_to(double* sums, const VecD (&values)[2]) {
  for (int half = 0; half < 2; ++half) {
    const VecD sum = simd::load(sums + half * simd::kDoubles) + values[half];
    std::memcpy(sums + half * simd::kDoubles, &sum, sizeof sum);
  }
}

// A few positions at a time, so that memory is read in order and a channel's sums are
// loaded and stored once for all of them.
constexpr int64_t kWindow = 16;

template <class T>
void add_window(const T* x, int64_t positions, int64_t channels, double* sums) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) {
    Moments moments;
    for (int64_t i = 0; i < positions; ++i)
      moments.add(simd::load(x + i * channels + c));
    add_to(sums + c, moments.sum);
    add_to(sums + channels + c, moments.squares);
  }
  for (; c < channels; ++c)
    for (int64_t i = 0; i < positions; ++i) {
      const double v = to_float(x[i * channels + c]);
      sums[c] += v;
      sums[channels + c] += v * v;
    }
}

template <class T>
void apply_positions(const T* x, int64_t positions, int64_t channels,
                     const float* affine, T* y) {
  const float *center = affine, *scale = center + channels, *shift = scale + channels;
  for (int64_t i = 0; i < positions; ++i, x += channels, y += channels) {
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes)
      simd::store(y + c, apply_of(simd::load(x + c), simd::load(center + c),
                                  simd::load(scale + c), simd::load(shift + c)));
    if (const int64_t rest = channels - c; rest > 0)
      simd::store_part(
          y + c,
          apply_of(simd::load_part(x + c, rest), simd::load_part(center + c, rest),
                   simd::load_part(scale + c, rest), simd::load_part(shift + c, rest)),
          rest);
  }
}

}  // namespace

void norm_group(const GroupNormSilu& op, int64_t item) {
  with_element(op.element, [&](auto* type) {
    using T = decltype(type);
    group(op, item, static_cast<T>(const_cast<void*>(op.x)), static_cast<T>(op.y));
  });
}

void norm_sums(const GroupNormSilu& op, int64_t b, int64_t first, int64_t last,
               double* sums) {
  with_element(op.element, [&](auto* type) {
    auto* x = static_cast<decltype(type)>(const_cast<void*>(op.x));
    for (int64_t i = 0; i < 2 * op.channels; ++i) sums[i] = 0.0;
    for (int64_t i = first; i < last; i += kWindow)
      add_window(x + (b * op.area + i) * op.channels,
                 last - i < kWindow ? last - i : kWindow, op.channels, sums);
  });
}

void norm_apply(const GroupNormSilu& op, int64_t b, int64_t first, int64_t last,
                const float* affine) {
  with_element(op.element, [&](auto* type) {
    using T = decltype(type);
    const int64_t at = (b * op.area + first) * op.channels;
    apply_positions(static_cast<T>(const_cast<void*>(op.x)) + at, last - first,
                    op.channels, affine, static_cast<T>(op.y) + at);
  });
}

}  // namespace tokenflow::TFX_ISA
