"""Which weights decay, and by how much."""

import pytest
import torch
from torch import nn

from tokenflow.training.optimizers import OptimizerConfig, build_optimizer, set_rate


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_matrices_decay_and_norms_and_biases_do_not(name):
    """Gradients of zero leave nothing but the decay."""
    made = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32))
    made.scale = nn.Parameter(torch.tensor(2.0))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    config = OptimizerConfig(name=name, weight_decay=0.1)
    optimizer = build_optimizer(made, config)
    set_rate(optimizer, 0.5)
    optimizer.step()
    for key, parameter in made.named_parameters():
        wanted = 0.95 if key == "0.weight" else 1.0
        assert parameter.unique().tolist() == [pytest.approx(wanted)], key


def test_each_parameter_is_in_one_group_with_its_share():
    made = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    config = OptimizerConfig(name="adamw", weight_decay=0.1, rates={"1.": 0.5})
    groups = build_optimizer(made, config).param_groups
    found = sorted((g["share"], g["weight_decay"], len(g["params"])) for g in groups)
    assert found == [(0.5, 0.0, 1), (0.5, 0.1, 1), (1.0, 0.0, 1), (1.0, 0.1, 1)]
