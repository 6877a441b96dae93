/*
The sweep for any width and any row: float32 on ordinary cores, exact scores for what
may win.

Algorithm  A block sweeps a part of the book for 64 queries: float32 scores of a 64 × 64
           tile in registers, 4 × 4 a thread. Scores that beat their query's threshold
           are listed in shared memory, scored again in float64 in the contract's order,
           and only those exact scores decide.
Parts      A fixed number of blocks shares panels × parts; with few queries each panel
           is cut into many parts. The last block of a panel takes the best of its
           parts, in their order: ties go to the smallest entry.
Shared     2 · 64 · 33 floats for the tile, 4096 two-byte candidates, and five words
           per query.
Numerics   sweep_error bounds the sweep, whatever its order; the list holds a whole
           tile, so no candidate is lost on degenerate books. Deterministic.
*/
#pragma once

#include "ops/quantize/search.cuh"

namespace tokenflow {
namespace {

constexpr int kQueries = 64;
constexpr int kEntries = 64;
constexpr int kChunk = 32;
constexpr int kPlainThreads = 256;
constexpr int kPerThread = 4;  // queries and entries of a thread's square
static_assert(kPlainThreads * kPerThread * kPerThread == kQueries * kEntries);
constexpr int kStride = kChunk + 1;  // one word of padding keeps banks apart

struct TileState {
  float query[kQueries * kStride];
  float entry[kEntries * kStride];
  unsigned short candidate[kQueries * kEntries];
  int candidates;
  int64_t row[kQueries];                    // which query; −1: none
  unsigned long long key[kQueries];         // best score so far, as an ordered integer
  unsigned long long key_before[kQueries];  // the same before this tile
  unsigned long long index[kQueries];
  double error[kQueries];
  float threshold[kQueries];
};

__device__ double offset_of(const Search& s, int64_t k) {
  return entry_offset(s.book.squares[2 * k], s.book.squares[2 * k + 1],
                      s.queries.pixel_weight);
}

// Scores of this thread's 4 × 4 square of the tile, in float32.
__device__ void sweep_tile(TileState& tile, const Search& s, int64_t k0, int64_t k_end,
                           float (&score)[kPerThread][kPerThread]) {
  const int row = threadIdx.x / 16, column = threadIdx.x % 16;
  for (int64_t d0 = 0; d0 < s.width; d0 += kChunk) {
    for (int i = threadIdx.x; i < kQueries * kChunk; i += kPlainThreads) {
      const int line = i / kChunk;
      const int64_t d = d0 + i % kChunk;
      const bool inside = d < s.width;
      tile.query[line * kStride + i % kChunk] =
          inside && tile.row[line] >= 0 ? s.query[tile.row[line] * s.width + d] : 0.0f;
      tile.entry[line * kStride + i % kChunk] =
          inside && k0 + line < k_end ? s.book.rows[(k0 + line) * s.width + d] : 0.0f;
    }
    __syncthreads();
    const int depth = static_cast<int>(min(static_cast<int64_t>(kChunk), s.width - d0));
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
__device__ void decide_tile(TileState& tile, const Search& s, int64_t k0) {
  auto score_of = [&](int candidate, int* line) {
    *line = candidate / kEntries;
    const int64_t k = k0 + candidate % kEntries;
    return ordered(exact_dot(s.query + tile.row[*line] * s.width, 1,
                             s.book.rows + k * s.width, s.width) -
                   offset_of(s, k));
  };
  int line;
  for (int c = threadIdx.x; c < tile.candidates; c += kPlainThreads) {
    const unsigned long long key = score_of(tile.candidate[c], &line);
    atomicMax(&tile.key[line], key);
  }
  __syncthreads();
  if (threadIdx.x < kQueries && tile.key[threadIdx.x] > tile.key_before[threadIdx.x])
    tile.index[threadIdx.x] = ~0ull;
  __syncthreads();
  for (int c = threadIdx.x; c < tile.candidates; c += kPlainThreads) {
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

__device__ void start_panel(TileState& tile, const Search& s, int64_t first,
                            int64_t rows, const int64_t* list) {
  if (threadIdx.x < kQueries) {
    const int64_t at = first + threadIdx.x;
    const int64_t row = at >= rows ? -1 : list ? list[at] : at;
    const bool live = row >= 0 && s.error[row] != -1.0;
    const double start = live ? -INFINITY : INFINITY;  // else unbeatable
    tile.row[threadIdx.x] = row;
    tile.key[threadIdx.x] = tile.key_before[threadIdx.x] = ordered(start);
    tile.index[threadIdx.x] = ~0ull;
    tile.error[threadIdx.x] = live ? s.error[row] : 0.0;
    tile.threshold[threadIdx.x] = static_cast<float>(start - tile.error[threadIdx.x]);
  }
  if (threadIdx.x == 0) tile.candidates = 0;
  __syncthreads();
}

__device__ void sweep_part(TileState& tile, const Search& s, int64_t first,
                           int64_t last) {
  const int row = threadIdx.x / 16, column = threadIdx.x % 16;
  for (int64_t k0 = first; k0 < last; k0 += kEntries) {
    float score[kPerThread][kPerThread];
    bool inside[kPerThread];
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      const int64_t k = k0 + column + 16 * j;
      inside[j] = k < last;
      const float start = inside[j] ? -static_cast<float>(offset_of(s, k)) : 0.0f;
#pragma unroll
      for (int i = 0; i < kPerThread; ++i) score[i][j] = start;
    }
    sweep_tile(tile, s, k0, last, score);
    bool found = false;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i)
#pragma unroll
      for (int j = 0; j < kPerThread; ++j) {
        const int line = row + 16 * i;
        // A NaN on either side rules nothing out; an empty line has no row to read.
        if (inside[j] && tile.row[line] >= 0 &&
            !(score[i][j] <= tile.threshold[line])) {
          const int slot = atomicAdd(&tile.candidates, 1);
          tile.candidate[slot] =
              static_cast<unsigned short>(line * kEntries + column + 16 * j);
          found = true;
        }
      }
    if (__syncthreads_or(found)) decide_tile(tile, s, k0);
  }
}

// All queries where `list` is null, else the `*count` that it names.
// hot: FFMA
__global__ void __launch_bounds__(kPlainThreads)
    sweep_plain(Search s, const int64_t* list, const unsigned long long* count,
                int64_t* indices) {
  __shared__ TileState tile;
  __shared__ bool is_last;
  const int64_t rows = list ? static_cast<int64_t>(*count) : s.queries.n;
  const int64_t panels = (rows + kQueries - 1) / kQueries;
  if (panels == 0) return;
  const int64_t wanted = max(static_cast<int64_t>(1), gridDim.x / panels);
  const int64_t parts =
      max(static_cast<int64_t>(1), min(wanted, s.book.k / (4 * kEntries)));
  for (int64_t unit = blockIdx.x; unit < panels * parts; unit += gridDim.x) {
    const int64_t panel = unit / parts, part = unit % parts;
    start_panel(tile, s, panel * kQueries, rows, list);
    sweep_part(tile, s, s.book.k * part / parts, s.book.k * (part + 1) / parts);
    if (threadIdx.x < kQueries) {
      const double best = unordered(tile.key[threadIdx.x]);
      const int64_t index = static_cast<int64_t>(tile.index[threadIdx.x]);  // ~0: −1
      if (parts == 1 && tile.row[threadIdx.x] >= 0)
        indices[tile.row[threadIdx.x]] = index;
      if (parts > 1) {
        s.part_best[unit * kQueries + threadIdx.x] = best;
        s.part_index[unit * kQueries + threadIdx.x] = index;
      }
    }
    if (parts > 1) {
      __threadfence();
      __syncthreads();
      if (threadIdx.x == 0)
        is_last = atomicAdd(&s.arrived[panel], 1u) == static_cast<unsigned>(parts - 1);
      __syncthreads();
      if (is_last && threadIdx.x < kQueries && tile.row[threadIdx.x] >= 0) {
        __threadfence();
        int64_t winner = panel * parts * kQueries + threadIdx.x;
        for (int64_t p = 1; p < parts; ++p) {
          const int64_t at = (panel * parts + p) * kQueries + threadIdx.x;
          if (s.part_best[at] > s.part_best[winner]) winner = at;
        }
        indices[tile.row[threadIdx.x]] = s.part_index[winner];
      }
    }
    __syncthreads();  // before the next panel starts over
  }
}

}  // namespace
}  // namespace tokenflow
