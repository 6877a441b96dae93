/*
Gradient of group_norm_silu, CPU loops. Compiled once per instruction set; meaning:
group_norm_silu_backward.h.

Algorithm  d = grad · silu′(norm) is made anew in both passes, which costs less than to
           write and read it. A contiguous channel is one run of memory, its values side
           by side; channels_last has channels side by side, a few positions at a time.
Numerics   Sums: float32 chains of kChain terms, whose sum goes on in float64. What is
           added is d and d · (x − center), so that a mean far from 0 costs no digits.
*/
#include "common/simd_maps.h"
#include "common/simd_silu.h"
#include "ops/norm/group_norm_silu_backward.h"

namespace tokenflow::TFX_ISA {
namespace {

using simd::VecD;
using simd::VecF;

constexpr int kLanes = simd::kFloats;
constexpr int kSide = 4;  // vectors that go through silu′ together
constexpr int64_t kChain = 16;

template <class T>
inline VecF read(const T* at, int64_t lanes) {
  return lanes == kLanes ? simd::load(at) : simd::load_part(at, lanes);
}

// One channel, or a vector of channels.
struct Rows {
  VecF center, scale, shift, slope, level;
};

inline Rows rows_of_channel(const float* rows, int64_t channels) {
  const auto row = [&](NormRow name) { return simd::broadcast(rows[name * channels]); };
  return {row(kCenter), row(kScale), row(kShift), row(kSlope), row(kLevel)};
}

inline Rows rows_of_lanes(const float* rows, int64_t channels, int64_t lanes) {
  const auto row = [&](NormRow name) { return read(rows + name * channels, lanes); };
  return {row(kCenter), row(kScale), row(kShift), row(kSlope), row(kLevel)};
}

// N vectors `stride` values apart: x − center and d.
template <int N, class T>
inline void read_slopes(const T* x, const T* grad, int64_t stride, int64_t lanes,
                        const Rows& rows, VecF (&from)[N], VecF (&d)[N]) {
  VecF v[N];
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    from[i] = read(x + i * stride, lanes) - rows.center;
    v[i] = from[i] * rows.scale + rows.shift;
    d[i] = read(grad + i * stride, lanes);
  }
  simd::silu_backward(v, d);
}

template <int N, class T>
inline void apply(const T* x, const T* grad, int64_t stride, int64_t lanes,
                  const Rows& rows, T* out) {
  VecF from[N], d[N];
  read_slopes(x, grad, stride, lanes, rows, from, d);
#pragma GCC unroll 4
  for (int i = 0; i < N; ++i) {
    const VecF value = d[i] * rows.scale + (from[i] * rows.slope + rows.level);
    if (lanes == kLanes)
      simd::store(out + i * stride, value);
    else
      simd::store_part(out + i * stride, value, lanes);
  }
}

// Σ d and Σ d · (x − center) per lane: float32 chains, added up in float64.
struct Totals {
  VecD sum[2] = {}, moment[2] = {};

  void add(VecF s, VecF m) {
    for (int half = 0; half < 2; ++half) {
      sum[half] += simd::half_as_double(s, half);
      moment[half] += simd::half_as_double(m, half);
    }
  }
  // Lane by lane to `sums` and `moments`.
  void add_to(double* sums, double* moments, int64_t lanes) const {
    double s[kLanes], m[kLanes];
    std::memcpy(s, sum, sizeof s);
    std::memcpy(m, moment, sizeof m);
    for (int64_t i = 0; i < lanes; ++i) {
      sums[i] += s[i];
      moments[i] += m[i];
    }
  }
};

double all_lanes(const VecD (&parts)[2]) {
  const VecD both = parts[0] + parts[1];
  double total = 0.0;
  for (int i = 0; i < simd::kDoubles; ++i) total += both[i];
  return total;
}

// `steps` times N vectors, `step` values apart, N of them `stride` apart.
template <int N, class T>
inline void add_chain(const T* x, const T* grad, int64_t stride, int64_t lanes,
                      int64_t steps, int64_t step, const Rows& rows, Totals& totals) {
  VecF s[N] = {}, m[N] = {};
  for (int64_t i = 0; i < steps; ++i) {
    VecF from[N], d[N];
    read_slopes(x + i * step, grad + i * step, stride, lanes, rows, from, d);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      s[n] += d[n];
      m[n] += d[n] * from[n];
    }
  }
  for (int n = 1; n < N; ++n) {
    s[0] += s[n];
    m[0] += m[n];
  }
  totals.add(s[0], m[0]);
}

// Vectors `stride` values apart.
template <class T>
Totals add_all(const T* x, const T* grad, int64_t stride, int64_t lanes, int64_t count,
               const Rows& rows) {
  Totals totals;
  int64_t i = 0;
  for (; i + kSide <= count;) {
    const int64_t left = (count - i) / kSide, steps = left < kChain ? left : kChain;
    add_chain<kSide>(x + i * stride, grad + i * stride, stride, lanes, steps,
                     kSide * stride, rows, totals);
    i += steps * kSide;
  }
  if (i < count)
    add_chain<1>(x + i * stride, grad + i * stride, stride, lanes, count - i, stride,
                 rows, totals);
  return totals;
}

template <class T>
void apply_all(const T* x, const T* grad, int64_t stride, int64_t lanes, int64_t count,
               const Rows& rows, T* out) {
  int64_t i = 0;
  for (; i + kSide <= count; i += kSide)
    apply<kSide>(x + i * stride, grad + i * stride, stride, lanes, rows,
                 out + i * stride);
  for (; i < count; ++i)
    apply<1>(x + i * stride, grad + i * stride, stride, lanes, rows, out + i * stride);
}

constexpr int64_t kWindow = kSide * kChain;  // positions of one go

// Calls run(first value, values, its row) for each channel of a contiguous piece.
template <class Run>
void each_channel(const GroupNormSilu& op, const NormPiece& piece, Run run) {
  for (int64_t c = 0; c < piece.channels; ++c)
    run((piece.b * op.channels + piece.channel + c) * op.area, op.area, c);
}

// Calls run(first value, positions, channel, lanes) for windows of a channels_last
// piece.
template <class Run>
void each_window(const GroupNormSilu& op, const NormPiece& piece, Run run) {
  for (int64_t i = piece.first; i < piece.last; i += kWindow)
    for (int64_t c = 0; c < piece.channels; c += kLanes) {
      const int64_t rest = piece.channels - c;
      run((piece.b * op.area + i) * op.channels + piece.channel + c,
          piece.last - i < kWindow ? piece.last - i : kWindow, c,
          rest < kLanes ? rest : kLanes);
    }
}

}  // namespace

void norm_backward_sums(const GroupNormSiluBackward& back, const NormPiece& piece,
                        const float* rows, double* sums) {
  const GroupNormSilu& op = back.op;
  const int64_t channels = piece.channels;
  for (int64_t i = 0; i < 2 * channels; ++i) sums[i] = 0.0;
  with_element(op.element, [&](auto* type) {
    using T = decltype(type);
    const auto* x = static_cast<T>(const_cast<void*>(op.x));
    const auto* grad = static_cast<T>(const_cast<void*>(back.grad));
    if (op.channels_last)
      return each_window(
          op, piece, [&](int64_t at, int64_t count, int64_t c, int64_t lanes) {
            const Rows row = rows_of_lanes(rows + c, channels, lanes);
            const Totals found =
                add_all(x + at, grad + at, op.channels, lanes, count, row);
            found.add_to(sums + c, sums + channels + c, lanes);
          });
    each_channel(op, piece, [&](int64_t at, int64_t count, int64_t c) {
      const Rows row = rows_of_channel(rows + c, channels);
      const int64_t vectors = count / kLanes, rest = count % kLanes;
      Totals found = add_all(x + at, grad + at, kLanes, kLanes, vectors, row);
      const int64_t done = at + vectors * kLanes;
      if (rest) add_chain<1>(x + done, grad + done, 0, rest, 1, 0, row, found);
      sums[c] = all_lanes(found.sum);
      sums[channels + c] = all_lanes(found.moment);
    });
  });
}

void norm_backward_apply(const GroupNormSiluBackward& back, const NormPiece& piece,
                         const float* rows) {
  const GroupNormSilu& op = back.op;
  const int64_t channels = piece.channels;
  with_element(op.element, [&](auto* type) {
    using T = decltype(type);
    const auto* x = static_cast<T>(const_cast<void*>(op.x));
    const auto* grad = static_cast<T>(const_cast<void*>(back.grad));
    auto* out = static_cast<T>(op.y);
    if (op.channels_last)
      return each_window(
          op, piece, [&](int64_t at, int64_t count, int64_t c, int64_t lanes) {
            const Rows row = rows_of_lanes(rows + c, channels, lanes);
            apply_all(x + at, grad + at, op.channels, lanes, count, row, out + at);
          });
    each_channel(op, piece, [&](int64_t at, int64_t count, int64_t c) {
      const Rows row = rows_of_channel(rows + c, channels);
      const int64_t vectors = count / kLanes, rest = count % kLanes;
      apply_all(x + at, grad + at, kLanes, kLanes, vectors, row, out + at);
      const int64_t done = at + vectors * kLanes;
      if (rest) apply<1>(x + done, grad + done, 0, rest, row, out + done);
    });
  });
}

}  // namespace tokenflow::TFX_ISA
