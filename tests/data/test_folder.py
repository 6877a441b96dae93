"""Folders of pictures: every layout a user may have, and files that are broken."""

import json
import os
import pickle

import numpy as np
import pytest
from data.files import as_bytes, broken, picture, write
from PIL import Image

from tokenflow.data import BrokenPicture
from tokenflow.data._strings import Strings
from tokenflow.data.folder import Folder


def pixels(image):
    return np.asarray(image)


def test_every_picture_below_counts_in_the_order_of_names(tmp_path):
    write(
        tmp_path,
        {
            "b.PNG": picture(1),
            "a/z.Jpeg": as_bytes(picture(2), "JPEG"),
            "a/deep/er/x.webp": as_bytes(picture(3), "WEBP"),
            "é ü.png": picture(4),
            "notes.md": "no picture",
            ".hidden.png": picture(5),
            ".thumbs/y.png": picture(6),
        },
    )
    folder = Folder(tmp_path)
    assert list(folder.names) == ["a/deep/er/x.webp", "a/z.Jpeg", "b.PNG", "é ü.png"]
    assert len(folder) == 4
    assert np.array_equal(pixels(folder[2]["image"]), pixels(picture(1)))
    assert folder[2]["image"].mode == "RGB" and folder[2].keys() == {"image"}


def test_a_sample_is_the_same_in_any_process(tmp_path):
    folder = Folder(write(tmp_path, {"a.png": picture(0), "a.txt": "ein Bär"}))
    other = pickle.loads(pickle.dumps(folder))
    assert other[0]["caption"] == "ein Bär"
    assert np.array_equal(pixels(other[0]["image"]), pixels(folder[0]["image"]))


def test_the_folder_may_be_named_from_elsewhere_later(tmp_path, monkeypatch):
    write(tmp_path / "pictures", {"a.png": picture(0)})
    monkeypatch.chdir(tmp_path)
    folder = Folder("pictures")
    monkeypatch.chdir("/")
    assert folder[0]["image"].size == (24, 16)


def test_links_are_followed_and_circles_end(tmp_path):
    write(tmp_path / "real", {"x/a.png": picture(0)})
    write(tmp_path / "set", {"b.png": picture(1)})
    (tmp_path / "set/linked").symlink_to(tmp_path / "real")
    (tmp_path / "set/again").symlink_to(tmp_path / "set")
    (tmp_path / "set/c.png").symlink_to(tmp_path / "real/x/a.png")
    assert list(Folder(tmp_path / "set").names) == ["b.png", "c.png", "linked/x/a.png"]


def test_class_folders_are_labels(tmp_path):
    files = {f"n0{i % 2}/{i}.png": picture(i) for i in range(4)}
    folder = Folder(write(tmp_path, {**files, "n01/deep/5.png": picture(5)}))
    assert [folder[i]["label"] for i in range(5)] == ["n00", "n00", "n01", "n01", "n01"]
    write(tmp_path, {"loose.png": picture(6)})
    assert "label" not in Folder(tmp_path)[0]


def test_texts_beside_the_pictures_are_captions(tmp_path):
    write(
        tmp_path,
        {
            "a.png": picture(0),
            "a.txt": "  ein Bär auf dem Eis — 氷の上の熊 🐻\n",
            "b/c.v2.png": picture(1),
            "b/c.v2.txt": "two",
            "d.png": picture(2),
        },
    )
    folder = Folder(tmp_path)
    captions = [folder[i]["caption"] for i in range(3)]
    assert captions == ["ein Bär auf dem Eis — 氷の上の熊 🐻", "two", ""]
    assert "caption" not in Folder(tmp_path, captions=False)[0]


TABLES = {
    "captions.json": json.dumps({"a.png": "ä 1", "x/b.png": "two"}),
    "metadata.jsonl": '{"file_name": "a.png", "text": "ä 1"}\n\n'
    '{"file_name": "./x/b.png", "caption": " two "}\n',
    "metadata.csv": 'file_name,text\na.png,ä 1\nx/b.png,"two"\n',
    "other/list.json": json.dumps(
        [{"image": "a.png", "caption": "ä 1"}, {"file": "x/b.png", "text": "two"}]
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_gives_the_captions(tmp_path, name):
    pictures = {"a.png": picture(0), "x/b.png": picture(1), "x/c.png": picture(2)}
    write(tmp_path, {**pictures, "a.txt": "not this one", name: TABLES[name]})
    named = tmp_path / name if name.startswith("other") else None
    folder = Folder(tmp_path, captions=named)
    assert [folder[i]["caption"] for i in range(3)] == ["ä 1", "two", ""]


@pytest.mark.parametrize("name", broken())
def test_a_broken_file_is_named_with_its_reason(tmp_path, name):
    folder = Folder(write(tmp_path, {"a.png": picture(0), name: broken()[name]}))
    index = list(folder.names).index(name)
    reason = "longer than wide" if name == "strip.png" else "must (be|have)"
    with pytest.raises(BrokenPicture, match=rf"^folder: .*{name}.* {reason}"):
        folder[index]
    with pytest.raises(BrokenPicture):
        folder[index]
    assert folder[1 - index]["image"].size == (24, 16)


def test_a_file_that_went_away_and_a_bad_caption_are_broken_pictures(tmp_path):
    folder = Folder(write(tmp_path, {"a.png": picture(0), "b.png": picture(1)}))
    (tmp_path / "a.png").unlink()
    with pytest.raises(BrokenPicture, match=r"No such file.*a\.png"):
        folder[0]
    write(tmp_path, {"b.txt": b"\xff\xfe\xff"})
    with pytest.raises(BrokenPicture, match=r"b\.txt must be UTF-8"):
        Folder(tmp_path)[0]


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "I;16", "CMYK", "L", "1", "YCbCr"])
def test_every_kind_of_pixel_becomes_rgb(tmp_path, mode):
    if mode == "I;16":
        stored = Image.fromarray(np.full((4, 5), 40_000, np.uint16))
    else:
        stored = picture(0).convert(mode)
    stored.save(tmp_path / "a.tif" if mode in ("CMYK", "YCbCr") else tmp_path / "a.png")
    read = Folder(tmp_path)[0]["image"]
    assert read.mode == "RGB"
    if mode == "I;16":
        assert (pixels(read) == 156).all()  # 40,000 / 257


def test_a_rotation_tag_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    write(tmp_path, {"a.jpg": as_bytes(picture(0, (24, 16)), "JPEG", exif=exif)})
    assert Folder(tmp_path)[0]["image"].size == (16, 24)


def test_no_folder_and_no_picture_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone must be a folder, it is not"):
        Folder(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"must hold pictures \(\.png .*none"):
        Folder(write(tmp_path, {"a.txt": "alone"}))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read_is_an_error(tmp_path):
    write(tmp_path, {"a.png": picture(0), "locked/b.png": picture(1)})
    (tmp_path / "locked").chmod(0)
    try:
        with pytest.raises(PermissionError, match="locked"):
            Folder(tmp_path)
    finally:
        (tmp_path / "locked").chmod(0o700)


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("captions.json", '{"b.png": "x"}', r"name pictures as 'a.png'.*'b.png'"),
        ("captions.json", "{", "valid JSON"),
        ("captions.json", '{"a.png": 3}', r"row 1 of .*must have|must have .*row 1"),
        ("metadata.jsonl", '{"text": "x"}', "must have file_name and caption"),
        ("metadata.csv", "name,words\na.png,x\n", "must have file_name and caption"),
        ("metadata.csv", b"file_name,text\na.png,\xff\n", "must be UTF-8"),
    ],
)
def test_a_wrong_table_is_an_error(tmp_path, name, text, words):
    with pytest.raises(ValueError, match=f"captions: .*{words}"):
        Folder(write(tmp_path, {"a.png": picture(0), name: text}))


def test_two_tables_or_none_where_one_is_named_are_errors(tmp_path):
    tables = {name: TABLES[name] for name in ("captions.json", "metadata.csv")}
    write(tmp_path, {"a.png": picture(0), **tables})
    with pytest.raises(ValueError, match=r"one table, got .*captions.json.*captions="):
        Folder(tmp_path)
    assert Folder(tmp_path, captions=tmp_path / "metadata.csv")[0]["caption"] == "ä 1"
    with pytest.raises(FileNotFoundError, match="gone.json is no file"):
        Folder(tmp_path, captions=tmp_path / "gone.json")
    with pytest.raises(ValueError, match=r"\.json, \.jsonl or \.csv.*a\.png"):
        Folder(tmp_path, captions=tmp_path / "a.png")


def test_strings_come_back_as_they_were():
    strings = ["a", "", "é", "\udcff broken name", "氷", "\ud83d"]
    kept = pickle.loads(pickle.dumps(Strings(strings)))
    assert list(kept) == strings and len(kept) == 6 and kept[-2] == "氷"
    assert len(pickle.dumps(Strings(["abcdefgh"] * 10_000))) < 170_000
    for index in (6, -7):
        with pytest.raises(IndexError, match=f"below 6, got {index}"):
            kept[index]
