/*
The sweep by tensor cores, in float16 with float32 accumulation, for sm_80 and, with
Hopper's own instructions, for sm_90a. It decides nothing: it lists the entries that
may still win, by the bound of common/half_bound.h.

Algorithm  A block holds 128 queries as fragments in registers and passes a part of the
           book by. The scores of a tile stay in registers, in the layout that both
           instructions share; all that is done with most of them is a maximum, eight
           scores of a row at a time. Where a maximum reaches its row's threshold (best
           score − slack, slack being twice the bound), the warp raises best and
           threshold and lists the scores that reach it in shared memory.
           At the end a row's list, filtered by the best of all parts so far, goes to
           the workspace.
Maximum    Of floats as integers, three at a time (VIMNMX3): a positive float is larger
           the larger its bits are, and negative ones are never positive integers. A
           row whose best score is not above its slack is left to the plain sweep.
           With offsets most scores are negative; there it is a maximum of floats.
Cap        32 candidates a row and part, thinned by the threshold before they are
           half used up. A row that overflows (copies, collapsed books) is left to the
           plain sweep and costs nothing more here.

sweep_mma  128 threads, a warp for 32 queries, 64 entries at a time: mma.m16n8k16, its
           entries by ldmatrix, free of bank conflicts in the packed layout. Tiles of
           128 entries in a ring of cp.async stages.
sweep_wgmma  Two groups of four warps, 64 queries each, and a group of which one thread
           copies, which leaves its registers to the others (setmaxnreg): whole slabs of
           256 entries by cp.async.bulk into a ring of stages that report to mbarriers.
           wgmma.m64n128k16 twice a slab, into two sets of accumulators: the
           maximum of the first is taken while the second is computed, and while one
           group takes a maximum the other computes. Nothing is in flight over the end
           of the loop body, which ptxas would serialise (C7514).
Registers  sweep_mma 122 (width 16) to 204 (128), 148 at width 48 (three blocks a
           multiprocessor); with offsets up to 200. sweep_wgmma 168 at its start, then
           232 for who computes and 40 for who copies. No spills (sm_90a, CUDA 13.0).
Shared     33 KiB of lists, and stages: sweep_mma two tiles, 53 KiB at width 40;
           sweep_wgmma up to six slabs of 20 KiB there, 153 KiB.
Traffic    Each block reads its part of the packed book: K · 2 · ⌈width/8⌉ · 8 bytes,
           from L2.
Predicted  For an H200 at 1.755 GHz, 32768 entries of width 40, nothing measured. A
           slab takes a multiprocessor 12 wgmma of 64 cycles; two maxima of some 40
           instructions for each of its 8 warps take 320 of the same 768 cycles, and
           are hidden. 16384 queries: 128 blocks, 128 slabs each: 56 µs, 70 µs at the
           80 % of the peak that dense products reach. They read 335 MB from L2, 4.8
           to 6 TB/s: that is where it may fail first, and copies shared by a pair of
           blocks (multicast) are then next. 817 queries: 7 panels × 16 parts of 8
           slabs: 3.5 µs and the start.
*/
#pragma once

#include <cfloat>

#include "common/tensor_cores.cuh"
#include "ops/quantize/search.cuh"

namespace tokenflow {
namespace {

constexpr int kPanel = 128;  // queries of a block
constexpr int kTile = 128;   // entries of a product
constexpr int kList = 32;    // candidates of a row
constexpr int kLost = 1 << 20;
static_assert(kSlab == 2 * kTile);

// Shared memory of both sweeps, after the stages.
struct Lists {
  int count[kPanel];
  Candidate candidate[kPanel * kList];
};

// Scores as they are compared: see Maximum above.
template <bool kOffsets>
struct Order;
template <>
struct Order<false> {
  using Key = int;
  static __device__ Key lowest() { return 1; }
  static __device__ Key unbeatable() { return 0x7fffffff; }
  static __device__ Key key(float score) { return __float_as_int(score); }
  static __device__ float score(Key key) { return __int_as_float(key); }
};
template <>
struct Order<true> {
  using Key = float;
  static __device__ Key lowest() { return -FLT_MAX; }
  static __device__ Key unbeatable() { return INFINITY; }
  static __device__ Key key(float score) { return score; }
  static __device__ float score(Key key) { return key; }
};
__device__ inline int larger(int a, int b) { return max(a, b); }
__device__ inline float larger(float a, float b) { return fmaxf(a, b); }

// What a thread knows about the two rows, 8 apart, that it has scores of. The four
// lanes of a row know the same.
template <bool kOffsets>
struct RowPair {
  using Key = typename Order<kOffsets>::Key;
  int line[2];       // in the panel
  Key best[2];       // largest score so far
  Key threshold[2];  // a score below cannot win
  float slack[2];
  float scale[2];

  __device__ RowPair(const Search& s, int64_t panel, int first_line) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      line[h] = first_line + 8 * h;
      const int64_t n = panel * kPanel + line[h];
      const RowBound bound = n < s.queries.n ? s.bound[n] : RowBound{kNotFinite, 0.0f};
      const bool live = bound.slack >= 0.0f;  // NaN is not
      best[h] = threshold[h] =
          live ? Order<kOffsets>::lowest() : Order<kOffsets>::unbeatable();
      slack[h] = bound.slack;
      scale[h] = bound.scale;
    }
  }
};

// Drops what the threshold has overtaken, so that the cap counts what may still win.
template <class Ordered>
__device__ void thin(Lists& lists, int line, typename Ordered::Key threshold) {
  Candidate* list = lists.candidate + line * kList;
  int kept = 0;
  for (int i = 0; i < lists.count[line]; ++i)
    if (Ordered::key(list[i].score) >= threshold) list[kept++] = list[i];
  lists.count[line] = kept;
}

// The rare path: some score of the warp's 16 rows reached its row's threshold. `top`
// has the largest of each eight scores of a row.
template <bool kOffsets, int kBlocks>
__device__ __forceinline__ void list_candidates(
    const float (&score)[4 * kBlocks],
    const typename Order<kOffsets>::Key (&top)[2][kBlocks / 4], RowPair<kOffsets>& rows,
    Lists& lists, unsigned first_entry) {
  using Ordered = Order<kOffsets>;
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    typename Ordered::Key most = top[h][0];
#pragma unroll
    for (int g = 1; g < kBlocks / 4; ++g) most = larger(most, top[h][g]);
    most = larger(most, __shfl_xor_sync(kAllLanes, most, 1));
    most = larger(most, __shfl_xor_sync(kAllLanes, most, 2));
    if (most > rows.best[h]) {
      rows.best[h] = most;
      rows.threshold[h] =
          larger(Ordered::lowest(), Ordered::key(Ordered::score(most) - rows.slack[h]));
    }
    int* count = &lists.count[rows.line[h]];
    const bool full = *count > kList / 2 && *count <= kList;  // more: lost
    __syncwarp();
    if (lane % 4 == 0 && full) thin<Ordered>(lists, rows.line[h], rows.threshold[h]);
    __syncwarp();
#pragma unroll
    for (int g = 0; g < kBlocks / 4; ++g) {
      if (!(top[h][g] >= rows.threshold[h])) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int block = 4 * g + i / 2;
        const float v = score[4 * block + 2 * h + i % 2];
        if (!(Ordered::key(v) >= rows.threshold[h])) continue;
        const int slot = atomicAdd(count, 1);
        if (slot >= kList) continue;
        Candidate& c = lists.candidate[rows.line[h] * kList + slot];
        c.entry = first_entry + 8 * block + 2 * (lane % 4) + i % 2;
        c.score = v;
      }
    }
    __syncwarp();
    if (*count > kList) rows.best[h] = rows.threshold[h] = Ordered::unbeatable();
  }
}

// Looks at the scores of 16 rows and 8 · kBlocks entries.
template <bool kOffsets, int kBlocks>
__device__ __forceinline__ void consider(float (&score)[4 * kBlocks],
                                         RowPair<kOffsets>& rows, Lists& lists,
                                         const float* offsets, unsigned first_entry) {
  using Ordered = Order<kOffsets>;
  if constexpr (kOffsets) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const float* two = offsets + 8 * block + 2 * (threadIdx.x % 4);
#pragma unroll
      for (int i = 0; i < 4; ++i)
        score[4 * block + i] =
            fmaf(-rows.scale[i / 2], two[i % 2], score[4 * block + i]);
    }
  }
  typename Ordered::Key top[2][kBlocks / 4];
  bool hit = false;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int g = 0; g < kBlocks / 4; ++g) {
      auto at = [&](int i) {
        return Ordered::key(score[4 * (4 * g + i / 2) + 2 * h + i % 2]);
      };
      auto most = larger(larger(at(0), at(1)), at(2));
      most = larger(larger(most, at(3)), at(4));
      most = larger(larger(most, at(5)), at(6));
      top[h][g] = larger(most, at(7));
    }
    auto most = top[h][0];
#pragma unroll
    for (int g = 1; g < kBlocks / 4; ++g) most = larger(most, top[h][g]);
    hit = hit || most >= rows.threshold[h];
  }
  if (__any_sync(kAllLanes, hit))
    list_candidates<kOffsets, kBlocks>(score, top, rows, lists, first_entry);
}

// Hands the candidates of a warp's 16 rows over to the workspace. Of other parts' best
// scores what is known already is used.
template <bool kOffsets>
__device__ void hand_over(const Search& s, int64_t panel, const RowPair<kOffsets>& rows,
                          const Lists& lists) {
  using Ordered = Order<kOffsets>;
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int64_t n = panel * kPanel + rows.line[h];
    const int count = lists.count[rows.line[h]];
    const bool lost = count > kList;
    unsigned best = 0;
    if (lane % 4 == 0 && n < s.queries.n && count > 0) {
      if (lost) {
        atomicAdd(&s.found[n], static_cast<unsigned>(kLost));
      } else {
        const unsigned own = ordered(Ordered::score(rows.best[h]));
        best = max(own, atomicMax(&s.best[n], own));
      }
    }
    best = __shfl_sync(kAllLanes, best, lane & ~3);
    if (n >= s.queries.n || lost || count == 0) continue;
    const float threshold = unordered(best) - rows.slack[h];
    for (int i = lane % 4; i < count; i += 4) {
      const Candidate c = lists.candidate[rows.line[h] * kList + i];
      if (!(c.score >= threshold) || c.entry >= s.book.k) continue;
      const unsigned slot = atomicAdd(&s.found[n], 1u);
      if (slot < static_cast<unsigned>(s.capacity))
        s.candidate[n * s.capacity + slot] = c;
    }
  }
}

// Fragments of 16 queries: as mma_m16n8k16 wants them, `steps` times.
template <int kSteps>
__device__ void load_queries(const Search& s, int64_t first, uint32_t (&a)[kSteps][4]) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t n = first + lane / 4 + 8 * (i % 2);
      const int64_t d = 16 * step + 2 * (lane % 4) + 8 * (i / 2);
      a[step][i] =
          n < s.queries.n
              ? *reinterpret_cast<const uint32_t*>(s.half + n * 16 * kSteps + d)
              : 0u;
    }
}

// Where the packed book has no chunk any more the queries have zeros: any will do.
__device__ inline int chunk_of(const Search& s, int chunk) {
  return min(chunk, s.packed.chunks - 1);
}

__device__ inline Lists& start_lists(unsigned char* memory) {
  Lists& lists = *reinterpret_cast<Lists*>(memory);
  for (int i = threadIdx.x; i < kPanel; i += blockDim.x) lists.count[i] = 0;
  return lists;
}

// --- sm_80 ---

constexpr int kMmaThreads = 128;
constexpr int kMmaStages = 2;  // 128 · 256 bytes each at most: sm_86 has 99 KiB

TFX_HD int64_t mma_stage_bytes(int chunks) { return chunks * kTile * 16; }

__device__ inline void copy_tile(const Search& s, int64_t tile, unsigned char* stage) {
  const Half* source =
      s.packed.slabs + ((tile / 2 * s.packed.chunks * kSlab) + tile % 2 * kTile) * 8;
  for (int c = 0; c < s.packed.chunks; ++c)
    copy_async_16(stage + (c * kTile + threadIdx.x) * 16,
                  source + (c * kSlab + static_cast<int64_t>(threadIdx.x)) * 8);
}

// hot: HMMA LDSM LDGSTS
template <int kSteps, bool kOffsets>
__global__ void __launch_bounds__(kMmaThreads) sweep_mma(Search s) {
#ifdef TFX_HAS_MMA
  static_assert(kMmaThreads == kTile);
  constexpr int kBlocks = 8;  // 64 entries at a time
  unsigned char* const stages = dynamic_shared();
  const int64_t stage_bytes = mma_stage_bytes(s.packed.chunks);
  Lists& lists = start_lists(stages + kMmaStages * stage_bytes);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t panel = blockIdx.x;
  RowPair<kOffsets> rows[2] = {{s, panel, 32 * warp + lane / 4},
                               {s, panel, 32 * warp + 16 + lane / 4}};
  uint32_t a[2][kSteps][4];
#pragma unroll
  for (int r = 0; r < 2; ++r)
    load_queries<kSteps>(s, panel * kPanel + 32 * warp + 16 * r, a[r]);

  const int64_t tiles = 2 * slabs_of(s.book.k);
  const int64_t first = tiles * blockIdx.y / gridDim.y;
  const int64_t last = tiles * (blockIdx.y + 1) / gridDim.y;
#pragma unroll
  for (int i = 0; i < kMmaStages - 1; ++i) {
    if (first + i < last) copy_tile(s, first + i, stages + i * stage_bytes);
    copy_async_commit();
  }
  for (int64_t tile = first; tile < last; ++tile) {
    copy_async_wait<kMmaStages - 2>();
    __syncthreads();  // the tile is there for all; the stage before is free
    const int64_t ahead = tile + kMmaStages - 1;
    if (ahead < last)
      copy_tile(s, ahead, stages + (ahead - first) % kMmaStages * stage_bytes);
    copy_async_commit();
    const unsigned char* stage = stages + (tile - first) % kMmaStages * stage_bytes;
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      float score[2][4 * kBlocks] = {};
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const int chunk = chunk_of(s, 2 * step + lane / 8 % 2);
        const int row = half * 8 * kBlocks + lane / 16 * 8 + lane % 8;
#pragma unroll
        for (int b = 0; b < kBlocks; b += 2) {
          uint32_t m[4];  // both chunks of two blocks of eight entries
          load_matrices(m, stage + (chunk * kTile + row + 8 * b) * 16);
#pragma unroll
          for (int r = 0; r < 2; ++r)
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              auto& d = reinterpret_cast<float (&)[4]>(score[r][4 * (b + j)]);
              mma_m16n8k16<Half>(d, a[r][step], m[2 * j], m[2 * j + 1]);
            }
        }
      }
      const int64_t entry = tile * kTile + half * 8 * kBlocks;
#pragma unroll
      for (int r = 0; r < 2; ++r)
        consider<kOffsets, kBlocks>(score[r], rows[r], lists,
                                    kOffsets ? s.offsets + entry : nullptr,
                                    static_cast<unsigned>(entry));
    }
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < 2; ++r) hand_over(s, panel, rows[r], lists);
#endif
}

// --- sm_90a ---

constexpr int kConsumers = 256;
constexpr int kWgmmaThreads = kConsumers + 128;  // and a group of which one copies
constexpr int kMaxStages = 6;  // slabs; what shared memory has room for

// A slab, and with it its offsets.
TFX_HD int64_t wgmma_stage_bytes(int chunks, bool offsets) {
  return chunks * kSlab * 16 + (offsets ? kSlab * 4 : 0);
}

// The producer: one thread that keeps the ring full.
template <bool kOffsets>
__device__ void copy_slabs(const Search& s, int64_t first, int64_t last,
                           unsigned char* stages, uint64_t* full, uint64_t* empty) {
  const uint32_t slab_bytes = s.packed.chunks * kSlab * 16;
  const int64_t stage_bytes = wgmma_stage_bytes(s.packed.chunks, kOffsets);
  int stage = 0;
  uint32_t parity = 1;  // the first round finds every stage empty
  for (int64_t slab = first; slab < last; ++slab) {
    barrier_wait(&empty[stage], parity);
    barrier_expect(&full[stage], static_cast<uint32_t>(stage_bytes));
    unsigned char* to = stages + stage * stage_bytes;
    bulk_copy(to, s.packed.slabs + slab * s.packed.chunks * kSlab * 8, slab_bytes,
              &full[stage]);
    if (kOffsets)
      bulk_copy(to + slab_bytes, s.offsets + slab * kSlab, kSlab * 4, &full[stage]);
    if (++stage == s.stages) {
      stage = 0;
      parity ^= 1;
    }
  }
}

// Where the steps of the first tile of the first stage lie.
template <int kSteps>
__device__ void describe(const Search& s, const unsigned char* stages,
                         uint64_t (&steps)[kSteps]) {
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const int chunk = chunk_of(s, 2 * step), next = chunk_of(s, 2 * step + 1);
    steps[step] = matrix_descriptor(stages + chunk * kSlab * 16,
                                    (next - chunk) * kSlab * 16, 8 * 16);
  }
}

// 64 queries times 128 entries, `bytes` behind the first, all steps, as one group.
template <int kSteps>
__device__ __forceinline__ void multiply(float (&score)[64],
                                         const uint32_t (&a)[kSteps][4],
                                         const uint64_t (&steps)[kSteps],
                                         int64_t bytes) {
  wgmma_touch(score);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < kSteps; ++step)
    wgmma_m64n128k16(score, a[step], steps[step] + (bytes >> 4), step > 0);
  wgmma_commit();
}

// The consumers: 16 queries a warp.
template <int kSteps, bool kOffsets>
__device__ __forceinline__ void consume_slabs(const Search& s, int64_t first,
                                              int64_t last, unsigned char* stages,
                                              Lists& lists, uint64_t* full,
                                              uint64_t* empty) {
  const int64_t stage_bytes = wgmma_stage_bytes(s.packed.chunks, kOffsets);
  const int64_t panel = blockIdx.x;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  RowPair<kOffsets> rows(s, panel, 16 * warp + lane / 4);
  uint32_t a[kSteps][4];
  load_queries<kSteps>(s, panel * kPanel + 16 * warp, a);
  uint64_t steps[kSteps];
  describe<kSteps>(s, stages, steps);
  float score[2][64];
  int stage = 0;
  uint32_t parity = 0;
  for (int64_t slab = first; slab < last; ++slab) {
    const unsigned char* here = stages + stage * stage_bytes;
    const float* offsets =
        reinterpret_cast<const float*>(here + s.packed.chunks * kSlab * 16);
    const unsigned entry = static_cast<unsigned>(slab * kSlab);
    barrier_wait(&full[stage], parity);
    multiply<kSteps>(score[0], a, steps, stage * stage_bytes);
    multiply<kSteps>(score[1], a, steps, stage * stage_bytes + kTile * 16);
    wgmma_wait<1>();
    wgmma_touch(score[0]);
    consider<kOffsets, 16>(score[0], rows, lists, offsets, entry);
    wgmma_wait<0>();
    wgmma_touch(score[1]);
    if (!kOffsets && lane == 0) barrier_arrive(&empty[stage]);
    consider<kOffsets, 16>(score[1], rows, lists, offsets + kTile, entry + kTile);
    if (kOffsets) {  // every lane has read its offsets
      __syncwarp();
      if (lane == 0) barrier_arrive(&empty[stage]);
    }
    if (++stage == s.stages) {
      stage = 0;
      parity ^= 1;
    }
  }
  hand_over(s, panel, rows, lists);
}

// hot: HGMMA UBLKCP SYNCS
template <int kSteps, bool kOffsets>
__global__ void __launch_bounds__(kWgmmaThreads, 1) sweep_wgmma(Search s) {
#ifdef TFX_HAS_WGMMA
  __shared__ uint64_t full[kMaxStages], empty[kMaxStages];
  unsigned char* const stages = dynamic_shared();
  const int64_t stage_bytes = wgmma_stage_bytes(s.packed.chunks, kOffsets);
  Lists& lists = start_lists(stages + s.stages * stage_bytes);
  if (threadIdx.x == 0) {
    for (int i = 0; i < s.stages; ++i) {
      barrier_init(&full[i], 1);
      barrier_init(&empty[i], kConsumers / kWarp);
    }
    barrier_init_fence();
  }
  __syncthreads();

  const int64_t slabs = slabs_of(s.book.k);
  const int64_t first = slabs * blockIdx.y / gridDim.y;
  const int64_t last = slabs * (blockIdx.y + 1) / gridDim.y;
  if (threadIdx.x >= kConsumers) {
    shrink_registers<40>();
    if (threadIdx.x == kConsumers)
      copy_slabs<kOffsets>(s, first, last, stages, full, empty);
  } else {
    grow_registers<232>();
    consume_slabs<kSteps, kOffsets>(s, first, last, stages, lists, full, empty);
  }
#endif
}

}  // namespace
}  // namespace tokenflow
