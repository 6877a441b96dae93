"""pyramid_quantize equals its definition bit for bit, scale after scale."""

import pytest
import torch
import torch.nn.functional as F

import tokenflow_ext as tfx
from tokenflow_ext import reference
from tokenflow_ext.ops import _resample
from tokenflow_ext.ops import pyramid as room
from tokenflow_ext.testing import BOOK_FAMILIES, make_books, make_features

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SCHEDULES = [  # grid, scales
    ((5, 5), [1, 2, 3, 5]),
    ((4, 7), [(1, 2), (2, 3), (4, 7)]),
    ((3, 3), [1, 5, (2, 4)]),  # larger than the grid; the last is not the grid
    ((1, 1), [1]),
    ((6, 4), [(6, 4)]),
]


def make_case(grid=(5, 5), batch=2, k=120, ds=12, dp=5, *, seed=0, family="random"):
    books = make_books(k, ds, dp, seed, family)
    return [make_features(batch, ds + dp, *grid, seed + 1), *books]


def on(device, case):
    return [t.to(device) for t in case]


def assert_equal(found, expected):
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert found[1].dtype == expected[1].dtype


@pytest.mark.parametrize(("grid", "scales"), SCHEDULES)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_pyramid_quantize_is_the_reference_bit_for_bit(
    grid, scales, batch, device, isa
):
    case = on(device, make_case(grid, batch))
    found = tfx.pyramid_quantize(*case, scales)
    assert_equal(found, reference.pyramid_quantize(*case, scales))
    assert found[1].shape == case[0].shape
    assert found[1].dtype == torch.float32


@pytest.mark.parametrize("family", BOOK_FAMILIES)
@pytest.mark.parametrize(
    ("normalize", "weight"), [(True, 1.0), (True, 0.3), (False, 1.0), (False, 2.5)]
)
def test_adversarial_families_keep_every_bit(
    family, normalize, weight, device, isa, threads
):
    case = on(device, make_case(seed=3, family=family))
    case[0][1, :, :2] = 0.0  # zero rows at the coarse scales and the fine ones
    options = {"normalize": normalize, "pixel_weight": weight}
    scales = [1, 2, 3, 5]
    threads(2)
    expected = reference.pyramid_quantize(*case, scales, **options)
    assert_equal(tfx.pyramid_quantize(*case, scales, **options), expected)
    threads(1)
    assert_equal(tfx.pyramid_quantize(*case, scales, **options), expected)


@pytest.mark.parametrize("family", BOOK_FAMILIES)
@pytest.mark.parametrize("normalize", [True, False])
def test_the_fallback_is_the_reference_bit_for_bit(family, normalize, device):
    features, *books = on(device, make_case((4, 7), seed=5, family=family))
    pairs = [(1, 2), (2, 3), (4, 7)]
    book = tfx.prepare(*books, normalize=normalize)
    found = room._quantize_fallback(
        features,
        book.rows,
        book.squares,
        book.limits,
        book.packed,
        *_resample.weights(features, pairs, 4, 7),
        [side for pair in pairs for side in pair],
        12,
        0.7,
        normalize,
    )
    expected = reference.pyramid_quantize(
        features, *books, pairs, pixel_weight=0.7, normalize=normalize
    )
    assert_equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_half_precision_is_read_as_float32(dtype, device):
    features, *books = on(device, make_case())
    features = features.to(dtype)
    books = [book.to(dtype) for book in books]
    found = tfx.pyramid_quantize(features, *books, [1, 2, 5])
    single = [t.float() for t in (features, *books)]
    assert_equal(found, tfx.pyramid_quantize(*single, [1, 2, 5]))
    assert_equal(found, reference.pyramid_quantize(features, *books, [1, 2, 5]))


def test_the_place_in_the_batch_changes_nothing(device):
    features, *books = on(device, make_case(batch=7))
    indices, quantized = tfx.pyramid_quantize(features, *books, [1, 2, 3, 5])
    order = torch.tensor([4, 0, 6, 2, 1, 5, 3], device=device)
    mixed = tfx.pyramid_quantize(features[order], *books, [1, 2, 3, 5])
    assert_equal(mixed, (indices[order], quantized[order]))
    for b in (0, 6):
        one = tfx.pyramid_quantize(features[b : b + 1], *books, [1, 2, 3, 5])
        assert_equal(one, (indices[b : b + 1], quantized[b : b + 1]))


def test_a_case_worked_by_hand(device):
    # Mean 2 takes entry 0; the rest is −1, −1, −1, 3: entries 1, 1, 1, 2.
    features = torch.tensor([[[[1.0, 1.0], [1.0, 5.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    semantic = torch.tensor([[2.0], [-1.0], [3.0]])
    pixel = torch.zeros(3, 1)
    case = on(device, [features, semantic, pixel])
    indices, quantized = tfx.pyramid_quantize(*case, [1, 2], normalize=False)
    assert indices.tolist() == [[0, 1, 1, 1, 2]]
    assert torch.equal(quantized, case[0])


def test_ties_go_to_the_smallest_index_at_every_scale(device):
    features, semantic, pixel = on(device, make_case(k=9))
    twice = [torch.cat([book, book]) for book in (semantic, pixel)]
    indices, _ = tfx.pyramid_quantize(features, *twice, [1, 2, 3, 5])
    assert indices.max() < 9
    assert torch.equal(
        indices, tfx.pyramid_quantize(features, semantic, pixel, [1, 2, 3, 5])[0]
    )


def test_at_the_full_grid_pooling_and_enlargement_are_identities(device):
    features, *books = on(device, make_case((4, 6)))
    indices, quantized = tfx.pyramid_quantize(features, *books, [(4, 6)])
    cells = features.permute(0, 2, 3, 1)
    direct = tfx.quantize(cells[..., :12], cells[..., 12:], *books)
    assert torch.equal(indices, direct.flatten(1))
    assert torch.equal(quantized.permute(0, 2, 3, 1), tfx.lookup(direct, *books))


def test_any_strides(device):
    features, *books = on(device, make_case((4, 7)))
    expected = tfx.pyramid_quantize(features, *books, [1, 3])
    last = features.contiguous(memory_format=torch.channels_last)
    assert_equal(tfx.pyramid_quantize(last, *books, [1, 3]), expected)
    wide = torch.stack([features, features], dim=-1).flatten(3)[..., ::2]
    assert_equal(tfx.pyramid_quantize(wide, *books, [1, 3]), expected)
    turned = features.transpose(2, 3).contiguous().transpose(2, 3)
    assert_equal(tfx.pyramid_quantize(turned, *books, [1, 3]), expected)


def test_a_cell_that_is_not_finite_adds_zeros_and_the_later_scales_go_on(device, isa):
    features, *books = on(device, make_case(batch=3))
    features[1, 2, 0, 0] = torch.nan
    features[2, 15, 4, 4] = torch.inf
    indices, quantized = tfx.pyramid_quantize(features, *books, [1, 2, 5])
    assert_equal(
        (indices, quantized), reference.pyramid_quantize(features, *books, [1, 2, 5])
    )
    # One cell at each scale sees it: token 0, then a corner of 2×2 and of 5×5.
    assert (indices[0] >= 0).all()
    assert (indices[1] < 0).nonzero().flatten().tolist() == [0, 1, 5]
    assert (indices[2] < 0).nonzero().flatten().tolist() == [0, 4, 29]
    assert quantized.isfinite().all()
    assert quantized[1:].ne(0).any()


def test_an_entry_that_is_not_finite_never_wins(device, isa):
    features, semantic, pixel = on(device, make_case(k=20))
    semantic[::3, 1], pixel[1::3, 0] = torch.nan, -torch.inf
    found = tfx.pyramid_quantize(features, semantic, pixel, [1, 2, 5])
    assert_equal(
        found, reference.pyramid_quantize(features, semantic, pixel, [1, 2, 5])
    )
    assert (found[0] % 3 == 2).all()
    none = tfx.pyramid_quantize(features, semantic * torch.nan, pixel, [1, 2])
    assert none[0].eq(-1).all()
    assert none[1].eq(0).all()


def test_prepared_books_change_nothing(device):
    features, *books = on(device, make_case())
    prepared = tfx.prepare(*books)
    found = tfx.pyramid_quantize(features, *books, [1, 3], prepared=prepared)
    assert_equal(found, tfx.pyramid_quantize(features, *books, [1, 3]))


def test_float64_is_not_rounded(device):
    features, *books = on(device, make_case())
    wide = [features.double() + 1e-12, *(book.double() for book in books)]
    indices, quantized = tfx.pyramid_quantize(*wide, [1, 2, 5])
    assert quantized.dtype == torch.float64
    assert not torch.equal(quantized, quantized.float().double())
    single = tfx.pyramid_quantize(features, *books, [1, 2, 5])
    assert torch.equal(indices, single[0])
    torch.testing.assert_close(quantized, single[1].double(), rtol=0, atol=2e-6)
    # quantized has the dtype of the books, so that the indices give it back.
    assert tfx.pyramid_quantize(wide[0], *books, [1])[1].dtype == torch.float32


def test_the_result_has_no_gradient(device):
    case = [t.requires_grad_() for t in on(device, make_case())]
    _, quantized = tfx.pyramid_quantize(*case, [1, 2])
    assert not quantized.requires_grad
    _, quantized = tfx.pyramid_quantize(*(t.double() for t in case), [1, 2])
    assert not quantized.requires_grad


def test_autocast_changes_nothing(device):
    case = on(device, make_case())
    plain = tfx.pyramid_quantize(*case, [1, 2, 5])
    with torch.autocast(device.type, dtype=torch.bfloat16):
        assert_equal(tfx.pyramid_quantize(*case, [1, 2, 5]), plain)


def test_memory_stays_linear_in_cells_and_entries():
    # N×K scores of the last scale would be 512 MiB here.
    import subprocess
    import sys

    code = (
        "import torch, resource, tokenflow_ext as tfx\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "features = torch.randn(16, 40, 16, 16)\n"
        "books = torch.randn(32768, 32), torch.randn(32768, 8)\n"
        "tfx.pyramid_quantize(features[:1], *books, [1, 2])\n"
        "before = peak()\n"
        "tfx.pyramid_quantize(features, *books, [1, 2, 16])\n"
        "print(peak() - before)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert int(out.stdout) < 32 * 1024, out.stderr


# --- pooling, enlargement and their weights ---


@pytest.mark.parametrize("out", [1, 2, 3, 7, 16, 27])
@pytest.mark.parametrize("cells", [1, 2, 5, 16, 27])
def test_bicubic_weights_sum_to_one(cells, out):
    table = torch.tensor(_resample._axis_weights(cells, out), dtype=torch.float64)
    ones = torch.ones(out, dtype=torch.float64)
    # The outer polynomial cancels terms of about 8.
    torch.testing.assert_close(table.sum(dim=1), ones, rtol=0, atol=4e-15)
    if cells == out:
        identity = torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64)
        assert torch.equal(table, identity.expand(out, 4))


@pytest.mark.parametrize(("grid", "cells"), [((16, 16), (6, 6)), ((5, 9), (7, 4))])
def test_area_pool_is_adaptive_pooling(grid, cells, device):
    x = make_features(2, 3, *grid, 7, device=device)
    expected = F.adaptive_avg_pool2d(x.double(), cells).float()
    torch.testing.assert_close(
        _resample.area_pool(x, *cells), expected, rtol=1.2e-7, atol=1e-8
    )


@pytest.mark.parametrize("name", ["interp_ops_0", "interp_ops_1"])
def test_the_recorded_resampling(golden, name):
    case = golden(name)
    side = case.meta["S"]
    for n in case.meta["sizes"]:
        pooled = _resample.area_pool(case["in/x"], n, n)
        torch.testing.assert_close(pooled, case[f"out/area_{n}"], rtol=0, atol=5e-7)
        weights = _resample.weights(pooled, [(n, n)], side, side)
        large = _resample.enlarge(case[f"in/y_{n}"], *(w[0] for w in weights))
        # Recorded with float32 positions and weights; ours are exact.
        torch.testing.assert_close(
            large, case[f"out/bicubic_{n}_to_{side}"], rtol=0, atol=4e-6
        )


def test_pooling_and_enlargement_are_differentiable(device):
    x = make_features(1, 2, 4, 5, 8, torch.float64, device).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: _resample.area_pool(x, 3, 2), x)
    weights = [w[0] for w in _resample.weights(x, [(4, 5)], 6, 7)]
    assert torch.autograd.gradcheck(lambda x: _resample.enlarge(x, *weights), x)


# --- torch ---


def test_opcheck(device):
    features, *books = on(device, make_case())
    book = tfx.prepare(*books)
    weights = _resample.weights(features, [(1, 1), (2, 3)], 5, 5)
    torch.library.opcheck(_resample._pyramid_weights, (features, [1, 1, 2, 3], 5, 5))
    torch.library.opcheck(
        room._pyramid_quantize,
        (
            features,
            book.rows,
            book.squares,
            book.limits,
            book.packed,
            *weights,
            [1, 1, 2, 3],
            12,
            1.0,
            True,
        ),
    )


def test_compile_gives_equal_results(device):
    compiled = torch.compile(tfx.pyramid_quantize, fullgraph=True, dynamic=True)
    for batch, grid in ((2, (5, 5)), (3, (5, 5)), (3, (6, 7))):
        case = on(device, make_case(grid, batch))
        expected = tfx.pyramid_quantize(*case, [1, 2, (3, 4)])
        assert_equal(compiled(*case, [1, 2, (3, 4)]), expected)


@pytest.mark.parametrize(
    "name",
    ["msvq_tiny_b1", "msvq_tiny_b2", "msvq_b224", "msvq_l256", "msvq_xl_small_dims"],
)
def test_the_recorded_pyramids(golden, name):
    case = golden(name)
    weights = case.weights()
    books = [weights[f"quantize.embedding_{half}.weight"] for half in ("vqkd", "vqgan")]
    scales = case.meta["scales"]
    indices, quantized = tfx.pyramid_quantize(case["in/features"], *books, scales)
    assert case["out/margin"].min() > 1e-5  # so every token must be the recorded one
    assert torch.equal(indices, case["out/indices"].long())
    torch.testing.assert_close(quantized, case["out/final_quantize"], rtol=0, atol=1e-5)


# --- errors ---


def test_check_counts_the_cells_that_are_not_finite():
    features, *books = make_case()
    tfx.pyramid_quantize(features, *books, [1, 2], check=True)
    features[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="pyramid_quantize: features .* got 2 of 10"):
        tfx.pyramid_quantize(features, *books, [1, 2], check=True)


def test_bad_input_is_named():
    features, semantic, pixel = make_case()

    def refuses(error, words, *args, **options):
        with pytest.raises(error, match=words):
            tfx.pyramid_quantize(*args, **options)

    books = (semantic, pixel)
    wanted = r"features must be \[B, 17, h, w\]"
    refuses(ValueError, wanted + r".*\[17, 5, 5\]", features[0], *books, [1])
    refuses(ValueError, wanted + r".*\[2, 16, 5, 5\]", features[:, 1:], *books, [1])
    refuses(ValueError, wanted + r".*\[2, 17, 0, 5\]", features[:, :, :0], *books, [1])
    refuses(TypeError, "features must be float32.*int64", features.long(), *books, [1])
    refuses(ValueError, "K = 120 entries", features, semantic, pixel[1:], [1])
    refuses(
        ValueError,
        "semantic_book must be on the device of features",
        features,
        semantic.to("meta"),
        pixel,
        [1],
    )
    refuses(ValueError, "at least one scale, got none", features, *books, [])
    refuses(ValueError, "scales must be at least 1, got 0", features, *books, [1, 0])
    refuses(
        ValueError, r"scales must be side.*\(1, 2, 3\)", features, *books, [(1, 2, 3)]
    )
    refuses(
        ValueError, r"scales must be side.*\(1.5, 2\)", features, *books, [(1.5, 2)]
    )
    refuses(ValueError, "pixel_weight must be", features, *books, [1], pixel_weight=-1)
    other = tfx.prepare(*books, normalize=False)
    refuses(ValueError, "prepared must fit", features, *books, [1], prepared=other)
