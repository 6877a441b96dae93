// A book as bytes: what pack writes and the byte sweep reads.
#pragma once

#include <cstdint>

namespace tokenflow {

// In tiles of kByteTile entries so that one pointer walks a tile. A byte is
// round(scale · element), scale being that of its half; four neighbouring bytes of a
// row make a word, the last one of a row filled with zeros.
constexpr int64_t kByteTile = 12;
constexpr int64_t kMaxByteWidth = 1024;  // a byte score is exact in float32 up to there

inline int64_t byte_tiles(int64_t k) { return (k + kByteTile - 1) / kByteTile; }

struct ByteNorms {
  double row = 0.0;       // the largest ‖scaled row‖ or a little more
  double residual = 0.0;  // the largest ‖scaled row − bytes‖ or a little more
  double bytes = 0.0;     // the largest ‖bytes‖
};

struct ByteBook {
  float scale[2];   // of the semantic and the pixel half
  ByteNorms norms;  // over all entries
  int32_t* bias;    // [tiles, kByteTile]: −128 · the sum of the row's bytes
  int32_t* biases;  // the same as two int16, −64 · the sums of the bytes in the lower
                    // and in the upper halves of its words
  int32_t* words;   // [tiles, quads, kByteTile]
  int64_t quads;
};

// Where they are in the memory that pack_cpu wrote.
ByteBook byte_book(const void* packed, int64_t k, int64_t width);

}  // namespace tokenflow
