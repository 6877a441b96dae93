// Raw-pointer contract of lookup and its gradient, shared by CPU and CUDA, and the two
// element bodies both run. Meaning: the reference in tokenflow_ext/ops/lookup.py.
#pragma once

#include <cstdint>

#include "common/isa.h"
#include "common/numerics.h"
#include "common/parallel.h"

namespace tokenflow {

struct Books {
  const float* semantic;  // [k, semantic_width]
  const float* pixel;     // [k, pixel_width]
  int64_t k;
  int64_t semantic_width;
  int64_t pixel_width;
  bool normalize;
};

// rows: [n, semantic_width + pixel_width].
void lookup_cpu(const int64_t* indices, int64_t n, const Books& books, float* rows,
                const Parallel& parallel);
void lookup_cuda(const int64_t* indices, int64_t n, const Books& books, float* rows,
                 int device, void* stream);

// grad: [n, semantic_width + pixel_width]; the outputs have the shapes of the books and
// every element is written. sums: [k, width] zeros, used: [k] zeros.
void lookup_backward_cpu(const float* grad, const int64_t* indices, int64_t n,
                         const Books& books, float* semantic_grad, float* pixel_grad,
                         const Parallel& parallel);
void lookup_backward_cuda(const float* grad, const int64_t* indices, int64_t n,
                          const Books& books, float* semantic_grad, float* pixel_grad,
                          double* sums, uint8_t* used, int device, void* stream);

// --- the CPU's loops, once per instruction set (lookup_exact_simd.cpp) ---

// The gradient of all entries. The rows that name an entry are a list: its head, then
// next[row] after row until −1.
struct Gradient {
  const float* grad;
  Books books;
  const int64_t* next;  // [n]
  float *semantic_grad, *pixel_grad;
};

// lookup of a few rows by one thread. zeros: as many as the wider half.
TFX_DECLARE_SIMD(void lookup_rows(const int64_t* indices, int64_t n, const Books& books,
                                  const float* zeros, float* rows))
// Entries [first, last), with the heads of theirs; scratch: kGradBlock times both
// widths, each rounded up to eight, aligned for any vector.
constexpr int kGradBlock = 32;
TFX_DECLARE_SIMD(void lookup_grads(const Gradient& op, const int64_t* heads,
                                   int64_t first, int64_t last, double* scratch))

// --- element bodies ---

// One half of one entry.
struct HalfRow {
  const float* x;
  int64_t width;
};

TFX_HD HalfRow half_row(const Books& books, int64_t entry, bool pixel) {
  return pixel ? HalfRow{books.pixel + entry * books.pixel_width, books.pixel_width}
               : HalfRow{books.semantic + entry * books.semantic_width,
                         books.semantic_width};
}

// What the half is divided by; 1 divides exactly.
TFX_HD double divisor(HalfRow half, bool normalize) {
  return normalize ? row_norm(sum_of_squares(half.x, half.width)) : 1.0;
}

// The gradient of y = x / max(‖x‖, 1e-12), given that of y, is (g − along · x) / norm.
struct Scaling {
  double norm;
  double along;  // (x·g) / ‖x‖²; 0 where the divisor is a constant
};

TFX_HD Scaling scaling_of(HalfRow half, const double* grad, bool normalize) {
  if (!normalize) return {1.0, 0.0};
  const double squares = sum_of_squares(half.x, half.width);
  if (sqrt(squares) < 1e-12) return {1e-12, 0.0};
  double dot = 0.0;
  for (int64_t d = 0; d < half.width; ++d)
    dot += static_cast<double>(half.x[d]) * grad[d];
  return {sqrt(squares), dot / squares};
}

TFX_HD float scaled_grad(Scaling scaling, float x, double grad) {
  return static_cast<float>((grad - scaling.along * static_cast<double>(x)) /
                            scaling.norm);
}

}  // namespace tokenflow
