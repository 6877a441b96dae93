"""Every command once as a user runs it: the installed script, a process, a folder."""

import json

from PIL import Image


def test_help_lists_every_command(shell):
    code, out, err = shell("--help")
    assert (code, err) == (0, "")
    for name in ("convert", "decode", "demo", "encode", "info", "reconstruct"):
        assert f"\n  {name} " in out


def test_info_says_what_is_here(shell):
    code, out, err = shell("info")
    assert (code, err) == (0, "")
    assert out.startswith("tokenflow ") and "\ntorch " in out and "\nkernels " in out


def test_demo_writes_a_strip_and_says_where(shell, model, tmp_path):
    code, out, err = shell("demo", "--model", model)
    assert (code, err) == (0, "")
    assert "130 tokens, 0.254 bits per pixel" in out  # 130 · log2(256) / 64²
    assert f"wrote {tmp_path / 'demo.png'}: original | after each scale | final" in out
    with Image.open(tmp_path / "demo.png") as strip:
        assert strip.width > 7 * 192  # the original and six scales


def test_encode_then_decode_in_two_processes(shell, model, photos, tmp_path):
    code, out, err = shell("encode", "photos", "-o", "tokens", "--model", model)
    assert (code, err) == (0, "")
    assert "photos/one.png -> tokens/one.tok  130 tokens" in out
    code, out, err = shell("decode", "tokens", "-o", "drawn", "--model", model)
    assert (code, err) == (0, "")
    drawn = sorted((tmp_path / "drawn").rglob("*.*"))
    names = [path.relative_to(tmp_path).as_posix() for path in drawn]
    assert names == ["drawn/deep/deeper/one.png", "drawn/one.png", "drawn/two.png"]


def test_reconstruct_names_what_failed_and_does_the_rest(shell, model, photos):
    (photos / "broken.png").write_bytes((photos / "one.png").read_bytes()[:300])
    words = ("reconstruct", "photos", "-o", "redrawn", "--model", model, "--json")
    code, out, err = shell(*words)
    result = json.loads(out)
    assert code == 1 and len(result["done"]) == 3
    assert [entry["input"] for entry in result["failed"]] == ["photos/broken.png"]
    assert "failed: photos/broken.png: " in err and "1 of 4 failed" in err


def test_convert_refuses_what_is_no_checkpoint(shell, tmp_path):
    (tmp_path / "notes.pt").write_text("no weights")
    code, out, err = shell("convert", "notes.pt", "out")
    assert code == 1 and out == ""
    assert err.startswith("failed: notes.pt: ") and "1 of 1 failed" in err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.pt"]
