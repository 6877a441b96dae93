"""Draws the sample picture: a balloon over a lake, a house, some firs.

`python -m tokenflow.samples.scene FILE` writes it. Everything is drawn four times too
large and then shrunk, which smooths the edges.
"""

import math
import sys

from PIL import Image, ImageDraw, ImageOps

SIDE = 256  # pixels of the finished picture; coordinates below are in these
FINE = 4  # drawn this much larger

Point = tuple[float, float]


def draw() -> Image.Image:
    """Return the scene, 256×256 RGB."""
    picture = _sky()
    pen = ImageDraw.Draw(picture)
    _sun(pen, (66, 72))
    _mountains(pen)
    _lake(picture)
    pen = ImageDraw.Draw(picture)
    _meadow(pen)
    _house(pen, (38, 206))
    for x, y, height in ((100, 219, 40), (119, 227, 52), (10, 214, 34)):
        _fir(pen, x, y, height)
    _balloon(picture, (176, 76), 46)
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


def _fine(points: list[Point]) -> list[Point]:
    return [(x * FINE, y * FINE) for x, y in points]


def _disc(pen: ImageDraw.ImageDraw, centre: Point, radius: float, colour: str) -> None:
    x, y = centre
    corners = [(x - radius, y - radius), (x + radius, y + radius)]
    pen.ellipse(_fine(corners), fill=colour)


def _polygon(pen: ImageDraw.ImageDraw, points: list[Point], colour: str) -> None:
    pen.polygon(_fine(points), fill=colour)


def _gradient(height: int, top: str, bottom: str) -> Image.Image:
    ramp = Image.linear_gradient("L").resize((SIDE * FINE, height * FINE))
    return ImageOps.colorize(ramp, top, bottom)


def _sky() -> Image.Image:
    picture = Image.new("RGB", (SIDE * FINE, SIDE * FINE))
    picture.paste(_gradient(170, "#3f7fd0", "#ffe3b8"), (0, 0))
    return picture


def _sun(pen: ImageDraw.ImageDraw, centre: Point) -> None:
    for step in range(12):
        angle = step * math.tau / 12
        rays = [(angle, 40), (angle - 0.13, 27), (angle + 0.13, 27)]
        points = [
            (centre[0] + r * math.cos(a), centre[1] + r * math.sin(a)) for a, r in rays
        ]
        _polygon(pen, points, "#ffdf7a")
    _disc(pen, centre, 23, "#ffcf3f")


def _mountains(pen: ImageDraw.ImageDraw) -> None:
    peaks = [((38, 108), 66, "#7f8fb5"), ((214, 102), 74, "#7787ae")]
    for (x, y), half, colour in [*peaks, ((118, 92), 84, "#62739f")]:
        foot = 170
        _polygon(pen, [(x, y), (x - half, foot), (x + half, foot)], colour)
        cap = (foot - y) * 0.3
        left, right = x - half * 0.3, x + half * 0.3
        notch = [(x + half * 0.12, y + cap * 0.7), (x - half * 0.06, y + cap)]
        edge = [(right, y + cap), *notch, (x - half * 0.16, y + cap * 0.7)]
        _polygon(pen, [(x, y), *edge, (left, y + cap)], "#f7f9ff")


def _lake(picture: Image.Image) -> None:
    picture.paste(_gradient(SIDE - 166, "#8fc4dd", "#2f6fa8"), (0, 166 * FINE))
    pen = ImageDraw.Draw(picture)
    for x, y, length in (
        (150, 176, 60),
        (196, 188, 46),
        (140, 200, 40),
        (206, 208, 34),
    ):
        box = [(x, y), (x + length, y + 2.4)]
        pen.rounded_rectangle(_fine(box), radius=5, fill="#cfe8f2")


def _meadow(pen: ImageDraw.ImageDraw) -> None:
    pen.ellipse(_fine([(-120, 178), (168, 330)]), fill="#6fae4e")
    pen.ellipse(_fine([(60, 222), (330, 330)]), fill="#4f9443")
    flowers = ((150, 242), (172, 236), (196, 244), (220, 238), (240, 248), (128, 249))
    for number, spot in enumerate(flowers):
        _disc(pen, spot, 4, ("#f2c14e", "#e4572e", "#ffffff")[number % 3])
        _disc(pen, spot, 1.6, "#7a3b1d")


def _house(pen: ImageDraw.ImageDraw, corner: Point) -> None:
    x, y = corner  # lower left
    pen.rectangle(_fine([(x, y - 32), (x + 44, y)]), fill="#f6ead2")
    pen.rectangle(_fine([(x + 31, y - 55), (x + 38, y - 36)]), fill="#8a4b3a")
    _polygon(pen, [(x - 6, y - 31), (x + 22, y - 56), (x + 50, y - 31)], "#c8402f")
    pen.rectangle(_fine([(x + 6, y - 22), (x + 17, y)]), fill="#7a4a2b")
    pen.rectangle(_fine([(x + 25, y - 23), (x + 37, y - 11)]), fill="#5aa9d6")
    pen.line(_fine([(x + 31, y - 23), (x + 31, y - 11)]), fill="white", width=FINE)


def _fir(pen: ImageDraw.ImageDraw, x: float, y: float, height: float) -> None:
    pen.rectangle(_fine([(x - 2.5, y - 6), (x + 2.5, y)]), fill="#6b432a")
    for layer, colour in enumerate(("#1f5e3a", "#26704a", "#2f8357")):
        bottom = y - 5 - layer * height * 0.26
        half = height * (0.34 - 0.07 * layer)
        tip = bottom - height * 0.44
        _polygon(pen, [(x, tip), (x - half, bottom), (x + half, bottom)], colour)


def _balloon(picture: Image.Image, centre: Point, radius: float) -> None:
    """Stripes are drawn as ever narrower ellipses, then cut by the envelope's shape."""
    x, y = centre
    layer = Image.new("RGB", picture.size, "#e4392f")
    pen = ImageDraw.Draw(layer)
    stripes = ((0.72, "#ffd23f"), (0.46, "#e4392f"), (0.18, "#ffd23f"))
    for width, colour in stripes:
        box = [(x - radius * width, y - radius), (x + radius * width, y + radius * 1.5)]
        pen.ellipse(_fine(box), fill=colour)
    mask = Image.new("L", picture.size)
    shape = ImageDraw.Draw(mask)
    shape.ellipse(_fine([(x - radius, y - radius), (x + radius, y + radius)]), fill=255)
    sides = [
        (x - radius * 0.87, y + radius * 0.5),
        (x + radius * 0.87, y + radius * 0.5),
    ]
    mouth = y + radius * 1.36
    shape.polygon(_fine([*sides, (x + 9, mouth), (x - 9, mouth)]), fill=255)
    picture.paste(layer, (0, 0), mask)
    pen = ImageDraw.Draw(picture)
    for side in (-1, 1):
        rope = [(x + side * 9, mouth), (x + side * 7, mouth + 14)]
        pen.line(_fine(rope), fill="#5b3a22", width=FINE)
    basket = [(x - 9, mouth + 13), (x + 9, mouth + 26)]
    pen.rounded_rectangle(_fine(basket), radius=3 * FINE, fill="#8b5a2b")


if __name__ == "__main__":
    draw().save(sys.argv[1], optimize=True)
