"""Every example runs as it says, is short, and has a test here."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open

from tokenflow import TokenFlowConfig, TokenFlowTokenizer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name, *words):
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, words)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_is_short_and_tested():
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert len(scripts) == 3
    here = Path(__file__).read_text(encoding="utf-8")
    for script in scripts:
        assert len(script.read_text(encoding="utf-8").splitlines()) < 40, script
        assert f'example("{script.name}"' in here


def test_the_ops_train_a_model():
    out = example("ops_in_your_model.py")
    errors = [float(number) for number in re.findall(r"error ([\d.]+),", out)]
    assert len(errors) == 3 and errors[-1] < errors[0] / 4
    assert "of 64 entries in use" in out


def test_a_folder_becomes_one_array(tmp_path):
    torch.manual_seed(0)
    tokenizer = TokenFlowTokenizer(TokenFlowConfig.preset("mini")).eval()
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    pictures = {"a.png": "orange", "deep/b.jpg": "navy"}
    for name, colour in pictures.items():
        Image.new("RGB", (80, 70), colour).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "broken.png").write_text("no picture")
    words = (tmp_path / "photos", tmp_path / "all.safetensors", tmp_path / "model")
    out = example("tokenise_a_folder.py", *words)
    tokens = tokenizer.config.num_tokens
    assert out.startswith(f"2 pictures, {tokens} tokens each, in ")
    with safe_open(tmp_path / "all.safetensors", framework="pt") as file:
        assert file.get_tensor("indices").shape == (2, tokens)
        assert json.loads(file.metadata()["names"]) == list(pictures)
        assert file.metadata()["model"] == tokenizer.fingerprint()


def test_another_library_gives_the_same_indices():
    out = example("accelerate_another_library.py")
    assert "_codebook" in out and "equal vectors: True" in out
    assert "equal indices: 100.00%" in out
