/*
group_norm_silu, CPU: everything around the loops of group_norm_silu_simd.cpp.

Work       Contiguous: a thread takes whole groups. channels_last, small: a thread
           takes the groups of a few lines of cache. channels_last, large: blocks of
           positions are summed per channel; then every thread adds the blocks up per
           group for itself and applies them, those that it summed last first. Which
           way, and the blocks, depend on the size of x alone, so the number of threads
           cannot change a bit of the result.
Memory     Contiguous: none. channels_last: 2 · channels float64 per block, and per
           thread three float32 per channel.
*/
#include <algorithm>
#include <numeric>
#include <vector>

#include "ops/norm/group_norm_silu.h"
#include "ops/norm/group_norm_silu_plain.h"

namespace tokenflow {
namespace {

constexpr int64_t kBlock = 1 << 16;  // elements of a block, about
constexpr int64_t kSlice = 64;       // channels of a slice, at least
constexpr int64_t kLineFloats = 16;
constexpr int64_t kMaxSlice = 1 << 18;  // elements that stay in a core's cache

// What `channels` channels from `channel` on go through, all of one picture. `sums` are
// those of `blocks` blocks of it.
void affine_of(const GroupNormSilu& op, int64_t channel, int64_t channels,
               const double* sums, int64_t blocks, float* affine) {
  const int64_t width = op.channels / op.groups;
  for (int64_t first = 0; first < channels; first += width) {
    double sum = 0.0, squares = 0.0;
    for (int64_t block = 0; block < blocks; ++block)
      for (int64_t c = first; c < first + width; ++c) {
        const double* at = sums + block * 2 * channels + c;
        sum += at[0];
        squares += at[channels];
      }
    const Moments moments =
        group_moments(sum, squares, static_cast<double>(width * op.area), op.eps);
    for (int64_t c = first; c < first + width; ++c) {
      const Affine a =
          channel_affine(moments, op.weight[channel + c], op.bias[channel + c]);
      affine[c] = a.center;
      affine[channels + c] = a.scale;
      affine[2 * channels + c] = a.shift;
    }
  }
}

// Channels of a slice: whole groups and whole lines of cache.
int64_t slice_channels(const GroupNormSilu& op) {
  const int64_t unit = std::lcm(op.channels / op.groups, kLineFloats);
  return std::min(op.channels, (kSlice + unit - 1) / unit * unit);
}

void channels_last_slices(const GroupNormSilu& op, int64_t slice,
                          const Parallel& parallel) {
  const int64_t slices = (op.channels + slice - 1) / slice;
  parallel.run(op.batch * slices, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> sums(2 * slice);
    std::vector<float> affine(3 * slice);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t channel = i % slices * slice;
      const NormPiece piece{i / slices, 0, op.area, channel,
                            std::min(slice, op.channels - channel)};
      TFX_CALL_SIMD(norm_sums, op, piece, sums.data(), affine.data());
      affine_of(op, channel, piece.channels, sums.data(), 1, affine.data());
      TFX_CALL_SIMD(norm_apply, op, piece, affine.data());
    }
  });
}

// A picture cut into blocks of positions, with all channels.
struct Blocks {
  explicit Blocks(const GroupNormSilu& op)
      : step(std::max<int64_t>(1, kBlock / op.channels)),
        count((op.area + step - 1) / step) {}
  NormPiece piece(const GroupNormSilu& op, int64_t i) const {
    const int64_t first = i % count * step;
    return {i / count, first, std::min(op.area, first + step), 0, op.channels};
  }
  int64_t step, count;  // positions of a block, blocks of a picture
};

// [batch, blocks, 2, channels]
std::vector<double> block_sums(const GroupNormSilu& op, const Blocks& blocks,
                               const Parallel& parallel) {
  const int64_t channels = op.channels;
  std::vector<double> sums(op.batch * blocks.count * 2 * channels);
  parallel.run(op.batch * blocks.count, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(3 * channels);
    for (int64_t i = begin; i < end; ++i)
      TFX_CALL_SIMD(norm_sums, op, blocks.piece(op, i), sums.data() + i * 2 * channels,
                    scratch.data());
  });
  return sums;
}

void channels_last_blocks(const GroupNormSilu& op, const Parallel& parallel) {
  const int64_t channels = op.channels;
  const Blocks blocks(op);
  const std::vector<double> sums = block_sums(op, blocks, parallel);
  parallel.run(op.batch * blocks.count, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> affine(3 * channels);
    int64_t picture = -1;
    for (int64_t i = end - 1; i >= begin; --i) {  // what was read last is in cache
      const int64_t b = i / blocks.count;
      if (b != picture)
        affine_of(op, 0, channels, sums.data() + b * blocks.count * 2 * channels,
                  blocks.count, affine.data());
      picture = b;
      TFX_CALL_SIMD(norm_apply, op, blocks.piece(op, i), affine.data());
    }
  });
}

}  // namespace

void group_norm_silu_cpu(const GroupNormSilu& op, const Parallel& parallel) {
  if (op.channels_last) {
    const int64_t slice = slice_channels(op);
    if (slice * op.area <= kMaxSlice) return channels_last_slices(op, slice, parallel);
    return channels_last_blocks(op, parallel);
  }
  const int64_t count = op.channels / op.groups * op.area;
  const int64_t grain = std::max<int64_t>(1, 4096 / count);
  parallel.run(op.batch * op.groups, grain, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) TFX_CALL_SIMD(norm_group, op, item);
  });
}

void group_norm_affine_cpu(const GroupNormSilu& op, float* affine,
                           const Parallel& parallel) {
  const int64_t channels = op.channels;
  const Blocks blocks(op);
  const std::vector<double> sums = block_sums(op, blocks, parallel);
  for (int64_t b = 0; b < op.batch; ++b)
    affine_of(op, 0, channels, sums.data() + b * blocks.count * 2 * channels,
              blocks.count, affine + b * 3 * channels);
}

}  // namespace tokenflow
