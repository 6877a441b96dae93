// What the kernels of the CUDA search share: the workspace, the packed book, the order
// of scores. The story is in quantize_cuda.cu.
#pragma once

#include <algorithm>

#include "common/cuda_device.cuh"
#include "common/half_bound.h"
#include "ops/quantize/quantize.h"

namespace tokenflow {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// --- order of scores as order of integers, both zeros alike; never 0 for a number ---

__device__ unsigned long long ordered(double x) {
  const long long bits = __double_as_longlong(x + 0.0);
  return bits < 0 ? ~static_cast<unsigned long long>(bits)
                  : static_cast<unsigned long long>(bits) | 0x8000000000000000ull;
}
__device__ double unordered(unsigned long long key) {
  return __longlong_as_double(static_cast<long long>(
      key & 0x8000000000000000ull ? key & 0x7fffffffffffffffull : ~key));
}
__device__ unsigned ordered(float x) {
  const int bits = __float_as_int(x + 0.0f);
  return bits < 0 ? ~static_cast<unsigned>(bits)
                  : static_cast<unsigned>(bits) | 0x80000000u;
}
__device__ float unordered(unsigned key) {
  return __int_as_float(static_cast<int>(key & 0x80000000u ? key & 0x7fffffffu : ~key));
}

// --- the packed book: what tensor cores sweep ---

// Entries in slabs of 256, a slab as [chunk of 8 features][256 entries][8 features] of
// halves: 8 rows × 16 bytes lie together, as wgmma and ldmatrix read them, and a slab
// is one copy. Rows are scaled by 2^half_exponent of the largest norm; those after the
// last are zeros.
constexpr int kSlab = 256;
constexpr int64_t kHeaderBytes = 256;  // of which 16 are used
constexpr int64_t kMaxPackedWidth = 128;

struct PackedBook {
  double* norm;      // largest squared norm of a row
  double* residual;  // the same of what rounding took
  Half* slabs;
  int chunks;
};

TFX_HD int64_t slabs_of(int64_t k) { return (k + kSlab - 1) / kSlab; }
TFX_HD int chunks_of(int64_t width) { return static_cast<int>((width + 7) / 8); }

inline PackedBook packed_book(const void* packed, int64_t width) {
  char* bytes = static_cast<char*>(const_cast<void*>(packed));
  return {reinterpret_cast<double*>(bytes), reinterpret_cast<double*>(bytes) + 1,
          reinterpret_cast<Half*>(bytes + kHeaderBytes), chunks_of(width)};
}

// --- the workspace of one call ---

// What a sweep by tensor cores knows about a query.
struct RowBound {
  float slack;  // a score that far below the best cannot win; or a RowKind
  float scale;  // of offsets: 2^(query exponent − book exponent)
};
// Negative slacks; NaN is a row that must be swept in full.
constexpr float kNotFinite = -1.0f;
constexpr float kZeros = -2.0f;  // normalised: the first finite entry wins

struct Candidate {
  unsigned entry;
  float score;
};

struct Search {
  Queries queries;
  PreparedBook book;
  int64_t width;

  float* query;   // [n, width], normalised, pixel half weighted
  double* error;  // [n], of a float32 sweep; −1 marks a query that is not finite

  // sweep by tensor cores; none of it where the book is not packed
  PackedBook packed;
  int steps;             // products of 16 features a score is made of
  int parts;             // pieces of the book, swept by blocks of their own
  int stages;            // of the ring through which the book passes
  int capacity;          // candidates kept a query
  Half* half;            // [n, 16 · steps], scaled
  RowBound* bound;       // [n]
  float* offsets;        // [slabs · 256], scaled by 2^(2 · book exponent)
  unsigned* best;        // [n], ordered; 0: nothing found
  unsigned* found;       // [n], candidates met; more than capacity: some are lost
  Candidate* candidate;  // [n, capacity]
  int64_t* again;        // queries left to the plain sweep
  unsigned long long* again_count;

  // plain sweep
  int blocks;         // of a launch that takes what queries there are
  unsigned* arrived;  // [panels], parts that are done
  double* part_best;  // [units, 64]
  int64_t* part_index;

  int64_t bytes;
};

}  // namespace
}  // namespace tokenflow
