/*
pyramid_quantize and pyramid_lookup, CPU. Meaning: the references in
tokenflow_ext/ops/pyramid.py.

Work       Per scale: pool the residual of the whole batch, search all its cells in one
           call of quantize_cpu, read the rows, enlarge them into sum and residual.
           Everything but the search is parallel over the cells of all pictures.
Memory     Two maps (sum and residual), and for the largest scale the pooled cells, the
           rows found and their indices. The lookup holds the rows of all tokens.
*/
#include <algorithm>
#include <vector>

#include "ops/pyramid/pyramid.h"

namespace tokenflow {
namespace {

constexpr int64_t kGrain = 64;  // cells: a few thousand values

// [batch, channels, cells] <-> [batch, cells, channels]
void to_channel_last(const float* in, int64_t batch, int64_t channels, int64_t cells,
                     float* out, const Parallel& parallel) {
  parallel.run(batch * cells, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* from = in + i / cells * channels * cells + i % cells;
      for (int64_t c = 0; c < channels; ++c) out[i * channels + c] = from[c * cells];
    }
  });
}

void to_channel_first(const float* in, int64_t batch, int64_t channels, int64_t cells,
                      float* out, const Parallel& parallel) {
  parallel.run(batch * channels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* from = in + i / channels * channels * cells + i % channels;
      for (int64_t cell = 0; cell < cells; ++cell)
        out[i * cells + cell] = from[cell * channels];
    }
  });
}

// Both halves of every pooled cell, as quantize wants them.
void pool(const float* residual, const Scale& scale, int64_t semantic_width,
          float* semantic, float* pixel, const Parallel& parallel) {
  const int64_t cells = cells_of(scale.cells), channels = scale.channels;
  const int64_t pixel_width = channels - semantic_width;
  parallel.run(scale.batch * cells, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* map = residual + i / cells * cells_of(scale.grid) * channels;
      for (int64_t c = 0; c < semantic_width; ++c)
        semantic[i * semantic_width + c] = pool_element(map, scale, i % cells, c);
      for (int64_t c = 0; c < pixel_width; ++c)
        pixel[i * pixel_width + c] =
            pool_element(map, scale, i % cells, semantic_width + c);
    }
  });
}

void read_entries(const float* rows, const int64_t* indices, int64_t n,
                  int64_t channels, float* entries, const Parallel& parallel) {
  parallel.run(n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t c = 0; c < channels; ++c)
        entries[i * channels + c] = entry_element(rows, indices[i], channels, c);
  });
}

// total += enlarged and, unless null, residual −= enlarged. The entries of a picture
// are `stride` values after those of the one before.
void add_enlarged(const float* entries, int64_t stride, const Scale& scale,
                  float* total, float* residual, const Parallel& parallel) {
  const int64_t cells = cells_of(scale.grid), channels = scale.channels;
  parallel.run(scale.batch * cells, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Taps taps = taps_of(scale, i % cells);
      const float* from = entries + i / cells * stride;
      for (int64_t c = 0; c < channels; ++c) {
        const float value = enlarge_element(from, taps, c);
        total[i * channels + c] += value;
        if (residual) residual[i * channels + c] -= value;
      }
    }
  });
}

}  // namespace

void pyramid_quantize_cpu(const float* features, const PreparedBook& book,
                          float pixel_weight, bool normalize, const Pyramid& pyramid,
                          int64_t* indices, float* quantized,
                          const Parallel& parallel) {
  const int64_t channels = pyramid.channels, cells = cells_of(pyramid.grid);
  const int64_t tokens = tokens_of(pyramid);
  std::vector<float> residual(pyramid.batch * cells * channels);
  std::vector<float> total(residual.size(), 0.0f);
  to_channel_last(features, pyramid.batch, channels, cells, residual.data(), parallel);

  std::vector<float> semantic, pixel, entries;
  std::vector<int64_t> found;
  int64_t before = 0;  // tokens of the coarser scales
  for (int64_t i = 0; i < pyramid.count; ++i) {
    const Scale scale = scale_of(pyramid, i);
    const int64_t each = cells_of(scale.cells), n = pyramid.batch * each;
    semantic.resize(n * book.semantic_width);
    pixel.resize(n * book.pixel_width);
    entries.resize(n * channels);
    found.resize(n);
    pool(residual.data(), scale, book.semantic_width, semantic.data(), pixel.data(),
         parallel);
    quantize_cpu({semantic.data(), pixel.data(), n, pixel_weight, normalize}, book,
                 found.data(), parallel);
    for (int64_t b = 0; b < pyramid.batch; ++b)
      std::copy_n(found.data() + b * each, each, indices + b * tokens + before);
    read_entries(book.rows, found.data(), n, channels, entries.data(), parallel);
    add_enlarged(entries.data(), each * channels, scale, total.data(), residual.data(),
                 parallel);
    before += each;
  }
  to_channel_first(total.data(), pyramid.batch, channels, cells, quantized, parallel);
}

void pyramid_lookup_cpu(const int64_t* indices, const Books& books,
                        const Pyramid& pyramid, float* quantized,
                        const Parallel& parallel) {
  const int64_t channels = pyramid.channels, cells = cells_of(pyramid.grid);
  const int64_t tokens = tokens_of(pyramid);
  std::vector<float> total(pyramid.batch * cells * channels, 0.0f);
  std::vector<float> entries(pyramid.batch * tokens * channels);
  lookup_cpu(indices, pyramid.batch * tokens, books, entries.data(), parallel);
  int64_t before = 0;
  for (int64_t i = 0; i < pyramid.count; ++i) {
    const Scale scale = scale_of(pyramid, i);
    add_enlarged(entries.data() + before * channels, tokens * channels, scale,
                 total.data(), nullptr, parallel);
    before += cells_of(scale.cells);
  }
  to_channel_first(total.data(), pyramid.batch, channels, cells, quantized, parallel);
}

}  // namespace tokenflow
