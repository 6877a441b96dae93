/*
pyramid_quantize and pyramid_lookup, CUDA. Meaning: the references in
tokenflow_ext/ops/pyramid.py. Not yet run on a GPU.

Algorithm  Per scale: pool, quantize_cuda, read, enlarge; one thread per value of each
           small kernel, all on the caller's stream. The search is nearly all the work.
Traffic    Neighbouring threads hold neighbouring channels of one cell, so the loads of
           pooling, reading and enlarging are contiguous; only the two transposes at the
           ends read or write with a stride.
Memory     One workspace: sum, residual, the largest scale's pooled cells, rows and
           indices, and what quantize_cuda asks for.
*/
#include <algorithm>

#include "common/cuda_device.cuh"
#include "ops/pyramid/pyramid.h"

namespace tokenflow {
namespace {

constexpr int kThreads = 256;

// One launch of a kernel with a thread per item.
template <typename Kernel, typename... Args>
void launch(cudaStream_t stream, int64_t items, Kernel kernel, Args... args) {
  if (items > 0)
    kernel<<<launch_blocks(items, kThreads), kThreads, 0, stream>>>(items, args...);
}

__global__ void to_channel_last(int64_t items, const float* in, int64_t channels,
                                int64_t cells, float* out) {
  const int64_t i = launch_item();
  if (i >= items) return;
  const int64_t c = i % channels, cell = i / channels % cells;
  out[i] = in[(i / channels / cells * channels + c) * cells + cell];
}

__global__ void to_channel_first(int64_t items, const float* in, int64_t channels,
                                 int64_t cells, float* out) {
  const int64_t i = launch_item();
  if (i >= items) return;
  const int64_t cell = i % cells, c = i / cells % channels;
  out[i] = in[(i / cells / channels * cells + cell) * channels + c];
}

__global__ void pool(int64_t items, const float* residual, Scale scale,
                     int64_t semantic_width, float* semantic, float* pixel) {
  const int64_t i = launch_item();
  if (i >= items) return;
  const int64_t c = i % scale.channels, n = i / scale.channels;
  const int64_t cells = cells_of(scale.cells);
  const float* map = residual + n / cells * cells_of(scale.grid) * scale.channels;
  const float value = pool_element(map, scale, n % cells, c);
  if (c < semantic_width)
    semantic[n * semantic_width + c] = value;
  else
    pixel[n * (scale.channels - semantic_width) + c - semantic_width] = value;
}

// Rows of the found entries, and the indices to their place among all scales.
__global__ void read_entries(int64_t items, const float* rows, const int64_t* found,
                             int64_t channels, int64_t each, int64_t tokens,
                             float* entries, int64_t* indices) {
  const int64_t i = launch_item();
  if (i >= items) return;
  const int64_t n = i / channels;
  entries[i] = entry_element(rows, found[n], channels, i % channels);
  if (i % channels == 0) indices[n / each * tokens + n % each] = found[n];
}

__global__ void add_enlarged(int64_t items, const float* entries, int64_t stride,
                             Scale scale, float* total, float* residual) {
  const int64_t i = launch_item();
  if (i >= items) return;
  const int64_t c = i % scale.channels, n = i / scale.channels;
  const int64_t cells = cells_of(scale.grid);
  const float value =
      enlarge_element(entries + n / cells * stride, taps_of(scale, n % cells), c);
  total[i] += value;
  if (residual) residual[i] -= value;
}

struct Workspace {
  float *residual, *total, *semantic, *pixel, *entries;
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
    search =
        std::max(search, quantize_cuda_workspace(n, book.k, pyramid.channels, device));
  }
  Carver carver{static_cast<char*>(memory)};
  Workspace w;
  w.residual = carver.take<float>(map);
  w.total = carver.take<float>(map);
  w.semantic = carver.take<float>(most * book.semantic_width);
  w.pixel = carver.take<float>(most * book.pixel_width);
  w.entries = carver.take<float>(most * pyramid.channels);
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
  const int64_t map = pyramid.batch * channels * cells, tokens = tokens_of(pyramid);
  check_cuda(cudaMemsetAsync(w.total, 0, map * sizeof(float), s), "pyramid_quantize");
  launch(s, map, to_channel_last, features, channels, cells, w.residual);
  int64_t before = 0;  // tokens of the coarser scales
  for (int64_t i = 0; i < pyramid.count; ++i) {
    const Scale scale = scale_of(pyramid, i);
    const int64_t each = cells_of(scale.cells), n = pyramid.batch * each;
    launch(s, n * channels, pool, w.residual, scale, book.semantic_width, w.semantic,
           w.pixel);
    quantize_cuda({w.semantic, w.pixel, n, pixel_weight, normalize}, book, w.found,
                  w.search, device, stream);
    launch(s, n * channels, read_entries, book.rows, w.found, channels, each, tokens,
           w.entries, indices + before);
    launch(s, map, add_enlarged, w.entries, each * channels, scale, w.total,
           w.residual);
    before += each;
  }
  launch(s, map, to_channel_first, w.total, channels, cells, quantized);
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
  check_cuda(cudaMemsetAsync(total, 0, map * sizeof(float), s), "pyramid_lookup");
  lookup_cuda(indices, pyramid.batch * tokens, books, entries, device, stream);
  int64_t before = 0;
  for (int64_t i = 0; i < pyramid.count; ++i) {
    const Scale scale = scale_of(pyramid, i);
    launch(s, map, add_enlarged, entries + before * channels, tokens * channels, scale,
           total, static_cast<float*>(nullptr));
    before += cells_of(scale.cells);
  }
  launch(s, map, to_channel_first, total, channels, cells, quantized);
  check_cuda(cudaGetLastError(), "pyramid_lookup");
}

}  // namespace tokenflow
