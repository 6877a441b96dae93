// Runs every CUDA kernel on the CPU and compares it with the CPU kernel of the same
// contract, which other tests hold to the reference. Prints each check; exits 1 when
// one fails. "brief" leaves out what takes long under a sanitizer, "races" also
// lookup_backward, whose threads may set the same flag at once.
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>

#include "ops/code_histogram/code_histogram.h"
#include "ops/lookup/lookup.h"
#include "ops/norm/group_norm_silu.h"
#include "ops/pyramid/pyramid.h"
#include "ops/quantize/quantize.h"
#include "ops/upsample/upsample_conv.h"

using namespace tokenflow;

namespace {

bool brief = false, races = false;
int failures = 0;

void verdict(const std::string& what, bool good) {
  std::printf("%s %s\n", good ? "ok  " : "FAIL", what.c_str());
  failures += !good;
}

Parallel serial() {
  Parallel parallel;
  parallel.run = [](int64_t n, int64_t, const auto& body) {
    if (n > 0) body(0, n);
  };
  return parallel;
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && !std::memcmp(a.data(), b.data(), a.size() * sizeof(T));
}

bool close(const std::vector<float>& a, const std::vector<float>& b, float tolerance) {
  for (size_t i = 0; i < a.size(); ++i)
    if (!(std::abs(a[i] - b[i]) <= tolerance * (1.0f + std::abs(b[i])))) return false;
  return a.size() == b.size();
}

std::vector<float> draw(int64_t count, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& v : values) v = normal(engine);
  return values;
}

// What makes a family special; `width` is that of one row.
void bend(std::vector<float>& values, int64_t width, const std::string& family,
          bool book) {
  const int64_t rows = width ? static_cast<int64_t>(values.size()) / width : 0;
  const float inf = std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t d = 0; d < width; ++d) {
      float& v = values[i * width + d];
      if (family == "duplicates" && book) v = values[i % 7 % rows * width + d];
      if (family == "collapsed" && book) v = values[d];
      if (family == "zeros" && i % 2) v = 0.0f;
      if (family == "huge") v *= 1e20f;
      if (family == "not finite" && d == 0 && i % 5 == 1) v = i % 2 ? inf : inf - inf;
    }
}

struct Prepared {
  std::vector<float> rows;
  std::vector<double> squares, limits;
  PreparedBook book;
};

Prepared prepare_with(bool cuda, const std::vector<float>& semantic,
                      const std::vector<float>& pixel, int64_t k, int64_t ds,
                      int64_t dp, bool normalize) {
  Prepared p{std::vector<float>(k * (ds + dp)),
             std::vector<double>(2 * k),
             std::vector<double>(3),
             {}};
  if (cuda)
    prepare_cuda(semantic.data(), pixel.data(), k, ds, dp, normalize, p.rows.data(),
                 p.squares.data(), p.limits.data(), 0, nullptr);
  else
    prepare_cpu(semantic.data(), pixel.data(), k, ds, dp, normalize, p.rows.data(),
                p.squares.data(), p.limits.data(), serial());
  p.book = {p.rows.data(), p.squares.data(), p.limits.data(), k, ds, dp};
  return p;
}

void check_quantize(int64_t n, int64_t k, int64_t ds, int64_t dp,
                    const std::string& family, bool normalize, float weight) {
  std::vector<float> semantic = draw(n * ds, 1), pixel = draw(n * dp, 2);
  std::vector<float> semantic_book = draw(k * ds, 3), pixel_book = draw(k * dp, 4);
  bend(semantic, ds, family, false);
  bend(pixel, dp, family, false);
  bend(semantic_book, ds, family, true);
  bend(pixel_book, dp, family, true);
  const Prepared cpu =
      prepare_with(false, semantic_book, pixel_book, k, ds, dp, normalize);
  const Prepared gpu =
      prepare_with(true, semantic_book, pixel_book, k, ds, dp, normalize);
  const Queries queries{semantic.data(), pixel.data(), n, weight, normalize};
  std::vector<int64_t> expected(n, -7), found(n, -8);
  quantize_cpu(queries, cpu.book, expected.data(), serial());
  // Exactly the bytes asked for: a sanitizer sees every step outside.
  std::unique_ptr<char[]> memory(new char[quantize_cuda_workspace(n, k, ds + dp, 0)]);
  quantize_cuda(queries, gpu.book, found.data(), memory.get(), 0, nullptr);
  verdict("quantize " + family + " n=" + std::to_string(n) + " k=" + std::to_string(k) +
              " width=" + std::to_string(ds) + "+" + std::to_string(dp) +
              (normalize ? " unit" : " plain"),
          same(cpu.rows, gpu.rows) && same(cpu.squares, gpu.squares) &&
              same(cpu.limits, gpu.limits) && same(expected, found));
}

std::vector<int64_t> some_indices(int64_t n, int64_t k) {
  std::mt19937 engine(5);
  std::vector<int64_t> indices(n);
  for (int64_t& i : indices) i = static_cast<int64_t>(engine() % (k + 2)) - 1;
  return indices;
}

void check_lookup(int64_t n, int64_t k, bool normalize) {
  const int64_t ds = 6, dp = 3;
  std::vector<float> semantic = draw(k * ds, 1), pixel = draw(k * dp, 2);
  bend(semantic, ds, "zeros", true);
  const Books books{semantic.data(), pixel.data(), k, ds, dp, normalize};
  const std::vector<int64_t> indices = some_indices(n, k);
  std::vector<float> expected(n * (ds + dp)), found(n * (ds + dp), 7.0f);
  lookup_cpu(indices.data(), n, books, expected.data(), serial());
  lookup_cuda(indices.data(), n, books, found.data(), 0, nullptr);
  verdict("lookup n=" + std::to_string(n), same(expected, found));
  if (races) return;
  const std::vector<float> grad = draw(n * (ds + dp), 6);
  std::vector<float> s(k * ds), p(k * dp), s_found(k * ds, 7.0f), p_found(k * dp, 7.0f);
  lookup_backward_cpu(grad.data(), indices.data(), n, books, s.data(), p.data(),
                      serial());
  std::vector<double> sums(k * (ds + dp));
  std::vector<uint8_t> used(k);
  lookup_backward_cuda(grad.data(), indices.data(), n, books, s_found.data(),
                       p_found.data(), sums.data(), used.data(), 0, nullptr);
  verdict("lookup_backward n=" + std::to_string(n),
          close(s_found, s, 1e-6f) && close(p_found, p, 1e-6f));
}

void check_histogram(int64_t n, int64_t k) {
  const std::vector<int64_t> indices = some_indices(n, k);
  std::vector<int64_t> expected(k), found(k, 7);
  code_histogram_cpu(indices.data(), n, k, expected.data(), serial());
  code_histogram_cuda(indices.data(), n, k, found.data(), 0, nullptr);
  verdict("code_histogram n=" + std::to_string(n), same(expected, found));
}

void check_pyramid(int64_t batch, Grid grid, std::vector<int64_t> sides) {
  const int64_t ds = 6, dp = 3, k = 90, count = static_cast<int64_t>(sides.size()) / 2;
  // Any weights do: both sides are given the same.
  std::vector<double> row_weights(count * grid.height * 4, 0.26);
  std::vector<double> column_weights(count * grid.width * 4, 0.24);
  const Pyramid pyramid{batch,
                        ds + dp,
                        grid,
                        sides.data(),
                        count,
                        row_weights.data(),
                        column_weights.data()};
  const int64_t map = batch * (ds + dp) * cells_of(grid);
  const int64_t tokens = batch * tokens_of(pyramid);
  std::vector<float> features = draw(map, 1);
  features[3] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> semantic = draw(k * ds, 2), pixel = draw(k * dp, 3);
  const Prepared p = prepare_with(false, semantic, pixel, k, ds, dp, true);
  std::vector<int64_t> expected(tokens), found(tokens, -8);
  std::vector<float> sum(map), sum_found(map, 7.0f), again(map, 7.0f);
  pyramid_quantize_cpu(features.data(), p.book, 0.7f, true, pyramid, expected.data(),
                       sum.data(), serial());
  std::unique_ptr<char[]> memory(
      new char[pyramid_quantize_cuda_workspace(pyramid, p.book, 0)]);
  pyramid_quantize_cuda(features.data(), p.book, 0.7f, true, pyramid, found.data(),
                        sum_found.data(), memory.get(), 0, nullptr);
  verdict("pyramid_quantize", same(expected, found) && same(sum, sum_found));
  const Books books{semantic.data(), pixel.data(), k, ds, dp, true};
  memory.reset(new char[pyramid_lookup_cuda_workspace(pyramid)]);
  pyramid_lookup_cuda(expected.data(), books, pyramid, again.data(), memory.get(), 0,
                      nullptr);
  verdict("pyramid_lookup", same(sum, again));
}

void check_norm(bool channels_last) {
  const int64_t batch = 2, channels = 12, area = brief ? 35 : 3001, groups = 3;
  const std::vector<float> x = draw(batch * channels * area, 1);
  const std::vector<float> weight = draw(channels, 2), bias = draw(channels, 3);
  std::vector<float> expected(x.size()), found(x.size(), 7.0f);
  GroupNormSilu op{batch,         channels,     area,           groups,
                   1e-6,          Element::f32, channels_last,  x.data(),
                   weight.data(), bias.data(),  expected.data()};
  std::vector<double> memory(group_norm_silu_workspace(op) / sizeof(double) + 1);
  group_norm_silu_plain_cpu(op, memory.data(), serial());
  op.y = found.data();
  group_norm_silu_cuda(op, memory.data(), 0, nullptr);
  verdict("group_norm_silu", close(found, expected, 1e-6f));
}

void check_upsample(bool channels_last) {
  const int64_t batch = 2, in = 5, out = 7, height = 3, width = 4;
  const std::vector<float> x = draw(batch * in * height * width, 1);
  const std::vector<float> weight = draw(out * in * 9, 2), bias = draw(out, 3);
  std::vector<float> expected(batch * out * 4 * height * width);
  std::vector<float> found(expected.size(), 7.0f);
  UpsampleConv op{
      batch,           in,           out,           height,        width,
      Element::f32,    x.data(),     channels_last, weight.data(), bias.data(),
      expected.data(), channels_last};
  upsample_conv_plain_cpu(op, serial());
  op.y = found.data();
  upsample_conv_cuda(op, 0, nullptr);
  verdict("upsample_conv", same(expected, found));
}

}  // namespace

int main(int argc, char** argv) {
  races = argc > 1 && std::string(argv[1]) == "races";
  brief = races || (argc > 1 && std::string(argv[1]) == "brief");
  for (const char* family :
       {"random", "duplicates", "collapsed", "zeros", "huge", "not finite"})
    for (bool normalize : {true, false})
      check_quantize(70, brief ? 70 : 601, 32, 8, family, normalize, 0.7f);
  check_quantize(1, 1, 1, 1, "random", true, 1.0f);
  check_quantize(64, 64, 32, 0, "random", false, 1.0f);
  check_quantize(65, 2300, 3, 2, "duplicates", true, 0.0f);  // a book in parts
  if (!brief) check_quantize(130, 300, 70, 33, "random", true, 1.0f);
  for (bool normalize : {true, false}) check_lookup(131, 40, normalize);
  check_histogram(300, 17);
  check_pyramid(2, {5, 4}, {1, 1, 2, 2, 3, 2, 5, 4});
  for (bool channels_last : {false, true}) {
    check_norm(channels_last);
    check_upsample(channels_last);
  }
  std::printf("%d failed\n", failures);
  return failures != 0;
}
