"""pyramid_lookup gives back what pyramid_quantize summed; both books get gradients."""

import pytest
import torch

import tokenflow_ext as tfx
from tokenflow_ext import reference
from tokenflow_ext.ops import _resample
from tokenflow_ext.ops import pyramid as room
from tokenflow_ext.testing import (
    BOOK_FAMILIES,
    make_books,
    make_features,
    make_indices,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def gradients(function, indices, books, grad, *args, **options):
    books = [book.detach().clone().requires_grad_() for book in books]
    result = function(indices, *books, *args, **options)
    return torch.autograd.grad(result, books, grad)


@pytest.mark.parametrize("family", BOOK_FAMILIES)
@pytest.mark.parametrize("normalize", [True, False])
def test_pyramid_lookup_gives_back_what_pyramid_quantize_summed(
    family, normalize, device
):
    books = make_books(60, 7, 4, 0, family, device)
    features = make_features(3, 11, 4, 7, 1, device=device)
    scales = [(1, 2), 3, (4, 7)]
    indices, quantized = tfx.pyramid_quantize(
        features, *books, scales, normalize=normalize
    )
    found = tfx.pyramid_lookup(indices, *books, scales, normalize=normalize)
    assert torch.equal(found, quantized)
    expected = reference.pyramid_lookup(indices, *books, scales, normalize=normalize)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [0, 1, 3, 9])  # around four pictures at a time
def test_pyramid_lookup_is_the_reference_bit_for_bit(
    dtype, batch, device, threads, isa
):
    books = [book.to(dtype) for book in make_books(50, 9, 4, 2, device=device)]
    indices = make_indices((batch, 1 + 6 + 25), 50, 3, device)  # some are outside
    expected = reference.pyramid_lookup(indices, *books, [1, (2, 3), 5])
    for count in (1, 2):
        threads(count)
        found = tfx.pyramid_lookup(indices, *books, [1, (2, 3), 5])
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


@pytest.mark.parametrize("widths", [(1, 1), (5, 3), (32, 8), (40, 9), (64, 33)])
def test_any_width(widths, device, isa):
    # Around whole vectors, and around the vectors that are summed at once.
    books = make_books(60, *widths, 24, device=device)
    indices = make_indices((2, 1 + 9 + 17 * 18), 60, 25, device)
    scales = [1, 3, (17, 18)]
    found = tfx.pyramid_lookup(indices, *books, scales)
    assert torch.equal(found, reference.pyramid_lookup(indices, *books, scales))
    features = make_features(2, sum(widths), 17, 18, 26, device=device)
    tokens, quantized = tfx.pyramid_quantize(features, *books, scales)
    expected = reference.pyramid_quantize(features, *books, scales)
    assert torch.equal(tokens, expected[0])
    assert torch.equal(quantized, expected[1])


def test_every_size_of_cell_and_grid(device, isa):
    # All small pairs of sides: the integer floor, the clamps and the weights.
    books = make_books(40, 2, 1, 4, device=device)
    for cells in (1, 2, 3, 5, 8, 13):
        indices = make_indices((1, cells * cells), 40, cells, device)
        for height, width in zip(range(1, 17), range(16, 0, -1), strict=True):
            options = {"size": (height, width)}
            found = tfx.pyramid_lookup(indices, *books, [cells], **options)
            expected = reference.pyramid_lookup(indices, *books, [cells], **options)
            assert found.shape == (1, 3, height, width)
            assert torch.equal(found, expected), (cells, height, width)


def test_the_fallback_is_the_reference_bit_for_bit(device):
    books = make_books(50, 9, 4, 5, "zeros", device)
    indices = make_indices((2, 5), 50, 6, device)
    weights = _resample.weights(indices, [(1, 1), (2, 2)], 3, 4)
    found = room._lookup_fallback(indices, *books, *weights, [1, 1, 2, 2], True)
    expected = reference.pyramid_lookup(indices, *books, [1, 2], size=(3, 4))
    assert torch.equal(found, expected)


def test_a_case_worked_by_hand(device):
    semantic = torch.tensor([[3.0, 4.0], [0.0, -2.0]], device=device)
    pixel = torch.tensor([[5.0], [-1.0]], device=device)
    indices = torch.tensor([[0, 1, -1, 0, 1]], device=device)
    found = tfx.pyramid_lookup(indices, semantic, pixel, [1, 2])
    a, b, none = [0.6, 0.8, 1.0], [0.0, -1.0, -1.0], [0.0, 0.0, 0.0]
    cells = torch.tensor([[b, none], [a, b]], device=device)
    expected = (torch.tensor(a, device=device) + cells).permute(2, 0, 1)
    assert torch.equal(found[0], expected)
    # Alone, the first scale fills the grid of the last.
    coarse = tfx.pyramid_lookup(indices[:, :1], semantic, pixel, [1, 2])
    assert torch.equal(coarse[0, :, 1, 1], torch.tensor(a, device=device))
    assert coarse.shape == (1, 3, 2, 2)


def test_a_prefix_is_the_sum_up_to_there(device):
    books = make_books(60, 7, 4, 7, device=device)
    features = make_features(2, 11, 5, 5, 8, device=device)
    scales = [1, 2, 3, 5]
    indices, _ = tfx.pyramid_quantize(features, *books, scales)
    for count, length in ((1, 1), (2, 5), (3, 14), (4, 39)):
        short, quantized = tfx.pyramid_quantize(features, *books, scales[:count])
        assert torch.equal(short, indices[:, :length])
        found = tfx.pyramid_lookup(indices[:, :length], *books, scales)
        assert torch.equal(found, quantized)


def test_any_strides_and_integers(device):
    books = make_books(30, 5, 3, 9, device=device)
    indices = make_indices((3, 5), 30, 10, device)
    expected = tfx.pyramid_lookup(indices, *books, [1, 2])
    turned = indices.T.contiguous().T
    wide = torch.cat(books, dim=1)
    found = tfx.pyramid_lookup(turned.int(), wide[:, :5], wide[:, 5:], [1, 2])
    assert torch.equal(found, expected)


def test_an_entry_that_is_not_finite_spreads_as_the_definition_says(device):
    semantic, pixel = make_books(10, 5, 3, 11, device=device)
    semantic[4, 2] = torch.nan
    indices = torch.tensor([[4, 1, 2, 3, 5]], device=device)
    found = tfx.pyramid_lookup(indices, semantic, pixel, [1, 2])
    expected = reference.pyramid_lookup(indices, semantic, pixel, [1, 2])
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert found[:, :5].isnan().all()
    assert found[:, 5:].isfinite().all()


def test_float64_books_are_not_rounded(device):
    books = [book.double() for book in make_books(9, 4, 3, 12, device=device)]
    indices = make_indices((2, 5), 9, 13, device)
    found = tfx.pyramid_lookup(indices, *books, [1, 2])
    assert found.dtype == torch.float64
    single = tfx.pyramid_lookup(indices, *(book.float() for book in books), [1, 2])
    assert not torch.equal(found, single.double())
    torch.testing.assert_close(found, single.double(), rtol=0, atol=1e-6)


# --- gradients ---


@pytest.mark.parametrize("family", BOOK_FAMILIES)
@pytest.mark.parametrize("normalize", [True, False])
def test_gradient_is_that_of_the_reference(family, normalize, device):
    books = make_books(40, 8, 4, 14, family, device)
    indices = make_indices((3, 1 + 4 + 15), 40, 15, device)
    grad = make_features(3, 12, 3, 5, 16, device=device)
    args = ([1, 2, (3, 5)],)
    options = {"normalize": normalize}
    found = gradients(tfx.pyramid_lookup, indices, books, grad, *args, **options)
    wide = [book.double() for book in books]
    expected = gradients(
        reference.pyramid_lookup, indices, wide, grad.double(), *args, **options
    )
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        # Two float32 products per scale before the float64 sum.
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-6 * b.abs().max())


def test_a_backward_pass_under_autocast_changes_nothing(device):
    books = make_books(20, 8, 4, 17, device=device)
    indices = make_indices((2, 5), 20, 18, device)
    case = (indices, books, make_features(2, 12, 2, 2, 16, device=device), [1, 2])
    expected = gradients(tfx.pyramid_lookup, *case)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = gradients(tfx.pyramid_lookup, *case)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_gradient_has_the_dtype_of_the_book(device):
    semantic, pixel = make_books(20, 8, 4, 17, device=device)
    indices = make_indices((2, 5), 20, 18, device)
    grad = torch.ones(2, 12, 2, 2, device=device)
    books = (semantic.bfloat16(), pixel.half())
    found = gradients(tfx.pyramid_lookup, indices, books, grad, [1, 2])
    assert [g.dtype for g in found] == [torch.bfloat16, torch.float16]
    assert all(g.isfinite().all() and g.ne(0).any() for g in found)


@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck_in_float64(normalize, device):
    books = [book.double() for book in make_books(5, 3, 2, 19, device=device)]
    books = [book.requires_grad_() for book in books]
    indices = torch.tensor([[0, 3, 3, -1, 1]], device=device)
    assert torch.autograd.gradcheck(
        lambda *b: tfx.pyramid_lookup(
            indices, *b, [1, 2], size=(3, 2), normalize=normalize
        ),
        books,
    )


# --- torch ---


def test_opcheck(device):
    books = [book.requires_grad_() for book in make_books(8, 4, 3, 20, device=device)]
    indices = make_indices((2, 5), 8, 21, device)
    weights = _resample.weights(indices, [(1, 1), (2, 2)], 3, 4)
    torch.library.opcheck(
        room._pyramid_lookup, (indices, *books, *weights, [1, 1, 2, 2], True)
    )


def test_compile_gives_equal_results(device):
    compiled = torch.compile(tfx.pyramid_lookup, fullgraph=True, dynamic=True)
    books = make_books(10, 6, 2, 22, device=device)
    for batch in (2, 3):
        indices = make_indices((batch, 5), 10, batch, device)
        expected = tfx.pyramid_lookup(indices, *books, [1, 2])
        assert torch.equal(compiled(indices, *books, [1, 2]), expected)


def test_tracing_gives_equal_gradients(device):
    # The gradient is plain torch around an op; tracing it is what can fail.
    traced = torch.compile(
        tfx.pyramid_lookup, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    books = make_books(10, 6, 2, 22, device=device)
    for batch, scales in ((2, [1, 2]), (3, [1, 2]), (3, [1, 3])):
        length = sum(s * s for s in scales)
        indices = make_indices((batch, length), 10, batch, device)
        grad = torch.ones(batch, 8, scales[-1], scales[-1], device=device)
        found = gradients(traced, indices, books, grad, scales)
        eager = gradients(tfx.pyramid_lookup, indices, books, grad, scales)
        for a, b in zip(found, eager, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    ["msvq_tiny_b1", "msvq_tiny_b2", "msvq_b224", "msvq_l256", "msvq_xl_small_dims"],
)
def test_the_recorded_sums(golden, name):
    case = golden(name)
    weights = case.weights()
    books = [weights[f"quantize.embedding_{half}.weight"] for half in ("vqkd", "vqgan")]
    scales, indices = case.meta["scales"], case["out/indices"]
    found = tfx.pyramid_lookup(indices, *books, scales)
    torch.testing.assert_close(found, case["out/decode_code_quant"], rtol=0, atol=1e-5)
    short = tfx.pyramid_lookup(indices[:, : -(scales[-1] ** 2)], *books, scales)
    recorded = case["out/decode_code_quant_without_last_scale"]
    torch.testing.assert_close(short, recorded, rtol=0, atol=1e-5)


# --- errors ---


def test_bad_input_is_named():
    semantic, pixel = make_books(6, 4, 3, 23)
    indices = torch.zeros(2, 5, dtype=torch.int64)

    def refuses(error, words, *args, **options):
        with pytest.raises(error, match=words):
            tfx.pyramid_lookup(*args, **options)

    books = (semantic, pixel)
    allowed = r"L one of \[1, 5, 14\], got L = 4"
    refuses(ValueError, allowed, indices[:, :4], *books, [1, 2, 3])
    refuses(ValueError, "got L = 0", indices[:, :0], *books, [1, 2, 3])
    refuses(ValueError, r"indices must be \[B, L\], got \[5\]", indices[0], *books, [1])
    refuses(TypeError, "indices must be an int64", indices.float(), *books, [1, 2])
    refuses(ValueError, "K = 6 entries", indices, semantic, pixel[1:], [1, 2])
    refuses(ValueError, "at least one scale", indices, *books, [])
    refuses(
        ValueError, "scales must be a sequence of scales, got 2", indices, *books, 2
    )
    refuses(ValueError, "pairs, got 2.0 among them", indices, *books, [1, 2.0])
    refuses(
        ValueError, "size must be at least 1, got 0", indices, *books, [1, 2], size=0
    )
    refuses(
        ValueError,
        "pixel_book must be on the device of indices",
        indices,
        semantic,
        pixel.to("meta"),
        [1, 2],
    )
