"""What holds for every op alike: one small call each, on every device.

On a GPU that includes the rules of CUDA: equal to the CPU, on the caller's stream,
recorded by a graph, never synchronising.
"""

import pytest
import torch

import tokenflow_ext as tfx
from tokenflow_ext.testing import make_books

SCALES = [1, 2, 3, 5]


def calls(device):
    """Every op by name, with inputs on `device`: exact ones and close ones."""
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=g).to(device)

    books = make_books(130, 32, 8, seed=1, device=device)
    vectors = draw(3, 25, 40)
    semantic, pixel = vectors[..., :32], vectors[..., 32:]
    features = draw(2, 40, 5, 5)
    indices = torch.randint(-1, 131, (2, 39), generator=g).to(device)
    image, weight, bias = draw(2, 32, 4, 6), draw(32, 32, 3, 3), draw(32)
    handle = tfx.prepare(*books)
    exact = {
        "prepare": lambda: tfx.prepare(*books).rows,
        "quantize": lambda: tfx.quantize(semantic, pixel, *books, prepared=handle),
        "nearest": lambda: tfx.nearest(vectors, torch.cat(books, 1)),
        "lookup": lambda: tfx.lookup(indices, *books),
        "code_histogram": lambda: tfx.code_histogram(indices, 130),
        "pyramid_quantize": lambda: torch.cat(
            [
                t.double().flatten()
                for t in tfx.pyramid_quantize(features, *books, SCALES)
            ]
        ),
        "pyramid_lookup": lambda: tfx.pyramid_lookup(indices, *books, SCALES),
    }
    close = {
        "conv3x3": lambda: tfx.conv3x3(image, weight, bias, residual=image),
        "upsample_conv": lambda: tfx.upsample_conv(image, weight, bias),
        "group_norm_silu": lambda: tfx.group_norm_silu(image, bias, bias, num_groups=8),
    }
    return exact, close


NAMES = [name for part in calls("cpu") for name in part]


def call(name, device):
    exact, close = calls(device)
    return (exact | close)[name]


def test_no_public_op_is_left_out():
    functions = {
        name
        for name in tfx.__all__
        if name.islower() and callable(getattr(tfx, name)) and name != "info"
    }
    assert functions - set(NAMES) == {"accelerate_vq", "fuse_decoder"}


@pytest.mark.parametrize("name", NAMES)
def test_a_small_call_is_finite_and_repeats_itself(name, device):
    run = call(name, device)
    first = run()
    assert first.numel() and bool(first.isfinite().all())
    assert torch.equal(run(), first)


@pytest.mark.sanitize
def test_a_small_backward_pass(device):
    books = [b.requires_grad_() for b in make_books(50, 32, 8, seed=1, device=device)]
    indices = torch.tensor([[3, 3, 49, -1, 0]], device=device)
    tfx.lookup(indices, *books).square().sum().backward()
    image = torch.randn(1, 32, 3, 3, device=device, requires_grad=True)
    up, norm = tfx.nn.UpsampleConv(32), tfx.nn.GroupNormSiLU(32)
    up.to(device)(norm.to(device)(image)).sum().backward()
    for leaf in (*books, image, up.weight, norm.weight):
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_the_meta_device_gives_shapes(name):
    assert call(name, "meta")().shape == call(name, "cpu")().shape


def test_training_on_the_meta_device_gives_shapes():
    module = tfx.nn.PyramidQuantizer(9, 4, 2, scales=[1, 2], entropy_ratio=0.1)
    module.to("meta")
    features = torch.empty(1, 6, 2, 2, device="meta", requires_grad=True)
    out = module(features)
    up = tfx.nn.UpsampleConv(6).to("meta")
    looked_up = module.lookup(out.indices)
    loss = out.vq_loss + out.entropy_loss + up(out.quantized).sum() + looked_up.sum()
    loss.backward()
    assert features.grad.shape == features.shape
    assert module.pixel_book.grad.shape == (9, 2)


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@cuda
@pytest.mark.parametrize("name", NAMES)
def test_cuda_equals_the_cpu(name):
    exact, _ = calls("cpu")
    ours, cpu = call(name, "cuda")().cpu(), call(name, "cpu")()
    if name in exact:
        assert torch.equal(ours, cpu)
    else:
        torch.testing.assert_close(ours, cpu, atol=1e-4, rtol=1e-4)


@cuda
@pytest.mark.parametrize("name", NAMES)
def test_cuda_ops_never_synchronise_and_follow_the_stream(name):
    run = call(name, "cuda")
    expected = run()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            found = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    assert torch.equal(found, expected)


@cuda
def test_cuda_backward_passes_never_synchronise():
    books = [b.requires_grad_() for b in make_books(50, 32, 8, seed=1, device="cuda")]
    indices = torch.arange(5, device="cuda")[None]
    leaves = [
        torch.randn(*s, device="cuda") for s in ((1, 8, 3, 3), (8, 8, 3, 3), (8,))
    ]
    image, weight, bias = (leaf.requires_grad_() for leaf in leaves)
    results = {
        "lookup": tfx.lookup(indices, *books),
        "pyramid_lookup": tfx.pyramid_lookup(indices, *books, [1, 2]),
        "upsample_conv": tfx.upsample_conv(image, weight, bias),
        "group_norm_silu": tfx.group_norm_silu(image, bias, bias, num_groups=4),
    }
    for warm in (True, False):
        torch.cuda.set_sync_debug_mode("default" if warm else "error")
        try:
            for result in results.values():
                result.backward(torch.ones_like(result), retain_graph=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(t.grad.isfinite().all() for t in (*books, image, weight, bias))


@cuda
@pytest.mark.parametrize("name", NAMES)
def test_cuda_graphs_record_every_op(name):
    run = call(name, "cuda")
    expected = run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(found, expected)
