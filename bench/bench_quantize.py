"""quantize beside what people would write instead. `make bench` runs this file.

Peers: the published formulation (both distance matrices), one matrix product and
argmax, and the same in chunks that fit the cache.
"""

import pytest
import torch
import torch.nn.functional as F

import tokenflow_ext as tfx

K, DS, DP = 32768, 32, 8


def published(semantic, pixel, books):
    total = 0
    for z, book in ((semantic, books[0]), (pixel, books[1])):
        z, e = F.normalize(z, dim=-1), F.normalize(book, dim=-1)
        total = total + z.square().sum(1, True) + e.square().sum(1) - 2 * (z @ e.T)
    return total.argmin(1)


def unit_rows(semantic, pixel, books):
    query = torch.cat([F.normalize(semantic, dim=-1), F.normalize(pixel, dim=-1)], 1)
    rows = torch.cat([F.normalize(book, dim=-1) for book in books], 1)
    return query, rows


def product(query, rows):
    return (query @ rows.T).argmax(1)


def product_in_chunks(query, rows, step=2048):
    best = torch.full((len(query),), -torch.inf, device=query.device)
    index = torch.zeros(len(query), dtype=torch.int64, device=query.device)
    for start in range(0, len(rows), step):
        top, where = (query @ rows[start : start + step].T).max(1)
        better = top > best
        best = torch.where(better, top, best)
        index = torch.where(better, where + start, index)
    return index


@pytest.fixture
def case(device, request):
    g = torch.Generator().manual_seed(0)
    n = request.param
    tensors = [
        torch.randn(*s, generator=g) for s in ((n, DS), (n, DP), (K, DS), (K, DP))
    ]
    semantic, pixel, *books = [t.to(device) for t in tensors]
    return semantic, pixel, books


@pytest.mark.parametrize("case", [256, 817, 2720], indirect=True)
@pytest.mark.parametrize("method", ["ours", "published", "product", "chunks"])
def bench_quantize(timed, method, case, device):
    semantic, pixel, books = case
    timed.benchmark.group = f"quantize N={len(semantic)} K={K} {device.type}"
    handle, rows = tfx.prepare(*books), unit_rows(semantic, pixel, books)
    methods = {
        "ours": lambda: tfx.quantize(semantic, pixel, *books, prepared=handle),
        "published": lambda: published(semantic, pixel, books),
        "product": lambda: product(*rows),
        "chunks": lambda: product_in_chunks(*rows),
    }
    found = timed(methods[method], device)
    assert (found == methods["ours"]()).float().mean() > 0.99  # float32 near-ties
