/*
Gradient of group_norm_silu, CPU: everything around the loops of
group_norm_silu_backward_simd.cpp.

Algorithm  Three passes over a picture: its moments; Σ d and Σ d · (x − mean) of each
           channel, d = grad · silu′; the gradient of x. With x̂ = (x − mean) / σ of a
           group of n values, w its channels' weights,
               grad_x = (w · d − (Σ w · d + x̂ · Σ w · d · x̂) / n) / σ.
           Those sums, over the pictures, are the gradients of bias and weight.
Work       A picture is cut into pieces that depend on its size alone: contiguous, the
           channels of a group; channels_last, blocks of positions. Many pictures: a
           thread takes whole ones, which stay in its cache. Few: the threads share the
           pieces of one. No bit depends on which, nor on the number of threads.
Memory     Per picture at work 2 · channels float64 a piece and 5 float32 a channel, 3
           more per thread; for all 2 · channels float64.
*/
#include <algorithm>
#include <vector>

#include "ops/norm/group_norm_silu_backward.h"
#include "ops/norm/group_norm_silu_plain.h"

namespace tokenflow {
namespace {

constexpr int64_t kBlock = 1 << 16;  // elements of a block of positions, about

// The pieces of each picture.
struct Pieces {
  explicit Pieces(const GroupNormSilu& op)
      : step(op.channels_last ? std::max<int64_t>(1, kBlock / op.channels)
                              : op.channels / op.groups),
        count(op.channels_last ? (op.area + step - 1) / step : op.groups) {}

  NormPiece at(const GroupNormSilu& op, int64_t b, int64_t i) const {
    if (!op.channels_last) return {b, 0, op.area, i * step, step};
    return {b, i * step, std::min(op.area, (i + 1) * step), 0, op.channels};
  }

  int64_t step, count;
};

// One picture, by threads that share it or by one.
class Picture {
 public:
  Picture(const GroupNormSiluBackward& back, const Pieces& pieces, int64_t b,
          const Parallel& parallel)
      : back_(back),
        op_(back.op),
        pieces_(pieces),
        b_(b),
        parallel_(parallel),
        width_(op_.channels / op_.groups),
        moments_(op_.groups),
        rows_(kNormRows * op_.channels),
        sums_(2 * op_.channels) {}

  // Fills the gradient of x; `sums` [2][channels] receives those of bias and weight.
  void run(double* sums) {
    find_moments();
    find_sums();
    for (int64_t g = 0; g < op_.groups; ++g) finish_group(g, sums);
    each_piece([&](const NormPiece& piece, const float* rows, int64_t) {
      TFX_CALL_SIMD(norm_backward_apply, back_, piece, rows);
    });
  }

 private:
  int64_t channels() const { return op_.channels; }

  // Calls work(piece, its rows, its number). The rows of a contiguous piece are copied
  // out of those of all channels.
  template <class Work>
  void each_piece(const Work& work) {
    parallel_.run(pieces_.count, 1, [&](int64_t begin, int64_t end) {
      std::vector<float> own(op_.channels_last ? 0 : kNormRows * width_);
      for (int64_t i = begin; i < end; ++i) {
        const NormPiece piece = pieces_.at(op_, b_, i);
        if (op_.channels_last) {
          work(piece, rows_.data(), i);
          continue;
        }
        for (int64_t row = 0; row < kNormRows; ++row)
          std::copy_n(rows_.data() + row * channels() + piece.channel, width_,
                      own.data() + row * width_);
        work(piece, own.data(), i);
      }
    });
  }

  void find_moments() {
    const double count = static_cast<double>(width_ * op_.area);
    if (!op_.channels_last) {
      parallel_.run(op_.groups, 1, [&](int64_t begin, int64_t end) {
        for (int64_t g = begin; g < end; ++g) {
          double found[2];
          TFX_CALL_SIMD(norm_group_sums, op_, b_ * op_.groups + g, found);
          moments_[g] = group_moments(found[0], found[1], count, op_.eps);
        }
      });
    } else {
      std::vector<double> parts(pieces_.count * 2 * channels());
      parallel_.run(pieces_.count, 1, [&](int64_t begin, int64_t end) {
        std::vector<float> scratch(3 * channels());
        for (int64_t i = begin; i < end; ++i)
          TFX_CALL_SIMD(norm_sums, op_, pieces_.at(op_, b_, i),
                        parts.data() + i * 2 * channels(), scratch.data());
      });
      add_parts(parts);
      for (int64_t g = 0; g < op_.groups; ++g) {
        double sum = 0.0, squares = 0.0;
        for (int64_t c = g * width_; c < (g + 1) * width_; ++c) {
          sum += sums_[c];
          squares += sums_[channels() + c];
        }
        moments_[g] = group_moments(sum, squares, count, op_.eps);
      }
    }
    for (int64_t c = 0; c < channels(); ++c) {
      const Affine a = channel_affine(moments_[c / width_], op_.weight[c], op_.bias[c]);
      row(kCenter)[c] = a.center;
      row(kScale)[c] = a.scale;
      row(kShift)[c] = a.shift;
    }
  }

  // Σ d and Σ d · (x − center) of every channel.
  void find_sums() {
    const int64_t of_piece = op_.channels_last ? channels() : width_;
    std::vector<double> parts(pieces_.count * 2 * of_piece);
    each_piece([&](const NormPiece& piece, const float* rows, int64_t i) {
      TFX_CALL_SIMD(norm_backward_sums, back_, piece, rows,
                    parts.data() + i * 2 * of_piece);
    });
    if (op_.channels_last) return add_parts(parts);
    for (int64_t g = 0; g < op_.groups; ++g)
      for (int64_t half = 0; half < 2; ++half)
        std::copy_n(parts.data() + (2 * g + half) * width_, width_,
                    sums_.data() + half * channels() + g * width_);
  }

  void add_parts(const std::vector<double>& parts) {
    std::fill(sums_.begin(), sums_.end(), 0.0);
    for (size_t i = 0; i < parts.size(); ++i) sums_[i % sums_.size()] += parts[i];
  }

  void finish_group(int64_t g, double* sums) {
    const Moments& moments = moments_[g];
    const double count = static_cast<double>(width_ * op_.area);
    double level = 0.0, slope = 0.0;  // Σ w · d and Σ w · d · x̂
    for (int64_t c = g * width_; c < (g + 1) * width_; ++c) {
      const double left = moments.mean - row(kCenter)[c];
      const double d = sums_[c];
      const double normed = (sums_[channels() + c] - left * d) / moments.deviation;
      sums[c] = d;
      sums[channels() + c] = normed;
      level += op_.weight[c] * d;
      slope += op_.weight[c] * normed;
    }
    const double back = -slope / (count * moments.deviation * moments.deviation);
    for (int64_t c = g * width_; c < (g + 1) * width_; ++c) {
      const double left = moments.mean - row(kCenter)[c];
      row(kSlope)[c] = static_cast<float>(back);
      row(kLevel)[c] =
          static_cast<float>(-level / (count * moments.deviation) - back * left);
    }
  }

  float* row(NormRow name) { return rows_.data() + name * channels(); }

  const GroupNormSiluBackward& back_;
  const GroupNormSilu& op_;
  const Pieces& pieces_;
  const int64_t b_;
  const Parallel& parallel_;
  const int64_t width_;
  std::vector<Moments> moments_;  // of the groups
  std::vector<float> rows_;       // [kNormRows][channels]
  std::vector<double> sums_;      // [2][channels]
};

}  // namespace

void group_norm_silu_backward_cpu(const GroupNormSiluBackward& back,
                                  const Parallel& parallel) {
  const GroupNormSilu& op = back.op;
  const Pieces pieces(op);
  const int64_t row = 2 * op.channels;
  std::vector<double> sums(op.batch * row);
  const auto pictures = [&](int64_t begin, int64_t end, const Parallel& inside) {
    for (int64_t b = begin; b < end; ++b)
      Picture(back, pieces, b, inside).run(sums.data() + b * row);
  };
  if (op.batch < 2 * parallel.threads) {
    pictures(0, op.batch, parallel);
  } else {
    Parallel alone;
    alone.run = [](int64_t n, int64_t, const auto& body) { body(0, n); };
    parallel.run(op.batch, 1,
                 [&](int64_t begin, int64_t end) { pictures(begin, end, alone); });
  }
  for (int64_t c = 0; c < op.channels; ++c) {
    double bias = 0.0, weight = 0.0;
    for (int64_t b = 0; b < op.batch; ++b) {
      bias += sums[b * row + c];
      weight += sums[b * row + op.channels + c];
    }
    back.bias_grad[c] = static_cast<float>(bias);
    back.weight_grad[c] = static_cast<float>(weight);
  }
}

}  // namespace tokenflow
