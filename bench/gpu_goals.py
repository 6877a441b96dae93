"""The ops at the sizes that a GPU is held to, without the cost of launching them.

    python bench/gpu_goals.py RESULT.json [--device cpu --tiny]

Calls are recorded in a CUDA graph and timed by events around its replays, so that what
is read is the GPU's time alone. "hot" repeats one set of inputs, "cold" goes through as
many as a cache does not hold. `goal` and `floor` are microseconds on an H200: what was
set out to be reached, and what its bandwidth or tensor cores allow (79 % of the data
sheet's). Peers are torch's operators, as fast as they go (channels_last). Answers are
compared with the peer's before anything is timed. --tiny runs every case small, to see
that this file works; on a CPU there is no graph and no cold column.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import tokenflow_ext as tfx
from tokenflow_ext.testing import make_books

SCALES = [1, 2, 4, 6, 8, 10, 12, 14, 16]
CACHE = 128 << 20  # bytes that no GPU's second level holds
LAST = {"memory_format": torch.channels_last}


def searches(device, tiny):
    k = 130 if tiny else 32768
    books = make_books(k, 32, 8, seed=1, device=device)
    handle = tfx.prepare(*books)
    for n, goal, floor in ((16384, 90, 65), (817, 12, 3.3)):
        n = 40 if tiny else n

        def make(i, n=n):
            pair = torch.randn(n, 40, device=device).split([32, 8], dim=1)
            joined = torch.cat([F.normalize(p) for p in pair], 1)
            entries = torch.cat([F.normalize(b) for b in books], 1)
            return (
                lambda: tfx.quantize(*pair, *books, prepared=handle),
                lambda: (joined @ entries.T).argmax(1),
            )

        yield f"quantize N={n} K={k}", goal, floor, n * 160, make
    for batch, goal in ((1, 60), (64, None)):
        batch, side = (1, 4) if tiny else (batch, 16)
        scales = [1, 2, 4] if tiny else SCALES

        def pyramid(i, batch=batch, side=side, scales=scales):
            x = torch.randn(batch, 40, side, side, device=device)
            run = lambda: tfx.pyramid_quantize(x, *books, scales, prepared=handle)  # noqa: E731
            return (lambda: run()[0]), None

        name = f"pyramid_quantize batch {batch}, {len(scales)} scales"
        yield name, goal, None, batch * 40 * side * side * 8, pyramid


def lookups(device, tiny):
    k = 130 if tiny else 32768
    books = make_books(k, 32, 8, seed=1, device=device)

    def forward(i):
        indices = torch.randint(0, k, (n,), device=device)
        units = [F.normalize(b) for b in books]
        return (
            lambda: tfx.lookup(indices, *books),
            lambda: torch.cat([b[indices] for b in units], 1),
        )

    n = 40 if tiny else 65536
    yield f"lookup N={n}", 5.4, 2.6, n * 168, forward

    def backward(i):
        indices = torch.randint(0, k, (m,), device=device)
        grad = torch.randn(m, 40, device=device)
        op = torch.ops.tokenflow_ext.lookup_backward
        halves = grad.split([32, 8], dim=1)

        def peer():
            return [
                torch.ops.aten.embedding_dense_backward(h, indices, k, -1, False)
                for h in halves
            ]

        return lambda: op(grad, indices, *books, False)[0], lambda: peer()[0]

    m = 40 if tiny else 16384
    yield f"lookup_backward N={m}", 8, 3, k * 320, backward


def maps(device, tiny):
    kind = torch.bfloat16
    for batch, c, side, goal, floor in ((16, 256, 64, 150, 98), (1, 128, 128, 10, 6.1)):
        batch, c, side = (1, 16, 6) if tiny else (batch, c, side)

        def upsample(i, batch=batch, c=c, side=side):
            x = torch.randn(batch, c, side, side, device=device, dtype=kind).to(**LAST)
            w = (torch.randn(c, c, 3, 3, device=device) / (9 * c) ** 0.5).to(kind)
            bias = torch.randn(c, device=device, dtype=kind)
            last = w.to(**LAST)
            return (
                lambda: tfx.upsample_conv(x, w, bias),
                lambda: F.conv2d(F.interpolate(x, scale_factor=2.0), last, bias, 1, 1),
            )

        name = f"upsample_conv bf16 {batch}×{c}×{side}²"
        yield name, goal, floor, batch * c * side * side * 10, upsample
    c, side = (32, 6) if tiny else (128, 256)
    for layout in (torch.contiguous_format, torch.channels_last):

        def norm(i, layout=layout):
            x = torch.randn(1, c, side, side, device=device, dtype=kind)
            x = x.to(memory_format=layout)
            weight, bias = torch.randn(2, c, device=device, dtype=kind)
            return (
                lambda: tfx.group_norm_silu(x, weight, bias),
                lambda: F.silu(F.group_norm(x, 32, weight, bias, 1e-6)),
            )

        name = f"group_norm_silu bf16 {c}×{side}² {str(layout).rpartition('.')[2]}"
        yield name, 11, 7.8, c * side * side * 4, norm


def agree(found, right):
    if found.dtype == torch.int64:  # float32 products may flip a near tie
        return (found != right).float().mean().item() < 1e-3
    error = (found.float() - right.float()).abs().max()
    return error.item() <= 2e-2 * (1 + right.float().abs().max().item())


def microseconds(calls, device):
    """Median time of one call; `calls` take turns."""
    if device.type != "cuda":
        samples = []
        for call in calls * 3:
            start = time.perf_counter()
            call()
            samples.append((time.perf_counter() - start) * 1e6)
        return statistics.median(samples)
    each = calls * max(1, 24 // len(calls))
    with torch.cuda.stream(torch.cuda.Stream()):
        for call in calls * 2:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in each:
            call()
    samples = []
    for _ in range(60):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) * 1e3 / len(each))
    return statistics.median(samples[10:])


def measure(name, goal, floor, size, make, device):
    sets = min(16, CACHE // size + 1) if device.type == "cuda" else 1
    made = [make(i) for i in range(sets)]
    ours, peers = [m[0] for m in made], [m[1] for m in made if m[1]]
    row = {"case": name, "goal_us": goal, "floor_us": floor}
    row["agrees"] = agree(ours[0](), peers[0]()) if peers else None
    for title, some in (("ours", ours), ("peer", peers)):
        if some:
            row[f"{title}_hot_us"] = microseconds(some[:1], device)
        if some and device.type == "cuda":
            row[f"{title}_cold_us"] = microseconds(some, device)
    return row


def ceilings(device, tiny):
    """Bytes a second of a copy, and operations a second of a bfloat16 product."""
    count, side = (1 << 10, 64) if tiny else (1 << 31, 8192)
    a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)
    source = torch.ones(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = microseconds([lambda: target.copy_(source)], device)
    product = microseconds([lambda: a @ b], device)
    return {
        "copy_gb_s": 2e-3 * count / copy,
        "bf16_tflop_s": 2e-6 * side**3 / product,
    }


def cell(value):
    return "–" if value is None else f"{value:.1f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("--device", default="cuda", type=torch.device)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    device, tiny = options.device, options.tiny
    torch.manual_seed(0)
    rows = []
    head = ("ours hot", "ours cold", "peer hot", "peer cold", "goal", "floor")
    keys = ("ours_hot_us", "ours_cold_us", "peer_hot_us", "peer_cold_us", "goal_us")
    print(f"| µs | {' | '.join(head)} | answer |\n|{' --- |' * 8}")
    with torch.no_grad():
        limits = ceilings(device, tiny)
        for part in (searches, lookups, maps):
            for case in part(device, tiny):
                row = measure(*case, device)
                rows.append(row)
                cells = [cell(row.get(key)) for key in (*keys, "floor_us")]
                said = {True: "agrees", False: "WRONG", None: "–"}[row["agrees"]]
                print(f"| {row['case']} | {' | '.join(cells)} | {said} |", flush=True)
    print("\n" + ", ".join(f"{name} {value:.0f}" for name, value in limits.items()))
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    facts = {"device": name, "torch": torch.__version__, "ceilings": limits}
    options.result.write_text(json.dumps({**facts, "cases": rows}, indent=1) + "\n")
    return 1 if any(row["agrees"] is False for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
