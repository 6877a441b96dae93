// Raw-pointer contract of quantize, prepare and pack, shared by CPU and CUDA. Meaning:
// the references in tokenflow_ext/ops/quantize.py.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/parallel.h"

namespace tokenflow {

// Entries ready to be searched, made by prepare (and pack) from one or two books.
struct PreparedBook {
  const float* rows;      // [k, semantic_width + pixel_width]: [semantic, pixel]
  const double* squares;  // [k, 2]: squared norms of the halves, 0 where normalised;
                          // +inf in the first for an entry that is not finite
  const double*
      limits;  // [3]: bound on the squared row norms, largest of either square
  int64_t k;
  int64_t semantic_width;
  int64_t pixel_width;   // 0: one book
  const void* packed;    // what pack made of the rows for this device
  int64_t packed_bytes;  // 0: nothing, the plain sweep serves
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

// Bytes that pack_cpu writes; tokenflow_ext/ops/prepare.py knows the same number.
int64_t pack_cpu_bytes(int64_t k, int64_t width);
void pack_cpu(const float* rows, int64_t k, int64_t semantic_width, int64_t pixel_width,
              void* packed, const Parallel& parallel);

void quantize_cpu(const Queries& queries, const PreparedBook& book, int64_t* indices,
                  const Parallel& parallel);

void prepare_cuda(const float* semantic_book, const float* pixel_book, int64_t k,
                  int64_t semantic_width, int64_t pixel_width, bool normalize,
                  float* rows, double* squares, double* limits, int device,
                  void* stream);

// Bytes that pack_cuda writes, 0 where such a book is not packed;
// tokenflow_ext/ops/prepare.py knows the same number.
int64_t pack_cuda_bytes(int64_t k, int64_t width);
void pack_cuda(const float* rows, int64_t k, int64_t width, void* packed, int device,
               void* stream);

// Bytes of device memory that quantize_cuda needs beside its arguments: O(n + k). Of
// the queries only their number and `normalize` count.
int64_t quantize_cuda_workspace(const Queries& queries, const PreparedBook& book,
                                int device);

void quantize_cuda(const Queries& queries, const PreparedBook& book, int64_t* indices,
                   void* workspace, int device, void* stream);

}  // namespace tokenflow
