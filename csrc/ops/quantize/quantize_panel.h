// What the two sweeps share inside one instruction set.
#pragma once

#include "common/numerics.h"
#include "common/simd.h"
#include "ops/quantize/quantize_sweep.h"

namespace tokenflow::TFX_ISA {
namespace {

constexpr int kLanes = 2 * simd::kFloats;  // queries of a panel

// No byte score of `floor` or less can win. One that is NaN rules nothing out, for
// good.
inline void raise_floor(const Panel& panel, int64_t lane, double floor) {
  // A little lower, so that rounding to float32 cannot raise it.
  const float lower =
      static_cast<float>(floor * (floor > 0.0 ? 1.0 - 0x1p-22 : 1.0 + 0x1p-22));
  if (!(lower <= panel.floor[lane])) panel.floor[lane] = lower;
}

// After a new best score of one lane. A lane that starts unbeatable stays so.
inline void set_thresholds(const Panel& panel, int64_t lane) {
  const double best = panel.best[lane], error = panel.error[lane];
  const double spread = panel.spread[lane];
  panel.threshold[lane] = static_cast<float>(best - spread - error);
  panel.sure[lane] = static_cast<float>(best + spread + error);
  if (!panel.floor) return;
  raise_floor(panel, lane, (best - spread) * panel.unit[lane] - panel.slack[lane]);
}

inline void set_best(const Panel& panel, int64_t lane, int64_t k, double score,
                     double spread) {
  panel.best[lane] = score;
  panel.spread[lane] = spread;
  panel.index[lane] = k;
  set_thresholds(panel, lane);
}

// The contract itself, for one entry and one lane.
inline double exact_score(const Entries& entries, const Panel& panel, int64_t k,
                          int64_t lane) {
  const int64_t width = entries.width;
  const float* row = entries.rows + k * width;
  return exact_dot(panel.row + lane * width, 1, row, width) - entries.offset[k];
}

inline void make_exact(const Entries& entries, const Panel& panel, int64_t lane) {
  if (panel.spread[lane] == 0.0) return;
  const int64_t k = panel.index[lane];
  set_best(panel, lane, k, exact_score(entries, panel, k, lane), 0.0);
}

// Entry k may win a lane; `score` is its float32 score. Where that is certain to win it
// does; where it is not, exact scores decide.
inline void challenge(const Entries& entries, const Panel& panel, int64_t k,
                      int64_t lane, float score) {
  if (score > panel.sure[lane])
    return set_best(panel, lane, k, score, panel.error[lane]);
  make_exact(entries, panel, lane);
  const double exact = exact_score(entries, panel, k, lane);
  if (exact > panel.best[lane]) set_best(panel, lane, k, exact, 0.0);
}

}  // namespace

// The bytes of the queries that a panel holds, their bounds and floors.
void load_panel_bytes(const PreparedBook& book, const ByteBook& bytes,
                      double offset_limit, const Panel& panel);

}  // namespace tokenflow::TFX_ISA
