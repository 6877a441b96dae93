"""The fast way draws what the published loop draws, and does as little as promised."""

import pytest
import torch
from generation_cases import prompts, published_loop, small

ONE, THREE = [(20, 0.9)], [(30, 0.95), (12, 0.8), (1, 0.0)]
SCALES_256 = (1, 2, 4, 6, 8, 10, 12, 14, 16)


def watched(model):
    """Count the positions and rows that each pass runs the first layer over."""
    runs = []
    layer = model.llama.layers[0]
    layer.register_forward_pre_hook(lambda _, given: runs.append(given[0].shape[:2]))
    return runs


def drawn(model, wanted, unwanted, seed=0, **settings):
    draw = torch.Generator().manual_seed(seed)
    settings = {"guidance_scale": 5.0, "refinement": THREE, **settings}
    return model.generate(
        wanted, negative_prompt=unwanted, generator=draw, output="tokens", **settings
    )


@pytest.mark.parametrize("passes", [ONE, THREE], ids=["one pass", "three passes"])
@pytest.mark.parametrize("seed", range(3))
def test_tokens_are_those_of_the_published_loop(passes, seed):
    model = small(seed=seed, scales=(1, 2, 3, 4))
    wanted, unwanted = prompts(3, seed=seed), prompts(3, seed=seed + 9)
    wanted[:, :seed] = unwanted[:, :seed] = 0  # padding that all of them have
    draw = torch.Generator().manual_seed(seed)
    right, _, _ = published_loop(model, wanted, unwanted, 5.0, passes, draw)
    found = drawn(model, wanted, unwanted, seed, refinement=passes)
    assert torch.equal(found, right)
    assert len(found.unique()) > 12  # and the draws are no constant


def test_other_passes_leave_no_trace_in_what_is_kept():
    """Were the keys of a second look kept, later scales would see them."""
    from tokenflow.generation.llama import Cache

    model = small(scales=(1, 2, 3, 4))
    wanted, unwanted = prompts(2), prompts(2, seed=5)
    whole = drawn(model, wanted, unwanted)
    settle = Cache.settle

    def careless(self):
        self.held = []
        settle(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cache, "settle", careless)
        assert not torch.equal(drawn(model, wanted, unwanted), whole)
    assert torch.equal(drawn(model, wanted, unwanted), whole)


@pytest.mark.parametrize(("passes", "fast", "plain"), [(1, 947, 3339), (3, 2579, 9755)])
def test_so_many_positions_are_run(passes, fast, plain):
    """Per row, at the published sizes: 128 text positions, 3 pieces, 817 tokens."""
    model = small(scales=SCALES_256, text_length=128)
    wanted = torch.cat([prompts(1, length=128, full=True), torch.tensor([[3]])], dim=1)
    runs = watched(model)
    drawn(model, wanted, wanted.flip(1), refinement=THREE[:passes])
    assert len(runs) == 1 + 8 * passes
    assert {tuple(rows) for rows, _ in [((r,), n) for r, n in runs]} == {(2,)}
    assert sum(length for _, length in runs) == fast
    grown = [131 + sum(s * s for s in SCALES_256[1 : i + 1]) for i in range(9)]
    assert grown[0] + passes * sum(grown[1:]) == plain


def test_the_plain_loop_runs_as_many_as_that_formula_says():
    model = small(scales=(1, 2, 3))
    wanted = prompts(1, full=True)
    draw = torch.Generator()
    _, _, ran = published_loop(model, wanted, wanted, 1.0, THREE, draw)
    assert ran == 8 + 3 * (8 + 4) + 3 * (8 + 4 + 9)


def test_equal_prompts_are_read_once_and_common_padding_never():
    model, wanted = small(), prompts(2)
    wanted[:, :3] = 0
    runs = watched(model)
    drawn(model, wanted, wanted[:1], num_images=4)
    assert runs[0] == (2, 5)  # two different prompts, 8 positions less 3 of padding
    assert runs[1] == (16, 4)  # eight pictures, twice


def test_without_guidance_there_is_no_second_half():
    model, wanted = small(), prompts(2)
    runs = watched(model)
    plain = drawn(model, wanted, prompts(1, seed=8), guidance_scale=0.0)
    assert {rows for rows, _ in runs} == {2}
    draw = torch.Generator().manual_seed(0)
    right, _, _ = published_loop(model, wanted, prompts(2, seed=8), 0.0, THREE, draw)
    assert torch.equal(plain, right)


def test_logits_are_made_where_tokens_are_drawn_and_nowhere_else(monkeypatch):
    model, wanted = small(), prompts(2)
    made, logits = [], model.image_logits

    def watch(hidden):
        found = logits(hidden)
        made.append(tuple(found.shape))
        return found

    monkeypatch.setattr(model, "image_logits", watch)
    drawn(model, wanted, prompts(1, seed=8), refinement=ONE)
    entries = model.config.codebook_size
    assert made == [(2, 1, entries), (4, 4, entries), (4, 9, entries)]


def test_padding_and_company_do_not_change_a_picture():
    """k = 1 draws the same whatever the generator does for the other rows."""
    model, settings = small(), {"refinement": [(1, 0.0)], "guidance_scale": 3.0}
    wanted, unwanted = prompts(4), prompts(1, seed=4)
    together = drawn(model, wanted, unwanted, **settings)
    for row in range(4):
        alone = drawn(model, wanted[row : row + 1], unwanted, **settings)
        assert torch.equal(alone[0], together[row])


def test_the_first_scales_are_those_of_the_whole():
    model, wanted = small(scales=(1, 2, 3, 4)), prompts(2)
    whole = drawn(model, wanted, wanted)
    for scales, count in ((1, 1), (3, 14), ([1, 2], 5), ([(1, 1), (2, 2)], 5)):
        some = drawn(model, wanted, wanted, scales=scales)
        assert torch.equal(some, whole[:, :count])
    for wrong in (0, 5, [2], [1, 3], []):
        with pytest.raises(ValueError, match="scales must be the first few"):
            drawn(model, wanted, wanted, scales=wrong)


@pytest.mark.slow  # loading the compiler takes seconds
def test_compiled_layers_draw_the_same():
    model, wanted = small(), prompts(2)
    right = drawn(model, wanted, wanted)
    model.compile(backend="eager")
    assert all(layer._compiled_call_impl for layer in model.llama.layers)
    assert torch.equal(drawn(model, wanted, wanted), right)


def test_bfloat16_draws_tokens_in_range():
    model = small().to(torch.bfloat16)
    found = drawn(model, prompts(2), prompts(1))
    assert found.shape == (2, 14) and found.min() >= 0 and found.max() < 64


def test_one_seed_draws_the_same_on_every_device(device):
    model, wanted = small(), prompts(2)
    right = drawn(model, wanted, wanted[:1])
    assert torch.equal(drawn(model.to(device), wanted, wanted[:1]).cpu(), right)
