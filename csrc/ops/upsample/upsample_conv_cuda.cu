/*
upsample_conv, CUDA. Meaning: the reference in tokenflow_ext/ops/upsample_conv.py.
Not yet run on a GPU; the source is tested on the CPU (tests/cuda_on_cpu).

Algorithm  Nine products on the small map: Z_ab = W_ab · x for each tap, then
           y[2i−1] = Z0[i−1] + Z1[i−1] + Z2[i] and y[2i] = Z0[i−1] + Z1[i] + Z2[i] in
           both directions: a quarter of the products of the definition. The products
           are one implicit matrix product [pixels, channels] · [channels, 9 · outputs]:
           on tensor cores for 16-bit types (m16n8k16), by fused multiply-adds for
           float32. A thread holds all nine Z of its pixels, so rows are added up in
           registers, columns by shuffles, and only the seams between warps pass
           through shared memory. Z is never stored.
Tiles      8 warps, each 16 columns × R rows of pixels × 8·B outputs × 9 taps, R·B = 4:
           144 sums a thread. Warps lie side by side over the whole width where they
           can (16, 32, 64 or 128 columns), the rest beside each other over outputs. A
           block walks down its rows and carries the last row's Z, so rows are computed
           once per block, and columns once where one tile is as wide as the map.
Shared     Per stage 64 bytes of channels of every pixel and weight row, two to four
           stages; all weights of the block instead, once, where they fit. 24·B floats
           a thread of carried sums, 4 KiB of seams.
Traffic    x is read once per 8·B·(8 / warps across) outputs, weights once per block or
           per step, mostly from L2; y is written once. A map that is not channels_last,
           or whose pixels are not multiples of 16 bytes, is copied first, and weights
           are always, to rows that fill the stages.
Numerics   float32 sums over channels in order, then those over taps in one order,
           whatever the tile, the batch or the layout. Deterministic.
Needs      sm_80, height and width below 2³⁰, channels below 2²⁰; the plain kernel (one
thread per 2 × 2 outputs, straight from the definition) does the rest.
*/
#include <algorithm>
#include <type_traits>

#include "common/cuda_device.cuh"
#include "common/tensor_cores.cuh"
#include "ops/upsample/upsample_conv_plain.h"

namespace tokenflow {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kTaps = 9;
constexpr int kRowBytes = 64;  // channels of a pixel, or of a weight row, in one stage
constexpr int kPieces = kRowBytes / 16;
constexpr int kSeamBytes = 4096;
constexpr unsigned kAll = 0xffffffffu;

template <class T>
constexpr int kDepth = kRowBytes / static_cast<int>(sizeof(T));  // channels of a stage

// How a block is laid out: warps across columns, the others across outputs.
template <int across, int rows, int blocks>
struct Tile {
  static constexpr int kAcross = across, kRows = rows, kBlocks = blocks;
  static constexpr int kBeside = kWarps / kAcross;
  static constexpr int kColumns = 16 * kAcross;
  static constexpr int kOutputs = 8 * kBlocks * kBeside;
  static constexpr int kPixels = kColumns * kRows;
  static constexpr int kWeights = kTaps * kOutputs;  // rows of weights
  static constexpr int kCarryBytes = kThreads * kBlocks * 6 * 16;
  static_assert(kRows * kBlocks == 4 && kPixels * kPieces % kThreads == 0);
  static_assert(2 * kWarps * 2 * kRows * 8 * kBlocks * 4 == kSeamBytes);
};

struct Work {
  const void* x;        // [batch, height, width, x_channels]
  const void* weights;  // [outputs / 8, tap, 8, depth]
  const void* bias;     // [outputs], or null
  void* y;
  int x_channels, depth, outputs, height, width;
  int64_t y_batch, y_channel, y_row, y_column;  // strides
  bool y_channels_last, wide;                   // wide: aligned for vector stores
  int output_tiles, strips, chunks;             // of the grid
  int steps;                                    // products of rows per chunk
  int stages;
  bool resident;  // the weights of a block stay in shared memory
};

template <class T>
__device__ T zero() {
  T value;
  from_float(0.0f, value);
  return value;
}

// Sixteen bytes of a row in shared memory; rows are 64 bytes, and the pieces of
// neighbouring rows are exchanged so that eight rows meet different banks.
__device__ unsigned char* piece(unsigned char* rows, int row, int i) {
  return rows + row * kRowBytes + ((i ^ (row >> 1 & 3)) << 4);
}

// Where a block works: outputs from `output` on, columns from `left` on, corners
// [first, last) between rows; corner i makes the output rows 2i − 1 and 2i.
struct Place {
  int64_t b;
  int output, left, first, last;
  int row;  // the first to be computed; one above `first` where there is one
};

template <class T>
__device__ Place place_of(const Work& w) {
  int64_t unit = blockIdx.x;
  Place p;
  p.output = static_cast<int>(unit % w.output_tiles) * T::kOutputs;
  unit /= w.output_tiles;
  const int chunk = static_cast<int>(unit % w.chunks);
  unit /= w.chunks;
  const int strip = static_cast<int>(unit % w.strips);
  p.b = unit / w.strips;
  p.left = w.strips == 1 ? 0 : strip * (T::kColumns - 2) - 1;
  const int rows = w.steps * T::kRows;
  p.row = chunk * (rows - 1);
  p.first = chunk == 0 ? 0 : p.row + 1;
  p.last = chunk == w.chunks - 1 ? w.height + 1 : p.row + rows;
  return p;
}

// The same number, of which the compiler keeps nothing computed from turn to turn: the
// sums need the registers.
__device__ int afresh(int number) {
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(number));
#endif
  return number;
}

// Starts the copies of one stage of pixels. Pixel (r, c) of a tile lies in a row such
// that the sixteen rows of a fragment are the even and then the odd columns of a warp:
// a thread gets neighbours.
template <class T, class Tile>
__device__ void copy_pixels(const Work& w, const Place& p, int row, int channel,
                            unsigned char* to) {
  constexpr int kAtOnce = kThreads / kPieces;  // pixels
  const int thread = afresh(threadIdx.x), first = thread / kPieces;
  const int at = thread % kPieces;
  const int c0 =
      p.left + first % Tile::kColumns / 16 * 16 + first % 8 * 2 + first / 8 % 2;
  const int r0 = row + first / Tile::kColumns;
  const int k = channel + at * (16 / static_cast<int>(sizeof(T)));
  const T* x = static_cast<const T*>(w.x);
#pragma unroll
  for (int n = 0; n < Tile::kPixels / kAtOnce; ++n) {
    const int r = r0 + n * kAtOnce / Tile::kColumns;
    const int c = c0 + n * kAtOnce % Tile::kColumns;
    const bool valid = r < w.height && c >= 0 && c < w.width && k < w.x_channels;
    const int64_t from = ((p.b * w.height + r) * w.width + c) * w.x_channels + k;
    copy_async_16(piece(to, n * kAtOnce + first, at), valid ? x + from : x, valid);
  }
}

// The same of weights, whose rows lie in the order of the tile.
template <class T, class Tile>
__device__ void copy_weights(const Work& w, const Place& p, int channel,
                             unsigned char* to) {
  constexpr int kAtOnce = kThreads / kPieces;  // rows
  const int thread = afresh(threadIdx.x), first = thread / kPieces;
  const int at = thread % kPieces;
  const T* from = static_cast<const T*>(w.weights) +
                  (int64_t{p.output} * kTaps + first) * w.depth + channel +
                  at * (16 / static_cast<int>(sizeof(T)));
#pragma unroll
  for (int n = 0; n < (Tile::kWeights + kAtOnce - 1) / kAtOnce; ++n)
    if (n * kAtOnce + first < Tile::kWeights)
      copy_async_16(piece(to, n * kAtOnce + first, at),
                    from + int64_t{n * kAtOnce} * w.depth);
}

// Z of a thread: with g = lane / 4 and t = lane % 4, the sums [row][block][tap] are
// those of column 2g, outputs 2t and 2t + 1, then of column 2g + 1.
template <class Tile>
using Sums = float[Tile::kRows][Tile::kBlocks][kTaps][4];

#ifdef TFX_HAS_MMA
// Adds the products of one stage, two k16 steps.
template <class T, class Tile>
__device__ void add_products(unsigned char* pixels, unsigned char* weights, int across,
                             int beside, Sums<Tile>& z) {
  constexpr int kColumns = Tile::kBlocks * kTaps;  // of eight sums
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t a[Tile::kRows][4];
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r)
      load_matrices(a[r], piece(pixels, (r * Tile::kAcross + across) * 16 + lane % 16,
                                2 * half + lane / 16));
#pragma unroll
    for (int column = 0; column < kColumns; column += 2) {
      // Two at once; where the last has no other, it is read twice.
      const int other = min(column + lane / 16, kColumns - 1);
      uint32_t b[4];
      load_matrices(b, piece(weights, (beside * kColumns + other) * 8 + lane % 8,
                             2 * half + lane / 8 % 2));
#pragma unroll
      for (int i = 0; i < 2 && column + i < kColumns; ++i)
#pragma unroll
        for (int r = 0; r < Tile::kRows; ++r)
          mma_m16n8k16<T>(z[r][(column + i) / kTaps][(column + i) % kTaps], a[r],
                          b[2 * i], b[2 * i + 1]);
    }
  }
}
#endif

// float32: the same ownership of Z, one channel after another.
template <class Tile>
__device__ void add_products_float(unsigned char* pixels, unsigned char* weights,
                                   int across, int beside, Sums<Tile>& z) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll 1
  for (int pair = 0; pair < 2 * kPieces; ++pair) {  // of channels
    const auto at = [&](unsigned char* rows, int row) {
      return *reinterpret_cast<const float2*>(piece(rows, row, pair / 2) +
                                              pair % 2 * 8);
    };
    float2 x[Tile::kRows][2];
#pragma unroll
    for (int r = 0; r < Tile::kRows; ++r)
#pragma unroll
      for (int odd = 0; odd < 2; ++odd)
        x[r][odd] = at(pixels, (r * Tile::kAcross + across) * 16 + odd * 8 + g);
#pragma unroll
    for (int block = 0; block < Tile::kBlocks; ++block)
#pragma unroll
      for (int tap = 0; tap < kTaps; ++tap)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int first = ((beside * Tile::kBlocks + block) * kTaps + tap) * 8;
          const float2 v = at(weights, first + 2 * t + j);
#pragma unroll
          for (int r = 0; r < Tile::kRows; ++r)
#pragma unroll
            for (int odd = 0; odd < 2; ++odd) {
              float& sum = z[r][block][tap][2 * odd + j];
              sum += x[r][odd].x * v.x;
              sum += x[r][odd].y * v.y;
            }
        }
  }
}

// Rows: replaces Z of rows r − 1 and r by what column b adds to the output rows
// 2r − 1, in z[r][block][b], and 2r, in z[r][block][3 + b]. `carry` is this thread's
// Z0 and Z1 of the row above, and then of the last row.
template <class Tile>
__device__ void add_rows(Sums<Tile>& z, float4* carry) {
#pragma unroll
  for (int block = 0; block < Tile::kBlocks; ++block)
#pragma unroll
    for (int b = 0; b < 3; ++b) {
      float4* slot = carry + (block * 3 + b) * 2 * kThreads;
      const float4 above0 = slot[0], above1 = slot[kThreads];
      float z0[4] = {above0.x, above0.y, above0.z, above0.w};
      float z1[4] = {above1.x, above1.y, above1.z, above1.w};
#pragma unroll
      for (int r = 0; r < Tile::kRows; ++r)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float &first = z[r][block][b][i], &second = z[r][block][3 + b][i];
          const float both = z0[i] + z[r][block][6 + b][i];
          const float upper = both + z1[i], lower = both + second;
          z0[i] = first;
          z1[i] = second;
          first = upper;
          second = lower;
        }
      slot[0] = {z0[0], z0[1], z0[2], z0[3]};
      slot[kThreads] = {z1[0], z1[1], z1[2], z1[3]};
    }
}

// What warps that are neighbours across columns tell each other of their outermost
// columns: [side][beside][across][output row][output].
template <class Tile>
__device__ float* seam(float* seams, int side, int beside, int across, int row,
                       int output) {
  const int warp = (side * Tile::kBeside + beside) * Tile::kAcross + across;
  return seams + (warp * 2 * Tile::kRows + row) * 8 * Tile::kBlocks + output;
}

template <class Tile>
__device__ void show_seams(const Sums<Tile>& z, float* seams, int across, int beside) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int r = 0; r < 2 * Tile::kRows; ++r)
#pragma unroll
    for (int block = 0; block < Tile::kBlocks; ++block)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const auto& sums = z[r / 2][block];
        const int tap = r % 2 * 3, output = 8 * block + 2 * t + j;
        if (g == 7) *seam<Tile>(seams, 0, beside, across, r, output) = sums[tap][2 + j];
        if (g == 0) *seam<Tile>(seams, 1, beside, across, r, output) = sums[tap + 2][j];
      }
}

__device__ uint32_t pack(float low, float high, const Bfloat16*) {
  Bfloat16 a, b;
  from_float(low, a);
  from_float(high, b);
  return a.bits | static_cast<uint32_t>(b.bits) << 16;
}
__device__ uint32_t pack(float low, float high, const Half*) {
  Half a, b;
  from_float(low, a);
  from_float(high, b);
  return a.bits | static_cast<uint32_t>(b.bits) << 16;
}

// Exchanges the four lanes of a quad with the four registers.
__device__ void transpose_quad(uint32_t (&v)[4]) {
#pragma unroll
  for (int bit = 1; bit < 4; bit *= 2) {
    const bool high = threadIdx.x & bit;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i & bit) continue;
      const uint32_t got = __shfl_xor_sync(kAll, high ? v[i] : v[i | bit], bit);
      if (high)
        v[i] = got;
      else
        v[i | bit] = got;
    }
  }
}

// Four output columns, from the thread's first on, of outputs o and o + 1.
struct Corner {
  int64_t at;      // of (row, column, first output of the block of eight) in y
  int o;           // that output
  bool inside[2];  // of the map, the two columns of pixels
};

// channels_last, eight outputs: a quad writes 4 × 16 bytes, or 4 × 32 in float32.
template <class T>
__device__ void store_wide(const Work& w, const Corner& corner,
                           const float (&v)[4][2]) {
  const int t = threadIdx.x % 4;
  T* y = static_cast<T*>(w.y) + corner.at;
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (corner.inside[i / 2])
        *reinterpret_cast<float2*>(y + i * w.y_column + 2 * t) = {v[i][0], v[i][1]};
  } else {
    uint32_t words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      words[i] = pack(v[i][0], v[i][1], static_cast<const T*>(nullptr));
    transpose_quad(words);
    if (t < 2 ? corner.inside[0] : corner.inside[1])
      *reinterpret_cast<uint4*>(y + t * w.y_column) = {words[0], words[1], words[2],
                                                       words[3]};
  }
}

// Contiguous: pairs of columns of one output; eight lanes write them side by side.
template <class T>
__device__ void store_pairs(const Work& w, const Corner& corner,
                            const float (&v)[4][2]) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      if (!corner.inside[odd] || corner.o + 2 * t + j >= w.outputs) continue;
      T* y = static_cast<T*>(w.y) + corner.at + (2 * t + j) * w.y_channel + 2 * odd;
      const float left = v[2 * odd][j], right = v[2 * odd + 1][j];
      if constexpr (sizeof(T) == 4)
        *reinterpret_cast<float2*>(y) = {left, right};
      else
        *reinterpret_cast<uint32_t*>(y) =
            pack(left, right, static_cast<const T*>(nullptr));
    }
}

template <class T>
__device__ void store_each(const Work& w, const Corner& corner,
                           const float (&v)[4][2]) {
  const int t = threadIdx.x % 4;
#pragma unroll
  for (int j = 0; j < 2; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (corner.inside[i / 2] && corner.o + 2 * t + j < w.outputs)
        from_float(v[i][j],
                   static_cast<T*>(
                       w.y)[corner.at + i * w.y_column + (2 * t + j) * w.y_channel]);
}

// Columns: y[2c] = F0[c − 1] + F1[c] + F2[c] and y[2c + 1] = F0[c] + F1[c] + F2[c + 1]
// of what add_rows left, with the neighbours' shares from lanes and seams; then stores
// the output rows of corners [row, row + rows).
template <class T, class Tile>
__device__ void add_columns_and_store(const Work& w, const Place& p, int row,
                                      const Sums<Tile>& z, float* seams, int across,
                                      int beside) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int column = p.left + across * 16 + 2 * g;
  const int halo = w.strips > 1;  // outermost columns that other strips write
  Corner corner;
#pragma unroll
  for (int odd = 0; odd < 2; ++odd) {
    const int c = column + odd, from = p.left + halo;
    corner.inside[odd] = c >= from && c < p.left + Tile::kColumns - halo && c < w.width;
  }
#pragma unroll
  for (int block = 0; block < Tile::kBlocks; ++block) {
    corner.o = p.output + (beside * Tile::kBlocks + block) * 8;
    float bias[2];
#pragma unroll
    for (int j = 0; j < 2; ++j)
      bias[j] = w.bias && corner.o + 2 * t + j < w.outputs
                    ? to_float(static_cast<const T*>(w.bias)[corner.o + 2 * t + j])
                    : 0.0f;
#pragma unroll
    for (int r = 0; r < 2 * Tile::kRows; ++r) {
      const auto& f = z[r / 2][block];
      const int tap = r % 2 * 3;
      float v[4][2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float left = __shfl_up_sync(kAll, f[tap][2 + j], 4);
        float right = __shfl_down_sync(kAll, f[tap + 2][j], 4);
        const int output = 8 * block + 2 * t + j;
        if (g == 0)
          left =
              across == 0 ? 0.0f : *seam<Tile>(seams, 0, beside, across - 1, r, output);
        if (g == 7)
          right = across == Tile::kAcross - 1
                      ? 0.0f
                      : *seam<Tile>(seams, 1, beside, across + 1, r, output);
        const float between = f[tap][j] + f[tap + 2][2 + j];
        v[0][j] = left + f[tap + 2][j] + f[tap + 1][j] + bias[j];
        v[1][j] = between + f[tap + 1][j] + bias[j];
        v[2][j] = between + f[tap + 1][2 + j] + bias[j];
        v[3][j] = f[tap][2 + j] + right + f[tap + 1][2 + j] + bias[j];
      }
      const int corner_row = row + r / 2, y_row = 2 * corner_row - 1 + r % 2;
      if (corner_row < p.first || corner_row >= p.last || y_row < 0 ||
          y_row >= 2 * w.height || corner.o >= w.outputs)
        continue;  // alike in the whole warp
      corner.at = p.b * w.y_batch + y_row * w.y_row + 2 * column * w.y_column +
                  corner.o * w.y_channel;
      if (!w.wide)
        store_each<T>(w, corner, v);
      else if (w.y_channels_last)
        store_wide<T>(w, corner, v);
      else
        store_pairs<T>(w, corner, v);
    }
  }
}

// Steps through the stages: step of rows, step of channels, place in shared memory.
struct Cursor {
  int step = 0, k = 0, stage = 0;
  __device__ void next(int depth_steps, int stages) {
    stage = stage + 1 == stages ? 0 : stage + 1;
    if (++k == depth_steps) k = 0, ++step;
  }
};

template <class T, class Tile>
__device__ void walk(const Work& w) {
#ifdef TFX_HAS_MMA
  const Place p = place_of<Tile>(w);
  const int warp = threadIdx.x / 32;
  const int across = warp % Tile::kAcross, beside = warp / Tile::kAcross;
  const int depth_steps = w.depth / kDepth<T>;

  constexpr int kPixelBytes = Tile::kPixels * kRowBytes;
  constexpr int kWeightBytes = Tile::kWeights * kRowBytes;
  unsigned char* pixels = dynamic_shared();
  unsigned char* weights = pixels + w.stages * kPixelBytes;
  unsigned char* rest = weights + (w.resident ? depth_steps : w.stages) * kWeightBytes;
  float4* carry = reinterpret_cast<float4*>(rest) + threadIdx.x;
  float* seams = reinterpret_cast<float*>(rest + Tile::kCarryBytes);
#pragma unroll
  for (int i = 0; i < Tile::kBlocks * 6; ++i) carry[i * kThreads] = {0, 0, 0, 0};

  const int steps = (min(p.last, w.height) - p.row + Tile::kRows - 1) / Tile::kRows;
  Cursor ahead, now;  // the stage to be copied next, and the one to be multiplied
  auto copy_next = [&] {
    if (ahead.step < steps) {
      copy_pixels<T, Tile>(w, p, p.row + ahead.step * Tile::kRows, ahead.k * kDepth<T>,
                           pixels + ahead.stage * kPixelBytes);
      if (!w.resident || ahead.step == 0)
        copy_weights<T, Tile>(
            w, p, ahead.k * kDepth<T>,
            weights + (w.resident ? ahead.k : ahead.stage) * kWeightBytes);
      ahead.next(depth_steps, w.stages);
    }
    copy_async_commit();  // an empty group too, so that all count alike
  };
  for (int i = 0; i < w.stages - 1; ++i) copy_next();

  for (int row = p.row; row < p.last; row += Tile::kRows) {
    Sums<Tile> z = {};
    // A corner below the map has only the row above.
    for (int k = 0; row < w.height && k < depth_steps; ++k) {
      if (w.stages == 4)
        copy_async_wait<2>();
      else if (w.stages == 3)
        copy_async_wait<1>();
      else
        copy_async_wait<0>();
      __syncthreads();  // this stage is there for all, and nobody reads the one before
      copy_next();
      unsigned char* stage = pixels + now.stage * kPixelBytes;
      unsigned char* taps = weights + (w.resident ? k : now.stage) * kWeightBytes;
      if constexpr (sizeof(T) == 4)
        add_products_float<Tile>(stage, taps, across, beside, z);
      else
        add_products<T, Tile>(stage, taps, across, beside, z);
      now.next(depth_steps, w.stages);
    }
    add_rows<Tile>(z, carry);
    __syncthreads();  // the seams of the rows before have been read
    show_seams<Tile>(z, seams, across, beside);
    __syncthreads();
    add_columns_and_store<T, Tile>(w, p, row, z, seams, across, beside);
  }
#endif
}

// hot: HMMA LDSM LDGSTS
template <class T, class Tile>
__global__ void __launch_bounds__(kThreads, 1) upsample_conv_halves(Work w) {
  walk<T, Tile>(w);
}
// hot: FFMA LDGSTS
template <class T, class Tile>
__global__ void __launch_bounds__(kThreads, 1) upsample_conv_floats(Work w) {
  walk<T, Tile>(w);
}

template <class T>
__device__ T weight_at(const UpsampleParameters& from, int64_t o, int64_t k, int tap) {
  return static_cast<const T*>(
      from.weight)[o * from.strides[0] + k * from.strides[1] +
                   tap / 3 * from.strides[2] + tap % 3 * from.strides[3]];
}

// Weights to [outputs / 8, tap, 8, depth], zeros behind the channels and outputs.
template <class T>
__global__ void pack_weights(UpsampleParameters from, int64_t channels, int64_t outputs,
                             int64_t depth, int64_t items, T* to) {
  const int64_t i = launch_item();
  if (i >= items) return;
  const int64_t o = i / depth, k = i % depth;
  for (int tap = 0; tap < kTaps; ++tap)
    to[((o / 8 * kTaps + tap) * 8 + o % 8) * depth + k] =
        k < channels && o < outputs ? weight_at<T>(from, o, k, tap) : zero<T>();
}

// x to [batch, cells, channels of whole pieces], 32 cells × 32 channels a block, so
// that both sides are read and written side by side.
constexpr int kPack = 32;

template <class T>
__global__ void __launch_bounds__(kThreads)
    pack_pixels(const T* x, int64_t channels, int64_t cells, int64_t cell_stride,
                int64_t channel_stride, int64_t padded, T* to) {
  __shared__ T tile[kPack][kPack + 1];
  const int64_t column_blocks = (cells + kPack - 1) / kPack;
  const int64_t cell0 = blockIdx.x % column_blocks * kPack;
  const int64_t b = blockIdx.x / column_blocks;
  const int64_t channel0 = blockIdx.y * static_cast<int64_t>(kPack);
  const int lane = threadIdx.x % kPack;
  for (int i = threadIdx.x / kPack; i < kPack; i += kThreads / kPack) {
    const int64_t c = channel0 + i, cell = cell0 + lane;
    tile[i][lane] =
        c < channels && cell < cells
            ? x[b * channels * cells + c * channel_stride + cell * cell_stride]
            : zero<T>();
  }
  __syncthreads();
  for (int i = threadIdx.x / kPack; i < kPack; i += kThreads / kPack) {
    const int64_t c = channel0 + lane, cell = cell0 + i;
    if (c < padded && cell < cells) to[(b * cells + cell) * padded + c] = tile[lane][i];
  }
}

// --- the plain kernel ---

constexpr int kPlainThreads = 128;
constexpr int64_t kMaxBlocks = 1 << 20;  // more items than that walk

template <class T>
__global__ void __launch_bounds__(kPlainThreads)
    upsample_conv_plain(UpsampleView<T> view, int64_t items) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kPlainThreads;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * kPlainThreads + threadIdx.x;
       item < items; item += step)
    upsample_conv_item(view, item);
}

// Weights and then the bias, where there is one, as the plain kernel reads them.
template <class T>
__global__ void to_float32(UpsampleParameters from, int64_t channels, int64_t weights,
                           int64_t items, float* to) {
  const int64_t i = launch_item();
  if (i >= items) return;
  to[i] = to_float(i < weights
                       ? weight_at<T>(from, i / kTaps / channels, i / kTaps % channels,
                                      static_cast<int>(i % kTaps))
                       : static_cast<const T*>(from.bias)[i - weights]);
}

// --- the choice of a tile ---

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, which, device), "cudaDeviceGetAttribute");
  return value;
}

using Wide = Tile<8, 2, 2>;    // 128 columns × 2 rows × 16 outputs
using Middle = Tile<4, 4, 1>;  // 64 × 4 × 16
using Narrow = Tile<2, 4, 1>;  // 32 × 4 × 32
using Thin = Tile<1, 4, 1>;    // 16 × 4 × 64
constexpr int kMostOutputs = Thin::kOutputs;
static_assert(kMostOutputs % Narrow::kOutputs == 0 &&
              kMostOutputs % Middle::kOutputs == 0 &&
              kMostOutputs % Wide::kOutputs == 0);

// Fills the grid, the steps and the stages of `w` for one tile and returns what the
// whole costs, in steps of one block after another: they are alike for all tiles. A
// tile that does not fit into shared memory costs more than any.
template <class Tile>
double plan(const UpsampleConv& op, int processors, int64_t shared, Work& w,
            int64_t& shared_bytes) {
  const int64_t stage = (Tile::kPixels + Tile::kWeights) * kRowBytes;
  const int64_t fixed = Tile::kCarryBytes + kSeamBytes;
  const int64_t element = op.element == Element::f32 ? 4 : 2;
  const int64_t all_weights = Tile::kWeights * w.depth * element;
  w.resident = fixed + all_weights + 3 * Tile::kPixels * int64_t{kRowBytes} <= shared;
  const int64_t once = fixed + (w.resident ? all_weights : 0);
  const int64_t each = w.resident ? Tile::kPixels * int64_t{kRowBytes} : stage;
  w.stages = static_cast<int>(std::min<int64_t>(4, (shared - once) / each));
  shared_bytes = once + w.stages * each;
  if (w.stages < 2) return 1e300;
  w.output_tiles =
      static_cast<int>((op.out_channels + Tile::kOutputs - 1) / Tile::kOutputs);
  w.strips =
      static_cast<int>(op.width <= Tile::kColumns
                           ? 1
                           : (op.width + Tile::kColumns - 3) / (Tile::kColumns - 2));
  const int64_t units = op.batch * w.output_tiles * w.strips;
  double best = 1e300;
  for (int64_t steps = (op.height + Tile::kRows - 1) / Tile::kRows; steps >= 1;
       --steps) {
    const int64_t rows = steps * Tile::kRows;
    const int64_t chunks = std::max<int64_t>(1, (op.height + rows - 3) / (rows - 1));
    const double turns =
        static_cast<double>((units * chunks + processors - 1) / processors);
    const double cost = turns * (static_cast<double>(steps) + 0.5);  // half: to start
    if (cost >= best) continue;
    best = cost;
    w.steps = static_cast<int>(steps);
    w.chunks = static_cast<int>(chunks);
  }
  return best;
}

template <class T, class Tile>
void launch_tiled(const Work& w, int64_t batch, int64_t shared_bytes,
                  cudaStream_t stream) {
  constexpr auto kernel = [] {
    if constexpr (sizeof(T) == 4)
      return upsample_conv_floats<T, Tile>;
    else
      return upsample_conv_halves<T, Tile>;
  }();
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(shared_bytes)),
             "upsample_conv");
  const int64_t blocks = batch * w.strips * w.chunks * w.output_tiles;
  kernel<<<static_cast<unsigned>(blocks), kThreads, shared_bytes, stream>>>(w);
}

// Plans every tile and launches the cheapest; false where none fits.
template <class T>
bool launch_cheapest(const UpsampleConv& op, const Work& common, int device,
                     cudaStream_t stream) {
  const int processors = attribute(cudaDevAttrMultiProcessorCount, device);
  const int shared = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  Work work[4] = {common, common, common, common};
  int64_t bytes[4];
  const double cost[4] = {plan<Wide>(op, processors, shared, work[0], bytes[0]),
                          plan<Middle>(op, processors, shared, work[1], bytes[1]),
                          plan<Narrow>(op, processors, shared, work[2], bytes[2]),
                          plan<Thin>(op, processors, shared, work[3], bytes[3])};
  const int64_t best = std::min_element(cost, cost + 4) - cost;
  if (cost[best] >= 1e300) return false;
  if (best == 0) launch_tiled<T, Wide>(work[0], op.batch, bytes[0], stream);
  if (best == 1) launch_tiled<T, Middle>(work[1], op.batch, bytes[1], stream);
  if (best == 2) launch_tiled<T, Narrow>(work[2], op.batch, bytes[2], stream);
  if (best == 3) launch_tiled<T, Thin>(work[3], op.batch, bytes[3], stream);
  return true;
}

struct Workspace {
  void* weights;  // packed for the tiles, or float32 for the plain kernel
  void* pixels;   // where x itself cannot be read in pieces
  int64_t bytes;
};

int64_t piece_of(const UpsampleConv& op) { return op.element == Element::f32 ? 4 : 8; }

bool needs_packing(const UpsampleConv& op) {
  return !op.x_channels_last || op.in_channels % piece_of(op) != 0 ||
         reinterpret_cast<uintptr_t>(op.x) % 16 != 0;
}

Workspace carve(const UpsampleConv& op, void* memory) {
  Carver carver{static_cast<char*>(memory)};
  Workspace w;
  const int64_t depth = round_up(op.in_channels, 4 * piece_of(op));
  w.weights =
      carver.take<float>(round_up(op.out_channels, kMostOutputs) * (kTaps * depth + 1));
  w.pixels = nullptr;
  if (needs_packing(op))
    w.pixels = carver.take<float>(op.batch * op.height * op.width *
                                  round_up(op.in_channels, piece_of(op)));
  w.bytes = carver.used;
  return w;
}

template <class T>
bool run_tiled(const UpsampleConv& op, const UpsampleParameters& given,
               const Workspace& space, int device, cudaStream_t stream) {
  if (std::max(op.in_channels, op.out_channels) >= 1 << 20 ||
      std::max(op.height, op.width) >= 1 << 30 ||
      attribute(cudaDevAttrComputeCapabilityMajor, device) < 8)
    return false;
  const int64_t c = op.in_channels, o = op.out_channels, h = op.height, w = op.width;
  const int64_t depth = round_up(c, kDepth<T>);
  const bool packed = needs_packing(op), last = op.y_channels_last;
  const int64_t x_channels = packed ? round_up(c, piece_of(op)) : c;
  const int64_t alignment = last ? 16 : 2 * sizeof(T);
  Work work{
      packed ? space.pixels : op.x,
      space.weights,
      given.bias,
      op.y,
      static_cast<int>(x_channels),
      static_cast<int>(depth),
      static_cast<int>(o),
      static_cast<int>(h),
      static_cast<int>(w),
      4 * o * h * w,
      last ? 1 : 4 * h * w,
      last ? 2 * w * o : 2 * w,
      last ? o : 1,
      last,
      reinterpret_cast<uintptr_t>(op.y) % alignment == 0 && (!last || o % 8 == 0)};
  const int64_t rows = round_up(o, kMostOutputs) * depth;
  pack_weights<T><<<launch_blocks(rows, kThreads), kThreads, 0, stream>>>(
      given, c, o, depth, rows, static_cast<T*>(space.weights));
  if (packed) {
    const dim3 grid(static_cast<unsigned>(op.batch * ((h * w + kPack - 1) / kPack)),
                    static_cast<unsigned>((x_channels + kPack - 1) / kPack));
    const bool pixels = op.x_channels_last;
    pack_pixels<T><<<grid, kThreads, 0, stream>>>(
        static_cast<const T*>(op.x), c, h * w, pixels ? c : 1, pixels ? 1 : h * w,
        x_channels, static_cast<T*>(space.pixels));
  }
  return launch_cheapest<T>(op, work, device, stream);
}

template <class T>
void run_plain(UpsampleConv op, const UpsampleParameters& given, const Workspace& space,
               cudaStream_t stream) {
  const int64_t weights = op.out_channels * op.in_channels * kTaps;
  const int64_t numbers = weights + (given.bias ? op.out_channels : 0);
  float* wide = static_cast<float*>(space.weights);
  to_float32<T><<<launch_blocks(numbers, kThreads), kThreads, 0, stream>>>(
      given, op.in_channels, weights, numbers, wide);
  op.weight = wide;
  op.bias = given.bias ? wide + weights : nullptr;
  const int64_t items = upsample_grid(op);
  const unsigned blocks = static_cast<unsigned>(
      std::min((items + kPlainThreads - 1) / kPlainThreads, kMaxBlocks));
  upsample_conv_plain<T><<<blocks, kPlainThreads, 0, stream>>>(
      upsample_view(op, static_cast<T*>(nullptr)), items);
}

}  // namespace

int64_t upsample_conv_cuda_workspace(const UpsampleConv& op) {
  return carve(op, nullptr).bytes;
}

void upsample_conv_cuda(const UpsampleConv& op, const UpsampleParameters& given,
                        void* workspace, int device, void* stream_given) {
  if (upsample_grid(op) == 0) return;
  DeviceGuard guard(device);
  const auto stream = static_cast<cudaStream_t>(stream_given);
  const Workspace space = carve(op, workspace);
  with_element(op.element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    if (!run_tiled<T>(op, given, space, device, stream))
      run_plain<T>(op, given, space, stream);
  });
  check_cuda(cudaGetLastError(), "upsample_conv");
}

}  // namespace tokenflow
