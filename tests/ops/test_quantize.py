"""quantize equals its definition bit for bit, and says what is wrong with bad input."""

import dataclasses

import pytest
import torch

import tokenflow_ext as tfx
from tokenflow_ext import reference
from tokenflow_ext.ops import quantize as room

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make_case(n, k=300, ds=32, dp=8, *, seed=0, family="random", dtype=torch.float32):
    """Vectors and books of one family, from a seed: (semantic, pixel, books)."""
    g = torch.Generator().manual_seed(seed)
    semantic, pixel = (torch.randn(n, d, generator=g) for d in (ds, dp))
    books = [torch.randn(k, d, generator=g) for d in (ds, dp)]
    if family == "duplicates":
        books = [book[torch.arange(k) % 7] for book in books]
    elif family == "collapsed":
        books = [book[:1].expand(k, -1).contiguous() for book in books]
    elif family == "zeros":
        semantic[::2], pixel[::3] = 0, 0
        books[0][::2], books[1][::3] = 0, 0
    elif family == "near_ties":
        # Entries one float32 step apart: their exact scores differ, float32 ones tie.
        books = [
            book[:1] + torch.arange(k)[:, None] * 6e-8 * book[:1] for book in books
        ]
    elif family == "near_code":
        pick = torch.randint(k, (n,), generator=g)
        semantic, pixel = (book[pick] * 1.0001 for book in books)
    elif family == "huge":
        semantic, books[0] = semantic * 1e20, books[0] * 1e20
    elif family == "tiny":
        semantic, pixel = semantic * 1e-30, pixel * 1e-30
        books = [book * 1e-30 for book in books]
    elif family == "not_finite":
        semantic[::5, 1], pixel[1::5, 0] = torch.nan, torch.inf
        books[0][::3, 2], books[1][1::4, 0] = -torch.inf, torch.nan
    else:
        assert family == "random"
    return [t.to(dtype) for t in (semantic, pixel, *books)]


FAMILIES = [
    "random",
    "duplicates",
    "collapsed",
    "zeros",
    "near_ties",
    "near_code",
    "huge",
    "tiny",
    "not_finite",
]


def on(device, case):
    return [t.to(device) for t in case]


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 31, 32, 33, 65])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_quantize_is_the_reference_bit_for_bit(n, dtype, device, isa):
    case = on(device, make_case(n, dtype=dtype))
    assert torch.equal(tfx.quantize(*case), reference.quantize(*case))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("weight", [1.0, 0.3, 0.0])
def test_adversarial_families_keep_every_index(
    family, normalize, weight, device, isa, threads
):
    case = on(device, make_case(70, k=601, family=family))
    options = {"normalize": normalize, "pixel_weight": weight}
    threads(2)
    expected = reference.quantize(*case, **options)
    assert torch.equal(tfx.quantize(*case, **options), expected)
    threads(1)
    assert torch.equal(tfx.quantize(*case, **options), expected)


# Around whole words of bytes, both sides of what is packed at all, and wide rows, which
# bytes tell apart badly.
@pytest.mark.parametrize(
    "ds, dp", [(1, 1), (3, 2), (4, 4), (61, 4), (256, 0), (1025, 0)]
)
@pytest.mark.parametrize("k", [1, 11, 12, 13, 25, 4100])
@pytest.mark.parametrize("normalize", [True, False])
def test_every_width_and_size_of_book(ds, dp, k, normalize, device, isa):
    case = on(device, make_case(40, k=k, ds=ds, dp=max(dp, 1)))
    semantic, pixel, *books = case
    if dp:
        expected = reference.quantize(*case, normalize=normalize)
        assert torch.equal(tfx.quantize(*case, normalize=normalize), expected)
    else:
        expected = reference.nearest(semantic, books[0], normalize=normalize)
        found = tfx.nearest(semantic, books[0], normalize=normalize)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("k", [13, 18, 23, 24, 4100])
def test_what_fills_up_a_tile_wins_nothing(k, device, isa):
    """Every score is below 0, which is the score of zeros behind the last entry."""
    book = torch.rand(k, 16, generator=torch.Generator().manual_seed(k)).to(device)
    vectors = -book[:: k // 10] - 0.1
    expected = reference.nearest(vectors, book)
    assert torch.equal(tfx.nearest(vectors, book), expected)
    assert torch.equal(
        tfx.nearest(vectors[:, :8], book[:, :8], normalize=True),
        reference.nearest(vectors[:, :8], book[:, :8], normalize=True),
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("normalize", [True, False])
def test_bytes_and_float32_find_the_same(family, normalize, device, isa):
    """A book large enough for both: most rows in bytes, degenerate ones not."""
    semantic, pixel, *books = on(device, make_case(70, k=5000, family=family))
    whole = tfx.prepare(*books, normalize=normalize)
    plain = dataclasses.replace(whole, packed=whole.packed.new_empty(0))
    found, expected = (
        tfx.quantize(semantic, pixel, *books, normalize=normalize, prepared=handle)
        for handle in (whole, plain)
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("normalize", [True, False])
def test_parts_of_a_book_are_merged_by_exact_scores(normalize, device, isa, threads):
    """Clear winners of either half of the book that float32 cannot tell apart."""
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(2500, 40, generator=g)
    twins = torch.nextafter(rows, torch.randn(rows.shape, generator=g) * 9)
    book = torch.cat([rows, twins]).to(device)
    vectors = book[torch.randint(5000, (20,), generator=g)] * 1.01
    threads(2)
    expected = reference.nearest(vectors, book, normalize=normalize)
    assert torch.equal(tfx.nearest(vectors, book, normalize=normalize), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("normalize", [True, False])
def test_the_fallback_is_the_reference_bit_for_bit(family, normalize, device):
    case = on(device, make_case(70, k=601, family=family))
    book = tfx.prepare(*case[2:], normalize=normalize)
    found = room._fallback(
        *case[:2], book.rows, book.squares, book.limits, book.packed, 0.7, normalize
    )
    expected = reference.quantize(*case, pixel_weight=0.7, normalize=normalize)
    assert torch.equal(found, expected)


def test_the_fallback_heeds_neither_autocast_nor_precision_settings(device):
    semantic, pixel, *books = on(device, make_case(100, k=500))
    # A crowded book: bfloat16 cannot tell its scores apart, float32 can.
    case = [semantic, pixel, *(book[:1] + 0.01 * book for book in books)]
    book = tfx.prepare(*case[2:])
    arguments = (
        *case[:2],
        book.rows,
        book.squares,
        book.limits,
        book.packed,
        1.0,
        True,
    )
    expected = reference.quantize(*case)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert torch.equal(room._fallback(*arguments), expected)
    backends = (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "tf32"
        assert torch.equal(room._fallback(*arguments), expected)
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


@pytest.mark.parametrize(
    ("k", "ds", "dp"), [(1, 1, 1), (5, 3, 2), (13, 32, 8), (97, 70, 33), (6, 256, 4)]
)
def test_any_width_and_book_size(k, ds, dp, device, isa):
    case = on(device, make_case(19, k, ds, dp))
    assert torch.equal(tfx.quantize(*case), reference.quantize(*case))


@pytest.mark.parametrize("n", [1, 2, 40])
def test_a_book_split_between_threads_decides_alike(n, threads, isa):
    case = make_case(n, k=8192, family="duplicates")
    threads(1)
    alone = tfx.quantize(*case)
    threads(2)
    assert torch.equal(tfx.quantize(*case), alone)
    assert torch.equal(alone, reference.quantize(*case))


def test_the_place_in_the_batch_changes_nothing(device):
    case = on(device, make_case(130))
    whole = tfx.quantize(*case)
    order = torch.randperm(130, generator=torch.Generator().manual_seed(1))
    order = order.to(device)
    mixed = tfx.quantize(case[0][order], case[1][order], *case[2:])
    assert torch.equal(mixed, whole[order])
    for n in (0, 64, 129):
        one = tfx.quantize(case[0][n : n + 1], case[1][n : n + 1], *case[2:])
        assert torch.equal(one, whole[n : n + 1])


def test_a_case_worked_by_hand(device):
    # Unit rows: scores are 1 + w, 0 + w·0 and 0.6 + 0.8·w.
    semantic, pixel = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    semantic_book = torch.tensor([[5.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    pixel_book = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.6, 0.8]])
    case = on(device, [semantic, pixel, semantic_book, pixel_book])
    assert tfx.quantize(*case).item() == 2  # 0.6 + 0.8 > 1 + 0
    assert tfx.quantize(*case, pixel_weight=0.25).item() == 0  # 1 > 0.6 + 0.2
    # Not normalised, the distances to the rows are 9+10, 8+10 and 2.6+5.2.
    assert tfx.quantize(*case, normalize=False).item() == 2


def test_ties_go_to_the_smallest_index(device, isa):
    case = on(device, make_case(33, k=500, family="collapsed"))
    assert torch.equal(
        tfx.quantize(*case), torch.zeros(33, dtype=torch.int64).to(device)
    )
    zero = on(device, [torch.zeros(3, 4), torch.zeros(3, 2)])
    books = on(device, [torch.randn(50, 4), torch.randn(50, 2)])
    assert tfx.quantize(*zero, *books).tolist() == [0, 0, 0]


def test_rows_that_are_not_finite_get_minus_one(device, isa):
    semantic, pixel, *books = on(device, make_case(6))
    semantic[1, 3], pixel[4, 0] = torch.nan, -torch.inf
    indices = tfx.quantize(semantic, pixel, *books)
    assert (indices < 0).tolist() == [False, True, False, False, True, False]
    assert indices[1] == -1
    with pytest.raises(ValueError, match="2 of 6 rows"):
        tfx.quantize(semantic, pixel, *books, check=True)


def test_an_entry_that_is_not_finite_never_wins(device, isa):
    semantic, pixel, *books = on(device, make_case(40, k=30, family="near_code"))
    winners = tfx.quantize(semantic, pixel, *books).unique()
    books[0][winners[0], 0] = torch.inf
    assert winners[0] not in tfx.quantize(semantic, pixel, *books)
    books[1][:] = torch.nan
    assert (tfx.quantize(semantic, pixel, *books) == -1).all()


def test_leading_shapes_and_strides(device):
    semantic, pixel, *books = on(device, make_case(24))
    flat = tfx.quantize(semantic, pixel, *books)
    cube = tfx.quantize(semantic.view(2, 3, 4, 32), pixel.view(2, 3, 4, 8), *books)
    assert torch.equal(cube, flat.view(2, 3, 4))
    strided = semantic.repeat_interleave(2, dim=1)[:, ::2]
    assert not strided.is_contiguous()
    turned = [book.T.contiguous().T for book in books]
    assert torch.equal(tfx.quantize(strided, pixel.T.contiguous().T, *turned), flat)
    assert tfx.quantize(semantic[0], pixel[0], *books).shape == ()


def test_a_prepared_book_changes_nothing(device):
    case = on(device, make_case(50))
    for normalize in (True, False):
        handle = tfx.prepare(*case[2:], normalize=normalize)
        assert torch.equal(
            tfx.quantize(*case, normalize=normalize, prepared=handle),
            tfx.quantize(*case, normalize=normalize),
        )


def test_books_may_be_of_any_float_dtype(device):
    semantic, pixel, *books = on(device, make_case(20))
    halves = [book.half() for book in books]
    found = tfx.quantize(semantic, pixel, *halves)
    assert torch.equal(
        found, tfx.quantize(semantic, pixel, *[h.float() for h in halves])
    )


def test_float64_is_scored_without_rounding(device):
    # The second entry is nearer by less than a float32 step.
    semantic, pixel = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0]])
    semantic_book = torch.tensor([[0.5, 0.0], [0.5 + 1e-12, 0.0]], dtype=torch.float64)
    pixel_book = torch.ones(2, 1, dtype=torch.float64)
    case = on(device, [semantic.double(), pixel.double(), semantic_book, pixel_book])
    assert tfx.quantize(*case, normalize=False).item() == 1
    single = [t.float() for t in case]
    assert tfx.quantize(*single, normalize=False).item() == 0


def test_autocast_changes_nothing(device):
    case = on(device, make_case(40))
    plain = tfx.quantize(*case)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert torch.equal(tfx.quantize(*case), plain)


def test_memory_stays_linear_in_rows_and_entries():
    # N×K scores would be 1 GiB here; the process may grow by a few MiB.
    import subprocess
    import sys

    code = (
        "import torch, resource, tokenflow_ext as tfx\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "s, p = torch.randn(8192, 32), torch.randn(8192, 8)\n"
        "S, P = torch.randn(32768, 32), torch.randn(32768, 8)\n"
        "tfx.quantize(s[:1], p[:1], S, P)\n"
        "before = peak()\n"
        "tfx.quantize(s, p, S, P)\n"
        "print(peak() - before)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert int(out.stdout) < 32 * 1024, out.stderr


def test_opcheck(device):
    semantic, pixel, *books = on(device, make_case(9, k=20))
    book = tfx.prepare(*books)
    arrays = (book.rows, book.squares, book.limits, book.packed)
    torch.library.opcheck(room._quantize, (semantic, pixel, *arrays, 1.0, True))
    one = tfx.prepare(books[0])
    arrays = (one.rows, one.squares, one.limits, one.packed)
    torch.library.opcheck(room._quantize, (semantic, None, *arrays, 1.0, True))


def test_compile_gives_equal_indices():
    compiled = torch.compile(tfx.quantize, fullgraph=True, dynamic=True)
    for n in (3, 17):
        case = make_case(n, k=40)
        assert torch.equal(compiled(*case), tfx.quantize(*case))


@pytest.mark.parametrize("name", ["quant_single_0", "quant_single_1", "quant_single_2"])
def test_the_recorded_indices(golden, name):
    case = golden(name)
    ds, dp = case.meta["split"]
    entries = case.meta["n_e"]
    weights = case.weights()
    books = [weights["embedding_vqkd.weight"], weights["embedding_vqgan.weight"]]
    assert books[0].shape == (entries, ds)
    rows = case["in/z"].permute(0, 2, 3, 1).reshape(-1, ds + dp)
    found = tfx.quantize(rows[:, :ds], rows[:, ds:], *books)
    clear = case["out/margin"] > 1e-5
    assert torch.equal(found[clear], case["out/indices"][clear])


def test_bad_input_is_named():
    semantic, pixel, semantic_book, pixel_book = make_case(4)
    with pytest.raises(ValueError, match=r"pixel must have the leading shape.*\[3\]"):
        tfx.quantize(semantic, pixel[:3], semantic_book, pixel_book)
    with pytest.raises(ValueError, match=r"semantic must be \[\.\.\., 32\].*\[4, 31\]"):
        tfx.quantize(semantic[:, 1:], pixel, semantic_book, pixel_book)
    with pytest.raises(ValueError, match=r"pixel must be \[\.\.\., 8\]"):
        tfx.quantize(semantic, pixel[:, 1:], semantic_book, pixel_book)
    with pytest.raises(ValueError, match="K = 300 entries .* got 299"):
        tfx.quantize(semantic, pixel, semantic_book, pixel_book[1:])
    with pytest.raises(ValueError, match="K and D at least 1"):
        tfx.quantize(semantic, pixel, semantic_book[:0], pixel_book[:0])
    with pytest.raises(ValueError, match="pixel_weight must be finite .* got -1"):
        tfx.quantize(semantic, pixel, semantic_book, pixel_book, pixel_weight=-1.0)
    with pytest.raises(ValueError, match="pixel_weight must be finite .* got nan"):
        tfx.quantize(
            semantic, pixel, semantic_book, pixel_book, pixel_weight=float("nan")
        )
    with pytest.raises(TypeError, match="semantic must be float32.*int64"):
        tfx.quantize(semantic.long(), pixel, semantic_book, pixel_book)
    with pytest.raises(TypeError, match="pixel must be a tensor, got list"):
        tfx.quantize(semantic, pixel.tolist(), semantic_book, pixel_book)
    with pytest.raises(ValueError, match="must be on the device of semantic"):
        tfx.quantize(semantic, pixel.to("meta"), semantic_book, pixel_book)


def test_a_prepared_book_of_another_shape_is_refused():
    case = make_case(4)
    other = tfx.prepare(case[2][:10], case[3][:10])
    with pytest.raises(
        ValueError, match=r"\(300, 32, 8, True\).*got \(10, 32, 8, True\)"
    ):
        tfx.quantize(*case, prepared=other)
    with pytest.raises(ValueError, match="prepared must fit"):
        tfx.quantize(*case, prepared=tfx.prepare(*case[2:], normalize=False))
    with pytest.raises(TypeError, match="must come from tokenflow_ext.prepare"):
        tfx.quantize(*case, prepared=case[2])
