"""PyramidQuantizer: the exact pyramid as a module, trained as published."""

import pytest
import torch
import torch.nn.functional as F

import tokenflow_ext as tfx
from tokenflow_ext.nn import PyramidQuantizer
from tokenflow_ext.nn.entropy import entropy_loss

SINGLE = ["quant_single_0", "quant_single_1", "quant_single_2"]
PYRAMIDS = [
    "msvq_tiny_b1",
    "msvq_tiny_b2",
    "msvq_b224",
    "msvq_l256",
    "msvq_xl_small_dims",
]


def make(scales, num_codes=40, **settings):
    torch.manual_seed(0)
    return PyramidQuantizer(num_codes, 6, 3, scales=scales, **settings)


def features(batch=2, height=6, width=6, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 9, height, width, generator=generator).to(device)


def recorded(case, scales, device):
    """The module with the books of a recorded case."""
    meta = case.meta
    module = PyramidQuantizer(
        meta["n_e"],
        *meta["split"],
        scales=scales,
        beta=meta["beta"],
        entropy_ratio=meta.get("entropy_ratio", 0.0),
    )
    books = {
        ours: value
        for name, value in case.weights().items()
        for part, ours in (("vqkd", "semantic_book"), ("vqgan", "pixel_book"))
        if f"embedding_{part}." in name
    }
    module.load_state_dict(books)
    return module.to(device)


@pytest.mark.parametrize("name", SINGLE)
def test_one_scale_trains_as_published(name, golden, device):
    case = golden(name)
    z = case["in/z"].to(device).requires_grad_()
    module = recorded(case, [tuple(z.shape[-2:])], device).train()
    out = module(z)
    assert torch.equal(out.indices.flatten().cpu(), case["out/indices"])

    def close(ours, theirs, tolerance=1e-6):
        torch.testing.assert_close(
            ours.detach().cpu(), case[theirs].float(), atol=tolerance, rtol=1e-5
        )

    close(out.quantized, "out/z_q_train")
    close(out.vq_loss, "out/vq_loss")
    close(out.commitment_loss, "out/commit_loss")
    close(out.entropy_loss, "out/entropy_loss")
    close(out.usage, "out/codebook_usage")
    latest = module.latest[-len(case["out/indices"]) :]
    assert torch.equal(latest.cpu(), case["out/codebook_used_after"].int())

    loss = out.vq_loss + out.commitment_loss + out.entropy_loss
    (loss + (out.quantized * case["in/gz"].to(device)).sum()).backward()
    close(z.grad, "out/grad_z")
    close(module.semantic_book.grad, "out/grad_emb_vqkd")
    close(module.pixel_book.grad, "out/grad_emb_vqgan")

    module.eval()
    with torch.no_grad():
        indices, quantized = module.quantize(z)
    close(quantized, "out/z_q_eval")
    close(module.entries(indices.flatten()), "out/lookup_flat")
    close(module.lookup(indices), "out/lookup_bchw")


@pytest.mark.parametrize("name", PYRAMIDS)
def test_a_pyramid_trains_as_published(name, golden, device):
    case = golden(name)
    scales = case.meta["scales"]
    module = recorded(case, scales, device).train()
    out = module(case["in/features"].to(device))
    assert torch.equal(out.indices.cpu(), case["out/indices"].long())
    ours = torch.stack([out.vq_losses, out.commitment_losses, out.entropy_losses], 1)
    theirs = case["out/per_scale_losses"]
    torch.testing.assert_close(ours.detach().cpu(), theirs.float(), atol=1e-6, rtol=0)
    means = torch.stack([out.vq_loss, out.commitment_loss, out.entropy_loss])
    theirs = case["out/mean_losses_vq_commit_entropy"].float()
    torch.testing.assert_close(means.detach().cpu(), theirs, atol=1e-6, rtol=0)
    assert out.usage.item() == pytest.approx(case["out/usage"].item(), abs=1e-6)
    total = out.quantized.detach().cpu()
    torch.testing.assert_close(total, case["out/final_quantize"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["entropy_0", "entropy_1"])
def test_entropy_is_the_published_one(name, golden):
    affinity = golden(name)["in/affinity"]
    # With unit entries, −|x − e_k|² is 2 x_k plus what every k shares.
    ours = entropy_loss(affinity / 2, torch.eye(affinity.shape[1]))
    torch.testing.assert_close(ours, golden(name)["out/loss"])


SCHEDULES = [[1, 2, 3, 6], [6], [(1, 2), (3, 2), (6, 6)], [1, 4], [2, 9]]


@pytest.mark.parametrize("scales", SCHEDULES, ids=str)
@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "plain"])
def test_training_meets_the_tokens_of_inference(scales, normalize, device):
    module = make(scales, normalize=normalize, pixel_weight=0.7).to(device)
    x = features(device=device)
    indices, quantized = tfx.pyramid_quantize(
        x, *module.books(), scales, normalize=normalize, pixel_weight=0.7
    )
    for mode in (True, False):
        out = module.train(mode)(x.clone().requires_grad_())
        assert torch.equal(out.indices, indices)
        assert torch.equal(out.quantized, quantized)
        assert all(
            torch.equal(a, b)
            for a, b in zip(module.quantize(x), (indices, quantized), strict=True)
        )
    assert torch.equal(module.lookup(indices, size=6), quantized)


def published(features, books, indices, scales, beta):
    """The published training pass on given indices, in plain torch."""
    e = torch.cat([F.normalize(book, dim=1) for book in books], dim=1)
    rest, total, losses, start = features, 0, [], 0
    for side in scales:
        pooled = F.adaptive_avg_pool2d(rest, side)
        z = torch.cat([F.normalize(half, dim=1) for half in pooled.split([6, 3], 1)], 1)
        part = indices[:, start : start + side * side]
        q = e[part].transpose(1, 2).unflatten(2, (side, side))
        losses.append((q - z.detach()).square().mean())
        losses.append(beta * (q.detach() - z).square().mean())
        up = F.interpolate(
            z + (q - z).detach(), size=features.shape[-2:], mode="bicubic"
        )
        total, rest, start = total + up, rest - up.detach(), start + side * side
    return total, sum(losses) / len(scales)


def test_gradients_are_those_of_the_published_pass(device):
    scales = [1, 2, 5]
    module = make(scales).to(device).double()
    x = features(height=5, width=5, device=device).double().requires_grad_()
    out = module(x)
    ours = out.quantized, out.vq_loss + out.commitment_loss
    theirs = published(x, module.books(), out.indices, scales, beta=0.25)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)  # float32 tables
    wanted = (x, *module.books())
    g = torch.randn_like(x)
    grads = [
        torch.autograd.grad((total * g).sum() + loss, wanted)
        for total, loss in (ours, theirs)
    ]
    torch.testing.assert_close(*grads)


def test_a_scale_is_dropped_by_naming_the_others():
    module = make([1, 2, 3, 6]).train()
    x = features()
    out = module(x, scales=[1, 2, 3])
    indices, quantized = tfx.pyramid_quantize(x, *module.books(), [1, 2, 3])
    assert torch.equal(out.indices, indices)
    assert out.quantized.shape == x.shape
    assert torch.equal(out.quantized, quantized)
    assert out.vq_losses.shape == out.usages.shape == (3,)
    assert torch.equal(module.lookup(indices, size=6), quantized)
    assert torch.equal(module.lookup(indices, [1, 2, 3], size=(6, 6)), quantized)


def test_the_first_scales_alone_can_be_looked_up():
    module = make([1, 2, 3, 6])
    indices = module.quantize(features())[0]
    part = tfx.pyramid_lookup(indices[:, :5], *module.books(), [1, 2], size=6)
    assert torch.equal(module.lookup(indices[:, :5]), part)


@pytest.mark.parametrize("change", ["step", "load", "train"])
def test_prepared_books_are_never_stale(change):
    module = make([1, 3, 6]).eval()
    x = features()
    before = module.quantize(x)[0]
    if change == "load":
        torch.manual_seed(7)
        module.load_state_dict(PyramidQuantizer(40, 6, 3, scales=[1]).state_dict())
    else:
        module.train(change == "train")
        optimizer = torch.optim.Adam(module.parameters(), lr=1.0)
        module(x).vq_loss.backward()
        optimizer.step()
        module.eval()
    after = module.quantize(x)[0]
    assert torch.equal(after, tfx.pyramid_quantize(x, *module.books(), [1, 3, 6])[0])
    assert not torch.equal(after, before)


def test_bfloat16_features_and_autocast_change_no_token(device):
    module = make([1, 3, 6], entropy_ratio=0.1).to(device)
    x = features(device=device).bfloat16().requires_grad_()
    plain = module(x.float())
    with torch.autocast(device.type, torch.bfloat16):
        out = module(x)
    assert torch.equal(out.indices, plain.indices)
    assert torch.equal(out.quantized, plain.quantized)
    assert torch.equal(out.entropy_losses, plain.entropy_losses)
    (out.quantized.sum() + out.commitment_loss).backward()
    assert x.grad.dtype == torch.bfloat16 and x.grad.isfinite().all()


def test_entropy_never_stores_every_score():
    """Saved for backward: the vectors, the entries and little else, not N · K."""
    n, k, d = 3000, 20_000, 8
    x = torch.randn(n, d, requires_grad=True)
    e = torch.randn(k, d, requires_grad=True)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.numel()) or t, lambda t: t
    ):
        entropy_loss(x, e, 0.5)
    assert sum(sizes) < n * k / 10


@pytest.mark.parametrize("scores_at_once", [1, 40, 10_000])
def test_entropy_is_the_same_in_any_chunks(scores_at_once, monkeypatch):
    monkeypatch.setattr("tokenflow_ext.nn.entropy._SCORES_AT_ONCE", scores_at_once)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(9, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    e = torch.randn(5, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    p = (-(x[:, None] - e[None]).square().sum(2) / 0.7).softmax(dim=1)
    mean = p.mean(dim=0)
    plain = -(p * p.log()).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()
    ours = entropy_loss(x, e, 0.7)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (x, e)), torch.autograd.grad(plain, (x, e))
    )


def test_a_training_step_compiles_into_one_graph():
    module = make([1, 3, 6], entropy_ratio=0.1).train()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    x = features().requires_grad_()
    results = []
    for run in (module, compiled):
        module.zero_grad()
        out = run(x)
        (out.vq_loss + out.entropy_loss + out.quantized.sum()).backward()
        results.append((out, module.semantic_book.grad))
    (eager, grad), (out, compiled_grad) = results
    assert torch.equal(out.indices, eager.indices)
    assert torch.equal(out.quantized, eager.quantized)
    torch.testing.assert_close(compiled_grad, grad)


def test_evaluation_can_be_exported():
    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.quantizer = make([1, 3, 6]).eval()

        def forward(self, x):
            return self.quantizer.quantize(x)

    encoder, x = Encoder(), features()
    exported = torch.export.export(encoder, (x,)).module()
    assert all(map(torch.equal, exported(x), encoder(x)))


def test_the_tensors_of_a_result_are_found():
    out = make([1, 3])(features())
    leaves = torch.utils._pytree.tree_leaves(out)
    assert [id(leaf) for leaf in leaves] == [id(v) for v in vars(out).values()]


def test_a_training_step_can_be_captured_and_replayed(device):
    if device.type != "cuda":
        pytest.skip("graphs are captured on CUDA only")
    module = make([1, 3, 6], entropy_ratio=0.1).to(device).train()
    x = features(device=device)

    def step():
        module.zero_grad()
        out = module(x)
        (out.vq_loss + out.commitment_loss + out.entropy_loss).backward()
        return out

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.copy_(features(device=device).flip(0))
    with torch.no_grad():
        module.semantic_book.neg_()
    graph.replay()
    grad = module.semantic_book.grad.clone()
    eager = step()
    assert torch.equal(captured.indices, eager.indices)
    torch.testing.assert_close(captured.vq_losses, eager.vq_losses)
    torch.testing.assert_close(grad, module.semantic_book.grad)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="PyramidQuantizer: scales must name"):
        make([])
    with pytest.raises(ValueError, match="PyramidQuantizer: scales must be at least 1"):
        make([1, 0])
    module = make([1, 2])
    with pytest.raises(ValueError, match=r"features must be \[B, 9, h, w\]"):
        module(torch.randn(2, 8, 3, 3))
    with pytest.raises(ValueError, match="whole number of scales"):
        module.lookup(torch.zeros(1, 3, dtype=torch.long))
