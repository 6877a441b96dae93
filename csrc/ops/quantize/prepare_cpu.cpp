/*
prepare and pack, CPU: blocks of entries for the loops of prepare_exact_simd.cpp and
pack_simd.cpp, and the layout of packed memory.

Traffic    prepare reads both books once and writes rows and squares; pack reads the
           rows twice, for the scales and for the bytes, and writes a byte per element.
*/
#include <algorithm>
#include <cstring>
#include <vector>

#include "common/numerics.h"
#include "ops/quantize/prepare_steps.h"
#include "ops/quantize/quantize.h"

namespace tokenflow {
namespace {

// Packed memory: a header, then words and biases of all tiles, bias last.
struct ByteHeader {
  float scale[2];
  ByteNorms norms;
};
constexpr int64_t kHeaderBytes = 64;
static_assert(sizeof(ByteHeader) <= kHeaderBytes);

float byte_scale(float largest) {
  return largest > 0.0f ? std::min(127.0f / largest, 1e30f) : 1.0f;
}

// What body(first, last) returns for blocks of [0, n).
template <class Result, class Body>
std::vector<Result> by_block(const Parallel& parallel, int64_t n, int64_t block,
                             const Body& body) {
  std::vector<Result> results((n + block - 1) / block);
  parallel.run(static_cast<int64_t>(results.size()), 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i)
                   results[i] = body(i * block, std::min(n, (i + 1) * block));
               });
  return results;
}

}  // namespace

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

void prepare_cpu(const float* semantic_book, const float* pixel_book, int64_t k,
                 int64_t semantic_width, int64_t pixel_width, bool normalize,
                 float* rows, double* squares, double* limits,
                 const Parallel& parallel) {
  const GivenBooks books{semantic_book, pixel_book, semantic_width, pixel_width,
                         normalize};
  EntrySquares total;
  for (const EntrySquares& block :
       by_block<EntrySquares>(parallel, k, 512, [&](int64_t first, int64_t last) {
         return TFX_CALL_SIMD(prepare_rows, books, first, last, rows, squares);
       }))
    total = larger(total, block);
  limits[0] = normalize ? (pixel_width ? 2 : 1) * kUnitSquares : total.row;
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
  Largest largest;
  for (const Largest& block :
       by_block<Largest>(parallel, k, 1024, [&](int64_t first, int64_t last) {
         return TFX_CALL_SIMD(largest_elements, rows, semantic_width, width, first,
                              last);
       }))
    largest = {std::max(largest.semantic, block.semantic),
               std::max(largest.pixel, block.pixel)};
  ByteHeader header{};
  header.scale[0] = byte_scale(largest.semantic);
  header.scale[1] = byte_scale(largest.pixel);
  std::memset(packed, 0, kHeaderBytes);
  std::memcpy(packed, &header, sizeof header);
  const ByteBook book = byte_book(packed, k, width);
  for (const ByteNorms& block : by_block<ByteNorms>(
           parallel, byte_tiles(k), 64, [&](int64_t first, int64_t last) {
             return TFX_CALL_SIMD(pack_tiles, rows, k, semantic_width, width, book,
                                  first, last);
           }))
    header.norms = {std::max(header.norms.row, block.row),
                    std::max(header.norms.residual, block.residual),
                    std::max(header.norms.bytes, block.bytes)};
  std::memcpy(packed, &header, sizeof header);
}

}  // namespace tokenflow
