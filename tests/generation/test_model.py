"""What goes in and comes out of a generator, and what is said when it does not fit."""

import pytest
import torch
from generation_cases import prompts, small, small_tokenizer

from tokenflow import TokenFlowForGeneration, TokenFlowGenerationConfig

FAST = {"refinement": [(8, 0.9)], "guidance_scale": 2.0}


class Words:
    """A text tokenizer of one id a letter."""

    bos_token_id, eos_token_id = 1, 2

    def __call__(self, text, add_special_tokens=True):
        assert not add_special_tokens
        return {"input_ids": [3 + ord(letter) % 17 for letter in text]}


@pytest.fixture(scope="module")
def model():
    model = small()
    model.text_tokenizer = Words()
    return model


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_words_become_pictures(model):
    pictures = model.generate(["ab", "c d"], num_images=2, generator=seeded(), **FAST)
    assert [picture.size for picture in pictures] == [(12, 12)] * 4
    again = model.generate(
        ["ab", "c d"], num_images=2, generator=seeded(), output="pt", **FAST
    )
    assert again.shape == (4, 3, 12, 12) and again.abs().max() <= 1
    tokens = model.generate("ab", generator=seeded(), output="tokens", **FAST)
    assert tokens.shape == (1, 14) and tokens.dtype == torch.int64
    redrawn = model.image_tokenizer.decode(tokens)[0]
    one = model.generate("ab", generator=seeded(), **FAST)[0]
    assert redrawn.tobytes() == one.tobytes()


def test_a_prompt_is_padding_start_words_and_img(model):
    from tokenflow.generation.prompts import prefix_ids, suffix_ids

    letters = Words()("<img>", False)["input_ids"]
    ids = prefix_ids(Words(), ["ab", "abcdefgh"], 6, 0)
    a, b = Words()("ab", False)["input_ids"]
    assert ids[0].tolist() == [0, 0, 0, 1, a, b, *letters]
    assert ids[1].tolist() == [1, *Words()("abcde", False)["input_ids"], *letters]
    assert suffix_ids(Words()).tolist() == [*Words()("</img>", False)["input_ids"], 2]
    with pytest.raises(TypeError, match="each prompt must be a str, got int"):
        prefix_ids(Words(), [3], 6, 0)


def test_the_stream_ends_with_what_generate_returns(model):
    steps = list(model.stream("a", generator=seeded(), output="tokens", **FAST))
    whole = model.generate("a", generator=seeded(), output="tokens", **FAST)
    assert [step.shape[1] for step in steps] == [1, 5, 14]
    assert all(torch.equal(step, whole[:, : step.shape[1]]) for step in steps)
    seen = list(model.stream("a", generator=seeded(), output="pt", **FAST))
    assert torch.equal(seen[-1], model.image_tokenizer.decode(whole, output="pt"))
    rough = model.image_tokenizer.decode(whole[:, :5], output="pt")
    assert torch.equal(seen[1], rough)


def test_the_negative_prompt_is_the_configs_unless_told(model, monkeypatch):
    def tokens(**more):
        return model.generate(
            "abc", generator=seeded(), output="tokens", **{**FAST, **more}
        )

    plain = tokens()
    assert torch.equal(tokens(negative_prompt=""), plain)
    assert not torch.equal(tokens(negative_prompt="zzz"), plain)
    monkeypatch.setattr(model.config, "negative_prompt", "zzz")
    assert torch.equal(tokens(), tokens(negative_prompt="zzz"))
    assert torch.equal(tokens(negative_prompt=["zzz"]), tokens())


@pytest.mark.parametrize(
    ("given", "settings", "error", "words"),
    [
        ("a", {"output": "gif"}, ValueError, "output must be one of"),
        ("a", {"num_images": 0}, ValueError, "num_images must be ≥ 1"),
        ([], {}, ValueError, "prompts must be at least one text"),
        ([3], {}, TypeError, "each prompt must be a str"),
        ("", {}, ValueError, "prompts must say something, got ''"),
        (["a", " "], {}, ValueError, r"prompts\[1\] must say something"),
        ("abcdef", {}, ValueError, "prompts must have at most 5 tokens, got 6"),
        ("a", {"negative_prompt": "abcdef"}, ValueError, "negative_prompt must have"),
        ("a", {"guidance_scale": -1}, ValueError, "guidance_scale must be ≥ 0"),
        ("a", {"refinement": [(600,), (0.6,)]}, ValueError, "must be pairs"),
        (["a", "b"], {"generator": [None]}, ValueError, "one or 2, one for each"),
        (["a", "b"], {"negative_prompt": ["c"] * 3}, ValueError, "one or 2"),
        (torch.zeros(3), {}, ValueError, r"must be \[B, P\] integers"),
        (torch.zeros(1, 4), {}, ValueError, "integers"),
    ],
)
def test_what_is_no_prompt_or_setting_is_told(model, given, settings, error, words):
    with pytest.raises(error, match=words):
        model.generate(given, **{**FAST, **settings})


def test_words_that_the_tokenizer_has_not_are_named(model, monkeypatch):
    monkeypatch.setattr(Words, "unk_token_id", 3 + ord("q") % 17, raising=False)
    with pytest.raises(ValueError, match=r"prompts\[1\] must be of .* 'qa' is not"):
        model.generate(["a", "b qa"], **FAST)


def test_more_pictures_than_fit_are_refused_before_any_work(model, monkeypatch):
    from tokenflow.generation import memory

    facts = {"guided": True, "passes": 1, "scales": model.scales}
    one = memory.needed(model, 1, 7, **facts)
    layers, width, positions = 2, 2 * 2 * 8, 7 + 13
    assert one > 4 * 2 * layers * width * positions  # the keys and values alone
    assert memory.needed(model, 9, 7, **facts) == 9 * one
    assert memory.needed(model, 1, 7, **{**facts, "guided": False}) < one
    assert memory.needed(model, 1, 7, **{**facts, "scales": model.scales[:1]}) < one
    monkeypatch.setattr(memory, "available", lambda device: 5 * one)
    monkeypatch.setattr(model.llama, "forward", None)  # nothing may run
    with pytest.raises(ValueError, match="6 pictures .* draw at most [45] at a time"):
        model.generate(["a", "b"], num_images=3, **FAST)


def test_each_prompt_may_have_a_generator_of_its_own(model):
    words, seeds = ["a", "bcd", "ef"], (5, 6, 7)
    together = model.generate(
        words,
        num_images=2,
        generator=[seeded(seed) for seed in seeds],
        output="tokens",
        **FAST,
    )
    for row, (word, seed) in enumerate(zip(words, seeds, strict=True)):
        alone = model.generate(
            word, num_images=2, generator=seeded(seed), output="tokens", **FAST
        )
        assert torch.equal(together[2 * row : 2 * row + 2], alone)


def test_words_need_a_text_tokenizer():
    model = small()
    with pytest.raises(ValueError, match="need a text tokenizer"):
        model.generate("a")
    assert model.generate(prompts(1), negative_prompt=prompts(1), **FAST)


def test_a_picture_needs_an_image_tokenizer():
    model = small()
    model._attached = []
    with pytest.raises(ValueError, match="an image tokenizer must be attached"):
        model.generate(prompts(1), guidance_scale=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scales": (1, 2, 4)}, "scales = "),
        ({"codebook_size": 32}, "codebook_size = 64"),
        ({"pixel_dim": 8}, "code_width = 12"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(changes, words):
    with pytest.raises(ValueError, match=f"attach: .*{words}"):
        small().attach(small_tokenizer(**changes))


def test_a_tokenizer_of_other_books_is_refused():
    model = small()
    model.config.fingerprint = model.image_tokenizer.fingerprint()
    torch.manual_seed(1)
    with pytest.raises(ValueError, match="the one of the model's training"):
        model.attach(small_tokenizer())


def test_the_tokenizer_moves_along_and_is_no_part_of_the_weights():
    model = small()
    assert not any("tokenizer" in key for key in model.state_dict())
    model.to(torch.bfloat16)
    assert model.image_tokenizer.dtype == torch.bfloat16
    assert {book.dtype for book in model.image_tokenizer.quantizer.books()} == {
        torch.float32
    }
    assert not any(p.requires_grad for p in model.image_tokenizer.parameters())


def test_a_model_learns_a_picture_by_heart():
    torch.manual_seed(0)
    model = small(sure=0.1).train()
    wanted, suffix = prompts(2), torch.tensor([5, 2])
    indices = torch.randint(64, (2, 14))
    moves = torch.optim.AdamW(model.parameters(), lr=1e-2)
    first = model(wanted, indices, suffix).loss.item()
    for _ in range(40):
        found = model(wanted, indices, suffix)
        moves.zero_grad()
        found.loss.backward()
        moves.step()
    assert first > 3 and found.loss.item() < 0.1
    drawn = model.eval().generate(
        wanted, guidance_scale=0, refinement=[(1, 0.0)], output="tokens"
    )
    assert torch.equal(drawn, indices)


def test_checkpointed_layers_give_the_same_gradients():
    model, indices = small().train(), torch.randint(64, (2, 14))
    model(prompts(2), indices).loss.backward()
    right = {key: p.grad.clone() for key, p in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(prompts(2), indices).loss.backward()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, right[key])


@pytest.mark.parametrize("many", [None, 3])
def test_losses_are_the_same_without_logits(many):
    model, indices = small().train(), torch.randint(64, (2, 14))
    given = {"suffix": torch.tensor([5, 2]), "with_text": True}
    if many:
        given["near"] = torch.randint(64, (2, 14, many))
        given["shares"] = torch.rand(2, 14, many).softmax(-1)
    found = []
    for with_logits in (True, False):
        model.zero_grad()
        made = model(prompts(2), indices, **given, with_logits=with_logits)
        made.loss.backward()
        assert (made.logits is not None) == with_logits
        slopes = [p.grad.clone() for p in model.parameters()]
        found.append([made.loss, made.image_loss, made.text_loss, *slopes])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_the_token_alone_is_a_target_without_neighbours():
    model, indices = small(), torch.randint(64, (2, 14))
    alone = model(prompts(2), indices).loss
    for shares in (None, torch.ones(2, 14, 1)):
        found = model(prompts(2), indices, near=indices[..., None], shares=shares)
        assert torch.equal(found.loss, alone)
    twice = indices[..., None].expand(-1, -1, 2)
    torch.testing.assert_close(model(prompts(2), indices, near=twice).loss, alone)


@pytest.mark.parametrize(
    ("near", "shares", "words"),
    [
        ((2, 13, 3), None, r"near must be \[2, 14, 'm'\] with m ≥ 1, got \[2, 13, 3\]"),
        ((2, 14, 0), None, r"near must be .*, got \[2, 14, 0\]"),
        ((2, 14, 3), (2, 14, 1), r"shares must be \[2, 14, 3\], got \[2, 14, 1\]"),
        (None, (2, 14, 3), r"shares must be \[2, 14, 1\], got \[2, 14, 3\]"),
    ],
)
def test_neighbours_that_do_not_fit_are_told(near, shares, words):
    near = None if near is None else torch.zeros(near, dtype=torch.int64)
    shares = None if shares is None else torch.ones(shares)
    indices = torch.zeros(2, 14, dtype=torch.int64)
    with pytest.raises(ValueError, match=f"forward: {words}"):
        small()(prompts(2), indices, near=near, shares=shares)


def test_part_of_a_picture_is_no_training_example():
    with pytest.raises(ValueError, match=r"indices must be \[B, 14\].*got \[2, 5\]"):
        small()(prompts(2), torch.zeros(2, 5, dtype=torch.int64))


def test_settings_that_are_not_given_are_the_configs(monkeypatch):
    model, told = small(), []
    assert model.config.sampling["guidance_scale"] == 7.5  # the paper's
    assert model.config.sampling["refinement"] == [[1200, 0.8], [100, 0.8], [1, 0.0]]
    monkeypatch.setattr(
        "tokenflow.generation.drawing.draw_scales",
        lambda *args, **kwargs: told.append(kwargs) or iter(()),
    )
    model.config.sampling = {"guidance_scale": 2.0, "refinement": [[3, 0.5]]}
    for given in ({}, {"guidance_scale": 0.0}, {"refinement": [(0, 0.0), (1, 0.0)]}):
        words = {"negative_prompt": prompts(1), "output": "tokens"}
        list(model.stream(prompts(1), **words, **given))
    found = [(one["guidance"], one["passes"]) for one in told]
    assert found == [(2, [(3, 0.5)]), (0, [(3, 0.5)]), (2, [(0, 0.0), (1, 0.0)])]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampling": {"k": 3}}, "sampling must have only"),
        ({"sampling": {"guidance_scale": -1.0}}, "guidance_scale must be ≥ 0, got -1"),
        ({"sampling": {"refinement": [[1, 2.0]]}}, "refinement must be pairs"),
        ({"pad_id": 512}, "pad_id must be a text id"),
        ({"image_start": 0}, "image_start must be ≥ 1"),
        ({"embedded": 3}, "embedded must be ≥ image_start"),
        ({"language": {"num_attention_heads": 5}}, "multiple of its 5 attention heads"),
    ],
)
def test_a_config_that_does_not_fit_is_told(changes, words):
    with pytest.raises(ValueError, match=f"TokenFlowGenerationConfig: .*{words}"):
        TokenFlowGenerationConfig.preset("mini", **changes)


def test_tables_start_as_published():
    config = TokenFlowGenerationConfig.preset("mini", language={"num_hidden_layers": 1})
    model = TokenFlowForGeneration(config)
    for table in (model.levels, model.positions):
        assert abs(table.std().item() * (3 * 192) ** 0.5 - 1) < 0.1
        assert table.abs().max() <= 2


@pytest.mark.parametrize("branch", [1.0, 0.2])
def test_norms_behind_branches_begin_as_told(branch):
    model = small(branch=branch)
    for layer in model.llama.layers:
        assert layer.attention_norm.weight.eq(branch).all()
        assert layer.mlp_norm.weight.eq(branch).all()
        assert layer.attention.query_norm.weight.eq(1).all()
    assert model.llama.norm.weight.eq(1).all()


def test_what_is_read_begins_as_large_as_told():
    models = []
    for inputs in (1.0, 10.0):
        torch.manual_seed(0)
        facts = {"language": {"num_hidden_layers": 1}, "inputs": inputs}
        config = TokenFlowGenerationConfig.preset("mini", **facts)
        models.append(TokenFlowForGeneration(config))
    for key in ("levels", "embed.weight", "projector.2.weight"):
        before, after = (model.get_parameter(key).std().item() for model in models)
        assert after == pytest.approx(10 * before, rel=0.05)
    assert models[1].positions.std().item() == pytest.approx((3 * 192) ** -0.5, rel=0.1)


def test_presets_are_named():
    with pytest.raises(ValueError, match=r"preset: must be one of \['llama_7b_256'"):
        TokenFlowGenerationConfig.preset("huge")
    config = TokenFlowGenerationConfig.preset("llama_7b_256")
    assert (config.num_tokens, config.vocabulary) == (817, 64769)
