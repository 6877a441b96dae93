"""Which files go in and where results go: nothing is lost and nothing replaced."""

from pathlib import Path

import pytest
import typer

from tokenflow._files import PICTURES
from tokenflow.cli import _paths
from tokenflow.tokenizer import tokfile

SUFFIXES = (".png", ".jpg")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def touch(*names):
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)


def plan(*sources, out="out", suffix=".tok", overwrite=False):
    jobs = _paths.plan(
        [Path(source) for source in sources],
        Path(out),
        suffixes=SUFFIXES,
        suffix=suffix,
        overwrite=overwrite,
    )
    return {job.source.as_posix(): job.target.as_posix() for job in jobs}


def test_a_folder_keeps_its_shape():
    touch("a/x.png", "a/b/c/y.JPG", "a/notes.txt", "a/.hidden/z.png", "a/.z.png")
    assert plan("a") == {"a/x.png": "out/x.tok", "a/b/c/y.JPG": "out/b/c/y.tok"}


def test_a_named_file_is_taken_whatever_its_name():
    touch("a/x.picture", "plain")
    assert plan("a/x.picture", "plain", "missing.png") == {
        "a/x.picture": "out/x.tok",
        "plain": "out/plain.tok",
        "missing.png": "out/missing.tok",  # named when it is opened
    }


def test_results_of_one_name_keep_their_whole_name():
    touch("a/x.png", "a/x.jpg", "a/y.png")
    assert plan("a") == {
        "a/x.jpg": "out/x.jpg.tok",
        "a/x.png": "out/x.png.tok",
        "a/y.png": "out/y.tok",
    }


def test_what_still_has_one_name_is_numbered():
    touch("a/x.png", "b/x.png", "c/x.png", "c/X.png", "c/x.png.jpg")
    names = plan("a", "b", "c")
    assert len({target.casefold() for target in names.values()}) == 5
    assert names["a/x.png"] == "out/x.png.tok"
    assert names["b/x.png"] == "out/x.png-2.tok"


def test_a_file_named_twice_is_done_once():
    touch("a/x.png")
    assert plan("a", "a/x.png", "./a/../a/x.png") == {"a/x.png": "out/x.tok"}


def test_results_inside_the_folder_are_no_inputs():
    touch("a/x.png", "a/out/x.png", "a/out/deep/x.png")
    assert plan("a", out="a/out", suffix=".png", overwrite=True) == {
        "a/x.png": "a/out/x.png"
    }


def test_tokens_may_lie_beside_their_pictures():
    touch("a/x.png")
    assert plan("a", out="a") == {"a/x.png": "a/x.tok"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    ("sources", "out", "suffix", "message"),
    [
        (["a"], "a", ".png", "another folder than a"),
        (["a/x.png"], "a", ".png", "would replace an input"),
        (["a", "b/y.png"], "b", ".png", "would replace an input"),
        (["a"], "file", ".tok", "file is a file"),
        (["empty"], "out", ".tok", "empty holds no file ending in .png or .jpg"),
    ],
)
def test_what_would_do_harm_is_refused(sources, out, suffix, message, overwrite):
    touch("a/x.png", "b/y.png", "file")
    Path("empty").mkdir()
    with pytest.raises(typer.BadParameter, match=message):
        plan(*sources, out=out, suffix=suffix, overwrite=overwrite)


def test_a_link_to_an_input_is_not_replaced():
    touch("a/x.png")
    Path("out").mkdir()
    Path("out/x.png").symlink_to("../a/x.png")
    with pytest.raises(typer.BadParameter, match="would replace an input"):
        plan("a", suffix=".png", overwrite=True)


def test_results_that_are_there_stay_unless_asked():
    touch("a/x.png", "a/y.png", "out/x.tok")
    with pytest.raises(typer.BadParameter, match="1 of 2 results .* out/x.tok"):
        plan("a")
    assert len(plan("a", overwrite=True)) == 2


def test_tokens_and_pictures_are_told_apart_by_suffix():
    assert tokfile.SUFFIX not in PICTURES
    assert all(suffix == suffix.lower() for suffix in PICTURES)
