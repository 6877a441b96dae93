"""Tars: every sample by its offset, and as much of a damaged tar as can be read."""

import contextlib
import gzip
import json
import pickle
import tarfile
import warnings

import numpy as np
import pytest
from data.files import as_bytes, broken, make_tar, picture

from tokenflow.data import BrokenPicture, tars
from tokenflow.data.stream import Stream
from tokenflow.data.tars import Tars


def numbered(first, count):
    return {f"{i:05}.png": picture(i) for i in range(first, first + count)}


def same(image, number):
    return np.array_equal(np.asarray(image), np.asarray(picture(number)))


def test_members_of_one_key_are_one_sample(tmp_path):
    members = {
        "00.json": json.dumps({"caption": "aus JSON", "width": 24}),
        "00.PNG": picture(0),
        "01.jpg": as_bytes(picture(1), "JPEG"),
        "01.txt": " ein Bär — 氷の上の熊 🐻\n",
        "02.txt": "text goes first",
        "02.json": json.dumps({"text": "not this"}),
        "02.png": picture(2),
        "03.png": picture(3),
        "03.seg.png": picture(9),
        "04.json": json.dumps(["no caption"]),
        "04.png": picture(4),
        "05.txt": "a text alone",
    }
    source = Tars(make_tar(tmp_path / "a.tar", members))
    captions = ["aus JSON", "ein Bär — 氷の上の熊 🐻", "text goes first", "", ""]
    assert [source[i]["caption"] for i in range(len(source))] == captions
    assert same(source[0]["image"], 0) and same(source[2]["image"], 2)
    assert same(source[3]["image"], 3)
    assert source.problems == []


@pytest.mark.parametrize(
    "kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_every_kind_of_tar_and_name_is_read(tmp_path, kind):
    long = "a/" * 60 if kind != tarfile.USTAR_FORMAT else "a/"
    members = {
        "./": None,
        "./x/": None,
        "./x.dir/ä.png": picture(0),
        f"{long}b.png": picture(1),
        f"{long}b.txt": "long",
        "._c.png": "what macOS leaves",
        "x/.d.png": picture(8),
        "README": "no suffix",
        "b.png": picture(2),
    }
    source = Tars(make_tar(tmp_path / "a.tar", members, kind))
    assert len(source) == 3 and all(same(source[i]["image"], i) for i in range(3))
    assert [source[i]["caption"] for i in range(3)] == ["", "long", ""]


def test_the_parts_of_a_sample_may_lie_apart(tmp_path):
    members = {"a.png": picture(0), "b.png": picture(1), "a.txt": "1", "b.txt": "2"}
    source = Tars(make_tar(tmp_path / "a.tar", members))
    assert [source[i]["caption"] for i in range(2)] == ["1", "2"]


def test_the_first_picture_of_a_key_is_taken(tmp_path):
    members = {"a.png": picture(0), "a.jpg": as_bytes(picture(1), "JPEG")}
    path = make_tar(tmp_path / "a.tar", members)
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    source = Tars(path)
    assert len(source) == 1 and same(source[0]["image"], 0)


def test_links_are_no_pictures(tmp_path):
    path = make_tar(tmp_path / "a.tar", {"a.png": picture(0)})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert len(Tars(path)) == 1


def test_many_tars_are_one_source_in_blocks(tmp_path):
    for number in range(4):
        make_tar(tmp_path / f"s-{number:03}.tar", numbered(10 * number, 3 + number))
    source = Tars(str(tmp_path / "s-{000..003}.tar"))
    numbers = [10 * s + i for s in range(4) for i in range(3 + s)]
    assert source.blocks() == [3, 4, 5, 6] and len(source) == 18
    assert all(same(source[i]["image"], n) for i, n in enumerate(numbers))
    assert len(Tars(tmp_path / "s-*.tar")) == 18
    assert len(Tars([tmp_path / "s-003.tar", tmp_path / "s-000.tar"])) == 9


def test_few_files_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "OPEN_FILES", 2)
    for number in range(5):
        make_tar(tmp_path / f"{number}.tar", numbered(number, 1))
    source = Tars(tmp_path / "*.tar")
    for index in (0, 1, 2, 3, 4, 0, 4, 0):
        assert same(source[index]["image"], index)
        assert len(source._files) <= 2


def test_it_pickles_without_its_open_files(tmp_path):
    source = Tars(make_tar(tmp_path / "a.tar", numbered(0, 3)))
    assert same(source[1]["image"], 1)
    assert same(pickle.loads(pickle.dumps(source))[2]["image"], 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_read_the_same(tmp_path, workers):
    for number in range(4):
        make_tar(tmp_path / f"{number}.tar", numbered(10 * number, 10))
    source = Tars(tmp_path / "*.tar", window=2)
    source[0]  # a file is open before the workers start

    def images(workers):
        stream = Stream(source, size=8, batch=8, seed=1, workers=workers)
        return [batch["image"] for batch, _ in zip(stream, range(7), strict=False)]

    assert np.array_equal(np.stack(images(0)), np.stack(images(workers)))


@pytest.mark.parametrize("name", broken())
def test_a_broken_member_is_named_with_its_tar(tmp_path, name):
    path = make_tar(
        tmp_path / "s.tar", {"x/" + name: broken()[name], "z.png": picture(1)}
    )
    source = Tars(path)
    with pytest.raises(BrokenPicture, match=rf"tars: x/{name} in .*s\.tar: .*must"):
        source[0]
    assert same(source[1]["image"], 1)


@pytest.mark.parametrize("caption", [b"\xff\xff.", b"{"], ids=["txt", "json"])
def test_a_caption_that_cannot_be_read_is_a_broken_picture(tmp_path, caption):
    name = "a.json" if caption == b"{" else "a.txt"
    source = Tars(make_tar(tmp_path / "s.tar", {"a.png": picture(0), name: caption}))
    with pytest.raises(BrokenPicture, match=r"tars: a\.png in .*s\.tar: "):
        source[0]


def test_a_tar_that_ends_too_early_is_used_up_to_there(tmp_path):
    path = make_tar(tmp_path / "cut.tar", numbered(0, 5))
    with tarfile.open(path) as tar:
        last = tar.getmembers()[3]
    path.write_bytes(path.read_bytes()[: last.offset_data + 20])
    with pytest.warns(
        UserWarning, match=r"tars: 1 problems in 1 .*ends within 00003\.png"
    ):
        source = Tars(path)
    assert len(source) == 3 and same(source[2]["image"], 2)
    assert len(source.problems) == 1 and "cut.tar" in source.problems[0]


def test_a_tar_that_is_damaged_in_the_middle_is_used_up_to_there(tmp_path):
    path = make_tar(tmp_path / "bad.tar", numbered(0, 5))
    with tarfile.open(path) as tar:
        third = tar.getmembers()[2]
    stored = bytearray(path.read_bytes())
    stored[third.offset : third.offset + 512] = b"\x07" * 512
    path.write_bytes(stored)
    with pytest.warns(
        UserWarning, match=rf"no member begins at byte {third.offset}, the"
    ):
        source = Tars(path)
    assert len(source) == 2 and same(source[1]["image"], 1)


@pytest.mark.filterwarnings("ignore:tars")
@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_no_damage_stops_the_reading(tmp_path, kind):
    members = {"ä" * 60 + f"/{i}.png": picture(i) for i in range(3)}
    whole = make_tar(tmp_path / "a.tar", members, kind).read_bytes()
    rng = np.random.default_rng(0)
    read = 0
    for _ in range(80):
        stored = np.frombuffer(whole, np.uint8).copy()
        stored[rng.integers(len(stored), size=5)] = rng.integers(0, 256, 5)
        (tmp_path / "a.tar").write_bytes(stored)
        samples, _ = tars.list_tar(tmp_path / "a.tar")
        read += len(samples)
        if len(samples):
            source = Tars(tmp_path / "a.tar")
            for index in range(len(source)):
                with contextlib.suppress(BrokenPicture):
                    source[index]
    assert read > 20


def test_a_tar_without_its_last_blocks_is_whole(tmp_path):
    path = make_tar(tmp_path / "a.tar", numbered(0, 2))
    with tarfile.open(path) as tar:
        tar.getmembers()
        end = tar.offset
    path.write_bytes(path.read_bytes()[:end])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(Tars(path)) == 2


def test_a_file_that_is_no_tar_is_left_out(tmp_path):
    good = make_tar(tmp_path / "a.tar", numbered(0, 2))
    (tmp_path / "b.tar").write_bytes(b"")
    (tmp_path / "c.tar").write_bytes(b"no tar at all" * 100)
    with pytest.warns(UserWarning, match=r"2 problems in 3 .*b\.tar: empty .*c\.tar"):
        source = Tars(tmp_path / "*.tar")
    assert source.blocks() == [2, 0, 0] and good in source.paths
    assert len(Stream(source, size=8, batch=2).read(0)["image"]) == 2


def test_names_with_a_second_dot_are_said_where_they_cost_pictures(tmp_path):
    members = {"cat.1.png": picture(0), "cat.2.png": picture(1), "dog.png": picture(2)}
    with pytest.warns(
        UserWarning, match=r"1 pictures such as cat\.2\.png have a second"
    ):
        source = Tars(make_tar(tmp_path / "a.tar", members))
    assert len(source) == 1 and same(source[0]["image"], 2)


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz"])
def test_packed_tars_are_refused(tmp_path, kind):
    mode = {"gzip": "w:gz", "bzip2": "w:bz2", "xz": "w:xz"}[kind]
    tarfile.open(tmp_path / "a.tar", mode).close()
    with pytest.raises(ValueError, match=rf"a\.tar must be an uncompressed.*{kind}"):
        Tars(tmp_path / "a.tar")


def test_tars_without_pictures_are_an_error(tmp_path):
    path = make_tar(tmp_path / "a.tar", {"a.txt": "alone"})
    with pytest.raises(
        ValueError, match=r"a\.tar and .* must hold pictures: they hold"
    ):
        Tars(path)
    (tmp_path / "b.tar").write_bytes(gzip.compress(b"x")[2:])
    with pytest.raises(ValueError, match=r"must hold pictures: .*b\.tar"):
        Tars(tmp_path / "b.tar")
    with pytest.raises(IndexError, match=r"in \[0, 1\), got 1"):
        Tars(make_tar(tmp_path / "c.tar", numbered(0, 1)))[1]


def test_a_tar_that_shrank_later_is_a_broken_picture(tmp_path):
    path = make_tar(tmp_path / "a.tar", numbered(0, 2))
    source = Tars(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(
        BrokenPicture, match=r"00000\.png in .*the tar ends after 88 of"
    ):
        source[0]
    path.unlink()
    with pytest.raises(BrokenPicture, match=r"00000\.png in|byte 512 in"):
        pickle.loads(pickle.dumps(source))[0]


def test_kept_lists_are_used_until_the_tar_changes(tmp_path, monkeypatch):
    path = make_tar(tmp_path / "a.tar", {**numbered(0, 3), "00001.txt": "ä"})
    plain, kept = Tars(path), Tars(path, index=tmp_path / "index")
    assert np.array_equal(plain._samples, kept._samples)
    with monkeypatch.context() as patch:
        patch.setattr(tars, "list_tar", lambda path: pytest.fail("listed again"))
        again = Tars(path, index=tmp_path / "index")
    assert again[1]["caption"] == "ä" and same(again[2]["image"], 2)
    make_tar(path, numbered(5, 4))
    assert same(Tars(path, index=tmp_path / "index")[3]["image"], 8)
