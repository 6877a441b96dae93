/*
lookup and its gradient, CUDA. Meaning: the reference in tokenflow_ext/ops/lookup.py.
Not yet run on a GPU; the source is tested on the CPU (tests/cuda_on_cpu).

Algorithm  A block takes kRows rows: all threads fetch them in pieces of 16 bytes to
           shared memory, one thread per half finds what the half is divided by,
           sequentially as the contract wants, and all threads divide and write, side by
           side. The gradient is first added up per entry with float64 atomics; then a
           block takes kRows entries in the same steps.
Shared     kRows rows, each an odd number of pieces apart, so that threads with a row of
           their own meet different banks; a float64 per half. Where rows are no whole
           pieces, or wider than kMaxWidth, values are read twice, from memory.
Traffic    Reads n rows of the books and writes n rows. The gradient writes and reads a
           float64 for every value of the books, and writes the books once.
Numerics   Rows are bit-equal to the reference: a product with 1 / norm stands in for
the division unless it comes close to where float32 would round otherwise. The
           gradient's additions have no fixed order; in float64 that rarely reaches the
           float32 result.
*/
#include "common/cuda_device.cuh"
#include "common/tensor_cores.cuh"
#include "ops/lookup/lookup.h"

namespace tokenflow {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 32;
constexpr int64_t kMaxWidth = 256;
static_assert(2 * kRows <= kThreads);

// normalized(x, norm) without a division, nearly always. x · rn(1 / norm) lies within
// three units of the last place of rn(x / norm), so both round to the same float32,
// unless a midpoint between two of those is as near; or the result is subnormal, where
// midpoints lie elsewhere.
__device__ float normalized_by(float x, double norm, double inverse) {
  const double product = static_cast<double>(x) * inverse;
  const unsigned below = __double_as_longlong(product) & 0x1fffffff;  // float32's bits
  const bool near = below - (0x10000000u - 4) <= 8;
  if (near || (fabs(product) < 2.4e-38 && x != 0.0f)) return normalized(x, norm);
  return static_cast<float>(product);
}

// What a block needs of the books in pieces of four values.
struct Pieces {
  int semantic, all;  // of a half, of a row
  int stride;         // of a row in shared memory
};

__device__ float4 piece_of(const Books& books, const Pieces& p, int64_t entry, int i) {
  const int pixel = p.all - p.semantic;
  return i < p.semantic
             ? reinterpret_cast<const float4*>(books.semantic)[entry * p.semantic + i]
             : reinterpret_cast<const float4*>(
                   books.pixel)[entry * pixel + i - p.semantic];
}

__device__ float4 normalized_by(const float4& v, double norm, double inverse) {
  return {normalized_by(v.x, norm, inverse), normalized_by(v.y, norm, inverse),
          normalized_by(v.z, norm, inverse), normalized_by(v.w, norm, inverse)};
}

__global__ void __launch_bounds__(kThreads)
    lookup_pieces(const int64_t* indices, int64_t n, Books books, Pieces p,
                  float4* rows) {
  float4* tile = reinterpret_cast<float4*>(dynamic_shared());  // [kRows][stride]
  __shared__ double norm[2][kRows], inverse[2][kRows];
  __shared__ int64_t entries[kRows];
  const int64_t first = blockIdx.x * static_cast<int64_t>(kRows);
  const int count = static_cast<int>(min(static_cast<int64_t>(kRows), n - first));
  const int thread = threadIdx.x;
  if (thread < count) {
    const int64_t entry = indices[first + thread];
    entries[thread] = is_inside(entry, books.k) ? entry : -1;
  }
  __syncthreads();
  for (int i = thread; i < count * p.all; i += kThreads) {
    const int row = i / p.all, at = i % p.all;
    tile[row * p.stride + at] = entries[row] < 0 ? float4{0.0f, 0.0f, 0.0f, 0.0f}
                                                 : piece_of(books, p, entries[row], at);
  }
  __syncthreads();
  const int half = thread / kRows, row = thread % kRows;  // a warp per half
  if (half < 2 && row < count) {
    double squares = 0.0;
    const int begin = half ? p.semantic : 0, end = half ? p.all : p.semantic;
    for (int i = begin; books.normalize && i < end; ++i) {
      const float4 v = tile[row * p.stride + i];
      squares += static_cast<double>(v.x) * static_cast<double>(v.x);
      squares += static_cast<double>(v.y) * static_cast<double>(v.y);
      squares += static_cast<double>(v.z) * static_cast<double>(v.z);
      squares += static_cast<double>(v.w) * static_cast<double>(v.w);
    }
    norm[half][row] = books.normalize ? row_norm(squares) : 1.0;
    inverse[half][row] = 1.0 / norm[half][row];
  }
  __syncthreads();
  for (int i = thread; i < count * p.all; i += kThreads) {
    const int from = i / p.all, at = i % p.all, side = at >= p.semantic;
    rows[first * p.all + i] = normalized_by(tile[from * p.stride + at],
                                            norm[side][from], inverse[side][from]);
  }
}

__global__ void __launch_bounds__(kThreads)
    lookup_values(const int64_t* indices, int64_t n, Books books, float* rows) {
  __shared__ double by[2][kRows];
  const int64_t first = blockIdx.x * static_cast<int64_t>(kRows);
  const int half = threadIdx.x / kRows, own = threadIdx.x % kRows;
  if (half < 2 && first + own < n && is_inside(indices[first + own], books.k))
    by[half][own] =
        divisor(half_row(books, indices[first + own], half == 1), books.normalize);
  __syncthreads();
  const int64_t width = books.semantic_width + books.pixel_width;
  const int64_t count = min(static_cast<int64_t>(kRows), n - first);
  for (int64_t i = threadIdx.x; i < count * width; i += kThreads) {
    const int64_t row = i / width, d = i % width, entry = indices[first + row];
    const bool pixel = d >= books.semantic_width;
    float value = 0.0f;
    if (is_inside(entry, books.k)) {
      const HalfRow half_of = half_row(books, entry, pixel);
      value =
          normalized(half_of.x[pixel ? d - books.semantic_width : d], by[pixel][row]);
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

// The gradient of kRows entries, in steps of `values` of a row: 1, or 4 where rows are
// whole pieces.
template <int values>
__global__ void __launch_bounds__(kThreads)
    scale_grads(Books books, const double* sums, const uint8_t* used,
                float* semantic_grad, float* pixel_grad) {
  __shared__ Scaling scaling[2][kRows];
  const int64_t ds = books.semantic_width, dp = books.pixel_width, width = ds + dp;
  const int64_t first = blockIdx.x * static_cast<int64_t>(kRows);
  const int half = threadIdx.x / kRows, own = threadIdx.x % kRows;
  if (half < 2 && first + own < books.k && used[first + own])
    scaling[half][own] =
        scaling_of(half_row(books, first + own, half == 1),
                   sums + (first + own) * width + half * ds, books.normalize);
  __syncthreads();
  const int64_t count = min(static_cast<int64_t>(kRows), books.k - first);
  const int64_t steps = width / values;
  for (int64_t i = threadIdx.x; i < count * steps; i += kThreads) {
    const int64_t row = i / steps, entry = first + row, d = i % steps * values;
    const bool pixel = d >= ds;
    const int64_t at = pixel ? entry * dp + d - ds : entry * ds + d;
    const float* x = (pixel ? books.pixel : books.semantic) + at;
    struct __align__(4 * values) Step {
      float at[values];
    } grad = {}, read;
    if (used[entry]) {
      read = *reinterpret_cast<const Step*>(x);
      for (int v = 0; v < values; ++v)
        grad.at[v] =
            scaled_grad(scaling[pixel][row], read.at[v], sums[entry * width + d + v]);
    }
    *reinterpret_cast<Step*>((pixel ? pixel_grad : semantic_grad) + at) = grad;
  }
}

// Are the halves whole pieces, and all of these aligned?
template <typename... Pointers>
bool in_pieces(const Books& books, Pointers... others) {
  const uintptr_t addresses = reinterpret_cast<uintptr_t>(books.semantic) |
                              reinterpret_cast<uintptr_t>(books.pixel) |
                              (reinterpret_cast<uintptr_t>(others) | ...);
  return books.semantic_width % 4 == 0 && books.pixel_width % 4 == 0 &&
         addresses % 16 == 0;
}

}  // namespace

void lookup_cuda(const int64_t* indices, int64_t n, const Books& books, float* rows,
                 int device, void* stream) {
  if (n == 0) return;
  const DeviceGuard guard(device);
  const auto s = static_cast<cudaStream_t>(stream);
  const int64_t width = books.semantic_width + books.pixel_width;
  if (width <= kMaxWidth && in_pieces(books, rows)) {
    const int all = static_cast<int>(width / 4), stride = all | 1;
    const Pieces pieces{static_cast<int>(books.semantic_width / 4), all, stride};
    lookup_pieces<<<launch_blocks(n, kRows), kThreads, kRows * stride * 16, s>>>(
        indices, n, books, pieces, reinterpret_cast<float4*>(rows));
  } else {
    lookup_values<<<launch_blocks(n, kRows), kThreads, 0, s>>>(indices, n, books, rows);
  }
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
  const unsigned blocks = launch_blocks(books.k, kRows);
  if (in_pieces(books, semantic_grad, pixel_grad))
    scale_grads<4>
        <<<blocks, kThreads, 0, s>>>(books, sums, used, semantic_grad, pixel_grad);
  else
    scale_grads<1>
        <<<blocks, kThreads, 0, s>>>(books, sums, used, semantic_grad, pixel_grad);
  check_cuda(cudaGetLastError(), "lookup_backward");
}

}  // namespace tokenflow
