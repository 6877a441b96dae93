// Raw-pointer contract of quantize and prepare, shared by CPU and CUDA. Meaning: the
// references in tokenflow_ext/ops/quantize.py.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/parallel.h"

namespace tokenflow {

// Entries ready to be searched, made by prepare from one or two books.
struct PreparedBook {
  const float* rows;      // [k, semantic_width + pixel_width]: [semantic, pixel]
  const double* squares;  // [k, 2]: squared norms of the halves, 0 where normalised;
                          // +inf in the first for an entry that is not finite
  const double* limits;   // [3]: largest squared row norm, largest of either square
  int64_t k;
  int64_t semantic_width;
  int64_t pixel_width;  // 0: one book
};

struct Queries {
  const float* semantic;  // [n, semantic_width]
  const float* pixel;     // [n, pixel_width]
  int64_t n;
  float pixel_weight;
  bool normalize;
};

void prepare_cpu(const float* semantic_book, const float* pixel_book, int64_t k,
                 int64_t semantic_width, int64_t pixel_width, bool normalize,
                 float* rows, double* squares, double* limits,
                 const Parallel& parallel);

void quantize_cpu(const Queries& queries, const PreparedBook& book, int64_t* indices,
                  const Parallel& parallel);

void prepare_cuda(const float* semantic_book, const float* pixel_book, int64_t k,
                  int64_t semantic_width, int64_t pixel_width, bool normalize,
                  float* rows, double* squares, double* limits, int device,
                  void* stream);

// Bytes of device memory that quantize_cuda needs beside its arguments: O(n + k).
int64_t quantize_cuda_workspace(int64_t n, int64_t k, int64_t width, int device);

void quantize_cuda(const Queries& queries, const PreparedBook& book, int64_t* indices,
                   void* workspace, int device, void* stream);

// --- the CPU sweep, once per instruction set (quantize_simd.cpp) ---

// A panel is panel_lanes() queries side by side, one per vector lane.
struct Panel {
  const float* query;   // [width, lanes]: normalised, pixel half weighted
  const double* error;  // [lanes]: sweep_error of each query
  double* best;         // [lanes]: best exact score so far
  int64_t* index;       // [lanes]: its entry
  float* threshold;     // [lanes]: best − error; a sweep score below cannot win
};

struct Entries {
  const float* rows;       // [k, width]
  const float* offset;     // [k], float32, what the sweep subtracts
  const double* offset64;  // [k], what the exact score subtracts
  int64_t width;
};

TFX_DECLARE_SIMD(int64_t panel_lanes())
TFX_DECLARE_SIMD(void sweep_panel(const Entries& entries, const Panel& panel,
                                  int64_t first, int64_t last))

}  // namespace tokenflow
