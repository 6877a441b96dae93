"""`tokenflow demo`: the strip and the numbers are those of the model."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokenflow.cli._strip import MARGIN, strip
from tokenflow.samples import SCENE
from tokenflow.tokenizer.processing import open_image


@pytest.fixture
def told(run, photos, model):
    code, out, err = run("demo", "-m", model, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_the_numbers_are_the_models(told, tokenizer):
    encoded = tokenizer.encode(open_image(SCENE))
    indices, start = encoded.indices[0].tolist(), 0
    for scale, (height, width) in zip(told["scales"], encoded.scales, strict=True):
        assert (scale["height"], scale["width"]) == (height, width)
        assert scale["tokens"] == height * width
        first = indices[start : start + min(5, height * width)]
        assert scale["first_indices"] == first
        start += height * width
    assert told["tokens"] == start == 130
    assert told["bits_per_pixel"] == pytest.approx(130 * math.log2(256) / 64**2)
    assert told["encode_ms"] > 0 and told["decode_ms"] > 0
    assert told["fingerprint"] == tokenizer.fingerprint()
    assert told["output"] == str(Path("demo.png").resolve())


def test_the_strip_shows_the_original_and_every_scale(told, tokenizer):
    seen = open_image(SCENE)
    encoded = tokenizer.encode(seen)
    shown = np.array(Image.open("demo.png"))
    counts = [0, 1, 5, 14, 30, 66, 130]
    for column, count in enumerate(counts):
        if count:
            expected = tokenizer.decode(encoded.indices[:, :count])[0]
        else:
            expected = seen.resize((128, 128), 4).resize((64, 64), 4)  # box, halved
        large = expected.resize((192, 192), Image.Resampling.BICUBIC)
        left = MARGIN + column * (192 + MARGIN)
        part = shown[MARGIN : MARGIN + 192, left : left + 192]
        assert np.array_equal(part, np.array(large)), f"column {column}"
    assert shown.shape[1] == MARGIN + len(counts) * (192 + MARGIN)


def test_a_picture_of_ones_own(run, photos, model):
    words = ("demo", "photos/two.JPG", "-m", model, "-o", "strips/two.png")
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert out.startswith("picture  photos/two.JPG, 50×90, seen as 64×64\n")
    rows = [line.split()[:2] for line in out.splitlines() if "×" in line[:3]]
    assert rows == [[f"{s}×{s}", str(s * s)] for s in (1, 2, 3, 4, 6, 8)]
    assert Path("strips/two.png").is_file() and not Path("demo.png").exists()


def test_a_second_time_writes_again(run, photos, model):
    for _ in range(2):
        assert run("demo", "-m", model).code == 0
    assert [path.name for path in Path.cwd().glob("*.png")] == ["demo.png"]


def test_a_broken_picture_is_a_failure(run, photos):
    Path("bad.png").write_text("no picture")
    for name in ("bad.png", "gone.png"):
        code, out, err = run("demo", name)
        assert (code, out) == (1, "") and err.startswith(f"failed: {name}: ")
    assert not Path("demo.png").exists()


@pytest.mark.parametrize("out", ["photos", "strip.jpg", "photos/one.png"])
def test_a_wrong_out_is_usage(run, photos, model, out):
    before = (photos / "one.png").read_bytes()
    code, _, err = run("demo", "photos/one.png", "-m", model, "-o", out)
    assert code == 2 and "--out" in err
    assert (photos / "one.png").read_bytes() == before


def test_many_scales_go_into_rows():
    pictures = [Image.new("RGB", (27, 27), (9 * n, 0, 0)) for n in range(16)]
    labels = [(str(n), "") for n in range(16)]
    sheet = strip(pictures, labels, "below", side=50)
    assert sheet.width == 8 * (50 + MARGIN) + MARGIN  # two rows of eight
    step = 50 + 2 * 18 + 2 * MARGIN
    assert sheet.getpixel((MARGIN + 3, MARGIN + step + 3)) == (9 * 8, 0, 0)
    assert sheet.height > 2 * step
