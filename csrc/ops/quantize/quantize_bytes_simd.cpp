/*
quantize, CPU: the sweep in bytes. Compiled once per instruction set; meaning:
quantize_sweep.h.

Algorithm  Entries and queries are rounded to signed bytes, each half by a scale of its
           own, chosen so that both halves of a score have one unit. A tile of kByteTile
           entries × one panel accumulates integer scores in registers, four products
           per lane and instruction. An entry whose score reaches its lane's floor may
           win: it is scored in float32 and, if it may still win, exactly.
Bound      With a, b the scaled query and entry and a', b' their bytes,
             |a·b − a'·b'| ≤ ‖a − a'‖ ‖b‖ + ‖a'‖ ‖b − b'‖   (Cauchy–Schwarz),
           the norms of a measured for each query and the largest of b kept with the
           book. Integer sums are exact. The rounding of the scales, of the offsets and
           of the floor is paid by 2⁻²⁰ of the largest score.
Floors     Of the first tiles only the best scores are kept at first. The largest, less
           twice the bound, is a floor for all of them, so that what would merely be the
           best so far is never looked at.
Cost       Of random rows a few entries per query are looked at one by one. A panel
           that needs more than its budget (a collapsed book, rows closer to each other
           than a byte can tell) goes on in float32.
Tiles      AVX-512 (VNNI): 12 entries × 32 queries, 24 accumulators of 16 int32. AVX2: 6
           entries × 16 queries, 12 accumulators of 8 pairs of int16; a lane holds the
           lower and the upper products of its words, which cannot overflow because the
           scale of the query keeps ‖a'‖ ‖b'‖ below 2¹⁵.
Traffic    A panel is width × lanes bytes in L1; a block of entries in L2.
*/
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "common/numerics.h"
#include "common/simd.h"
#include "ops/quantize/quantize_panel.h"
#include "ops/quantize/quantize_sweep.h"

namespace tokenflow::TFX_ISA {
namespace {

using simd::VecD;
using simd::VecF;
using simd::VecI32;

// Queries are bytes from −kLevel to kLevel, shifted by kZero to be unsigned. Scores
// come out kTimes too large.
#if defined(__AVX512VNNI__)
constexpr bool kHasBytes = true;
constexpr int kEntries = 12, kLevel = 127, kZero = 128, kTimes = 1;

[[gnu::always_inline]] inline const int32_t* biases_of(const ByteBook& bytes) {
  return bytes.bias;
}
[[gnu::always_inline]] inline VecI32 multiply_add(VecI32 sum, VecI32 query,
                                                  VecI32 entry) {
  return (VecI32)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)query, (__m512i)entry);
}
// kEntries words side by side.
[[gnu::always_inline]] inline VecI32 load_entries(const int32_t* p) {
  return (VecI32)_mm512_maskz_loadu_epi32((1 << kEntries) - 1, p);
}
[[gnu::always_inline]] inline VecI32 add(VecI32 a, VecI32 b) { return a + b; }
[[gnu::always_inline]] inline VecI32 whole(VecI32 sum) { return sum; }
[[gnu::always_inline]] inline VecI32 broadcast(const int32_t* p) {
  VecI32 v = (VecI32)_mm512_set1_epi32(*p);
  asm("" : "+v"(v));  // one load for both vectors of queries
  return v;
}
[[gnu::always_inline]] inline VecI32 largest(VecI32 a, VecI32 b) {
  return (VecI32)_mm512_max_epi32((__m512i)a, (__m512i)b);
}
#elif defined(__AVX2__)
constexpr bool kHasBytes = true;
constexpr int kEntries = 6, kLevel = 63, kZero = 64, kTimes = 2;

[[gnu::always_inline]] inline const int32_t* biases_of(const ByteBook& bytes) {
  return bytes.biases;
}
// kEntries words side by side, and two more, which are no entries: there is something
// behind words, biases and starts.
[[gnu::always_inline]] inline VecI32 load_entries(const int32_t* p) {
  return simd::load(p);
}
[[gnu::always_inline]] inline VecI32 add(VecI32 a, VecI32 b) {
  return (VecI32)_mm256_add_epi16((__m256i)a, (__m256i)b);
}
[[gnu::always_inline]] inline VecI32 multiply_add(VecI32 sum, VecI32 query,
                                                  VecI32 entry) {
  return add(sum, (VecI32)_mm256_maddubs_epi16((__m256i)query, (__m256i)entry));
}
[[gnu::always_inline]] inline VecI32 whole(VecI32 sum) {
  return (VecI32)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(kTimes));
}
[[gnu::always_inline]] inline VecI32 broadcast(const int32_t* p) {
  VecI32 v = (VecI32)_mm256_set1_epi32(*p);
  asm("" : "+x"(v));
  return v;
}
[[gnu::always_inline]] inline VecI32 largest(VecI32 a, VecI32 b) {
  return (VecI32)_mm256_max_epi32((__m256i)a, (__m256i)b);
}
#else
constexpr bool kHasBytes = false;
constexpr int kLevel = 1, kZero = 0, kTimes = 1;
#endif

[[gnu::always_inline]] inline VecF to_float(VecI32 v) {
  return __builtin_convertvector(v, VecF);
}

#if defined(__AVX2__)

constexpr int kChains = 4;  // sums that do not wait for each other

// Looks at what may win, in each lane in order, so that the smallest index wins.
template <bool kOffsets>
struct Suspects {
  const Entries& entries;
  const ByteBook& bytes;
  const Panel& panel;
  int64_t budget;

  // Entry `e` of tile `t` and those after it; `lanes` are those where one may win.
  [[gnu::noinline]] void look(int64_t t, int e, uint32_t lanes) {
    for (; lanes; lanes &= lanes - 1) look_in(t, e, __builtin_ctz(lanes));
  }

 private:
  // The byte scores of one lane once more, now side by side.
  void look_in(int64_t t, int e, int lane) {
    const int64_t k = t * kByteTile + e;
    const int32_t* word = bytes.words + t * bytes.quads * kByteTile + e;
    const int32_t* query = panel.words + lane;
    VecI32 sums[kChains] = {load_entries(biases_of(bytes) + k)};
    int64_t q = 0;
    for (; q + kChains <= bytes.quads; q += kChains)
      simd::unroll<kChains>([&](auto i) {
        sums[i] = multiply_add(sums[i], broadcast(query + (q + i) * kLanes),
                               load_entries(word + (q + i) * kByteTile));
      });
    for (; q < bytes.quads; ++q)
      sums[0] = multiply_add(sums[0], broadcast(query + q * kLanes),
                             load_entries(word + q * kByteTile));
    simd::unroll<kChains - 1>([&](auto i) { sums[0] = add(sums[0], sums[i + 1]); });
    VecF scores = to_float(whole(sums[0]));
    if constexpr (kOffsets)
      scores += simd::broadcast(panel.unit[lane]) * simd::load(entries.start + k);
    const int64_t count = std::clamp<int64_t>(entries.k - k, 0, kEntries);
    uint32_t mask = (1u << count) - 1;
    while (mask &= simd::lanes_not_le(scores, simd::broadcast(panel.floor[lane]))) {
      look_at(k + __builtin_ctz(mask), lane);
      mask &= mask - 1;
    }
  }

  void look_at(int64_t k, int64_t lane) {
    --budget;
    const int64_t width = entries.width;
    const float* query = panel.row + lane * width;
    const float* row = entries.rows + k * width;
    VecF sums{};
    int64_t d = 0;
    for (; d + simd::kFloats <= width; d += simd::kFloats)
      sums += simd::load(query + d) * simd::load(row + d);
    float score = simd::sum(sums) + entries.start[k];
    for (; d < width; ++d) score += query[d] * row[d];
    if (score < panel.threshold[lane]) return;  // NaN rules nothing out
    challenge(entries, panel, k, lane, score);
  }
};

// Byte scores of kEntries entries, from entry `e` of tile `t` on, for both vectors of
// lanes.
template <bool kOffsets>
struct Scores {
  VecI32 sums[2][kEntries];
  const float* start;
  VecF unit[2];

  [[gnu::always_inline]] Scores(const Entries& entries, const ByteBook& bytes,
                                const Panel& panel, int64_t t, int e)
      : start(entries.start + t * kByteTile + e),
        unit{simd::load(panel.unit), simd::load(panel.unit + simd::kFloats)} {
    const int32_t* word = bytes.words + t * bytes.quads * kByteTile + e;
    const int32_t* bias = biases_of(bytes) + t * kByteTile + e;
    const int32_t* query = panel.words;
    simd::unroll<kEntries>(
        [&](auto i) { sums[0][i] = sums[1][i] = broadcast(bias + i); });
    for (int64_t q = 0; q < bytes.quads; ++q, word += kByteTile, query += kLanes) {
      const VecI32 q0 = simd::load(query), q1 = simd::load(query + simd::kFloats);
      simd::unroll<kEntries>([&](auto i) {
        const VecI32 b = broadcast(word + i);
        sums[0][i] = multiply_add(sums[0][i], q0, b);
        sums[1][i] = multiply_add(sums[1][i], q1, b);
      });
    }
    simd::unroll<2 * kEntries>([&](auto i) {
      VecI32& sum = sums[i % 2][i / 2];
      sum = whole(sum);
    });
  }

  [[gnu::always_inline]] VecF best(int v) const {
    if constexpr (kOffsets) {
      VecF scores[kEntries];
      simd::unroll<kEntries>([&](auto i) {
        scores[i] = to_float(sums[v][i]) + unit[v] * simd::broadcast(start[i]);
      });
      return simd::reduce(scores, [](VecF a, VecF b) { return simd::max(a, b); });
    } else {
      return to_float(
          simd::reduce(sums[v], [](VecI32 a, VecI32 b) { return largest(a, b); }));
    }
  }
};

// The lanes whose best is not ruled out.
[[gnu::always_inline]] inline uint32_t may_win(const Panel& panel, VecF best0,
                                               VecF best1) {
  return simd::lanes_not_le(best0, simd::load(panel.floor)) |
         simd::lanes_not_le(best1, simd::load(panel.floor + simd::kFloats))
             << simd::kFloats;
}

template <bool kOffsets>
int64_t sweep(const Entries& entries, const ByteBook& bytes, const Panel& panel,
              int64_t first, int64_t last, int64_t& budget) {
  Suspects<kOffsets> suspects{entries, bytes, panel, budget};
  for (; first < last && suspects.budget >= 0; ++first)
    for (int e = 0; e < kByteTile; e += kEntries) {
      const Scores<kOffsets> tile(entries, bytes, panel, first, e);
      const uint32_t lanes = may_win(panel, tile.best(0), tile.best(1));
      if (lanes) [[unlikely]]
        suspects.look(first, e, lanes);
    }
  budget = suspects.budget;
  return first;
}

// As `sweep`, of whole tiles, in two steps: the best of each, then, above floors that
// the best of all leaves, what may win. `best` has room for them: two vectors of lanes
// for every kEntries entries.
template <bool kOffsets>
int64_t sweep_first(const Entries& entries, const ByteBook& bytes, const Panel& panel,
                    int64_t first, int64_t last, float* best, int64_t& budget) {
  VecF top[2];
  for (VecF& v : top) v = simd::broadcast(-std::numeric_limits<float>::infinity());
  float* to = best;
  for (int64_t t = first; t < last; ++t)
    for (int e = 0; e < kByteTile; e += kEntries, to += kLanes) {
      const Scores<kOffsets> tile(entries, bytes, panel, t, e);
      simd::unroll<2>([&](auto v) {
        const VecF here = tile.best(v);
        simd::store(to + v * simd::kFloats, here);
        top[v] = simd::max(top[v], here);
      });
    }
  for (int lane = 0; lane < kLanes; ++lane) {
    const double sure = top[lane / simd::kFloats][lane % simd::kFloats];
    // 1 less, so that an entry as good stays possible where the slack is 0
    raise_floor(panel, lane, sure - 2 * panel.slack[lane] - 1.0);
  }
  Suspects<kOffsets> suspects{entries, bytes, panel, budget};
  const float* from = best;
  for (; first < last && suspects.budget >= 0; ++first)
    for (int e = 0; e < kByteTile; e += kEntries, from += kLanes) {
      const uint32_t lanes =
          may_win(panel, simd::load(from), simd::load(from + simd::kFloats));
      if (lanes) suspects.look(first, e, lanes);
    }
  budget = suspects.budget;
  return first;
}

#endif

}  // namespace

bool has_bytes() { return kHasBytes; }

void load_panel_bytes(const PreparedBook& book, const ByteBook& bytes,
                      double offset_limit, const Panel& panel) {
  const int64_t widths[2] = {book.semantic_width, book.pixel_width};
  const int64_t width = widths[0] + widths[1];
  // Per half: the largest element and the squares tell how far a lane can be scaled.
  alignas(64) float scale[2][kLanes];
  for (int64_t lane = 0; lane < kLanes; lane += simd::kFloats) {
    VecF tops[2] = {};
    VecD squares[2][2] = {};
    const float* column = panel.query + lane;
    for (int h = 0; h < 2; ++h)
      for (int64_t d = 0; d < widths[h]; ++d, column += kLanes) {
        const VecF x = simd::load(column);
        tops[h] = simd::max(tops[h], simd::max(x, -x));
        for (int i = 0; i < 2; ++i) {
          const VecD wide = simd::half_as_double(x, i);
          squares[h][i] += wide * wide;
        }
      }
    for (int i = 0; i < simd::kFloats; ++i) {
      double unit = std::numeric_limits<double>::infinity(), sum = 0.0;
      for (int h = 0; h < 2; ++h) {
        const double s = bytes.scale[h];
        sum += squares[h][i / simd::kDoubles][i % simd::kDoubles] / (s * s);
        if (tops[h][i] > 0.0f)
          unit = std::min(unit, 0.999999 * kLevel / tops[h][i] * s);
      }
      if (kTimes == 2 && sum > 0.0) {  // int16 sums
        const double room = 32767.0 / std::max(bytes.norms.bytes, 1.0) -
                            0.5 * std::sqrt(static_cast<double>(width));
        unit = std::min(unit, std::max(room, 0.0) / std::sqrt(sum));
      }
      if (sum == 0.0) unit = 1.0;
      const int64_t at = lane + i;
      const double scales[2] = {unit / bytes.scale[0], unit / bytes.scale[1]};
      // No error bound: float32 could overflow, and nothing is ruled out there either.
      const bool fits = is_finite(panel.error[at]) && unit >= 1e-30 &&
                        std::max(scales[0], scales[1]) <= 1e30;
      panel.unit[at] = fits ? static_cast<float>(kTimes * unit) : 1.0f;
      panel.slack[at] = fits ? 0.0 : std::numeric_limits<double>::quiet_NaN();
      for (int h = 0; h < 2; ++h)
        scale[h][at] = fits ? static_cast<float>(scales[h]) : 0.0f;
    }
  }
  // The bytes, and the norms of the scaled query and of what rounding took from it.
  std::memset(panel.words, 0, bytes.quads * kLanes * sizeof(int32_t));
  for (int64_t lane = 0; lane < kLanes; lane += simd::kFloats) {
    VecD norms[2] = {}, residuals[2] = {};
    for (int64_t d = 0; d < width; ++d) {
      const VecF query = simd::load(panel.query + d * kLanes + lane);
      const VecF by = simd::load(scale[d >= widths[0]] + lane);
      const VecF rounded = simd::nearest(query * by);
      int32_t* to = panel.words + d / 4 * kLanes + lane;
      VecI32 word;
      std::memcpy(&word, to, sizeof word);
      word |= (__builtin_convertvector(rounded, VecI32) + kZero) << (8 * (d % 4));
      std::memcpy(to, &word, sizeof word);
      for (int i = 0; i < 2; ++i) {
        const VecD scaled =
            simd::half_as_double(query, i) * simd::half_as_double(by, i);
        const VecD rest = scaled - simd::half_as_double(rounded, i);
        norms[i] += scaled * scaled;
        residuals[i] += rest * rest;
      }
    }
    for (int i = 0; i < simd::kFloats; ++i) {
      const int64_t at = lane + i;
      const int half = i / simd::kDoubles, in_half = i % simd::kDoubles;
      const double norm = std::sqrt(norms[half][in_half]);
      const double residual = std::sqrt(residuals[half][in_half]);
      const double bound =
          (residual * bytes.norms.row + (norm + residual) * bytes.norms.residual) *
          (1.0 + 1e-6);
      const double largest_score =
          (norm + residual) * (bytes.norms.row + bytes.norms.residual) * kTimes +
          panel.unit[at] * offset_limit;
      panel.slack[at] += kTimes * bound + 0x1p-20 * largest_score;
      if (panel.best[at] > 0.0) panel.slack[at] = 0.0;  // unbeatable stays unbeatable
      panel.floor[at] = -std::numeric_limits<float>::infinity();
      set_thresholds(panel, at);
    }
  }
}

int64_t sweep_first_bytes(const Entries& entries, const ByteBook& bytes,
                          const Panel& panel, int64_t first, int64_t last, float* best,
                          int64_t& budget) {
#if defined(__AVX2__)
  return entries.offsets
             ? sweep_first<true>(entries, bytes, panel, first, last, best, budget)
             : sweep_first<false>(entries, bytes, panel, first, last, best, budget);
#else
  return first;
#endif
}

int64_t sweep_panel_bytes(const Entries& entries, const ByteBook& bytes,
                          const Panel& panel, int64_t first, int64_t last,
                          int64_t& budget) {
#if defined(__AVX2__)
  return entries.offsets ? sweep<true>(entries, bytes, panel, first, last, budget)
                         : sweep<false>(entries, bytes, panel, first, last, budget);
#else
  return first;
#endif
}

}  // namespace tokenflow::TFX_ISA
