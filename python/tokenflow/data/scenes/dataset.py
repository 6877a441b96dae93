"""Pictures of the small world, item by item.

Picture i of a split and seed is drawn from a generator seeded with those three
numbers alone: first the truth, then the caption, then the background. So the truth
can be had without pixels, and is the same at every size.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from tokenflow.data.backgrounds import background
from tokenflow.data.glyphs import font_path
from tokenflow.data.scenes.layout import arrange
from tokenflow.data.scenes.plans import (
    SPLITS,
    Rng,
    check_split,
    draw_category,
    draw_plan,
)
from tokenflow.data.scenes.sprites import CELLS, Sprites, load_sprites
from tokenflow.data.scenes.truth import Scene
from tokenflow.data.scenes.words import Question, caption, questions

PLAIN = 0.35  # share of pictures whose background is one colour
CLEAR = 0.40  # distance wanted between background and objects, mean RGB in [0, 1]
TEXTURE = 0.7  # strength of textures, so that they hide no edge of an object
_LIMIT = 2**32  # a seed or an index is one word of the generator's seed


@dataclass(frozen=True)
class Drawing:
    """One picture, what is said of it and what is in it."""

    image: Tensor  # [3, size, size] uint8
    caption: str
    scene: Scene


def render(scene: Scene, size: int, sprites: Sprites, rng: Rng) -> Tensor:
    """Return a scene over a random background, [3, size, size] uint8."""
    picture = Image.fromarray(_ground(scene, size, sprites, rng))
    for thing in scene.objects:
        left, top, right, bottom = (round(edge * size) for edge in thing.box)
        sprite = sprites.sprite(thing.name, thing.colour, (right - left, bottom - top))
        if thing.mirrored:
            sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        picture.paste(sprite, (left, top), sprite)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _ground(scene: Scene, size: int, sprites: Sprites, rng: Rng) -> np.ndarray:
    """One colour or a texture, [size, size, 3] uint8, away from the objects' colours.

    Up to 16 colours are tried and the clearest taken. A texture is moved so that this
    is its mean.
    """
    means = [sprites.mean(*key) for key in {(o.name, o.colour) for o in scene.objects}]
    best, gap = None, -1.0
    for _ in range(16):
        colour = rng.random(3, dtype=np.float32)
        near = min(float(((colour - mean) ** 2).sum()) for mean in means)
        if near > gap:
            best, gap = colour, near
        if gap >= CLEAR**2:
            break
    level = best * 255
    if rng.random() < PLAIN:
        ground = np.empty((size, size, 3), np.uint8)
        ground[:] = np.rint(level)
        return ground
    field = background(rng, size) * np.float32(TEXTURE * 255)
    field += level - field.mean(axis=(0, 1))
    return np.rint(field).clip(0, 255).astype(np.uint8)


class Scenes(Dataset):
    """Pictures of one to five objects with their captions and truths.

    Item i is `{"image": uint8 [3, size, size], "caption": str, "scene": Scene}`.

    Args:
        split: "train", "heldout" (other pictures by the same rules), "objects" (at
            least one object that training never shows) or "combinations" (objects or
            colours that never meet in training).
        size: Side of the pictures in pixels, at least 32.
        seed: With split and index decides the picture, in [0, 2³²).
        length: How many pictures the data set says it has, in [0, 2³²].

    Raises:
        ValueError: Unknown split, or a number out of its range.
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
        check_split(split)
        if size < CELLS // 2:
            raise ValueError(f"scenes: size must be at least 32, got {size}")
        if not 0 <= seed < _LIMIT:
            raise ValueError(f"scenes: seed must be in [0, 2**32), got {seed}")
        if not 0 <= length <= _LIMIT:
            raise ValueError(f"scenes: length must be in [0, 2**32], got {length}")
        self.split, self.size, self.seed, self.length = split, size, seed, length
        self._sprites = load_sprites(font_path())

    def __len__(self) -> int:  # noqa: D105
        return self.length

    def __getitem__(self, index: int) -> dict:  # noqa: D105
        if not 0 <= index < self.length:
            raise IndexError(
                f"scenes: index must be in [0, {self.length}), got {index}"
            )
        drawing = self.draw(index)
        return {
            "image": drawing.image,
            "caption": drawing.caption,
            "scene": drawing.scene,
        }

    def _scene(self, index: int) -> tuple[Scene, Rng]:
        if not 0 <= index < _LIMIT:
            raise IndexError(f"scenes: index must be in [0, 2**32), got {index}")
        rng = np.random.default_rng((self.seed, SPLITS.index(self.split), index))
        plan = draw_plan(draw_category(self.split, rng), self.split, rng)
        return arrange(plan, self._sprites, rng), rng

    def truth(self, index: int) -> Scene:
        """Return what picture number `index` shows, without drawing it."""
        return self._scene(index)[0]

    def draw(self, index: int) -> Drawing:
        """Draw picture number `index` (any in [0, 2³²), whatever the length)."""
        scene, rng = self._scene(index)
        said = caption(scene, rng)
        return Drawing(render(scene, self.size, self._sprites, rng), said, scene)

    def questions(self, index: int) -> list[Question]:
        """Return the questions about picture number `index` with their answers."""
        seed = (self.seed, SPLITS.index(self.split), index, 1)
        return questions(self.truth(index), np.random.default_rng(seed))
