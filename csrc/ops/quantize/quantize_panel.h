// What the two sweeps share inside one instruction set.
#pragma once

#include "common/numerics.h"
#include "common/simd.h"
#include "ops/quantize/quantize_sweep.h"

namespace tokenflow::TFX_ISA {
namespace {

constexpr int kLanes = 2 * simd::kFloats;  // queries of a panel

// After a new best score of one lane. A lane that starts unbeatable stays so.
inline void set_thresholds(const Panel& panel, int64_t lane) {
  const double best = panel.best[lane];
  panel.threshold[lane] = static_cast<float>(best - panel.error[lane]);
  if (!panel.floor) return;
  const double floor = best * panel.unit[lane] - panel.slack[lane];
  // A little lower, so that rounding to float32 cannot raise it.
  panel.floor[lane] =
      static_cast<float>(floor * (floor > 0.0 ? 1.0 - 0x1p-22 : 1.0 + 0x1p-22));
}

// The contract itself, for one entry and one lane.
inline void decide_one(const Entries& entries, const Panel& panel, int64_t k,
                       int64_t lane) {
  const int64_t width = entries.width;
  const double dot =
      exact_dot(panel.query + lane, kLanes, entries.rows + k * width, width);
  const double score = dot - entries.offset[k];
  if (!(score > panel.best[lane])) return;
  panel.best[lane] = score;
  panel.index[lane] = k;
  set_thresholds(panel, lane);
}

}  // namespace

// The bytes of the queries that a panel holds, their bounds and floors.
void load_panel_bytes(const PreparedBook& book, const ByteBook& bytes,
                      double offset_limit, const Panel& panel);

}  // namespace tokenflow::TFX_ISA
