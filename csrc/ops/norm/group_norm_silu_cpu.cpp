/*
group_norm_silu, CPU: everything around the loops of group_norm_silu_simd.cpp.

Work       Contiguous: a thread takes whole groups. channels_last: blocks of positions
           are summed per channel, the blocks added up per group, the blocks applied.
           Blocks depend on the size of x alone, so the number of threads cannot change
           a bit of the result.
Memory     Contiguous: none. channels_last: 2 · channels float64 per block, and three
           float32 per channel.
*/
#include <algorithm>
#include <vector>

#include "ops/norm/group_norm_silu.h"
#include "ops/norm/group_norm_silu_plain.h"

namespace tokenflow {
namespace {

constexpr int64_t kBlock = 1 << 16;  // elements of a block, about

void channels_last_cpu(const GroupNormSilu& op, const Parallel& parallel) {
  const int64_t channels = op.channels, width = op.channels / op.groups;
  const int64_t step = std::max<int64_t>(1, kBlock / channels);
  const int64_t blocks = (op.area + step - 1) / step;
  std::vector<double> sums(op.batch * blocks * 2 * channels);
  std::vector<float> affine(op.batch * 3 * channels);
  const auto last = [&](int64_t block) {
    return std::min(op.area, (block + 1) * step);
  };
  parallel.run(op.batch * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      TFX_CALL_SIMD(norm_sums, op, i / blocks, i % blocks * step, last(i % blocks),
                    sums.data() + i * 2 * channels);
  });
  parallel.run(op.batch * op.groups, 8, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t b = item / op.groups, first = item % op.groups * width;
      double sum = 0.0, squares = 0.0;
      for (int64_t block = 0; block < blocks; ++block)
        for (int64_t c = first; c < first + width; ++c) {
          const double* at = sums.data() + (b * blocks + block) * 2 * channels + c;
          sum += at[0];
          squares += at[channels];
        }
      for (int64_t c = first; c < first + width; ++c) {
        const Affine a =
            group_affine(sum, squares, static_cast<double>(width * op.area), op.eps,
                         op.weight[c], op.bias[c]);
        float* to = affine.data() + b * 3 * channels + c;
        to[0] = a.center;
        to[channels] = a.scale;
        to[2 * channels] = a.shift;
      }
    }
  });
  parallel.run(op.batch * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      TFX_CALL_SIMD(norm_apply, op, i / blocks, i % blocks * step, last(i % blocks),
                    affine.data() + i / blocks * 3 * channels);
  });
}

}  // namespace

void group_norm_silu_cpu(const GroupNormSilu& op, const Parallel& parallel) {
  if (op.channels_last) return channels_last_cpu(op, parallel);
  const int64_t count = op.channels / op.groups * op.area;
  const int64_t grain = std::max<int64_t>(1, 4096 / count);
  parallel.run(op.batch * op.groups, grain, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) TFX_CALL_SIMD(norm_group, op, item);
  });
}

int64_t group_norm_silu_workspace(const GroupNormSilu& op) {
  return op.batch * (op.groups * norm_chunks(op) * 2 * sizeof(double) +
                     op.channels * sizeof(Affine));
}

void group_norm_silu_plain_cpu(const GroupNormSilu& op, void* workspace,
                               const Parallel& parallel) {
  const NormWorkspace w = norm_workspace(op, workspace);
  const int64_t chunks = norm_chunks(op);
  with_element(op.element, [&](auto* type) {
    const auto* x = static_cast<decltype(type)>(const_cast<void*>(op.x));
    auto* y = static_cast<decltype(type)>(op.y);
    parallel.run(op.batch * op.groups * chunks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        double sum = 0.0, squares = 0.0;
        for (int64_t thread = 0; thread < kNormThreads; ++thread)
          norm_partial_item(op, x, i / chunks, i % chunks, thread, &sum, &squares);
        w.partial[2 * i] = sum;
        w.partial[2 * i + 1] = squares;
      }
    });
    parallel.run(op.batch * op.channels, 64, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) norm_affine_item(op, w, i);
    });
    parallel.run(op.batch * op.channels * op.area, 4096,
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i)
                     norm_apply_item(op, w, x, y, i);
                 });
  });
}

}  // namespace tokenflow
