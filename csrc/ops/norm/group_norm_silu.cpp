// Torch glue of group_norm_silu and its gradient. Meaning, checks for users, fallbacks
// and fake kernels: tokenflow_ext/ops/group_norm_silu.py.
#include "ops/norm/group_norm_silu.h"

#include <tuple>

#include "common/cuda_stream.h"
#include "common/maps.h"
#include "ops/norm/group_norm_silu_backward.h"

namespace tokenflow {
namespace {

enum class Path { simd, cuda };

GroupNormSilu op_of(const Tensor& x, const Tensor& weight, const Tensor& bias,
                    int64_t num_groups, double eps, Tensor& y) {
  return {x.size(0),
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
}

// Fills `y`, which lies in memory as `x` does: both contiguous or both channels_last.
void fill(const Tensor& x, const Tensor& weight_given, const Tensor& bias_given,
          int64_t num_groups, double eps, Tensor& y, Path path) {
  const Tensor weight = as_float32(weight_given), bias = as_float32(bias_given);
  if (x.numel() == 0) return;
  const GroupNormSilu op = op_of(x, weight, bias, num_groups, eps, y);
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

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& x_given,
                                            const Tensor& weight_given,
                                            const Tensor& bias_given,
                                            int64_t num_groups, double eps) {
  check(x_given, weight_given, bias_given, num_groups);
  check_device("group_norm_silu_backward", x_given, grad);
  const Tensor x = packed_map(x_given);
  const bool channels_last = is_channels_last(x);
  STD_TORCH_CHECK(sizes_of(grad) == sizes_of(x) &&
                      grad.scalar_type() == x.scalar_type() &&
                      (channels_last ? is_channels_last(grad) : grad.is_contiguous()),
                  "group_norm_silu_backward: grad must have the shape, dtype and "
                  "layout of x");
  const Tensor weight = as_float32(weight_given), bias = as_float32(bias_given);
  Tensor x_grad = empty_map(x, sizes_of(x), channels_last);
  Tensor weight_grad = new_like(weight, {x.size(1)}, ScalarType::Float);
  Tensor bias_grad = new_like(weight, {x.size(1)}, ScalarType::Float);
  if (x.numel() == 0) {
    torch::stable::zero_(weight_grad);
    torch::stable::zero_(bias_grad);
  } else {
    group_norm_silu_backward_cpu(
        {op_of(x, weight, bias, num_groups, eps, x_grad), grad.const_data_ptr(),
         weight_grad.mutable_data_ptr<float>(), bias_grad.mutable_data_ptr<float>()},
        torch_parallel());
  }
  return {x_grad, weight_grad, bias_grad};
}

STABLE_TORCH_LIBRARY_IMPL(tokenflow_ext, CPU, m) {
  m.impl("group_norm_silu_backward", TORCH_BOX(&backward));
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
