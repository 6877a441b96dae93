/*
pyramid_quantize and pyramid_lookup, the CPU's loops, compiled once per instruction set.

Algorithm  Lanes are channels: rows are channel-last, padded to whole vectors. Of one
           cell all channels are summed at once, in registers, over the cells of its bin
           (pooling) or its sixteen entries (enlarging). The sixteen weights of a cell
           are made once for all channels and all pictures.
Traffic    Pooling reads the map about once. Enlarging reads the entries, as float64,
from L1: four rows of cells are used again by every cell of a row of the grid. Numerics
pool_element and enlarge_element, for all channels: additions in the same order; the
products are exact, so that fusing them changes no bit.
*/
#include <algorithm>
#include <type_traits>

#include "common/numerics.h"
#include "common/simd_double.h"
#include "common/simd_maps.h"
#include "ops/pyramid/pyramid.h"

namespace tokenflow::TFX_ISA {
namespace {

using simd::kDoubles;
using simd::kFloats;
using simd::VecD;
using simd::VecF;
using simd::VecHalfF;

// Vectors of channels summed at once: as many as leave registers for the rest.
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr int kBlock = 10;
#else
constexpr int kBlock = 5;
#endif

// body(first channel, vectors as a constant) until all channels have been done.
template <int kVectors = kBlock, class Body>
inline void for_blocks(int64_t first, int64_t stride, const Body& body) {
  for (; first + kVectors * kDoubles <= stride; first += kVectors * kDoubles)
    body(first, std::integral_constant<int, kVectors>{});
  if constexpr (kVectors > 1) for_blocks<kVectors - 1>(first, stride, body);
}

inline void add_to(float* p, VecHalfF v) {
  VecHalfF sum;
  std::memcpy(&sum, p, sizeof sum);
  sum += v;
  std::memcpy(p, &sum, sizeof sum);
}

// What every cell of a grid row shares.
struct RowTaps {
  const double* weights;  // [4]
  int64_t offsets[4];     // of the four rows of entries
};

struct CellTaps {
  double weights[16];   // rounded to float32
  int64_t offsets[16];  // of the sixteen entries
};

// Four products, rounded to float32 and read as float64 again.
inline void round_weights(double row, const double* column, double* weights) {
#if defined(__AVX2__)
  const __m256d product = _mm256_mul_pd(_mm256_set1_pd(row), _mm256_loadu_pd(column));
  _mm256_storeu_pd(weights, _mm256_cvtps_pd(_mm256_cvtpd_ps(product)));
#else
  for (int j = 0; j < 4; ++j) weights[j] = static_cast<float>(row * column[j]);
#endif
}

inline CellTaps cell_taps(const Enlargement& op, const RowTaps& row, int64_t column,
                          int64_t stride) {
  CellTaps taps;
  for (int i = 0; i < 4; ++i) {
    round_weights(row.weights[i], op.scale.column_weights + 4 * column,
                  taps.weights + 4 * i);
    for (int j = 0; j < 4; ++j)
      taps.offsets[4 * i + j] =
          row.offsets[i] + op.column_sources[4 * column + j] * stride;
  }
  return taps;
}

template <int kVectors>
inline void enlarge_cell(const double* entries, const CellTaps& taps, float* total,
                         float* residual) {
  VecD sum[kVectors] = {};
#pragma GCC unroll 16
  for (int t = 0; t < 16; ++t) {
    const double* entry = entries + taps.offsets[t];
    asm("" : "+r"(entry));  // one address for all vectors, or the compiler keeps eighty
    const VecD weight = simd::broadcast(taps.weights[t]);
#pragma GCC unroll 10
    for (int v = 0; v < kVectors; ++v)
      sum[v] = simd::multiply_add(weight, simd::load(entry + v * kDoubles), sum[v]);
  }
#pragma GCC unroll 10
  for (int v = 0; v < kVectors; ++v) {
    const VecHalfF value = simd::narrow(sum[v]);
    add_to(total + v * kDoubles, value);
    if (residual) add_to(residual + v * kDoubles, -value);
  }
}

}  // namespace

void channels_to_rows(const float* map, int64_t channels, int64_t cells, int64_t first,
                      int64_t last, float* rows) {
  const int64_t stride = row_stride(channels);
  for (int64_t cell = first; cell < last; cell += kFloats)
    for (int64_t c = 0; c < stride; c += kFloats) {
      VecF v[kFloats];
      for (int j = 0; j < kFloats; ++j)
        v[j] = c + j >= channels ? VecF{}
               : cell + kFloats <= cells
                   ? simd::load(map + (c + j) * cells + cell)
                   : simd::load_part(map + (c + j) * cells + cell, cells - cell);
      simd::transpose(v);
      const size_t bytes = std::min<int64_t>(kFloats, stride - c) * sizeof(float);
      for (int i = 0; i < kFloats && cell + i < last; ++i)
        std::memcpy(rows + (cell + i) * stride + c, &v[i], bytes);
    }
}

void rows_to_channels(const float* rows, int64_t channels, int64_t cells, int64_t count,
                      float* map) {
  const int64_t stride = row_stride(channels);
  for (int64_t cell = 0; cell < count; cell += kFloats)
    for (int64_t c = 0; c < channels; c += kFloats) {
      VecF v[kFloats];
      for (int i = 0; i < kFloats; ++i)
        v[i] = simd::load(rows + (cell + i) * stride + c);
      simd::transpose(v);
      const size_t bytes = std::min<int64_t>(kFloats, count - cell) * sizeof(float);
      for (int j = 0; j < kFloats && c + j < channels; ++j)
        std::memcpy(map + (c + j) * cells + cell, &v[j], bytes);
    }
}

void pool_row(const float* map, const Scale& scale, int64_t row, int64_t semantic_width,
              float* semantic, float* pixel) {
  const Grid in = scale.grid, out = scale.cells;
  const int64_t channels = scale.channels, stride = row_stride(channels);
  const int64_t pixel_width = channels - semantic_width;
  const int64_t top = bin_first(row, in.height, out.height);
  const int64_t bottom = bin_last(row, in.height, out.height);
  for (int64_t column = 0; column < out.width; ++column) {
    const int64_t left = bin_first(column, in.width, out.width);
    const int64_t right = bin_last(column, in.width, out.width);
    const VecD count =
        simd::broadcast(static_cast<double>((bottom - top) * (right - left)));
    const int64_t cell = row * out.width + column;
    for_blocks(0, stride, [&](int64_t first, auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      VecD sum[kVectors] = {};
      for (int64_t y = top; y < bottom; ++y)
        for (int64_t x = left; x < right; ++x) {
          const float* from = map + (y * in.width + x) * stride + first;
#pragma GCC unroll 10
          for (int v = 0; v < kVectors; ++v)
            sum[v] += simd::load_as_double(from + v * kDoubles);
        }
      float mean[kVectors * kDoubles];
      for (int v = 0; v < kVectors; ++v)
        simd::store_as_float(mean + v * kDoubles, sum[v] / count);
      for (int64_t c = first; c < std::min(channels, first + kVectors * kDoubles); ++c)
        if (c < semantic_width)
          semantic[cell * semantic_width + c] = mean[c - first];
        else
          pixel[cell * pixel_width + c - semantic_width] = mean[c - first];
    });
  }
}

void widen_rows(const float* rows, int64_t n, int64_t channels, double* entries) {
  const int64_t stride = row_stride(channels);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < stride; c += kDoubles)
      simd::store(entries + i * stride + c,
                  c >= channels ? VecD{}
                                : simd::load_part_as_double(rows + i * channels + c,
                                                            channels - c));
}

void widen_entries(const float* rows, const int64_t* indices, int64_t n,
                   int64_t channels, double* entries) {
  const int64_t stride = row_stride(channels);
  for (int64_t i = 0; i < n; ++i)
    if (indices[i] < 0)
      std::memset(entries + i * stride, 0, stride * sizeof(double));
    else
      widen_rows(rows + indices[i] * channels, 1, channels, entries + i * stride);
}

void enlarge_row(const Enlargement& op, int64_t row, float* total, float* residual,
                 int64_t step) {
  const int64_t stride = row_stride(op.scale.channels);
  RowTaps row_taps{op.scale.row_weights + 4 * row, {}};
  for (int i = 0; i < 4; ++i)
    row_taps.offsets[i] = op.row_sources[4 * row + i] * op.scale.cells.width * stride;
  for (int64_t column = 0; column < op.scale.grid.width; ++column) {
    const CellTaps taps = cell_taps(op, row_taps, column, stride);
    for (int64_t p = 0; p < op.pictures; ++p)
      for_blocks(0, stride, [&](int64_t first, auto vectors) {
        const int64_t at = p * step + column * stride + first;
        enlarge_cell<decltype(vectors)::value>(op.entries + p * op.entry_step + first,
                                               taps, total + at,
                                               residual ? residual + at : nullptr);
      });
  }
}

}  // namespace tokenflow::TFX_ISA
