/*
upsample_conv, CPU: everything around the sweep of upsample_conv_simd.cpp.

Work       One job is one or two blocks of output channels of some rows of one picture:
           two share the sums and differences of pixels, where there are jobs enough.
           Threads take the next job when they are free, block after block, and prepare
           the weights of a block when they first meet it.
Memory     x once more in float32 where it is not float32 channels_last; per thread the
           weights of its blocks, 16 / 9 of what they are in float32, and a band of
rows.
*/
#include <algorithm>
#include <atomic>

#include "common/scratch.h"
#include "ops/upsample/upsample_conv.h"
#include "ops/upsample/upsample_conv_plain.h"

namespace tokenflow {
namespace {

// How the work is cut: few enough jobs to be cheap, enough to keep all threads busy.
struct Cut {
  int64_t rows;    // of cells
  int64_t step;    // rows of a job
  int64_t blocks;  // of output channels
  int64_t group;   // blocks of a job

  Cut(const UpsampleConv& op, int threads) {
    constexpr int64_t kMinRows = 4;  // below which a job repeats too much work
    constexpr int64_t kJobsPerThread = 4;
    const int64_t wanted = kJobsPerThread * threads;
    const int64_t channels = TFX_CALL_SIMD(upsample_block_channels);
    rows = op.height / 2 + 1;
    blocks = (op.out_channels + channels - 1) / channels;
    const int64_t most_parts = std::max<int64_t>(1, rows / kMinRows);
    group = std::clamp<int64_t>(blocks * op.batch * most_parts / wanted, 1,
                                TFX_CALL_SIMD(upsample_most_blocks));
    const int64_t jobs = (blocks + group - 1) / group * op.batch;
    const int64_t parts =
        std::clamp<int64_t>(wanted / std::max<int64_t>(1, jobs), 1, most_parts);
    step = (rows + parts - 1) / parts;
  }
};

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

  const Cut cut(op, parallel.threads);
  const int64_t parts = (cut.rows + cut.step - 1) / cut.step;
  const int64_t jobs = (cut.blocks + cut.group - 1) / cut.group * op.batch * parts;
  std::atomic<int64_t> next{0};
  parallel.run(std::min<int64_t>(parallel.threads, jobs), 1, [&](int64_t, int64_t) {
    const Scratch panels(TFX_CALL_SIMD(upsample_panel_size, op));
    const Scratch scratch(TFX_CALL_SIMD(upsample_scratch_size, op));
    int64_t packed = -1;
    for (int64_t job; (job = next.fetch_add(1)) < jobs;) {
      const int64_t block = job / (op.batch * parts) * cut.group;
      const int64_t b = job / parts % op.batch, first = job % parts * cut.step;
      TFX_CALL_SIMD(upsample_rows, op, x, b, block,
                    std::min(cut.group, cut.blocks - block), first,
                    std::min(cut.rows, first + cut.step), panels.get(), block == packed,
                    scratch.get());
      packed = block;
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
