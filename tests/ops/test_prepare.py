"""prepare scales and measures the books exactly as the definition says."""

import dataclasses

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


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("widths", [(1, 0), (5, 3), (16, 8), (32, 8), (40, 0)], ids=str)
@pytest.mark.parametrize("k", [1, 31, 33, 700])
def test_every_instruction_set_gives_the_bits_of_the_fallback(
    k, widths, normalize, isa
):
    g = torch.Generator().manual_seed(k)
    semantic, pixel = (torch.randn(k, d, generator=g) * 10 for d in widths)
    semantic[k // 3] = -0.0
    if k > 600:  # some tiles have an entry that is not finite, most have none
        semantic[40, -1], semantic[k - 1, 0] = torch.nan, torch.inf
        pixel[100] = torch.inf
        semantic[200], semantic[300] = 1e-20, 3e38  # shortest divisor, large square
    pair = (semantic, pixel if widths[1] else None)
    found = room._prepare(*pair, normalize)
    for ours, expected in zip(found, room._fallback(*pair, normalize), strict=True):
        assert torch.equal(ours.view(torch.uint8), expected.view(torch.uint8))


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


def test_the_limit_of_unit_rows_bounds_them(device):
    books = [book.to(device) for book in make_books(k=900)]
    for pair, halves in ((books, 2), (books[:1], 1)):
        handle = tfx.prepare(*pair)
        longest = handle.rows.double().square().sum(1).max().item()
        assert longest <= handle.limits[0].item() <= halves * 1.00001


def test_a_handle_moves_between_devices(device):
    here = tfx.prepare(*make_books())
    handle = here.to(device)
    tensors = (handle.rows, handle.squares, handle.limits, handle.packed)
    assert {t.device.type for t in tensors} == {device.type}
    back = handle.to("cpu")
    assert torch.equal(back.packed, here.packed)


def test_what_is_packed_is_a_byte_per_element_and_an_entry_s_sums():
    book = torch.tensor([[127.0, -1.0, 2.0, 0.4, 0.6], [-3.0, 0.0, 0.0, 0.0, 0.0]])
    packed = tfx.prepare(book, normalize=False).packed[64:].view(torch.int32)
    words, bias = packed[:24].view(2, 12), packed[36:]
    # Scaled by 127 / 127, rounded; the fifth element is the first of a second word.
    first = words[:, 0].contiguous().view(torch.int8)
    assert first.tolist() == [127, -1, 2, 0, 1, 0, 0, 0]
    assert words[:, 1].contiguous().view(torch.int8).tolist() == [-3] + 7 * [0]
    assert bias.tolist() == [-128 * 129, -128 * -3] + 10 * [0]


@pytest.mark.parametrize("widths", [(1, 0), (5, 2), (16, 8), (32, 8), (1000, 24)])
@pytest.mark.parametrize("k", [1, 13, 100])
def test_bytes_are_the_nearest_and_their_norms_bound_what_they_miss(k, widths, isa):
    g = torch.Generator().manual_seed(k)
    books = [torch.randn(k, d, generator=g) * 3 for d in widths if d]
    handle = tfx.prepare(*books, normalize=False)
    header = handle.packed[:64]
    scales, bounds = header[:8].view(torch.float32), header[8:32].view(torch.float64)
    by = torch.cat([scales[i].repeat(d) for i, d in enumerate(widths)]).double()
    scaled = torch.nn.functional.pad(handle.rows.double() * by, (0, -sum(widths) % 4))
    quads, tiles = scaled.shape[1] // 4, -(-k // 12)
    ints = handle.packed[64:].view(torch.int32)
    words, biases, bias = ints.split([tiles * quads * 12, tiles * 12, tiles * 12])
    words = words.view(tiles, quads, 12).transpose(1, 2).flatten()
    bytes_ = words.view(torch.int8).view(tiles * 12, 4 * quads)
    assert not bytes_[k:].any()
    bytes_ = bytes_[:k].double()
    rest = scaled - bytes_
    assert rest.abs().max() <= 0.5 + 1e-4
    assert bytes_.abs().max() == 127
    true = [m.norm(dim=1).max().item() for m in (scaled, rest, bytes_)]
    for bound, norm in zip(bounds.tolist(), true, strict=True):
        assert norm * (1 - 1e-12) <= bound <= norm * (1 + 1e-3) + 1e-4
    assert bias[:k].tolist() == (-128 * bytes_.sum(1)).tolist()
    lower, upper = bytes_.view(k, quads, 2, 2).sum((1, 3)).unbind(1)
    halves = torch.stack([lower, upper], 1).mul(-64).to(torch.int16)
    assert torch.equal(biases[:k].view(torch.int16).view(k, 2), halves)


def test_a_pack_of_other_books_is_refused(device):
    books = [book.to(device) for book in make_books()]
    handle, vectors = tfx.prepare(*books), [book[:2] for book in books]
    other = dataclasses.replace(handle, packed=handle.packed.new_empty(7))
    with pytest.raises(RuntimeError, match="packed for others"):
        tfx.quantize(*vectors, *books, prepared=other)


def test_opcheck(device):
    books = [book.to(device) for book in make_books()]
    torch.library.opcheck(room._prepare, (*books, True))
    torch.library.opcheck(room._prepare, (books[0], None, False))
    torch.library.opcheck(room._pack, (tfx.prepare(*books).rows, 32))


def test_bad_input_is_named():
    semantic, pixel = make_books()
    with pytest.raises(ValueError, match=r"semantic_book must be \[K, D\]"):
        tfx.prepare(semantic[0])
    with pytest.raises(ValueError, match="K = 37 entries"):
        tfx.prepare(semantic, pixel[:3])
    with pytest.raises(TypeError, match="pixel_book must be float32"):
        tfx.prepare(semantic, pixel.long())
