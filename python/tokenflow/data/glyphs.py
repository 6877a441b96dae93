"""Pictures drawn by our own code: emoji glyphs over procedural backgrounds.

The glyphs come from the font Noto Color Emoji, read where the system has it
installed and never copied. One glyph in ten is held out: no training picture ever
shows it, so scores on held-out pictures speak of shapes the model has not seen
(families such as clock faces have members on both sides). Picture number i of a
seed is always the same picture, whatever the worker, order or process.
Source: ours. Font: Noto Color Emoji (SIL Open Font License 1.1), Debian package
fonts-noto-color-emoji.
"""

import hashlib
import os
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.utils.data import Dataset

from tokenflow.data.backgrounds import background

FONT_FILE = "NotoColorEmoji.ttf"
FONT_SIZE = 109  # the only bitmap size in the font
SPRITE = 64  # sprites are kept at this width and height
SPLITS = ("train", "heldout")
_FOLDERS = (
    "/usr/share/fonts/truetype/noto",
    "/usr/share/fonts/noto",
    "/usr/share/fonts/google-noto-emoji",
    "~/.local/share/fonts",
    "~/.fonts",
)
_RANGES = ((0x203C, 0x3300), (0x1F000, 0x1FC00))
_PARTS = frozenset((*range(0x1F1E6, 0x1F200), *range(0x1F3FB, 0x1F400), 0x20E3))


def font_path() -> Path:
    """Return where Noto Color Emoji is installed.

    `TOKENFLOW_EMOJI_FONT` may name the file; else the usual folders and then
    fontconfig (`fc-match`) are asked.

    Raises:
        FileNotFoundError: The font is not there; names the package to install.
    """
    named = os.environ.get("TOKENFLOW_EMOJI_FONT")
    places = [named] if named else [f"{folder}/{FONT_FILE}" for folder in _FOLDERS]
    for place in places:
        path = Path(place).expanduser()
        if path.is_file():
            return path
    if not named:
        try:
            ask = ["fc-match", "--format=%{file}", "Noto Color Emoji"]
            found = subprocess.run(ask, capture_output=True, text=True, timeout=20)
            path = Path(found.stdout.strip())
            if path.name == FONT_FILE and path.is_file():
                return path
        except (OSError, subprocess.TimeoutExpired):
            pass
    raise FileNotFoundError(
        f"glyphs: the font Noto Color Emoji ({named or FONT_FILE}) was not found; "
        "install it (Debian and Ubuntu: apt-get install fonts-noto-color-emoji)"
    )


def is_heldout(code: int) -> bool:
    """Say whether a code point belongs to the held-out tenth.

    Decided by a hash of its name (U+1F600), so that it depends on nothing else.
    """
    digest = hashlib.sha256(f"U+{code:04X}".encode()).digest()
    return digest[0] % 10 == 0


def draw_glyph(font: ImageFont.FreeTypeFont, code: int) -> Image.Image | None:
    """Return a code point's glyph as RGBA, cut to its box; None where there is none."""
    left, top, right, bottom = font.getbbox(chr(code))
    if right <= left or bottom <= top:
        return None
    canvas = Image.new("RGBA", (right, right))
    ImageDraw.Draw(canvas).text((0, 0), chr(code), font=font, embedded_color=True)
    box = canvas.getbbox()
    return canvas.crop(box) if box else None


@lru_cache(maxsize=2)
def load_glyphs(path: Path) -> dict[int, Image.Image]:
    """Return every drawable glyph as {code point: RGBA sprite}, by code point.

    A sprite is SPRITE x SPRITE with the glyph's own proportions, centred.
    Regional indicators, skin tones and the keycap, which are parts of other
    glyphs, are left out. About 1 s and 25 MB, once per process.

    Raises:
        ValueError: The font draws none of them (one of outlines may not).
    """
    font = ImageFont.truetype(str(path), FONT_SIZE)
    sprites = {}
    for code in (code for low, high in _RANGES for code in range(low, high)):
        glyph = None if code in _PARTS else draw_glyph(font, code)
        if glyph is None:
            continue
        side = max(glyph.size) + 4  # room to blend the edge
        square = Image.new("RGBA", (side, side))
        square.paste(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
        sprites[code] = square.resize((SPRITE, SPRITE), Image.Resampling.LANCZOS)
    if not sprites:
        raise ValueError(
            f"glyphs: {path} must hold colour bitmaps as Noto Color Emoji does, "
            "no glyph of it can be drawn"
        )
    return sprites


@dataclass(frozen=True)
class Drawing:
    """One picture and what is on it."""

    image: Tensor  # [3, size, size] uint8
    glyphs: tuple[int, ...]  # class of each glyph, bottom to top
    cover: Tensor  # [size, size] int64: class of the glyph seen there, -1 for none


class GlyphPictures(Dataset):
    """Pictures of one to three glyphs over a random background.

    Item i is `{"image": uint8 [3, size, size], "cover": int64 [size, size]}`; the
    classes in `cover` count the split's glyphs in code point order (`codes`).

    Args:
        split: "train" (nine glyphs in ten) or "heldout" (the others).
        size: Side of the pictures in pixels, at least 16.
        seed: With the item's number decides the picture.
        length: How many pictures the data set says it has.

    Raises:
        ValueError: Unknown split, or size below 16.
        FileNotFoundError: The font is not installed.
    """

    def __init__(
        self,
        split: str = "train",
        *,
        size: int = 64,
        seed: int = 0,
        length: int = 100_000,
    ):
        if split not in SPLITS:
            raise ValueError(f"glyphs: split must be one of {SPLITS}, got {split!r}")
        if size < 16:
            raise ValueError(f"glyphs: size must be at least 16, got {size}")
        sprites = load_glyphs(font_path())
        self.split, self.size, self.seed, self.length = split, size, seed, length
        self.codes = [c for c in sprites if is_heldout(c) == (split == "heldout")]
        self._sprites = [sprites[code] for code in self.codes]

    def __len__(self) -> int:  # noqa: D105
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:  # noqa: D105
        if not 0 <= index < self.length:
            raise IndexError(
                f"glyphs: index must be in [0, {self.length}), got {index}"
            )
        drawing = self.draw(index)
        return {"image": drawing.image, "cover": drawing.cover}

    def draw(self, index: int) -> Drawing:
        """Draw picture number `index` (any number ≥ 0)."""
        split = SPLITS.index(self.split)
        rng = np.random.default_rng((self.seed, split, index))
        ground = np.rint(background(rng, self.size) * 255).clip(0, 255)
        picture = Image.fromarray(ground.astype(np.uint8))
        cover = Image.new("I", picture.size, -1)
        count = int(rng.choice(3, p=(0.5, 0.3, 0.2))) + 1
        glyphs = tuple(int(g) for g in rng.integers(len(self.codes), size=count))
        for glyph in glyphs:
            sprite = self._place(rng, glyph, count)
            x, y = rng.uniform(-0.25, 1.25, 2) if count > 1 else rng.uniform(0, 1, 2)
            free = (self.size - sprite.width, self.size - sprite.height)
            corner = (round(x * free[0]), round(y * free[1]))
            picture.paste(sprite, corner, sprite)
            seen = sprite.getchannel("A").point(lambda a: 255 * (a > 127))
            cover.paste(glyph, (*corner, *_far(corner, sprite.size)), seen)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
        return Drawing(pixels, glyphs, torch.from_numpy(np.array(cover)).long())

    def _place(self, rng: np.random.Generator, glyph: int, count: int) -> Image.Image:
        """Mirror, scale and turn one sprite."""
        largest = 1.1 / count**0.5
        side = round(self.size * rng.uniform(0.45 * largest, largest))
        sprite = self._sprites[glyph]
        if rng.random() < 0.5:
            sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        sprite = sprite.resize((side, side), Image.Resampling.BICUBIC)
        angle = rng.normal(0, 25) if rng.random() < 0.8 else rng.uniform(0, 360)
        return sprite.rotate(angle, Image.Resampling.BICUBIC, expand=True)


def _far(corner: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    return corner[0] + size[0], corner[1] + size[1]
