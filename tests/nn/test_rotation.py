"""The rotation trick: the values of straight-through, a gradient that turns along."""

import pytest
import torch
import torch.nn.functional as F

from tokenflow_ext.nn import DualCodebook, PyramidQuantizer
from tokenflow_ext.nn.rotation import rotate

WIDTHS = [5, 3]


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def matrix(row, entry):
    """|q|/|e| · (I − 2 r rᵀ + 2 q̂ êᵀ) of one vector and its entry, written out."""
    e, q = row / row.norm(), entry / entry.norm()
    r = (e + q) / (e + q).norm()
    turn = torch.eye(len(e), dtype=e.dtype) - 2 * torch.outer(r, r)
    return entry.norm() / row.norm() * (turn + 2 * torch.outer(q, e))


def book(estimator, normalize, cls=DualCodebook, **settings):
    torch.manual_seed(0)
    made = cls(40, *WIDTHS, estimator=estimator, normalize=normalize, **settings)
    with torch.no_grad():
        for part in made.books():
            part.mul_(torch.rand(40, 1) + 0.5)  # so that lengths matter where they do
    return made.double()


def test_a_quarter_turn_by_hand():
    row = torch.tensor([1.0, 0.0], requires_grad=True)
    entry = torch.tensor([0.0, 2.0])
    turned = rotate(row, entry)
    torch.testing.assert_close(turned, entry)
    turned.backward(torch.tensor([3.0, 5.0]))  # R = [[0, −1], [1, 0]], stretched by 2
    torch.testing.assert_close(row.grad, torch.tensor([10.0, -6.0]))


def test_the_gradient_is_that_of_the_matrix():
    rows, entries, g = (random(20, 6, seed=s) for s in range(3))
    rows.requires_grad_()
    turned = rotate(rows, entries)
    torch.testing.assert_close(turned.detach(), entries)
    (grad,) = torch.autograd.grad((turned * g).sum(), rows)
    for n in range(20):
        turn = matrix(rows[n].detach(), entries[n])
        torch.testing.assert_close(turn @ rows[n], entries[n])
        torch.testing.assert_close(grad[n], turn.T @ g[n])


def test_the_angle_to_the_vector_is_kept():
    rows, entries, g = (random(20, 6, seed=s) for s in range(3))
    rows.requires_grad_()
    (grad,) = torch.autograd.grad((rotate(rows, entries) * g).sum(), rows)
    cosine = torch.nn.CosineSimilarity()
    torch.testing.assert_close(cosine(grad, rows), cosine(g, entries))
    stretched = grad.norm(dim=1) / g.norm(dim=1)
    torch.testing.assert_close(
        stretched, entries.norm(dim=1) / rows.norm(dim=1).detach()
    )


@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "plain"])
def test_each_half_of_a_dual_codebook_turns_for_itself(normalize):
    module = book("rotation", normalize)
    x, g = random(7, 8).requires_grad_(), random(7, 8, seed=1)
    out = module(x[:, :5], x[:, 5:])
    (grad,) = torch.autograd.grad((out.quantized * g).sum(), x, retain_graph=True)
    rows = [F.normalize(h, dim=1) if normalize else h for h in x.split(WIDTHS, 1)]
    entries = module.entries(out.indices).detach().split(WIDTHS, 1)
    expected = 0.0
    for row, entry, part in zip(rows, entries, g.split(WIDTHS, 1), strict=True):
        for n in range(7):
            turn = matrix(row[n].detach(), entry[n])
            expected = expected + part[n] @ turn @ row[n]
    torch.testing.assert_close(grad, torch.autograd.grad(expected, x)[0])
    assert all(b.grad is None for b in module.books())


@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "plain"])
def test_a_pyramid_passes_the_gradient_of_the_formula(normalize):
    scales = [1, 2, (3, 4), 5]
    module = book("rotation", normalize, PyramidQuantizer, scales=scales)
    x = random(2, 8, 5, 5).requires_grad_()
    g = random(2, 8, 5, 5, seed=1)
    out = module(x)
    (grad,) = torch.autograd.grad((out.quantized * g).sum(), x)
    rest, total, start = x, 0.0, 0
    for height, width in module.scales:
        rows = F.adaptive_avg_pool2d(rest, (height, width)).flatten(2).transpose(1, 2)
        part = out.indices[:, start : start + height * width]
        start += height * width
        turned = []
        for b in range(2):
            for n in range(height * width):
                entries = module.entries(part[b, n]).detach().split(WIDTHS)
                for row, entry in zip(rows[b, n].split(WIDTHS), entries, strict=True):
                    row = F.normalize(row, dim=0) if normalize else row
                    turned.append(matrix(row.detach(), entry) @ row)
        cells = torch.cat(turned).view(2, height * width, 8).transpose(1, 2)
        enlarged = F.interpolate(
            cells.unflatten(2, (height, width)), size=(5, 5), mode="bicubic"
        )
        total, rest = total + enlarged, rest - enlarged.detach()
    torch.testing.assert_close(grad, torch.autograd.grad((total * g).sum(), x)[0])


def test_the_gradient_is_the_slope_of_the_frozen_turn():
    """Against finite differences, R and the lengths kept as they were."""
    module = book("rotation", normalize=True)
    x, g = random(1, 8).requires_grad_(), random(8, seed=1)
    out = module(x[:, :5], x[:, 5:])
    (grad,) = torch.autograd.grad((out.quantized * g).sum(), x)
    rows = [F.normalize(h, dim=1)[0] for h in x.detach().split(WIDTHS, 1)]
    entries = module.entries(out.indices)[0].detach().split(WIDTHS)
    turns = [matrix(row, entry) for row, entry in zip(rows, entries, strict=True)]

    def value(point):
        halves = [F.normalize(h, dim=0) for h in point.split(WIDTHS)]
        return sum(
            part @ turn @ half
            for part, turn, half in zip(g.split(WIDTHS), turns, halves, strict=True)
        )

    for d in range(8):
        step = torch.zeros(8, dtype=torch.float64)
        step[d] = 1e-6
        slope = (value(x.detach()[0] + step) - value(x.detach()[0] - step)) / 2e-6
        torch.testing.assert_close(grad[0, d], slope, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_value_depends_on_the_estimator(normalize, dtype, device):
    pyramids = [
        book(name, normalize, PyramidQuantizer, scales=[1, 2, 5]).float().to(device)
        for name in ("straight_through", "rotation")
    ]
    x = random(2, 8, 5, 5).to(device, dtype)
    grads = []
    for module in pyramids:
        y = x.clone().requires_grad_()
        out = module(y)
        grads.append(torch.autograd.grad(out.quantized.square().sum(), y)[0])
        if module is pyramids[0]:
            first = out
    for name, value in vars(first).items():
        assert torch.equal(value, getattr(out, name)), name
    assert grads[0].dtype == grads[1].dtype == dtype
    assert not torch.allclose(*(grad.float() for grad in grads), atol=1e-3)
    module = book("rotation", normalize).float().to(device)
    flat = x.permute(0, 2, 3, 1)
    out = module(flat[..., :5], flat[..., 5:])
    assert torch.equal(out.quantized, module.lookup(out.indices))


def test_losses_train_as_before():
    """The books' gradients, and the commitment's, know nothing of the estimator."""
    x = random(2, 8, 5, 5)
    grads = []
    for name in ("straight_through", "rotation"):
        module = book(name, True, PyramidQuantizer, scales=[1, 5], entropy_ratio=0.1)
        y = x.clone().requires_grad_()
        out = module(y)
        (out.vq_loss + out.commitment_loss + out.entropy_loss).backward()
        grads.append([y.grad, *(b.grad for b in module.books())])
    assert all(map(torch.equal, *grads))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_degenerate_rows_have_finite_gradients(dtype):
    unit = F.normalize(random(1, 6), dim=1).to(dtype)
    near = F.normalize(unit + 1e-7 * random(1, 6, seed=2).to(dtype), dim=1)
    rows = torch.cat([-unit, -near, unit, 0 * unit, 1e-30 * unit, 1e15 * unit, unit])
    entries = torch.cat([unit] * 6 + [0 * unit])
    g = random(7, 6, seed=1).to(dtype)
    rows.requires_grad_()
    (grad,) = torch.autograd.grad((rotate(rows, entries) * g).sum(), rows)
    assert grad.isfinite().all()
    along = unit @ g[0]  # opposite: what points along q comes back along e = −q
    torch.testing.assert_close(-unit @ grad[0], along)
    assert grad[1].norm() < 5 * g[1].norm()
    torch.testing.assert_close(grad[2], g[2])  # already there: nothing turns
    assert torch.equal(grad[3:5], g[3:5])  # no direction: as it is
    assert grad[6].abs().max() == 0  # an entry of no length is 0 · R e


def test_a_training_step_compiles_into_one_graph():
    module = book("rotation", True, PyramidQuantizer, scales=[1, 3]).float().train()
    x = random(2, 8, 3, 3).float().requires_grad_()
    grads = []
    for run in (module, torch.compile(module, backend="aot_eager", fullgraph=True)):
        loss = run(x).quantized.square().sum()
        grads.append(torch.autograd.grad(loss, x)[0])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("cls", [DualCodebook, PyramidQuantizer])
def test_an_unknown_estimator_is_named(cls):
    settings = {"scales": [1]} if cls is PyramidQuantizer else {}
    words = f"{cls.__name__}: estimator must be one of .*'rotation'.*got 'gumbel'"
    with pytest.raises(ValueError, match=words):
        cls(8, estimator="gumbel", **settings)
