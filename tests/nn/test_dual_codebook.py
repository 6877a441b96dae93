"""DualCodebook: the exact ops as a module, prepared books that are never stale."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F

import tokenflow_ext as tfx
from tokenflow_ext.nn import DualCodebook


def make(device="cpu", num_codes=50, **settings):
    torch.manual_seed(0)
    return DualCodebook(num_codes, 6, 3, **settings).to(device)


def vectors(*shape, device="cpu", seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, 9, generator=generator).to(device)
    return x[..., :6], x[..., 6:]


def fresh(module, semantic, pixel):
    """What the op says without anything kept."""
    return tfx.quantize(
        semantic, pixel, module.semantic_book.detach(), module.pixel_book.detach()
    )


def test_new_books_have_unit_rows():
    module = make(num_codes=1000)
    for book in module.books():
        torch.testing.assert_close(book.norm(dim=1), torch.ones(1000))


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_quantize_lookup_and_forward_are_the_ops(mode, device):
    module = make(device).train(mode)
    semantic, pixel = vectors(2, 7, device=device)
    indices = fresh(module, semantic, pixel)
    assert torch.equal(module.quantize(semantic, pixel), indices)
    rows = tfx.lookup(indices, *module.books())
    assert torch.equal(module.lookup(indices), rows)
    out = module(semantic, pixel)
    assert torch.equal(out.indices, indices)
    assert torch.equal(out.quantized, rows)


def test_a_worked_case():
    module = DualCodebook(2, 1, 1, normalize=False, beta=0.5)
    with torch.no_grad():
        module.semantic_book.copy_(torch.tensor([[0.0], [4.0]]))
        module.pixel_book.copy_(torch.tensor([[0.0], [2.0]]))
    semantic = torch.tensor([[3.0]], requires_grad=True)
    pixel = torch.tensor([[1.0]], requires_grad=True)
    out = module(semantic, pixel)
    assert out.indices.tolist() == [1]
    assert out.quantized.tolist() == [[4.0, 2.0]]
    assert out.vq_loss.item() == 1.0  # ((4 − 3)² + (2 − 1)²) / 2
    assert out.commitment_loss.item() == 0.5
    assert out.entropy_loss.item() == 0.0
    assert out.usage.item() == 1.0  # entry 0 fills the window, entry 1 came now
    (3 * out.quantized.sum() + out.vq_loss).backward()
    assert semantic.grad.item() == 3 and pixel.grad.item() == 3
    assert module.semantic_book.grad.tolist() == [[0.0], [1.0]]
    assert module.pixel_book.grad.tolist() == [[0.0], [1.0]]


def test_a_row_that_is_not_finite_gets_no_entry():
    module = make().eval()
    semantic, pixel = vectors(3)
    semantic[1, 0] = torch.nan
    out = module(semantic, pixel)
    assert out.indices[1] == -1
    assert torch.equal(out.quantized[1], torch.zeros(9))


# prepared books


def in_place(module):
    with torch.no_grad():
        module.semantic_book.neg_()


def optimizer_step(module, **kind):
    optimizer = torch.optim.AdamW(module.parameters(), lr=1.0, **kind)
    module(*vectors(40, seed=5)).vq_loss.backward()
    optimizer.step()


def load(module):
    torch.manual_seed(9)
    module.load_state_dict(DualCodebook(50, 6, 3).state_dict())


def load_assigned(module):
    torch.manual_seed(9)
    module.load_state_dict(DualCodebook(50, 6, 3).state_dict(), assign=True)


def replaced(module):
    module.semantic_book = torch.nn.Parameter(-module.semantic_book.detach())


def replaced_by_a_part(module):
    # The same memory and version, and fewer rows.
    module.semantic_book = torch.nn.Parameter(module.semantic_book[:20])
    module.pixel_book = torch.nn.Parameter(module.pixel_book[:20])


def data_swapped(module):
    module.pixel_book.data = -module.pixel_book.data


def data_edited_then_eval(module):
    module.pixel_book.data.neg_()
    module.eval()


def moved(module):
    module.to(torch.bfloat16).to(torch.float32)


CHANGES = [
    in_place,
    optimizer_step,
    lambda module: optimizer_step(module, foreach=True),
    lambda module: optimizer_step(module, fused=True),
    load,
    load_assigned,
    replaced,
    replaced_by_a_part,
    data_swapped,
    data_edited_then_eval,
    moved,
]
NAMES = (
    "in_place step step_foreach step_fused load assign replaced part data data_eval to"
)


@pytest.mark.parametrize("change", CHANGES, ids=NAMES.split())
def test_prepared_books_in_evaluation_are_never_stale(change):
    module = make().eval()
    semantic, pixel = vectors(200)
    before = module.quantize(semantic, pixel)
    change(module)
    after = module.quantize(semantic, pixel)
    assert torch.equal(after, fresh(module, semantic, pixel))
    if change is not moved:
        assert not torch.equal(after, before)


def test_prepared_books_are_kept_in_evaluation_and_remade_in_training():
    module = make().eval()
    assert module.prepared() is module.prepared()
    kept = module.prepared()
    module.eval()
    assert module.prepared() is not kept
    module.train()
    assert module.prepared() is not module.prepared()


def test_steps_of_training_meet_the_books_of_that_step():
    module = make().train()
    optimizer = torch.optim.SGD(module.parameters(), lr=20.0)
    semantic, pixel = vectors(100)
    seen = []
    for _ in range(3):
        seen.append(module.quantize(semantic, pixel))
        assert torch.equal(seen[-1], fresh(module, semantic, pixel))
        optimizer.zero_grad()
        module(semantic, pixel).vq_loss.backward()
        optimizer.step()
    assert not torch.equal(seen[0], seen[-1])


def test_books_made_in_inference_mode_are_never_stale():
    semantic, pixel = vectors(100)
    with torch.inference_mode():
        module = make().eval()
        before = module.quantize(semantic, pixel)
        module.semantic_book.neg_()
        after = module.quantize(semantic, pixel)
        assert torch.equal(after, fresh(module, semantic, pixel))
    assert not torch.equal(after, before)


def test_books_prepared_in_inference_mode_serve_a_later_training_step():
    module = make().eval()
    semantic, pixel = vectors(10)
    with torch.inference_mode():
        module.quantize(semantic, pixel)
    module(semantic, pixel).vq_loss.backward()
    assert module.semantic_book.grad.abs().sum() > 0


def test_a_first_forward_in_inference_mode_serves_a_later_training_step():
    module = make().eval()
    semantic, pixel = vectors(10)
    with torch.inference_mode():
        module(semantic, pixel)
    assert module.train()(semantic, pixel).usage > 1 / module.num_codes


def test_copies_and_pickles_do_not_share_what_is_kept():
    module = make().eval()
    semantic, pixel = vectors(100)
    before = module.quantize(semantic, pixel)
    twin = copy.deepcopy(module)
    in_place(twin)
    assert torch.equal(twin.quantize(semantic, pixel), fresh(twin, semantic, pixel))
    assert torch.equal(module.quantize(semantic, pixel), before)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(again.quantize(semantic, pixel), before)


def test_the_state_dict_is_the_two_books():
    module = make()
    module(*vectors(5))
    assert list(module.state_dict()) == ["semantic_book", "pixel_book"]
    assert "latest" in dict(module.named_buffers())


# training


def test_gradients_are_those_of_the_formula():
    """Against the published formula in plain float64 torch, through gradcheck."""
    module = make(num_codes=7, entropy_ratio=0.3, entropy_temperature=0.5).double()
    x = torch.cat(vectors(4), dim=1).double().requires_grad_()
    books = [book.detach().clone().requires_grad_() for book in module.books()]

    def losses(x, semantic_book, pixel_book):
        values = {"semantic_book": semantic_book, "pixel_book": pixel_book}
        out = torch.func.functional_call(module, values, (x[:, :6], x[:, 6:]))
        return out.vq_loss + out.commitment_loss + out.entropy_loss

    def formula(x, semantic_book, pixel_book):
        e = [F.normalize(book, dim=1) for book in (semantic_book, pixel_book)]
        z = [F.normalize(half, dim=1) for half in (x[:, :6], x[:, 6:])]
        d = sum(
            (a[:, None] - b[None]).square().sum(2) for a, b in zip(z, e, strict=True)
        )
        z, q = torch.cat(z, 1), torch.cat(e, 1)[d.argmin(dim=1)]
        p = (-d / 0.5).softmax(dim=1)
        mean = p.mean(dim=0)
        entropy = -(p * p.log()).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()
        vq = (q - z.detach()).square().mean()
        return vq + 0.25 * (q.detach() - z).square().mean() + 0.3 * entropy

    ours, theirs = losses(x, *books), formula(x, *books)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(
        torch.autograd.grad(ours, (x, *books)),
        torch.autograd.grad(theirs, (x, *books)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_quantized_passes_its_gradient_to_the_normalised_vectors_only():
    module = make()
    semantic, pixel = (x.requires_grad_() for x in vectors(5))
    g = torch.randn(5, 9)
    out = module(semantic, pixel)
    assert out.quantized.requires_grad
    (out.quantized * g).sum().backward()
    rows = torch.cat([F.normalize(x, dim=1) for x in (semantic, pixel)], dim=1)
    expected = torch.autograd.grad((rows * g).sum(), (semantic, pixel))
    torch.testing.assert_close((semantic.grad, pixel.grad), expected)
    assert all(book.grad is None for book in module.books())


def test_usage_counts_the_latest_indices_in_training_only():
    module = make(num_codes=10, usage_window=4).train()
    with torch.no_grad():
        angles = torch.arange(10.0)
        module.semantic_book.zero_()[:, 0] = angles.cos()
        module.semantic_book[:, 1] = angles.sin()
        module.pixel_book.fill_(1.0)

    def use(*codes):
        rows = module.lookup(torch.tensor(codes))
        out = module(rows[:, :6], rows[:, 6:])
        assert out.indices.tolist() == list(codes)
        return out.usage.item()

    assert use(3, 4) == pytest.approx(0.3)  # 0 0 3 4
    assert use(5) == pytest.approx(0.4)  # 0 3 4 5
    assert use(6, 6, 6, 7, 8) == pytest.approx(0.3)  # 6 6 7 8
    module.eval()
    assert use(1, 2) == pytest.approx(0.3)
    module.train()
    assert use(1) == pytest.approx(0.4)  # 6 7 8 1


def test_bfloat16_vectors_are_read_as_float32():
    module = make()
    semantic, pixel = (x.bfloat16().requires_grad_() for x in vectors(6))
    out = module(semantic, pixel)
    wide = module(semantic.float(), pixel.float())
    assert out.quantized.dtype == torch.float32
    assert torch.equal(out.indices, wide.indices)
    assert torch.equal(out.quantized, wide.quantized)
    out.commitment_loss.backward()
    assert semantic.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_codes": 0}, "DualCodebook: num_codes must be at least 1, got 0"),
        ({"semantic_width": 0}, "semantic_width must be at least 1"),
        ({"usage_window": 0}, "usage_window must be at least 1"),
        ({"pixel_weight": -1.0}, "pixel_weight must be finite and at least 0"),
        ({"beta": float("nan")}, "beta must be finite and at least 0"),
        ({"entropy_ratio": -0.1}, "entropy_ratio must be finite"),
        ({"entropy_temperature": 0.0}, "entropy_temperature must be above 0, got 0.0"),
    ],
)
def test_wrong_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        DualCodebook(**{"num_codes": 8, **settings})


def test_wrong_vectors_are_named():
    with pytest.raises(ValueError, match=r"quantize: semantic must be \[..., 6\]"):
        make()(torch.randn(3, 5), torch.randn(3, 3))
