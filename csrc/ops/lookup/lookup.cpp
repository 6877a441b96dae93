// Torch glue of lookup and its gradient. Meaning, checks for users, fallback, fake
// kernels and autograd: tokenflow_ext/ops/lookup.py.
#include "ops/lookup/lookup.h"

#include <tuple>

#include "common/cuda_stream.h"
#include "ops/lookup/lookup_glue.h"

namespace tokenflow {
namespace {

struct LookupInputs {
  Tensor indices;
  BookTensors books;
  Tensor rows;
  int64_t n;
};

LookupInputs lookup_inputs(const Tensor& indices, const Tensor& semantic_book,
                           const Tensor& pixel_book, bool normalize) {
  check_device("lookup", indices, semantic_book);
  LookupInputs in{indices_of(indices), books_of(semantic_book, pixel_book, normalize),
                  indices, 0};
  in.n = in.indices.numel();
  in.rows = new_like(in.books.semantic, {in.n, in.books.width()}, ScalarType::Float);
  return in;
}

Tensor lookup_on_cpu(const Tensor& indices, const Tensor& semantic_book,
                     const Tensor& pixel_book, bool normalize) {
  LookupInputs in = lookup_inputs(indices, semantic_book, pixel_book, normalize);
  lookup_cpu(in.indices.const_data_ptr<int64_t>(), in.n, in.books.raw,
             in.rows.mutable_data_ptr<float>(), torch_parallel());
  return in.rows;
}

using Grads = std::tuple<Tensor, Tensor>;

struct BackwardInputs {
  Tensor grad, indices;
  BookTensors books;
  Tensor semantic_grad, pixel_grad;
  int64_t n;
};

BackwardInputs backward_inputs(const Tensor& grad, const Tensor& indices,
                               const Tensor& semantic_book, const Tensor& pixel_book,
                               bool normalize) {
  check_device("lookup_backward", grad, indices, semantic_book);
  BackwardInputs in{as_float32(grad),
                    indices_of(indices),
                    books_of(semantic_book, pixel_book, normalize),
                    grad,
                    grad,
                    indices.numel()};
  STD_TORCH_CHECK(in.grad.dim() == 2 && in.grad.size(0) == in.n &&
                      in.grad.size(1) == in.books.width(),
                  "lookup_backward: grad must be [N, Ds + Dp]");
  const Books& raw = in.books.raw;
  in.semantic_grad = new_like(in.grad, {raw.k, raw.semantic_width}, ScalarType::Float);
  in.pixel_grad = new_like(in.grad, {raw.k, raw.pixel_width}, ScalarType::Float);
  return in;
}

Grads lookup_backward_on_cpu(const Tensor& grad, const Tensor& indices,
                             const Tensor& semantic_book, const Tensor& pixel_book,
                             bool normalize) {
  BackwardInputs in =
      backward_inputs(grad, indices, semantic_book, pixel_book, normalize);
  lookup_backward_cpu(in.grad.const_data_ptr<float>(),
                      in.indices.const_data_ptr<int64_t>(), in.n, in.books.raw,
                      in.semantic_grad.mutable_data_ptr<float>(),
                      in.pixel_grad.mutable_data_ptr<float>(), torch_parallel());
  return {in.semantic_grad, in.pixel_grad};
}

#ifdef TOKENFLOW_WITH_CUDA
Tensor lookup_on_cuda(const Tensor& indices, const Tensor& semantic_book,
                      const Tensor& pixel_book, bool normalize) {
  LookupInputs in = lookup_inputs(indices, semantic_book, pixel_book, normalize);
  const int device = in.indices.get_device_index();
  lookup_cuda(in.indices.const_data_ptr<int64_t>(), in.n, in.books.raw,
              in.rows.mutable_data_ptr<float>(), device, current_cuda_stream(device));
  return in.rows;
}

Grads lookup_backward_on_cuda(const Tensor& grad, const Tensor& indices,
                              const Tensor& semantic_book, const Tensor& pixel_book,
                              bool normalize) {
  BackwardInputs in =
      backward_inputs(grad, indices, semantic_book, pixel_book, normalize);
  const int device = in.indices.get_device_index();
  const int64_t k = in.books.raw.k;
  Tensor sums =
      torch::stable::new_zeros(in.grad, {k, in.books.width()}, ScalarType::Double);
  Tensor used = torch::stable::new_zeros(in.grad, {k}, ScalarType::Byte);
  lookup_backward_cuda(
      in.grad.const_data_ptr<float>(), in.indices.const_data_ptr<int64_t>(), in.n,
      in.books.raw, in.semantic_grad.mutable_data_ptr<float>(),
      in.pixel_grad.mutable_data_ptr<float>(), sums.mutable_data_ptr<double>(),
      used.mutable_data_ptr<uint8_t>(), device, current_cuda_stream(device));
  return {in.semantic_grad, in.pixel_grad};
}
#endif

STABLE_TORCH_LIBRARY_IMPL(tokenflow_ext, CPU, m) {
  m.impl("lookup", TORCH_BOX(&lookup_on_cpu));
  m.impl("lookup_backward", TORCH_BOX(&lookup_backward_on_cpu));
}

#ifdef TOKENFLOW_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(tokenflow_ext, CUDA, m) {
  m.impl("lookup", TORCH_BOX(&lookup_on_cuda));
  m.impl("lookup_backward", TORCH_BOX(&lookup_backward_on_cuda));
}
#endif

}  // namespace
}  // namespace tokenflow
