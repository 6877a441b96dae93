/*
group_norm_silu, CPU loops. Compiled once per instruction set; meaning:
group_norm_silu.h.

Algorithm  One pass adds x and x², one pass applies the affine map and SiLU. A
           contiguous group is one run of memory; its second pass goes backwards, so
           that it begins with what the first left in cache. channels_last: positions
           are added up and mapped in the order of memory.
Traffic    A contiguous group is read once if it fits in a core's cache, a channels_last
           map twice unless its slices do. Results of 8 MB and more are written past the
           caches.
Numerics   What is added is x − pivot, a mean of a few samples, so that squares stay
           near the variance: float32 chains of at most kChain additions, whose sum goes
           on in float64. A chain errs by (kChain + 4) · 2⁻²⁴ of its magnitudes at most,
           and chains err independently. Squares beyond 1e38 overflow. SiLU:
           simd_silu.h.
*/
#include "common/simd_maps.h"
#include "common/simd_silu.h"
#include "common/simd_stream.h"
#include "ops/norm/group_norm_silu.h"
#include "ops/norm/group_norm_silu_plain.h"

namespace tokenflow::TFX_ISA {
namespace {

using simd::VecD;
using simd::VecF;
using simd::VecHalfF;

constexpr int kLanes = simd::kFloats;
constexpr int kChain = 16;

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

double total(VecD v) {
  double sum = 0.0;
  for (int i = 0; i < simd::kDoubles; ++i) sum += v[i];
  return sum;
}

// Σ x and Σ x² of a group.
struct Sums {
  double sum, squares;
};

// From sums of d = x − pivot over `count` values.
Sums about_zero(double sum, double squares, double pivot, double count) {
  return {sum + count * pivot, squares + pivot * (2.0 * sum + count * pivot)};
}

template <class T>
float pivot_of(const T* x, int64_t count) {
  VecF sum{};
  const int64_t run = count < kLanes ? count : kLanes;
  for (int64_t part = 0; part < 4; ++part) {
    const T* at = x + (count - run) * part / 3;
    sum += 0.25f * (run == kLanes ? simd::load(at) : simd::load_part(at, run));
  }
  return static_cast<float>(total(low_half(sum) + high_half(sum)) /
                            static_cast<double>(run));
}

template <class T>
Sums sums_of(const T* x, int64_t count) {
  constexpr int kChains = 4;
  const float pivot = pivot_of(x, count);
  const VecF center = simd::broadcast(pivot);
  VecD sum{}, squares{};
  const auto flush = [&](VecF s, VecF q) {
    sum += low_half(s) + high_half(s);
    squares += low_half(q) + high_half(q);
  };
  int64_t i = 0;
  while (const int64_t left = (count - i) / (kChains * kLanes)) {
    VecF s[kChains] = {}, q[kChains] = {};
    const int64_t end = i + (left < kChain ? left : kChain) * kChains * kLanes;
    for (; i < end; i += kChains * kLanes)
#pragma GCC unroll 4
      for (int c = 0; c < kChains; ++c) {
        const VecF d = simd::load(x + i + c * kLanes) - center;
        s[c] += d;
        q[c] += d * d;
      }
    flush((s[0] + s[1]) + (s[2] + s[3]), (q[0] + q[1]) + (q[2] + q[3]));
  }
  for (; i + kLanes <= count; i += kLanes) {
    const VecF d = simd::load(x + i) - center;
    flush(d, d * d);
  }
  double s = total(sum), q = total(squares);
  for (; i < count; ++i) {
    const double d = to_float(x[i]) - pivot;
    s += d;
    q += d * d;
  }
  return about_zero(s, q, pivot, static_cast<double>(count));
}

constexpr int kSide = 4;  // vectors that go through SiLU together

// Is y written past the caches? In place it is in them already.
bool streams(const GroupNormSilu& op) {
  return op.y != op.x &&
         simd::streams(op.element, op.y, op.batch * op.channels * op.area,
                       op.channels_last ? op.channels : op.area);
}

// N vectors of `lanes` values, `stride` values apart, through one affine map and SiLU.
template <int N, class T>
inline void apply(const T* x, int64_t stride, int64_t lanes, VecF center, VecF scale,
                  VecF shift, T* y, bool past) {
  VecF v[N];
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    const T* at = x + i * stride;
    v[i] = lanes == kLanes ? simd::load(at) : simd::load_part(at, lanes);
    v[i] = (v[i] - center) * scale + shift;
  }
  simd::silu(v);
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    if (past)
      simd::stream(y + i * stride, v[i]);
    else if (lanes == kLanes)
      simd::store(y + i * stride, v[i]);
    else
      simd::store_part(y + i * stride, v[i], lanes);
  }
}

template <class T>
void apply_run(const T* x, int64_t count, Affine affine, T* y, bool past) {
  const VecF center = simd::broadcast(affine.center);
  const VecF scale = simd::broadcast(affine.scale);
  const VecF shift = simd::broadcast(affine.shift);
  int64_t i = 0;
  for (; i + kSide * kLanes <= count; i += kSide * kLanes)
    apply<kSide>(x + i, kLanes, kLanes, center, scale, shift, y + i, past);
  for (; i < count; i += kLanes)
    apply<1>(x + i, 0, count - i < kLanes ? count - i : kLanes, center, scale, shift,
             y + i, past);
}

template <class T>
void group(const GroupNormSilu& op, int64_t item, const T* x, T* y) {
  const int64_t width = op.channels / op.groups, count = width * op.area;
  x += item * count;
  y += item * count;
  const bool past = streams(op);
  const Sums sums = sums_of(x, count);
  const Moments moments =
      group_moments(sums.sum, sums.squares, static_cast<double>(count), op.eps);
  for (int64_t c = width - 1; c >= 0; --c) {
    const int64_t channel = item % op.groups * width + c;
    const Affine affine = channel_affine(moments, op.weight[channel], op.bias[channel]);
    apply_run(x + c * op.area, op.area, affine, y + c * op.area, past);
  }
  if (past) simd::end_stream();
}

// sums[half] += values, in float64.
void add_to(double* sums, VecF values) {
  const VecD low = simd::load(sums) + low_half(values);
  const VecD high = simd::load(sums + simd::kDoubles) + high_half(values);
  std::memcpy(sums, &low, sizeof low);
  std::memcpy(sums + simd::kDoubles, &high, sizeof high);
}

constexpr int kRows = 4;  // positions that are added up among themselves
constexpr int kWindow = kRows * (kChain / 2);  // positions whose sums are float32

// Adds up a few positions in the order of memory, kRows of them at a time; `parts` has
// room for both sums of every channel.
template <class T>
void add_window(const T* x, int64_t positions, int64_t stride, int64_t channels,
                const float* pivot, float* parts, double* sums) {
  const int64_t whole = channels / kLanes * kLanes;
  const auto add = [&]<int N>(std::integral_constant<int, N>, const T* at, bool first) {
    for (int64_t c = 0; c < whole; c += kLanes) {
      const VecF center = simd::load(pivot + c);
      VecF d[N], q[N];
      simd::unroll<N>([&](auto i) {
        d[i] = simd::load(at + i * stride + c) - center;
        q[i] = d[i] * d[i];
      });
      const auto plus = [](VecF a, VecF b) { return a + b; };
      VecF sum = simd::reduce(d, plus), square = simd::reduce(q, plus);
      if (!first) {
        sum += simd::load(parts + c);
        square += simd::load(parts + channels + c);
      }
      simd::store(parts + c, sum);
      simd::store(parts + channels + c, square);
    }
  };
  int64_t i = 0;
  for (; i + kRows <= positions; i += kRows)
    add(std::integral_constant<int, kRows>{}, x + i * stride, i == 0);
  for (; i < positions; ++i)
    add(std::integral_constant<int, 1>{}, x + i * stride, i == 0);
  for (int64_t c = 0; c < whole; c += kLanes) {
    add_to(sums + c, simd::load(parts + c));
    add_to(sums + channels + c, simd::load(parts + channels + c));
  }
  for (int64_t c = whole; c < channels; ++c)
    for (i = 0; i < positions; ++i) {
      const double d = to_float(x[i * stride + c]) - pivot[c];
      sums[c] += d;
      sums[channels + c] += d * d;
    }
}

template <int N, class T>
void apply_positions(const T* x, int64_t stride, int64_t channels, const float* affine,
                     T* y, bool past) {
  const float *center = affine, *scale = center + channels, *shift = scale + channels;
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes)
    apply<N>(x + c, stride, kLanes, simd::load(center + c), simd::load(scale + c),
             simd::load(shift + c), y + c, past);
  if (const int64_t rest = channels - c; rest > 0)
    apply<N>(x + c, stride, rest, simd::load_part(center + c, rest),
             simd::load_part(scale + c, rest), simd::load_part(shift + c, rest), y + c,
             false);
}

}  // namespace

void norm_group(const GroupNormSilu& op, int64_t item) {
  with_element(op.element, [&](auto* type) {
    using T = decltype(type);
    group(op, item, static_cast<T>(const_cast<void*>(op.x)), static_cast<T>(op.y));
  });
}

void norm_group_sums(const GroupNormSilu& op, int64_t item, double* sums) {
  with_element(op.element, [&](auto* type) {
    const int64_t count = op.channels / op.groups * op.area;
    auto* x = static_cast<decltype(type)>(const_cast<void*>(op.x)) + item * count;
    const Sums found = sums_of(x, count);
    sums[0] = found.sum;
    sums[1] = found.squares;
  });
}

void norm_sums(const GroupNormSilu& op, const NormPiece& piece, double* sums,
               float* scratch) {
  with_element(op.element, [&](auto* type) {
    const int64_t channels = piece.channels, stride = op.channels;
    float* const pivot = scratch;
    auto* x = static_cast<decltype(type)>(const_cast<void*>(op.x));
    x += piece.b * op.area * stride + piece.channel;
    for (int64_t i = 0; i < 2 * channels; ++i) sums[i] = 0.0;
    for (int64_t c = 0; c < channels; ++c) pivot[c] = 0.0f;
    for (int64_t part = 0; part < 4; ++part) {
      const auto* at =
          x + (piece.first + (piece.last - 1 - piece.first) * part / 3) * stride;
      for (int64_t c = 0; c < channels; ++c) pivot[c] += to_float(at[c]) * 0.25f;
    }
    for (int64_t i = piece.first; i < piece.last; i += kWindow)
      add_window(x + i * stride, piece.last - i < kWindow ? piece.last - i : kWindow,
                 stride, channels, pivot, scratch + channels, sums);
    for (int64_t c = 0; c < channels; ++c) {
      const Sums total = about_zero(sums[c], sums[channels + c], pivot[c],
                                    static_cast<double>(piece.last - piece.first));
      sums[c] = total.sum;
      sums[channels + c] = total.squares;
    }
  });
}

void norm_apply(const GroupNormSilu& op, const NormPiece& piece, const float* affine) {
  with_element(op.element, [&](auto* type) {
    using T = decltype(type);
    const int64_t channels = piece.channels, stride = op.channels;
    const int64_t at = piece.b * op.area * stride + piece.channel;
    auto* x = static_cast<T>(const_cast<void*>(op.x)) + at;
    auto* y = static_cast<T>(op.y) + at;
    const bool past = streams(op);
    int64_t i = piece.first;
    for (; i + kSide <= piece.last; i += kSide)
      apply_positions<kSide>(x + i * stride, stride, channels, affine, y + i * stride,
                             past);
    for (; i < piece.last; ++i)
      apply_positions<1>(x + i * stride, stride, channels, affine, y + i * stride,
                         past);
    if (past) simd::end_stream();
  });
}

}  // namespace tokenflow::TFX_ISA
