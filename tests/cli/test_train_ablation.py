"""`tokenflow train ablation`: from a recipe to a table, in one command."""

import json

import pytest
import yaml
from tiny_ablation import values

from tokenflow.training.comparison import BEGIN, END


def written(folder, **changes):
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values(**changes), sort_keys=False))
    return path


@pytest.mark.slow
def test_one_command_makes_the_table(run, tmp_path, emoji_font):
    recipe = written(tmp_path)
    words = ("train", "ablation", recipe, "-o", tmp_path / "out")
    code, out, err = run(*words, "--seeds", "0", "--set", "tokenizer.run.steps=2")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("7 runs (seeds 0) of 2 steps and 8 pictures each")
    assert [line.split("`")[1] for line in lines[4:]] == list(values()["variants"])
    assert (tmp_path / "out" / "ablation.md").read_text() == out
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    words += ("--set", "tokenizer.run.steps=2")
    code, _, err = run(*words, "--seeds", "0", "--docs", page)
    assert code == 0 and "seed 0" not in err  # all were finished
    assert page.read_text() == f"{BEGIN}\n{out}{END}\n"
    one = (*words, "--seeds", "1", "--only", "one_book", "--json", "--jobs", "2")
    code, out, err = run(*one)
    assert code == 0, err
    assert [r["seed"] for r in json.loads(out)["runs"]] == [1]
    code, out, _ = run(*words, "--only", "one_book", "--json")  # of what is there
    runs = json.loads(out)["runs"]
    assert code == 0 and len(runs) == 8
    two = [r for r in runs if r["variant"] == "one_book"]
    assert two[0]["psnr"] != two[1]["psnr"]


def test_mistakes_are_usage_errors(run, tmp_path, emoji_font):
    def complaint(*words):
        code, _, err = run("train", "ablation", *words, "-o", tmp_path / "out")
        assert code == 2
        return " ".join(err.replace("│", " ").split())

    recipe = written(tmp_path)
    assert "recipe must be one of ['scenes']" in complaint("none")
    assert "only must name variants" in complaint(recipe, "--only", "three_books")
    assert "--seeds must be numbers" in complaint(recipe, "--seeds", "a")
    assert not (tmp_path / "out").exists()
