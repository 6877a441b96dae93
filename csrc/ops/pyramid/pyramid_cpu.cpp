/*
pyramid_quantize and pyramid_lookup, CPU: everything around the loops of
pyramid_exact_simd.cpp. Meaning: the references in tokenflow_ext/ops/pyramid.py.

Work       quantize: per scale, pool the residual of the whole batch, search all its
           cells in one call of quantize_cpu, enlarge the rows found into sum and
           residual. Nearly all the time is the search. lookup: a few pictures at a time
           are read whole and then finished row of the grid after row, all scales; with
           at least as many pictures as threads each thread takes pictures, else rows.
           Steps too small to be shared stay on one thread.
Memory     quantize: two maps (sum and residual), and for the largest scale the pooled
           cells, the rows found as float64 and their indices. lookup: the rows of
           kPictures pictures as float64 per thread, or in all.
*/
#include <algorithm>
#include <vector>

#include "common/scratch.h"
#include "ops/pyramid/pyramid.h"

namespace tokenflow {
namespace {

constexpr int64_t kPictures = 4;        // that share the weights of a cell
constexpr int64_t kReadGrain = 512;     // rows of entries for a thread
constexpr int64_t kPoolGrain = 512;     // cells of the full grid
constexpr int64_t kEnlargeGrain = 128;  // cells of the full grid, of one scale
constexpr int64_t kTransposeGrain = 2048;

// The four source cells of every row and column of the grid, for all scales.
struct Sources {
  std::vector<int64_t> rows, columns;  // [count, height, 4], [count, width, 4]

  explicit Sources(const Pyramid& pyramid) {
    for (int64_t i = 0; i < pyramid.count; ++i) {
      const Scale scale = scale_of(pyramid, i);
      append(rows, scale.cells.height, scale.grid.height);
      append(columns, scale.cells.width, scale.grid.width);
    }
  }

 private:
  static void append(std::vector<int64_t>& to, int64_t in, int64_t out) {
    for (int64_t o = 0; o < out; ++o) {
      const int64_t first = bicubic_first(o, in, out);
      for (int64_t tap = 0; tap < 4; ++tap) to.push_back(clamp_index(first + tap, in));
    }
  }
};

Enlargement enlargement_of(const Pyramid& pyramid, const Sources& sources, int64_t i,
                           const double* entries, int64_t pictures,
                           int64_t entry_step) {
  return {scale_of(pyramid, i),
          sources.rows.data() + i * pyramid.grid.height * 4,
          sources.columns.data() + i * pyramid.grid.width * 4,
          entries,
          pictures,
          entry_step};
}

double* doubles(const Scratch& scratch) {
  return reinterpret_cast<double*>(scratch.get());
}

// [batch, channels, cells] -> [batch, cells, row_stride]
void to_rows(const float* maps, const Pyramid& pyramid, float* rows,
             const Parallel& parallel) {
  const int64_t channels = pyramid.channels, cells = cells_of(pyramid.grid);
  const int64_t stride = row_stride(channels);
  parallel.run(pyramid.batch * cells, kTransposeGrain, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end;) {
      const int64_t b = first / cells, last = std::min(end, (b + 1) * cells);
      TFX_CALL_SIMD(channels_to_rows, maps + b * channels * cells, channels, cells,
                    first - b * cells, last - b * cells, rows + b * cells * stride);
      first = last;
    }
  });
}

// [batch, cells, row_stride] -> [batch, channels, cells]
void to_maps(const float* rows, const Pyramid& pyramid, float* maps,
             const Parallel& parallel) {
  const int64_t channels = pyramid.channels, cells = cells_of(pyramid.grid);
  const int64_t stride = row_stride(channels);
  parallel.run(pyramid.batch * cells, kTransposeGrain, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end;) {
      const int64_t b = first / cells, last = std::min(end, (b + 1) * cells);
      TFX_CALL_SIMD(rows_to_channels, rows + first * stride, channels, cells,
                    last - first, maps + b * channels * cells + first - b * cells);
      first = last;
    }
  });
}

// Both halves of every pooled cell, as quantize wants them.
void pool(const float* residual, const Scale& scale, int64_t semantic_width,
          float* semantic, float* pixel, const Parallel& parallel) {
  const int64_t cells = cells_of(scale.cells), rows = scale.cells.height;
  const int64_t pixel_width = scale.channels - semantic_width;
  const int64_t map = cells_of(scale.grid) * row_stride(scale.channels);
  // Every cell of the grid is read about once, whatever the scale.
  const int64_t grain = std::max<int64_t>(1, kPoolGrain * rows / cells_of(scale.grid));
  parallel.run(scale.batch * rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / rows;
      TFX_CALL_SIMD(pool_row, residual + b * map, scale, i % rows, semantic_width,
                    semantic + b * cells * semantic_width,
                    pixel + b * cells * pixel_width);
    }
  });
}

// Looks up all tokens of some pictures, widened: [n, row_stride].
void read_rows(const int64_t* indices, int64_t n, const Books& books,
               const float* zeros, double* entries, const Parallel& parallel) {
  constexpr int64_t kTile = 64;  // rows that stay in L1 between the two steps
  const int64_t channels = books.semantic_width + books.pixel_width;
  parallel.run(n, kReadGrain, [&](int64_t begin, int64_t end) {
    const Scratch rows(kTile * channels);
    for (int64_t i = begin; i < end; i += kTile) {
      const int64_t count = std::min(kTile, end - i);
      TFX_CALL_SIMD(lookup_rows, indices + i, count, books, zeros, rows.get());
      TFX_CALL_SIMD(widen_rows, rows.get(), count, channels,
                    entries + i * row_stride(channels));
    }
  });
}

// A row of the grid of a few pictures, from entries to the finished maps.
void finish_row(const Pyramid& pyramid, const Sources& sources, const double* entries,
                int64_t pictures, int64_t row, float* total, float* maps) {
  const int64_t channels = pyramid.channels, stride = row_stride(channels);
  const int64_t cells = cells_of(pyramid.grid), width = pyramid.grid.width;
  const int64_t entry_step = tokens_of(pyramid) * stride;
  std::fill(total, total + pictures * width * stride, 0.0f);
  for (int64_t i = 0; i < pyramid.count; ++i) {
    const Enlargement op =
        enlargement_of(pyramid, sources, i, entries, pictures, entry_step);
    TFX_CALL_SIMD(enlarge_row, op, row, total, nullptr, width * stride);
    entries += cells_of(op.scale.cells) * stride;
  }
  for (int64_t p = 0; p < pictures; ++p)
    TFX_CALL_SIMD(rows_to_channels, total + p * width * stride, channels, cells, width,
                  maps + p * channels * cells + row * width);
}

}  // namespace

void pyramid_quantize_cpu(const float* features, const PreparedBook& book,
                          float pixel_weight, bool normalize, const Pyramid& pyramid,
                          int64_t* indices, float* quantized,
                          const Parallel& parallel) {
  const int64_t channels = pyramid.channels, cells = cells_of(pyramid.grid);
  const int64_t tokens = tokens_of(pyramid), height = pyramid.grid.height;
  const int64_t stride = row_stride(channels), row = pyramid.grid.width * stride;
  int64_t most = 0;
  for (int64_t i = 0; i < pyramid.count; ++i)
    most = std::max(most, pyramid.batch * cells_of(scale_of(pyramid, i).cells));
  const Sources sources(pyramid);
  const Scratch residual(pyramid.batch * cells * stride);
  const Scratch total(pyramid.batch * cells * stride + row_slack(channels));
  const Scratch semantic(most * book.semantic_width), pixel(most * book.pixel_width);
  const Scratch entries(2 * most * stride);
  std::vector<int64_t> found(most);
  std::fill_n(total.get(), pyramid.batch * cells * stride, 0.0f);
  to_rows(features, pyramid, residual.get(), parallel);

  int64_t before = 0;  // tokens of the coarser scales
  for (int64_t i = 0; i < pyramid.count; ++i) {
    const Scale scale = scale_of(pyramid, i);
    const int64_t each = cells_of(scale.cells), n = pyramid.batch * each;
    pool(residual.get(), scale, book.semantic_width, semantic.get(), pixel.get(),
         parallel);
    quantize_cpu({semantic.get(), pixel.get(), n, pixel_weight, normalize}, book,
                 found.data(), parallel);
    for (int64_t b = 0; b < pyramid.batch; ++b)
      std::copy_n(found.data() + b * each, each, indices + b * tokens + before);
    TFX_CALL_SIMD(widen_entries, book.rows, found.data(), n, channels,
                  doubles(entries));
    const int64_t grain = std::max<int64_t>(1, kEnlargeGrain / pyramid.grid.width);
    parallel.run(pyramid.batch * height, grain, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const Enlargement op = enlargement_of(
            pyramid, sources, i, doubles(entries) + r / height * each * stride, 1, 0);
        TFX_CALL_SIMD(enlarge_row, op, r % height, total.get() + r * row,
                      residual.get() + r * row, 0);
      }
    });
    before += each;
  }
  to_maps(total.get(), pyramid, quantized, parallel);
}

void pyramid_lookup_cpu(const int64_t* indices, const Books& books,
                        const Pyramid& pyramid, float* quantized,
                        const Parallel& parallel) {
  const int64_t channels = pyramid.channels, cells = cells_of(pyramid.grid);
  const int64_t tokens = tokens_of(pyramid), stride = row_stride(channels);
  const int64_t height = pyramid.grid.height;
  const Sources sources(pyramid);
  const std::vector<float> zeros(channels, 0.0f);
  const int64_t grain =
      std::max<int64_t>(1, kEnlargeGrain / (pyramid.grid.width * pyramid.count));
  const auto finish = [&](int64_t begin, int64_t end, const Parallel& inner) {
    const Scratch entries(2 * std::min(kPictures, end - begin) * tokens * stride);
    for (int64_t b = begin; b < end; b += kPictures) {
      const int64_t pictures = std::min(kPictures, end - b);
      read_rows(indices + b * tokens, pictures * tokens, books, zeros.data(),
                doubles(entries), inner);
      inner.run(height, grain, [&](int64_t first, int64_t last) {
        const Scratch total(pictures * pyramid.grid.width * stride +
                            row_slack(channels));
        for (int64_t row = first; row < last; ++row)
          finish_row(pyramid, sources, doubles(entries), pictures, row, total.get(),
                     quantized + b * channels * cells);
      });
    }
  };
  if (pyramid.batch < parallel.threads) return finish(0, pyramid.batch, parallel);
  const Parallel alone{
      [](int64_t n, int64_t, const std::function<void(int64_t, int64_t)>& body) {
        if (n > 0) body(0, n);
      },
      1};
  parallel.run(pyramid.batch, 1,
               [&](int64_t begin, int64_t end) { finish(begin, end, alone); });
}

}  // namespace tokenflow
