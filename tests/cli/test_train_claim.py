"""`tokenflow train claim`: from tokenizers to a table, in one command."""

import json

import pytest
import yaml
from tiny_claim import home, values

from tokenflow.training import dialogues
from tokenflow.training.comparison import BEGIN, END


def written(folder, **changes):
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values(folder, **changes), sort_keys=False))
    return path


@pytest.mark.slow
def test_one_command_makes_the_table(run, tmp_path, emoji_font, monkeypatch):
    monkeypatch.setattr(dialogues, "LEARNED_FROM", 40)
    home(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    words = ("train", "claim", written(tmp_path), "-o", tmp_path / "out")
    words += ("--set", "understanding.changes.run.steps=1")
    code, _, err = run(*words, "--only", "continuous", "--docs", page)
    assert code == 2 and "blind-0, pixel_only-0" in " ".join(err.split())
    code, out, err = run(*words, "--seeds", "0", "--docs", page)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("5 runs (seeds 0) of 1 steps and 2 conversations each")
    assert [line.split("|")[1].strip(" `") for line in lines[4:]] == [
        *values(tmp_path)["variants"],
        "most frequent",
    ]
    assert (tmp_path / "out" / "claim.md").read_text() == out
    assert page.read_text() == f"{BEGIN}\n{out}{END}\n"
    code, out, err = run(*words, "--json")
    assert code == 0 and "seed 0" not in err  # all were finished
    assert len(json.loads(out)["variants"]) == 5


def test_mistakes_are_usage_errors(run, tmp_path, emoji_font):
    def complaint(*words):
        code, _, err = run("train", "claim", *words, "-o", tmp_path / "out")
        assert code == 2
        return " ".join(err.replace("│", " ").split())

    recipe = written(tmp_path)
    assert "recipe must be one of ['scenes']" in complaint("none")
    assert "only must name variants" in complaint(recipe, "--only", "sight")
    assert "--seeds must be numbers" in complaint(recipe, "--seeds", "a")
    assert "variant continuous needs" in complaint(recipe)
