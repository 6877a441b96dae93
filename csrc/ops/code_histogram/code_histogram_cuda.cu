/*
code_histogram, CUDA. Meaning: the reference in tokenflow_ext/ops/code_histogram.py. Not
yet run on a GPU.

Algorithm  One thread per index; the threads of a warp that hold the same index add
           their number once, so that a collapsed codebook does not queue up.
Numerics   Integers: the order of additions does not matter.
*/
#include "common/cuda_device.cuh"
#include "common/numerics.h"
#include "ops/code_histogram/code_histogram.h"

namespace tokenflow {
namespace {

constexpr int kThreads = 256;

__global__ void count(const int64_t* indices, int64_t n, int64_t num_codes,
                      int64_t* counts) {
  const int64_t i = launch_item();
  if (i >= n || !is_inside(indices[i], num_codes)) return;
  const int64_t index = indices[i];
  const unsigned same = __match_any_sync(__activemask(), index);
  if (static_cast<int>(threadIdx.x % 32) == __ffs(same) - 1)
    atomicAdd(reinterpret_cast<unsigned long long*>(counts + index),
              static_cast<unsigned long long>(__popc(same)));
}

}  // namespace

void code_histogram_cuda(const int64_t* indices, int64_t n, int64_t num_codes,
                         int64_t* counts, int device, void* stream) {
  const DeviceGuard guard(device);
  const auto s = static_cast<cudaStream_t>(stream);
  check_cuda(cudaMemsetAsync(counts, 0, num_codes * sizeof(int64_t), s),
             "code_histogram");
  if (n == 0) return;
  count<<<launch_blocks(n, kThreads), kThreads, 0, s>>>(indices, n, num_codes, counts);
  check_cuda(cudaGetLastError(), "code_histogram");
}

}  // namespace tokenflow
