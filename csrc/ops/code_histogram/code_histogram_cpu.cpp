/*
code_histogram, CPU. Meaning: the reference in tokenflow_ext/ops/code_histogram.py.

Work       Each part of the indices is counted into a histogram of its own; the parts
           are added. There are only so many parts that the adding is the lesser work.
Memory     parts · num_codes counts, at most n / 4 beside one histogram.
*/
#include <algorithm>
#include <vector>

#include "common/numerics.h"
#include "ops/code_histogram/code_histogram.h"

namespace tokenflow {
namespace {

void count(const int64_t* indices, int64_t n, int64_t num_codes, int64_t* counts) {
  for (int64_t i = 0; i < n; ++i)
    if (is_inside(indices[i], num_codes)) ++counts[indices[i]];
}

}  // namespace

void code_histogram_cpu(const int64_t* indices, int64_t n, int64_t num_codes,
                        int64_t* counts, const Parallel& parallel) {
  std::fill(counts, counts + num_codes, 0);
  const int64_t parts =
      std::clamp<int64_t>(n / (4 * num_codes), 1, std::max(parallel.threads, 1));
  if (parts == 1) return count(indices, n, num_codes, counts);
  std::vector<int64_t> partial(parts * num_codes, 0);
  parallel.run(parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = n * part / parts, last = n * (part + 1) / parts;
      count(indices + first, last - first, num_codes,
            partial.data() + part * num_codes);
    }
  });
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t k = 0; k < num_codes; ++k) counts[k] += partial[part * num_codes + k];
}

}  // namespace tokenflow
