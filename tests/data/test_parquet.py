"""Parquet: rows as Hugging Face datasets store them, group by group."""

import io
import pickle
import sys

import numpy as np
import pytest
from data.files import as_bytes, broken, picture

from tokenflow.data import BrokenPicture
from tokenflow.data.parquet import Parquet
from tokenflow.data.stream import Stream

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def make(path, pictures, *, layout="struct", rows=3, **columns):
    """Write pictures (or bytes, or None) and further columns."""
    stored = [p if p is None or isinstance(p, bytes) else as_bytes(p) for p in pictures]
    if layout == "struct":
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        images = pa.array([{"bytes": s, "path": "x.png"} for s in stored], kind)
    else:
        images = pa.array(
            stored, {"plain": pa.binary(), "large": pa.large_binary()}[layout]
        )
    pq.write_table(pa.table({"image": images, **columns}), path, row_group_size=rows)
    return path


def same(image, number):
    return np.array_equal(np.asarray(image), np.asarray(picture(number)))


@pytest.mark.parametrize("layout", ["struct", "plain", "large"])
def test_every_layout_is_read(tmp_path, layout):
    captions = ["ein Bär 🐻", None, " c ", "d", "e", "f", "g"]
    path = make(
        tmp_path / "a.parquet", map(picture, range(7)), layout=layout, caption=captions
    )
    source = Parquet(path)
    assert len(source) == 7 and source.blocks() == [3, 3, 1]
    for index in (6, 0, 3, 2, 5, 1, 4):
        assert same(source[index]["image"], index)
    assert [source[i]["caption"] for i in range(3)] == ["ein Bär 🐻", "", "c"]


def test_files_follow_each_other(tmp_path):
    for number in range(3):
        pictures = [picture(10 * number + i) for i in range(4)]
        make(tmp_path / f"t-{number:02}.parquet", pictures)
    source = Parquet(str(tmp_path / "t-{00..02}.parquet"))
    assert source.blocks() == [3, 1] * 3
    assert [same(source[i]["image"], 10 * (i // 4) + i % 4) for i in range(12)] == [
        1
    ] * 12
    assert source[0].keys() == {"image"}


def test_columns_may_have_other_names(tmp_path):
    path = tmp_path / "a.parquet"
    jpg = pa.array([as_bytes(picture(1))])
    table = {"jpg": jpg, "title": ["x"], "text": ["y"], "caption": [["a", "list"]]}
    pq.write_table(pa.table(table), path)
    assert Parquet(path, image="jpg")[0]["caption"] == "y"
    assert Parquet(path, image="jpg", caption="title")[0]["caption"] == "x"
    assert "caption" not in Parquet(path, image="jpg", caption=False)[0]


def test_no_more_groups_are_kept_than_the_window(tmp_path):
    source = Parquet(make(tmp_path / "a.parquet", map(picture, range(12))), window=2)
    for index in (0, 3, 6, 9, 0):
        assert same(source[index]["image"], index) and len(source._kept) <= 2
    for index in (0, 3, 0, 6):
        source[index]
    assert list(source._kept) == [0, 2]  # what was used last stays


def test_a_stream_reads_each_group_once_an_epoch(tmp_path, monkeypatch):
    pictures = map(picture, range(60))
    source = Parquet(make(tmp_path / "a.parquet", pictures, rows=5), window=3)
    reads = []
    plain = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, group, *a, **k: reads.append(group) or plain(self, group, *a, **k),
    )
    stream = Stream(source, size=8, batch=5)
    indices = [i for step in range(12) for i in stream.read(step)["index"].tolist()]
    assert sorted(reads) == list(range(12)) and sorted(indices) == list(range(60))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_read_the_same(tmp_path, workers):
    pictures = map(picture, range(40))
    source = Parquet(make(tmp_path / "a.parquet", pictures, rows=4), window=2)
    source[0]  # a group is in memory before the workers start

    def images(workers):
        stream = Stream(source, size=8, batch=8, seed=1, workers=workers)
        return [batch["image"] for batch, _ in zip(stream, range(7), strict=False)]

    assert np.array_equal(np.stack(images(0)), np.stack(images(workers)))


def test_it_pickles_without_its_groups(tmp_path):
    source = Parquet(make(tmp_path / "a.parquet", map(picture, range(50)), rows=50))
    source[0]
    stored = pickle.dumps(source)
    assert len(stored) < 2000 and same(pickle.loads(stored)[7]["image"], 7)


@pytest.mark.parametrize("name", broken())
def test_a_broken_picture_is_named_by_its_row(tmp_path, name):
    pictures = [*map(picture, range(4)), broken()[name]]
    source = Parquet(make(tmp_path / "a.parquet", pictures))
    with pytest.raises(
        BrokenPicture, match=r"row 1 of group 1 in .*a\.parquet: .*must"
    ):
        source[4]
    assert same(source[3]["image"], 3)


@pytest.mark.parametrize("layout", ["struct", "plain"])
def test_a_row_without_bytes_is_a_broken_picture(tmp_path, layout):
    source = Parquet(make(tmp_path / "a.parquet", [picture(0), None], layout=layout))
    with pytest.raises(BrokenPicture, match="must be stored as bytes, there are none"):
        source[1]


def test_a_damaged_file_is_left_out_and_a_damaged_group_is_broken_pictures(tmp_path):
    make(tmp_path / "a.parquet", map(picture, range(6)))
    stored = make(tmp_path / "b.parquet", map(picture, range(6))).read_bytes()
    (tmp_path / "b.parquet").write_bytes(stored[:-100])
    (tmp_path / "c.parquet").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"2 of 3 files are damaged .*b\.parquet"):
        source = Parquet(tmp_path / "*.parquet")
    assert len(source) == 6 and len(source.problems) == 2
    start = pq.read_metadata(tmp_path / "a.parquet").row_group(1).column(0)
    damaged = bytearray((tmp_path / "a.parquet").read_bytes())
    first = start.dictionary_page_offset or start.data_page_offset
    damaged[first : first + start.total_compressed_size] = b"\xff" * (
        start.total_compressed_size
    )
    (tmp_path / "a.parquet").write_bytes(damaged)
    source = Parquet(tmp_path / "a.parquet")
    assert same(source[2]["image"], 2)
    with pytest.raises(BrokenPicture, match="row 0 of group 1 in"):
        source[3]


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(image="photo"), r"must have a column 'photo', got \['image', 'n'\]"),
        (dict(image="n"), r"'n' of .* must be bytes, or a struct .*got int64"),
        (dict(caption="title"), "must have a column 'title'"),
        (dict(caption="n"), "column 'n' of .* must be text, got int64"),
        (dict(window=0), "window must be at least 1, got 0"),
    ],
)
def test_errors_say_what_must_hold(tmp_path, options, words):
    path = make(tmp_path / "a.parquet", [picture(0)], n=[3])
    with pytest.raises(ValueError, match=f"parquet: .*{words}"):
        Parquet(path, **options)


def test_files_that_disagree_or_hold_nothing_are_errors(tmp_path):
    make(tmp_path / "a.parquet", [picture(0)], text=["x"])
    make(tmp_path / "b.parquet", [picture(0)])
    with pytest.raises(
        ValueError, match="same column of captions, got .'None', 'text'"
    ):
        Parquet(tmp_path / "*.parquet")
    with pytest.raises(ValueError, match="must hold rows: they hold none"):
        Parquet(make(tmp_path / "c.parquet", []))
    (tmp_path / "d.parquet").write_bytes(b"no Parquet")
    with pytest.raises(ValueError, match=r"must hold rows: .*d\.parquet: "):
        Parquet(tmp_path / "d.parquet")
    with pytest.raises(IndexError, match=r"in \[0, 1\), got -1"):
        Parquet(tmp_path / "b.parquet")[-1]


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = make(tmp_path / "a.parquet", [picture(0)])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pyarrow; install tokenflow-ext\[data\]"):
        Parquet(path)


def test_bytes_of_any_picture_format_do(tmp_path):
    buffer = io.BytesIO()
    picture(3).save(buffer, "WEBP", lossless=True)
    source = Parquet(make(tmp_path / "a.parquet", [buffer.getvalue()]))
    assert same(source[0]["image"], 3)
