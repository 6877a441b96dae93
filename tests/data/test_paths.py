"""Patterns: which files they mean, and in which order."""

import pytest

from tokenflow.data.paths import expand_braces, files_of


@pytest.mark.parametrize(
    "pattern, meant",
    [
        ("a.tar", ["a.tar"]),
        ("{000..003}.tar", ["000.tar", "001.tar", "002.tar", "003.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{098..101}", ["098", "099", "100", "101"]),
        ("{5..5}", ["5"]),
        ("{a,bc,}-{0..1}", ["a-0", "a-1", "bc-0", "bc-1", "-0", "-1"]),
        ("{x..z}", ["x..z"]),
    ],
)
def test_braces_are_ranges_and_alternatives(pattern, meant):
    assert expand_braces(pattern) == meant


def test_a_falling_range_is_an_error():
    with pytest.raises(ValueError, match=r"must rise, got \{5\.\.1\}"):
        expand_braces("x{5..1}.tar")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("b-00.tar", "b-01.tar", "a-10.tar", "a-02.tar", "odd{1..2}[x].tar"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "patterns, names",
    [
        ("b-{00..01}.tar", ["b-00.tar", "b-01.tar"]),
        ("a-*.tar", ["a-02.tar", "a-10.tar"]),
        ("{b,a}-0?.tar", ["b-00.tar", "b-01.tar", "a-02.tar"]),
        (["b-01.tar", "a-*.tar"], ["b-01.tar", "a-02.tar", "a-10.tar"]),
        ("odd{1..2}[x].tar", ["odd{1..2}[x].tar"]),
    ],
)
def test_patterns_mean_files_in_order(folder, patterns, names):
    assert files_of(patterns, "tars") == [folder / name for name in names]


@pytest.mark.parametrize(
    "patterns, error, words",
    [
        ("c-*.tar", FileNotFoundError, r"tars: no file matches c-\*\.tar"),
        ("b-{00..03}.tar", FileNotFoundError, r"b-02\.tar must be .*\(2 such"),
        (".", FileNotFoundError, r"\. must be a file, it is not"),
        ([], ValueError, "tars: at least one file must be named"),
    ],
)
def test_what_is_not_there_is_named(folder, patterns, error, words):
    with pytest.raises(error, match=words):
        files_of(patterns, "tars")
