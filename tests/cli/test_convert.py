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
