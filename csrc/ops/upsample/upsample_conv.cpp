// Torch glue of upsample_conv. Meaning, checks for users, fallback, gradient and fake
// kernels: tokenflow_ext/ops/upsample_conv.py.
#include "ops/upsample/upsample_conv.h"

#include <optional>

#include "common/cuda_stream.h"
#include "common/maps.h"

namespace tokenflow {
namespace {

enum class Path { sweep, plain, cuda };

#ifdef TOKENFLOW_WITH_CUDA
void fill_on_cuda(UpsampleConv op, const Tensor& x, const Tensor& weight,
                  const std::optional<Tensor>& bias_given) {
  const Tensor bias = bias_given ? as_contiguous(*bias_given) : weight;
  STD_TORCH_CHECK(
      weight.scalar_type() == x.scalar_type() && bias.scalar_type() == x.scalar_type(),
      "upsample_conv: weight and bias must have the dtype of x");
  UpsampleParameters given{
      weight.const_data_ptr(), {}, bias_given ? bias.const_data_ptr() : nullptr};
  for (int d = 0; d < 4; ++d) given.strides[d] = weight.stride(d);
  const int device = x.get_device_index();
  const Tensor workspace =
      new_like(x, {upsample_conv_cuda_workspace(op)}, ScalarType::Byte);
  upsample_conv_cuda(op, given, workspace.mutable_data_ptr(), device,
                     current_cuda_stream(device));
}
#endif

// Fills `y`, which is contiguous or channels_last.
void fill(const Tensor& x_given, const Tensor& weight_given,
          const std::optional<Tensor>& bias_given, Tensor& y, Path path) {
  const Tensor x = packed_map(x_given);
  UpsampleConv op{x.size(0),
                  x.size(1),
                  weight_given.size(0),
                  x.size(2),
                  x.size(3),
                  element_of(x, "upsample_conv"),
                  x.const_data_ptr(),
                  is_channels_last(x),
                  nullptr,
                  nullptr,
                  y.mutable_data_ptr(),
                  is_channels_last(y)};
  if (x.numel() == 0) return;
#ifdef TOKENFLOW_WITH_CUDA
  if (path == Path::cuda) return fill_on_cuda(op, x, weight_given, bias_given);
#endif
  const Tensor weight = as_float32(weight_given);
  const Tensor bias = bias_given ? as_float32(*bias_given) : weight;
  op.weight = weight.const_data_ptr<float>();
  op.bias = bias_given ? bias.const_data_ptr<float>() : nullptr;
  if (path == Path::plain) return upsample_conv_plain_cpu(op, torch_parallel());
  const Tensor pixels =
      new_like(x, {op.needs_pixels() ? x.numel() : 0}, ScalarType::Float);
  upsample_conv_cpu(op, pixels.mutable_data_ptr<float>(), torch_parallel());
}

std::vector<int64_t> result_size(const Tensor& x, const Tensor& weight,
                                 const std::optional<Tensor>& bias) {
  STD_TORCH_CHECK(x.dim() == 4, "upsample_conv: x must be [B, C, H, W]");
  check_device("upsample_conv", x, weight, bias ? *bias : weight);
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(1) == x.size(1) &&
                      weight.size(2) == 3 && weight.size(3) == 3,
                  "upsample_conv: weight must be [Co, C, 3, 3]");
  STD_TORCH_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == weight.size(0)),
                  "upsample_conv: bias must be [Co]");
  return {x.size(0), weight.size(0), 2 * x.size(2), 2 * x.size(3)};
}

template <Path path>
Tensor functional(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias) {
  Tensor y = empty_map(x, result_size(x, weight, bias), is_channels_last(x));
  fill(x, weight, bias, y, path);
  return y;
}

template <Path path>
void out_variant(const Tensor& x, const Tensor& weight, std::optional<Tensor> bias,
                 Tensor out) {
  const std::vector<int64_t> size = result_size(x, weight, bias);
  check_device("upsample_conv", x, out);
  STD_TORCH_CHECK(sizes_of(out) == size && out.scalar_type() == x.scalar_type(),
                  "upsample_conv: out must have the shape and dtype of the result");
  if (out.is_contiguous() || is_channels_last(out))
    return fill(x, weight, bias, out, path);
  Tensor y = empty_map(x, size, is_channels_last(x));
  fill(x, weight, bias, y, path);
  torch::stable::copy_(out, y);
}

STABLE_TORCH_LIBRARY_IMPL(tokenflow_ext, CPU, m) {
  m.impl("upsample_conv", TORCH_BOX(&functional<Path::sweep>));
  m.impl("upsample_conv_out", TORCH_BOX(&out_variant<Path::sweep>));
  m.impl("upsample_conv_plain", TORCH_BOX(&functional<Path::plain>));
}

#ifdef TOKENFLOW_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(tokenflow_ext, CUDA, m) {
  m.impl("upsample_conv", TORCH_BOX(&functional<Path::cuda>));
  m.impl("upsample_conv_out", TORCH_BOX(&out_variant<Path::cuda>));
  m.impl("upsample_conv_plain", TORCH_BOX(&functional<Path::cuda>));
}
#endif

}  // namespace
}  // namespace tokenflow
