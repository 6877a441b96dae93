/*
quantize and prepare, CPU: everything around the sweep of quantize_simd.cpp.

Work       Queries are packed into panels of lanes. With at least as many panels as
           threads each thread takes panels; with fewer, the book is split too and the
           parts are merged. Exact scores decide either way, so neither the number of
           threads nor the place of a query in the batch can change an index.
Memory     O(n + k): packed queries, one state per query and part, offsets per entry.
*/
#include <algorithm>
#include <vector>

#include "common/numerics.h"
#include "ops/quantize/quantize.h"

namespace tokenflow {
namespace {

constexpr int64_t kBlock = 1020;    // entries that stay in L2 while panels pass; whole
                                    // tiles of every instruction set
constexpr int64_t kMinPart = 2048;  // entries below which splitting the book costs more

struct EntrySquares {
  double row = 0.0, semantic = 0.0, pixel = 0.0;
  void include(const EntrySquares& other) {
    row = std::max(row, other.row);
    semantic = std::max(semantic, other.semantic);
    pixel = std::max(pixel, other.pixel);
  }
};

EntrySquares write_entry(const float* semantic, int64_t semantic_width,
                         const float* pixel, int64_t pixel_width, bool normalize,
                         float* row, double* squares) {
  const int64_t width = semantic_width + pixel_width;
  const double s = write_half(semantic, semantic_width, normalize, row);
  const double p = write_half(pixel, pixel_width, normalize, row + semantic_width);
  if (!is_finite(s) || !is_finite(p)) {  // such an entry never wins
    std::fill(row, row + width, 0.0f);
    squares[0] = std::numeric_limits<double>::infinity();
    squares[1] = 0.0;
    return {};
  }
  squares[0] = normalize ? 0.0 : s;
  squares[1] = normalize ? 0.0 : p;
  return {sum_of_squares(row, width), squares[0], squares[1]};
}

struct PackedQueries {
  int64_t lanes, panels;
  std::vector<float> query;   // [panels, width, lanes]
  std::vector<double> error;  // [panels, lanes]
  std::vector<char> finite;   // [panels, lanes]
};

PackedQueries pack(const Queries& queries, const PreparedBook& book, int64_t lanes,
                   const Parallel& parallel) {
  const int64_t ds = book.semantic_width, dp = book.pixel_width, width = ds + dp;
  PackedQueries packed{lanes, (queries.n + lanes - 1) / lanes, {}, {}, {}};
  packed.query.assign(packed.panels * width * lanes, 0.0f);
  packed.error.assign(packed.panels * lanes, 0.0);
  packed.finite.assign(packed.panels * lanes, 0);
  const double row_limit = std::sqrt(book.limits[0]);
  const double offset_limit =
      entry_offset(book.limits[1], book.limits[2], queries.pixel_weight);
  parallel.run(queries.n, 256, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t panel = n / lanes, lane = n % lanes;
      float* column = packed.query.data() + panel * width * lanes + lane;
      const float* semantic = queries.semantic + n * ds;
      const float* pixel = queries.pixel + n * dp;
      const double semantic_norm = row_norm(sum_of_squares(semantic, ds));
      const double pixel_norm = row_norm(sum_of_squares(pixel, dp));
      for (int64_t d = 0; d < ds; ++d)
        column[d * lanes] =
            queries.normalize ? normalized(semantic[d], semantic_norm) : semantic[d];
      for (int64_t d = 0; d < dp; ++d) {
        const float x = queries.normalize ? normalized(pixel[d], pixel_norm) : pixel[d];
        column[(ds + d) * lanes] = queries.pixel_weight * x;
      }
      const double squares = sum_of_squares(column, width, lanes);
      packed.finite[n] = is_finite(squares) && is_finite(semantic_norm + pixel_norm);
      if (packed.finite[n]) {
        packed.error[n] =
            sweep_error(std::sqrt(squares) * row_limit + offset_limit, width);
      } else {
        for (int64_t d = 0; d < width; ++d) column[d * lanes] = 0.0f;
      }
    }
  });
  return packed;
}

// Best entry of every lane, once per part of the book.
struct State {
  std::vector<double> best;
  std::vector<int64_t> index;
  std::vector<float> threshold;

  State(const PackedQueries& packed, int64_t parts) {
    const int64_t n = packed.panels * packed.lanes;
    best.resize(parts * n);
    index.assign(parts * n, -1);
    threshold.resize(parts * n);
    const double inf = std::numeric_limits<double>::infinity();
    for (int64_t i = 0; i < parts * n; ++i) {
      // Padding and queries that are not finite start unbeatable.
      best[i] = packed.finite[i % n] ? -inf : inf;
      threshold[i] = static_cast<float>(best[i] - packed.error[i % n]);
    }
  }
};

Panel panel_of(const PackedQueries& packed, State& state, int64_t width, int64_t panel,
               int64_t part) {
  const int64_t lane = panel * packed.lanes;
  const int64_t at = part * packed.panels * packed.lanes + lane;
  return {packed.query.data() + lane * width, packed.error.data() + lane,
          state.best.data() + at, state.index.data() + at, state.threshold.data() + at};
}

void sweep(const Entries& entries, const Panel& panel, int64_t first, int64_t last) {
  TFX_CALL_SIMD(sweep_panel, entries, panel, first, last);
}

int64_t lanes_now() { return TFX_CALL_SIMD(panel_lanes); }

int64_t parts_for(int64_t panels, int64_t k, int threads) {
  if (panels >= threads) return 1;
  const int64_t wanted = (threads + panels - 1) / panels;
  return std::clamp<int64_t>(k / kMinPart, 1, wanted);
}

}  // namespace

void prepare_cpu(const float* semantic_book, const float* pixel_book, int64_t k,
                 int64_t semantic_width, int64_t pixel_width, bool normalize,
                 float* rows, double* squares, double* limits,
                 const Parallel& parallel) {
  const int64_t width = semantic_width + pixel_width;
  constexpr int64_t kGrain = 512;
  std::vector<EntrySquares> largest((k + kGrain - 1) / kGrain);
  parallel.run(
      static_cast<int64_t>(largest.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block)
          for (int64_t i = block * kGrain; i < std::min(k, (block + 1) * kGrain); ++i)
            largest[block].include(
                write_entry(semantic_book + i * semantic_width, semantic_width,
                            pixel_width ? pixel_book + i * pixel_width : nullptr,
                            pixel_width, normalize, rows + i * width, squares + 2 * i));
      });
  EntrySquares total;
  for (const EntrySquares& block : largest) total.include(block);
  limits[0] = total.row;
  limits[1] = total.semantic;
  limits[2] = total.pixel;
}

void quantize_cpu(const Queries& queries, const PreparedBook& book, int64_t* indices,
                  const Parallel& parallel) {
  if (queries.n == 0) return;
  const int64_t width = book.semantic_width + book.pixel_width;
  const PackedQueries packed = pack(queries, book, lanes_now(), parallel);
  std::vector<double> offset64(book.k);
  std::vector<float> offset(book.k);
  for (int64_t k = 0; k < book.k; ++k) {
    offset64[k] = entry_offset(book.squares[2 * k], book.squares[2 * k + 1],
                               queries.pixel_weight);
    offset[k] = static_cast<float>(offset64[k]);
  }
  const Entries entries{book.rows, offset.data(), offset64.data(), width};

  const int64_t parts = parts_for(packed.panels, book.k, parallel.threads);
  State state(packed, parts);
  if (parts == 1) {
    const int64_t grain = (packed.panels + parallel.threads - 1) / parallel.threads;
    parallel.run(packed.panels, grain, [&](int64_t begin, int64_t end) {
      for (int64_t first = 0; first < book.k; first += kBlock)
        for (int64_t p = begin; p < end; ++p)
          sweep(entries, panel_of(packed, state, width, p, 0), first,
                std::min(book.k, first + kBlock));
    });
  } else {
    parallel.run(packed.panels * parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t part = unit % parts;
        sweep(entries, panel_of(packed, state, width, unit / parts, part),
              book.k * part / parts, book.k * (part + 1) / parts);
      }
    });
  }

  const int64_t stride = packed.panels * packed.lanes;
  for (int64_t n = 0; n < queries.n; ++n) {
    int64_t winner = n;
    for (int64_t part = 1; part < parts; ++part)  // in order: ties go to the smallest
      if (state.best[part * stride + n] > state.best[winner])
        winner = part * stride + n;
    indices[n] = state.index[winner];
  }
}

}  // namespace tokenflow
