/*
prepare, CPU: rows and squares of entries. Compiled once per instruction set; meaning:
prepare_steps.h.

Algorithm  Tiles of 32 entries, measured with one entry per lane and divided one after
           the other (simd_rows.h). A tile with an entry that is not finite is done
           entry by entry.
Numerics   Sums of exact products in float64, in order, and the float32 of a true
           division: the same bits on every instruction set.
*/
#include <algorithm>
#include <limits>

#include "common/numerics.h"
#include "common/simd_rows.h"
#include "ops/quantize/prepare_steps.h"

namespace tokenflow::TFX_ISA {
namespace {

using simd::kDoubles;
using simd::kTile;

// One entry, whatever it holds.
EntrySquares write_entry(const GivenBooks& books, int64_t entry, float* row,
                         double* squares) {
  const int64_t ds = books.semantic_width, dp = books.pixel_width;
  const double s = write_half(books.semantic + entry * ds, ds, books.normalize, row);
  const double p =
      dp ? write_half(books.pixel + entry * dp, dp, books.normalize, row + ds) : 0.0;
  if (!is_finite(s) || !is_finite(p)) {  // such an entry never wins
    std::fill(row, row + ds + dp, 0.0f);
    squares[0] = std::numeric_limits<double>::infinity();
    squares[1] = 0.0;
    return {};
  }
  squares[0] = books.normalize ? 0.0 : s;
  squares[1] = books.normalize ? 0.0 : p;
  if (books.normalize) return {};
  return {sum_of_squares(row, ds + dp), s, p};
}

// kSemantic, kPixel: vectors of a half; 0 where that is not known here.
template <int kSemantic, int kPixel>
EntrySquares write_entries(const GivenBooks& books, int64_t first, int64_t last,
                           float* rows, double* squares) {
  const int64_t ds = kSemantic ? kSemantic * kDoubles : books.semantic_width;
  const int64_t dp = kPixel ? kPixel * kDoubles : books.pixel_width;
  simd::RowTile semantic, pixel, whole;
  EntrySquares largest;
  for (; first < last; first += kTile) {
    const int count = static_cast<int>(std::min<int64_t>(kTile, last - first));
    for (int i = 0; i < kTile; ++i) {
      const int64_t entry = first + std::min(i, count - 1);
      semantic.rows[i] = books.semantic + entry * ds;
      pixel.rows[i] = dp ? books.pixel + entry * dp : nullptr;
      whole.rows[i] = rows + entry * (ds + dp);
    }
    float* row = rows + first * (ds + dp);
    if (!(simd::measure<kSemantic>(semantic, ds) & simd::measure<kPixel>(pixel, dp))) {
      for (int i = 0; i < count; ++i, row += ds + dp)
        largest = larger(largest,
                         write_entry(books, first + i, row, squares + 2 * (first + i)));
      continue;
    }
    if (books.normalize) {
      for (int i = 0; i < count; ++i, row += ds + dp) {
        simd::divide_row<kSemantic>(semantic, i, ds, row);
        simd::divide_row<kPixel>(pixel, i, dp, row + ds);
      }
      std::fill_n(squares + 2 * first, 2 * count, 0.0);
      continue;
    }
    for (int i = 0; i < count; ++i, row += ds + dp) {
      std::copy_n(semantic.rows[i], ds, row);
      std::copy_n(pixel.rows[i], dp, row + ds);
    }
    simd::add_squares<kSemantic + kPixel>(whole, ds + dp);
    for (int i = 0; i < count; ++i) {
      const EntrySquares found{whole.squares[i], semantic.squares[i], pixel.squares[i]};
      squares[2 * (first + i)] = found.semantic;
      squares[2 * (first + i) + 1] = found.pixel;
      largest = larger(largest, found);
    }
  }
  return largest;
}

}  // namespace

EntrySquares prepare_rows(const GivenBooks& books, int64_t first, int64_t last,
                          float* rows, double* squares) {
  if (simd::is_published(books.semantic_width, books.pixel_width))
    return write_entries<32 / kDoubles, 8 / kDoubles>(books, first, last, rows,
                                                      squares);
  return write_entries<0, 0>(books, first, last, rows, squares);
}

}  // namespace tokenflow::TFX_ISA
