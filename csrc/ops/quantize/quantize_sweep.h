// What quantize_cpu.cpp and the sweeps (quantize_simd.cpp, quantize_bytes_simd.cpp),
// which are compiled once per instruction set, say to each other.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "ops/quantize/byte_book.h"
#include "ops/quantize/quantize.h"

namespace tokenflow {

// The book as the sweeps read it.
struct Entries {
  const float* rows;     // [k, width]
  const double* offset;  // [k], what the exact score subtracts
  const float* start;    // [k], minus that, in float32: where a sweep's sums start
  int64_t k, width;
  bool offsets;  // is any of them not 0?
};

// A panel is panel_lanes() queries side by side, one per vector lane. All arrays of one
// panel stand in one run of floats, panel_floats() long.
struct Panel {
  float* row;        // [lanes, width]: normalised, pixel half weighted
  float* query;      // [width, lanes]: the same, side by side
  double* error;     // [lanes]: sweep_error of each query
  double* best;      // [lanes]: best score so far, within ± spread of the exact one
  double* spread;    // [lanes]: 0 where it is exact
  int64_t* index;    // [lanes]: its entry, −1 before the first
  float* threshold;  // [lanes]: best − spread − error; a float32 score below cannot win
  float* sure;       // [lanes]: best + spread + error; one above is certain to win
  int32_t* words;    // [quads, lanes]: as bytes, shifted to be unsigned
  float* unit;       // [lanes]: a score of 1 in units of the byte score
  double* slack;     // [lanes]: bound on the error of the byte score, in those units
  float* floor;      // [lanes]: a byte score that is not above it cannot win
};

TFX_DECLARE_SIMD(int64_t panel_lanes())
TFX_DECLARE_SIMD(bool has_bytes())

// Reads queries [first, first + count) into the panel; the lanes after them, and rows
// that are not finite, start unbeatable. `bytes` may be null.
TFX_DECLARE_SIMD(void load_panel(const Queries& queries, const PreparedBook& book,
                                 const ByteBook* bytes, int64_t first, int64_t count,
                                 const Panel& panel))

// Scores entries [first, last) in float32; what that cannot tell apart, exactly.
TFX_DECLARE_SIMD(void sweep_panel(const Entries& entries, const Panel& panel,
                                  int64_t first, int64_t last))

// Scores tiles [first, last) as bytes. Gives up, and returns the tile it would do next,
// once more than `budget` entries had to be looked at one by one; lowers the budget.
TFX_DECLARE_SIMD(int64_t sweep_panel_bytes(const Entries& entries,
                                           const ByteBook& bytes, const Panel& panel,
                                           int64_t first, int64_t last,
                                           int64_t& budget))

// The same for the first tiles of a book, which must be whole. `best` is room for
// first_floats(lanes) of each.
constexpr int64_t first_floats(int64_t lanes) { return 2 * lanes; }
TFX_DECLARE_SIMD(int64_t sweep_first_bytes(const Entries& entries,
                                           const ByteBook& bytes, const Panel& panel,
                                           int64_t first, int64_t last, float* best,
                                           int64_t& budget))

// Makes the best scores exact.
TFX_DECLARE_SIMD(void finish_panel(const Entries& entries, const Panel& panel))

}  // namespace tokenflow
