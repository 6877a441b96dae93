/*
group_norm_silu, CUDA. Meaning: the reference in tokenflow_ext/ops/group_norm_silu.py.
Not yet run on a GPU; the source is tested on the CPU (tests/cuda_on_cpu).

Algorithm  Contiguous: a group lies in one piece, which is cut into chunks, one block
           each. 1. Every block writes Σx and Σx² of its chunk. 2. Every block adds up
           its group's chunks, always in the same order, and applies the norm and SiLU
           to its own, last chunks first: they are what a cache still holds.
           channels_last: 1. A block adds up some pixels, each thread its own channels.
           2. One block per group adds up its channels and writes what each is centered
           on, scaled and shifted by. 3. Threads apply that to their own channels.
Loads      16 bytes, four at a time before the first is used; single elements where
           channels, cells or addresses do not allow it.
Traffic    Reads x twice, the second time from L2 where it holds x; writes y once. At
           most 256 chunks of two float64 per group, or per channel.
Numerics   A thread's loads are added up in float32, then the squares around their own
           mean; across loads, threads and chunks in float64. So the variance keeps its
           digits where the mean is large or an outlier stands first. One order, no
           atomics: deterministic, the same in every batch and place. y may be x.
Needs      Any size; offsets are 64-bit.
*/
#include <algorithm>
#include <type_traits>

#include "common/cuda_device.cuh"
#include "ops/norm/group_norm_silu_plain.h"

namespace tokenflow {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kLoads = 4;            // of a thread, before the first is used
constexpr int64_t kMaxChunks = 256;  // per group, or per picture
static_assert(kMaxChunks <= kThreads);

int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

// `values` elements that lie side by side, aligned to their size.
template <class T, int values>
struct __align__(sizeof(T) * values) Vector {
  T at[values];
};
template <class T>
constexpr int kWide = 16 / static_cast<int>(sizeof(T));

struct Moments {
  double sum, squares;
};
__device__ Moments operator+(Moments a, Moments b) {
  return {a.sum + b.sum, a.squares + b.squares};
}

// Of `count` values, as many as x has or the first ones: the sum, and the squares
// around the values' own mean, which float32 holds well; the rest is float64.
template <int size>
__device__ Moments moments_of(const float (&x)[size], int count) {
  float sum = 0.0f, spread = 0.0f;
#pragma unroll
  for (int i = 0; i < size; ++i)
    if (i < count) sum += x[i];
  const float mean = sum / static_cast<float>(count);
#pragma unroll
  for (int i = 0; i < size; ++i)
    if (i < count) spread += (x[i] - mean) * (x[i] - mean);
  // Σx² = Σ(x − m)² + m · (2 Σx − n · m) for any m.
  const double total = sum, m = mean;
  return {total, spread + m * (2.0 * total - count * m)};
}

// The sum over all threads of a block, on every thread.
__device__ Moments block_sum(Moments value) {
  __shared__ Moments of_warp[kWarps];
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value.sum += __shfl_down_sync(0xffffffffu, value.sum, offset);
    value.squares += __shfl_down_sync(0xffffffffu, value.squares, offset);
  }
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = value;
  __syncthreads();
  Moments total = of_warp[0];
#pragma unroll
  for (int i = 1; i < kWarps; ++i) total = total + of_warp[i];
  return total;
}

// What a group goes through, but for its weights.
struct Standard {
  float center, left, scale;  // mean = center + left
};
__device__ Standard standard_of(Moments of_group, double count, double eps) {
  const Affine a = group_affine(of_group.sum, of_group.squares, count, eps, 1.0f, 0.0f);
  const double mean = of_group.sum / count;
  return {a.center, static_cast<float>(mean - a.center), a.scale};
}
__device__ Affine with_weights(const Standard& s, float weight, float bias) {
  const float scale = s.scale * weight;
  return {s.center, scale, bias - s.left * scale};
}

template <class T>
__device__ void apply(const Affine& a, T& value) {
  from_float(silu((to_float(value) - a.center) * a.scale + a.shift), value);
}

// --- contiguous: [batch · groups, elements of a group] ---

struct Chunks {
  int64_t count;  // of elements in a group
  int64_t size;   // of elements in a chunk
  int64_t chunks;
};

template <class T, int values>
Chunks chunks_of(const GroupNormSilu& op) {
  const int64_t count = op.channels / op.groups * op.area;
  const int64_t step = int64_t{kThreads} * kLoads * values;
  const int64_t size =
      std::max<int64_t>(1, divide_up(divide_up(count, step), kMaxChunks)) * step;
  return {count, size, divide_up(count, size)};
}

template <class T, int values>
__global__ void __launch_bounds__(kThreads)
    sum_chunk(const T* x, Chunks c, Moments* sums) {
  const int64_t group = blockIdx.x / c.chunks, chunk = blockIdx.x % c.chunks;
  const T* from = x + group * c.count;
  const int64_t end = min(c.count, (chunk + 1) * c.size);
  Moments sum = {0.0, 0.0};
  for (int64_t first = chunk * c.size + threadIdx.x * values; first < end;
       first += int64_t{kThreads} * kLoads * values) {
    Vector<T, values> loaded[kLoads];
    int count = 0;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int64_t e = first + int64_t{i} * kThreads * values;
      if (e >= end) continue;
      loaded[i] = *reinterpret_cast<const Vector<T, values>*>(from + e);
      count += values;
    }
    float v[kLoads * values];
#pragma unroll
    for (int i = 0; i < kLoads * values; ++i)
      v[i] = i < count ? to_float(loaded[i / values].at[i % values]) : 0.0f;
    sum = sum + moments_of(v, count);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// n / by, mostly in 32 bits.
__device__ int64_t quotient(int64_t n, int64_t by) {
  if ((n | by) >> 32 == 0) return static_cast<unsigned>(n) / static_cast<unsigned>(by);
  return n / by;
}

template <class T, int values>
__global__ void __launch_bounds__(kThreads)
    apply_chunk(GroupNormSilu op, Chunks c, const Moments* sums, int64_t blocks) {
  const int64_t block = blocks - 1 - blockIdx.x;
  const int64_t group = block / c.chunks, chunk = block % c.chunks;
  Moments sum = {0.0, 0.0};
  if (threadIdx.x < c.chunks) sum = sums[group * c.chunks + threadIdx.x];
  const Standard standard =
      standard_of(block_sum(sum), static_cast<double>(c.count), op.eps);
  const int64_t width = op.channels / op.groups;
  const float* weight = op.weight + group % op.groups * width;
  const float* bias = op.bias + group % op.groups * width;
  const T* from = static_cast<const T*>(op.x) + group * c.count;
  T* to = static_cast<T*>(op.y) + group * c.count;
  const int64_t end = min(c.count, (chunk + 1) * c.size);
  for (int64_t first = chunk * c.size + threadIdx.x * values; first < end;
       first += int64_t{kThreads} * kLoads * values) {
    Vector<T, values> loaded[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int64_t e = first + int64_t{i} * kThreads * values;
      if (e < end) loaded[i] = *reinterpret_cast<const Vector<T, values>*>(from + e);
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int64_t e = first + int64_t{i} * kThreads * values;
      if (e >= end) continue;
      const int64_t channel = quotient(e, op.area);  // alike for a whole vector
      const Affine a = with_weights(standard, weight[channel], bias[channel]);
#pragma unroll
      for (int j = 0; j < values; ++j) apply(a, loaded[i].at[j]);
      *reinterpret_cast<Vector<T, values>*>(to + e) = loaded[i];
    }
  }
}

// --- channels_last: [batch, area, channels] ---

// Threads of a block stand side by side over `across` vectors of a pixel, in `down`
// pixels at once; a block takes `pixels` pixels.
struct Strips {
  int64_t columns;  // vectors of a pixel
  int across, down;
  int64_t slabs;  // of columns
  int64_t pixels, chunks;
};

template <class T, int values>
Strips strips_of(const GroupNormSilu& op) {
  Strips s;
  s.columns = op.channels / values;
  s.across = static_cast<int>(std::min<int64_t>(s.columns, kThreads));
  s.down = kThreads / s.across;
  s.slabs = divide_up(s.columns, s.across);
  const int64_t step = int64_t{s.down} * kLoads;
  s.pixels = divide_up(divide_up(op.area, step), kMaxChunks) * step;
  s.chunks = divide_up(op.area, s.pixels);
  return s;
}

// This thread's first pixel and column; none where the column lies outside.
struct Stand {
  int64_t b, chunk, column, pixel, end;
  int down;
  bool inside;
};
__device__ Stand stand_of(const Strips& s, int64_t area, int64_t block) {
  Stand at;
  const int64_t slab = block % s.slabs;
  block /= s.slabs;
  at.chunk = block % s.chunks;
  at.b = block / s.chunks;
  at.down = static_cast<int>(threadIdx.x) / s.across;
  at.column = slab * s.across + threadIdx.x % s.across;
  at.pixel = at.chunk * s.pixels + at.down;
  at.end = min(area, (at.chunk + 1) * s.pixels);
  at.inside = at.down < s.down && at.column < s.columns;
  return at;
}

template <class T, int values>
__global__ void __launch_bounds__(kThreads)
    sum_pixels(const T* x, int64_t area, int64_t channels, Strips s, Moments* sums) {
  __shared__ Moments of_thread[kThreads];
  const Stand at = stand_of(s, area, blockIdx.x);
  const T* from = x + at.b * area * channels + at.column * values;
  Moments sum[values] = {};
  for (int64_t first = at.pixel; at.inside && first < at.end;
       first += int64_t{kLoads} * s.down) {
    Vector<T, values> loaded[kLoads];
    int count = 0;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int64_t pixel = first + int64_t{i} * s.down;
      if (pixel >= at.end) continue;
      loaded[i] = *reinterpret_cast<const Vector<T, values>*>(from + pixel * channels);
      ++count;
    }
#pragma unroll
    for (int j = 0; j < values; ++j) {
      float v[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i)
        v[i] = i < count ? to_float(loaded[i].at[j]) : 0.0f;
      sum[j] = sum[j] + moments_of(v, count);
    }
  }
#pragma unroll
  for (int j = 0; j < values; ++j) {
    of_thread[threadIdx.x] = sum[j];
    __syncthreads();
    if (at.down == 0 && at.inside) {
      Moments total = sum[j];
      for (int i = 1; i < s.down; ++i)
        total = total + of_thread[threadIdx.x + i * s.across];
      sums[(at.b * s.chunks + at.chunk) * channels + at.column * values + j] = total;
    }
    __syncthreads();
  }
}

// One block per picture and group.
__global__ void __launch_bounds__(kThreads)
    write_affine(GroupNormSilu op, int64_t chunks, const Moments* sums,
                 Affine* affine) {
  const int64_t b = blockIdx.x / op.groups, group = blockIdx.x % op.groups;
  const int64_t width = op.channels / op.groups;
  Moments sum = {0.0, 0.0};
  for (int64_t i = threadIdx.x; i < chunks * width; i += kThreads)
    sum =
        sum + sums[(b * chunks + i / width) * op.channels + group * width + i % width];
  const Standard standard =
      standard_of(block_sum(sum), static_cast<double>(width * op.area), op.eps);
  for (int64_t i = threadIdx.x; i < width; i += kThreads) {
    const int64_t c = group * width + i;
    affine[b * op.channels + c] = with_weights(standard, op.weight[c], op.bias[c]);
  }
}

template <class T, int values>
__global__ void __launch_bounds__(kThreads)
    apply_pixels(GroupNormSilu op, Strips s, const Affine* affine, int64_t blocks) {
  const Stand at = stand_of(s, op.area, blocks - 1 - blockIdx.x);
  if (!at.inside) return;
  const int64_t channel = at.column * values;
  Affine a[values];
#pragma unroll
  for (int j = 0; j < values; ++j) a[j] = affine[at.b * op.channels + channel + j];
  const T* from = static_cast<const T*>(op.x) + at.b * op.area * op.channels + channel;
  T* to = static_cast<T*>(op.y) + at.b * op.area * op.channels + channel;
  for (int64_t first = at.pixel; first < at.end; first += int64_t{kLoads} * s.down) {
    Vector<T, values> loaded[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int64_t pixel = first + int64_t{i} * s.down;
      if (pixel < at.end)
        loaded[i] =
            *reinterpret_cast<const Vector<T, values>*>(from + pixel * op.channels);
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int64_t pixel = first + int64_t{i} * s.down;
      if (pixel >= at.end) continue;
#pragma unroll
      for (int j = 0; j < values; ++j) apply(a[j], loaded[i].at[j]);
      *reinterpret_cast<Vector<T, values>*>(to + pixel * op.channels) = loaded[i];
    }
  }
}

template <class T, int values>
void run_contiguous(const GroupNormSilu& op, Moments* sums, cudaStream_t stream) {
  const Chunks c = chunks_of<T, values>(op);
  const int64_t blocks = op.batch * op.groups * c.chunks;
  sum_chunk<T, values><<<launch_blocks(blocks, 1), kThreads, 0, stream>>>(
      static_cast<const T*>(op.x), c, sums);
  apply_chunk<T, values>
      <<<launch_blocks(blocks, 1), kThreads, 0, stream>>>(op, c, sums, blocks);
}

template <class T, int values>
void run_last(const GroupNormSilu& op, Moments* sums, Affine* affine,
              cudaStream_t stream) {
  const Strips s = strips_of<T, values>(op);
  const int64_t blocks = op.batch * s.chunks * s.slabs;
  sum_pixels<T, values><<<launch_blocks(blocks, 1), kThreads, 0, stream>>>(
      static_cast<const T*>(op.x), op.area, op.channels, s, sums);
  write_affine<<<launch_blocks(op.batch * op.groups, 1), kThreads, 0, stream>>>(
      op, s.chunks, sums, affine);
  apply_pixels<T, values>
      <<<launch_blocks(blocks, 1), kThreads, 0, stream>>>(op, s, affine, blocks);
}

struct Workspace {
  Moments* sums;
  Affine* affine;
  int64_t bytes;
};

// Room for the smallest chunks, those of single elements.
Workspace carve(const GroupNormSilu& op, void* memory) {
  Carver carver{static_cast<char*>(memory)};
  Workspace w;
  const int64_t each = op.channels_last ? op.channels * strips_of<float, 1>(op).chunks
                                        : op.groups * chunks_of<float, 1>(op).chunks;
  w.sums = carver.take<Moments>(op.batch * each);
  w.affine = carver.take<Affine>(op.channels_last ? op.batch * op.channels : 0);
  w.bytes = carver.used;
  return w;
}

}  // namespace

int64_t group_norm_silu_cuda_workspace(const GroupNormSilu& op) {
  return carve(op, nullptr).bytes;
}

void group_norm_silu_cuda(const GroupNormSilu& op, void* workspace, int device,
                          void* stream_given) {
  if (op.batch * op.channels * op.area == 0) return;
  DeviceGuard guard(device);
  const cudaStream_t stream = static_cast<cudaStream_t>(stream_given);
  const Workspace w = carve(op, workspace);
  with_element(op.element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const int64_t run = op.channels_last ? op.channels : op.area;
    const bool wide = run % kWide<T> == 0 &&
                      reinterpret_cast<uintptr_t>(op.x) % 16 == 0 &&
                      reinterpret_cast<uintptr_t>(op.y) % 16 == 0;
    if (op.channels_last)
      wide ? run_last<T, kWide<T>>(op, w.sums, w.affine, stream)
           : run_last<T, 1>(op, w.sums, w.affine, stream);
    else
      wide ? run_contiguous<T, kWide<T>>(op, w.sums, stream)
           : run_contiguous<T, 1>(op, w.sums, stream);
  });
  check_cuda(cudaGetLastError(), "group_norm_silu");
}

}  // namespace tokenflow
