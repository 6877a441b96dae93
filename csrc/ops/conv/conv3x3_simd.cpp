/*
conv3x3, CPU sweep: Winograd's F(2×2, 3×3). Compiled once per instruction set; meaning:
conv3x3.h.

Algorithm  A tile of 2×2 outputs needs 4×4 inputs d. With V = Bᵀ·d·B and U = G·w·Gᵀ
           (made once) it is Aᵀ·(Σ_channels U ∘ V)·A: 16 products instead of 36, and
           additions. So for each of the 16 places one matrix product,
           tiles × in_channels × out_channels.
Order      Patch: the inputs of all tiles, normed and activated if asked, zero outside
of x. Then V of all tiles. Then, group by group of output channels, the 16 products and
the outputs, with bias and residual added on the way. Tiles      kPixels tiles × two
vectors of output channels, sums in registers. Traffic    V (16 × tiles × in_channels
floats) is read once per group of kGroup blocks, the weights once per piece; a panel of
16 KB at 128 channels stays in L1. Numerics   Sums of kChain products, added up: errors
grow with kChain and the number of chains, not with their product. The transforms only
add and subtract, and double a value at most twice. One order for every tile:
independent of threads, batch and position; instruction sets differ in the last bits.
Sources    Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray,
           arXiv:1509.09308.
*/
#include "common/simd_maps.h"
#include "common/simd_silu.h"
#include "ops/conv/conv3x3.h"

namespace tokenflow::TFX_ISA {
namespace {

using simd::VecF;

constexpr int kLanes = simd::kFloats;
constexpr int64_t kChain = 32;
constexpr int64_t kPad =
    16;  // floats between planes, so that they meet in no cache set
constexpr int64_t kGroup = 4;
#if defined(__AVX512F__)
constexpr int kPixels = 8;
#else
constexpr int kPixels = 6;
#endif

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Where things lie in scratch. Channels are rounded up to whole vectors, with zeros.
struct Layout {
  Layout(const Conv3x3& op, int64_t rows, int64_t columns)
      : channels((op.in_channels + kLanes - 1) / kLanes * kLanes),
        patch_width(2 * columns + 2),
        tiles(rows * columns),
        v_plane(tiles * channels + kPad),
        m_plane(tiles * kConvBlock + kPad),
        patch((2 * rows + 2) * patch_width * channels) {}
  int64_t channels, patch_width, tiles, v_plane, m_plane, patch;
  int64_t size() const {
    return patch + 16 * (v_plane + kGroup * m_plane) + kConvBlock;
  }
};

// --- patch ---

constexpr int kSide = 4;  // vectors that go through SiLU together

// N pixels side by side, through the affine map and SiLU.
template <int N>
inline void activate(const float* x, int64_t stride, int64_t channels,
                     const float* affine, float* out, int64_t out_stride) {
  const float *center = affine, *scale = center + channels, *shift = scale + channels;
  const auto some = [&](int64_t c, int64_t lanes, VecF a, VecF b, VecF d) {
    VecF v[N];
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) {
      const float* at = x + i * stride + c;
      v[i] = lanes == kLanes ? simd::load(at) : simd::load_part(at, lanes);
      v[i] = (v[i] - a) * b + d;
    }
    simd::silu(v);
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) simd::store(out + i * out_stride + c, v[i]);
  };
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes)
    some(c, kLanes, simd::load(center + c), simd::load(scale + c),
         simd::load(shift + c));
  if (const int64_t rest = channels - c; rest > 0)
    some(c, rest, simd::load_part(center + c, rest), simd::load_part(scale + c, rest),
         simd::load_part(shift + c, rest));
}

void copy_pixel(const float* x, int64_t channels, float* out) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) simd::store(out + c, simd::load(x + c));
  if (c < channels) simd::store(out + c, simd::load_part(x + c, channels - c));
}

void zero_pixels(float* out, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) simd::store(out + i, VecF{});
}

void make_patch(const Conv3x3& op, const ConvPiece& piece, const Layout& at,
                float* patch) {
  const int64_t channels = op.in_channels;
  const int64_t left = 2 * piece.column - 1, right = left + 2 * piece.columns + 2;
  const int64_t begin = left < 0 ? 0 : left, end = smaller(op.width, right);
  for (int64_t r = 0; r < 2 * piece.rows + 2; ++r) {
    const int64_t row = 2 * piece.row - 1 + r;
    float* out = patch + r * at.patch_width * at.channels;
    if (row < 0 || row >= op.height) {
      zero_pixels(out, (right - left) * at.channels);
      continue;
    }
    zero_pixels(out, (begin - left) * at.channels);
    zero_pixels(out + (end - left) * at.channels, (right - end) * at.channels);
    const float* x = op.x + ((piece.b * op.height + row) * op.width + begin) * channels;
    out += (begin - left) * at.channels;
    int64_t i = 0;
    if (op.affine) {
      const float* affine = op.affine + piece.b * 3 * channels;
      for (; i + kSide <= end - begin; i += kSide)
        activate<kSide>(x + i * channels, channels, channels, affine,
                        out + i * at.channels, at.channels);
      for (; i < end - begin; ++i)
        activate<1>(x + i * channels, 0, channels, affine, out + i * at.channels, 0);
    } else {
      for (; i < end - begin; ++i)
        copy_pixel(x + i * channels, channels, out + i * at.channels);
    }
  }
}

// --- V = Bᵀ·d·B ---

// Bᵀ · (a, b, c, d).
struct Four {
  VecF v[4];
};
inline Four spread(VecF a, VecF b, VecF c, VecF d) {
  return {{a - c, b + c, c - b, b - d}};
}

void make_v(const Layout& at, int64_t rows, int64_t columns, const float* patch,
            float* v) {
  const int64_t pixel = at.channels, line = at.patch_width * at.channels;
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t c = 0; c < at.channels; c += kLanes) {
      const float* d = patch + 2 * row * line + c;
      const auto column = [&](int64_t j) {
        const float* p = d + j * pixel;
        return spread(simd::load(p), simd::load(p + line), simd::load(p + 2 * line),
                      simd::load(p + 3 * line));
      };
      Four a = column(0), b = column(1);
      float* out = v + row * columns * at.channels + c;
      for (int64_t tile = 0; tile < columns; ++tile, out += at.channels) {
        const Four e = column(2 * tile + 2), f = column(2 * tile + 3);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          const Four r = spread(a.v[i], b.v[i], e.v[i], f.v[i]);
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j)
            simd::store(out + (4 * i + j) * at.v_plane, r.v[j]);
        }
        a = e, b = f;
      }
    }
}

// --- products ---

// m[p] = Σ_k v[p, k] · u[k] for P tiles and two vectors of output channels.
template <int P>
inline void product(const float* v, int64_t stride, const float* u, int64_t channels,
                    float* m) {
  VecF totals[P][2] = {};
  for (int64_t begin = 0; begin < channels; begin += kChain) {
    VecF sums[P][2] = {};
    const int64_t end = smaller(channels, begin + kChain);
    for (int64_t k = begin; k < end; ++k) {
      const VecF u0 = simd::load(u + k * kConvBlock);
      const VecF u1 = simd::load(u + k * kConvBlock + kLanes);
#pragma GCC unroll 12
      for (int p = 0; p < P; ++p) {
        const VecF x = simd::broadcast(v[p * stride + k]);
        sums[p][0] += x * u0;
        sums[p][1] += x * u1;
      }
    }
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p) {
      totals[p][0] += sums[p][0];
      totals[p][1] += sums[p][1];
    }
  }
#pragma GCC unroll 12
  for (int p = 0; p < P; ++p) {
    simd::store(m + p * kConvBlock, totals[p][0]);
    simd::store(m + p * kConvBlock + kLanes, totals[p][1]);
  }
}

template <int P>
void product_of(int64_t tiles, const float* v, int64_t stride, const float* u,
                int64_t channels, float* m) {
  if constexpr (P > 0) {
    if (tiles == P) return product<P>(v, stride, u, channels, m);
    product_of<P - 1>(tiles, v, stride, u, channels, m);
  }
}

void products(const Conv3x3& op, const Layout& at, int64_t tiles, const float* v,
              const float* u, float* m) {
  const int64_t parts = (tiles + kPixels - 1) / kPixels;
  for (int64_t half = 0; half < kConvBlock; half += 2 * kLanes)
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t begin = tiles * part / parts;
      product_of<kPixels>(tiles * (part + 1) / parts - begin, v + begin * at.channels,
                          at.channels, u + half, op.in_channels,
                          m + begin * kConvBlock + half);
    }
}

// --- outputs = Aᵀ·m·A ---

inline void gather(VecF a, VecF b, VecF c, VecF d, VecF& first, VecF& second) {
  first = a + b + c;
  second = b - c - d;
}

// The 2×2 outputs of one vector of channels of one tile.
inline void outputs(const float* m, int64_t plane, VecF bias, VecF (&y)[2][2]) {
  VecF rows[2][4];
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j)
    gather(simd::load(m + j * plane), simd::load(m + (4 + j) * plane),
           simd::load(m + (8 + j) * plane), simd::load(m + (12 + j) * plane),
           rows[0][j], rows[1][j]);
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    gather(rows[i][0], rows[i][1], rows[i][2], rows[i][3], y[i][0], y[i][1]);
    y[i][0] += bias;
    y[i][1] += bias;
  }
}

void write(const Conv3x3& op, const ConvPiece& piece, const Layout& at, int64_t block,
           const float* m, const float* bias) {
  const int64_t first = block * kConvBlock;
  const int64_t count = smaller(kConvBlock, op.out_channels - first);
  for (int64_t tile = 0; tile < piece.rows * piece.columns; ++tile) {
    const int64_t row = 2 * (piece.row + tile / piece.columns);
    const int64_t column = 2 * (piece.column + tile % piece.columns);
    for (int64_t c = 0; c < count; c += kLanes) {
      VecF y[2][2];
      outputs(m + tile * kConvBlock + c, at.m_plane, simd::load(bias + c), y);
      const int64_t lanes = smaller(kLanes, count - c);
      for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 2; ++j) {
          if (row + i >= op.height || column + j >= op.width) continue;
          const int64_t to = ((piece.b * op.height + row + i) * op.width + column + j) *
                                 op.out_channels +
                             first + c;
          if (lanes == kLanes) {
            if (op.residual) y[i][j] += simd::load(op.residual + to);
            simd::store(op.y + to, y[i][j]);
          } else {
            if (op.residual) y[i][j] += simd::load_part(op.residual + to, lanes);
            simd::store_part(op.y + to, y[i][j], lanes);
          }
        }
    }
  }
}

// --- weights ---

using simd::VecD;
using simd::VecHalfF;

// G · (a, b, c): the filter at 0, 1, −1 and ∞.
inline void filter(VecD a, VecD b, VecD c, VecD (&out)[4]) {
  out[0] = a;
  out[1] = 0.5 * (a + b + c);
  out[2] = 0.5 * (a - b + c);
  out[3] = c;
}

// U of one input channel and half a vector of output channels; taps are 9 vectors.
void transform(const float* taps, float* out, int64_t plane) {
  VecD rows[3][4], u[4];
  for (int i = 0; i < 3; ++i) {
    const float* t = taps + 3 * i * kLanes;
    filter(simd::load_as_double(t), simd::load_as_double(t + kLanes),
           simd::load_as_double(t + 2 * kLanes), rows[i]);
  }
  for (int j = 0; j < 4; ++j) {
    filter(rows[0][j], rows[1][j], rows[2][j], u);
    for (int i = 0; i < 4; ++i) {
      const VecHalfF narrow = __builtin_convertvector(u[i], VecHalfF);
      std::memcpy(out + (4 * i + j) * plane, &narrow, sizeof narrow);
    }
  }
}

}  // namespace

void conv3x3_pack_run(const float* weight, int64_t in_channels, int64_t out_channels,
                      int64_t block, int64_t first, int64_t last, float* panels) {
  const int64_t plane = in_channels * kConvBlock, count = (last - first) * 9;
  float* to = panels + block * 16 * plane + first * kConvBlock;
  float taps[(kConvRun * 9 + kLanes) * kLanes];  // [channel, tap, output channel]
  for (int64_t c = 0; c < kConvBlock; c += kLanes) {
    const int64_t channel = block * kConvBlock + c;
    for (int64_t i = 0; i < count; i += kLanes) {
      VecF v[kLanes] = {};
      for (int64_t r = 0; r < smaller(kLanes, out_channels - channel); ++r) {
        const float* from = weight + ((channel + r) * in_channels + first) * 9 + i;
        v[r] = count - i < kLanes ? simd::load_part(from, count - i) : simd::load(from);
      }
      simd::transpose(v);
      for (int r = 0; r < kLanes; ++r) simd::store(taps + (i + r) * kLanes, v[r]);
    }
    for (int64_t k = 0; k < last - first; ++k)
      for (int64_t half = 0; half < kLanes; half += kLanes / 2)
        transform(taps + k * 9 * kLanes + half, to + k * kConvBlock + c + half, plane);
  }
}

void conv3x3_transpose_part(const float* in, int64_t in_stride, int64_t rows,
                            int64_t columns, float* out, int64_t out_stride) {
  for (int64_t r = 0; r < rows; r += kLanes)
    for (int64_t c = 0; c < columns; c += kLanes) {
      const int64_t height = smaller(kLanes, rows - r);
      const int64_t width = smaller(kLanes, columns - c);
      if (height == kLanes && width == kLanes) {
        VecF v[kLanes];
        for (int i = 0; i < kLanes; ++i)
          v[i] = simd::load(in + (r + i) * in_stride + c);
        simd::transpose(v);
        for (int i = 0; i < kLanes; ++i)
          simd::store(out + (c + i) * out_stride + r, v[i]);
      } else {
        for (int64_t i = 0; i < height; ++i)
          for (int64_t j = 0; j < width; ++j)
            out[(c + j) * out_stride + r + i] = in[(r + i) * in_stride + c + j];
      }
    }
}

int64_t conv3x3_scratch_size(const Conv3x3& op, int64_t rows, int64_t columns) {
  return Layout(op, rows, columns).size();
}

void conv3x3_piece(const Conv3x3& op, const ConvPiece& piece, float* scratch) {
  const Layout at(op, piece.rows, piece.columns);
  float* patch = scratch;
  float* v = patch + at.patch;
  float* m = v + 16 * at.v_plane;
  float* bias = m + 16 * kGroup * at.m_plane;
  make_patch(op, piece, at, patch);
  make_v(at, piece.rows, piece.columns, patch, v);
  const int64_t panel = op.in_channels * kConvBlock;
  for (int64_t group = piece.first; group < piece.last; group += kGroup) {
    const int64_t blocks = smaller(kGroup, piece.last - group);
    for (int64_t place = 0; place < 16; ++place)
      for (int64_t i = 0; i < blocks; ++i)
        products(op, at, at.tiles, v + place * at.v_plane,
                 op.panels + ((group + i) * 16 + place) * panel,
                 m + (i * 16 + place) * at.m_plane);
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t first = (group + i) * kConvBlock;
      for (int64_t c = 0; c < kConvBlock; ++c)
        bias[c] = op.bias && first + c < op.out_channels ? op.bias[first + c] : 0.0f;
      write(op, piece, at, group + i, m + i * 16 * at.m_plane, bias);
    }
  }
}

}  // namespace tokenflow::TFX_ISA
