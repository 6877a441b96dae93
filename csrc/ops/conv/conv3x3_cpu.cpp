/*
conv3x3, CPU: everything around the sweep of conv3x3_simd.cpp.

Work       One job is a block of tiles of one picture and some output channels of it.
           Threads take the next job when they are free.
Weights    U = G·w·Gᵀ for each pair of channels, in float64, rounded once: 16 numbers
for 9, the same on every instruction set. Memory     Per thread the tiles of one job;
see conv3x3_simd.cpp.
*/
#include <algorithm>
#include <atomic>

#include "common/scratch.h"
#include "ops/conv/conv3x3.h"

namespace tokenflow {
namespace {

constexpr int64_t kTiles = 64, kColumns = 8;  // tiles of a job, and of its rows
constexpr int64_t kJobsPerThread = 4;
constexpr int64_t kStrip = 64;

}  // namespace

int64_t conv3x3_panels_size(int64_t in_channels, int64_t out_channels) {
  return (out_channels + kConvBlock - 1) / kConvBlock * 16 * in_channels * kConvBlock;
}

void conv3x3_pack(const float* weight, int64_t in_channels, int64_t out_channels,
                  float* panels, const Parallel& parallel) {
  const int64_t blocks = (out_channels + kConvBlock - 1) / kConvBlock;
  const int64_t runs = (in_channels + kConvRun - 1) / kConvRun;
  parallel.run(blocks * runs, 4, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item % runs * kConvRun;
      TFX_CALL_SIMD(conv3x3_pack_run, weight, in_channels, out_channels, item / runs,
                    first, std::min(first + kConvRun, in_channels), panels);
    }
  });
}

void conv3x3_transpose(const float* in, int64_t batch, int64_t rows, int64_t columns,
                       float* out, const Parallel& parallel) {
  // Strips of the longer side: whole lines of cache on one side, whole rows on the
  // other.
  const bool across = columns > rows;
  const int64_t strips = ((across ? columns : rows) + kStrip - 1) / kStrip;
  parallel.run(batch * strips, 4, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t at = item / strips * rows * columns, first = item % strips * kStrip;
      if (across)
        TFX_CALL_SIMD(conv3x3_transpose_part, in + at + first, columns, rows,
                      std::min(kStrip, columns - first), out + at + first * rows, rows);
      else
        TFX_CALL_SIMD(conv3x3_transpose_part, in + at + first * columns, columns,
                      std::min(kStrip, rows - first), columns, out + at + first, rows);
    }
  });
}

void conv3x3_cpu(const Conv3x3& op, const Parallel& parallel) {
  const int64_t height = (op.height + 1) / 2, width = (op.width + 1) / 2;  // in tiles
  const int64_t columns = std::min(kColumns, width);
  const int64_t rows = std::min(height, kTiles / columns);
  const int64_t across = (width + columns - 1) / columns;
  const int64_t down = (height + rows - 1) / rows;
  const int64_t places = op.batch * down * across;
  const int64_t blocks = (op.out_channels + kConvBlock - 1) / kConvBlock;
  const int64_t wanted = (kJobsPerThread * parallel.threads + places - 1) / places;
  const int64_t parts = std::clamp<int64_t>(wanted, 1, blocks);
  const int64_t jobs = places * parts;
  std::atomic<int64_t> next{0};
  parallel.run(std::min<int64_t>(parallel.threads, jobs), 1, [&](int64_t, int64_t) {
    const Scratch scratch(TFX_CALL_SIMD(conv3x3_scratch_size, op, rows, columns));
    for (int64_t job; (job = next.fetch_add(1)) < jobs;) {
      const int64_t place = job / parts, part = job % parts;
      const int64_t row = place / across % down * rows,
                    column = place % across * columns;
      const ConvPiece piece{place / across / down,
                            row,
                            std::min(rows, height - row),
                            column,
                            std::min(columns, width - column),
                            blocks * part / parts,
                            blocks * (part + 1) / parts};
      TFX_CALL_SIMD(conv3x3_piece, op, piece, scratch.get());
    }
  });
}

}  // namespace tokenflow
