// Raw-pointer contract of code_histogram. Meaning: the reference in
// tokenflow_ext/ops/code_histogram.py.
#pragma once

#include <cstdint>

#include "common/parallel.h"

namespace tokenflow {

// counts: [num_codes], every element is written.
void code_histogram_cpu(const int64_t* indices, int64_t n, int64_t num_codes,
                        int64_t* counts, const Parallel& parallel);

void code_histogram_cuda(const int64_t* indices, int64_t n, int64_t num_codes,
                         int64_t* counts, int device, void* stream);

}  // namespace tokenflow
