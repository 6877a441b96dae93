/*
group_norm_silu, CUDA. Meaning: the reference in tokenflow_ext/ops/group_norm_silu.py.
Not yet run on a GPU; the bodies are tested on the CPU (group_norm_silu_plain).

Algorithm  1. A block of threads adds x and x² of one chunk of one group, in float64.
           2. One thread per channel and picture adds its group's chunks up and writes
           its center, scale and shift. 3. One thread per element applies them and SiLU.
Traffic    Reads x twice, writes y once. The workspace is 16 bytes per chunk and 12
           per channel and picture.
Numerics   Sums in one order, no atomics: deterministic. y may be x.
Needs      Any size; grids walk with 64-bit indices.
*/
#include <algorithm>

#include "common/cuda_device.cuh"
#include "ops/norm/group_norm_silu_plain.h"

namespace tokenflow {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = kNormThreads / kWarp;
static_assert(kNormThreads % kWarp == 0 && kWarps <= kWarp);
constexpr int64_t kMaxBlocks = 1 << 20;  // more work than that walks

__device__ double warp_sum(double value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
    value += __shfl_down_sync(0xffffffffu, value, offset);
  return value;
}

template <class T>
__global__ void __launch_bounds__(kNormThreads)
    norm_partial_kernel(GroupNormSilu op, const T* x, NormWorkspace w, int64_t items) {
  __shared__ double sums[kWarps], squares[kWarps];
  const int64_t chunks = norm_chunks(op);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    double a = 0.0, b = 0.0;
    norm_partial_item(op, x, item / chunks, item % chunks, threadIdx.x, &a, &b);
    a = warp_sum(a);
    b = warp_sum(b);
    if (lane == 0) sums[warp] = a, squares[warp] = b;
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int i = 1; i < kWarps; ++i) a += sums[i], b += squares[i];
      w.partial[2 * item] = a;
      w.partial[2 * item + 1] = b;
    }
    __syncthreads();  // before the next item overwrites the shared sums
  }
}

__global__ void __launch_bounds__(kNormThreads)
    norm_affine_kernel(GroupNormSilu op, NormWorkspace w, int64_t items) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kNormThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kNormThreads + threadIdx.x;
       i < items; i += step)
    norm_affine_item(op, w, i);
}

template <class T>
__global__ void __launch_bounds__(kNormThreads)
    norm_apply_kernel(GroupNormSilu op, NormWorkspace w, const T* x, T* y,
                      int64_t items) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kNormThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kNormThreads + threadIdx.x;
       i < items; i += step)
    norm_apply_item(op, w, x, y, i);
}

unsigned blocks_for(int64_t work, int64_t per_block) {
  return static_cast<unsigned>(
      std::min((work + per_block - 1) / per_block, kMaxBlocks));
}

}  // namespace

void group_norm_silu_cuda(const GroupNormSilu& op, void* workspace, int device,
                          void* stream_given) {
  const int64_t elements = op.batch * op.channels * op.area;
  if (elements == 0) return;
  DeviceGuard guard(device);
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_given);
  const NormWorkspace w = norm_workspace(op, workspace);
  const int64_t parts = op.batch * op.groups * norm_chunks(op);
  const int64_t channels = op.batch * op.channels;
  with_element(op.element, [&](auto* type) {
    const auto* x = static_cast<decltype(type)>(const_cast<void*>(op.x));
    auto* y = static_cast<decltype(type)>(op.y);
    norm_partial_kernel<<<blocks_for(parts, 1), kNormThreads, 0, stream>>>(op, x, w,
                                                                           parts);
    norm_affine_kernel<<<blocks_for(channels, kNormThreads), kNormThreads, 0, stream>>>(
        op, w, channels);
    norm_apply_kernel<<<blocks_for(elements, kNormThreads), kNormThreads, 0, stream>>>(
        op, w, x, y, elements);
  });
  check_cuda(cudaGetLastError(), "group_norm_silu");
}

}  // namespace tokenflow
