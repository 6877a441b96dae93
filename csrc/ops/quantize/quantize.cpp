// Torch glue of quantize, prepare and pack. Meaning, checks for users, fallback and
// fake kernels: tokenflow_ext/ops/quantize.py.
#include <optional>
#include <tuple>

#include "common/cuda_stream.h"
#include "ops/quantize/quantize_glue.h"

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

Tensor pack_on_cpu(const Tensor& rows_given, int64_t semantic_width) {
  STD_TORCH_CHECK(rows_given.dim() == 2 && semantic_width >= 0 &&
                      semantic_width <= rows_given.size(1),
                  "pack: rows must be [K, Ds + Dp]");
  const Tensor rows = as_float32(rows_given);
  const int64_t k = rows.size(0), width = rows.size(1);
  Tensor packed = new_like(rows, {pack_cpu_bytes(k, width)}, ScalarType::Byte);
  if (packed.numel())
    pack_cpu(rows.const_data_ptr<float>(), k, semantic_width, width - semantic_width,
             packed.mutable_data_ptr(), torch_parallel());
  return packed;
}

struct QuantizeInputs {
  Tensor semantic, pixel;
  PreparedTensors prepared;
  Tensor indices;
  Queries queries;
};

QuantizeInputs quantize_inputs(const Tensor& semantic,
                               const std::optional<Tensor>& pixel, const Tensor& rows,
                               const Tensor& squares, const Tensor& limits,
                               const Tensor& packed, double pixel_weight,
                               bool normalize) {
  check_device("quantize", semantic, pixel ? *pixel : semantic, rows);
  const int64_t n = semantic.size(0), ds = semantic.size(1);
  const int64_t dp = pixel ? pixel->size(1) : 0;
  QuantizeInputs in{as_float32(semantic),
                    pixel ? as_float32(*pixel) : as_float32(semantic),
                    prepared_of("quantize", rows, squares, limits, packed, ds),
                    new_like(semantic, {n}, ScalarType::Long),
                    {}};
  STD_TORCH_CHECK(in.pixel.size(0) == n, "quantize: pixel must have as many rows");
  STD_TORCH_CHECK(rows.size(1) == ds + dp,
                  "quantize: prepared books do not fit the vectors");
  in.queries = {in.semantic.const_data_ptr<float>(), in.pixel.const_data_ptr<float>(),
                n, static_cast<float>(pixel_weight), normalize};
  return in;
}

Tensor quantize_on_cpu(const Tensor& semantic, std::optional<Tensor> pixel,
                       const Tensor& rows, const Tensor& squares, const Tensor& limits,
                       const Tensor& packed, double pixel_weight, bool normalize) {
  QuantizeInputs in = quantize_inputs(semantic, pixel, rows, squares, limits, packed,
                                      pixel_weight, normalize);
  quantize_cpu(in.queries, in.prepared.raw, in.indices.mutable_data_ptr<int64_t>(),
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

Tensor pack_on_cuda(const Tensor& rows_given, int64_t semantic_width) {
  STD_TORCH_CHECK(rows_given.dim() == 2, "pack: rows must be [K, Ds + Dp]");
  const Tensor rows = as_float32(rows_given);
  const int64_t k = rows.size(0), width = rows.size(1);
  Tensor packed = new_like(rows, {pack_cuda_bytes(k, width)}, ScalarType::Byte);
  const int device = rows.get_device_index();
  if (packed.numel())
    pack_cuda(rows.const_data_ptr<float>(), k, width, packed.mutable_data_ptr(), device,
              current_cuda_stream(device));
  return packed;
}

Tensor quantize_on_cuda(const Tensor& semantic, std::optional<Tensor> pixel,
                        const Tensor& rows, const Tensor& squares, const Tensor& limits,
                        const Tensor& packed, double pixel_weight, bool normalize) {
  QuantizeInputs in = quantize_inputs(semantic, pixel, rows, squares, limits, packed,
                                      pixel_weight, normalize);
  const int device = in.semantic.get_device_index();
  Tensor workspace = new_like(
      in.semantic, {quantize_cuda_workspace(in.queries, in.prepared.raw, device)},
      ScalarType::Byte);
  quantize_cuda(in.queries, in.prepared.raw, in.indices.mutable_data_ptr<int64_t>(),
                workspace.mutable_data_ptr(), device, current_cuda_stream(device));
  return in.indices;
}
#endif

STABLE_TORCH_LIBRARY_IMPL(tokenflow_ext, CPU, m) {
  m.impl("prepare", TORCH_BOX(&prepare_on_cpu));
  m.impl("pack", TORCH_BOX(&pack_on_cpu));
  m.impl("quantize", TORCH_BOX(&quantize_on_cpu));
}

#ifdef TOKENFLOW_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(tokenflow_ext, CUDA, m) {
  m.impl("prepare", TORCH_BOX(&prepare_on_cuda));
  m.impl("pack", TORCH_BOX(&pack_on_cuda));
  m.impl("quantize", TORCH_BOX(&quantize_on_cuda));
}
#endif

}  // namespace
}  // namespace tokenflow
