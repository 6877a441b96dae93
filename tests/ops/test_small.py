"""Every op once, small and awkward: what a sanitizer can afford to run.

Sizes are no multiple of a tile, entries tie, books hold rows that are not finite, and
tensors have strides. bench/gpu_check.sh runs these under each sanitizer tool.
"""

import pytest
import torch

import tokenflow_ext as tfx
from tokenflow_ext.testing import make_books, make_features, make_indices, make_vectors

pytestmark = pytest.mark.sanitize
K, DS, DP = 67, 5, 3
SCALES = [1, 2, 3]


@pytest.fixture
def books(device):
    semantic, pixel = make_books(K, DS, DP, seed=1, family="duplicates")
    semantic[7] = torch.nan
    return semantic.to(device), pixel.to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("normalize", [True, False])
def test_quantize(books, dtype, normalize, device):
    pairs = make_vectors(33, books, seed=2, dtype=dtype)
    options = {"pixel_weight": 0.5, "normalize": normalize}
    found = tfx.quantize(*pairs, *books, **options)
    assert torch.equal(found, tfx.reference.quantize(*pairs, *books, **options))


def test_nearest(books, device):
    vectors = torch.randn(2, 17, DS, generator=torch.Generator().manual_seed(3))
    vectors = vectors.to(device).transpose(0, 1)
    found = tfx.nearest(vectors, books[0])
    assert torch.equal(found, tfx.reference.nearest(vectors, books[0]))


def test_lookup_and_its_gradient(books, device):
    indices = make_indices((3, 11), K, seed=4, device=device)
    results = []
    for op in (tfx.lookup, tfx.reference.lookup):
        leaves = [book.nan_to_num().requires_grad_() for book in books]
        out = op(indices, *leaves)
        out.square().sum().backward()
        results.append((out, *(leaf.grad for leaf in leaves)))
    (out, *gradients), (right, *right_gradients) = results
    assert torch.equal(out, right)
    for found, wanted in zip(gradients, right_gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_pyramid(books, device):
    features = make_features(2, DS + DP, 3, 3, seed=5, device=device)
    indices, quantized = tfx.pyramid_quantize(features, *books, SCALES)
    right = tfx.reference.pyramid_quantize(features, *books, SCALES)
    assert torch.equal(indices, right[0])
    assert torch.equal(quantized, right[1])
    assert torch.equal(quantized, tfx.pyramid_lookup(indices, *books, SCALES))


def test_code_histogram(device):
    indices = make_indices((5, 13), K, seed=6, device=device)
    found = tfx.code_histogram(indices, K - 3)
    assert torch.equal(found, tfx.reference.code_histogram(indices, K - 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_upsample_conv(dtype, device):
    draw = torch.Generator().manual_seed(7)
    x, weight, bias = (
        torch.randn(*s, generator=draw).to(device, dtype)
        for s in ((2, 5, 3, 7), (9, 5, 3, 3), (9,))
    )
    right = tfx.reference.upsample_conv(x.double(), weight.double(), bias.double())
    found = tfx.upsample_conv(x, weight, bias)
    error = 1e-5 if dtype == torch.float32 else 4e-2  # the rounding of the result
    torch.testing.assert_close(found.double(), right, rtol=error, atol=error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_upsample_conv_of_whole_pieces(dtype, device):
    draw = torch.Generator().manual_seed(9)
    x, weight = (
        torch.randn(*s, generator=draw).to(device, dtype)
        for s in ((1, 40, 5, 18), (8, 40, 3, 3))
    )
    x = x.contiguous(memory_format=torch.channels_last)
    right = tfx.reference.upsample_conv(x.double(), weight.double())
    error = 1e-5 if dtype == torch.float32 else 2e-2  # the rounding of the result
    found = tfx.upsample_conv(x, weight)
    torch.testing.assert_close(
        found.double(), right, rtol=error, atol=error * right.abs().max().item()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_group_norm_silu(dtype, device):
    draw = torch.Generator().manual_seed(8)
    x, weight, bias = (
        torch.randn(*s, generator=draw).to(device, dtype)
        for s in ((2, 6, 5, 7), (6,), (6,))
    )
    wide = x.double(), weight.double(), bias.double()
    right = tfx.reference.group_norm_silu(*wide, num_groups=3)
    found = tfx.group_norm_silu(x, weight, bias, num_groups=3)
    error = 1e-5 if dtype == torch.float32 else 4e-2  # the rounding of the result
    torch.testing.assert_close(found.double(), right, rtol=error, atol=error)


@pytest.mark.parametrize("normed", [True, False])
def test_conv3x3(normed, device):
    draw = torch.Generator().manual_seed(9)
    x, weight, bias, residual = (
        torch.randn(*s, generator=draw).to(device)
        for s in ((2, 36, 5, 7), (33, 36, 3, 3), (33,), (2, 33, 5, 7))
    )
    norm = {"norm_weight": x[0, :, 0, 0], "norm_bias": x[0, :, 0, 1]} if normed else {}
    wide = {name: t.double() for name, t in norm.items()}
    maps = [t.double() for t in (x, weight, bias)]
    right = tfx.reference.conv3x3(
        *maps, **wide, num_groups=3, residual=residual.double()
    )
    found = tfx.conv3x3(x, weight, bias, **norm, num_groups=3, residual=residual)
    torch.testing.assert_close(found.double(), right, rtol=1e-4, atol=1e-4)
