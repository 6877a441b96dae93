"""The objects as small pictures: cut from the font, given a hue, brought to a size.

The hue of a glyph is the fullest of 36 bins over its saturated pixels. Pixels within
40° of it get the hue of the named colour (with 15 % of their own deviation, so that
shading stays), and saturation and value scaled so that their medians are the colour's.
Everything else, such as the leaf of an apple or the tyres of a car, is left alone.
Sizes and places are counted in cells, 64 to the side of a picture. A sprite has whole
cells, so a box is exact at 64 pixels and at every multiple of that.
Source: ours. Font: Noto Color Emoji (SIL Open Font License 1.1).
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageFont

from tokenflow.data.glyphs import FONT_SIZE, draw_glyph
from tokenflow.data.scenes.objects import COLOURS, OBJECTS, Colour

CELLS = 64  # cells to the side of a picture
_REACH = 40 / 360  # pixels this near to the glyph's hue take the colour's
_KEPT = 0.15  # share of their deviation that stays
_GREY = 0.25  # no hue is read from pixels less saturated


def _hsv(glyph: Image.Image) -> np.ndarray:
    return np.asarray(glyph.convert("RGB").convert("HSV"), np.float32) / 255


def tint(glyph: Image.Image, colour: Colour) -> Image.Image:
    """Return an RGBA glyph with its main hue replaced by that of `colour`."""
    hue, saturation, value = np.moveaxis(_hsv(glyph), -1, 0)
    solid = np.asarray(glyph.getchannel("A")) > 127
    vivid = solid & (saturation > _GREY)
    bins, edges = np.histogram(hue[vivid], 36, (0, 1), weights=saturation[vivid])
    off = (hue - edges[bins.argmax()] - 0.5 / 36 + 0.5) % 1 - 0.5
    near = (abs(off) < _REACH) & (saturation > _GREY)
    hue = np.where(near, (colour.hue / 360 + _KEPT * off) % 1, hue)
    for channel, target in ((saturation, colour.saturation), (value, colour.value)):
        scaled = channel * (target / np.median(channel[near & solid]))
        channel[near] = np.clip(scaled, 0, 1)[near]
    pixels = np.rint(np.stack([hue, saturation, value], axis=-1) * 255)
    tinted = Image.fromarray(pixels.astype(np.uint8), "HSV").convert("RGB")
    tinted.putalpha(glyph.getchannel("A"))
    return tinted


class Sprites:
    """Every object of the vocabulary in every colour and size, kept once made.

    Args:
        path: The font file.

    Raises:
        ValueError: The font does not draw all objects.
    """

    def __init__(self, path: Path):
        font = ImageFont.truetype(str(path), FONT_SIZE)
        self.path = path
        self._glyphs = {}
        for thing in OBJECTS.values():
            glyph = draw_glyph(font, thing.code)
            if glyph is None:
                raise ValueError(
                    f"scenes: {path} must hold colour bitmaps of all {len(OBJECTS)} "
                    f"objects, {thing.name} (U+{thing.code:04X}) is not drawn"
                )
            self._glyphs[thing.name, None] = glyph
        self._sprites, self._masks, self._means = {}, {}, {}

    def __reduce__(self):  # noqa: D105
        return load_sprites, (self.path,)  # pixels are made anew elsewhere

    def _glyph(self, name: str, colour: str | None) -> Image.Image:
        found = self._glyphs.get((name, colour))
        if found is None:
            found = tint(self._glyphs[name, None], COLOURS[colour])
            self._glyphs[name, colour] = found
        return found

    def cells(self, name: str, side: int) -> tuple[int, int]:
        """Width and height in cells when the longer of them is `side`."""
        width, height = self._glyphs[name, None].size
        longer = max(width, height)
        return max(1, round(width * side / longer)), max(
            1, round(height * side / longer)
        )

    def sprite(
        self, name: str, colour: str | None, size: tuple[int, int]
    ) -> Image.Image:
        """Return the RGBA sprite of an object at a width and height in pixels."""
        key = (name, colour, size)
        found = self._sprites.get(key)
        if found is None:
            glyph = self._glyph(name, colour)
            found = glyph.resize(size, Image.Resampling.LANCZOS)
            self._sprites[key] = found
        return found

    def mask(self, name: str, side: int, mirrored: bool) -> np.ndarray:
        """Return which cells an object covers, [height, width] bool."""
        key = (name, side, mirrored)
        found = self._masks.get(key)
        if found is None:
            sprite = self.sprite(name, None, self.cells(name, side))
            found = np.asarray(sprite)[..., 3] > 127
            found = self._masks[key] = found[:, ::-1] if mirrored else found
        return found

    def mean(self, name: str, colour: str | None) -> np.ndarray:
        """Return an object's mean colour, [3] float32 in [0, 1]."""
        found = self._means.get((name, colour))
        if found is None:
            pixels = np.asarray(self._glyph(name, colour), np.float32) / 255
            found = pixels[pixels[..., 3] > 0.5, :3].mean(axis=0)
            self._means[name, colour] = found
        return found


@lru_cache(maxsize=2)
def load_sprites(path: Path) -> Sprites:
    """Return the sprites of a font; about 50 ms, once per process."""
    return Sprites(path)
