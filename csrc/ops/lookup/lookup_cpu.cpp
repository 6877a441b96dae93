/*
lookup and its gradient, CPU. Meaning: the reference in tokenflow_ext/ops/lookup.py.

Work       lookup: threads take rows. Gradient: a counting sort lists the rows of each
           entry, in order; threads take entries, add the rows in float64 and pass the
           sum through the scaling once. So the order of additions, and the result, do
           not depend on the number of threads.
Memory     O(n + k) for the lists, one row of float64 per thread.
*/
#include <algorithm>
#include <vector>

#include "ops/lookup/lookup.h"

namespace tokenflow {
namespace {

// The rows that name each entry: rows[first[k]] up to rows[first[k + 1]].
struct Lists {
  std::vector<int64_t> first, rows;

  Lists(const int64_t* indices, int64_t n, int64_t k) : first(k + 1, 0), rows(n) {
    for (int64_t i = 0; i < n; ++i)
      if (is_inside(indices[i], k)) ++first[indices[i] + 1];
    for (int64_t entry = 0; entry < k; ++entry) first[entry + 1] += first[entry];
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (int64_t i = 0; i < n; ++i)
      if (is_inside(indices[i], k)) rows[next[indices[i]]++] = i;
  }
};

void write_grad(HalfRow half, const double* sum, bool normalize, float* out) {
  const Scaling scaling = scaling_of(half, sum, normalize);
  for (int64_t d = 0; d < half.width; ++d)
    out[d] = scaled_grad(scaling, half.x[d], sum[d]);
}

}  // namespace

void lookup_cpu(const int64_t* indices, int64_t n, const Books& books, float* rows,
                const Parallel& parallel) {
  const int64_t width = books.semantic_width + books.pixel_width;
  parallel.run(n, 256, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* row = rows + i * width;
      if (is_inside(indices[i], books.k)) {
        const HalfRow semantic = half_row(books, indices[i], false);
        const HalfRow pixel = half_row(books, indices[i], true);
        write_half(semantic.x, semantic.width, books.normalize, row);
        write_half(pixel.x, pixel.width, books.normalize, row + semantic.width);
      } else {
        std::fill(row, row + width, 0.0f);
      }
    }
  });
}

void lookup_backward_cpu(const float* grad, const int64_t* indices, int64_t n,
                         const Books& books, float* semantic_grad, float* pixel_grad,
                         const Parallel& parallel) {
  const int64_t ds = books.semantic_width, dp = books.pixel_width, width = ds + dp;
  const Lists lists(indices, n, books.k);
  parallel.run(books.k, 256, [&](int64_t begin, int64_t end) {
    std::vector<double> sum(width);
    for (int64_t entry = begin; entry < end; ++entry) {
      float* semantic = semantic_grad + entry * ds;
      float* pixel = pixel_grad + entry * dp;
      if (lists.first[entry] == lists.first[entry + 1]) {
        std::fill(semantic, semantic + ds, 0.0f);
        std::fill(pixel, pixel + dp, 0.0f);
        continue;
      }
      std::fill(sum.begin(), sum.end(), 0.0);
      for (int64_t i = lists.first[entry]; i < lists.first[entry + 1]; ++i) {
        const float* g = grad + lists.rows[i] * width;
        for (int64_t d = 0; d < width; ++d) sum[d] += static_cast<double>(g[d]);
      }
      write_grad(half_row(books, entry, false), sum.data(), books.normalize, semantic);
      write_grad(half_row(books, entry, true), sum.data() + ds, books.normalize, pixel);
    }
  });
}

}  // namespace tokenflow
