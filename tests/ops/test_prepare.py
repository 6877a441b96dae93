"""prepare scales and measures the books exactly as the definition says."""

import pytest
import torch

import tokenflow_ext as tfx
from tokenflow_ext.ops import prepare as room
from tokenflow_ext.ops._numerics import normalize_rows


def make_books(k=37, ds=32, dp=8):
    g = torch.Generator().manual_seed(3)
    books = [torch.randn(k, d, generator=g) for d in (ds, dp)]
    books[0][0] = 0
    books[0][5, 2], books[1][7, 1] = torch.nan, torch.inf
    books[1][9] = 1e-30
    return books


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernel_and_fallback_agree_bit_for_bit(normalize, dtype, device):
    books = [book.to(device, dtype) for book in make_books()]
    for pair in (books, [books[0], None]):
        found = room._prepare(*pair, normalize)
        for ours, expected in zip(found, room._fallback(*pair, normalize), strict=True):
            assert torch.equal(ours, expected)


def test_rows_are_the_normalised_halves_side_by_side(device):
    books = [book.to(device) for book in make_books()]
    handle = tfx.prepare(*books)
    fine = [0, 1, 9]
    expected = torch.cat([normalize_rows(book[fine]) for book in books], dim=1)
    assert torch.equal(handle.rows[fine], expected)
    assert (handle.semantic_width, handle.pixel_width) == (32, 8)


def test_a_case_worked_by_hand(device):
    book = torch.tensor([[3.0, 4.0], [0.0, 0.0], [torch.inf, 1.0]], device=device)
    unit = tfx.prepare(book)
    rows = torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 0.0]], device=device)
    assert torch.equal(unit.rows, rows)
    assert unit.squares[:, 0].tolist() == [0.0, 0.0, torch.inf]
    plain = tfx.prepare(book, normalize=False)
    assert plain.squares.tolist() == [[25.0, 0.0], [0.0, 0.0], [torch.inf, 0.0]]
    assert plain.limits.tolist() == [25.0, 25.0, 0.0]


def test_a_handle_moves_between_devices(device):
    handle = tfx.prepare(*make_books()).to(device)
    assert {t.device.type for t in (handle.rows, handle.squares, handle.limits)} == {
        device.type
    }


def test_opcheck(device):
    books = [book.to(device) for book in make_books()]
    torch.library.opcheck(room._prepare, (*books, True))
    torch.library.opcheck(room._prepare, (books[0], None, False))


def test_bad_input_is_named():
    semantic, pixel = make_books()
    with pytest.raises(ValueError, match=r"semantic_book must be \[K, D\]"):
        tfx.prepare(semantic[0])
    with pytest.raises(ValueError, match="K = 37 entries"):
        tfx.prepare(semantic, pixel[:3])
    with pytest.raises(TypeError, match="pixel_book must be float32"):
        tfx.prepare(semantic, pixel.long())
