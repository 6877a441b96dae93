/*
lookup and its gradient, CUDA. Meaning: the reference in tokenflow_ext/ops/lookup.py.
Not yet run on a GPU.

Algorithm  A block takes kRows rows. First one thread per half finds what the half is
           divided by, sequentially as the contract wants; then all threads write the
           rows side by side. The gradient is first added up per entry with float64
           atomics; then a block takes kRows entries in the same two steps.
Shared     Two words (lookup: one) of float64 per half.
Numerics   Rows are bit-equal to the reference. The gradient's additions have no fixed
           order; in float64 that rarely reaches the float32 result.
*/
#include "common/cuda_device.cuh"
#include "ops/lookup/lookup.h"

namespace tokenflow {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = kThreads / 2;  // one thread per half in the first step

__global__ void lookup_rows(const int64_t* indices, int64_t n, Books books,
                            float* rows) {
  __shared__ double by[kRows][2];
  const int64_t first = blockIdx.x * static_cast<int64_t>(kRows);
  const int64_t mine = first + threadIdx.x / 2;
  if (mine < n && is_inside(indices[mine], books.k))
    by[threadIdx.x / 2][threadIdx.x % 2] =
        divisor(half_row(books, indices[mine], threadIdx.x % 2), books.normalize);
  __syncthreads();
  const int64_t width = books.semantic_width + books.pixel_width;
  const int64_t count = min(static_cast<int64_t>(kRows), n - first);
  for (int64_t i = threadIdx.x; i < count * width; i += kThreads) {
    const int64_t row = i / width, d = i % width, entry = indices[first + row];
    const bool pixel = d >= books.semantic_width;
    float value = 0.0f;
    if (is_inside(entry, books.k)) {
      const HalfRow half = half_row(books, entry, pixel);
      value = normalized(half.x[pixel ? d - books.semantic_width : d], by[row][pixel]);
    }
    rows[first * width + i] = value;
  }
}

__global__ void add_rows(const float* grad, const int64_t* indices, int64_t n,
                         int64_t k, int64_t width, double* sums, uint8_t* used) {
  const int64_t i = launch_item();
  if (i >= n * width) return;
  const int64_t entry = indices[i / width];
  if (!is_inside(entry, k)) return;
  atomicAdd(sums + entry * width + i % width, static_cast<double>(grad[i]));
  used[entry] = 1;
}

__global__ void scale_grads(Books books, const double* sums, const uint8_t* used,
                            float* semantic_grad, float* pixel_grad) {
  __shared__ Scaling scaling[kRows][2];
  const int64_t ds = books.semantic_width, dp = books.pixel_width, width = ds + dp;
  const int64_t first = blockIdx.x * static_cast<int64_t>(kRows);
  const int64_t mine = first + threadIdx.x / 2;
  const bool second = threadIdx.x % 2;
  if (mine < books.k && used[mine])
    scaling[threadIdx.x / 2][second] =
        scaling_of(half_row(books, mine, second), sums + mine * width + second * ds,
                   books.normalize);
  __syncthreads();
  const int64_t count = min(static_cast<int64_t>(kRows), books.k - first);
  for (int64_t i = threadIdx.x; i < count * width; i += kThreads) {
    const int64_t entry = first + i / width, d = i % width;
    const bool pixel = d >= ds;
    const int64_t at = pixel ? entry * dp + d - ds : entry * ds + d;
    const float x = pixel ? books.pixel[at] : books.semantic[at];
    (pixel ? pixel_grad : semantic_grad)[at] =
        used[entry] ? scaled_grad(scaling[i / width][pixel], x, sums[entry * width + d])
                    : 0.0f;
  }
}

}  // namespace

void lookup_cuda(const int64_t* indices, int64_t n, const Books& books, float* rows,
                 int device, void* stream) {
  if (n == 0) return;
  const DeviceGuard guard(device);
  lookup_rows<<<launch_blocks(n, kRows), kThreads, 0,
                static_cast<cudaStream_t>(stream)>>>(indices, n, books, rows);
  check_cuda(cudaGetLastError(), "lookup");
}

void lookup_backward_cuda(const float* grad, const int64_t* indices, int64_t n,
                          const Books& books, float* semantic_grad, float* pixel_grad,
                          double* sums, uint8_t* used, int device, void* stream) {
  const DeviceGuard guard(device);
  const auto s = static_cast<cudaStream_t>(stream);
  const int64_t width = books.semantic_width + books.pixel_width;
  if (n > 0)
    add_rows<<<launch_blocks(n * width, 256), 256, 0, s>>>(grad, indices, n, books.k,
                                                           width, sums, used);
  scale_grads<<<launch_blocks(books.k, kRows), kThreads, 0, s>>>(
      books, sums, used, semantic_grad, pixel_grad);
  check_cuda(cudaGetLastError(), "lookup_backward");
}

}  // namespace tokenflow
