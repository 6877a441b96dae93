/*
quantize and prepare, CUDA. Meaning: quantize.h. Not yet run on a GPU.

Algorithm  A block sweeps its part of the book for kQueries queries: float32 scores of a
           kQueries × kEntries tile in registers, 4 × 4 a thread. Scores that beat their
           query's threshold are listed in shared memory, scored again in float64 in
           the contract's order, and only those exact scores decide.
Tiles      64 queries × 64 entries, 256 threads, the width in chunks of 32.
Shared     2 · 64 · 33 floats for the tile, 4096 two-byte candidates, and five words
           per query.
Parts      Few queries leave the chip empty, so the book is cut into parts along
           blockIdx.y; merge takes the best of them, ties to the smallest entry.
Traffic    Reads the queries once a part and the book once a 64 queries; N×K is never
           stored. Workspace: packed queries, offsets and one state per query and part.
Numerics   sweep_error bounds the float32 sweep, whatever its order; the list holds a
           whole tile, so no candidate is lost on degenerate books. Deterministic.
Needs      k < 2³¹ · 64, n < 2³¹ · 64; any width.
*/
#include <algorithm>

#include "common/cuda_device.cuh"
#include "common/numerics.h"
#include "ops/quantize/quantize.h"

namespace tokenflow {
namespace {

constexpr int kQueries = 64;
constexpr int kEntries = 64;
constexpr int kChunk = 32;
constexpr int kThreads = 256;
constexpr int kPerThread = 4;  // queries and entries of a thread's square
static_assert(kThreads * kPerThread * kPerThread == kQueries * kEntries);
constexpr int kStride = kChunk + 1;  // one word of padding keeps banks apart

// Order of doubles as order of integers, both zeros alike; never 0 for a number.
__device__ unsigned long long ordered(double x) {
  const long long bits = __double_as_longlong(x + 0.0);
  return bits < 0 ? ~static_cast<unsigned long long>(bits)
                  : static_cast<unsigned long long>(bits) | 0x8000000000000000ull;
}

__device__ double unordered(unsigned long long key) {
  return __longlong_as_double(static_cast<long long>(
      key & 0x8000000000000000ull ? key & 0x7fffffffffffffffull : ~key));
}

struct Workspace {
  float* query;    // [n, width], normalised, pixel half weighted
  double* error;   // [n]; −1 marks a query that is not finite
  double* offset;  // [k]
  double* best;    // [parts, n]
  int64_t* index;  // [parts, n]
  int64_t bytes;
};

int parts_for(int64_t n, int64_t k, int device) {
  int processors = 1;
  check_cuda(
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
      "cudaDeviceGetAttribute");
  const int64_t panels = std::max<int64_t>(1, (n + kQueries - 1) / kQueries);
  const int64_t wanted = (2 * processors + panels - 1) / panels;
  return static_cast<int>(
      std::clamp<int64_t>(std::min(wanted, k / (4 * kEntries)), 1, 1024));
}

Workspace carve(void* memory, int64_t n, int64_t k, int64_t width, int64_t parts) {
  Carver carver{static_cast<char*>(memory)};
  Workspace w;
  w.query = carver.take<float>(n * width);
  w.error = carver.take<double>(n);
  w.offset = carver.take<double>(k);
  w.best = carver.take<double>(parts * n);
  w.index = carver.take<int64_t>(parts * n);
  w.bytes = carver.used;
  return w;
}

__global__ void pack_queries(Queries queries, PreparedBook book, Workspace w) {
  const int64_t n = launch_item();
  if (n >= queries.n) return;
  const int64_t ds = book.semantic_width, dp = book.pixel_width, width = ds + dp;
  const float* semantic = queries.semantic + n * ds;
  const float* pixel = queries.pixel + n * dp;
  float* row = w.query + n * width;
  const double semantic_norm = row_norm(sum_of_squares(semantic, ds));
  const double pixel_norm = row_norm(sum_of_squares(pixel, dp));
  for (int64_t d = 0; d < ds; ++d)
    row[d] = queries.normalize ? normalized(semantic[d], semantic_norm) : semantic[d];
  for (int64_t d = 0; d < dp; ++d)
    row[ds + d] = queries.pixel_weight *
                  (queries.normalize ? normalized(pixel[d], pixel_norm) : pixel[d]);
  const double squares = sum_of_squares(row, width);
  if (!is_finite(squares) || !is_finite(semantic_norm + pixel_norm)) {
    w.error[n] = -1.0;  // and zeros: a NaN would pass for a candidate
    for (int64_t d = 0; d < width; ++d) row[d] = 0.0f;
    return;
  }
  const double offset =
      entry_offset(book.limits[1], book.limits[2], queries.pixel_weight);
  w.error[n] = sweep_error(sqrt(squares) * sqrt(book.limits[0]) + offset, width);
}

__global__ void entry_offsets(PreparedBook book, float pixel_weight, double* offset) {
  const int64_t k = launch_item();
  if (k < book.k)
    offset[k] =
        entry_offset(book.squares[2 * k], book.squares[2 * k + 1], pixel_weight);
}

struct TileState {
  float query[kQueries * kStride];
  float entry[kEntries * kStride];
  unsigned short candidate[kQueries * kEntries];
  int candidates;
  unsigned long long key[kQueries];         // best score so far, as an ordered integer
  unsigned long long key_before[kQueries];  // the same before this tile
  unsigned long long index[kQueries];
  double error[kQueries];
  float threshold[kQueries];
};

// Scores of this thread's 4 × 4 square of the tile, in float32.
__device__ void sweep_tile(TileState& tile, const Workspace& w,
                           const PreparedBook& book, int64_t n, int64_t n0, int64_t k0,
                           int64_t k_end, float (&score)[kPerThread][kPerThread]) {
  const int64_t width = book.semantic_width + book.pixel_width;
  const int row = threadIdx.x / 16, column = threadIdx.x % 16;
  for (int64_t d0 = 0; d0 < width; d0 += kChunk) {
    for (int i = threadIdx.x; i < kQueries * kChunk; i += kThreads) {
      const int64_t line = i / kChunk, d = d0 + i % kChunk;
      const bool inside = d < width;
      tile.query[line * kStride + i % kChunk] =
          inside && n0 + line < n ? w.query[(n0 + line) * width + d] : 0.0f;
      tile.entry[line * kStride + i % kChunk] =
          inside && k0 + line < k_end ? book.rows[(k0 + line) * width + d] : 0.0f;
    }
    __syncthreads();
    const int depth = static_cast<int>(min(static_cast<int64_t>(kChunk), width - d0));
    for (int d = 0; d < depth; ++d) {
      float q[kPerThread], e[kPerThread];
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) {
        q[i] = tile.query[(row + 16 * i) * kStride + d];
        e[i] = tile.entry[(column + 16 * i) * kStride + d];
      }
#pragma unroll
      for (int i = 0; i < kPerThread; ++i)
#pragma unroll
        for (int j = 0; j < kPerThread; ++j)
          score[i][j] = fmaf(q[i], e[j], score[i][j]);
    }
    __syncthreads();
  }
}

// The contract: exact scores of the listed candidates decide. Entries of later tiles
// are larger, so an equal score there never replaces an earlier one.
__device__ void decide(TileState& tile, const Workspace& w, const PreparedBook& book,
                       int64_t n0, int64_t k0) {
  const int64_t width = book.semantic_width + book.pixel_width;
  auto score_of = [&](int candidate, int* line) {
    *line = candidate / kEntries;
    const int64_t k = k0 + candidate % kEntries;
    return ordered(
        exact_dot(w.query + (n0 + *line) * width, 1, book.rows + k * width, width) -
        w.offset[k]);
  };
  int line;
  for (int c = threadIdx.x; c < tile.candidates; c += kThreads) {
    const unsigned long long key = score_of(tile.candidate[c], &line);
    atomicMax(&tile.key[line], key);
  }
  __syncthreads();
  if (threadIdx.x < kQueries && tile.key[threadIdx.x] > tile.key_before[threadIdx.x])
    tile.index[threadIdx.x] = ~0ull;
  __syncthreads();
  for (int c = threadIdx.x; c < tile.candidates; c += kThreads) {
    const unsigned long long key = score_of(tile.candidate[c], &line);
    if (key == tile.key[line] && key > tile.key_before[line])
      atomicMin(&tile.index[line],
                static_cast<unsigned long long>(k0 + tile.candidate[c] % kEntries));
  }
  __syncthreads();
  if (threadIdx.x < kQueries) {
    tile.key_before[threadIdx.x] = tile.key[threadIdx.x];
    const double best = unordered(tile.key[threadIdx.x]);
    tile.threshold[threadIdx.x] = static_cast<float>(best - tile.error[threadIdx.x]);
  }
  if (threadIdx.x == 0) tile.candidates = 0;
  __syncthreads();
}

__global__ void __launch_bounds__(kThreads)
    sweep(Workspace w, PreparedBook book, int64_t n, int64_t entries_per_part) {
  __shared__ TileState tile;
  const int64_t n0 = blockIdx.x * static_cast<int64_t>(kQueries);
  const int64_t first = blockIdx.y * entries_per_part;
  const int64_t last = min(book.k, first + entries_per_part);
  const int row = threadIdx.x / 16, column = threadIdx.x % 16;

  if (threadIdx.x < kQueries) {
    const bool live = n0 + threadIdx.x < n && w.error[n0 + threadIdx.x] != -1.0;
    const double start = live ? -INFINITY : INFINITY;  // else unbeatable
    tile.key[threadIdx.x] = tile.key_before[threadIdx.x] = ordered(start);
    tile.index[threadIdx.x] = ~0ull;
    tile.error[threadIdx.x] = live ? w.error[n0 + threadIdx.x] : 0.0;
    tile.threshold[threadIdx.x] = static_cast<float>(start - tile.error[threadIdx.x]);
  }
  if (threadIdx.x == 0) tile.candidates = 0;
  __syncthreads();

  for (int64_t k0 = first; k0 < last; k0 += kEntries) {
    float score[kPerThread][kPerThread];
    bool inside[kPerThread];
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      const int64_t k = k0 + column + 16 * j;
      inside[j] = k < last;
      const float start = inside[j] ? -static_cast<float>(w.offset[k]) : 0.0f;
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) score[i][j] = start;
    }
    sweep_tile(tile, w, book, n, n0, k0, last, score);
    bool found = false;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i)
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        const int line = row + 16 * i;
        // A NaN on either side rules nothing out.
        if (inside[j] && !(score[i][j] <= tile.threshold[line])) {
          const int slot = atomicAdd(&tile.candidates, 1);
          tile.candidate[slot] =
              static_cast<unsigned short>(line * kEntries + column + 16 * j);
          found = true;
        }
      }
    if (__syncthreads_or(found)) decide(tile, w, book, n0, k0);
  }

  if (threadIdx.x < kQueries && n0 + threadIdx.x < n) {
    const int64_t at = blockIdx.y * n + n0 + threadIdx.x;
    w.best[at] = unordered(tile.key[threadIdx.x]);
    w.index[at] = static_cast<int64_t>(tile.index[threadIdx.x]);  // ~0: −1
  }
}

__global__ void merge(Workspace w, int64_t n, int parts, int64_t* indices) {
  const int64_t i = launch_item();
  if (i >= n) return;
  int64_t winner = i;
  for (int part = 1; part < parts; ++part)  // in order: ties go to the smallest
    if (w.best[part * n + i] > w.best[winner]) winner = part * n + i;
  indices[i] = w.index[winner];
}

// Squares are never negative, so their bits order as integers.
__device__ void raise_limit(double* limit, double value) {
  atomicMax(reinterpret_cast<unsigned long long*>(limit),
            static_cast<unsigned long long>(__double_as_longlong(value)));
}

__global__ void prepare_entries(const float* semantic, const float* pixel, int64_t k,
                                int64_t ds, int64_t dp, bool normalize, float* rows,
                                double* squares, double* limits) {
  const int64_t i = launch_item();
  if (i >= k) return;
  float* row = rows + i * (ds + dp);
  const double s = write_half(semantic + i * ds, ds, normalize, row);
  const double p = write_half(pixel + i * dp, dp, normalize, row + ds);
  if (!is_finite(s) || !is_finite(p)) {  // such an entry never wins
    for (int64_t d = 0; d < ds + dp; ++d) row[d] = 0.0f;
    squares[2 * i] = INFINITY;
    squares[2 * i + 1] = 0.0;
    return;
  }
  squares[2 * i] = normalize ? 0.0 : s;
  squares[2 * i + 1] = normalize ? 0.0 : p;
  raise_limit(limits, sum_of_squares(row, ds + dp));
  raise_limit(limits + 1, squares[2 * i]);
  raise_limit(limits + 2, squares[2 * i + 1]);
}

}  // namespace

void prepare_cuda(const float* semantic_book, const float* pixel_book, int64_t k,
                  int64_t semantic_width, int64_t pixel_width, bool normalize,
                  float* rows, double* squares, double* limits, int device,
                  void* stream) {
  const DeviceGuard guard(device);
  const auto s = static_cast<cudaStream_t>(stream);
  check_cuda(cudaMemsetAsync(limits, 0, 3 * sizeof(double), s), "prepare");
  prepare_entries<<<launch_blocks(k, 128), 128, 0, s>>>(
      semantic_book, pixel_book, k, semantic_width, pixel_width, normalize, rows,
      squares, limits);
  check_cuda(cudaGetLastError(), "prepare");
}

int64_t quantize_cuda_workspace(int64_t n, int64_t k, int64_t width, int device) {
  return carve(nullptr, n, k, width, parts_for(n, k, device)).bytes;
}

void quantize_cuda(const Queries& queries, const PreparedBook& book, int64_t* indices,
                   void* workspace, int device, void* stream) {
  if (queries.n == 0) return;
  const DeviceGuard guard(device);
  const auto s = static_cast<cudaStream_t>(stream);
  const int parts = parts_for(queries.n, book.k, device);
  const Workspace w = carve(workspace, queries.n, book.k,
                            book.semantic_width + book.pixel_width, parts);
  pack_queries<<<launch_blocks(queries.n, 128), 128, 0, s>>>(queries, book, w);
  entry_offsets<<<launch_blocks(book.k, 256), 256, 0, s>>>(book, queries.pixel_weight,
                                                           w.offset);
  const dim3 grid(launch_blocks(queries.n, kQueries), parts);
  sweep<<<grid, kThreads, 0, s>>>(w, book, queries.n, (book.k + parts - 1) / parts);
  merge<<<launch_blocks(queries.n, 256), 256, 0, s>>>(w, queries.n, parts, indices);
  check_cuda(cudaGetLastError(), "quantize");
}

}  // namespace tokenflow
