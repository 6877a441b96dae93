/*
quantize, CPU: panels of queries and the float32 sweep. Compiled once per instruction
set; meaning: quantize_sweep.h.

Algorithm  A tile of kEntries book entries × one panel of queries (two vectors wide)
           accumulates float32 scores in registers. A score above the best by more than
           both errors wins; one within them is compared by exact scores: float64, in
           the contract's order, a few one by one, many as a tile, one query per lane.
Cost       About ln K entries per query are looked at, few of them exactly. Where every
           tile is exact (a collapsed book), float64 runs at half the float32 rate, so
           the worst case is three times the plain sweep.
Numerics   The products are exact in float64, so an exact score has one result on every
           instruction set. Entries are visited in order and only a larger score
           replaces the best: the smallest index wins ties.
Traffic    The panel (width × lanes floats) stays in L1, a block of entries in L2.
*/
#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/numerics.h"
#include "common/simd_maps.h"
#include "ops/quantize/quantize_panel.h"
#include "ops/quantize/quantize_sweep.h"

namespace tokenflow::TFX_ISA {
namespace {

constexpr int kDoubles = kLanes / simd::kDoubles;  // float64 vectors per panel
#if defined(__AVX512F__)
constexpr int kEntries = 12;
#else
constexpr int kEntries = 6;
#endif

constexpr int kOneByOne = 8;  // scores in float64 that cost less than a whole tile

using simd::VecD;
using simd::VecF;
using simd::VecI64;

// The contract itself, for E entries and the whole panel.
template <int E>
void decide(const Entries& entries, const Panel& panel, int64_t k) {
  const int64_t width = entries.width;
  for (int v = 0; v < kDoubles; ++v) {
    const int64_t lane = v * simd::kDoubles;
    VecD sums[E] = {};
    for (int64_t d = 0; d < width; ++d) {
      const VecD q = simd::load_as_double(panel.query + d * kLanes + lane);
      for (int e = 0; e < E; ++e)
        sums[e] += q * static_cast<double>(entries.rows[(k + e) * width + d]);
    }
    for (int i = 0; i < simd::kDoubles; ++i) make_exact(entries, panel, lane + i);
    VecD best = simd::load(panel.best + lane);
    VecI64 index;
    std::memcpy(&index, panel.index + lane, sizeof index);
    for (int e = 0; e < E; ++e) {
      const VecD score = sums[e] - entries.offset[k + e];
      const VecI64 better = score > best;
      best = better ? score : best;
      index = better ? VecI64{} + (k + e) : index;
    }
    std::memcpy(panel.best + lane, &best, sizeof best);
    std::memcpy(panel.index + lane, &index, sizeof index);
    for (int i = 0; i < simd::kDoubles; ++i) set_thresholds(panel, lane + i);
  }
}

// What may win of E entries, by their float32 scores, in order, so that the smallest
// index wins; all at once where float32 leaves much to tell apart.
template <int E>
[[gnu::noinline]] void decide_suspects(const Entries& entries, const Panel& panel,
                                       int64_t k, const VecF (&scores)[2][E]) {
  int unclear = 0;  // scores so close to the best that exact ones must decide
  for (int v = 0; v < 2; ++v) {
    VecF top = scores[v][0], error;
    for (int e = 1; e < E; ++e) top = simd::max(top, scores[v][e]);
    for (int i = 0; i < simd::kFloats; ++i)
      error[i] = static_cast<float>(panel.error[v * simd::kFloats + i]);
    const VecF reach = simd::max(top - (error + error),
                                 simd::load(panel.threshold + v * simd::kFloats));
    for (int e = 0; e < E; ++e)
      unclear += __builtin_popcount(simd::lanes_not_le(scores[v][e], reach));
    unclear -= __builtin_popcount(
        simd::lanes_not_le(top, simd::load(panel.sure + v * simd::kFloats)));
  }
  if (unclear > kOneByOne) return decide<E>(entries, panel, k);
  for (int e = 0; e < E; ++e)
    for (int v = 0; v < 2; ++v) {
      const int64_t first = v * simd::kFloats;
      uint32_t lanes =
          simd::lanes_not_le(scores[v][e], simd::load(panel.threshold + first));
      for (; lanes; lanes &= lanes - 1) {
        const int lane = __builtin_ctz(lanes);
        challenge(entries, panel, k + e, first + lane, scores[v][e][lane]);
      }
    }
}

// Scores of E entries; what may win is decided. A lane whose threshold is NaN can rule
// nothing out.
template <int E>
inline void tile(const Entries& entries, const Panel& panel, int64_t k) {
  // Three rows per pointer: 0, 1 and 2 widths away are addresses the processor forms.
  constexpr int kGroup = E % 3 == 0 ? 3 : 1;
  const int64_t width = entries.width;
  const float* row[E / kGroup];
  simd::unroll<E / kGroup>(
      [&](auto g) { row[g] = entries.rows + (k + g * kGroup) * width; });
  VecF sums[2][E];
  simd::unroll<E>(
      [&](auto e) { sums[0][e] = sums[1][e] = simd::broadcast(entries.start[k + e]); });
  const float* query = panel.query;
  for (int64_t d = 0; d < width; ++d, query += kLanes) {
    const VecF q0 = simd::load(query), q1 = simd::load(query + simd::kFloats);
    simd::unroll<E>([&](auto e) {
      const VecF b = simd::broadcast(row[e / kGroup][d + e % kGroup * width]);
      sums[0][e] += q0 * b;
      sums[1][e] += q1 * b;
    });
  }
  const auto max = [](VecF a, VecF b) { return simd::max(a, b); };
  const VecF limits[2] = {simd::load(panel.threshold),
                          simd::load(panel.threshold + simd::kFloats)};
  if (simd::any_not_le(simd::reduce(sums[0], max), limits[0]) |
      simd::any_not_le(simd::reduce(sums[1], max), limits[1])) [[unlikely]] {
    VecF scores[2][E];
    simd::unroll<2 * E>([&](auto i) { scores[i % 2][i / 2] = sums[i % 2][i / 2]; });
    decide_suspects<E>(entries, panel, k, scores);
  }
}

// [kLanes, width] -> [width, kLanes]
void transpose(const float* rows, int64_t width, float* columns) {
  constexpr int kSide = simd::kFloats;
  const int64_t whole = width / kSide * kSide;
  for (int64_t lane = 0; lane < kLanes; lane += kSide)
    for (int64_t d = 0; d < whole; d += kSide) {
      VecF v[kSide];
      for (int i = 0; i < kSide; ++i) v[i] = simd::load(rows + (lane + i) * width + d);
      simd::transpose(v);
      for (int i = 0; i < kSide; ++i)
        simd::store(columns + (d + i) * kLanes + lane, v[i]);
    }
  for (int64_t d = whole; d < width; ++d)
    for (int64_t lane = 0; lane < kLanes; ++lane)
      columns[d * kLanes + lane] = rows[lane * width + d];
}

// Σ x² of each of kDoubles lanes, in the contract's order.
VecD sum_of_squares(const float* columns, int64_t width) {
  VecD sum{};
  for (int64_t d = 0; d < width; ++d) {
    const VecD x = simd::load_as_double(columns + d * kLanes);
    sum += x * x;
  }
  return sum;
}

// What each lane is divided by.
void write_norms(const float* columns, int64_t width, double* norms) {
  for (int64_t lane = 0; lane < kLanes; lane += simd::kDoubles) {
    const VecD squares = sum_of_squares(columns + lane, width);
    for (int i = 0; i < simd::kDoubles; ++i) norms[lane + i] = row_norm(squares[i]);
  }
}

}  // namespace

int64_t panel_lanes() { return kLanes; }

void load_panel(const Queries& queries, const PreparedBook& book, const ByteBook* bytes,
                int64_t first, int64_t count, const Panel& panel) {
  const int64_t ds = book.semantic_width, dp = book.pixel_width, width = ds + dp;
  for (int64_t lane = 0; lane < count; ++lane) {
    float* row = panel.row + lane * width;
    std::copy_n(queries.semantic + (first + lane) * ds, ds, row);
    std::copy_n(queries.pixel + (first + lane) * dp, dp, row + ds);
  }
  std::fill(panel.row + count * width, panel.row + kLanes * width, 0.0f);
  transpose(panel.row, width, panel.query);
  double norms[2][kLanes];
  write_norms(panel.query, ds, norms[0]);
  write_norms(panel.query + ds * kLanes, dp, norms[1]);
  for (int64_t lane = 0; lane < count; ++lane) {
    float* row = panel.row + lane * width;
    if (queries.normalize) {
      for (int64_t d = 0; d < ds; ++d) row[d] = normalized(row[d], norms[0][lane]);
      for (int64_t d = ds; d < width; ++d) row[d] = normalized(row[d], norms[1][lane]);
    }
    for (int64_t d = ds; d < width; ++d) row[d] *= queries.pixel_weight;
  }
  if (queries.normalize || dp) transpose(panel.row, width, panel.query);

  const double row_limit = std::sqrt(book.limits[0]);
  const double offset_limit =
      entry_offset(book.limits[1], book.limits[2], queries.pixel_weight);
  const double inf = std::numeric_limits<double>::infinity();
  for (int64_t lane = 0; lane < kLanes; lane += simd::kDoubles) {
    const VecD squares = sum_of_squares(panel.query + lane, width);
    for (int i = 0; i < simd::kDoubles; ++i) {
      const int64_t at = lane + i;
      const bool counts =
          at < count && is_finite(squares[i] + (norms[0][at] + norms[1][at]));
      if (!counts) {
        std::fill_n(panel.row + at * width, width, 0.0f);
        for (int64_t d = 0; d < width; ++d) panel.query[d * kLanes + at] = 0.0f;
      }
      panel.best[at] = counts ? -inf : inf;
      panel.spread[at] = 0.0;
      panel.index[at] = -1;
      panel.error[at] =
          counts ? sweep_error(std::sqrt(squares[i]) * row_limit + offset_limit, width)
                 : 0.0;
      panel.threshold[at] = static_cast<float>(panel.best[at] - panel.error[at]);
      panel.sure[at] = static_cast<float>(panel.best[at] + panel.error[at]);
    }
  }
  if (bytes) load_panel_bytes(book, *bytes, offset_limit, panel);
}

void sweep_panel(const Entries& entries, const Panel& panel, int64_t first,
                 int64_t last) {
  int64_t k = first;
  for (; k + kEntries <= last; k += kEntries) tile<kEntries>(entries, panel, k);
  for (; k < last; ++k) tile<1>(entries, panel, k);
}

void finish_panel(const Entries& entries, const Panel& panel) {
  for (int64_t lane = 0; lane < kLanes; ++lane) make_exact(entries, panel, lane);
}

}  // namespace tokenflow::TFX_ISA
