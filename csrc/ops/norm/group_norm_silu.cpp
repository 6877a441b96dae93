// Torch glue of group_norm_silu. Meaning, checks for users, fallback, gradient and fake
// kernels: tokenflow_ext/ops/group_norm_silu.py.
#include "ops/norm/group_norm_silu.h"

#include "common/cuda_stream.h"
#include "common/maps.h"

namespace tokenflow {
namespace {

enum class Path { simd, cuda };

// Fills `y`, which lies in memory as `x` does: both contiguous or both channels_last.
void fill(const Tensor& x, const Tensor& weight_given, const Tensor& bias_given,
          int64_t num_groups, double eps, Tensor& y, Path path) {
  const Tensor weight = as_float32(weight_given), bias = as_float32(bias_given);
  if (x.numel() == 0) return;
  const GroupNormSilu op{x.size(0),
                         x.size(1),
                         x.numel() / (x.size(0) * x.size(1)),
                         num_groups,
                         eps,
                         element_of(x, "group_norm_silu"),
                         is_channels_last(x),
                         x.const_data_ptr(),
                         weight.const_data_ptr<float>(),
                         bias.const_data_ptr<float>(),
                         y.mutable_data_ptr()};
  if (path == Path::simd) return group_norm_silu_cpu(op, torch_parallel());
#ifdef TOKENFLOW_WITH_CUDA
  const Tensor workspace =
      new_like(x, {group_norm_silu_cuda_workspace(op)}, ScalarType::Byte);
  const int device = x.get_device_index();
  group_norm_silu_cuda(op, workspace.mutable_data_ptr(), device,
                       current_cuda_stream(device));
#endif
}

void check(const Tensor& x, const Tensor& weight, const Tensor& bias,
           int64_t num_groups) {
  STD_TORCH_CHECK(x.dim() >= 2, "group_norm_silu: x must be [B, C, ...]");
  check_device("group_norm_silu", x, weight, bias);
  STD_TORCH_CHECK(num_groups > 0 && x.size(1) % num_groups == 0,
                  "group_norm_silu: num_groups must divide the channels of x");
  STD_TORCH_CHECK(weight.numel() == x.size(1) && bias.numel() == x.size(1),
                  "group_norm_silu: weight and bias must be [C]");
}

template <Path path>
Tensor functional(const Tensor& x_given, const Tensor& weight, const Tensor& bias,
                  int64_t num_groups, double eps) {
  check(x_given, weight, bias, num_groups);
  const Tensor x = packed_map(x_given);
  Tensor y = empty_map(x, sizes_of(x), is_channels_last(x));
  fill(x, weight, bias, num_groups, eps, y, path);
  return y;
}

template <Path path>
void out_variant(const Tensor& x_given, const Tensor& weight, const Tensor& bias,
                 int64_t num_groups, double eps, Tensor out) {
  check(x_given, weight, bias, num_groups);
  check_device("group_norm_silu", x_given, out);
  STD_TORCH_CHECK(
      sizes_of(out) == sizes_of(x_given) && out.scalar_type() == x_given.scalar_type(),
      "group_norm_silu: out must have the shape and dtype of x");
  const Tensor x = packed_map(x_given);
  const bool channels_last = is_channels_last(x);
  if (channels_last ? is_channels_last(out) : out.is_contiguous())
    return fill(x, weight, bias, num_groups, eps, out, path);
  Tensor y = empty_map(x, sizes_of(x), channels_last);
  fill(x, weight, bias, num_groups, eps, y, path);
  torch::stable::copy_(out, y);
}

STABLE_TORCH_LIBRARY_IMPL(tokenflow_ext, CPU, m) {
  m.impl("group_norm_silu", TORCH_BOX(&functional<Path::simd>));
  m.impl("group_norm_silu_out", TORCH_BOX(&out_variant<Path::simd>));
}

#ifdef TOKENFLOW_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(tokenflow_ext, CUDA, m) {
  m.impl("group_norm_silu", TORCH_BOX(&functional<Path::cuda>));
  m.impl("group_norm_silu_out", TORCH_BOX(&out_variant<Path::cuda>));
}
#endif

}  // namespace
}  // namespace tokenflow
