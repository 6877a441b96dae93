// Torch glue shared by every <op>.cpp: stable-ABI tensors in, raw pointers out.
// Python owns the messages users see; the checks here guard memory only.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/macros/Macros.h>

#include "common/huge_pages.h"
#include "common/parallel.h"

namespace tokenflow {

using Tensor = torch::stable::Tensor;
using torch::headeronly::ScalarType;

// torch's own thread pool as the loop that kernels take.
inline Parallel torch_parallel() {
  Parallel parallel;
  parallel.threads = static_cast<int>(torch::stable::get_num_threads());
  parallel.run = [](int64_t n, int64_t grain,
                    const std::function<void(int64_t, int64_t)>& body) {
    if (n > 0) torch::stable::parallel_for(0, n, grain, body);
  };
  return parallel;
}

// A kernel follows the device of one tensor, so the others must live there too.
template <class... Others>
void check_device(const char* op, const Tensor& first, const Others&... others) {
  const bool same = ((others.is_cuda() == first.is_cuda() &&
                      others.get_device_index() == first.get_device_index()) &&
                     ...);
  STD_TORCH_CHECK(same, op, ": all tensors must be on one device");
}

// Asked here, because asking the dispatcher takes as long as a small lookup.
inline Tensor as_contiguous(const Tensor& t) {
  return t.is_contiguous() ? t : torch::stable::contiguous(t);
}

inline Tensor as_float32(const Tensor& t) {
  return as_contiguous(t.scalar_type() == ScalarType::Float
                           ? t
                           : torch::stable::to(t, ScalarType::Float));
}

// A tensor that was just made and holds nothing yet, on large pages where it is large.
inline Tensor on_huge_pages(Tensor fresh) {
  if (fresh.is_cpu())
    advise_huge(fresh.mutable_data_ptr(), fresh.numel() * fresh.element_size());
  return fresh;
}

inline Tensor new_like(const Tensor& like, std::vector<int64_t> sizes,
                       ScalarType dtype) {
  return on_huge_pages(torch::stable::new_empty(like, sizes, dtype));
}

}  // namespace tokenflow
