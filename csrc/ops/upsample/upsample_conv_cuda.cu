/*
upsample_conv, CUDA. Meaning: the reference in tokenflow_ext/ops/upsample_conv.py.
Not yet run on a GPU; the body is tested on the CPU (upsample_conv_plain).

Algorithm  One thread per 2×2 block of outputs of one channel: 36 products per input
           channel, no enlarged map. Neighbouring threads differ in the dimension that
           lies side by side in y, so writes are coalesced and x or weights are shared
           through the caches.
Numerics   float32 sums, input channels in order. Deterministic.
Needs      Any size; the grid walks with 64-bit indices.
*/
#include <algorithm>

#include "common/cuda_device.cuh"
#include "ops/upsample/upsample_conv_plain.h"

namespace tokenflow {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kMaxBlocks = 1 << 20;  // more items than that walk

template <class T>
__global__ void __launch_bounds__(kThreads)
    upsample_conv_kernel(UpsampleView<T> view, int64_t items) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       item < items; item += step)
    upsample_conv_item(view, item);
}

}  // namespace

void upsample_conv_cuda(const UpsampleConv& op, int device, void* stream) {
  const int64_t items = upsample_grid(op);
  if (items == 0) return;
  DeviceGuard guard(device);
  const unsigned blocks =
      static_cast<unsigned>(std::min((items + kThreads - 1) / kThreads, kMaxBlocks));
  with_element(op.element, [&](auto* type) {
    upsample_conv_kernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        upsample_view(op, type), items);
  });
  check_cuda(cudaGetLastError(), "upsample_conv");
}

}  // namespace tokenflow
