// Raw-pointer contract of pyramid_quantize and pyramid_lookup, shared by CPU and CUDA,
// and the element bodies both run. Meaning: the references in
// tokenflow_ext/ops/pyramid.py.
//
// Feature maps come and go as [batch, channels, height, width]; in between everything
// is channel-last, [batch, cells, channels], so that neighbours in memory share their
// place and a cell is a row to be searched.
#pragma once

#include <cstdint>

#include "common/numerics.h"
#include "common/parallel.h"
#include "ops/lookup/lookup.h"
#include "ops/quantize/quantize.h"

namespace tokenflow {

struct Grid {
  int64_t height, width;
};

TFX_HD int64_t cells_of(Grid grid) { return grid.height * grid.width; }

struct Pyramid {
  int64_t batch, channels;
  Grid grid;
  const int64_t* sides;          // on the host: [count, 2]
  int64_t count;                 // scales
  const double* row_weights;     // [count, height, 4]
  const double* column_weights;  // [count, width, 4]
};

// One scale of a pyramid, passed to kernels by value.
struct Scale {
  int64_t batch, channels;
  Grid grid;                     // the full one
  Grid cells;                    // that of this scale
  const double* row_weights;     // [height, 4]
  const double* column_weights;  // [width, 4]
};

inline Scale scale_of(const Pyramid& p, int64_t i) {
  return {p.batch,
          p.channels,
          p.grid,
          {p.sides[2 * i], p.sides[2 * i + 1]},
          p.row_weights + i * p.grid.height * 4,
          p.column_weights + i * p.grid.width * 4};
}

// L: the tokens of one picture.
inline int64_t tokens_of(const Pyramid& p) {
  int64_t tokens = 0;
  for (int64_t i = 0; i < p.count; ++i) tokens += cells_of(scale_of(p, i).cells);
  return tokens;
}

// features, quantized: [batch, channels, height, width]; indices: [batch, L].
// book.rows are what is looked up; weight and normalize as in Queries.
void pyramid_quantize_cpu(const float* features, const PreparedBook& book,
                          float pixel_weight, bool normalize, const Pyramid& pyramid,
                          int64_t* indices, float* quantized, const Parallel& parallel);
void pyramid_lookup_cpu(const int64_t* indices, const Books& books,
                        const Pyramid& pyramid, float* quantized,
                        const Parallel& parallel);

// Bytes of device memory needed beside the arguments.
int64_t pyramid_quantize_cuda_workspace(const Pyramid& pyramid,
                                        const PreparedBook& book, int device);
int64_t pyramid_lookup_cuda_workspace(const Pyramid& pyramid);

void pyramid_quantize_cuda(const float* features, const PreparedBook& book,
                           float pixel_weight, bool normalize, const Pyramid& pyramid,
                           int64_t* indices, float* quantized, void* workspace,
                           int device, void* stream);
void pyramid_lookup_cuda(const int64_t* indices, const Books& books,
                         const Pyramid& pyramid, float* quantized, void* workspace,
                         int device, void* stream);

// --- the CPU's loops, once per instruction set (pyramid_exact_simd.cpp) ---

// Floats or doubles of a channel-last row on the CPU: whole vectors, the last ones 0.
inline int64_t row_stride(int64_t channels) { return (channels + 7) / 8 * 8; }
// Floats that may be read behind the last row of a channel-last map.
inline int64_t row_slack(int64_t channels) { return 16 * row_stride(channels) + 16; }

// One scale of a few pictures, from entries to the full grid.
struct Enlargement {
  Scale scale;
  const int64_t* row_sources;     // [height, 4]: the four rows of `cells`, clamped
  const int64_t* column_sources;  // [width, 4]
  const double* entries;          // [pictures, entry_step]: [cells, row_stride] each
  int64_t pictures, entry_step;
};

// [channels, cells] -> [cells, row_stride], the cells [first, last).
TFX_DECLARE_SIMD(void channels_to_rows(const float* map, int64_t channels,
                                       int64_t cells, int64_t first, int64_t last,
                                       float* rows))
// [count, row_stride] -> [channels, cells], `count` cells from where `map` points.
TFX_DECLARE_SIMD(void rows_to_channels(const float* rows, int64_t channels,
                                       int64_t cells, int64_t count, float* map))
// A row of pooled cells of one picture; `semantic` and `pixel` are the picture's.
TFX_DECLARE_SIMD(void pool_row(const float* map, const Scale& scale, int64_t row,
                               int64_t semantic_width, float* semantic, float* pixel))
// The rows named by indices as float64; below 0: zeros.
TFX_DECLARE_SIMD(void widen_entries(const float* rows, const int64_t* indices,
                                    int64_t n, int64_t channels, double* entries))
TFX_DECLARE_SIMD(void widen_rows(const float* rows, int64_t n, int64_t channels,
                                 double* entries))
// A row of the full grid of every picture: total += enlarged and, unless null,
// residual −= enlarged. Both are [pictures, step]: [width, row_stride] each.
TFX_DECLARE_SIMD(void enlarge_row(const Enlargement& op, int64_t row, float* total,
                                  float* residual, int64_t step))

// --- element bodies ---

// Mean over the share of `cell` in one picture: `map` is [height · width, channels].
TFX_HD float pool_element(const float* map, const Scale& scale, int64_t cell,
                          int64_t channel) {
  const Grid in = scale.grid, out = scale.cells;
  const int64_t row = cell / out.width, column = cell % out.width;
  const int64_t row_first = bin_first(row, in.height, out.height);
  const int64_t row_last = bin_last(row, in.height, out.height);
  const int64_t column_first = bin_first(column, in.width, out.width);
  const int64_t column_last = bin_last(column, in.width, out.width);
  double sum = 0.0;
  for (int64_t y = row_first; y < row_last; ++y)
    for (int64_t x = column_first; x < column_last; ++x)
      sum += static_cast<double>(map[(y * in.width + x) * scale.channels + channel]);
  return static_cast<float>(
      sum / static_cast<double>((row_last - row_first) * (column_last - column_first)));
}

// One of the sixteen entries that a cell of the full grid is made of, row-major.
struct Tap {
  int64_t source;  // cell of the scale
  float weight;
};

TFX_HD Tap tap_of(const Scale& scale, int64_t cell, int t) {
  const int64_t row = cell / scale.grid.width, column = cell % scale.grid.width;
  const int64_t y = bicubic_first(row, scale.cells.height, scale.grid.height) + t / 4;
  const int64_t x = bicubic_first(column, scale.cells.width, scale.grid.width) + t % 4;
  return {clamp_index(y, scale.cells.height) * scale.cells.width +
              clamp_index(x, scale.cells.width),
          static_cast<float>(scale.row_weights[4 * row + t / 4] *
                             scale.column_weights[4 * column + t % 4])};
}

// All sixteen.
struct Taps {
  int64_t offset[16];  // of channel 0, in [cells, channels]
  float weight[16];
};

TFX_HD Taps taps_of(const Scale& scale, int64_t cell) {
  Taps taps;
  for (int t = 0; t < 16; ++t) {
    const Tap tap = tap_of(scale, cell, t);
    taps.offset[t] = tap.source * scale.channels;
    taps.weight[t] = tap.weight;
  }
  return taps;
}

// `entries` is one picture's [cells, channels].
TFX_HD float enlarge_element(const float* entries, const Taps& taps, int64_t channel) {
  double sum = 0.0;
  for (int t = 0; t < 16; ++t)
    sum += static_cast<double>(taps.weight[t]) *
           static_cast<double>(entries[taps.offset[t] + channel]);
  return static_cast<float>(sum);
}

// What a found entry adds: its row, or zeros.
TFX_HD float entry_element(const float* rows, int64_t index, int64_t channels,
                           int64_t channel) {
  return index < 0 ? 0.0f : rows[index * channels + channel];
}

}  // namespace tokenflow
