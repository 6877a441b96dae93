// Runs every CUDA kernel on the CPU and compares it with the CPU kernel of the same
// contract, which other tests hold to the reference. Prints each check; exits 1 when
// one fails. "brief" leaves out what takes long under a sanitizer, "races" also
// lookup_backward, whose threads may set the same flag at once.
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>

#include "common/half_bound.h"
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
  std::vector<double> packed;  // for its alignment
  PreparedBook book;
};

Prepared prepare_with(bool cuda, const std::vector<float>& semantic,
                      const std::vector<float>& pixel, int64_t k, int64_t ds,
                      int64_t dp, bool normalize) {
  Prepared p{std::vector<float>(k * (ds + dp)),
             std::vector<double>(2 * k),
             std::vector<double>(3),
             {},
             {}};
  if (cuda)
    prepare_cuda(semantic.data(), pixel.data(), k, ds, dp, normalize, p.rows.data(),
                 p.squares.data(), p.limits.data(), 0, nullptr);
  else
    prepare_cpu(semantic.data(), pixel.data(), k, ds, dp, normalize, p.rows.data(),
                p.squares.data(), p.limits.data(), serial());
  if (const int64_t bytes = cuda ? 0 : pack_cpu_bytes(k, ds + dp)) {
    p.packed.assign((bytes + 7) / 8, NAN);  // only made, for the sanitizers
    pack_cpu(p.rows.data(), k, ds, dp, p.packed.data(), serial());
  }
  p.book = {p.rows.data(), p.squares.data(), p.limits.data(), k, ds, dp, nullptr, 0};
  return p;
}

// As the glue does: packed where the width allows it.
void pack(Prepared& p) {
  const int64_t width = p.book.semantic_width + p.book.pixel_width;
  p.packed.assign((pack_cuda_bytes(p.book.k, width) + 15) / 16 * 2, NAN);
  if (p.packed.empty()) return;
  pack_cuda(p.rows.data(), p.book.k, width, p.packed.data(), 0, nullptr);
  p.book.packed = p.packed.data();
  p.book.packed_bytes = pack_cuda_bytes(p.book.k, width);
}

// The sweep that a device of this capability runs: 7 the plain one, 8 mma, 9 wgmma.
// `decides`: tensor cores must leave nothing to the plain one.
void check_quantize(int capability, int64_t n, int64_t k, int64_t ds, int64_t dp,
                    const std::string& family, bool normalize, float weight,
                    bool decides = false) {
  std::vector<float> semantic = draw(n * ds, 1), pixel = draw(n * dp, 2);
  std::vector<float> semantic_book = draw(k * ds, 3), pixel_book = draw(k * dp, 4);
  bend(semantic, ds, family, false);
  bend(pixel, dp, family, false);
  bend(semantic_book, ds, family, true);
  bend(pixel_book, dp, family, true);
  const Prepared cpu =
      prepare_with(false, semantic_book, pixel_book, k, ds, dp, normalize);
  Prepared gpu = prepare_with(true, semantic_book, pixel_book, k, ds, dp, normalize);
  pack(gpu);
  const Queries queries{semantic.data(), pixel.data(), n, weight, normalize};
  std::vector<int64_t> expected(n, -7), found(n, -8);
  quantize_cpu(queries, cpu.book, expected.data(), serial());
  cuda_on_cpu::capability_major = capability;
  cuda_on_cpu::votes = 0;
  // Exactly the bytes asked for: a sanitizer sees every step outside.
  std::unique_ptr<char[]> memory(
      new char[quantize_cuda_workspace(queries, gpu.book, 0)]);
  quantize_cuda(queries, gpu.book, found.data(), memory.get(), 0, nullptr);
  verdict("quantize sm_" + std::to_string(capability) + "0 " + family +
              " n=" + std::to_string(n) + " k=" + std::to_string(k) +
              " width=" + std::to_string(ds) + "+" + std::to_string(dp) +
              (normalize ? " unit" : " plain"),
          same(cpu.rows, gpu.rows) && same(cpu.squares, gpu.squares) &&
              same(cpu.limits, gpu.limits) && same(expected, found) &&
              !(decides && cuda_on_cpu::votes > 0));
}

// One product of a tensor core that does as badly as half_bound.h allows: terms and
// result are cut at 2⁻²³ of the largest.
float worst_product(const float* a, const float* b, int count, float sum) {
  double largest = std::abs(sum);
  for (int i = 0; i < count; ++i)
    largest = std::max(largest, std::abs(static_cast<double>(a[i]) * b[i]));
  if (largest == 0.0) return 0.0f;
  int exponent;
  std::frexp(largest, &exponent);
  const double unit = std::ldexp(1.0, exponent - 24);
  auto cut = [&](double x) { return std::trunc(x / unit) * unit; };
  double total = cut(sum);
  for (int i = 0; i < count; ++i) total += cut(static_cast<double>(a[i]) * b[i]);
  const float rounded = static_cast<float>(total);
  return std::abs(static_cast<double>(rounded)) > std::abs(total)
             ? std::nextafter(rounded, 0.0f)
             : rounded;
}

struct HalfRow {
  std::vector<float> values;
  HalfNorms norms;
};

HalfRow half_row(const float* x, int64_t width, int exponent) {
  HalfRow row;
  for (int64_t d = 0; d < width; ++d)
    row.values.push_back(to_float(to_half(x[d], power_of_two(exponent), row.norms)));
  row.values.resize((width + 15) / 16 * 16);
  return row;
}

// The bound holds for rows made to break it, and is no larger than it need be.
void check_half_bound(int64_t width, const std::string& family, float query_size,
                      float offset) {
  std::vector<float> a = draw(width, 11), b = draw(width, 12);
  for (int64_t d = 0; d < width; ++d) {
    const float tie = 1.0f + 0x1p-11f;  // halfway between two float16
    const float sign = d % 2 ? -1.0f : 1.0f;
    if (family == "lost alike") a[d] = b[d] = tie;  // rounding takes from every term
    if (family == "cancelling") {
      a[d] = sign * (1.0f + 0x1p-10f * d);
      b[d] = 1.0f + 0x1p-9f * d;
    }
    if (family == "one large" && d > 0) a[d] *= 1e-4f, b[d] *= 1e-4f;
    if (family == "below float16") a[d] *= std::ldexp(1.0f, -2 * static_cast<int>(d));
    a[d] *= query_size;
  }
  const double norm = std::sqrt(sum_of_squares(b.data(), width));
  const int book = half_exponent(norm);
  const int query = query_exponent(std::sqrt(sum_of_squares(a.data(), width)), book);
  const HalfRow left = half_row(a.data(), width, query);
  const HalfRow right = half_row(b.data(), width, book);
  const double scaled_offset = std::ldexp(offset, query + book);
  const double exact =
      std::ldexp(exact_dot(a.data(), 1, b.data(), width), query + book) - scaled_offset;
  const double error =
      half_sweep_error(left.norms, norm * power_of_two(book),
                       std::sqrt(right.norms.residual), scaled_offset, width);
  bool good = error >= 0.0;
  for (int group : {1, 4, 8, 16}) {
    float sum = 0.0f;
    for (size_t d = 0; d < left.values.size(); d += group)
      sum = worst_product(&left.values[d], &right.values[d], group, sum);
    const float rounded = static_cast<float>(std::ldexp(offset, 2 * book));
    const float score =
        std::fma(-static_cast<float>(power_of_two(query - book)), rounded, sum);
    // Group 1 is the plain order of float32, with a cut for every term.
    good = good && std::abs(score - exact) <= error;
  }
  if (family == "random" && offset == 0.0f && query_size >= 1.0f)
    good = good && error <= std::ldexp(std::sqrt(left.norms.rounded) * norm, book - 10);
  verdict("half bound " + family + " width=" + std::to_string(width) + " size=" +
              std::to_string(query_size) + " offset=" + std::to_string(offset),
          good);
}

std::vector<int64_t> some_indices(int64_t n, int64_t k) {
  std::mt19937 engine(5);
  std::vector<int64_t> indices(n);
  for (int64_t& i : indices) i = static_cast<int64_t>(engine() % (k + 2)) - 1;
  return indices;
}

void check_lookup(int64_t n, int64_t k, bool normalize, int64_t ds, int64_t dp) {
  std::vector<float> semantic = draw(k * ds, 1), pixel = draw(k * dp, 2);
  bend(semantic, ds, "zeros", true);
  pixel[0] *= 1e-38f;  // scaled by what is next to it: a subnormal result
  const Books books{semantic.data(), pixel.data(), k, ds, dp, normalize};
  const std::vector<int64_t> indices = some_indices(n, k);
  std::vector<float> expected(n * (ds + dp)), found(n * (ds + dp), 7.0f);
  lookup_cpu(indices.data(), n, books, expected.data(), serial());
  lookup_cuda(indices.data(), n, books, found.data(), 0, nullptr);
  verdict("lookup n=" + std::to_string(n) + " width=" + std::to_string(ds + dp),
          same(expected, found));
  if (races) return;
  const std::vector<float> grad = draw(n * (ds + dp), 6);
  std::vector<float> s(k * ds), p(k * dp), s_found(k * ds, 7.0f), p_found(k * dp, 7.0f);
  lookup_backward_cpu(grad.data(), indices.data(), n, books, s.data(), p.data(),
                      serial());
  std::vector<double> sums(k * (ds + dp));
  std::vector<uint8_t> used(k);
  lookup_backward_cuda(grad.data(), indices.data(), n, books, s_found.data(),
                       p_found.data(), sums.data(), used.data(), 0, nullptr);
  verdict(
      "lookup_backward n=" + std::to_string(n) + " width=" + std::to_string(ds + dp),
      close(s_found, s, 1e-6f) && close(p_found, p, 1e-6f));
}

void check_histogram(int64_t n, int64_t k) {
  const std::vector<int64_t> indices = some_indices(n, k);
  std::vector<int64_t> expected(k), found(k, 7);
  code_histogram_cpu(indices.data(), n, k, expected.data(), serial());
  code_histogram_cuda(indices.data(), n, k, found.data(), 0, nullptr);
  verdict("code_histogram n=" + std::to_string(n), same(expected, found));
}

void check_pyramid(int64_t batch, Grid grid, std::vector<int64_t> sides, int64_t ds,
                   int64_t dp) {
  const int64_t k = 90, count = static_cast<int64_t>(sides.size()) / 2;
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
  Prepared p = prepare_with(false, semantic, pixel, k, ds, dp, true);
  std::vector<int64_t> expected(tokens), found(tokens, -8);
  std::vector<float> sum(map), sum_found(map, 7.0f), again(map, 7.0f);
  pyramid_quantize_cpu(features.data(), p.book, 0.7f, true, pyramid, expected.data(),
                       sum.data(), serial());
  pack(p);
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

// A map in the element type, [batch, channels, cells], and with the channels last.
template <class T>
std::vector<T> as_map(const std::vector<float>& values, int64_t batch, int64_t channels,
                      bool channels_last) {
  std::vector<T> map(values.size());
  const int64_t cells = batch ? values.size() / batch / channels : 0;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t i = 0; i < cells; ++i) {
        const int64_t to = channels_last ? (b * cells + i) * channels + c
                                         : (b * channels + c) * cells + i;
        from_float(values[(b * channels + c) * cells + i], map[to]);
      }
  return map;
}
template <class T>
std::vector<float> widened(const std::vector<T>& map) {
  std::vector<float> values(map.size());
  for (size_t i = 0; i < map.size(); ++i) values[i] = to_float(map[i]);
  return values;
}

template <class T>
void check_norm(const char* type, Element element, int64_t channels, int64_t area,
                int64_t groups, bool channels_last, float mean, int64_t skipped = 0) {
  const int64_t batch = 2;
  std::vector<float> values = draw(batch * channels * area, 1);
  for (float& v : values) v += mean;
  values[1] += 100 * mean;  // an outlier, among those that come first
  const std::vector<T> plain = as_map<T>(values, batch, channels, channels_last);
  std::vector<T> x(plain.size() + skipped), found(x.size());
  std::copy(plain.begin(), plain.end(), x.begin() + skipped);
  const std::vector<float> weight = draw(channels, 2), bias = draw(channels, 3);
  std::vector<T> expected(plain.size());
  GroupNormSilu op{batch,         channels,    area,           groups,
                   1e-6,          element,     channels_last,  x.data() + skipped,
                   weight.data(), bias.data(), expected.data()};
  group_norm_silu_cpu(op, serial());
  op.y = found.data() + skipped;
  std::unique_ptr<char[]> workspace(new char[group_norm_silu_cuda_workspace(op)]);
  group_norm_silu_cuda(op, workspace.get(), 0, nullptr);
  found.erase(found.begin(), found.begin() + skipped);
  const float unit = element == Element::f32   ? 4e-6f
                     : element == Element::f16 ? 1e-3f
                                               : 8e-3f;
  verdict(std::string("group_norm_silu ") + type + " " + std::to_string(channels) +
              "x" + std::to_string(area) + (channels_last ? " last" : ""),
          close(widened(found), widened(expected), unit));
}

void check_norms() {
  for (bool last : {false, true}) {
    check_norm<float>("f32", Element::f32, 12, brief ? 35 : 3001, 3, last, 3.0f);
    check_norm<Bfloat16>("bf16", Element::bf16, 32, 40, 2, last, 0.0f);
    if (brief) continue;
    check_norm<float>("f32", Element::f32, 8, 70000, 2, last, 50.0f);
    check_norm<Half>("f16", Element::f16, 64, 264, 32, last, 1.0f);
    check_norm<Bfloat16>("bf16", Element::bf16, 2064, 16, 3, last, 0.0f);
    check_norm<Bfloat16>("bf16", Element::bf16, 16, 24, 4, last, 0.0f, 1);
  }
}

struct UpsampleSize {
  int64_t batch, in, out, height, width;
};

template <class T>
void check_upsample(const char* type, Element element, UpsampleSize n, bool x_last,
                    bool y_last, bool with_bias = true, int64_t skipped = 0) {
  const int64_t cells = n.height * n.width;
  const std::vector<T> plain =
      as_map<T>(draw(n.batch * n.in * cells, 1), n.batch, n.in, x_last);
  std::vector<T> x(plain.size() + skipped);  // `skipped` elements off alignment
  std::copy(plain.begin(), plain.end(), x.begin() + skipped);
  const std::vector<T> weight = as_map<T>(draw(n.out * n.in * 9, 2), 1, 1, false);
  const std::vector<T> bias = as_map<T>(draw(n.out, 3), 1, 1, false);
  const std::vector<float> wide_weight = widened(weight), wide_bias = widened(bias);
  std::vector<T> expected(n.batch * n.out * 4 * cells),
      found(expected.size() + skipped);
  UpsampleConv op{n.batch,
                  n.in,
                  n.out,
                  n.height,
                  n.width,
                  element,
                  x.data() + skipped,
                  x_last,
                  wide_weight.data(),
                  with_bias ? wide_bias.data() : nullptr,
                  expected.data(),
                  y_last};
  upsample_conv_plain_cpu(op, serial());
  op.weight = op.bias = nullptr;
  for (T& y : found) from_float(7e4f, y);
  op.y = found.data() + skipped;
  const UpsampleParameters given{
      weight.data(), {n.in * 9, 9, 3, 1}, with_bias ? bias.data() : nullptr};
  std::unique_ptr<char[]> memory(new char[upsample_conv_cuda_workspace(op)]);
  upsample_conv_cuda(op, given, memory.get(), 0, nullptr);
  found.erase(found.begin(), found.begin() + skipped);
  const float unit = element == Element::f32   ? 1e-6f
                     : element == Element::f16 ? 1e-3f
                                               : 8e-3f;
  verdict(std::string("upsample_conv ") + type + " in=" + std::to_string(n.in) +
              " out=" + std::to_string(n.out) + " " + std::to_string(n.height) + "x" +
              std::to_string(n.width) + (x_last ? " last" : "") +
              (y_last ? "/last" : ""),
          close(widened(found), widened(expected), unit * std::sqrt(9.0f * n.in)));
}

void check_upsamples() {
  // Sixteen outputs of one step, rows of several, strips, every tile and store.
  const auto bf16 = [](auto... given) {
    check_upsample<Bfloat16>("bf16", Element::bf16, given...);
  };
  const auto f32 = [](auto... given) {
    check_upsample<float>("f32", Element::f32, given...);
  };
  bf16(UpsampleSize{1, 8, 8, 5, 5}, true, true);
  f32(UpsampleSize{1, 5, 7, 3, 4}, false, false);
  bf16(UpsampleSize{1, 40, 8, 6, 40}, true, true);  // with seams between warps
  if (brief) return;
  check_upsample<Half>("f16", Element::f16, UpsampleSize{2, 40, 24, 9, 20}, true, true);
  bf16(UpsampleSize{1, 40, 70, 6, 17}, false, false);
  bf16(UpsampleSize{1, 33, 9, 4, 33}, false, true, false);
  bf16(UpsampleSize{1, 32, 16, 5, 65}, true, false);
  bf16(UpsampleSize{1, 16, 8, 3, 131}, true, true);
  bf16(UpsampleSize{1, 8, 8, 1, 1}, true, true, true, int64_t{1});
  f32(UpsampleSize{2, 36, 24, 9, 20}, true, true);
  f32(UpsampleSize{1, 20, 16, 5, 40}, false, false);
  f32(UpsampleSize{1, 4, 8, 4, 131}, true, true);
  f32(UpsampleSize{3, 17, 65, 7, 3}, true, false, true, int64_t{1});
  // Weights that do not stay, with three stages, with two; no room for any tile.
  const int most = cuda_on_cpu::shared_limit;
  for (int limit : {110000, 90000, 60000, 1000}) {
    cuda_on_cpu::shared_limit = limit;
    bf16(UpsampleSize{1, 160, 16, 11, 33}, true, true);
    f32(UpsampleSize{1, 80, 16, 11, 33}, true, true, limit == 60000);
  }
  cuda_on_cpu::shared_limit = most;
}

}  // namespace

int main(int argc, char** argv) {
  races = argc > 1 && std::string(argv[1]) == "races";
  brief = races || (argc > 1 && std::string(argv[1]) == "brief");
  for (int64_t width : {1, 7, 16, 40, 128})
    for (const char* family :
         {"random", "lost alike", "cancelling", "one large", "below float16"})
      for (float size : {1.0f, 1e-30f, 1e30f})
        for (float offset : {0.0f, 0.3f, 700.0f})
          check_half_bound(width, family, size, offset);
  for (int capability : {7, 8, 9}) {
    for (const char* family :
         {"random", "duplicates", "collapsed", "zeros", "huge", "not finite"})
      for (bool normalize : {true, false})
        check_quantize(capability, 70, brief ? 70 : 601, 32, 8, family, normalize, 0.7f,
                       capability > 7 && family == std::string("random"));
    check_quantize(capability, 1, 1, 1, 1, "random", true, 1.0f);
    check_quantize(capability, 64, 64, 32, 0, "random", false, 1.0f);
    // A book in parts, a weight of zero.
    check_quantize(capability, 65, 2300, 3, 2, "duplicates", true, 0.0f);
    if (brief) continue;
    const bool tensor = capability > 7;
    // Every number of steps, two panels, the ring more than once around.
    for (int64_t width : {16, 17, 64, 70, 96, 103, 128})
      check_quantize(capability, 130, 300, width - 5, 5, "random", true, 1.0f, tensor);
    for (bool normalize : {true, false})
      check_quantize(capability, 130, 4100, 24, 8, "random", normalize, 0.3f, tensor);
    check_quantize(capability, 130, 300, 70, 63, "random", true, 1.0f);
  }
  for (bool normalize : {true, false}) {
    check_lookup(131, 40, normalize, 6, 3);
    check_lookup(131, 40, normalize, 32, 8);
    check_lookup(70, 9, normalize, 8, 264);
  }
  check_histogram(300, 17);
  check_pyramid(2, {5, 4}, {1, 1, 2, 2, 3, 2, 5, 4}, 6, 3);
  check_pyramid(1, {9, 11}, {1, 1, 4, 3, 12, 13}, 32, 8);
  check_norms();
  check_upsamples();
  std::printf("%d failed\n", failures);
  return failures != 0;
}
