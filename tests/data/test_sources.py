"""One spec, the right source."""

import pytest
from data.files import as_bytes, make_tar, picture, write

from tokenflow.data.folder import Folder
from tokenflow.data.sources import open_source
from tokenflow.data.tars import Tars


def test_a_folder_of_pictures_is_a_folder(tmp_path):
    write(tmp_path, {"a/x.png": picture(0), "a/x.txt": "x"})
    make_tar(tmp_path / "a/more.tar", {"y.png": picture(1)})
    source = open_source(str(tmp_path))
    assert isinstance(source, Folder) and len(source) == 1
    assert "caption" not in open_source(tmp_path, captions=False)[0]


def test_tars_are_tars_however_they_are_named(tmp_path):
    for number in range(3):
        make_tar(tmp_path / f"deep/{number}.tar", {f"{number}.png": picture(number)})
    for spec in (tmp_path, f"{tmp_path}/deep/{{0..2}}.tar", tmp_path / "deep/*.tar"):
        source = open_source(spec, window=5)
        assert isinstance(source, Tars) and len(source) == 3 and source.window == 5
    assert len(open_source(tmp_path / "deep/1.tar")) == 1


def test_parquet_files_are_parquet_however_they_are_named(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    from tokenflow.data.parquet import Parquet

    (tmp_path / "data").mkdir()
    table = pa.table({"image": [as_bytes(picture(0))]})
    pq.write_table(table, tmp_path / "data/train-0.parquet")
    for spec in (
        tmp_path,
        tmp_path / "data/train-0.parquet",
        f"{tmp_path}/*/*.parquet",
    ):
        source = open_source(spec)
        assert isinstance(source, Parquet) and len(source) == 1


def test_drawings_have_names(emoji_font, tmp_path, monkeypatch):
    write(tmp_path / "glyphs", {"x.png": picture(0)})
    monkeypatch.chdir(tmp_path)
    source = open_source("glyphs", split="heldout", size=32, seed=4, length=7)
    assert (source.split, source.size, source.seed, len(source)) == (
        "heldout",
        32,
        4,
        7,
    )
    assert isinstance(open_source("./glyphs"), Folder)


@pytest.mark.parametrize(
    "spec, error, words",
    [
        (
            "gone",
            FileNotFoundError,
            r"gone is not there; it must be a folder, .*glyphs",
        ),
        ("gone.tar", FileNotFoundError, r"gone\.tar must be a file"),
        ("gone-*.parquet", FileNotFoundError, r"no file matches gone-\*\.parquet"),
        ("empty", FileNotFoundError, r"empty must hold pictures .*\.tar or \.parquet"),
        ("note.md", ValueError, r"must be a folder, .* got note\.md"),
        ("*.png", ValueError, r"pattern that ends so, .* got \*\.png"),
    ],
)
def test_errors_say_what_is_wrong(tmp_path, monkeypatch, spec, error, words):
    write(tmp_path, {"empty/a.md": "", "note.md": ""})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        open_source(spec)
