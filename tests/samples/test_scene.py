"""The shipped sample is what our own code draws."""

import subprocess
import sys

from PIL import Image, ImageChops, ImageStat

from tokenflow.samples import SCENE, scene


def test_the_shipped_picture_is_the_drawn_one():
    with Image.open(SCENE) as shipped:
        drawn = scene.draw()
        assert (shipped.mode, shipped.size) == (drawn.mode, drawn.size)
        # other releases of Pillow may round edges otherwise, by a level here and there
        apart = ImageStat.Stat(ImageChops.difference(shipped, drawn)).mean
    assert max(apart) < 0.5
    assert SCENE.stat().st_size < 60_000


def test_it_is_drawn_by_one_command(tmp_path):
    words = [sys.executable, "-m", "tokenflow.samples.scene", tmp_path / "scene.png"]
    subprocess.run(words, check=True, timeout=60)
    with Image.open(tmp_path / "scene.png") as drawn:
        assert drawn.size == (256, 256)
