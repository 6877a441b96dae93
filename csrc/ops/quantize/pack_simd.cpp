/*
pack, CPU: entries as bytes. Compiled once per instruction set; meaning:
prepare_steps.h and byte_book.h.

Algorithm  Entries of a tile side by side, one per lane: squares of their values are
           transposed, four columns become a word, and the sums of every lane stay in
           registers.
Bound      The norms are roots of sums of float32 squares, too small by at most (width +
           4) · 2⁻²⁴ of themselves, and a scaled element is off by 2⁻²⁴ of itself before
           its byte is taken from it; twice that is added, which pays for squares that
           underflow as well: where the largest element is scaled to 127 they are far
           below it, and where 1e30 is all the scale there is, none is that small. Sums
           of bytes and of their squares are exact.
*/
#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/simd_maps.h"
#include "ops/quantize/prepare_steps.h"

namespace tokenflow::TFX_ISA {
namespace {

using simd::kFloats;
using simd::VecF;
using simd::VecI32;

inline VecI32 to_int(VecF v) { return __builtin_convertvector(v, VecI32); }

inline float largest_lane(VecF v) {
  float most = v[0];
  for (int i = 1; i < kFloats; ++i) most = std::max(most, v[i]);
  return most;
}

// Some entries of a tile, one per lane.
struct Lanes {
  VecF norm{}, residual{}, bytes{};  // squared
  VecI32 sums[2] = {};               // of the bytes in either half of the words

  // Four columns, scaled by `by`, as words.
  inline VecI32 add(const VecF* columns, const float* by) {
    VecI32 word{};
    simd::unroll<4>([&](auto i) {
      const VecF scaled = columns[i] * simd::broadcast(by[i]);
      const VecF rounded = simd::nearest(scaled), rest = scaled - rounded;
      norm += scaled * scaled;
      residual += rest * rest;
      bytes += rounded * rounded;
      const VecI32 byte = to_int(rounded);
      sums[i / 2] += byte;
      word |= (byte & 0xff) << (8 * i);
    });
    return word;
  }
};

}  // namespace

Largest largest_elements(const float* rows, int64_t semantic_width, int64_t width,
                         int64_t first, int64_t last) {
  VecF most[kMaxByteWidth / kFloats];  // of every column
  std::fill_n(most, (width + kFloats - 1) / kFloats, VecF{});
  for (int64_t entry = first; entry < last; ++entry)
    for (int64_t d = 0; d < width; d += kFloats) {
      const VecF x = simd::load_part(rows + entry * width + d, width - d);
      most[d / kFloats] = simd::max(most[d / kFloats], simd::max(x, -x));
    }
  Largest largest;
  for (int64_t d = 0; d < width; ++d) {
    float& half = d < semantic_width ? largest.semantic : largest.pixel;
    half = std::max(half, most[d / kFloats][d % kFloats]);
  }
  return largest;
}

ByteNorms pack_tiles(const float* rows, int64_t k, int64_t semantic_width,
                     int64_t width, const ByteBook& to, int64_t first, int64_t last) {
  float by[kMaxByteWidth + kFloats];
  for (int64_t d = 0; d < width + kFloats; ++d)
    by[d] = d < width ? to.scale[d >= semantic_width] : 0.0f;
  VecF norm{}, residual{}, bytes{};
  for (int64_t t = first; t < last; ++t)
    for (int64_t e = 0; e < kByteTile; e += kFloats) {
      const int64_t entry = t * kByteTile + e;
      const int64_t lanes = std::min<int64_t>(kFloats, kByteTile - e);
      const int64_t count = std::clamp<int64_t>(k - entry, 0, lanes);
      Lanes sums;
      for (int64_t d = 0; d < width; d += kFloats) {
        VecF columns[kFloats];
        for (int64_t i = 0; i < kFloats; ++i)
          columns[i] = i < count
                           ? simd::load_part(rows + (entry + i) * width + d, width - d)
                           : VecF{};
        simd::transpose(columns);
        for (int64_t i = 0; i < kFloats && d + i < width; i += 4) {
          const VecI32 word = sums.add(columns + i, by + d + i);
          std::memcpy(to.words + (t * to.quads + (d + i) / 4) * kByteTile + e, &word,
                      lanes * sizeof(int32_t));
        }
      }
      norm = simd::max(norm, sums.norm);
      residual = simd::max(residual, sums.residual);
      bytes = simd::max(bytes, sums.bytes);
      const VecI32 bias = -128 * (sums.sums[0] + sums.sums[1]);
      std::memcpy(to.bias + entry, &bias, lanes * sizeof(int32_t));
      const VecI32 biases =
          (-64 * sums.sums[0] & 0xffff) | ((-64 * sums.sums[1]) << 16);
      std::memcpy(to.biases + entry, &biases, lanes * sizeof(int32_t));
    }
  const double up = 1.0 + static_cast<double>(width + 4) * 0x1p-23;
  const double row = up * std::sqrt(static_cast<double>(largest_lane(norm)));
  return {row,
          up * std::sqrt(static_cast<double>(largest_lane(residual))) + 0x1p-23 * row,
          std::sqrt(static_cast<double>(largest_lane(bytes)))};
}

}  // namespace tokenflow::TFX_ISA
