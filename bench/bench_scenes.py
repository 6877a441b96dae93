"""The small world: pictures a second on one core, and truths without pixels.

python -m pytest bench/bench_scenes.py --benchmark-enable -s
"""

import itertools

import pytest

from tokenflow.data.glyphs import font_path
from tokenflow.data.scenes import Scenes

PICTURES = 500  # a round


@pytest.fixture(scope="module", autouse=True)
def font():
    try:
        return font_path()
    except FileNotFoundError as error:
        pytest.skip(str(error))


def rate(benchmark, draw):
    """Draw other pictures in every round; print and keep how many a second."""
    first = itertools.count(0, PICTURES)

    def chunk():
        start = next(first)
        for index in range(start, start + PICTURES):
            draw(index)

    benchmark.pedantic(chunk, rounds=5, warmup_rounds=4)
    if benchmark.stats:  # none with --benchmark-disable
        speed = PICTURES / benchmark.stats.stats.median
        benchmark.extra_info["pictures_per_second"] = speed
        print(f"\n{benchmark.name}: {speed:.0f} pictures/s")


@pytest.mark.parametrize("size", [64, 128])
def bench_pictures(benchmark, size):
    benchmark.group = "scenes"
    rate(benchmark, Scenes(size=size, length=2**32).__getitem__)


def bench_truths(benchmark):
    benchmark.group = "scenes"
    rate(benchmark, Scenes().truth)
