// What prepare_cpu.cpp and its loops (prepare_exact_simd.cpp, pack_simd.cpp), which are
// compiled once per instruction set, say to each other.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/isa.h"
#include "ops/quantize/byte_book.h"

namespace tokenflow {

struct GivenBooks {
  const float* semantic;  // [k, semantic_width]
  const float* pixel;     // [k, pixel_width]
  int64_t semantic_width, pixel_width;
  bool normalize;
};

// The largest squared norms of some entries: of a row, of either half.
struct EntrySquares {
  double row = 0.0, semantic = 0.0, pixel = 0.0;
};
static inline EntrySquares larger(const EntrySquares& a, const EntrySquares& b) {
  return {std::max(a.row, b.row), std::max(a.semantic, b.semantic),
          std::max(a.pixel, b.pixel)};
}

// Writes rows and squares of entries [first, last). What it returns is 0 where rows are
// normalised.
TFX_DECLARE_SIMD(EntrySquares prepare_rows(const GivenBooks& books, int64_t first,
                                           int64_t last, float* rows, double* squares))

// The largest elements of both halves, by their magnitude.
struct Largest {
  float semantic = 0.0f, pixel = 0.0f;
};
TFX_DECLARE_SIMD(Largest largest_elements(const float* rows, int64_t semantic_width,
                                          int64_t width, int64_t first, int64_t last))

// Writes words and biases of tiles [first, last); returns the norms of those entries,
// not smaller than they are.
TFX_DECLARE_SIMD(ByteNorms pack_tiles(const float* rows, int64_t k,
                                      int64_t semantic_width, int64_t width,
                                      const ByteBook& to, int64_t first, int64_t last))

}  // namespace tokenflow
