"""The pyramid beside the published loop, shortened. `make bench` runs this file.

The peer pools with torch, compares with one distance matrix of the joined rows at every
scale (less work than the two that were published), and enlarges with torch's bicubic.
"""

import pytest
import torch
import torch.nn.functional as F

import tokenflow_ext as tfx
from tokenflow_ext.testing import make_books, make_features

K, DS, DP = 32768, 32, 8
SCALES = [1, 2, 4, 6, 8, 10, 12, 14, 16]


def unit(semantic, pixel):
    return torch.cat([F.normalize(semantic, dim=-1), F.normalize(pixel, dim=-1)], -1)


def published(features, books):
    rest, total, indices = features, torch.zeros_like(features), []
    rows = unit(*books)
    for side in SCALES:
        cells = F.interpolate(rest, size=(side, side), mode="area").permute(0, 2, 3, 1)
        query = unit(cells[..., :DS], cells[..., DS:]).flatten(0, 2)
        distance = query.square().sum(1, True) + rows.square().sum(1)
        found = (distance - 2 * query @ rows.T).argmin(1)
        entries = rows[found].unflatten(0, cells.shape[:3]).permute(0, 3, 1, 2)
        large = F.interpolate(entries, size=rest.shape[2:], mode="bicubic")
        total, rest = total + large, rest - large
        indices.append(found.unflatten(0, (len(features), -1)))
    return torch.cat(indices, dim=1), total


def published_lookup(indices, books):
    total, rows = 0, unit(*books)
    parts = indices.split([side * side for side in SCALES], dim=1)
    for side, part in zip(SCALES, parts, strict=True):
        entries = rows[part].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        total = total + F.interpolate(entries, size=SCALES[-1], mode="bicubic")
    return total


@pytest.fixture
def case(device, request):
    features = make_features(request.param, DS + DP, 16, 16, 1, device=device)
    return features, make_books(K, DS, DP, 0, device=device)


@pytest.mark.parametrize("case", [1, 8], indirect=True)
@pytest.mark.parametrize("method", ["ours", "published"])
def bench_pyramid_quantize(timed, method, case, device):
    features, books = case
    timed.benchmark.group = f"pyramid_quantize B={len(features)} K={K} {device.type}"
    handle = tfx.prepare(*books)
    methods = {
        "ours": lambda: tfx.pyramid_quantize(features, *books, SCALES, prepared=handle),
        "published": lambda: published(features, books),
    }
    found = timed(methods[method], device)
    # A near-tie flips in float32, and the tokens after it follow.
    assert (found[0] == methods["ours"]()[0]).float().mean() > 0.9


@pytest.mark.parametrize("case", [1, 8], indirect=True)
@pytest.mark.parametrize("method", ["ours", "published"])
def bench_pyramid_lookup(timed, method, case, device):
    features, books = case
    timed.benchmark.group = f"pyramid_lookup B={len(features)} K={K} {device.type}"
    indices, quantized = tfx.pyramid_quantize(features, *books, SCALES)
    methods = {
        "ours": lambda: tfx.pyramid_lookup(indices, *books, SCALES),
        "published": lambda: published_lookup(indices, books),
    }
    found = timed(methods[method], device)
    torch.testing.assert_close(found, quantized, rtol=0, atol=1e-5)
