"""`tokenflow convert`: a published file in, a folder out; or nothing and a reason."""

import json
from pathlib import Path

import pytest
import torch

from tokenflow import TokenFlowConfig, TokenFlowTokenizer, checkpoint


@pytest.fixture
def upstream(tmp_path, monkeypatch, tokenizer, model):
    """upstream.pt and config.json, in a folder that is made current."""
    monkeypatch.chdir(tmp_path)
    state = checkpoint.to_upstream(tokenizer.state_dict(), "clip")
    torch.save({"model": state}, "upstream.pt")
    config = (Path(model) / "config.json").read_text()
    Path("config.json").write_text(config)
    return state


CONVERT = ("convert", "upstream.pt", "out", "--config", "config.json")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_converted_loads_and_is_the_same(run, upstream, tokenizer, dtype):
    code, out, err = run(*CONVERT, "--dtype", dtype, "--json")
    assert (code, err) == (0, "")
    done = json.loads(out)["done"][0]
    assert done["fingerprint"] == tokenizer.fingerprint()
    assert done["parameters"] == sum(p.numel() for p in tokenizer.parameters())
    loaded = TokenFlowTokenizer.from_pretrained("./out").state_dict()
    for key, value in tokenizer.state_dict().items():
        stored = torch.float32 if "quantizer" in key else getattr(torch, dtype)
        assert torch.equal(loaded[key], value.to(stored).float()), key


def test_the_line_says_what_it_was(run, upstream, tokenizer):
    code, out, err = run(*CONVERT)
    assert (code, err) == (0, "")
    assert out.startswith("upstream.pt -> out  clip, 64 pixels, ")
    assert out.endswith(f" parameters, float32, model {tokenizer.fingerprint()}\n")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda state: state.pop("encoder.conv_in.weight"), "encoder.conv_in.weight"),
        (lambda state: state.update(extra=torch.ones(1)), "extra"),
        (lambda state: state.update({"quant_conv.bias": torch.ones(3)}), "[3]"),
    ],
    ids=["missing", "too much", "shape"],
)
def test_weights_that_do_not_fit_are_named(run, upstream, harm, message):
    harm(upstream)
    torch.save({"model": upstream}, "upstream.pt")
    code, out, err = run(*CONVERT)
    assert (code, out) == (1, "")
    assert err.startswith("failed: upstream.pt: ") and message in err
    assert not Path("out").exists()


def test_a_truncated_file_leaves_nothing(run, upstream):
    whole = Path("upstream.pt").read_bytes()
    Path("upstream.pt").write_bytes(whole[: len(whole) // 2])
    code, _, err = run(*CONVERT)
    assert code == 1 and "upstream.pt" in err and "truncated" in err
    assert sorted(p.name for p in Path.cwd().iterdir()) == [
        "config.json",
        "upstream.pt",
    ]


def test_no_such_file_is_a_failure(run, upstream):
    code, _, err = run("convert", "gone.pt", "out")
    assert code == 1 and err.startswith("failed: gone.pt: ")


def test_sizes_of_no_published_model_need_a_config(run, upstream):
    code, _, err = run("convert", "upstream.pt", "out")
    assert code == 1 and err.startswith("failed: upstream.pt: ")
    assert not Path("out").exists()


def test_a_model_that_is_there_stays_unless_asked(run, upstream):
    assert run(*CONVERT).code == 0
    code, _, err = run(*CONVERT)
    assert code == 2 and "--overwrite" in err
    assert run(*CONVERT, "--overwrite").code == 0
    Path("file").touch()
    code, _, err = run("convert", "upstream.pt", "file")
    assert code == 2 and "must be a folder" in err


@pytest.mark.slow
def test_a_published_layout_is_recognised(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.device("meta"):
        made = TokenFlowTokenizer(TokenFlowConfig.preset("clip_b_224"))
    made = made.to_empty(device="cpu")
    for parameter in made.parameters():
        parameter.data.fill_(0.5)
    torch.save(checkpoint.to_upstream(made.state_dict(), "clip"), "b.pt")
    code, out, err = run("convert", "b.pt", "out", "--dtype", "float16")
    assert (code, err) == (0, "")
    assert out.startswith("b.pt -> out  clip, 224 pixels, 181,902,251 parameters")
    assert Path("out/model.safetensors").stat().st_size < 370_000_000


def test_an_understanding_model_is_converted(run, tmp_path, monkeypatch):
    import tiny_understanding as tiny

    from tokenflow import TokenFlowForUnderstanding

    monkeypatch.chdir(tmp_path)
    model = tiny.model(template="plain")
    weights = {
        checkpoint.upstream_understanding_name(key): value
        for key, value in model.state_dict().items()
        if not key.startswith("tokenizer.")
    }
    Path("llava").mkdir()
    torch.save(weights, "llava/pytorch_model.bin")
    settings = {**tiny.TEXT, "model_type": "llava_qwen", "mm_vision_tower": ""}
    Path("llava/config.json").write_text(json.dumps(settings))
    tiny.words().save_pretrained("llava")
    eyes = model.tokenizer.state_dict()
    torch.save({"model": checkpoint.to_upstream(eyes, "siglip")}, "tokenizer.pt")
    model.tokenizer.config.save_pretrained("sizes")
    words = ("--image-tokenizer", "tokenizer.pt", "--config", "sizes/config.json")
    code, out, err = run("convert", "llava", "out", *words, "--dtype", "bfloat16")
    assert (code, err) == (0, "")
    count = sum(parameter.numel() for parameter in model.parameters())
    said = f"understanding, qwen2, 16 image tokens, {count:,} parameters, bfloat16"
    assert out == f"llava -> out  {said}\n"
    read = TokenFlowForUnderstanding.from_pretrained("./out").state_dict()
    for key, value in model.state_dict().items():
        stored = value if key.startswith("tokenizer.") else value.bfloat16()
        assert torch.equal(read[key], stored), key
    code, out, err = run("convert", "llava", "other")
    assert (code, out) == (1, "") and "must come with an image tokenizer" in err
    assert not Path("other").exists()
    model.language_model.save_pretrained("language")
    tiny.words().save_pretrained("language")
    kept = {k: v for k, v in weights.items() if "mm_projector" in k}
    torch.save(kept, "mm_projector.bin")
    words += ("--language-model", "language")
    code, out, err = run("convert", "mm_projector.bin", "aligned", *words)
    assert (code, err) == (0, "") and "float32" in out
    asked = (tiny.picture(), "What?")
    aligned = TokenFlowForUnderstanding.from_pretrained("./aligned")
    assert aligned.answer(*asked, max_new_tokens=4) == model.answer(
        *asked, max_new_tokens=4
    )
