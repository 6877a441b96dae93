/*
quantize, CPU: panels of queries and the float32 sweep. Compiled once per instruction
set; meaning: quantize_sweep.h.

Algorithm  A tile of kEntries book entries × one panel of queries (two vectors wide)
           accumulates float32 scores in registers. Those that beat the threshold of
           their lane are computed again in float64, in the contract's order: a few one
           by one, many as a tile, still one query per lane. Only exact scores decide.
Cost       About ln K entries per query are scored twice. Where every one is (a
           collapsed book), float64 runs at half the float32 rate, so the worst case is
           three times the plain sweep.
Numerics   The products are exact in float64, so the exact tile has one result on
           every instruction set. Entries are visited in order and only a larger score
           replaces the best: the smallest index wins ties.
Traffic    The panel (width × lanes floats) stays in L1, a block of entries in L2.
*/
#include <cmath>
#include <cstring>

#include "common/numerics.h"
#include "common/simd.h"
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
using simd::VecHalfF;
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

// What may win of E entries, by their float32 scores: few one by one, in order, so that
// the smallest index wins; many all at once.
template <int E>
[[gnu::noinline]] void decide_suspects(const Entries& entries, const Panel& panel,
                                       int64_t k, const VecF (&scores)[2][E]) {
  uint32_t suspects[E][2];
  int count = 0;
  for (int e = 0; e < E; ++e)
    for (int v = 0; v < 2; ++v) {
      const VecF threshold = simd::load(panel.threshold + v * simd::kFloats);
      suspects[e][v] = simd::lanes_not_le(scores[v][e], threshold);
      count += __builtin_popcount(suspects[e][v]);
    }
  if (count > kOneByOne) return decide<E>(entries, panel, k);
  for (int e = 0; e < E; ++e)
    for (int v = 0; v < 2; ++v)
      for (uint32_t lanes = suspects[e][v]; lanes; lanes &= lanes - 1)
        decide_one(entries, panel, k + e, v * simd::kFloats + __builtin_ctz(lanes));
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
  if (simd::any_not_le(simd::largest_of(sums[0], max), limits[0]) |
      simd::any_not_le(simd::largest_of(sums[1], max), limits[1])) [[unlikely]] {
    VecF scores[2][E];
    simd::unroll<2 * E>([&](auto i) { scores[i % 2][i / 2] = sums[i % 2][i / 2]; });
    decide_suspects<E>(entries, panel, k, scores);
  }
}

// [count, width] rows side by side in lanes [0, count), from row d of the panel on.
void transpose(const float* rows, int64_t count, int64_t width, float* columns) {
  for (int64_t lane = 0; lane < count; ++lane)
    for (int64_t d = 0; d < width; ++d)
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

VecD row_norms(VecD squares) {
  for (int i = 0; i < simd::kDoubles; ++i) squares[i] = row_norm(squares[i]);
  return squares;
}

void divide(float* columns, int64_t width, VecD norms) {
  for (int64_t d = 0; d < width; ++d) {
    const VecD quotient = simd::load_as_double(columns + d * kLanes) / norms;
    const VecHalfF rounded = __builtin_convertvector(quotient, VecHalfF);
    std::memcpy(columns + d * kLanes, &rounded, sizeof rounded);
  }
}

}  // namespace

int64_t panel_lanes() { return kLanes; }

void load_panel(const Queries& queries, const PreparedBook& book, const ByteBook* bytes,
                int64_t first, int64_t count, const Panel& panel) {
  const int64_t ds = book.semantic_width, dp = book.pixel_width, width = ds + dp;
  if (count < kLanes) std::memset(panel.query, 0, width * kLanes * sizeof(float));
  float* pixel = panel.query + ds * kLanes;
  transpose(queries.semantic + first * ds, count, ds, panel.query);
  transpose(queries.pixel + first * dp, count, dp, pixel);

  const double row_limit = std::sqrt(book.limits[0]);
  const double offset_limit =
      entry_offset(book.limits[1], book.limits[2], queries.pixel_weight);
  for (int64_t lane = 0; lane < kLanes; lane += simd::kDoubles) {
    const VecD semantic_norms = row_norms(sum_of_squares(panel.query + lane, ds));
    const VecD pixel_norms = row_norms(sum_of_squares(pixel + lane, dp));
    if (queries.normalize) {
      divide(panel.query + lane, ds, semantic_norms);
      divide(pixel + lane, dp, pixel_norms);
    }
    for (int64_t d = 0; d < dp; ++d)
      for (int i = 0; i < simd::kDoubles; ++i)
        pixel[d * kLanes + lane + i] *= queries.pixel_weight;
    const VecD squares = sum_of_squares(panel.query + lane, width);
    for (int i = 0; i < simd::kDoubles; ++i) {
      const int64_t at = lane + i;
      const bool counts =
          at < count && is_finite(squares[i] + (semantic_norms[i] + pixel_norms[i]));
      if (!counts)
        for (int64_t d = 0; d < width; ++d) panel.query[d * kLanes + at] = 0.0f;
      const double inf = std::numeric_limits<double>::infinity();
      panel.best[at] = counts ? -inf : inf;
      panel.index[at] = -1;
      panel.error[at] =
          counts ? sweep_error(std::sqrt(squares[i]) * row_limit + offset_limit, width)
                 : 0.0;
      panel.threshold[at] = static_cast<float>(panel.best[at] - panel.error[at]);
    }
  }
  if (!bytes) return;
  for (int64_t lane = 0; lane < kLanes; ++lane)
    for (int64_t d = 0; d < width; ++d)
      panel.row[lane * width + d] = panel.query[d * kLanes + lane];
  load_panel_bytes(book, *bytes, offset_limit, panel);
}

void sweep_panel(const Entries& entries, const Panel& panel, int64_t first,
                 int64_t last) {
  int64_t k = first;
  for (; k + kEntries <= last; k += kEntries) tile<kEntries>(entries, panel, k);
  for (; k < last; ++k) tile<1>(entries, panel, k);
}

}  // namespace tokenflow::TFX_ISA
