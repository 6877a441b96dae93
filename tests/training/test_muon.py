"""Muon: orthogonal steps for matrices, torch's AdamW for the rest."""

import pytest
import torch
from torch import nn

from tokenflow.training.muon import Muon, orthogonal, takes_muon

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("shape", [(32, 32), (32, 288), (200, 40)], ids=str)
def test_the_step_has_singular_values_near_one(shape):
    torch.manual_seed(0)
    strengths = torch.logspace(0, -1, min(shape))
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    made = orthogonal(u * strengths @ v)
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.5 and values.max() < 1.3
    assert ((u @ v) * made).sum() / (u @ v).norm() / made.norm() > 0.95


def test_thin_and_one_dimensional_parameters_take_adamw():
    assert takes_muon("a.weight", torch.zeros(32, 64))
    assert takes_muon("conv.weight", torch.zeros(32, 3, 3, 3))  # 32 × 27
    assert not takes_muon("conv.weight", torch.zeros(3, 32, 3, 3))
    assert not takes_muon("norm.weight", torch.zeros(64))
    assert not takes_muon("positional_embedding", torch.zeros(64, 64))


def test_the_rest_moves_as_torchs_adamw_does():
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(5, 7))
    theirs = nn.Parameter(ours.detach().clone())
    muon = Muon([(1.0, [("table", ours)])], betas=(0.9, 0.95))
    adamw = torch.optim.AdamW([theirs], 0.01, betas=(0.9, 0.95), weight_decay=0)
    for _ in range(20):
        gradient = torch.randn(5, 7)
        for parameter, optimizer in ((ours, muon), (theirs, adamw)):
            parameter.grad = gradient.clone()
            optimizer.param_groups[0]["lr"] = 0.01
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_matrix_is_fitted_whatever_its_scales():
    torch.manual_seed(0)
    goal = torch.randn(32, 48) * torch.logspace(0, -2, 48)
    weight = nn.Parameter(torch.zeros(32, 48))
    optimizer = Muon([(1.0, [("weight", weight)])])
    for step in range(200):
        loss = (weight - goal).square().sum()
        weight.grad = torch.autograd.grad(loss, weight)[0]
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 200)
        optimizer.step()
    assert (weight - goal).norm() < 0.02 * goal.norm()


def test_a_group_has_its_share_of_the_rate():
    book, matrix = nn.Parameter(torch.randn(64, 32)), nn.Parameter(torch.randn(64, 32))
    optimizer = Muon([(3.0, [("a.book", book)]), (1.0, [("a.weight", matrix)])])
    groups = [(g["share"], g["muon"]) for g in optimizer.param_groups]
    assert groups == [(3.0, False), (1.0, True)]
