"""Places in the sequence and on the grid, and what turns by them."""

import pytest
import torch
from generation_cases import prompts, small

from tokenflow import TokenFlowForGeneration
from tokenflow.generation import places
from tokenflow.generation.config import TokenFlowGenerationConfig

PAIRS = ((1, 1), (2, 2), (4, 4))


def test_a_token_lies_where_its_cells_middle_is():
    found = places.middles(PAIRS)
    assert found[0].tolist() == [1.5, 1.5]
    assert found[1:5].tolist() == [[0.5, 0.5], [0.5, 2.5], [2.5, 0.5], [2.5, 2.5]]
    assert found[5:9].tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]
    assert found[-1].tolist() == [3, 3]
    wide = places.middles(((1, 2), (2, 4)))
    assert wide[:2].tolist() == [[0.5, 0.5], [0.5, 2.5]]
    assert wide[2:].tolist() == [[y, x] for y in range(2) for x in range(4)]


def test_words_count_and_tokens_lie_behind_them():
    found = places.of_painting(3, 3 + 20 + 2, PAIRS, "grid")
    assert found.shape == (1, 25, 2)
    assert found[0, :3].tolist() == [[0, 0], [1, 1], [2, 2]]
    assert torch.equal(found[0, 3:23], 3 + places.middles(PAIRS)[1:])
    assert found[0, 23:].tolist() == [[23, 23], [24, 24]]
    assert torch.equal(places.of_painting(3, 7, PAIRS, "grid"), found[:, :7])
    assert places.of_painting(3, 5, PAIRS, "sequence").tolist() == [[0, 1, 2, 3, 4]]


def test_pictures_among_words_lie_on_their_grid():
    pictured = torch.tensor([[0, 1, 1, 1, 1, 0, 1, 1, 1, 1], [0] * 10]).bool()
    numbers = torch.arange(10).expand(2, -1)
    found = places.of_conversation(numbers, pictured, PAIRS[:2], "grid")
    cells = [[0, 0], [0, 1], [1, 0], [1, 1]]
    for begin in (1, 6):
        wanted = [[begin + y, begin + x] for y, x in cells]
        assert found[0, begin : begin + 4].tolist() == wanted
    assert found[0, [0, 5]].tolist() == [[0, 0], [5, 5]]
    assert torch.equal(found[1], places.of_words(numbers, "grid")[1])
    same = places.of_conversation(numbers, pictured, PAIRS[:2], "sequence")
    assert same is numbers


def test_places_are_float32_whatever_the_default():
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = places.of_painting(131, 300, ((1, 1), (15, 15), (16, 16)), "grid")
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[0, 131, 0], torch.tensor(131 + 16 / 30 - 0.5))


def test_rows_turn_half_of_the_pairs_and_columns_the_other():
    model = small(places="grid")
    where = torch.tensor([[[0.5, 2.0], [0.0, 0.0]]])
    cosines, sines = model.llama._turned(torch.zeros(1, 2, 32), where)
    rates = torch.tensor([1.0, 10000.0**-0.5])  # 4 pairs, every second of their rates
    angles = torch.cat([0.5 * rates, 2.0 * rates]).repeat(2)
    torch.testing.assert_close(cosines[0, 0], angles.cos())
    torch.testing.assert_close(sines[0, 0], angles.sin())
    assert (cosines[0, 1] == 1).all() and (sines[0, 1] == 0).all()


def test_only_what_lies_between_two_places_counts():
    model, x = small(places="grid"), torch.randn(2, 9, 32)
    where = 5 * torch.rand(1, 9, 2)
    with torch.no_grad():
        here = model.llama(x, where)
        there = model.llama(x, where + torch.tensor([3.0, -2.0]))
        turned = model.llama(x, where.flip(-1))
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)
    assert (here - turned).abs().max() > 1e-2  # rows are no columns


@pytest.mark.parametrize("scales", [(1, 2, 3, 4), (2, 3)])
def test_what_is_drawn_is_what_is_learned(scales, device):
    model, wanted = small(scales, places="grid").to(device), prompts(3).to(device)
    settings = {"guidance_scale": 0.0, "refinement": [(1, 0.0)], "output": "tokens"}
    tokens = model.generate(wanted, **settings)
    with torch.no_grad():
        logits = model(wanted, tokens).logits[:, : tokens.shape[1]]
    likeliest = logits[..., model.config.image_start :].argmax(-1)
    assert torch.equal(tokens, likeliest)
    other = small(scales).to(device)
    assert not torch.equal(other.generate(wanted, **settings), tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_guided_looks_draw_the_same_after_reading_back(dtype, device, tmp_path):
    model = small(places="grid")
    model.save_pretrained(tmp_path)
    again = TokenFlowForGeneration.from_pretrained(tmp_path)
    assert again.config.places == "grid"
    settings = {"guidance_scale": 3.0, "refinement": [(20, 0.9), (1, 0.0)]}
    drawn = [
        one.to(device, dtype).generate(
            prompts(3).to(device),
            negative_prompt=prompts(1, seed=5).to(device),
            generator=torch.Generator().manual_seed(0),
            output="tokens",
            **settings,
        )
        for one in (model, again)
    ]
    assert torch.equal(*drawn) and len(drawn[0].unique()) > 8


def test_places_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match="places must be one of .*, got 'x'"):
        TokenFlowGenerationConfig(places="x")
    odd = {"hidden_size": 36, "num_attention_heads": 6, "num_key_value_heads": 6}
    with pytest.raises(ValueError, match=r"multiple of 4, .*, got 6"):
        TokenFlowGenerationConfig(places="grid", language=odd)
    TokenFlowGenerationConfig(language=odd)
