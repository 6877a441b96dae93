"""Attention stays float32 in a bfloat16 run on a CPU, in the gradient as well."""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from tokenflow.training.attention import float32_attention


def _case():
    generator = torch.Generator().manual_seed(0)
    make = lambda: torch.randn(2, 3, 17, 8, generator=generator)  # noqa: E731
    mask = torch.zeros(17, 17).masked_fill(torch.ones(17, 17).triu(1).bool(), -1e9)
    return [make().requires_grad_() for _ in range(3)], mask


def _attend(query, key, value, mask):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def test_it_is_float32_whatever_comes_in():
    (query, key, value), mask = _case()
    expected = _attend(query, key, value.bfloat16().float(), mask)
    with torch.autocast("cpu", torch.bfloat16):
        assert _attend(query, key, value, mask).dtype == torch.bfloat16
        with float32_attention():
            found = _attend(query, key, value.bfloat16(), mask)
            assert (query @ key.mT).dtype == torch.bfloat16
        assert _attend(query, key, value, mask).dtype == torch.bfloat16
    assert torch.equal(found, expected)


def test_a_mask_of_bools_stays_one():
    (query, key, value), mask = _case()
    with float32_attention():
        found = _attend(query, key, value, mask == 0)
    torch.testing.assert_close(found, _attend(query, key, value, mask))


def test_values_made_anew_for_the_gradient_are_the_same():
    leaves, mask = _case()

    def gradients(again):
        with torch.autocast("cpu", torch.bfloat16), float32_attention():
            made = (
                checkpoint(_attend, *leaves, mask, use_reentrant=False)
                if again
                else _attend(*leaves, mask)
            )
            return torch.autograd.grad(made.square().sum(), leaves)

    for a, b in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(a, b)
