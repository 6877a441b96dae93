// Torch glue of pyramid_quantize and pyramid_lookup. Meaning, checks for users,
// fallbacks, fake kernels and autograd: tokenflow_ext/ops/pyramid.py.
#include "ops/pyramid/pyramid.h"

#include <tuple>
#include <vector>

#include "common/cuda_stream.h"
#include "ops/lookup/lookup_glue.h"
#include "ops/quantize/quantize_glue.h"

namespace tokenflow {
namespace {

struct PyramidTensors {
  Tensor row_weights, column_weights;
  std::vector<int64_t> sides;
  Pyramid raw;
};

// Moving a vector keeps its elements in place, so `raw` stays right.
PyramidTensors pyramid_of(const Tensor& row_weights, const Tensor& column_weights,
                          std::vector<int64_t> sides, int64_t batch, int64_t channels) {
  PyramidTensors p{
      as_contiguous(row_weights), as_contiguous(column_weights), std::move(sides), {}};
  const int64_t count = static_cast<int64_t>(p.sides.size()) / 2;
  bool fits = count >= 1 && p.sides.size() % 2 == 0 && p.row_weights.dim() == 3 &&
              p.column_weights.dim() == 3 && p.row_weights.size(0) == count &&
              p.column_weights.size(0) == count && p.row_weights.size(2) == 4 &&
              p.column_weights.size(2) == 4 &&
              p.row_weights.scalar_type() == ScalarType::Double &&
              p.column_weights.scalar_type() == ScalarType::Double;
  for (int64_t side : p.sides) fits = fits && side >= 1;
  STD_TORCH_CHECK(fits, "pyramid: scales and bicubic weights do not fit each other");
  p.raw = {batch,
           channels,
           {p.row_weights.size(1), p.column_weights.size(1)},
           p.sides.data(),
           count,
           p.row_weights.const_data_ptr<double>(),
           p.column_weights.const_data_ptr<double>()};
  return p;
}

using Quantized = std::tuple<Tensor, Tensor>;

struct QuantizeInputs {
  Tensor features;
  PreparedTensors prepared;
  PyramidTensors pyramid;
  Tensor indices, quantized;
};

QuantizeInputs quantize_inputs(const Tensor& features, const Tensor& rows,
                               const Tensor& squares, const Tensor& limits,
                               const Tensor& packed, const Tensor& row_weights,
                               const Tensor& column_weights,
                               std::vector<int64_t> scales, int64_t semantic_width) {
  STD_TORCH_CHECK(features.dim() == 4 && rows.dim() == 2 &&
                      features.size(1) == rows.size(1) && semantic_width >= 1 &&
                      semantic_width <= rows.size(1),
                  "pyramid_quantize: features must be [B, Ds + Dp, h, w]");
  check_device("pyramid_quantize", features, rows, row_weights, column_weights);
  QuantizeInputs in{
      as_float32(features),
      prepared_of("pyramid_quantize", rows, squares, limits, packed, semantic_width),
      pyramid_of(row_weights, column_weights, std::move(scales), features.size(0),
                 features.size(1)),
      features, features};
  STD_TORCH_CHECK(in.pyramid.raw.grid.height == features.size(2) &&
                      in.pyramid.raw.grid.width == features.size(3),
                  "pyramid_quantize: bicubic weights are for another grid");
  in.indices = new_like(in.features, {features.size(0), tokens_of(in.pyramid.raw)},
                        ScalarType::Long);
  in.quantized =
      new_like(in.features,
               {features.size(0), features.size(1), features.size(2), features.size(3)},
               ScalarType::Float);
  return in;
}

Quantized pyramid_quantize_on_cpu(const Tensor& features, const Tensor& rows,
                                  const Tensor& squares, const Tensor& limits,
                                  const Tensor& packed, const Tensor& row_weights,
                                  const Tensor& column_weights,
                                  std::vector<int64_t> scales, int64_t semantic_width,
                                  double pixel_weight, bool normalize) {
  QuantizeInputs in =
      quantize_inputs(features, rows, squares, limits, packed, row_weights,
                      column_weights, std::move(scales), semantic_width);
  pyramid_quantize_cpu(in.features.const_data_ptr<float>(), in.prepared.raw,
                       static_cast<float>(pixel_weight), normalize, in.pyramid.raw,
                       in.indices.mutable_data_ptr<int64_t>(),
                       in.quantized.mutable_data_ptr<float>(), torch_parallel());
  return {in.indices, in.quantized};
}

struct LookupInputs {
  Tensor indices;
  BookTensors books;
  PyramidTensors pyramid;
  Tensor quantized;
};

LookupInputs lookup_inputs(const Tensor& indices, const Tensor& semantic_book,
                           const Tensor& pixel_book, const Tensor& row_weights,
                           const Tensor& column_weights, std::vector<int64_t> scales,
                           bool normalize) {
  check_device("pyramid_lookup", indices, semantic_book, row_weights, column_weights);
  const BookTensors books = books_of(semantic_book, pixel_book, normalize);
  LookupInputs in{indices_of(indices), books,
                  pyramid_of(row_weights, column_weights, std::move(scales),
                             indices.size(0), books.width()),
                  books.semantic};
  STD_TORCH_CHECK(indices.dim() == 2 && indices.size(1) == tokens_of(in.pyramid.raw),
                  "pyramid_lookup: indices must be [B, L], L the tokens of all scales");
  const Grid grid = in.pyramid.raw.grid;
  in.quantized = new_like(books.semantic,
                          {indices.size(0), books.width(), grid.height, grid.width},
                          ScalarType::Float);
  return in;
}

Tensor pyramid_lookup_on_cpu(const Tensor& indices, const Tensor& semantic_book,
                             const Tensor& pixel_book, const Tensor& row_weights,
                             const Tensor& column_weights, std::vector<int64_t> scales,
                             bool normalize) {
  LookupInputs in = lookup_inputs(indices, semantic_book, pixel_book, row_weights,
                                  column_weights, std::move(scales), normalize);
  pyramid_lookup_cpu(in.indices.const_data_ptr<int64_t>(), in.books.raw, in.pyramid.raw,
                     in.quantized.mutable_data_ptr<float>(), torch_parallel());
  return in.quantized;
}

#ifdef TOKENFLOW_WITH_CUDA
Quantized pyramid_quantize_on_cuda(const Tensor& features, const Tensor& rows,
                                   const Tensor& squares, const Tensor& limits,
                                   const Tensor& packed, const Tensor& row_weights,
                                   const Tensor& column_weights,
                                   std::vector<int64_t> scales, int64_t semantic_width,
                                   double pixel_weight, bool normalize) {
  QuantizeInputs in =
      quantize_inputs(features, rows, squares, limits, packed, row_weights,
                      column_weights, std::move(scales), semantic_width);
  const int device = in.features.get_device_index();
  Tensor workspace = new_like(
      in.features,
      {pyramid_quantize_cuda_workspace(in.pyramid.raw, in.prepared.raw, device)},
      ScalarType::Byte);
  pyramid_quantize_cuda(
      in.features.const_data_ptr<float>(), in.prepared.raw,
      static_cast<float>(pixel_weight), normalize, in.pyramid.raw,
      in.indices.mutable_data_ptr<int64_t>(), in.quantized.mutable_data_ptr<float>(),
      workspace.mutable_data_ptr(), device, current_cuda_stream(device));
  return {in.indices, in.quantized};
}

Tensor pyramid_lookup_on_cuda(const Tensor& indices, const Tensor& semantic_book,
                              const Tensor& pixel_book, const Tensor& row_weights,
                              const Tensor& column_weights, std::vector<int64_t> scales,
                              bool normalize) {
  LookupInputs in = lookup_inputs(indices, semantic_book, pixel_book, row_weights,
                                  column_weights, std::move(scales), normalize);
  const int device = in.indices.get_device_index();
  Tensor workspace = new_like(
      in.indices, {pyramid_lookup_cuda_workspace(in.pyramid.raw)}, ScalarType::Byte);
  pyramid_lookup_cuda(in.indices.const_data_ptr<int64_t>(), in.books.raw,
                      in.pyramid.raw, in.quantized.mutable_data_ptr<float>(),
                      workspace.mutable_data_ptr(), device,
                      current_cuda_stream(device));
  return in.quantized;
}
#endif

STABLE_TORCH_LIBRARY_IMPL(tokenflow_ext, CPU, m) {
  m.impl("pyramid_quantize", TORCH_BOX(&pyramid_quantize_on_cpu));
  m.impl("pyramid_lookup", TORCH_BOX(&pyramid_lookup_on_cpu));
}

#ifdef TOKENFLOW_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(tokenflow_ext, CUDA, m) {
  m.impl("pyramid_quantize", TORCH_BOX(&pyramid_quantize_on_cuda));
  m.impl("pyramid_lookup", TORCH_BOX(&pyramid_lookup_on_cuda));
}
#endif

}  // namespace
}  // namespace tokenflow
