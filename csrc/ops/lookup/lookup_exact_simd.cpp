/*
lookup and its gradient, the CPU's loops, compiled once per instruction set.

lookup     Tiles of 32 rows. First the norms of both halves, one row per lane: squares
           of a transposed square of values, added one feature after another as the
           definition says. Then row after row is divided and written. An index outside
           reads a row of zeros. While a tile is worked on, the rows of the next are
           fetched.
Gradient   Blocks of entries. The rows that name an entry are added in float64, in
           order; the sum goes through the scaling, whose roots and quotients are made
           for the whole block at once.
Traffic    lookup reads n indices and n rows once and writes n rows. The gradient reads
           n rows and the entries that are named, and writes every entry.
Numerics   Sums of exact products in float64; in lookup in order, and quotient() gives
           the float32 of a true division; in the gradient in eight lanes on every
           instruction set. So all of them give the same bits.
*/
#include <algorithm>
#include <cmath>

#include "common/numerics.h"
#include "common/simd_rows.h"
#include "ops/lookup/lookup.h"

namespace tokenflow::TFX_ISA {
namespace {

using simd::for_vectors;
using simd::kDoubles;
using simd::kTile;
using simd::VecD;

inline void fetch(const float* row, int64_t width) {
  for (int64_t d = 0; d < width; d += 16) __builtin_prefetch(row + d);
}

// kSemantic, kPixel: vectors of a half; 0 where that is not known here.
template <int kSemantic, int kPixel>
void write_rows(const int64_t* indices, int64_t n, const Books& books,
                const float* zeros, float* rows) {
  const int64_t ds = kSemantic ? kSemantic * kDoubles : books.semantic_width;
  const int64_t dp = kPixel ? kPixel * kDoubles : books.pixel_width;
  simd::RowTile semantic, pixel;
  for (int64_t first = 0; first < n; first += kTile) {
    for (int64_t i = first + kTile; i < std::min(n, first + 2 * kTile); ++i)
      if (is_inside(indices[i], books.k)) {
        fetch(books.semantic + indices[i] * ds, ds);
        fetch(books.pixel + indices[i] * dp, dp);
      }
    const int count = static_cast<int>(std::min<int64_t>(kTile, n - first));
    for (int row = 0; row < kTile; ++row) {
      const int64_t entry = row < count ? indices[first + row] : -1;
      const bool inside = is_inside(entry, books.k);
      semantic.rows[row] = inside ? books.semantic + entry * ds : zeros;
      pixel.rows[row] = inside ? books.pixel + entry * dp : zeros;
    }
    float* out = rows + first * (ds + dp);
    if (!books.normalize) {
      for (int row = 0; row < count; ++row, out += ds + dp) {
        std::memcpy(out, semantic.rows[row], ds * sizeof(float));
        std::memcpy(out + ds, pixel.rows[row], dp * sizeof(float));
      }
    } else if (simd::measure<kSemantic>(semantic, ds) &
               simd::measure<kPixel>(pixel, dp)) {
      for (int row = 0; row < count; ++row, out += ds + dp) {
        simd::divide_row<kSemantic>(semantic, row, ds, out);
        simd::divide_row<kPixel>(pixel, row, dp, out + ds);
      }
    } else {
      for (int row = 0; row < count; ++row, out += ds + dp) {
        for (int64_t d = 0; d < ds; ++d)
          out[d] = normalized(semantic.rows[row][d], semantic.norm[row]);
        for (int64_t d = 0; d < dp; ++d)
          out[ds + d] = normalized(pixel.rows[row][d], pixel.norm[row]);
      }
    }
  }
}

// --- the gradient ---

template <int kVectors>
inline void add_rows(const Gradient& op, int64_t row, int64_t column, int64_t width,
                     VecD* sum) {
  const int64_t stride = op.books.semantic_width + op.books.pixel_width;
  const float* grad = op.grad + column;
  for_vectors<kVectors>(width, [&](int64_t d, int64_t left) {
    sum[d / kDoubles] = simd::load_part_as_double(grad + row * stride + d, left);
  });
  while ((row = op.next[row]) >= 0)
    for_vectors<kVectors>(width, [&](int64_t d, int64_t left) {
      sum[d / kDoubles] += simd::load_part_as_double(grad + row * stride + d, left);
    });
}

// Σ x², Σ x·sum over one half.
template <int kVectors>
inline void add_products(const float* x, const VecD* sum, int64_t width,
                         double* squares, double* dot) {
  VecD square[simd::kEighths] = {}, product[simd::kEighths] = {};
  for_vectors<kVectors>(width, [&](int64_t d, int64_t left) {
    const int part = d / kDoubles % simd::kEighths;
    const VecD v = simd::load_part_as_double(x + d, left);
    square[part] += v * v;
    product[part] += v * sum[d / kDoubles];
  });
  *squares = simd::sum_of_lanes(square);
  *dot = simd::sum_of_lanes(product);
}

// out = (sum − along · x) · inverse
template <int kVectors>
inline void write_grad(const float* x, const VecD* sum, int64_t width, bool normalize,
                       double along, double inverse, float* out) {
  const VecD a = simd::broadcast(along), by = simd::broadcast(inverse);
  for_vectors<kVectors>(width, [&](int64_t d, int64_t left) {
    VecD value = sum[d / kDoubles];
    if (normalize) value = (value - a * simd::load_part_as_double(x + d, left)) * by;
    simd::store_part_as_float(out + d, value, left);
  });
}

// Turns squares and dot into inverse and along: all entries of a block at once, because
// roots and quotients one by one would be waited for.
inline void scale(double* squares, double* dot, int count) {
  const VecD least = simd::broadcast(1e-12), one = simd::broadcast(1.0);
  for (int i = 0; i < count; i += kDoubles) {
    const VecD norm = simd::square_root(simd::load(squares + i));
    const auto is_short = norm < least;  // the divisor is a constant
    const VecD inverse = one / (is_short ? least : norm);
    simd::store(squares + i, inverse);
    const VecD along = simd::load(dot + i) * inverse * inverse;
    simd::store(dot + i, is_short ? VecD{} : along);
  }
}

// The entries of a block that are named by some row, and what is known of them.
struct Used {
  int64_t entry[kGradBlock], head[kGradBlock];
  double squares[2][kGradBlock], dot[2][kGradBlock];  // of either half
};

template <int kSemantic, int kPixel>
void write_grads(const Gradient& op, const int64_t* heads, int64_t first, int64_t last,
                 double* scratch) {
  const Books& books = op.books;
  const int64_t ds = kSemantic ? kSemantic * kDoubles : books.semantic_width;
  const int64_t dp = kPixel ? kPixel * kDoubles : books.pixel_width;
  const int64_t pixel_at = (ds + kDoubles - 1) / kDoubles;
  const int64_t stride = pixel_at + (dp + kDoubles - 1) / kDoubles;
  VecD* const sums = reinterpret_cast<VecD*>(scratch);
  Used used = {};
  for (int64_t begin = first; begin < last; begin += kGradBlock) {
    const int64_t end = std::min(last, begin + kGradBlock);
    std::memset(op.semantic_grad + begin * ds, 0, (end - begin) * ds * sizeof(float));
    std::memset(op.pixel_grad + begin * dp, 0, (end - begin) * dp * sizeof(float));
    int count = 0;
    for (int64_t entry = begin; entry < end; ++entry) {  // no branch to mispredict
      used.entry[count] = entry;
      used.head[count] = heads[entry - first];
      count += heads[entry - first] >= 0;
    }
    for (int u = 0; u < count; ++u) fetch(op.grad + used.head[u] * (ds + dp), ds + dp);
    for (int u = 0; u < count; ++u) {
      VecD* const sum = sums + u * stride;
      add_rows<kSemantic>(op, used.head[u], 0, ds, sum);
      add_rows<kPixel>(op, used.head[u], ds, dp, sum + pixel_at);
      if (!books.normalize) continue;
      add_products<kSemantic>(books.semantic + used.entry[u] * ds, sum, ds,
                              used.squares[0] + u, used.dot[0] + u);
      add_products<kPixel>(books.pixel + used.entry[u] * dp, sum + pixel_at, dp,
                           used.squares[1] + u, used.dot[1] + u);
    }
    for (int half = 0; half < 2; ++half)
      scale(used.squares[half], used.dot[half], count);
    for (int u = 0; u < count; ++u) {
      const int64_t entry = used.entry[u];
      const VecD* const sum = sums + u * stride;
      write_grad<kSemantic>(books.semantic + entry * ds, sum, ds, books.normalize,
                            used.dot[0][u], used.squares[0][u],
                            op.semantic_grad + entry * ds);
      write_grad<kPixel>(books.pixel + entry * dp, sum + pixel_at, dp, books.normalize,
                         used.dot[1][u], used.squares[1][u],
                         op.pixel_grad + entry * dp);
    }
  }
}

}  // namespace

void lookup_rows(const int64_t* indices, int64_t n, const Books& books,
                 const float* zeros, float* rows) {
  if (simd::is_published(books.semantic_width, books.pixel_width))
    write_rows<32 / kDoubles, 8 / kDoubles>(indices, n, books, zeros, rows);
  else
    write_rows<0, 0>(indices, n, books, zeros, rows);
}

void lookup_grads(const Gradient& op, const int64_t* heads, int64_t first, int64_t last,
                  double* scratch) {
  if (simd::is_published(op.books.semantic_width, op.books.pixel_width))
    write_grads<32 / kDoubles, 8 / kDoubles>(op, heads, first, last, scratch);
  else
    write_grads<0, 0>(op, heads, first, last, scratch);
}

}  // namespace tokenflow::TFX_ISA
