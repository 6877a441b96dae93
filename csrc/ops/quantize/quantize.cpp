// Torch glue of quantize and prepare. Meaning, checks for users, fallback and fake
// kernels: tokenflow_ext/ops/quantize.py.
#include "ops/quantize/quantize.h"

#include <optional>
#include <tuple>

#include "common/cuda_stream.h"
#include "common/glue.h"

namespace tokenflow {
namespace {

using Books = std::tuple<Tensor, Tensor, Tensor>;

struct PrepareInputs {
  Tensor semantic, pixel, rows, squares, limits;
  int64_t k, semantic_width, pixel_width;
};

PrepareInputs prepare_inputs(const Tensor& semantic_book,
                             const std::optional<Tensor>& pixel_book) {
  STD_TORCH_CHECK(semantic_book.dim() == 2, "prepare: semantic_book must be [K, Ds]");
  check_device("prepare", semantic_book, pixel_book ? *pixel_book : semantic_book);
  const Tensor semantic = as_float32(semantic_book);
  const Tensor pixel = pixel_book ? as_float32(*pixel_book) : semantic;
  const int64_t k = semantic.size(0), ds = semantic.size(1);
  const int64_t dp = pixel_book ? pixel.size(1) : 0;
  STD_TORCH_CHECK(pixel.dim() == 2 && pixel.size(0) == k,
                  "prepare: pixel_book must be [K, Dp]");
  return {semantic,
          pixel,
          new_like(semantic, {k, ds + dp}, ScalarType::Float),
          new_like(semantic, {k, 2}, ScalarType::Double),
          new_like(semantic, {3}, ScalarType::Double),
          k,
          ds,
          dp};
}

Books prepare_on_cpu(const Tensor& semantic_book, std::optional<Tensor> pixel_book,
                     bool normalize) {
  PrepareInputs in = prepare_inputs(semantic_book, pixel_book);
  prepare_cpu(in.semantic.const_data_ptr<float>(), in.pixel.const_data_ptr<float>(),
              in.k, in.semantic_width, in.pixel_width, normalize,
              in.rows.mutable_data_ptr<float>(), in.squares.mutable_data_ptr<double>(),
              in.limits.mutable_data_ptr<double>(), torch_parallel());
  return {in.rows, in.squares, in.limits};
}

struct QuantizeInputs {
  Tensor semantic, pixel, rows, squares, limits, indices;
  Queries queries;
  PreparedBook book;
};

QuantizeInputs quantize_inputs(const Tensor& semantic,
                               const std::optional<Tensor>& pixel, const Tensor& rows,
                               const Tensor& squares, const Tensor& limits,
                               double pixel_weight, bool normalize) {
  check_device("quantize", semantic, pixel ? *pixel : semantic, rows, squares, limits);
  QuantizeInputs in{as_float32(semantic),
                    pixel ? as_float32(*pixel) : as_float32(semantic),
                    torch::stable::contiguous(rows),
                    torch::stable::contiguous(squares),
                    torch::stable::contiguous(limits),
                    new_like(semantic, {semantic.size(0)}, ScalarType::Long),
                    {},
                    {}};
  const int64_t n = in.semantic.size(0), ds = in.semantic.size(1);
  const int64_t dp = pixel ? in.pixel.size(1) : 0, k = in.rows.size(0);
  STD_TORCH_CHECK(in.pixel.size(0) == n, "quantize: pixel must have as many rows");
  STD_TORCH_CHECK(in.rows.size(1) == ds + dp && in.squares.size(0) == k &&
                      in.squares.size(1) == 2 && in.limits.numel() == 3,
                  "quantize: prepared books do not fit the vectors");
  STD_TORCH_CHECK(in.rows.scalar_type() == ScalarType::Float &&
                      in.squares.scalar_type() == ScalarType::Double &&
                      in.limits.scalar_type() == ScalarType::Double,
                  "quantize: prepared books have another dtype");
  in.queries = {in.semantic.const_data_ptr<float>(), in.pixel.const_data_ptr<float>(),
                n, static_cast<float>(pixel_weight), normalize};
  in.book = {in.rows.const_data_ptr<float>(),
             in.squares.const_data_ptr<double>(),
             in.limits.const_data_ptr<double>(),
             k,
             ds,
             dp};
  return in;
}

Tensor quantize_on_cpu(const Tensor& semantic, std::optional<Tensor> pixel,
                       const Tensor& rows, const Tensor& squares, const Tensor& limits,
                       double pixel_weight, bool normalize) {
  QuantizeInputs in =
      quantize_inputs(semantic, pixel, rows, squares, limits, pixel_weight, normalize);
  quantize_cpu(in.queries, in.book, in.indices.mutable_data_ptr<int64_t>(),
               torch_parallel());
  return in.indices;
}

#ifdef TOKENFLOW_WITH_CUDA
Books prepare_on_cuda(const Tensor& semantic_book, std::optional<Tensor> pixel_book,
                      bool normalize) {
  PrepareInputs in = prepare_inputs(semantic_book, pixel_book);
  const int device = in.semantic.get_device_index();
  prepare_cuda(in.semantic.const_data_ptr<float>(), in.pixel.const_data_ptr<float>(),
               in.k, in.semantic_width, in.pixel_width, normalize,
               in.rows.mutable_data_ptr<float>(), in.squares.mutable_data_ptr<double>(),
               in.limits.mutable_data_ptr<double>(), device,
               current_cuda_stream(device));
  return {in.rows, in.squares, in.limits};
}

Tensor quantize_on_cuda(const Tensor& semantic, std::optional<Tensor> pixel,
                        const Tensor& rows, const Tensor& squares, const Tensor& limits,
                        double pixel_weight, bool normalize) {
  QuantizeInputs in =
      quantize_inputs(semantic, pixel, rows, squares, limits, pixel_weight, normalize);
  const int device = in.semantic.get_device_index();
  Tensor workspace = new_like(
      in.semantic,
      {quantize_cuda_workspace(in.queries.n, in.book.k, in.rows.size(1), device)},
      ScalarType::Byte);
  quantize_cuda(in.queries, in.book, in.indices.mutable_data_ptr<int64_t>(),
                workspace.mutable_data_ptr(), device, current_cuda_stream(device));
  return in.indices;
}
#endif

STABLE_TORCH_LIBRARY_IMPL(tokenflow_ext, CPU, m) {
  m.impl("prepare", TORCH_BOX(&prepare_on_cpu));
  m.impl("quantize", TORCH_BOX(&quantize_on_cpu));
}

#ifdef TOKENFLOW_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(tokenflow_ext, CUDA, m) {
  m.impl("prepare", TORCH_BOX(&prepare_on_cuda));
  m.impl("quantize", TORCH_BOX(&quantize_on_cuda));
}
#endif

}  // namespace
}  // namespace tokenflow
