/*
lookup and its gradient, CPU: everything around the loops of lookup_exact_simd.cpp.

Work       lookup: threads take rows. Gradient: threads take entries. Each lists the
rows of its own entries, in order, and adds what the lists name. So the order of
           additions, and the result, do not depend on the number of threads.
Memory     lookup: a row of zeros. Gradient: n + k list items, and n per thread.
*/
#include <algorithm>
#include <memory>
#include <vector>

#include "common/scratch.h"
#include "ops/lookup/lookup.h"

namespace tokenflow {
namespace {

constexpr int64_t kGrain = 1024;  // rows or entries that are worth waking a thread for

// Lists the rows that name the entries [first, last). Only `next` of those is written.
std::vector<int64_t> list_rows(const int64_t* indices, int64_t n, int64_t first,
                               int64_t last, int64_t* next) {
  const std::unique_ptr<int64_t[]> own(new int64_t[n + 1]);
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) {  // no branch: nobody could predict it
    own[count] = i;
    count += (indices[i] >= first) & (indices[i] < last);
  }
  std::vector<int64_t> heads(last - first, -1);
  while (count-- > 0) {  // from the back, so that a list begins with its first row
    const int64_t i = own[count];
    next[i] = heads[indices[i] - first];
    heads[indices[i] - first] = i;
  }
  return heads;
}

}  // namespace

void lookup_cpu(const int64_t* indices, int64_t n, const Books& books, float* rows,
                const Parallel& parallel) {
  const int64_t width = books.semantic_width + books.pixel_width;
  const std::vector<float> zeros(width, 0.0f);
  parallel.run(n, kGrain, [&](int64_t begin, int64_t end) {
    TFX_CALL_SIMD(lookup_rows, indices + begin, end - begin, books, zeros.data(),
                  rows + begin * width);
  });
}

void lookup_backward_cpu(const float* grad, const int64_t* indices, int64_t n,
                         const Books& books, float* semantic_grad, float* pixel_grad,
                         const Parallel& parallel) {
  const std::unique_ptr<int64_t[]> next(new int64_t[n + 1]);
  const Gradient op{grad, books, next.get(), semantic_grad, pixel_grad};
  parallel.run(books.k, kGrain, [&](int64_t begin, int64_t end) {
    const std::vector<int64_t> heads = list_rows(indices, n, begin, end, next.get());
    const Scratch scratch(2 * kGradBlock *
                          (books.semantic_width + books.pixel_width + 16));
    TFX_CALL_SIMD(lookup_grads, op, heads.data(), begin, end,
                  reinterpret_cast<double*>(scratch.get()));
  });
}

}  // namespace tokenflow
