"""A small teacher: what is on each patch of a glyph picture.

The published models learn the semantic half from CLIP or SigLIP. `mini` has no such
giant: a small convolutional encoder learns to name the glyph that covers the centre
of each 8 x 8 patch (or none), and its last features before that answer are the
target. They mean glyph identity and nothing more.
Source: ours; the use as a target follows TokenFlow, arXiv:2412.03069, section 3.
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenflow.data.glyphs import GlyphPictures

PATCH = 8


class _Step(nn.Module):
    """3x3 convolution, GroupNorm, GELU; adds its input where shapes allow."""

    def __init__(self, source: int, target: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(source, target, 3, stride, padding=1, bias=False)
        self.norm = nn.GroupNorm(8, target)
        self.adds = stride == 1 and source == target

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.norm(self.conv(x)))
        return x + y if self.adds else y


class Teacher(nn.Module):
    """Image encoder with a patch classifier.

    forward: images [B, 3, H, W] in [-1, 1], H and W multiples of 8
    -> tokens [B, H/8 · W/8, width], row-major.

    Args:
        classes: How many glyphs it tells apart; "no glyph" is one class more.
        width: Width of the tokens, a multiple of 8.
    """

    def __init__(self, classes: int, width: int = 96):
        super().__init__()
        self.classes, self.width = classes, width
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 4, 2, padding=1),
            nn.GELU(),
            _Step(32, 64, 2),
            _Step(64, 64),
            _Step(64, 128, 2),
            *(_Step(128, 128) for _ in range(4)),
            nn.Conv2d(128, width, 1),
        )
        self.head = nn.Linear(width, classes + 1)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, H/8 · W/8, width]."""
        return self.body(images).flatten(2).transpose(1, 2)

    def classify(self, tokens: Tensor) -> Tensor:
        """Return logits [B, L, classes + 1]; the last class is "no glyph"."""
        return self.head(F.gelu(tokens))


def patch_labels(cover: Tensor, classes: int) -> Tensor:
    """Return the class at each patch's centre: [B, H, W] -> [B, H/8 · W/8].

    -1 (no glyph) becomes `classes`.
    """
    centres = cover[:, PATCH // 2 :: PATCH, PATCH // 2 :: PATCH].flatten(1)
    return torch.where(centres < 0, classes, centres)


def as_input(images: Tensor) -> Tensor:
    """Return uint8 [B, 3, H, W] as float32 in [-1, 1]."""
    return images.float().div(127.5).sub(1)


def draw_batch(pictures: GlyphPictures, first: int, count: int) -> dict[str, Tensor]:
    """Return pictures first … first + count - 1 as one batch."""
    drawn = [pictures.draw(first + i) for i in range(count)]
    return {
        "image": torch.stack([d.image for d in drawn]),
        "cover": torch.stack([d.cover for d in drawn]),
    }


@torch.no_grad()
def accuracy(teacher: Teacher, pictures: GlyphPictures, count: int) -> float:
    """Return the share of glyph patches named rightly over `count` pictures."""
    right = total = 0
    for first in range(0, count, 64):
        batch = draw_batch(pictures, first, min(64, count - first))
        labels = patch_labels(batch["cover"], teacher.classes)
        answers = teacher.classify(teacher(as_input(batch["image"]))).argmax(-1)
        on_glyph = labels < teacher.classes
        right += int((answers == labels)[on_glyph].sum())
        total += int(on_glyph.sum())
    return right / max(total, 1)


def train_teacher(
    pictures: GlyphPictures,
    *,
    width: int,
    minutes: float,
    batch: int = 32,
    rate: float = 2e-3,
    seed: int = 0,
    bfloat16: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Teacher:
    """Train a teacher on pictures 0, 1, 2, … for `minutes` and return it frozen.

    The learning rate rises for 50 steps and falls to zero along the time limit.

    Args:
        pictures: Training pictures; their classes are what it learns to name.
        width: Width of its tokens.
        minutes: Time limit; at least one step is made.
        batch: Pictures per step.
        rate: Peak learning rate.
        seed: Of its first weights.
        bfloat16: Run under bfloat16 autocast.
        say: Takes one line of progress about every 30 s.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        teacher = Teacher(len(pictures.codes), width)
    optimizer = torch.optim.AdamW(teacher.parameters(), rate, weight_decay=0.01)
    start = said = time.monotonic()
    step, done = 0, 0.0
    while done < 1:
        peak = rate * min(1, (step + 1) / 50)
        optimizer.param_groups[0]["lr"] = peak * (1 - done)
        drawn = draw_batch(pictures, step * batch, batch)
        labels = patch_labels(drawn["cover"], teacher.classes)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            logits = teacher.classify(teacher(as_input(drawn["image"])))
        loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(teacher.parameters(), 1.0)
        optimizer.step()
        step += 1
        now = time.monotonic()
        done = (now - start) / (60 * minutes) if minutes > 0 else 1.0
        if now - said > 30:
            said = now
            say(f"teacher: {step * batch} pictures, loss {loss.item():.3f}")
    say(f"teacher: done after {step * batch} pictures, loss {loss.item():.3f}")
    return teacher.requires_grad_(False).eval()
