"""nearest equals its definition, one book of any width."""

import pytest
import torch

import tokenflow_ext as tfx
from tokenflow_ext import reference


def make_case(n, k, d, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g), torch.randn(k, d, generator=g)


@pytest.mark.parametrize("d", [1, 4, 8, 33, 256])
@pytest.mark.parametrize("normalize", [True, False])
def test_nearest_is_the_reference_bit_for_bit(d, normalize, device, isa):
    vectors, book = (t.to(device) for t in make_case(50, 333, d))
    found = tfx.nearest(vectors, book, normalize=normalize)
    assert torch.equal(found, reference.nearest(vectors, book, normalize=normalize))


def test_nearest_is_the_smallest_distance(device):
    vectors, book = (t.to(device) for t in make_case(64, 500, 16))
    distance = torch.cdist(vectors.double(), book.double())
    assert torch.equal(tfx.nearest(vectors, book), distance.argmin(dim=1))


def test_a_case_worked_by_hand(device):
    book = torch.tensor([[1.0, 0.0], [10.0, 10.0], [0.0, 1.0], [1.0, 0.0]])
    vectors = torch.tensor([[7.0, 5.0], [0.9, 0.0], [0.1, 3.0]])
    found = tfx.nearest(vectors.to(device), book.to(device))
    assert found.tolist() == [1, 0, 2]
    # By direction the first vector leans to (10, 10), the last to (0, 1).
    found = tfx.nearest(vectors.to(device), book.to(device), normalize=True)
    assert found.tolist() == [1, 0, 2]


def test_a_prepared_book_leading_shapes_and_empty_batches(device):
    vectors, book = (t.to(device) for t in make_case(24, 40, 6))
    handle = tfx.prepare(book, normalize=False)
    flat = tfx.nearest(vectors, book, prepared=handle)
    assert torch.equal(flat, tfx.nearest(vectors, book))
    assert torch.equal(tfx.nearest(vectors.view(2, 12, 6), book), flat.view(2, 12))
    assert tfx.nearest(vectors[:0], book).shape == (0,)


def test_rows_that_are_not_finite_get_minus_one(device):
    vectors, book = (t.to(device) for t in make_case(3, 40, 6))
    vectors[1, 2] = torch.nan
    assert (tfx.nearest(vectors, book) == -1).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="nearest: vectors must be finite, got 1 of 3"):
        tfx.nearest(vectors, book, check=True)


def test_bad_input_is_named():
    vectors, book = make_case(3, 40, 6)
    with pytest.raises(ValueError, match=r"vectors must be \[\.\.\., 6\]"):
        tfx.nearest(vectors[:, :5], book)
    with pytest.raises(ValueError, match=r"book must be \[K, D\]"):
        tfx.nearest(vectors, book[0])
    with pytest.raises(TypeError, match="book must be float32"):
        tfx.nearest(vectors, book.int())
    with pytest.raises(ValueError, match="prepared must fit"):
        tfx.nearest(vectors, book, prepared=tfx.prepare(book, normalize=True))


def test_compile_gives_equal_indices():
    compiled = torch.compile(tfx.nearest, fullgraph=True, dynamic=True)
    vectors, book = make_case(11, 40, 6)
    assert torch.equal(compiled(vectors, book), tfx.nearest(vectors, book))
