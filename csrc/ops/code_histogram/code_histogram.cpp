// Torch glue of code_histogram. Meaning, checks for users, fallback and fake kernel:
// tokenflow_ext/ops/code_histogram.py.
#include "ops/code_histogram/code_histogram.h"

#include "common/cuda_stream.h"
#include "common/glue.h"

namespace tokenflow {
namespace {

Tensor counts_for(const Tensor& indices, int64_t num_codes) {
  STD_TORCH_CHECK(indices.scalar_type() == ScalarType::Long && num_codes >= 1,
                  "code_histogram: indices must be int64, num_codes at least 1");
  return new_like(indices, {num_codes}, ScalarType::Long);
}

Tensor code_histogram_on_cpu(const Tensor& indices, int64_t num_codes) {
  const Tensor in = as_contiguous(indices);
  Tensor counts = counts_for(in, num_codes);
  code_histogram_cpu(in.const_data_ptr<int64_t>(), in.numel(), num_codes,
                     counts.mutable_data_ptr<int64_t>(), torch_parallel());
  return counts;
}

#ifdef TOKENFLOW_WITH_CUDA
Tensor code_histogram_on_cuda(const Tensor& indices, int64_t num_codes) {
  const Tensor in = as_contiguous(indices);
  Tensor counts = counts_for(in, num_codes);
  const int device = in.get_device_index();
  code_histogram_cuda(in.const_data_ptr<int64_t>(), in.numel(), num_codes,
                      counts.mutable_data_ptr<int64_t>(), device,
                      current_cuda_stream(device));
  return counts;
}
#endif

STABLE_TORCH_LIBRARY_IMPL(tokenflow_ext, CPU, m) {
  m.impl("code_histogram", TORCH_BOX(&code_histogram_on_cpu));
}

#ifdef TOKENFLOW_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(tokenflow_ext, CUDA, m) {
  m.impl("code_histogram", TORCH_BOX(&code_histogram_on_cuda));
}
#endif

}  // namespace
}  // namespace tokenflow
