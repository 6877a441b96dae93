// Tiles of rows brought to unit length: sums of squares with one row per lane, squares
// of a transposed square of values added one feature after another as the definition
// says, then row after row divided. For files compiled once per instruction set and
// with -ffp-contract=off, as simd_double.h.
#pragma once

#include "common/simd_double.h"

namespace tokenflow::TFX_ISA {
namespace {
namespace simd {

constexpr int kTile = 32;  // rows
constexpr int kGroups = kTile / kDoubles;

struct RowTile {
  const float* rows[kTile];
  double squares[kTile], norm[kTile], inverse[kTile];
};

// The widths of the published books, for which loops are written out.
inline bool is_published(int64_t semantic_width, int64_t pixel_width) {
  return semantic_width == 32 && pixel_width == 8;
}

// Steps over a row: known to the compiler where all vectors are whole and few.
template <int kVectors, class Body>
inline void for_vectors(int64_t width, const Body& body) {
  if constexpr (kVectors > 0) {
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) body(v * kDoubles, kDoubles);
  } else {
    for (int64_t d = 0; d < width; d += kDoubles) body(d, width - d);
  }
}

// Writes squares.
template <int kVectors>
inline void add_squares(RowTile& tile, int64_t width) {
  VecD sum[kGroups] = {};
  for_vectors<kVectors>(width, [&](int64_t d, int64_t left) {
#pragma GCC unroll 16
    for (int g = 0; g < kGroups; ++g) {
      VecD v[kDoubles];
#pragma GCC unroll 8
      for (int lane = 0; lane < kDoubles; ++lane)
        v[lane] = load_part_as_double(tile.rows[g * kDoubles + lane] + d, left);
      transpose(v);
#pragma GCC unroll 8
      for (int j = 0; j < kDoubles; ++j) sum[g] = multiply_add(v[j], v[j], sum[g]);
    }
  });
  for (int g = 0; g < kGroups; ++g) store(tile.squares + g * kDoubles, sum[g]);
}

// Writes squares, norm and inverse; is every norm finite?
template <int kVectors>
inline bool measure(RowTile& tile, int64_t width) {
  add_squares<kVectors>(tile, width);
  const VecD least = broadcast(1e-12);
  VecD spread{};  // 0, or NaN where a norm is not finite
#pragma GCC unroll 16
  for (int g = 0; g < kGroups; ++g) {
    VecD norm = square_root(load(tile.squares + g * kDoubles));
    norm = norm < least ? least : norm;
    spread += norm - norm;
    store(tile.norm + g * kDoubles, norm);
    store(tile.inverse + g * kDoubles, 1.0 / norm);
  }
  bool finite = true;
  for (int lane = 0; lane < kDoubles; ++lane) finite = finite && spread[lane] == 0.0;
  return finite;
}

// Writes one measured row at unit length; its norm must be finite.
template <int kVectors>
inline void divide_row(const RowTile& tile, int row, int64_t width, float* out) {
  const VecD norm = broadcast(tile.norm[row]);
  const VecD inverse = broadcast(tile.inverse[row]);
  for_vectors<kVectors>(width, [&](int64_t d, int64_t left) {
    const VecD x = load_part_as_double(tile.rows[row] + d, left);
    store_part_as_float(out + d, quotient(x, norm, inverse), left);
  });
}

}  // namespace simd
}  // namespace
}  // namespace tokenflow::TFX_ISA
