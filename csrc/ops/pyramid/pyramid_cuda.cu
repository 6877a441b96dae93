/*
pyramid_quantize and pyramid_lookup, CUDA. Meaning: the references in
tokenflow_ext/ops/pyramid.py. Not yet run on a GPU; the source is tested on the CPU
(tests/cuda_on_cpu).

Algorithm  Per scale: pool, quantize_cuda, add_enlarged, which reads the found entries
           where they are and also writes the indices to their place; all on the
caller's stream, with nothing that waits for the host. A block of add_enlarged first
           finds the sixteen sources of its cells, one thread each; then neighbouring
           threads hold neighbouring channels of one cell.
Traffic    The map is read and written once per scale, and pooled once; sum and residual
           stay in L2. Turning the map to channels last and back goes through tiles in
           shared memory, so that both sides are read and written side by side.
Numerics   The element bodies of pyramid.h, or the same additions in the same order.
Memory     One workspace: sum, residual, the largest scale's pooled cells and indices,
           and what quantize_cuda asks for.
*/
#include <algorithm>

#include "common/cuda_device.cuh"
#include "ops/pyramid/pyramid.h"

namespace tokenflow {
namespace {

constexpr int kThreads = 256;

// [batch, rows, columns] -> [batch, columns, rows], a tile of 32 × 32 a block.
constexpr int kTile = 32;

__global__ void __launch_bounds__(kThreads)
    transpose(const float* in, int64_t rows, int64_t columns, float* out) {
  __shared__ float tile[kTile][kTile + 1];
  const int64_t across = (columns + kTile - 1) / kTile;
  const int64_t down = (rows + kTile - 1) / kTile;
  const int64_t column0 = blockIdx.x % across * kTile;
  const int64_t row0 = blockIdx.x / across % down * kTile;
  const int64_t offset = blockIdx.x / across / down * rows * columns;
  const int lane = threadIdx.x % kTile;
  for (int i = threadIdx.x / kTile; i < kTile; i += kThreads / kTile)
    if (row0 + i < rows && column0 + lane < columns)
      tile[i][lane] = in[offset + (row0 + i) * columns + column0 + lane];
  __syncthreads();
  for (int i = threadIdx.x / kTile; i < kTile; i += kThreads / kTile)
    if (column0 + i < columns && row0 + lane < rows)
      out[offset + (column0 + i) * rows + row0 + lane] = tile[lane][i];
}

void launch_transpose(cudaStream_t stream, const float* in, int64_t batch, int64_t rows,
                      int64_t columns, float* out) {
  const int64_t tiles = (rows + kTile - 1) / kTile * ((columns + kTile - 1) / kTile);
  transpose<<<launch_blocks(batch * tiles, 1), kThreads, 0, stream>>>(in, rows, columns,
                                                                      out);
}

// pool_element, with the loads of eight cells under way before the first is added.
__device__ float pool_cells(const float* map, const Scale& scale, int64_t cell,
                            int64_t channel) {
  constexpr int kLoads = 8;
  const Grid in = scale.grid, out = scale.cells;
  const int64_t row = cell / out.width, column = cell % out.width;
  const int64_t row_first = bin_first(row, in.height, out.height);
  const int64_t row_last = bin_last(row, in.height, out.height);
  const int64_t column_first = bin_first(column, in.width, out.width);
  const int64_t column_last = bin_last(column, in.width, out.width);
  double sum = 0.0;
  for (int64_t y = row_first; y < row_last; ++y) {
    const float* line = map + y * in.width * scale.channels + channel;
    for (int64_t x = column_first; x < column_last; x += kLoads) {
      float value[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i)
        if (x + i < column_last) value[i] = line[(x + i) * scale.channels];
#pragma unroll
      for (int i = 0; i < kLoads; ++i)
        if (x + i < column_last) sum += static_cast<double>(value[i]);
    }
  }
  return static_cast<float>(
      sum / static_cast<double>((row_last - row_first) * (column_last - column_first)));
}

__global__ void __launch_bounds__(kThreads)
    pool(int64_t items, const float* residual, Scale scale, int64_t semantic_width,
         float* semantic, float* pixel) {
  const int64_t i = launch_item();
  if (i >= items) return;
  const int64_t c = i % scale.channels, n = i / scale.channels;
  const int64_t cells = cells_of(scale.cells);
  const float* map = residual + n / cells * cells_of(scale.grid) * scale.channels;
  const float value = pool_cells(map, scale, n % cells, c);
  if (c < semantic_width)
    semantic[n * semantic_width + c] = value;
  else
    pixel[n * (scale.channels - semantic_width) + c - semantic_width] = value;
}

// Where a scale's entries are read: row found[n] of `rows`, or n-th row of a picture.
struct Entries {
  const float* rows;
  const int64_t* found;  // [batch, cells of the scale], or null
  int64_t picture;       // rows of a picture, where nothing is found
  int64_t* indices;      // where the found ones go among all scales, or null
  int64_t tokens;        // of all scales
};

constexpr int kCells = kThreads / 16;  // of the full grid, in one block

// Adds a scale's enlarged entries to the sum, which is zero before the first scale, and
// takes them from the residual, which is not needed after the last.
__global__ void __launch_bounds__(kThreads)
    add_enlarged(Scale scale, Entries from, bool first, float* total, float* residual) {
  __shared__ int64_t row[kCells][16];
  __shared__ float weight[kCells][16];
  const int64_t cells = cells_of(scale.grid), each = cells_of(scale.cells);
  const int64_t channels = scale.channels;
  const int64_t n0 = blockIdx.x * static_cast<int64_t>(kCells);
  const int64_t count = min(static_cast<int64_t>(kCells), scale.batch * cells - n0);
  const int cell = threadIdx.x / 16, t = threadIdx.x % 16;
  if (cell < count) {  // one thread per cell and tap
    const int64_t n = n0 + cell, b = n / cells;
    const Tap tap = tap_of(scale, n % cells, t);
    row[cell][t] =
        from.found ? from.found[b * each + tap.source] : b * from.picture + tap.source;
    weight[cell][t] = tap.weight;
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < count * channels; i += kThreads) {
    const int64_t own = i / channels, c = i % channels, at = n0 * channels + i;
    double sum = 0.0;
#pragma unroll
    for (int k = 0; k < 16; ++k)
      sum += static_cast<double>(weight[own][k]) *
             static_cast<double>(entry_element(from.rows, row[own][k], channels, c));
    const float value = static_cast<float>(sum);
    total[at] = (first ? 0.0f : total[at]) + value;
    if (residual) residual[at] -= value;
  }
  if (!from.indices) return;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t n = launch_item(); n < scale.batch * each; n += step)
    from.indices[n / each * from.tokens + n % each] = from.found[n];
}

void launch_add(cudaStream_t stream, const Scale& scale, const Entries& from,
                bool first, float* total, float* residual) {
  const unsigned blocks = launch_blocks(scale.batch * cells_of(scale.grid), kCells);
  add_enlarged<<<blocks, kThreads, 0, stream>>>(scale, from, first, total, residual);
}

struct Workspace {
  float *residual, *total, *semantic, *pixel;
  int64_t* found;
  char* search;
  int64_t bytes;
};

Workspace carve(void* memory, const Pyramid& pyramid, const PreparedBook& book,
                int device) {
  const int64_t map = pyramid.batch * pyramid.channels * cells_of(pyramid.grid);
  int64_t most = 0, search = 0;
  for (int64_t i = 0; i < pyramid.count; ++i) {
    const int64_t n = pyramid.batch * cells_of(scale_of(pyramid, i).cells);
    most = std::max(most, n);
    search = std::max(search, quantize_cuda_workspace({nullptr, nullptr, n, 1.0f, true},
                                                      book, device));
  }
  Carver carver{static_cast<char*>(memory)};
  Workspace w;
  w.residual = carver.take<float>(map);
  w.total = carver.take<float>(map);
  w.semantic = carver.take<float>(most * book.semantic_width);
  w.pixel = carver.take<float>(most * book.pixel_width);
  w.found = carver.take<int64_t>(most);
  w.search = carver.take<char>(search);
  w.bytes = carver.used;
  return w;
}

}  // namespace

int64_t pyramid_quantize_cuda_workspace(const Pyramid& pyramid,
                                        const PreparedBook& book, int device) {
  return carve(nullptr, pyramid, book, device).bytes;
}

int64_t pyramid_lookup_cuda_workspace(const Pyramid& pyramid) {
  Carver carver{nullptr};
  carver.take<float>(pyramid.batch * pyramid.channels * cells_of(pyramid.grid));
  carver.take<float>(pyramid.batch * pyramid.channels * tokens_of(pyramid));
  return carver.used;
}

void pyramid_quantize_cuda(const float* features, const PreparedBook& book,
                           float pixel_weight, bool normalize, const Pyramid& pyramid,
                           int64_t* indices, float* quantized, void* workspace,
                           int device, void* stream) {
  if (pyramid.batch == 0) return;
  const DeviceGuard guard(device);
  const auto s = static_cast<cudaStream_t>(stream);
  const Workspace w = carve(workspace, pyramid, book, device);
  const int64_t channels = pyramid.channels, cells = cells_of(pyramid.grid);
  const int64_t tokens = tokens_of(pyramid);
  launch_transpose(s, features, pyramid.batch, channels, cells, w.residual);
  int64_t before = 0;  // tokens of the coarser scales
  for (int64_t i = 0; i < pyramid.count; ++i) {
    const Scale scale = scale_of(pyramid, i);
    const int64_t each = cells_of(scale.cells), n = pyramid.batch * each;
    pool<<<launch_blocks(n * channels, kThreads), kThreads, 0, s>>>(
        n * channels, w.residual, scale, book.semantic_width, w.semantic, w.pixel);
    quantize_cuda({w.semantic, w.pixel, n, pixel_weight, normalize}, book, w.found,
                  w.search, device, stream);
    launch_add(s, scale, {book.rows, w.found, 0, indices + before, tokens}, i == 0,
               w.total, i + 1 < pyramid.count ? w.residual : nullptr);
    before += each;
  }
  launch_transpose(s, w.total, pyramid.batch, cells, channels, quantized);
  check_cuda(cudaGetLastError(), "pyramid_quantize");
}

void pyramid_lookup_cuda(const int64_t* indices, const Books& books,
                         const Pyramid& pyramid, float* quantized, void* workspace,
                         int device, void* stream) {
  if (pyramid.batch == 0) return;
  const DeviceGuard guard(device);
  const auto s = static_cast<cudaStream_t>(stream);
  const int64_t channels = pyramid.channels, cells = cells_of(pyramid.grid);
  const int64_t map = pyramid.batch * channels * cells, tokens = tokens_of(pyramid);
  Carver carver{static_cast<char*>(workspace)};
  float* total = carver.take<float>(map);
  float* entries = carver.take<float>(pyramid.batch * channels * tokens);
  lookup_cuda(indices, pyramid.batch * tokens, books, entries, device, stream);
  int64_t before = 0;
  for (int64_t i = 0; i < pyramid.count; ++i) {
    const Scale scale = scale_of(pyramid, i);
    launch_add(s, scale, {entries + before * channels, nullptr, tokens}, i == 0, total,
               nullptr);
    before += cells_of(scale.cells);
  }
  launch_transpose(s, total, pyramid.batch, cells, channels, quantized);
  check_cuda(cudaGetLastError(), "pyramid_lookup");
}

}  // namespace tokenflow
