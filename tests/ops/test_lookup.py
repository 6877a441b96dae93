"""lookup equals its definition bit for bit; its gradient reaches both books."""

import pytest
import torch

import tokenflow_ext as tfx
from tokenflow_ext import _info, reference
from tokenflow_ext.ops import lookup as room
from tokenflow_ext.testing import BOOK_FAMILIES, make_books, make_indices

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def gradients(function, indices, books, grad, **options):
    books = [book.detach().clone().requires_grad_() for book in books]
    return torch.autograd.grad(function(indices, *books, **options), books, grad)


@pytest.mark.parametrize("shape", [(0,), (), (1,), (65,), (3, 5, 7), (2, 0, 3)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalize", [True, False])
def test_lookup_is_the_reference_bit_for_bit(shape, dtype, normalize, device, isa):
    books = [book.to(dtype) for book in make_books(37, 32, 8, 0, device=device)]
    indices = make_indices(shape, 37, 1, device)
    found = tfx.lookup(indices, *books, normalize=normalize)
    assert found.dtype == torch.float32
    assert found.shape == (*shape, 40)
    assert torch.equal(found, reference.lookup(indices, *books, normalize=normalize))


@pytest.mark.parametrize("n", [1, 31, 32, 33, 100])  # around the 32-row tile
@pytest.mark.parametrize("widths", [(32, 8), (1, 1), (7, 16), (17, 5), (64, 3)])
def test_any_width_and_count(n, widths, device, isa):
    books = make_books(50, *widths, 28, device=device)
    indices = make_indices((n,), 50, 29, device)
    for normalize in (True, False):
        found = tfx.lookup(indices, *books, normalize=normalize)
        expected = reference.lookup(indices, *books, normalize=normalize)
        assert torch.equal(found, expected)


def test_quotients_round_as_a_division_does(device, isa):
    # Every exponent, subnormals and both zeros; one row in eight is not finite.
    draw = torch.Generator().manual_seed(30)
    exponent = torch.randint(-160, 128, (4096, 40), generator=draw)
    exponent[::2] = exponent[::2] % 8
    book = torch.ldexp(torch.randn(4096, 40, generator=draw), exponent).float()
    book[:, ::7] = -0.0
    book[::8, 3] = torch.inf
    book[4::8, 35] = torch.nan
    semantic, pixel = (half.to(device) for half in book.split([32, 8], dim=1))
    indices = torch.arange(4096, device=device)
    found = tfx.lookup(indices, semantic, pixel)
    expected = reference.lookup(indices, semantic, pixel)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    number = ~expected.isnan()
    assert torch.equal(found.signbit()[number], expected.signbit()[number])


@pytest.mark.parametrize("family", BOOK_FAMILIES)
@pytest.mark.parametrize("normalize", [True, False])
def test_rows_are_those_that_quantize_compared(family, normalize, device):
    books = make_books(200, 17, 5, 2, family, device)
    rows = tfx.prepare(*books, normalize=normalize).rows
    everything = torch.arange(200, device=device)
    assert torch.equal(tfx.lookup(everything, *books, normalize=normalize), rows)


@pytest.mark.parametrize("family", BOOK_FAMILIES)
def test_the_fallback_is_the_reference_bit_for_bit(family, device):
    books = make_books(50, 9, 4, 3, family, device)
    indices = make_indices((200,), 50, 4, device)
    expected = reference.lookup(indices, *books)
    assert torch.equal(room._fallback(indices, *books, True), expected)


def test_a_case_worked_by_hand(device):
    semantic = torch.tensor([[3.0, 4.0], [0.0, 0.0]], device=device)
    pixel = torch.tensor([[-2.0], [0.5]], device=device)
    indices = torch.tensor([[1, 0], [0, -1]], device=device)
    expected = torch.tensor(
        [[[0, 0, 1], [0.6, 0.8, -1]], [[0.6, 0.8, -1], [0, 0, 0]]], device=device
    )
    assert torch.equal(tfx.lookup(indices, semantic, pixel), expected)
    plain = tfx.lookup(indices, semantic, pixel, normalize=False)
    assert plain[0].tolist() == [[0.0, 0.0, 0.5], [3.0, 4.0, -2.0]]


def test_an_index_outside_is_a_zero_row_without_gradient(device):
    books = make_books(6, 4, 3, 5, device=device)
    indices = torch.tensor([-1, 6, 2, -(2**62), 2**62], device=device)
    found = tfx.lookup(indices, *books)
    assert found[[0, 1, 3, 4]].eq(0).all()
    assert found[2].ne(0).any()
    grad = torch.ones(5, 7, device=device)
    for book in gradients(tfx.lookup, indices, books, grad):
        assert book[2].ne(0).any()
        assert book[[0, 1, 3, 4, 5]].eq(0).all()


def test_an_entry_that_is_not_finite_stays_so(device):
    semantic, pixel = make_books(4, 3, 2, 6, device=device)
    semantic[1, 0], pixel[2, 1] = torch.nan, torch.inf
    indices = torch.arange(4, device=device)
    for normalize in (True, False):
        found = tfx.lookup(indices, semantic, pixel, normalize=normalize)
        expected = reference.lookup(indices, semantic, pixel, normalize=normalize)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
        assert found[1].isnan().any()
        assert found[[0, 3]].isfinite().all()


def test_any_strides_and_integers(device):
    semantic, pixel = make_books(30, 6, 5, 7, device=device)
    indices = make_indices((4, 6), 30, 8, device)
    wide = torch.cat([semantic, pixel], dim=1)
    found = tfx.lookup(indices.T, wide[:, :6], wide[:, 6:])
    assert torch.equal(found, tfx.lookup(indices, semantic, pixel).transpose(0, 1))
    narrow = tfx.lookup(indices.int(), semantic, pixel)
    assert torch.equal(narrow, tfx.lookup(indices, semantic, pixel))


def test_float64_books_are_not_rounded(device):
    books = [book.double() for book in make_books(9, 4, 3, 9, device=device)]
    found = tfx.lookup(torch.arange(9, device=device), *books)
    assert found.dtype == torch.float64
    for half in found.split([4, 3], dim=1):
        ones = torch.ones(9, dtype=torch.float64, device=device)
        torch.testing.assert_close(half.norm(dim=1), ones, rtol=0, atol=1e-15)


# --- gradients ---


@pytest.mark.parametrize("family", BOOK_FAMILIES)
@pytest.mark.parametrize("normalize", [True, False])
def test_gradient_is_that_of_the_reference(family, normalize, device):
    books = make_books(40, 32, 8, 10, family, device)
    indices = make_indices((6, 50), 40, 11, device)
    draw = torch.Generator().manual_seed(12)
    grad = torch.randn(6, 50, 40, generator=draw).to(device)
    options = {"normalize": normalize}
    found = gradients(tfx.lookup, indices, books, grad, **options)
    wide = [book.double() for book in books]
    expected = gradients(reference.lookup, indices, wide, grad.double(), **options)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        # One rounding to float32 of a float64 sum; where that cancels, its terms count.
        error = (a.double() - b).abs()
        assert (error <= 1e-7 * b.abs() + 1e-13 * b.abs().max()).all()


@pytest.mark.parametrize("widths", [(32, 8), (17, 5)])
def test_gradient_does_not_depend_on_the_instruction_set(widths, isa):
    books = make_books(300, *widths, 31)
    indices = make_indices((700,), 300, 32)
    draw = torch.Generator().manual_seed(33)
    grad = torch.randn(700, sum(widths), generator=draw)
    found = gradients(tfx.lookup, indices, books, grad)
    kernels = _info.kernels
    if kernels:
        kernels.force_isa("portable")
    for a, b in zip(found, gradients(tfx.lookup, indices, books, grad), strict=True):
        assert torch.equal(a, b)


def test_gradient_does_not_depend_on_threads(threads, isa):
    books = make_books(3000, 32, 8, 13)
    indices = make_indices((3000,), 3000, 14)
    grad = torch.randn(3000, 40, generator=torch.Generator().manual_seed(15))
    threads(1)
    alone = gradients(tfx.lookup, indices, books, grad)
    threads(2)
    for a, b in zip(gradients(tfx.lookup, indices, books, grad), alone, strict=True):
        assert torch.equal(a, b)


def test_gradient_worked_by_hand(device):
    # Across a unit row the gradient is (g − y·(y·g)) / ‖x‖; two rows name entry 0.
    semantic = torch.tensor([[3.0, 4.0], [1.0, 1.0]], device=device)
    pixel = torch.tensor([[2.0], [7.0]], device=device)
    grad = torch.tensor([[1.0, 0.0, 5.0], [0.0, 1.0, 5.0]], device=device)
    indices = torch.zeros(2, dtype=torch.int64, device=device)
    along_semantic, along_pixel = gradients(
        tfx.lookup, indices, (semantic, pixel), grad
    )
    # g = (1, 1), y = (0.6, 0.8), y·g = 1.4: (1 − 0.84, 1 − 1.12) / 5
    expected = torch.tensor([[0.032, -0.024], [0.0, 0.0]], device=device)
    torch.testing.assert_close(along_semantic, expected, rtol=1e-6, atol=0)
    assert along_pixel.tolist() == [[0.0], [0.0]]  # a unit number cannot turn


def test_gradient_of_a_short_row_is_that_of_a_constant_divisor(device):
    semantic = torch.zeros(1, 2, device=device)
    pixel = torch.full((1, 2), 1e-13, device=device)
    grad = torch.ones(1, 4, device=device)
    index = torch.zeros(1, dtype=torch.int64, device=device)
    for function in (tfx.lookup, reference.lookup):
        for book in gradients(function, index, (semantic, pixel), grad):
            assert torch.equal(book, torch.full_like(book, 1e12))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_has_the_dtype_of_the_book(dtype, device):
    books = [book.to(dtype) for book in make_books(20, 8, 4, 16, device=device)]
    indices = make_indices((30,), 20, 17, device)
    grad = torch.ones(30, 12, device=device)
    found = gradients(tfx.lookup, indices, books, grad)
    single = gradients(tfx.lookup, indices, [book.float() for book in books], grad)
    for a, b in zip(found, single, strict=True):
        assert a.dtype == dtype
        assert torch.equal(a, b.to(dtype))


@pytest.mark.parametrize("normalize", [True, False])
def test_the_fallback_of_the_gradient_agrees(normalize, device):
    books = make_books(40, 32, 8, 18, "zeros", device)
    indices = make_indices((300,), 40, 19, device)
    grad = torch.randn(300, 40, generator=torch.Generator().manual_seed(20)).to(device)
    found = room._lookup_backward(grad, indices, *books, normalize)
    expected = room._backward_fallback(grad, indices, *books, normalize)
    for a, b in zip(found, expected, strict=True):
        # Both round one float64 sum; they differ by the last bits of that.
        torch.testing.assert_close(a, b, rtol=1.2e-7, atol=1e-9)


@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck_in_float64(normalize, device):
    books = [book.double() for book in make_books(5, 4, 3, 21, device=device)]
    books = [book.requires_grad_() for book in books]
    indices = torch.tensor([0, 3, 3, -1, 5, 1], device=device)
    assert torch.autograd.gradcheck(
        lambda *b: tfx.lookup(indices, *b, normalize=normalize), books
    )


def test_a_second_gradient_is_refused_and_exists_in_float64(device):
    books = make_books(5, 4, 3, 27, device=device)
    indices = torch.tensor([0, 3, 3], device=device)

    def second(books):
        books = [book.requires_grad_() for book in books]
        rows = tfx.lookup(indices, *books)
        first = torch.autograd.grad(rows.pow(3).sum(), books[0], create_graph=True)[0]
        return torch.autograd.grad(first.sum(), books[0])[0]

    with pytest.raises(NotImplementedError, match="lookup: the gradient has no gradie"):
        second(books)
    assert second([book.detach().double() for book in books]).isfinite().all()


# --- torch ---


def test_opcheck(device):
    books = [book.requires_grad_() for book in make_books(8, 4, 3, 22, device=device)]
    indices = make_indices((11,), 8, 23, device)
    torch.library.opcheck(room._lookup, (indices, *books, True))
    plain = [book.detach() for book in books]
    grad = torch.ones(11, 7, device=device)
    torch.library.opcheck(room._lookup_backward, (grad, indices, *plain, True))


def test_compile_gives_equal_rows_and_gradients(device):
    compiled = torch.compile(tfx.lookup, fullgraph=True, dynamic=True)
    for n in (3, 17):
        books = make_books(10, 6, 2, 24, device=device)
        indices = make_indices((2, n), 10, n, device)
        assert torch.equal(compiled(indices, *books), tfx.lookup(indices, *books))
        grad = torch.ones(2, n, 8, device=device)
        eager = gradients(tfx.lookup, indices, books, grad)
        for a, b in zip(gradients(compiled, indices, books, grad), eager, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["quant_single_0", "quant_single_1", "quant_single_2"])
def test_the_recorded_rows(golden, name):
    case = golden(name)
    weights = case.weights()
    books = [weights["embedding_vqkd.weight"], weights["embedding_vqgan.weight"]]
    found = tfx.lookup(case["out/indices"], *books)
    torch.testing.assert_close(found, case["out/lookup_flat"], rtol=0, atol=1e-7)
    batch, _, height, width = case["out/lookup_bchw"].shape
    maps = found.reshape(batch, height, width, -1).permute(0, 3, 1, 2)
    torch.testing.assert_close(maps, case["out/lookup_bchw"], rtol=0, atol=1e-7)


# --- errors ---


def test_check_names_the_range():
    books = make_books(6, 4, 3, 25)
    tfx.lookup(torch.tensor([0, 5]), *books, check=True)
    tfx.lookup(torch.tensor([], dtype=torch.int64), *books, check=True)
    with pytest.raises(IndexError, match=r"lookup: indices .*\[0, 6\), got \[-1, 5\]"):
        tfx.lookup(torch.tensor([5, -1]), *books, check=True)
    with pytest.raises(IndexError, match=r"got \[2, 6\]"):
        tfx.lookup(torch.tensor([2, 6]), *books, check=True)


def test_bad_input_is_named():
    semantic, pixel = make_books(6, 4, 3, 26)
    indices = torch.tensor([1])
    with pytest.raises(
        TypeError, match="lookup: indices must be an int64.* got torch.float32"
    ):
        tfx.lookup(indices.float(), semantic, pixel)
    with pytest.raises(TypeError, match="indices must be .* got list"):
        tfx.lookup([1], semantic, pixel)
    with pytest.raises(TypeError, match="lookup: pixel_book must be float32.*int64"):
        tfx.lookup(indices, semantic, pixel.long())
    with pytest.raises(ValueError, match="pixel_book must have K = 6 entries"):
        tfx.lookup(indices, semantic, pixel[:5])
    with pytest.raises(ValueError, match=r"semantic_book must be \[K, D\]"):
        tfx.lookup(indices, semantic[0], pixel)
    with pytest.raises(ValueError, match="semantic_book must be on the device of ind"):
        tfx.lookup(indices, semantic.to("meta"), pixel)
