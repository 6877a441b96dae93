/*
upsample_conv, CPU sweep. Compiled once per instruction set; meaning: upsample_conv.h.

Algorithm  For each row of x and each of the nine taps, Z[tap] = W[tap] · x: a product
           with no enlarged map. Then rows 2i − 1 and 2i of y come from Z of rows i − 1
           and i alone: per tap column, odd = Z₀ + Z₁ of the row above + Z₂ of this,
           even = Z₀ of the row above + Z₁ + Z₂ of this, and the same again along the
           row: 15 additions for a 2×2 block of outputs instead of 36 products.
Tiles      kPixels pixels × one block of two vectors of output channels, sums in
           registers; a row is cut into tiles as equal as can be.
Traffic    Two rows of Z (9 × (width + 2) × block floats each) and the panel of weights
           (9 × in_channels × block) stay in L2. Other layouts and dtypes of y go
           through two rows of scratch, transposed in registers.
Numerics   float32 sums in one order for every tile: independent of threads, batch and
           position; instruction sets differ in the last bits.
*/
#include "common/simd_maps.h"
#include "ops/upsample/upsample_conv.h"

namespace tokenflow::TFX_ISA {
namespace {

using simd::VecF;

constexpr int kLanes = simd::kFloats;
constexpr int kBlock = 2 * kLanes;
#if defined(__AVX512F__)
constexpr int kPixels = 12;
#else
constexpr int kPixels = 6;
#endif

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// z[p] = Σ_k x[p, k] · w[k] for P pixels and one block of channels.
template <int P>
inline void product(const float* x, int64_t channels, const float* w, float* z) {
  VecF sums[P][2] = {};
  for (int64_t k = 0; k < channels; ++k) {
    const VecF w0 = simd::load(w + k * kBlock);
    const VecF w1 = simd::load(w + k * kBlock + kLanes);
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p) {
      const VecF v = simd::broadcast(x[p * channels + k]);
      sums[p][0] += v * w0;
      sums[p][1] += v * w1;
    }
  }
#pragma GCC unroll 12
  for (int p = 0; p < P; ++p) {
    simd::store(z + p * kBlock, sums[p][0]);
    simd::store(z + p * kBlock + kLanes, sums[p][1]);
  }
}

template <int P>
void product_of(int64_t pixels, const float* x, int64_t channels, const float* w,
                float* z) {
  if constexpr (P > 0) {
    if (pixels == P) return product<P>(x, channels, w, z);
    product_of<P - 1>(pixels, x, channels, w, z);
  }
}

// Z of one row: [tap][pixel −1 … width][block], zero at either end.
void make_row(const UpsampleConv& op, const float* x, const float* panel, int first_tap,
              int last_tap, float* z) {
  const int64_t tiles = (op.width + kPixels - 1) / kPixels;
  for (int tap = first_tap; tap < last_tap; ++tap) {
    const float* w = panel + tap * op.in_channels * kBlock;
    float* out = z + (tap * (op.width + 2) + 1) * kBlock;
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t begin = op.width * t / tiles;
      product_of<kPixels>(op.width * (t + 1) / tiles - begin,
                          x + begin * op.in_channels, op.in_channels, w,
                          out + begin * kBlock);
    }
  }
}

// A row of y under construction: pixel j of the block at data + j · stride. Null: the
// row is outside of y.
struct Row {
  float* data;
  int64_t stride;
};

// The two rows between Z of the row above and of this one.
void combine(const float* above, const float* here, int64_t width, const float* bias,
             Row odd, Row even) {
  const int64_t tap = (width + 2) * kBlock;
  for (int half = 0; half < kBlock; half += kLanes) {
    const VecF b = simd::load(bias + half);
    VecF odd0{}, odd1{}, even0{}, even1{};  // of the pixel to the left
    for (int64_t j = 0; j <= width; ++j) {
      const float* p = above + (j + 1) * kBlock + half;
      const float* q = here + (j + 1) * kBlock + half;
      VecF o[3], e[3];
#pragma GCC unroll 3
      for (int c = 0; c < 3; ++c) {
        const VecF both = simd::load(p + c * tap) + simd::load(q + (6 + c) * tap);
        o[c] = both + simd::load(p + (3 + c) * tap);
        e[c] = both + simd::load(q + (3 + c) * tap);
      }
      const VecF odd_both = odd0 + o[2] + b, even_both = even0 + e[2] + b;
      const int64_t left = 2 * j - 1, right = 2 * j;
      if (odd.data) {
        if (j > 0) simd::store(odd.data + left * odd.stride + half, odd_both + odd1);
        if (j < width)
          simd::store(odd.data + right * odd.stride + half, odd_both + o[1]);
      }
      if (even.data) {
        if (j > 0)
          simd::store(even.data + left * even.stride + half, even_both + even1);
        if (j < width)
          simd::store(even.data + right * even.stride + half, even_both + e[1]);
      }
      odd0 = o[0], odd1 = o[1], even0 = e[0], even1 = e[1];
    }
  }
}

// rows × columns floats → any element type, transposed. `stride`s count elements.
template <class In, class Out>
void transpose(const In* in, int64_t in_stride, int64_t rows, int64_t columns, Out* out,
               int64_t out_stride) {
  for (int64_t r = 0; r < rows; r += kLanes)
    for (int64_t c = 0; c < columns; c += kLanes) {
      const int64_t height = smaller(kLanes, rows - r);
      const int64_t width = smaller(kLanes, columns - c);
      VecF v[kLanes];
      if (height == kLanes && width == kLanes) {
        for (int i = 0; i < kLanes; ++i)
          v[i] = simd::load(in + (r + i) * in_stride + c);
        simd::transpose(v);
        for (int i = 0; i < kLanes; ++i)
          simd::store(out + (c + i) * out_stride + r, v[i]);
      } else {
        for (int64_t i = 0; i < height; ++i)
          for (int64_t j = 0; j < width; ++j)
            from_float(to_float(in[(r + i) * in_stride + c + j]),
                       out[(c + j) * out_stride + r + i]);
      }
    }
}

// A finished row from scratch into y, `count` channels of the block.
template <class T>
void emit(const UpsampleConv& op, const float* row, int64_t b, int64_t line,
          int64_t channel, int64_t count, T* y) {
  const int64_t height = 2 * op.height, width = 2 * op.width;
  if (!op.y_channels_last) {
    T* out = y + ((b * op.out_channels + channel) * height + line) * width;
    transpose(row, kBlock, width, count, out, height * width);
    return;
  }
  T* out = y + ((b * height + line) * width) * op.out_channels + channel;
  for (int64_t j = 0; j < width; ++j) {
    const float* in = row + j * kBlock;
    T* pixel = out + j * op.out_channels;
    if (count == kBlock) {
      simd::store(pixel, simd::load(in));
      simd::store(pixel + kLanes, simd::load(in + kLanes));
    } else {
      for (int64_t c = 0; c < count; ++c) from_float(in[c], pixel[c]);
    }
  }
}

int64_t row_size(const UpsampleConv& op) { return 9 * (op.width + 2) * kBlock; }

}  // namespace

int64_t upsample_block_channels() { return kBlock; }

int64_t upsample_panel_size(const UpsampleConv& op) {
  return 9 * op.in_channels * kBlock;
}

int64_t upsample_scratch_size(const UpsampleConv& op) {
  return 2 * row_size(op) + 2 * 2 * op.width * kBlock + kBlock;
}

void upsample_pack_pixels(const UpsampleConv& op, int64_t b, int64_t row,
                          float* pixels) {
  const int64_t channels = op.in_channels, area = op.height * op.width;
  float* out = pixels + (b * op.height + row) * op.width * channels;
  with_element(op.element, [&](auto* type) {
    const auto* x = static_cast<decltype(type)>(const_cast<void*>(op.x));
    if (op.x_channels_last) {
      const auto* in = x + (b * op.height + row) * op.width * channels;
      const int64_t count = op.width * channels;
      int64_t i = 0;
      for (; i + kLanes <= count; i += kLanes) simd::store(out + i, simd::load(in + i));
      for (; i < count; ++i) out[i] = to_float(in[i]);
    } else {
      transpose(x + b * channels * area + row * op.width, area, channels, op.width, out,
                channels);
    }
  });
}

void upsample_pack_weights(const UpsampleConv& op, int64_t block, float* panel) {
  const int64_t first = block * kBlock, length = 9 * op.in_channels;
  const int64_t count = smaller(kBlock, op.out_channels - first);
  const float* in = op.weight + first * length;
  if (count < kBlock)
    for (int64_t i = 0; i < length * kBlock; ++i) panel[i] = 0.0f;
  for (int64_t c = 0; c < count; c += kLanes)
    for (int64_t i = 0; i < length; i += kLanes) {
      const int64_t height = smaller(kLanes, count - c);
      const int64_t width = smaller(kLanes, length - i);
      VecF v[kLanes] = {};
      for (int64_t r = 0; r < height; ++r) {
        const float* from = in + (c + r) * length + i;
        v[r] = width == kLanes ? simd::load(from) : simd::load_part(from, width);
      }
      simd::transpose(v);
      for (int64_t r = 0; r < width;
           ++r) {  // in order (channel, tap), to (tap, channel)
        const int64_t to = (i + r) % 9 * op.in_channels + (i + r) / 9;
        simd::store(panel + to * kBlock + c, v[r]);
      }
    }
}

void upsample_rows(const UpsampleConv& op, const float* pixels, const float* panel,
                   int64_t b, int64_t block, int64_t first, int64_t last,
                   float* scratch) {
  const int64_t channel = block * kBlock;
  const int64_t count = smaller(kBlock, op.out_channels - channel);
  const bool direct =
      op.y_channels_last && op.element == Element::f32 && count == kBlock;
  const int64_t width = 2 * op.width;
  float* above = scratch;
  float* here = above + row_size(op);
  float* odd_row = here + row_size(op);
  float* even_row = odd_row + width * kBlock;
  float* bias = even_row + width * kBlock;
  for (int c = 0; c < kBlock; ++c)
    bias[c] = op.bias && c < count ? op.bias[channel + c] : 0.0f;
  for (int64_t i = 0; i < 2 * row_size(op); ++i) scratch[i] = 0.0f;

  const float* x = pixels + b * op.height * op.width * op.in_channels;
  const int64_t x_row = op.width * op.in_channels;
  if (first > 0) make_row(op, x + (first - 1) * x_row, panel, 0, 6, above);
  for (int64_t i = first; i < last; ++i) {
    if (i < op.height) {
      make_row(op, x + i * x_row, panel, i + 1 < last ? 0 : 3, 9, here);
    } else {
      for (int64_t n = 0; n < row_size(op); ++n) here[n] = 0.0f;
    }
    const int64_t lines[2] = {i > 0 ? 2 * i - 1 : -1, i < op.height ? 2 * i : -1};
    Row rows[2];
    for (int r = 0; r < 2; ++r) {
      float* y = static_cast<float*>(op.y);
      const int64_t at = (b * 2 * op.height + lines[r]) * width * op.out_channels;
      rows[r] = direct ? Row{y + at + channel, op.out_channels}
                       : Row{r ? even_row : odd_row, kBlock};
      if (lines[r] < 0) rows[r].data = nullptr;
    }
    combine(above, here, op.width, bias, rows[0], rows[1]);
    if (!direct)
      with_element(op.element, [&](auto* type) {
        for (int r = 0; r < 2; ++r)
          if (rows[r].data)
            emit(op, rows[r].data, b, lines[r], channel, count,
                 static_cast<decltype(type)>(op.y));
      });
    float* next = above;
    above = here;
    here = next;
  }
}

}  // namespace tokenflow::TFX_ISA
