"""Places in the sequence and on the grid, and what turns by them."""

import pytest
import torch
from generation_cases import prompts, small

from tokenflow.generation import rotation
from tokenflow.generation.config import TokenFlowGenerationConfig

PAIRS = ((1, 1), (2, 2), (4, 4))


def test_a_token_lies_where_its_cells_middle_is():
    found = rotation.spots(PAIRS)
    assert found[0].tolist() == [1.5, 1.5]
    assert found[1:5].tolist() == [[0.5, 0.5], [0.5, 2.5], [2.5, 0.5], [2.5, 2.5]]
    assert found[5:9].tolist() == [[0, 0], [0, 1], [0, 2], [0, 3]]
    assert found[-1].tolist() == [3, 3]
    wide = rotation.spots(((1, 2), (2, 4)))
    assert wide[:2].tolist() == [[0.5, 0.5], [0.5, 2.5]]
    assert wide[2:].tolist() == [[y, x] for y in range(2) for x in range(4)]


def test_words_count_and_tokens_lie_behind_them():
    places = rotation.painted(3, 3 + 20 + 2, PAIRS, "grid")
    assert places.shape == (1, 25, 2)
    assert places[0, :3].tolist() == [[0, 0], [1, 1], [2, 2]]
    assert torch.equal(places[0, 3:23], 3 + rotation.spots(PAIRS)[1:])
    assert places[0, 23:].tolist() == [[23, 23], [24, 24]]
    assert torch.equal(rotation.painted(3, 7, PAIRS, "grid"), places[:, :7])
    assert torch.equal(rotation.painted(3, 2, PAIRS, "grid"), places[:, :2])
    assert rotation.painted(3, 5, PAIRS, "sequence").tolist() == [[0, 1, 2, 3, 4]]


def test_pictures_among_words_lie_on_their_grid():
    here = torch.tensor([[0, 1, 1, 1, 1, 0, 1, 1, 1, 1], [0] * 10]).bool()
    numbers = torch.arange(10).expand(2, -1)
    places = rotation.shown(numbers, here, PAIRS[:2], "grid")
    cells = [[0, 0], [0, 1], [1, 0], [1, 1]]
    for begin in (1, 6):
        wanted = [[begin + y, begin + x] for y, x in cells]
        assert places[0, begin : begin + 4].tolist() == wanted
    assert places[0, [0, 5]].tolist() == [[0, 0], [5, 5]]
    assert torch.equal(places[1], rotation.numbered(numbers, "grid")[1])
    assert rotation.shown(numbers, here, PAIRS[:2], "sequence") is numbers


def test_rows_turn_half_of_the_pairs_and_columns_the_other():
    model = small(rotation="grid")
    places = torch.tensor([[[0.5, 2.0], [0.0, 0.0]]])
    cosines, sines = model.llama._turned(torch.zeros(1, 2, 32), places)
    rates = torch.tensor([1.0, 10000.0**-0.5])  # 4 pairs, every second of their rates
    angles = torch.cat([0.5 * rates, 2.0 * rates]).repeat(2)
    torch.testing.assert_close(cosines[0, 0], angles.cos())
    torch.testing.assert_close(sines[0, 0], angles.sin())
    assert (cosines[0, 1] == 1).all() and (sines[0, 1] == 0).all()


def test_only_what_lies_between_two_places_counts():
    model, x = small(rotation="grid"), torch.randn(2, 9, 32)
    places = 5 * torch.rand(1, 9, 2)
    with torch.no_grad():
        here = model.llama(x, places)
        there = model.llama(x, places + torch.tensor([3.0, -2.0]))
        turned = model.llama(x, places.flip(-1))
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)
    assert (here - turned).abs().max() > 1e-2  # rows are no columns


@pytest.mark.parametrize("scales", [(1, 2, 3, 4), (2, 3)])
def test_what_is_drawn_is_what_is_learned(scales):
    model, wanted = small(scales, rotation="grid"), prompts(3)
    settings = {"guidance_scale": 0.0, "refinement": [(1, 0.0)], "output": "tokens"}
    tokens = model.generate(wanted, **settings)
    with torch.no_grad():
        logits = model(wanted, tokens).logits[:, : tokens.shape[1]]
    likeliest = logits[..., model.config.image_start :].argmax(-1)
    assert torch.equal(tokens, likeliest)
    other = small(scales)
    assert not torch.equal(other.generate(wanted, **settings), tokens)


def test_a_rotation_that_does_not_fit_is_told():
    with pytest.raises(ValueError, match="rotation must be one .* got 'x'"):
        TokenFlowGenerationConfig(rotation="x")
    odd = {"hidden_size": 36, "num_attention_heads": 6, "num_key_value_heads": 6}
    with pytest.raises(ValueError, match="multiple of 4, .*, got 6"):
        TokenFlowGenerationConfig(rotation="grid", language=odd)
    TokenFlowGenerationConfig(language=odd)
