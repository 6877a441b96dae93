"""Pictures among words: batches, caches, beams, dtypes, devices, adapters."""

import threading

import pytest
import tiny_understanding as tiny
import torch

from tokenflow import TokenFlowForUnderstanding, TokenFlowProcessor
from tokenflow.tokenizer.model import STRATEGIES

ASK = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


@pytest.fixture(scope="module")
def model():
    return tiny.model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    model.save_pretrained(folder)
    return folder


def three(processor):
    """No picture, one, and two in one batch."""
    texts = [
        processor.prompt("How are you?", 0),
        processor.prompt("What is it?", 1),
        processor.prompt("Is <image> like <image>, or do they differ?", 2),
    ]
    return texts, [tiny.picture(1), tiny.picture(2), tiny.picture(3)]


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt_neox"])
def test_any_language_model_reads_pictures(family):
    changes = {"num_key_value_heads": None} if family == "gpt_neox" else {}
    model = tiny.model(family, text=changes)
    assert isinstance(model.answer(tiny.picture(), "What?", **ASK), str)
    prompt = model.processor.prompt("What?")
    one, other = (
        logits(model, model.processor(tiny.picture(seed), prompt))[0, -1]
        for seed in (1, 2)
    )
    assert not torch.allclose(one, other, atol=1e-2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_features_of_each_strategy_take_the_places(strategy):
    model = tiny.model(strategy=strategy)
    places = {"last": 16, "semantic": 16, "all": 21, "residual": 21}[strategy]
    assert model.config.image_tokens == places
    inputs = model.processor(tiny.picture(), model.processor.prompt("What?"))
    is_image = inputs["input_ids"][0] == tiny.IMAGE_ID
    assert is_image.sum() == places
    features = model.tokenizer.understanding_features(inputs["pixel_values"], strategy)
    with torch.no_grad():
        embedded = model.embed(inputs["input_ids"], inputs["pixel_values"])[0]
        assert torch.equal(embedded[is_image], model.projector(features)[0])
        table = model.get_input_embeddings()
        rest = inputs["input_ids"][0][~is_image]
        assert torch.equal(embedded[~is_image], table(rest))


def test_a_batch_of_mixed_prompts_is_each_of_them(model):
    texts, pictures = three(model.processor)
    together = model.processor(pictures, texts)
    assert (
        together["attention_mask"].sum(1).tolist()
        != [together["input_ids"].shape[1]] * 3
    )
    batch = logits(model, together)
    groups = [None, pictures[:1], pictures[1:]]
    for row, (text, group) in enumerate(zip(texts, groups, strict=True)):
        alone = logits(model, model.processor(group, text))[0]
        torch.testing.assert_close(
            batch[row, -len(alone) :], alone, atol=2e-4, rtol=1e-4
        )


def test_positions_follow_from_the_mask(model):
    texts, pictures = three(model.processor)
    inputs = model.processor(pictures, texts)
    told = logits(model, inputs)
    positions = inputs.pop("position_ids")
    assert torch.equal(logits(model, inputs), told)
    assert positions[0, -1] == inputs["attention_mask"][0].sum() - 1


@pytest.mark.parametrize("beams", [1, 2])
def test_generation_is_that_of_one_prompt_at_a_time(model, beams):
    texts, pictures = three(model.processor)
    words = {**ASK, "num_beams": beams}
    inputs = model.processor(pictures, texts)
    made = model.generate(**inputs, **words)[:, inputs["input_ids"].shape[1] :]
    for row, group in enumerate([None, pictures[:1], pictures[1:]]):
        one = model.processor(group, texts[row])
        alone = model.generate(**one, **words)[0, one["input_ids"].shape[1] :]
        assert made[row, : len(alone)].tolist() == alone.tolist()


def test_several_answers_of_a_prompt_with_several_pictures(model):
    """Rows are repeated with their own pictures, not pictures beside each other."""
    texts, pictures = three(model.processor)
    inputs = model.processor(pictures, texts)
    tokens = model.tokenizer.encode(inputs["pixel_values"]).indices
    _, repeated = model._expand_inputs_for_generation(2, **inputs)
    assert torch.equal(repeated["indices"], tokens[[0, 0, 1, 2, 1, 2]])
    words = {**ASK, "num_beams": 2, "num_return_sequences": 2}
    both = model.generate(**inputs, **words)
    one = model.processor(pictures[1:], texts[2])
    alone = model.generate(**one, **words)[:, one["input_ids"].shape[1] :]
    assert both[4:, inputs["input_ids"].shape[1] :].tolist() == alone.tolist()


def test_the_cache_changes_nothing(model):
    inputs = model.processor(tiny.picture(), model.processor.prompt("What?"))
    cached = model.generate(**inputs, **ASK)
    assert torch.equal(model.generate(**inputs, **ASK, use_cache=False), cached)


def test_a_picture_is_never_said(model):
    assert model.generation_config.suppress_tokens == [tiny.IMAGE_ID]
    said = tiny.model()
    with torch.no_grad():
        said.get_output_embeddings().weight[tiny.IMAGE_ID] *= 100
    inputs = said.processor(tiny.picture(), said.processor.prompt("What?"))
    made = said.generate(**inputs, max_new_tokens=20, do_sample=True)
    assert tiny.IMAGE_ID not in made[0, inputs["input_ids"].shape[1] :]


def test_pictures_are_tokenized_once(model, monkeypatch):
    calls = []
    encode = model.tokenizer.encode
    monkeypatch.setattr(
        model.tokenizer, "encode", lambda *a, **k: calls.append(1) or encode(*a, **k)
    )
    inputs = model.processor(tiny.picture(), model.processor.prompt("What?"))
    model.generate(**inputs, **ASK)
    model.generate(**inputs, **ASK, num_beams=3)
    assert len(calls) == 2


def test_tokens_answer_as_their_picture_does(model, monkeypatch):
    pictures = [tiny.picture(1), tiny.picture(2)]
    encoded = model.tokenizer.encode(pictures, resize="pad")
    asked = {"question": "Which is darker?", **ASK}
    told = model.answer(pictures, **asked)
    monkeypatch.setattr(model.tokenizer, "features", None)  # no encoder is asked
    assert model.answer(None, indices=encoded.indices, **asked) == told
    assert model.answer(encoded, **asked) == told
    assert told


def test_an_answer_in_pieces_is_the_answer(model):
    asked = (tiny.picture(), "What is it?")
    pieces = list(model.answer(*asked, stream=True, max_new_tokens=40))
    assert "".join(pieces) == model.answer(*asked, max_new_tokens=40)


def test_nobody_listening_stops_the_work(model):
    before = threading.active_count()
    pieces = model.answer(tiny.picture(), "What?", stream=True, max_new_tokens=400)
    next(pieces)
    pieces.close()
    assert threading.active_count() == before


def test_a_failure_while_streaming_is_raised(model, monkeypatch):
    monkeypatch.setattr(model, "embed", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(model.answer(tiny.picture(), "What?", stream=True))


def test_an_answer_ends_with_its_mark(model, monkeypatch):
    """The template's end stops it though no configuration names it."""
    seen = {}
    monkeypatch.setattr(model, "generate", lambda **k: seen.update(k) or k["input_ids"])
    model.answer(None, "Hello?")
    room = model.context - seen["input_ids"].shape[1]
    assert seen["eos_token_id"] == [258] and seen["max_new_tokens"] == room
    monkeypatch.setattr(model.config.text_config, "max_position_embeddings", 4096)
    model.answer(None, "Hello?")
    assert seen["max_new_tokens"] == 512
    model.answer(None, "Hello?", max_new_tokens=3, eos_token_id=7)
    assert seen["eos_token_id"] == 7 and seen["max_new_tokens"] == 3


# dtypes and devices


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_picture_has_the_same_tokens_in_every_dtype(model, folder, dtype):
    narrow = TokenFlowForUnderstanding.from_pretrained(folder, dtype=dtype)
    cast = tiny.model().to(dtype)
    inputs = model.processor(tiny.picture(), model.processor.prompt("What?"))
    wide = model.tokenizer.understanding_features(inputs["pixel_values"])
    for other in (narrow, cast):
        assert {p.dtype for p in other.language_model.parameters()} == {dtype}
        assert {p.dtype for p in other.projector.parameters()} == {dtype}
        assert {p.dtype for p in other.tokenizer.parameters()} == {torch.float32}
        with torch.autocast("cpu", torch.bfloat16):
            features = other.image_features(inputs["pixel_values"])
        assert features.dtype == torch.bfloat16  # autocast is for the language
        seen = other.tokenizer.understanding_features(inputs["pixel_values"])
        assert torch.equal(seen, wide)
        assert other.generate(**inputs, **ASK).shape[1] > inputs["input_ids"].shape[1]


def test_parts_may_be_on_several_devices(folder, model, tmp_path):
    parts = {"tokenizer": "cpu", "projector": "cpu", "language_model": "disk"}
    spread = TokenFlowForUnderstanding.from_pretrained(
        folder, device_map=parts, offload_folder=tmp_path
    )
    asked = (tiny.picture(), "What is it?")
    assert spread.answer(*asked, **ASK) == model.answer(*asked, **ASK)
    whole = TokenFlowForUnderstanding.from_pretrained(folder, device_map="auto")
    assert whole.answer(*asked, **ASK) == model.answer(*asked, **ASK)


def test_a_tokenizer_that_is_nowhere_is_told(folder, tmp_path):
    parts = {"tokenizer": "disk", "projector": "cpu", "language_model": "cpu"}
    spread = TokenFlowForUnderstanding.from_pretrained(
        folder, device_map=parts, offload_folder=tmp_path
    )
    with pytest.raises(RuntimeError, match="tokenizer must be on a device"):
        spread.answer(tiny.picture(), "What?", **ASK)


@pytest.mark.slow
def test_the_language_model_compiles(model):
    compiled = tiny.model()
    compiled.language_model.compile(backend="aot_eager", dynamic=True)
    inputs = model.processor(tiny.picture(), model.processor.prompt("What?"))
    torch.testing.assert_close(logits(compiled, inputs), logits(model, inputs))
    assert torch.equal(
        compiled.generate(**inputs, **ASK), model.generate(**inputs, **ASK)
    )


# training


def test_gradients_reach_all_but_the_tokenizer():
    model = tiny.model().train()
    assert not model.tokenizer.training and model.language_model.training
    inputs = model.processor(tiny.picture(), model.processor.prompt("What?"))
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == tiny.IMAGE_ID, -100)
    loss = model(**inputs, labels=labels).loss
    shifted = model(**inputs).logits[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(shifted, labels[:, 1:].flatten())
    torch.testing.assert_close(loss, expected)
    loss.backward()
    given = {
        name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None
    }
    assert given == {"projector", "language_model"}
    assert all(p.grad.abs().sum() > 0 for p in model.projector.parameters())


def test_small_matrices_train_beside_it(tmp_path):
    peft = pytest.importorskip("peft")
    model = tiny.model()
    inputs = model.processor(tiny.picture(), model.processor.prompt("What?"))
    before = logits(model, inputs)
    config = peft.LoraConfig(
        r=2, target_modules=r"language_model\..*\.(q|v)_proj", init_lora_weights=False
    )
    adapted = peft.get_peft_model(model, config).eval()
    trained = [n for n, p in adapted.named_parameters() if p.requires_grad]
    assert trained and all("language_model" in n and "lora" in n for n in trained)
    after = logits(adapted, inputs)
    assert not torch.allclose(after, before)
    adapted.train()(
        **inputs, labels=inputs["input_ids"].clamp_max(tiny.WORDS)
    ).loss.backward()
    adapted.save_pretrained(tmp_path)
    read = peft.PeftModel.from_pretrained(tiny.model(), tmp_path).eval()
    torch.testing.assert_close(logits(read, inputs), after)
    said = read.generate(**inputs, **ASK)
    merged = read.merge_and_unload()
    torch.testing.assert_close(logits(merged, inputs), after, atol=1e-4, rtol=1e-3)
    assert torch.equal(merged.generate(**inputs, **ASK), said)


# files


def test_a_model_comes_back_from_its_folder(model, folder):
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    asked = (tiny.picture(), "What is it?")
    read = TokenFlowForUnderstanding.from_pretrained(folder)
    assert read.config.image_token_id == model.config.image_token_id
    assert read.config.text_config.hidden_size == 32
    assert read.config.tokenizer_config.scales == [1, 2, 4]
    assert read.answer(*asked, **ASK) == model.answer(*asked, **ASK)
    assert not read.training and not read.tokenizer.quantizer.training
    auto = AutoModelForImageTextToText.from_pretrained(folder)
    assert isinstance(auto, TokenFlowForUnderstanding)
    assert auto.answer(*asked, **ASK) == model.answer(*asked, **ASK)
    assert isinstance(AutoProcessor.from_pretrained(folder), TokenFlowProcessor)
    assert AutoConfig.from_pretrained(folder).image_tokens == 16


def test_words_in_and_out_may_be_tied(tmp_path):
    model = tiny.model(text={"tie_word_embeddings": True})
    assert model.config.tie_word_embeddings
    model.save_pretrained(tmp_path)
    read = TokenFlowForUnderstanding.from_pretrained(tmp_path)
    assert read.get_input_embeddings().weight is read.get_output_embeddings().weight
    asked = (tiny.picture(), "What is it?")
    assert read.answer(*asked, **ASK) == model.answer(*asked, **ASK)


def test_a_picture_needs_no_row_in_the_vocabulary():
    model = tiny.model(text={"vocab_size": tiny.WORDS})
    assert model.config.image_token_id == tiny.WORDS
    assert model.answer(tiny.picture(), "What?", **ASK)


def test_shipped_and_missing_models_are_told_apart(folder, monkeypatch, tmp_path):
    from tokenflow import checkpoint

    with pytest.raises(OSError, match=r"'nothing'.*none of those shipped for underst"):
        TokenFlowForUnderstanding.from_pretrained("nothing")
    monkeypatch.setattr(checkpoint.files, "SHIPPED", tmp_path)
    with pytest.raises(OSError, match=r"'mini'.*none of those shipped.*\(\[\]\)"):
        TokenFlowForUnderstanding.from_pretrained("mini")
    (tmp_path / "mini-understanding").symlink_to(folder)
    assert TokenFlowForUnderstanding.from_pretrained("mini").answer(None, "Hi", **ASK)


def test_weights_that_differ_are_named(folder, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(folder, other)
    weights = load_file(other / "model.safetensors")
    del weights["projector.2.bias"]
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing: \['projector.2.bias"):
        TokenFlowForUnderstanding.from_pretrained(other)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda i: i.pop("pixel_values"), "16 places of pictures.*neither"),
        (lambda i: i.update(indices=torch.zeros(1, 21, dtype=int)), "got both"),
        (lambda i: i.update(pixel_values=torch.zeros(2, 3, 32, 32)), "of 32 image.*16"),
        (lambda i: i.pop("input_ids"), "got neither"),
    ],
)
def test_inputs_that_do_not_fit_are_told(model, harm, message):
    inputs = model.processor(tiny.picture(), model.processor.prompt("What?"))
    harm(inputs)
    with pytest.raises(ValueError, match=message):
        model(**inputs)


def test_a_model_without_words_says_so():
    bare = TokenFlowForUnderstanding.from_parts(tiny.eyes(), tiny.speaker())
    with pytest.raises(ValueError, match="a TokenFlowProcessor must be set"):
        bare.answer(tiny.picture(), "What?")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "best"}, "strategy must be one of .* got 'best'"),
        ({"projector": "linear"}, "projector must be one of .* got 'linear'"),
    ],
)
def test_a_config_that_cannot_be_is_refused(change, message):
    from tokenflow import TokenFlowUnderstandingConfig

    with pytest.raises(ValueError, match=message):
        TokenFlowUnderstandingConfig(**change)
