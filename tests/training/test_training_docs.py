"""docs/training.md: its tables are the code's, its commands run.

The tables are written anew by `python tests/training/test_training_docs.py`.
"""

import dataclasses
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tokenflow.cli import build
from tokenflow.training.config import load, recipes
from tokenflow.training.dialogues import DialogueConfig
from tokenflow.training.generation import (
    DrawnConfig,
    GenerationRecipe,
    NearConfig,
)
from tokenflow.training.teacher import TeacherConfig
from tokenflow.training.tokenizer import DiscriminatorConfig, TokenizerRecipe
from tokenflow.training.understanding import UnderstandingConfig, UnderstandingRecipe
from tokenflow.training.unified import AnswersConfig, UnifiedRecipe
from tokenflow.training.words import WordsConfig

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training.md"
FIELDS = re.compile(r"(?<=<!-- fields -->\n).*(?=<!-- end of fields -->)", re.DOTALL)
KINDS = {
    "tokenizer": TokenizerRecipe,
    "generation": GenerationRecipe,
    "understanding": UnderstandingRecipe,
}


def meanings(kind):
    """Each argument's words, from the class's docstring."""
    section = inspect.getdoc(kind).split("Args:\n")[1].split("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section, re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in found}


def table(kind):
    """The fields of a section that hold values, as Markdown."""
    words, rows = meanings(kind), ["| field | default | |", "|---|---|---|"]
    for field in dataclasses.fields(kind):
        value = field.default
        if value is dataclasses.MISSING:
            if dataclasses.is_dataclass(field.default_factory):
                continue  # a section with a table of its own
            try:
                value = field.default_factory()
            except ValueError:
                continue
        if dataclasses.is_dataclass(value):
            continue
        shown = json.dumps(value, ensure_ascii=False)
        meaning = words[field.name].replace("|", "\\|")
        rows.append(f"| `{field.name}` | `{shown}` | {meaning} |")
    return "\n".join(rows)


def sections():
    """(title, class) of every table."""
    found = [("of the recipe itself", TokenizerRecipe)]
    for field in dataclasses.fields(TokenizerRecipe):
        if dataclasses.is_dataclass(field.type if isinstance(field.type, type) else 0):
            found.append((f"`{field.name}`", field.type))
    return [
        *found,
        ("`model` of a teacher's recipe", TeacherConfig),
        ("of an understanding recipe itself", UnderstandingRecipe),
        ("`model` of an understanding recipe", UnderstandingConfig),
        ("`data` of an understanding recipe", DialogueConfig),
        ("of a generation recipe itself", GenerationRecipe),
        ("`words` of a generation recipe", WordsConfig),
        ("`near` of a generation recipe", NearConfig),
        ("`drawn` of a generation recipe", DrawnConfig),
        ("of a unified recipe itself", UnifiedRecipe),
        ("`answers` of a unified recipe", AnswersConfig),
    ]


def tables():
    parts = [f"### {title}\n\n{table(kind)}\n" for title, kind in sections()]
    note = (
        "`discriminator.optimizer` has the fields of `optimizer`. A teacher's recipe "
    )
    note += (
        "has `model`, `data`, `optimizer` and `run`, and so has an understanding one; "
        "a generation recipe has the tables' `data`, `optimizer` and `run`. A unified "
        "recipe has the sections of a generation recipe, `answers`, and as `dialogues` "
        "the `data` of an understanding one.\n"
    )
    return "\n" + "\n".join([*parts, note]) + "\n"


def test_the_tables_are_what_the_code_says():
    (found,) = FIELDS.findall(PAGE.read_text())
    assert found == tables(), "python tests/training/test_training_docs.py mends it"


def test_every_section_and_every_field_is_in_a_table():
    kinds = {kind for _, kind in sections()}
    names = {"data", "teacher", "loss", "codebook", "optimizer", "discriminator", "run"}
    assert {title.strip("`") for title, _ in sections()} >= names
    for kind in kinds:
        assert set(meanings(kind)) == {f.name for f in dataclasses.fields(kind)}
    assert DiscriminatorConfig in kinds


def test_every_recipe_that_ships_is_on_the_page():
    text = PAGE.read_text()
    assert [n for n in recipes("tokenizer") if f"`{n}`" not in text] == []


# commands


def commands():
    """(words, what it needs) of every command on the page."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL):
        needs = ""
        for line in block.splitlines():
            if line.startswith("# needs "):
                needs = line
            elif not line.startswith("#"):
                found.append((tuple(shlex.split(line)), needs))
    return found


HERE = [words for words, needs in commands() if not needs]
QUICK = ["run.steps=1", "run.minutes=null", "run.batch=2", "run.precision=float32"]
QUICK += ["run.tensorboard=false"]
QUICKER = {
    "teacher": ["model.captions=40"],
    "understanding": ["data.heldout_dialogues=2"],
    "generation": ["words.captions=40"],
    "unified": [
        "words.captions=40",
        "answers.batch=2",
        "dialogues.heldout_dialogues=2",
    ],
}


def quick(words):
    """A command, made short where it trains."""
    if "train" not in words:
        return words
    kind = words[words.index("train") + 1]
    pictures = [] if kind == "understanding" else ["data.heldout_pictures=2"]
    changes = [*QUICK, *pictures, *QUICKER.get(kind, ())]
    return [*words, *(w for change in changes for w in ("--set", change))]


def execute(words):
    """Run a command, ours in this process; returns its status and what it said."""
    if words[0] == "tokenflow":
        result = CliRunner().invoke(build(), words[1:])
        return result.exit_code, result.output
    assert words[0] == "torchrun"
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words[1:]],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    return run.returncode, run.stdout + run.stderr


@pytest.mark.slow
def test_the_commands_that_run_here_do(
    tmp_path, monkeypatch, emoji_font, numbered, threads
):
    threads(1)
    monkeypatch.chdir(tmp_path)
    for name, picture in numbered.items():
        (tmp_path / "pictures").mkdir(exist_ok=True)
        picture.save(tmp_path / "pictures" / name)
    (tmp_path / "pictures" / "cut.png").write_bytes(b"\x89PNG and no more")
    assert len(HERE) >= 7
    for words in HERE:
        code, said = execute(quick(words))
        broken = words[1] == "reconstruct"  # names the file that cannot be read
        assert code == broken, (words, said)
    assert (tmp_path / "runs/mine/report.html").is_file()
    assert len([*(tmp_path / "redrawn").iterdir()]) == len(numbered)
    assert [*(tmp_path / "runs/mine/pictures").iterdir()]


@pytest.mark.parametrize(
    "words", [words for words, needs in commands() if needs], ids=lambda w: w[-1]
)
def test_what_does_not_run_here_is_well_formed(words):
    """Recipe and changes load; the options are those of torchrun and of ours."""
    from torch.distributed.run import get_args_parser

    get_args_parser().parse_args(words[1:])
    at = words.index("tokenflow")
    assert words[at - 1] == "-m" and words[at + 1] == "train"
    changes = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    load(KINDS[words[at + 2]], words[at + 3], changes)


@pytest.fixture
def numbered():
    """A folder of a reader: twenty small pictures."""
    from PIL import Image

    return {
        f"{i:02}.png": Image.new("RGB", (80, 70), (12 * i, 255 - 12 * i, 99))
        for i in range(20)
    }


if __name__ == "__main__":
    PAGE.write_text(FIELDS.sub(lambda match: tables(), PAGE.read_text()))
