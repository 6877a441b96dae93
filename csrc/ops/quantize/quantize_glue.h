// Prepared books on their way to a kernel: for every op that searches.
#pragma once

#include "common/glue.h"
#include "ops/quantize/quantize.h"

namespace tokenflow {

struct PreparedTensors {
  Tensor rows, squares, limits, packed;
  PreparedBook raw;
};

inline PreparedTensors prepared_of(const char* op, const Tensor& rows,
                                   const Tensor& squares, const Tensor& limits,
                                   const Tensor& packed, int64_t semantic_width) {
  check_device(op, rows, squares, limits, packed);
  STD_TORCH_CHECK(rows.dim() == 2 && squares.numel() == 2 * rows.size(0) &&
                      limits.numel() == 3 && rows.scalar_type() == ScalarType::Float &&
                      squares.scalar_type() == ScalarType::Double &&
                      limits.scalar_type() == ScalarType::Double &&
                      packed.scalar_type() == ScalarType::Byte && semantic_width >= 0 &&
                      semantic_width <= rows.size(1),
                  op, ": prepared books have another shape or dtype");
  int64_t bytes = pack_cpu_bytes(rows.size(0), rows.size(1));
#ifdef TOKENFLOW_WITH_CUDA
  if (packed.is_cuda()) bytes = pack_cuda_bytes(rows.size(0), rows.size(1));
#endif
  STD_TORCH_CHECK(packed.numel() == 0 || packed.numel() == bytes, op,
                  ": prepared books were packed for others");
  PreparedTensors p{as_contiguous(rows),
                    as_contiguous(squares),
                    as_contiguous(limits),
                    as_contiguous(packed),
                    {}};
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(p.packed.const_data_ptr()) % 16 == 0, op,
                  ": prepared books must keep their alignment");
  p.raw = {p.rows.const_data_ptr<float>(),
           p.squares.const_data_ptr<double>(),
           p.limits.const_data_ptr<double>(),
           rows.size(0),
           semantic_width,
           rows.size(1) - semantic_width,
           p.packed.const_data_ptr(),
           p.packed.numel()};
  return p;
}

}  // namespace tokenflow
