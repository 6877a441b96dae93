// What the glue of every op that reads books by index needs.
#pragma once

#include "common/glue.h"
#include "ops/lookup/lookup.h"

namespace tokenflow {

struct BookTensors {
  Tensor semantic, pixel;  // keep alive what `raw` points to
  Books raw;
  int64_t width() const { return raw.semantic_width + raw.pixel_width; }
};

inline BookTensors books_of(const Tensor& semantic_book, const Tensor& pixel_book,
                            bool normalize) {
  check_device("lookup", semantic_book, pixel_book);
  BookTensors books{as_float32(semantic_book), as_float32(pixel_book), {}};
  STD_TORCH_CHECK(books.semantic.dim() == 2 && books.pixel.dim() == 2 &&
                      books.semantic.size(0) == books.pixel.size(0),
                  "lookup: the books must be [K, Ds] and [K, Dp]");
  books.raw = {books.semantic.const_data_ptr<float>(),
               books.pixel.const_data_ptr<float>(),
               books.semantic.size(0),
               books.semantic.size(1),
               books.pixel.size(1),
               normalize};
  return books;
}

inline Tensor indices_of(const Tensor& indices) {
  STD_TORCH_CHECK(indices.scalar_type() == ScalarType::Long,
                  "lookup: indices must be int64");
  return as_contiguous(indices);
}

}  // namespace tokenflow
