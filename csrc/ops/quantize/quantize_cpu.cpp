/*
quantize, CPU: everything around the sweeps of quantize_simd.cpp and
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
