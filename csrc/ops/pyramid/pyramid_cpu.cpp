/*
pyramid_quantize and pyramid_lookup, CPU. Meaning: the references in
tokenflow_ext/ops/pyramid.py.

Work       quantize: per scale, pool the residual of the whole batch, search all its
           cells in one call of quantize_cpu, read the rows, enlarge them into sum and
           residual. lookup: read the rows of all tokens, then each thread finishes the
           cells it takes, scale after scale. Nearly all the time is the search; small
           steps stay on one thread, where waiting for others would cost more.
Memory     quantize: two maps (sum and residual), and for the largest scale the pooled
           cells, the rows found and their indices. lookup: the rows of all tokens.
*/
#include <algorithm>
#include <vector>

#include "ops/pyramid/pyramid.h"

namespace tokenflow {
namespace {

// Cells a thread should have at least, by what is done to each.
constexpr int64_t kCopyGrain = 2048;
constexpr int64_t kEnlargeGrain = 128;

// [batch, channels, cells] <-> [batch, cells, channels]
void to_channel_last(const float* in, int64_t batch, int64_t channels, int64_t cells,
                     float* out, const Parallel& parallel) {
  parallel.run(batch * cells, kCopyGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* from = in + i / cells * channels * cells + i % cells;
      for (int64_t c = 0; c < channels; ++c) out[i * channels + c] = from[c * cells];
    }
  });
}

void to_channel_first(const float* in, int64_t batch, int64_t channels, int64_t cells,
                      float* out, const Parallel& parallel) {
  parallel.run(batch * channels, kCopyGrain / 16, [&](int64_t begin, int64_t end) {
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
  // Every cell of the grid is read about once, whatever the scale.
  const int64_t grain = std::max<int64_t>(1, kCopyGrain * cells / cells_of(scale.grid));
  parallel.run(scale.batch * cells, grain, [&](int64_t begin, int64_t end) {
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
  parallel.run(n, kCopyGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t c = 0; c < channels; ++c)
        entries[i * channels + c] = entry_element(rows, indices[i], channels, c);
  });
}

// One cell of the full grid: total += enlarged and, unless null, residual −= enlarged.
void add_enlarged(const float* entries, const Scale& scale, int64_t cell, float* total,
                  float* residual) {
  const Taps taps = taps_of(scale, cell);
  for (int64_t c = 0; c < scale.channels; ++c) {
    const float value = enlarge_element(entries, taps, c);
    total[c] += value;
    if (residual) residual[c] -= value;
  }
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
    parallel.run(pyramid.batch * cells, kEnlargeGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        add_enlarged(entries.data() + i / cells * each * channels, scale, i % cells,
                     total.data() + i * channels, residual.data() + i * channels);
    });
    before += each;
  }
  to_channel_first(total.data(), pyramid.batch, channels, cells, quantized, parallel);
}

void pyramid_lookup_cpu(const int64_t* indices, const Books& books,
                        const Pyramid& pyramid, float* quantized,
                        const Parallel& parallel) {
  const int64_t channels = pyramid.channels, cells = cells_of(pyramid.grid);
  const int64_t tokens = tokens_of(pyramid);
  std::vector<float> entries(pyramid.batch * tokens * channels);
  lookup_cpu(indices, pyramid.batch * tokens, books, entries.data(), parallel);
  const int64_t grain = std::max<int64_t>(1, kEnlargeGrain / pyramid.count);
  parallel.run(pyramid.batch * cells, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> total(channels);
    for (int64_t i = begin; i < end; ++i) {
      std::fill(total.begin(), total.end(), 0.0f);
      const float* from = entries.data() + i / cells * tokens * channels;
      for (int64_t s = 0; s < pyramid.count; ++s) {
        const Scale scale = scale_of(pyramid, s);
        add_enlarged(from, scale, i % cells, total.data(), nullptr);
        from += cells_of(scale.cells) * channels;
      }
      float* out = quantized + i / cells * channels * cells + i % cells;
      for (int64_t c = 0; c < channels; ++c) out[c * cells] = total[c];
    }
  });
}

}  // namespace tokenflow
