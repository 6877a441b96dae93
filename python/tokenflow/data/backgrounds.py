"""Procedural backgrounds for the glyph pictures.

Every background is a field t in [0, 1] between two colours (flat, gradients,
value noise, stripes, checks, dots), or coloured noise, or a pile of leaves: many
discs and boxes over each other, whose edges and sizes are near those of photographs.
A background is a function of the random generator handed in and of nothing else.
Source: ours; the leaves follow the dead-leaves model (Matheron 1968).
"""

import numpy as np
from PIL import Image, ImageDraw

CONTRAST = 0.25  # spread of the second colour around the first, per channel
Rng = np.random.Generator


def _plane(rng: Rng, size: int) -> np.ndarray:
    """Coordinate along a random direction, about [-0.7, 0.7], [size, size]."""
    angle = rng.uniform(0, 2 * np.pi)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    return np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]


def _stretch(field: np.ndarray) -> np.ndarray:
    low, high = field.min(), field.max()
    return (field - low) / max(high - low, 1e-6)


def _noise(rng: Rng, size: int, cells: int) -> np.ndarray:
    """Value noise: a random grid of `cells` x `cells`, enlarged smoothly."""
    grid = Image.fromarray(rng.random((cells, cells), dtype=np.float32))
    return np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC))


def flat(rng: Rng, size: int) -> np.ndarray:
    """Nothing at all: 0 everywhere."""
    return np.zeros((size, size), np.float32)


def gradient(rng: Rng, size: int) -> np.ndarray:
    """A linear ramp in a random direction."""
    return _stretch(_plane(rng, size))


def glow(rng: Rng, size: int) -> np.ndarray:
    """The distance from a random point."""
    centre = rng.uniform(0, size, 2)
    axis = np.arange(size, dtype=np.float32) + 0.5
    return _stretch(np.hypot(axis[None, :] - centre[0], axis[:, None] - centre[1]))


def value_noise(rng: Rng, size: int) -> np.ndarray:
    """Smooth noise of a random coarseness."""
    return _stretch(_noise(rng, size, int(rng.integers(2, 9))))


def texture(rng: Rng, size: int) -> np.ndarray:
    """Octaves of value noise, each half as strong as the one before."""
    octaves = (2, 4, 8, 16)[: int(rng.integers(2, 5))]
    total = sum(_noise(rng, size, 2 * n) * 2.0 / n for n in octaves)
    return _stretch(np.asarray(total, np.float32))


def stripes(rng: Rng, size: int) -> np.ndarray:
    """Parallel stripes, soft or hard."""
    wave = np.sin(2 * np.pi * rng.uniform(1, 5) * _plane(rng, size))
    return np.clip(0.5 + rng.uniform(0.5, 4) * wave, 0, 1)


def checks(rng: Rng, size: int) -> np.ndarray:
    """A turned chessboard."""
    angle, frequency = rng.uniform(0, np.pi), rng.uniform(0.7, 3)
    axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    u = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
    v = np.cos(angle) * axis[:, None] - np.sin(angle) * axis[None, :]
    wave = np.sin(2 * np.pi * frequency * u) * np.sin(2 * np.pi * frequency * v)
    return np.clip(0.5 + 4 * wave, 0, 1)


def dots(rng: Rng, size: int) -> np.ndarray:
    """Round dots on a grid."""
    pitch = size * rng.uniform(0.15, 0.4)
    axis = np.arange(size, dtype=np.float32)
    u = (axis + rng.uniform(0, pitch)) % pitch - pitch / 2
    v = (axis + rng.uniform(0, pitch)) % pitch - pitch / 2
    radius = pitch * rng.uniform(0.2, 0.4)
    return np.clip(radius - np.hypot(u[None, :], v[:, None]) + 0.5, 0, 1)


FIELDS = (flat, gradient, glow, value_noise, texture, stripes, checks, dots)


def leaves(rng: Rng, size: int) -> np.ndarray:
    """Discs and boxes of random colours over each other, [size, size, 3]."""
    double = 2 * size  # drawn twice as large, so that edges come out smooth
    base = rng.uniform(0, 255, 3)
    picture = Image.new("RGB", (double, double), tuple(base.astype(int)))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(6, 25))):
        half = double * 0.04 / rng.uniform(0.08, 1.0, 2)
        x, y = rng.uniform(0, double, 2)
        colour = np.clip(base + rng.normal(0, 255 * CONTRAST, 3), 0, 255)
        shape = draw.ellipse if rng.random() < 0.6 else draw.rectangle
        box = (x - half[0], y - half[1], x + half[0], y + half[1])
        shape(box, fill=tuple(colour.astype(int)))
    return np.asarray(picture.reduce(2), np.float32) / 255


def clouds(rng: Rng, size: int) -> np.ndarray:
    """Smooth noise with its own field for each colour, [size, size, 3]."""
    fields = [value_noise(rng, size) for _ in range(3)]
    low = rng.random(3, dtype=np.float32)
    high = np.clip(low + rng.normal(0, CONTRAST, 3), 0, 1).astype(np.float32)
    return low + (high - low) * np.stack(fields, axis=-1)


def background(rng: Rng, size: int) -> np.ndarray:
    """Return one random background, [size, size, 3] float32 in [0, 1]."""
    kind = int(rng.integers(len(FIELDS) + 2))
    if kind >= len(FIELDS):
        return (leaves if kind == len(FIELDS) else clouds)(rng, size)
    field = FIELDS[kind](rng, size).astype(np.float32)[..., None]
    first = rng.random(3, dtype=np.float32)
    second = np.clip(first + rng.normal(0, CONTRAST, 3), 0, 1).astype(np.float32)
    return first + (second - first) * field
