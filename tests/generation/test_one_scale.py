"""A first scale of many tokens is drawn one by one: tokens of one scale alone too."""

import pytest
import torch
from generation_cases import prompts, small

from tokenflow.generation import inputs


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_tokens_of_one_scale_see_those_before_them():
    entries = torch.arange(2 * 9 * 3.0).view(2, 9, 3)
    assert torch.equal(inputs.cascade(entries, ((3, 3),)), entries[:, :-1])
    assert inputs.turns(((3, 3),)).tolist() == list(range(9))
    assert inputs.turns(((1, 1), (2, 2))).tolist() == [0, 1, 1, 1, 1]
    assert inputs.turns(((1, 2), (2, 2))).tolist() == [0, 1, 2, 2, 2, 2]
    seen = inputs.attended(torch.ones(1, 2, dtype=torch.bool), ((2, 2),))
    assert torch.equal(seen[0], torch.ones(6, 6, dtype=torch.bool).tril())


@pytest.mark.parametrize("scales", [(3,), (2, 3)])
@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_what_is_drawn_is_what_the_training_half_predicts(scales, guidance):
    """Greedy tokens, each the likeliest of a forward over the whole picture."""
    model = small(scales, seed=2)
    wanted, unwanted = prompts(2), prompts(2, seed=4)
    found = model.generate(
        wanted,
        negative_prompt=unwanted,
        guidance_scale=guidance,
        refinement=[(1, 0.0)],
        output="tokens",
    )
    assert len(found.unique()) > 4
    with torch.no_grad():
        one, other = (
            model(ids, found).logits[:, : found.shape[1], model.config.image_start :]
            for ids in (wanted, unwanted)
        )
    if len(scales) == 1:
        strength = torch.full((len(found[0]),), guidance)
    else:  # growing from 0 at the first scale
        strength = inputs.levels(model.scales) * guidance
    t = strength[None, :, None]
    assert torch.equal(((1 + t) * one - t * other).argmax(-1), found)


def test_a_model_of_one_scale_learns_a_picture_by_heart():
    torch.manual_seed(0)
    model = small((3,), sure=0.1).train()
    wanted, indices = prompts(2), torch.randint(64, (2, 9))
    moves = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        found = model(wanted, indices)
        moves.zero_grad()
        found.loss.backward()
        moves.step()
    assert found.loss.item() < 0.1
    drawn = model.eval().generate(
        wanted, guidance_scale=0, refinement=[(1, 0.0)], output="tokens"
    )
    assert torch.equal(drawn, indices)


def test_it_is_saved_and_streams_once(tmp_path):
    from tokenflow import TokenFlowForGeneration

    model = small((3,))
    model.save_pretrained(tmp_path)
    read = TokenFlowForGeneration.from_pretrained(tmp_path)
    steps = [
        list(one.stream(prompts(1), negative_prompt=prompts(1), generator=seeded()))
        for one in (model, read)
    ]
    assert [len(made) for made in steps] == [1, 1]
    assert steps[0][0][0].tobytes() == steps[1][0][0].tobytes()
