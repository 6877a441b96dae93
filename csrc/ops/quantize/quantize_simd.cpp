/*
quantize, CPU sweep. Compiled once per instruction set; meaning: quantize.h.

Algorithm  A tile of kEntries book entries × one panel of queries (two vectors wide)
           accumulates float32 scores in registers. A tile in which some lane beats
           its threshold is computed again in float64, in the contract's order, still
           one query per lane; only those exact scores ever decide.
Cost       About ln K tiles per query are computed twice. Where every tile is (a
           collapsed book), float64 runs at half the float32 rate, so the worst case
           is three times the plain sweep.
Numerics   The products are exact in float64, so the exact tile has one result on
           every instruction set. Entries are visited in order and only a larger score
           replaces the best: the smallest index wins ties.
Traffic    The panel (width × lanes floats) stays in L1, a block of entries in L2.
*/
#include <cstring>

#include "common/simd.h"
#include "ops/quantize/quantize.h"

namespace tokenflow::TFX_ISA {
namespace {

constexpr int kLanes = 2 * simd::kFloats;
constexpr int kDoubles = kLanes / simd::kDoubles;  // float64 vectors per panel
#if defined(__AVX512F__)
constexpr int kEntries = 12;
#else
constexpr int kEntries = 6;
#endif

using simd::VecD;
using simd::VecF;
using simd::VecI64;

// Does any lane of any of the E entries beat its threshold? Also true for lanes whose
// threshold is NaN, which no score can be ruled out for.
template <int E>
inline bool may_win(const Entries& entries, const Panel& panel, int64_t k) {
  const int64_t width = entries.width;
  const float* row = entries.rows + k * width;
  VecF sums[E][2];
  for (int e = 0; e < E; ++e)
    sums[e][0] = sums[e][1] = simd::broadcast(-entries.offset[k + e]);
  for (int64_t d = 0; d < width; ++d) {
    const VecF q0 = simd::load(panel.query + d * kLanes);
    const VecF q1 = simd::load(panel.query + d * kLanes + simd::kFloats);
    for (int e = 0; e < E; ++e) {
      const VecF b = simd::broadcast(row[e * width + d]);
      sums[e][0] += q0 * b;
      sums[e][1] += q1 * b;
    }
  }
  for (int e = 1; e < E; ++e) {
    sums[0][0] = simd::max(sums[0][0], sums[e][0]);
    sums[0][1] = simd::max(sums[0][1], sums[e][1]);
  }
  return simd::any_not_le(sums[0][0], simd::load(panel.threshold)) ||
         simd::any_not_le(sums[0][1], simd::load(panel.threshold + simd::kFloats));
}

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
      const VecD score = sums[e] - entries.offset64[k + e];
      const VecI64 better = score > best;
      best = better ? score : best;
      index = better ? VecI64{} + (k + e) : index;
    }
    std::memcpy(panel.best + lane, &best, sizeof best);
    std::memcpy(panel.index + lane, &index, sizeof index);
    for (int i = 0; i < simd::kDoubles; ++i)
      panel.threshold[lane + i] =
          static_cast<float>(panel.best[lane + i] - panel.error[lane + i]);
  }
}

template <int E>
inline void tile(const Entries& entries, const Panel& panel, int64_t k) {
  if (may_win<E>(entries, panel, k)) [[unlikely]]
    decide<E>(entries, panel, k);
}

}  // namespace

int64_t panel_lanes() { return kLanes; }

void sweep_panel(const Entries& entries, const Panel& panel, int64_t first,
                 int64_t last) {
  int64_t k = first;
  for (; k + kEntries <= last; k += kEntries) tile<kEntries>(entries, panel, k);
  for (; k < last; ++k) tile<1>(entries, panel, k);
}

}  // namespace tokenflow::TFX_ISA
