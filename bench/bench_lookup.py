"""lookup, its gradient and code_histogram beside torch. `make bench` runs this file.

The peer is the published form: both books normalised whole at every use, then read.
"""

import pytest
import torch
import torch.nn.functional as F

import tokenflow_ext as tfx
from tokenflow_ext.testing import make_books, make_indices

K, DS, DP = 32768, 32, 8


def published(indices, semantic_book, pixel_book):
    halves = [F.normalize(book, dim=-1) for book in (semantic_book, pixel_book)]
    return torch.cat(halves, dim=-1)[indices]


METHODS = {"ours": tfx.lookup, "published": published}


@pytest.mark.parametrize("n", [817, 8170])
@pytest.mark.parametrize("method", METHODS)
def bench_lookup(timed, method, n, device):
    timed.benchmark.group = f"lookup N={n} K={K} {device.type}"
    books = make_books(K, DS, DP, 0, device=device)
    indices = make_indices((n,), K, 1, device).clamp(0, K - 1)
    found = timed(lambda: METHODS[method](indices, *books), device)
    torch.testing.assert_close(found, tfx.lookup(indices, *books), rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [817, 8170])
@pytest.mark.parametrize("method", METHODS)
def bench_lookup_gradient(timed, method, n, device):
    timed.benchmark.group = f"lookup forward and gradient N={n} K={K} {device.type}"
    books = [b.requires_grad_() for b in make_books(K, DS, DP, 0, device=device)]
    indices = make_indices((n,), K, 1, device).clamp(0, K - 1)
    draw = torch.Generator().manual_seed(2)
    grad = torch.randn(n, DS + DP, generator=draw).to(device)

    def both(function):
        return torch.autograd.grad(function(indices, *books), books, grad)

    found = timed(lambda: both(METHODS[method]), device)
    for a, b in zip(found, both(tfx.lookup), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("n", [8170, 1 << 20])
@pytest.mark.parametrize("method", ["ours", "bincount"])
def bench_code_histogram(timed, method, n, device):
    timed.benchmark.group = f"code_histogram N={n} K={K} {device.type}"
    indices = make_indices((n,), K, 1, device).clamp(0, K - 1)
    methods = {
        "ours": lambda: tfx.code_histogram(indices, K),
        "bincount": lambda: torch.bincount(indices, minlength=K),
    }
    assert torch.equal(timed(methods[method], device), methods["ours"]())
