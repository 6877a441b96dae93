// Torch glue of conv3x3. Meaning, checks for users, fallback, gradient and fake
// kernels: tokenflow_ext/ops/conv3x3.py. CPU and float32 alone; the rest is torch's.
#include "ops/conv/conv3x3.h"

#include <optional>

#include "common/maps.h"
#include "ops/norm/group_norm_silu.h"

namespace tokenflow {
namespace {

using MaybeTensor = std::optional<Tensor>;

void check_float(const Tensor& t) {
  STD_TORCH_CHECK(!t.is_cuda() && t.scalar_type() == ScalarType::Float,
                  "conv3x3: all tensors must be float32 on the CPU");
}

// The same map without gaps, channels inside of positions.
Tensor pixels_of(const Tensor& given) {
  if (is_packed(given, {0, 2, 3, 1})) return given;
  const Tensor t = as_contiguous(given);
  Tensor pixels = empty_map(t, sizes_of(t), true);
  conv3x3_transpose(t.const_data_ptr<float>(), t.size(0), t.size(1),
                    t.size(2) * t.size(3), pixels.mutable_data_ptr<float>(),
                    torch_parallel());
  return pixels;
}

// And back: positions inside of channels.
Tensor planes_of(const Tensor& pixels) {
  Tensor t = empty_map(pixels, sizes_of(pixels), false);
  conv3x3_transpose(pixels.const_data_ptr<float>(), t.size(0), t.size(2) * t.size(3),
                    t.size(1), t.mutable_data_ptr<float>(), torch_parallel());
  return t;
}

void check_weight(const Tensor& weight) {
  check_float(weight);
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3,
                  "conv3x3: weight must be [Co, C, 3, 3]");
}

Tensor pack(const Tensor& weight_given) {
  check_weight(weight_given);
  const Tensor weight = as_contiguous(weight_given);
  const int64_t in = weight.size(1), out = weight.size(0);
  Tensor panels = new_like(weight, {conv3x3_panels_size(in, out)}, ScalarType::Float);
  conv3x3_pack(weight.const_data_ptr<float>(), in, out,
               panels.mutable_data_ptr<float>(), torch_parallel());
  return panels;
}

// [batch, 3, channels], see group_norm_affine_cpu.
Tensor affine_of(const Tensor& x, const Tensor& weight_given, const Tensor& bias_given,
                 int64_t num_groups, double eps) {
  const int64_t channels = x.size(1);
  check_float(weight_given);
  check_float(bias_given);
  STD_TORCH_CHECK(num_groups > 0 && channels % num_groups == 0,
                  "conv3x3: num_groups must divide the channels of x");
  STD_TORCH_CHECK(weight_given.numel() == channels && bias_given.numel() == channels,
                  "conv3x3: norm_weight and norm_bias must be [C]");
  const Tensor weight = as_contiguous(weight_given);
  const Tensor bias = as_contiguous(bias_given);
  Tensor affine = new_like(x, {x.size(0), 3, channels}, ScalarType::Float);
  const GroupNormSilu op{x.size(0),
                         channels,
                         x.size(2) * x.size(3),
                         num_groups,
                         eps,
                         Element::f32,
                         true,
                         x.const_data_ptr(),
                         weight.const_data_ptr<float>(),
                         bias.const_data_ptr<float>(),
                         nullptr};
  group_norm_affine_cpu(op, affine.mutable_data_ptr<float>(), torch_parallel());
  return affine;
}

Tensor conv3x3(const Tensor& x_given, const Tensor& weight, MaybeTensor bias_given,
               MaybeTensor norm_weight, MaybeTensor norm_bias, int64_t num_groups,
               double eps, MaybeTensor residual_given, MaybeTensor panels_given,
               bool channels_last) {
  check_float(x_given);
  check_weight(weight);
  STD_TORCH_CHECK(x_given.dim() == 4 && x_given.size(1) == weight.size(1),
                  "conv3x3: x must be [B, C, H, W] with C as in weight");
  const int64_t out_channels = weight.size(0);
  const std::vector<int64_t> sizes{x_given.size(0), out_channels, x_given.size(2),
                                   x_given.size(3)};
  Tensor y = empty_map(x_given, sizes, true);
  if (y.numel() == 0) return channels_last ? y : as_contiguous(y);

  const Tensor x = pixels_of(x_given);
  const Tensor panels = panels_given ? *panels_given : pack(weight);
  check_float(panels);
  STD_TORCH_CHECK(panels.is_contiguous() &&
                      panels.numel() == conv3x3_panels_size(x.size(1), out_channels),
                  "conv3x3: panels must be those of weight");
  const Tensor bias = bias_given ? as_contiguous(*bias_given) : weight;
  check_float(bias);
  STD_TORCH_CHECK(!bias_given || bias.numel() == out_channels,
                  "conv3x3: bias must be [Co]");
  const Tensor residual = residual_given ? pixels_of(*residual_given) : y;
  check_float(residual);
  STD_TORCH_CHECK(sizes_of(residual) == sizes,
                  "conv3x3: residual must have the shape of the result");
  STD_TORCH_CHECK(norm_weight.has_value() == norm_bias.has_value(),
                  "conv3x3: norm_weight and norm_bias come together");
  const Tensor affine =
      norm_weight ? affine_of(x, *norm_weight, *norm_bias, num_groups, eps) : x;
  const Conv3x3 op{x.size(0),
                   x.size(1),
                   out_channels,
                   x.size(2),
                   x.size(3),
                   x.const_data_ptr<float>(),
                   norm_weight ? affine.const_data_ptr<float>() : nullptr,
                   panels.const_data_ptr<float>(),
                   bias_given ? bias.const_data_ptr<float>() : nullptr,
                   residual_given ? residual.const_data_ptr<float>() : nullptr,
                   y.mutable_data_ptr<float>()};
  conv3x3_cpu(op, torch_parallel());
  return channels_last ? y : planes_of(y);
}

STABLE_TORCH_LIBRARY_IMPL(tokenflow_ext, CPU, m) {
  m.impl("conv3x3", TORCH_BOX(&conv3x3));
  m.impl("conv3x3_pack", TORCH_BOX(&pack));
}

}  // namespace
}  // namespace tokenflow
