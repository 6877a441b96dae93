/*
upsample_conv, CPU: everything around the sweep of upsample_conv_simd.cpp.

Work       One job is a block of output channels of some rows of one picture. Threads
           take the next job when they are free, block after block, and pack the weights
           of a block when they first meet it.
Memory     x once more in float32 where it is not float32 channels_last; per thread the
           weights of one block and four rows.
*/
#include <algorithm>
#include <atomic>

#include "common/scratch.h"
#include "ops/upsample/upsample_conv.h"
#include "ops/upsample/upsample_conv_plain.h"

namespace tokenflow {
namespace {

constexpr int64_t kMinPairs = 8;  // rows below which a job repeats too much work
constexpr int64_t kJobsPerThread = 6;

// Row pairs per job: few enough jobs to be cheap, enough to keep all threads busy.
int64_t pairs_per_job(const UpsampleConv& op, int64_t blocks, int threads) {
  const int64_t pairs = op.height + 1;
  const int64_t wanted = std::max<int64_t>(
      1, kJobsPerThread * threads / std::max<int64_t>(1, blocks * op.batch));
  const int64_t parts = std::clamp<int64_t>(pairs / kMinPairs, 1, wanted);
  return (pairs + parts - 1) / parts;
}

}  // namespace

void upsample_conv_cpu(const UpsampleConv& op, float* pixels,
                       const Parallel& parallel) {
  if (op.needs_pixels())
    parallel.run(op.batch * op.height, 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        TFX_CALL_SIMD(upsample_pack_pixels, op, row / op.height, row % op.height,
                      pixels);
    });
  const float* x = op.needs_pixels() ? pixels : static_cast<const float*>(op.x);

  const int64_t channels = TFX_CALL_SIMD(upsample_block_channels);
  const int64_t blocks = (op.out_channels + channels - 1) / channels;
  const int64_t step = pairs_per_job(op, blocks, parallel.threads);
  const int64_t parts = (op.height + step) / step;  // of height + 1 row pairs
  const int64_t jobs = blocks * op.batch * parts;
  std::atomic<int64_t> next{0};
  parallel.run(std::min<int64_t>(parallel.threads, jobs), 1, [&](int64_t, int64_t) {
    const Scratch panel(TFX_CALL_SIMD(upsample_panel_size, op));
    const Scratch scratch(TFX_CALL_SIMD(upsample_scratch_size, op));
    int64_t packed = -1;
    for (int64_t job; (job = next.fetch_add(1)) < jobs;) {
      const int64_t block = job / (op.batch * parts);
      const int64_t b = job / parts % op.batch, first = job % parts * step;
      if (block != packed) TFX_CALL_SIMD(upsample_pack_weights, op, block, panel.get());
      packed = block;
      TFX_CALL_SIMD(upsample_rows, op, x, panel.get(), b, block, first,
                    std::min(op.height + 1, first + step), scratch.get());
    }
  });
}

void upsample_conv_plain_cpu(const UpsampleConv& op, const Parallel& parallel) {
  with_element(op.element, [&](auto* type) {
    const auto view = upsample_view(op, type);
    parallel.run(upsample_grid(op), 256, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) upsample_conv_item(view, item);
    });
  });
}

}  // namespace tokenflow
