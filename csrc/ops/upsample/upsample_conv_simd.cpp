/*
upsample_conv, CPU sweep. Compiled once per instruction set; meaning: upsample_conv.h.

Algorithm  Along one dimension, with A[i] = w₀·x[i−1] + w₂·x[i] and C[i] = w₁·x[i],
           y[2i−1] = A[i] + C[i−1] and y[2i] = A[i] + C[i]. Two neighbours of A need
           three products instead of four (Winograd's F(2, 2)), so that a pair of pixels
           x₀ = x[2p], x₁ = x[2p+1] with the one before them, x₋ = x[2p−1], costs five:
             product  input     weight     A[2p]   = first + middle
             first    x₋ − x₀   w₀         A[2p+1] = middle + last
             middle   x₀        w₀ + w₂
             last     x₁ − x₀   w₂
             even     x₀        w₁         C[2p]
             odd      x₁        w₁         C[2p+1]
           In two dimensions 25 products for the 16 outputs of a cell of 2×2
pixels: 6.25 per pixel, where a convolution of the enlarged map has 36. They are matrix
           products of 16 inputs and 16 weights made of sums and differences.
Tiles      kPixels cells × two vectors of output channels, sums in registers, kSlice
           input channels at a time. A job works on kBlock output channels, in bands of
           rows of about kCells cells.
Traffic    Per band the 25 products (kCells × kBlock floats each), a row kind of inputs
           (4 × kCells × kSlice) and a slice of weights (16 × kSlice × kBlock) stay in
           L2, the weights of one product in L1. y is written once; NCHW goes through
           squares transposed in registers.
Numerics   float32 sums in one order for every tile: independent of threads, batch and
           position; instruction sets differ in the last bits. Differences of pixels and
           sums of weights double the rounding errors; sums of kChain products, added to
           each other, win that back against eager's long ones. Where a difference of
           infinities leaves NaN, the output is computed again from the definition, so
           that infinities spread as in eager.
*/
#include <algorithm>
#include <cmath>

#include "common/simd_maps.h"
#include "common/simd_stream.h"
#include "ops/upsample/upsample_conv.h"

namespace tokenflow::TFX_ISA {
namespace {

using simd::VecF;

constexpr int kLanes = simd::kFloats;
constexpr int kPair = 2 * kLanes;  // channels of one tile
constexpr int kBlock = 32;
constexpr int kBlocks = 2;  // at most, of one job
constexpr int kParts = kBlock / kLanes;
constexpr int kSlice = 128;
constexpr int kChain = 32;  // products summed before their sum is added to the others
constexpr int kCells = 64;
#if defined(__AVX512F__)
constexpr int kPixels = 12;
#else
constexpr int kPixels = 6;
#endif
static_assert(kBlock % kPair == 0 && kSlice % kChain == 0 && kChain % kLanes == 0);
static_assert(kLanes % 4 == 0);

// The products of one dimension, and which input and which weight each of them takes.
enum Product { first, middle, last, even, odd, kProducts };
constexpr int kInputs = 4, kWeights = 4;
constexpr int kInputOf[kProducts] = {0, 1, 2, 1, 3};
constexpr int kWeightOf[kProducts] = {0, 1, 2, 3, 3};
constexpr int kWeightOfTap[3] = {0, 3, 2};

// Weights of one product and slice: [pair of vectors][input channel][kPair], and a line
// that keeps the sixteen of them apart in the cache.
constexpr int64_t kPanel = kSlice * kBlock + 16;
constexpr int64_t kPanels = kWeights * kWeights * kPanel;

// Cells of one row, or column. Of an even length there is one more, in which only
// `first` is not zero.
int64_t full_cells(int64_t length) { return (length + 1) / 2; }
int64_t all_cells(int64_t length) { return length / 2 + 1; }

// Where the parts of one thread's scratch begin. What follows `sums` is zero at first.
struct Plan {
  int64_t columns;   // full cells of a row
  int64_t capacity;  // positions of one product: full cells, then the cells beyond
  int64_t inputs, sums, carry, zeros, bias, size;

  Plan(const UpsampleConv& op, int64_t rows) {
    columns = full_cells(op.width);
    capacity = rows * all_cells(op.width);
    inputs = 0;
    sums = inputs + kInputs * capacity * kSlice;
    carry = sums + kBlocks * kProducts * kProducts * capacity * kBlock;
    zeros = carry + kBlocks * kProducts * (columns + 1) * kBlock;
    bias = zeros + std::max<int64_t>(columns * kBlock, kSlice);
    size = bias + kBlocks * kBlock;
  }
};

int64_t band_rows(int64_t width) {
  return std::max<int64_t>(1, kCells / full_cells(width));
}

// z[p] (+)= Σ_k x[p, k] · w[k] for P positions and one pair of vectors of channels.
template <int P>
void product(const float* x, int64_t channels, const float* w, bool begin, float* z) {
  for (int64_t chain = 0; chain < channels; chain += kChain) {
    VecF sums[P][2] = {};
    const int64_t end = std::min<int64_t>(channels, chain + kChain);
    for (int64_t k = chain; k < end; ++k) {
      const VecF w0 = simd::load(w + k * kPair);
      const VecF w1 = simd::load(w + k * kPair + kLanes);
#pragma GCC unroll 12
      for (int p = 0; p < P; ++p) {
        const VecF v = simd::broadcast(x[p * kSlice + k]);
        sums[p][0] += v * w0;
        sums[p][1] += v * w1;
      }
    }
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        float* to = z + p * kBlock + v * kLanes;
        simd::store(to, begin ? sums[p][v] : simd::load(to) + sums[p][v]);
      }
    begin = false;
  }
}

template <int P>
void product_of(int64_t positions, const float* x, int64_t channels, const float* w,
                bool begin, float* z) {
  if constexpr (P > 0) {
    if (positions == P) return product<P>(x, channels, w, begin, z);
    product_of<P - 1>(positions, x, channels, w, begin, z);
  }
}

void products(int64_t positions, const float* x, int64_t channels, const float* panel,
              bool begin, float* z) {
  const int64_t tiles = (positions + kPixels - 1) / kPixels;
  for (int pair = 0; pair < kBlock / kPair; ++pair)
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t from = positions * t / tiles, to = positions * (t + 1) / tiles;
      product_of<kPixels>(to - from, x + from * kSlice, channels,
                          panel + pair * kSlice * kPair, begin,
                          z + from * kBlock + pair * kPair);
    }
}

// The weights of `count` output channels from `channel` on and of a slice of input
// channels, as the sixteen panels.
void pack_weights(const UpsampleConv& op, int64_t channel, int64_t slice,
                  float* panels) {
  const int64_t length = 9 * op.in_channels;
  const int64_t end = std::min<int64_t>(op.in_channels, slice + kSlice);
  for (int part = 0; part < kBlock; part += kLanes) {
    const int64_t count =
        std::clamp<int64_t>(op.out_channels - channel - part, 0, kLanes);
    const float* in = op.weight + (channel + part) * length;
    float* out = panels + part / kPair * kSlice * kPair + part % kPair;
    for (int64_t k = slice; k < end; k += kLanes) {
      // kLanes channels × 9 taps of kLanes outputs, one vector per (channel, tap).
      VecF taps[9 * kLanes];
      const int64_t floats = 9 * std::min<int64_t>(kLanes, end - k);
      for (int64_t i = 0; i < floats; i += kLanes) {
        VecF v[kLanes] = {};
        for (int64_t r = 0; r < count; ++r) {
          const float* from = in + r * length + 9 * k + i;
          v[r] = i + kLanes <= floats ? simd::load(from)
                                      : simd::load_part(from, floats - i);
        }
        simd::transpose(v);
        for (int r = 0; r < kLanes; ++r) taps[i + r] = v[r];
      }
      for (int64_t c = 0; 9 * c < floats; ++c) {
        const VecF* tap = taps + 9 * c;
        float* to = out + (k - slice + c) * kPair;
        VecF rows[kWeights][3];
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) {
          rows[0][j] = tap[j];
          rows[1][j] = tap[j] + tap[6 + j];
          rows[2][j] = tap[6 + j];
          rows[3][j] = tap[3 + j];
        }
#pragma GCC unroll 4
        for (int r = 0; r < kWeights; ++r) {
          simd::store(to + (4 * r + 0) * kPanel, rows[r][0]);
          simd::store(to + (4 * r + 1) * kPanel, rows[r][0] + rows[r][2]);
          simd::store(to + (4 * r + 2) * kPanel, rows[r][2]);
          simd::store(to + (4 * r + 3) * kPanel, rows[r][1]);
        }
      }
    }
  }
}

bool streams(const UpsampleConv& op) {
  const int64_t line = op.y_channels_last ? op.out_channels : 2 * op.width;
  return simd::streams(op.element, op.y,
                       4 * op.batch * op.out_channels * op.height * op.width, line);
}

// A pixel, or a row of them, or zeros in place of one outside of x.
struct Source {
  const float* data;
  int64_t stride;
};

// Input `kind` of a cell in one dimension: plus − minus, as offsets from x[2p].
constexpr int kPlus[kInputs] = {-1, 0, 1, 1};
constexpr int kMinus[kInputs] = {0, 2, 0, 2};  // 2: nothing

// out[0 … 3] = the inputs of a cell along the row, given x₋, x₀ and x₁ of two rows, the
// second to be subtracted. Says whether x₀ or x₁ of the difference is infinite.
bool make_inputs(const float* const (&above)[3], const float* const (&below)[3],
                 int64_t count, float* out, int64_t step) {
  constexpr uint32_t kInfinity = 0xff000000u;  // without its sign
  simd::VecU32 infinite{};
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    VecF v[3];
#pragma GCC unroll 3
    for (int c = 0; c < 3; ++c)
      v[c] = simd::load(above[c] + k) - simd::load(below[c] + k);
    simd::store(out + k, v[0] - v[1]);
    simd::store(out + step + k, v[1]);
    simd::store(out + 2 * step + k, v[2] - v[1]);
    simd::store(out + 3 * step + k, v[2]);
    infinite |= (simd::VecU32)(((simd::VecU32)v[1] << 1) == kInfinity) |
                (simd::VecU32)(((simd::VecU32)v[2] << 1) == kInfinity);
  }
  uint32_t any = 0, lanes[kLanes];
  std::memcpy(lanes, &infinite, sizeof lanes);
  for (uint32_t lane : lanes) any |= lane;
  for (; k < count; ++k) {
    float v[3];
    for (int c = 0; c < 3; ++c) v[c] = above[c][k] - below[c][k];
    out[k] = v[0] - v[1];
    out[step + k] = v[1];
    out[2 * step + k] = v[2] - v[1];
    out[3 * step + k] = v[2];
    any |= std::isinf(v[1]) || std::isinf(v[2]);
  }
  return any;
}

// One job: some rows of cells of one picture and some blocks of output channels.
class Job {
 public:
  Job(const UpsampleConv& op, const float* pixels, int64_t b, int64_t block,
      int64_t blocks, float* panels, bool packed, float* scratch, int64_t rows)
      : op_(op),
        plan_(op, rows),
        x_(pixels + b * op.height * op.width * op.in_channels),
        b_(b),
        channel_(block * kBlock),
        blocks_(blocks),
        panels_(panels),
        packed_(packed),
        streams_(streams(op)),
        scratch_(scratch) {
    std::fill_n(scratch_ + plan_.carry, plan_.size - plan_.carry, 0.0f);
    if (op.bias)
      std::copy_n(op.bias + channel_,
                  std::min<int64_t>(blocks * kBlock, op.out_channels - channel_),
                  scratch_ + plan_.bias);
  }

  // The odd row of pixels above row `begin` of cells.
  void begin_at(int64_t begin) {
    if (begin == 0) return;
    multiply(begin - 1, 1, 3);
    keep_odd(1, 0);
  }

  void band(int64_t begin, int64_t end) {
    const bool above_infinite = infinite_;
    infinite_ = false;
    multiply(begin, end - begin, 0);
    repair_ = above_infinite || infinite_;
    const int64_t full = full_rows(begin, end - begin);
    for (int64_t block = 0; block < blocks_; ++block)
      for (int64_t p = begin; p < end; ++p) write_cells(block, p, begin, end - begin);
    if (full > 0) keep_odd(full, full - 1);
  }

 private:
  // A row of cells of one product of the rows, for all products along the row.
  struct Row {
    const float* data;  // cell q of product c at data + c · step + q · kBlock
    int64_t step;
    const float* beyond;  // `first` of the cell beyond the full ones
  };

  int64_t full_rows(int64_t begin, int64_t rows) const {
    return std::min(rows, full_cells(op_.height) - begin);
  }
  float* sums(int64_t block, int r, int c) const {
    return scratch_ + plan_.sums +
           ((block * kProducts + r) * kProducts + c) * plan_.capacity * kBlock;
  }
  Row row(int64_t block, Product r, int64_t rows, int64_t index) const {
    const float* data = sums(block, r, 0);
    return {data + index * plan_.columns * kBlock, plan_.capacity * kBlock,
            data + (rows * plan_.columns + index) * kBlock};
  }
  Row no_row() const { return {scratch_ + plan_.zeros, 0, scratch_ + plan_.zeros}; }
  // The last odd row of the band before.
  float* carried(int64_t block) const {
    return scratch_ + plan_.carry + block * kProducts * (plan_.columns + 1) * kBlock;
  }
  Row carry(int64_t block) const {
    const float* data = carried(block);
    return {data, (plan_.columns + 1) * kBlock, data + plan_.columns * kBlock};
  }
  void keep_odd(int64_t rows, int64_t index) {
    for (int64_t block = 0; block < blocks_; ++block) {
      const Row from = row(block, odd, rows, index), to = carry(block);
      float* out = carried(block);
      for (int c = 0; c < kProducts; ++c)
        std::copy_n(from.data + c * from.step, plan_.columns * kBlock,
                    out + c * to.step);
      std::copy_n(from.beyond, kBlock, out + plan_.columns * kBlock);
    }
  }

  // All products of the inputs from `input` on, for `rows` rows of cells from `begin`.
  void multiply(int64_t begin, int64_t rows, int input) {
    const int64_t slices = (op_.in_channels + kSlice - 1) / kSlice;
    for (int64_t slice = 0; slice < slices; ++slice) {
      const int64_t channels =
          std::min<int64_t>(kSlice, op_.in_channels - slice * kSlice);
      if (!packed_)
        for (int64_t block = 0; block < blocks_; ++block)
          pack_weights(op_, channel_ + block * kBlock, slice * kSlice,
                       panels(block, slice));
      for (int i = input; i < kInputs; ++i) {
        const int64_t count = i == 0 ? rows : full_rows(begin, rows);
        if (count == 0) continue;
        gather(begin, count, i, slice * kSlice, channels);
        for (int64_t block = 0; block < blocks_; ++block)
          for (int r = 0; r < kProducts; ++r)
            if (kInputOf[r] == i)
              for (int c = 0; c < kProducts; ++c) {
                const int weight = kWeightOf[r] * kWeights + kWeightOf[c];
                const bool beyond = c == first && op_.width % 2 == 0;
                products(count * (plan_.columns + beyond), inputs(kInputOf[c]),
                         channels, panels(block, slice) + weight * kPanel, slice == 0,
                         sums(block, r, c));
              }
      }
    }
    packed_ = true;
  }

  float* panels(int64_t block, int64_t slice) const {
    const int64_t slices = (op_.in_channels + kSlice - 1) / kSlice;
    return panels_ + (block * slices + slice) * kPanels;
  }
  float* inputs(int c) const {
    return scratch_ + plan_.inputs + c * plan_.capacity * kSlice;
  }

  // Pixel row `index` from channel `slice` on.
  Source source(int64_t index, int64_t slice) const {
    if (index < 0 || index >= op_.height) return {scratch_ + plan_.zeros, 0};
    return {x_ + index * op_.width * op_.in_channels + slice, op_.in_channels};
  }

  // Fills the four inputs along the row that belong to input `kind` of the rows.
  void gather(int64_t begin, int64_t rows, int kind, int64_t slice, int64_t channels) {
    const float* zeros = scratch_ + plan_.zeros;
    const int64_t step = plan_.capacity * kSlice;
    bool infinite = false;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t top = 2 * (begin + r);
      const Source plus = source(top + kPlus[kind], slice);
      const Source minus =
          kMinus[kind] == 2 ? Source{zeros, 0} : source(top + kMinus[kind], slice);
      for (int64_t q = 0; q < all_cells(op_.width); ++q) {
        const float *above[3], *below[3];
        for (int c = 0; c < 3; ++c) {
          const int64_t column = 2 * q + c - 1;
          const bool inside = column >= 0 && column < op_.width;
          above[c] = inside ? plus.data + column * plus.stride : zeros;
          below[c] = inside ? minus.data + column * minus.stride : zeros;
        }
        const int64_t at =
            q < plan_.columns ? r * plan_.columns + q : rows * plan_.columns + r;
        infinite |= make_inputs(above, below, channels, inputs(0) + at * kSlice, step);
      }
    }
    infinite_ |= infinite;
  }

  // A line of y under way: its rows of cells, and what is not yet written of it.
  template <class T>
  struct Line {
    int64_t index;
    Row a, b, c;  // A = a + b, C = c
    T* y = nullptr;
    VecF before[kParts] = {};  // C of the pixel to the left
    VecF square[kParts][kLanes];
  };

  // Rows 4p − 1 to 4p + 2 of y: A[2p] beside C[2p − 1] and C[2p], then A[2p + 1] beside
  // C[2p] and C[2p + 1].
  void write_cells(int64_t block, int64_t p, int64_t begin, int64_t rows) const {
    const int64_t full = full_rows(begin, rows), r = p - begin;
    const bool inside = r < full;
    const Row first_row = row(block, first, rows, r);
    const Row middle_row = inside ? row(block, middle, full, r) : no_row();
    const Row last_row = inside ? row(block, last, full, r) : no_row();
    const Row even_row = inside ? row(block, even, full, r) : no_row();
    const Row odd_row = inside ? row(block, odd, full, r) : no_row();
    const Row above = r > 0 ? row(block, odd, full, r - 1) : carry(block);
    const int64_t skip = p == 0, end = std::min<int64_t>(4, 2 * op_.height - 4 * p + 1);
    with_element(op_.element, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      Line<T> lines[4] = {{4 * p - 1, first_row, middle_row, above},
                          {4 * p, first_row, middle_row, even_row},
                          {4 * p + 1, middle_row, last_row, even_row},
                          {4 * p + 2, middle_row, last_row, odd_row}};
      if (op_.y_channels_last)
        write_lines<T, true>(block, lines + skip, end - skip);
      else
        write_lines<T, false>(block, lines + skip, end - skip);
    });
  }

  // A few cells at a time, of all lines, so that the products are read once.
  template <class T, bool kLast>
  void write_lines(int64_t block, Line<T>* lines, int64_t count) const {
    constexpr int64_t kStep = 8;
    const int64_t width = 2 * op_.width, height = 2 * op_.height;
    const int64_t channel = channel_ + block * kBlock;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = kLast ? (b_ * height + lines[i].index) * width
                               : (b_ * op_.out_channels + channel) * height * width;
      lines[i].y = static_cast<T*>(op_.y) + (kLast ? at * op_.out_channels + channel
                                                   : at + lines[i].index * width);
    }
    const int64_t cells = all_cells(op_.width);
    for (int64_t q = 0; q < cells; q += kStep)
      for (int64_t i = 0; i < count; ++i)
        for (int part = 0; part < kParts; ++part) {
          const int64_t left = op_.out_channels - channel - part * kLanes;
          const int64_t end = std::min(cells, q + kStep);
          if (left >= kLanes)
            write_run<T, kLast, true>(block, lines[i], part, q, end, kLanes);
          else if (left > 0)
            write_run<T, kLast, false>(block, lines[i], part, q, end, left);
        }
  }

  // Cells `begin` to `end` of a line, one vector of `count` channels: the columns 4q −
  // 1 to 4q + 2 of each.
  template <class T, bool kLast, bool kWhole>
  void write_run(int64_t block, Line<T>& line, int part, int64_t begin, int64_t end,
                 int64_t count) const {
    const int64_t width = 2 * op_.width, plane = 2 * op_.height * width;
    const Row a = line.a, b = line.b, c = line.c;
    const VecF bias =
        simd::load(scratch_ + plan_.bias + block * kBlock + part * kLanes);
    VecF before = line.before[part];
    VecF* square = line.square[part];
    T* const y = line.y + part * kLanes * (kLast ? 1 : plane);
    const bool repair = repair_, streams = streams_;
    auto put = [&](int64_t column, VecF v) __attribute__((always_inline)) {
      if (repair) [[unlikely]]
        v = repaired(block, line.index, column, part, v);
      if constexpr (kLast) {
        T* pixel = y + column * op_.out_channels;
        if (kWhole && streams)
          simd::stream(pixel, v);
        else if (kWhole)
          simd::store(pixel, v);
        else
          simd::store_part(pixel, v, count);
      } else {
        square[column % kLanes] = v;
      }
    };
    auto finish = [&](int64_t columns) {  // all before this one are in
      if constexpr (!kLast)
        if (columns % kLanes == 0 || columns == width) {
          const int64_t from = (columns - 1) / kLanes * kLanes;
          flush<T, kWhole>(square, count, columns - from, y + from, plane, streams);
        }
    };
    for (int64_t q = begin; q < std::min(end, plan_.columns); ++q) {
      const int64_t at = q * kBlock + part * kLanes;
      VecF v[kProducts];
#pragma GCC unroll 5
      for (int k = 0; k < kProducts; ++k)
        v[k] = (simd::load(a.data + k * a.step + at) +
                simd::load(b.data + k * b.step + at)) +
               simd::load(c.data + k * c.step + at);
      const VecF left = v[first] + v[middle] + bias;
      const VecF right = v[middle] + v[last] + bias;
      if (q > 0) {
        put(4 * q - 1, left + before);
        finish(4 * q);
      }
      put(4 * q, left + v[even]);
      put(4 * q + 1, right + v[even]);
      if (4 * q + 2 < width)
        put(4 * q + 2, right + v[odd]);
      else
        finish(width);
      before = v[odd];
    }
    line.before[part] = before;
    if (end > plan_.columns) {
      const int64_t at = part * kLanes;
      const VecF left = (simd::load(a.beyond + at) + simd::load(b.beyond + at)) +
                        simd::load(c.beyond + at);
      put(width - 1, left + bias + before);
      finish(width);
    }
  }

  // Columns of pixels to rows of channels.
  template <class T, bool kWhole>
  static void flush(const VecF* square, int64_t count, int64_t columns, T* out,
                    int64_t plane, bool streams) {
    VecF v[kLanes];
    for (int i = 0; i < kLanes; ++i) v[i] = square[i];
    simd::transpose(v);
    if (kWhole && columns == kLanes && streams) {
      for (int i = 0; i < kLanes; ++i) simd::stream(out + i * plane, v[i]);
    } else if (kWhole && columns == kLanes) {
      for (int i = 0; i < kLanes; ++i) simd::store(out + i * plane, v[i]);
    } else {
      for (int64_t i = 0; i < count; ++i)
        simd::store_part(out + i * plane, v[i], columns);
    }
  }

  // v, and where it is NaN the output as it is defined.
  VecF repaired(int64_t block, int64_t line, int64_t column, int part, VecF v) const {
    if (!simd::any_not_le(v, v)) return v;
    VecF sum{};
    for (int tap = 0; tap < 9; ++tap) {
      const int64_t i = line + tap / 3 - 1, j = column + tap % 3 - 1;
      if (i < 0 || j < 0 || i >= 2 * op_.height || j >= 2 * op_.width) continue;
      const float* x = x_ + (i / 2 * op_.width + j / 2) * op_.in_channels;
      const int weight = kWeightOfTap[tap / 3] * kWeights + kWeightOfTap[tap % 3];
      for (int64_t k = 0; k < op_.in_channels; ++k) {
        const float* w = panels(block, k / kSlice) + weight * kPanel +
                         part * kLanes / kPair * kSlice * kPair + k % kSlice * kPair +
                         part * kLanes % kPair;
        sum += simd::broadcast(x[k]) * simd::load(w);
      }
    }
    sum += simd::load(scratch_ + plan_.bias + block * kBlock + part * kLanes);
    return v == v ? v : sum;
  }

  const UpsampleConv& op_;
  const Plan plan_;
  const float* x_;
  const int64_t b_, channel_, blocks_;
  float* panels_;
  bool packed_;
  const bool streams_;
  bool infinite_ = false, repair_ = false;
  float* scratch_;
};

// rows × columns elements → floats, transposed. `stride`s count elements.
template <class In>
void transpose(const In* in, int64_t in_stride, int64_t rows, int64_t columns,
               float* out, int64_t out_stride) {
  for (int64_t c = 0; c < columns; c += kLanes)
    for (int64_t r = 0; r < rows; r += kLanes) {
      const int64_t height = std::min<int64_t>(kLanes, rows - r);
      const int64_t width = std::min<int64_t>(kLanes, columns - c);
      VecF v[kLanes];
      if (height == kLanes && width == kLanes) {
        for (int i = 0; i < kLanes; ++i)
          v[i] = simd::load(in + (r + i) * in_stride + c);
        simd::transpose(v);
        for (int i = 0; i < kLanes; ++i)
          simd::store(out + (c + i) * out_stride + r, v[i]);
      } else {
        for (int64_t i = 0; i < height; ++i)
          for (int64_t j = 0; j < width; ++j)
            out[(c + j) * out_stride + r + i] =
                to_float(in[(r + i) * in_stride + c + j]);
      }
    }
}

}  // namespace

int64_t upsample_block_channels() { return kBlock; }
int64_t upsample_most_blocks() { return kBlocks; }

int64_t upsample_panel_size(const UpsampleConv& op) {
  return kBlocks * ((op.in_channels + kSlice - 1) / kSlice) * kPanels;
}

int64_t upsample_scratch_size(const UpsampleConv& op) {
  return Plan(op, 2 * band_rows(op.width)).size;
}

void upsample_pack_pixels(const UpsampleConv& op, int64_t b, int64_t row,
                          float* pixels) {
  const int64_t channels = op.in_channels, area = op.height * op.width;
  float* out = pixels + (b * op.height + row) * op.width * channels;
  with_element(op.element, [&](auto* type) {
    const auto* x = static_cast<decltype(type)>(const_cast<void*>(op.x));
    if (op.x_channels_last) {
      const auto* in = x + (b * op.height + row) * op.width * channels;
      const int64_t count = op.width * channels;
      int64_t i = 0;
      for (; i + kLanes <= count; i += kLanes) simd::store(out + i, simd::load(in + i));
      for (; i < count; ++i) out[i] = to_float(in[i]);
    } else {
      transpose(x + b * channels * area + row * op.width, area, channels, op.width, out,
                channels);
    }
  });
}

void upsample_rows(const UpsampleConv& op, const float* pixels, int64_t b,
                   int64_t block, int64_t blocks, int64_t first, int64_t last,
                   float* panels, bool packed, float* scratch) {
  const int64_t rows = last - first;
  const int64_t bands = std::max<int64_t>(1, rows / band_rows(op.width));
  Job job(op, pixels, b, block, blocks, panels, packed, scratch,
          (rows + bands - 1) / bands);
  job.begin_at(first);
  for (int64_t t = 0; t < bands; ++t)
    job.band(first + rows * t / bands, first + rows * (t + 1) / bands);
  simd::end_stream();
}

}  // namespace tokenflow::TFX_ISA
