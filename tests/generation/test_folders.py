"""A model is saved with its tokenizers and loads as it was; published ones convert."""

import json
import shutil

import pytest
import torch
from generation_cases import prompts, small, small_tokenizer

from tokenflow import (
    TokenFlowForGeneration,
    TokenFlowGenerationConfig,
    checkpoint,
)

DRAW = {"guidance_scale": 2.0, "refinement": [(1, 0.0)], "output": "tokens"}
WORDS = ["[PAD]", "<s>", "</s>", "<unk>", "<img>", "</img>", "two", "cats", "a", "dog"]


def word_tokenizer():
    """One id a word, of transformers' own kind."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = {word: number for number, word in enumerate(WORDS)}
    inner = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="[PAD]",
    )


@pytest.fixture
def model():
    made = small()
    made.text_tokenizer = word_tokenizer()
    return made


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def tokens(model, *words, **settings):
    return model.generate(
        list(words), generator=torch.Generator().manual_seed(0), **{**DRAW, **settings}
    )


def test_a_folder_brings_weights_and_both_tokenizers(model, tmp_path):
    model.save_pretrained(tmp_path / "made")
    read = TokenFlowForGeneration.from_pretrained(tmp_path / "made")
    assert same(read, model) and same(read.image_tokenizer, model.image_tokenizer)
    place = {"_name_or_path": ""}
    assert read.config.to_dict() | place == model.config.to_dict()
    words = ("two cats", "a dog")
    assert torch.equal(tokens(read, *words), tokens(model, *words))
    again = tmp_path / "again"
    read.save_pretrained(again)
    read.save_pretrained(again)  # over itself
    assert same(TokenFlowForGeneration.from_pretrained(again), model)
    half = TokenFlowForGeneration.from_pretrained(again, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.image_tokenizer.dtype == torch.bfloat16
    assert tokens(half, "a dog").shape == (1, 14)


def test_automodel_finds_it(model, tmp_path):
    from transformers import AutoModel

    model.save_pretrained(tmp_path)
    read = AutoModel.from_pretrained(tmp_path)
    assert isinstance(read, TokenFlowForGeneration)
    assert same(read.image_tokenizer, model.image_tokenizer)


def test_a_named_tokenizer_is_not_copied(model, tmp_path, monkeypatch):
    named = tmp_path / "shipped" / "small"
    model.image_tokenizer.save_pretrained(named)
    monkeypatch.setattr("tokenflow.checkpoint.files.SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr("tokenflow.checkpoint.SHIPPED", tmp_path / "shipped")
    model.config.image_tokenizer = "small"
    model.save_pretrained(tmp_path / "shipped" / "small-generation")
    assert not (tmp_path / "shipped" / "small-generation" / "image_tokenizer").exists()
    read = TokenFlowForGeneration.from_pretrained("small")
    assert same(read, model) and same(read.image_tokenizer, model.image_tokenizer)
    torch.manual_seed(5)
    small_tokenizer().save_pretrained(named)
    with pytest.raises(ValueError, match="the one of the model's training"):
        TokenFlowForGeneration.from_pretrained("small")


def test_a_name_that_ships_as_a_tokenizer_alone_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("tokenflow.checkpoint.files.SHIPPED", tmp_path)
    monkeypatch.setattr("tokenflow.checkpoint.SHIPPED", tmp_path)
    small_tokenizer().save_pretrained(tmp_path / "some")
    with pytest.raises(
        OSError, match="'some' is no folder, none of those shipped for generation"
    ):
        TokenFlowForGeneration.from_pretrained("some")
    with pytest.raises(ValueError, match="must be a generation model"):
        TokenFlowForGeneration.from_pretrained(tmp_path / "some")
    with pytest.raises(OSError, match="none of those shipped"):
        TokenFlowForGeneration.from_pretrained("nothing")


def test_weights_that_do_not_fit_are_named(model, tmp_path):
    from safetensors.torch import load_file, save_file

    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    whole = dict(weights)
    del weights["levels"]
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError, match="1 weights are missing: .'levels'"):
        TokenFlowForGeneration.from_pretrained(tmp_path)
    save_file({**whole, "positions": whole["positions"][:3]}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"positions is \[3, 32\] where \[14, 32\]"):
        TokenFlowForGeneration.from_pretrained(tmp_path)


# published weights


def narrow():
    """The published layout, every key of it, as narrow as it goes."""
    config = TokenFlowGenerationConfig.preset(
        "llama_7b_256",
        language={
            "hidden_size": 8,
            "intermediate_size": 12,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        },
    )
    torch.manual_seed(0)
    return TokenFlowForGeneration(config).eval()


@pytest.fixture(scope="module")
def published():
    model = narrow()
    weights = checkpoint.generation_to_upstream(model.state_dict())
    return model, {key: value.half() for key, value in weights.items()}


FACTS = {
    "model_type": "llava_llama",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vq_codebook_size": 32768,
}


def write_shards(weights, folder, kind):
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(FACTS))
    keys, index = sorted(weights), {}
    for number, part in enumerate((keys[::2], keys[1::2]), start=1):
        some = {key: weights[key] for key in part}
        if kind == "safetensors":
            name = f"model-0000{number}-of-00002.safetensors"
            save_file(some, folder / name, {"format": "pt"})
        else:
            name = f"pytorch_model-0000{number}-of-00002.bin"
            torch.save(some, folder / name)
        index |= dict.fromkeys(part, name)
    stem = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    (folder / f"{stem}.index.json").write_text(json.dumps({"weight_map": index}))


def layout(width, mlp, head):
    """Names and shapes of the published model, as they are documented."""
    yield "model.embed_tokens.weight", (64769, width)
    for number in range(32):
        layer = f"model.layers.{number}."
        for part in "qkvo":
            yield f"{layer}self_attn.{part}_proj.weight", (width, width)
        yield f"{layer}self_attn.qknorm.query_norm.weight", (head,)
        yield f"{layer}self_attn.qknorm.key_norm.weight", (head,)
        yield f"{layer}mlp.gate_proj.weight", (mlp, width)
        yield f"{layer}mlp.up_proj.weight", (mlp, width)
        yield f"{layer}mlp.down_proj.weight", (width, mlp)
        yield f"{layer}input_layernorm.weight", (width,)
        yield f"{layer}post_attention_layernorm.weight", (width,)
    yield "model.norm.weight", (width,)
    yield "model.mm_projector.0.weight", (width, 40)
    yield "model.mm_projector.0.bias", (width,)
    yield "model.mm_projector.2.weight", (width, width)
    yield "model.mm_projector.2.bias", (width,)
    yield "model.lvl_embed.weight", (10, width)
    yield "model.pos_1LC", (817, width)
    yield "lm_head.weight", (64769, width)


def test_the_full_size_has_the_published_names_shapes_and_parameters():
    with torch.device("meta"):
        model = TokenFlowForGeneration(TokenFlowGenerationConfig.preset("llama_7b_256"))
    upstream = checkpoint.generation_to_upstream(model.state_dict())
    shapes = {key: tuple(value.shape) for key, value in upstream.items()}
    assert shapes == dict(layout(4096, 11008, 128))
    assert len(shapes) == 361
    assert sum(p.numel() for p in model.parameters()) == 7_027_204_096
    back = map(checkpoint.our_generation_name, upstream)
    assert [*back] == [*model.state_dict()]


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_published_folder_is_read(published, tmp_path, kind):
    model, weights = published
    extra = {"image_token_start": torch.tensor(32001), "image_token_end": torch.ones(1)}
    rotary = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    write_shards({**weights, **extra, **rotary}, tmp_path / "t2i", kind)
    read = TokenFlowForGeneration.from_upstream(tmp_path / "t2i")
    assert read.config.language | {"rope_parameters": None} == {
        **model.config.language,
        "rope_parameters": None,
    }
    left = {"language": None, "dtype": None}
    assert read.config.to_dict() | left == model.config.to_dict() | left
    for key, value in read.state_dict().items():
        assert torch.equal(value.float(), model.state_dict()[key].half().float()), key


def test_a_shard_that_is_missing_is_named(published, tmp_path):
    write_shards(published[1], tmp_path / "t2i", "safetensors")
    (tmp_path / "t2i" / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-00002.*are not there"):
        TokenFlowForGeneration.from_upstream(tmp_path / "t2i")
    shutil.rmtree(tmp_path / "t2i")
    with pytest.raises(FileNotFoundError, match="t2i"):
        TokenFlowForGeneration.from_upstream(tmp_path / "t2i")


def test_weights_of_something_else_are_told(published, tmp_path):
    _, weights = published
    with pytest.raises(ValueError, match="must be a text-to-image model.*other"):
        checkpoint.recognise_generation({"other": torch.ones(1)})
    odd = {**weights, "model.pos_1LC": torch.ones(9, 8)}
    with pytest.raises(ValueError, match="9 image tokens and 10 levels"):
        checkpoint.recognise_generation(odd)
    torch.save({**weights, "extra": torch.ones(1)}, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match="1 are not this model's: .'extra'"):
        TokenFlowForGeneration.from_upstream(tmp_path / "odd.pt")


def test_a_converted_model_draws(model, tmp_path):
    """Through upstream's names and back, with the tokens unchanged."""
    torch.save(checkpoint.generation_to_upstream(model.state_dict()), tmp_path / "a.pt")
    read = TokenFlowForGeneration.from_upstream(tmp_path / "a.pt", model.config)
    read.attach(model.image_tokenizer)
    ids = prompts(2)
    settings = {**DRAW, "negative_prompt": ids[:1]}
    assert torch.equal(read.generate(ids, **settings), model.generate(ids, **settings))
