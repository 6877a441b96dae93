// Torch glue of ops on maps: element types and memory formats. The format rule is that
// of tokenflow_ext/ops/_layout.py.
#pragma once

#include <vector>

#include "common/floats.h"
#include "common/glue.h"

namespace tokenflow {

using torch::headeronly::MemoryFormat;

inline Element element_of(const Tensor& t, const char* op) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Element::f32;
    case ScalarType::BFloat16:
      return Element::bf16;
    case ScalarType::Half:
      return Element::f16;
    default:
      STD_TORCH_CHECK(false, op, ": x must be float32, bfloat16 or float16");
  }
}

// Do the strides, from the second dimension's place in `order` on, leave no gap?
inline bool is_packed(const Tensor& t, const std::vector<int64_t>& order) {
  int64_t expected = 1;
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    if (t.size(*d) != 1 && t.stride(*d) != expected) return false;
    expected *= t.size(*d);
  }
  return true;
}

// channels_last and not contiguous as well.
inline bool is_channels_last(const Tensor& t) {
  return t.dim() == 4 && !t.is_contiguous() && is_packed(t, {0, 2, 3, 1});
}

// The same map without gaps: itself where it is contiguous or channels_last.
inline Tensor packed_map(const Tensor& t) {
  return is_channels_last(t) ? t : as_contiguous(t);
}

inline Tensor empty_map(const Tensor& like, const std::vector<int64_t>& sizes,
                        bool channels_last) {
  return on_huge_pages(torch::stable::empty(
      sizes, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
      channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous));
}

inline std::vector<int64_t> sizes_of(const Tensor& t) {
  std::vector<int64_t> sizes(t.dim());
  for (int64_t d = 0; d < t.dim(); ++d) sizes[d] = t.size(d);
  return sizes;
}

}  // namespace tokenflow
