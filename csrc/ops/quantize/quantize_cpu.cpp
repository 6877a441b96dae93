/*
quantize, prepare and pack, CPU: everything around the sweeps of quantize_simd.cpp and
quantize_bytes_simd.cpp.

Work       Queries are read into panels of lanes. A thread carries a group of panels
           through the book, block by block; with few panels the book is split as well
           and the parts are merged. Exact scores decide either way, so neither the
           number of threads nor the place of a query in the batch can change an index.
Memory     Per thread one group of panels; per query and part one score and index; per
           entry its offset: less than 2 MB at 16384 queries and 32768 entries.
*/
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "common/numerics.h"
#include "common/scratch.h"
#include "ops/quantize/quantize_sweep.h"

namespace tokenflow {
namespace {

constexpr int64_t kBlockBytes = 1 << 17;  // of entries that stay in cache while panels
                                          // pass; a block is whole tiles of every sweep
constexpr int64_t kMinPart = 2048;  // entries below which splitting the book costs more
constexpr int64_t kGroup = 16;      // panels that one thread carries through the book

// Entries that the byte sweep may look at one by one before float32 is cheaper.
constexpr int64_t kFirstSuspects = 32;   // per query, whatever the book's size
constexpr int64_t kSuspectsPerTile = 2;  // per panel

// Tiles at the front of a book of which the best scores are known before any entry is
// looked at.
constexpr int64_t kFirstTiles = 128;

struct EntrySquares {
  double row = 0.0, semantic = 0.0, pixel = 0.0;
  void include(const EntrySquares& other) {
    row = std::max(row, other.row);
    semantic = std::max(semantic, other.semantic);
    pixel = std::max(pixel, other.pixel);
  }
};

EntrySquares write_entry(const float* semantic, int64_t semantic_width,
                         const float* pixel, int64_t pixel_width, bool normalize,
                         float* row, double* squares) {
  const int64_t width = semantic_width + pixel_width;
  const double s = write_half(semantic, semantic_width, normalize, row);
  const double p = write_half(pixel, pixel_width, normalize, row + semantic_width);
  if (!is_finite(s) || !is_finite(p)) {  // such an entry never wins
    std::fill(row, row + width, 0.0f);
    squares[0] = std::numeric_limits<double>::infinity();
    squares[1] = 0.0;
    return {};
  }
  squares[0] = normalize ? 0.0 : s;
  squares[1] = normalize ? 0.0 : p;
  return {sum_of_squares(row, width), squares[0], squares[1]};
}

// --- packed memory: a header, then words and biases of all tiles, bias last ---

struct ByteHeader {
  float scale[2];
  ByteNorms norms;
};
constexpr int64_t kHeaderBytes = 64;
static_assert(sizeof(ByteHeader) <= kHeaderBytes);

int64_t byte_tiles(int64_t k) { return (k + kByteTile - 1) / kByteTile; }

ByteBook byte_book(const void* packed, int64_t k, int64_t width) {
  ByteHeader header;
  std::memcpy(&header, packed, sizeof header);
  const int64_t entries = byte_tiles(k) * kByteTile, quads = (width + 3) / 4;
  auto* words = reinterpret_cast<int32_t*>(
      static_cast<char*>(const_cast<void*>(packed)) + kHeaderBytes);
  int32_t* biases = words + entries * quads;
  return {{header.scale[0], header.scale[1]},
          header.norms,
          biases + entries,
          biases,
          words,
          quads};
}

float largest_element(const float* rows, int64_t k, int64_t width, int64_t first,
                      int64_t last) {
  float most = 0.0f;
  for (int64_t i = 0; i < k; ++i)
    for (int64_t d = first; d < last; ++d)
      most = std::max(most, std::abs(rows[i * width + d]));
  return most;
}

float byte_scale(float largest) {
  return largest > 0.0f ? std::min(127.0f / largest, 1e30f) : 1.0f;
}

// Who does what: groups of panels × parts of the book.
struct Split {
  int64_t group, parts;

  // First entry of a part; parts are whole tiles of every sweep.
  int64_t entry(int64_t part, int64_t k) const {
    return part == parts ? k : byte_tiles(k) * part / parts * kByteTile;
  }
};

// With few panels per thread the book is split, so that no thread waits for another.
Split split_for(int64_t panels, int64_t k, int64_t threads) {
  if (panels < 8 * threads && panels % threads != 0 && k >= threads * kMinPart)
    return {std::min(panels, kGroup), threads};
  const int64_t rounds = (panels + threads * kGroup - 1) / (threads * kGroup);
  return {(panels + threads * rounds - 1) / (threads * rounds), 1};
}

// --- panels ---

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// The arrays of some panels, one after the other in one run of memory.
class Panels {
 public:
  Panels(int64_t count, int64_t width, bool bytes)
      : lanes_(TFX_CALL_SIMD(panel_lanes)),
        width_(width),
        bytes_(bytes),
        floats_(lanes_ * (2 * width + 10 + (bytes ? (width + 3) / 4 + 4 : 0))),
        memory_(count * round_up(floats_, 16)) {}

  Panel operator[](int64_t i) const {
    float* at = memory_.get() + i * round_up(floats_, 16);
    const auto take = [&](int64_t floats) { return std::exchange(at, at + floats); };
    Panel panel{};
    panel.row = take(width_ * lanes_);
    panel.query = take(width_ * lanes_);
    panel.error = reinterpret_cast<double*>(take(2 * lanes_));
    panel.best = reinterpret_cast<double*>(take(2 * lanes_));
    panel.spread = reinterpret_cast<double*>(take(2 * lanes_));
    panel.index = reinterpret_cast<int64_t*>(take(2 * lanes_));
    panel.threshold = take(lanes_);
    panel.sure = take(lanes_);
    if (!bytes_) return panel;
    panel.words = reinterpret_cast<int32_t*>(take((width_ + 3) / 4 * lanes_));
    panel.slack = reinterpret_cast<double*>(take(2 * lanes_));
    panel.unit = take(lanes_);
    panel.floor = take(lanes_);
    return panel;
  }

 private:
  int64_t lanes_, width_;
  bool bytes_;
  int64_t floats_;
  Scratch memory_;
};

// One search: what all threads read.
struct Search {
  const Queries& queries;
  const PreparedBook& book;
  Entries entries;
  const ByteBook* bytes;  // null: in float32
  int64_t lanes;

  // Entries [first, last) for panels [begin, end): best and index, `lanes` per panel.
  // `best` is exact where it will be compared with that of other parts.
  void run(int64_t begin, int64_t end, int64_t first, int64_t last, bool exact,
           double* best, int64_t* index) const {
    const Panels panels(end - begin, entries.width, bytes != nullptr);
    const Scratch best_of_first(bytes ? kFirstTiles * first_floats(lanes) : 0);
    std::vector<int64_t> budget(end - begin);
    for (int64_t p = begin; p < end; ++p)
      TFX_CALL_SIMD(load_panel, queries, book, bytes, p * lanes,
                    std::min(lanes, queries.n - p * lanes), panels[p - begin]);
    const int64_t row = entries.width * (bytes ? 1 : sizeof(float));
    const int64_t step =
        std::max<int64_t>(1, kBlockBytes / row / kByteTile) * kByteTile;
    for (int64_t k = first; k < last; k += step)
      for (int64_t p = 0; p < end - begin; ++p)
        sweep_block(panels[p], k, std::min(last, k + step), k == first,
                    best_of_first.get(), budget[p]);
    for (int64_t p = 0; p < end - begin; ++p) {
      if (exact) TFX_CALL_SIMD(finish_panel, entries, panels[p]);
      std::copy_n(panels[p].best, lanes, best + p * lanes);
      std::copy_n(panels[p].index, lanes, index + p * lanes);
    }
  }

 private:
  // In bytes while that pays, else in float32.
  void sweep_block(const Panel& panel, int64_t k, int64_t last, bool is_first,
                   float* best_of_first, int64_t& budget) const {
    if (bytes && is_first) {
      budget = kFirstSuspects * lanes;
      const int64_t tile = k / kByteTile;
      const int64_t end = std::min(last / kByteTile, tile + kFirstTiles);
      k = kByteTile * TFX_CALL_SIMD(sweep_first_bytes, entries, *bytes, panel, tile,
                                    end, best_of_first, budget);
    }
    if (bytes && budget >= 0) {
      const int64_t tile = k / kByteTile, end = byte_tiles(last);
      budget += kSuspectsPerTile * (end - tile);
      k = std::min(last, kByteTile * TFX_CALL_SIMD(sweep_panel_bytes, entries, *bytes,
                                                   panel, tile, end, budget));
    }
    if (k < last) TFX_CALL_SIMD(sweep_panel, entries, panel, k, last);
  }
};

}  // namespace

void prepare_cpu(const float* semantic_book, const float* pixel_book, int64_t k,
                 int64_t semantic_width, int64_t pixel_width, bool normalize,
                 float* rows, double* squares, double* limits,
                 const Parallel& parallel) {
  const int64_t width = semantic_width + pixel_width;
  constexpr int64_t kGrain = 512;
  std::vector<EntrySquares> largest((k + kGrain - 1) / kGrain);
  parallel.run(
      static_cast<int64_t>(largest.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t block = begin; block < end; ++block)
          for (int64_t i = block * kGrain; i < std::min(k, (block + 1) * kGrain); ++i)
            largest[block].include(
                write_entry(semantic_book + i * semantic_width, semantic_width,
                            pixel_width ? pixel_book + i * pixel_width : nullptr,
                            pixel_width, normalize, rows + i * width, squares + 2 * i));
      });
  EntrySquares total;
  for (const EntrySquares& block : largest) total.include(block);
  limits[0] = total.row;
  limits[1] = total.semantic;
  limits[2] = total.pixel;
}

int64_t pack_cpu_bytes(int64_t k, int64_t width) {
  if (width > kMaxByteWidth) return 0;
  return kHeaderBytes + byte_tiles(k) * kByteTile * 4 * (2 + (width + 3) / 4);
}

void pack_cpu(const float* rows, int64_t k, int64_t semantic_width, int64_t pixel_width,
              void* packed, const Parallel& parallel) {
  const int64_t width = semantic_width + pixel_width;
  std::memset(packed, 0, kHeaderBytes);
  ByteHeader header{};
  header.scale[0] = byte_scale(largest_element(rows, k, width, 0, semantic_width));
  header.scale[1] = byte_scale(largest_element(rows, k, width, semantic_width, width));
  std::memcpy(packed, &header, sizeof header);
  const ByteBook bytes = byte_book(packed, k, width);
  constexpr int64_t kGrain = 64;
  std::vector<ByteNorms> norms((byte_tiles(k) + kGrain - 1) / kGrain);
  parallel.run(static_cast<int64_t>(norms.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      norms[i] = TFX_CALL_SIMD(pack_tiles, rows, k, semantic_width, width, bytes,
                               i * kGrain, std::min(byte_tiles(k), (i + 1) * kGrain));
  });
  for (const ByteNorms& part : norms)
    header.norms = {std::max(header.norms.row, part.row),
                    std::max(header.norms.residual, part.residual),
                    std::max(header.norms.bytes, part.bytes)};
  std::memcpy(packed, &header, sizeof header);
}

void quantize_cpu(const Queries& queries, const PreparedBook& book, int64_t* indices,
                  const Parallel& parallel) {
  if (queries.n == 0) return;
  const int64_t width = book.semantic_width + book.pixel_width;
  std::vector<double> offset(book.k);
  std::vector<float> start((byte_tiles(book.k) + 1) * kByteTile);  // see load_entries
  std::atomic<bool> offsets{false};
  parallel.run(book.k, 1 << 14, [&](int64_t begin, int64_t end) {
    bool some = false;
    for (int64_t k = begin; k < end; ++k) {
      offset[k] = entry_offset(book.squares[2 * k], book.squares[2 * k + 1],
                               queries.pixel_weight);
      start[k] = static_cast<float>(-offset[k]);
      some |= offset[k] != 0.0;
    }
    if (some) offsets = true;
  });
  ByteBook bytes;
  const bool in_bytes =
      book.packed_bytes && TFX_CALL_SIMD(has_bytes) && book.k > kByteTile;
  if (in_bytes) bytes = byte_book(book.packed, book.k, width);
  const int64_t lanes = TFX_CALL_SIMD(panel_lanes);
  const Search search{queries,
                      book,
                      {book.rows, offset.data(), start.data(), book.k, width, offsets},
                      in_bytes ? &bytes : nullptr,
                      lanes};

  const int64_t panels = (queries.n + lanes - 1) / lanes;
  const Split split = split_for(panels, book.k, parallel.threads);
  const int64_t groups = (panels + split.group - 1) / split.group;
  std::vector<double> best(split.parts * panels * lanes);
  std::vector<int64_t> index(best.size());
  parallel.run(groups * split.parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t part = unit % split.parts, first = unit / split.parts * split.group;
      const int64_t at = (part * panels + first) * lanes;
      search.run(first, std::min(panels, first + split.group),
                 split.entry(part, book.k), split.entry(part + 1, book.k),
                 split.parts > 1, best.data() + at, index.data() + at);
    }
  });
  for (int64_t n = 0; n < queries.n; ++n) {
    int64_t winner = n;
    for (int64_t part = 1; part < split.parts;
         ++part) {  // in order: ties to the smallest
      const int64_t at = part * panels * lanes + n;
      if (best[at] > best[winner]) winner = at;
    }
    indices[n] = index[winner];
  }
}

}  // namespace tokenflow
