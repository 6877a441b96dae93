"""Commands as a user gives them, in this process for speed or in one of theirs."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from small_tokenizer import small_tokenizer

from tokenflow.cli import main

QUIET = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)  # pictures this small are not worth waking a second one


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="session")
def model(tokenizer, tmp_path_factory):
    """Folder of a small tokenizer with random weights."""
    folder = tmp_path_factory.mktemp("models") / "small"
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "other"
    small_tokenizer(seed=1).save_pretrained(folder)
    return str(folder)


def picture(seed=0, size=(80, 60)):
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows * (seed + c + 1) / 9) + np.cos(columns / 7) for c in range(3)]
    return Image.fromarray((63 * np.stack(waves, axis=-1) + 127).astype(np.uint8))


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """photos/ with three pictures at two depths, in a folder that is made current."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    (folder / "deep" / "deeper").mkdir(parents=True)
    picture(1).save(folder / "one.png")
    picture(2, (50, 90)).save(folder / "two.JPG")
    picture(3).save(folder / "deep" / "deeper" / "one.png")
    (folder / "notes.txt").write_text("no picture, and not asked for")
    return folder


@pytest.fixture
def run(monkeypatch, capfd):
    """run("info", "--json") calls the entry point and returns (code, out, err).

    Without --device it works on the CPU, where the tests' own tokenizer is.
    """
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["tokenflow", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        return Result(stopped.value.code or 0, *capfd.readouterr())

    return call


@pytest.fixture
def shell(tmp_path):
    """The same in a process of its own, through the installed script."""

    def call(*words, **environment):
        script = Path(sys.executable).with_name("tokenflow")
        done = subprocess.run(
            [script, *map(str, words)],
            cwd=tmp_path,
            env={**os.environ, **QUIET, **environment},
            capture_output=True,
            encoding="utf-8",
            timeout=300,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return call
