"""Does a drawn picture show what its words say? GenEval's six questions, asked of ours.

Prompts name objects, counts, colours and relations of the small world; a detector says
what the drawn picture shows, and `correct` compares the two by GenEval's rules. The
score is the mean of the six categories' accuracies. A score is worth what its detector
is worth, so the detector's own accuracy on true pictures, and on prompts that are just
not true of them, stands beside it, and so does what is left of true pictures once the
tokenizer has redrawn them: what a model would have that painted as they are.
Source: GenEval, arXiv:2310.11513, and its published judge.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenflow.data.scenes import COLOURS, OBJECTS, Scene, Scenes, prompts, relation
from tokenflow.data.scenes.plans import categories
from tokenflow.data.scenes.truth import OPPOSITE
from tokenflow.evaluation.detector import Detection, Detector
from tokenflow.tokenizer.processing import from_uint8, to_uint8

TRUSTED = 0.97  # least accuracy of a detector that judges
SEED = 2310_11513  # of the prompts, and of the true pictures a detector is checked on

Wanted = dict[str, Any]


def correct(wanted: Wanted, found: Sequence[Detection]) -> bool:
    """Say whether what was found is what was wanted, by GenEval's rules.

    Every entry of "include" needs as many objects of its class as it counts (the surest
    ones are looked at), all in its colour where it names one, and each in its relation
    to each of those of the entry it relates to. No entry of "exclude" may be reached.

    Args:
        wanted: As `scenes.prompts` has it.
        found: The surest first.
    """
    chosen: list[list[Detection]] = []
    for entry in wanted["include"]:
        those = [one for one in found if one.name == entry["class"]][: entry["count"]]
        if len(those) < entry["count"]:
            return False
        if "color" in entry and any(one.colour != entry["color"] for one in those):
            return False
        chosen.append(those)
    for entry, those in zip(wanted["include"], chosen, strict=True):
        if "position" in entry:
            how, other = entry["position"]
            pairs = ((one, two) for one in those for two in chosen[other])
            if any(how not in relations(one, two) for one, two in pairs):
                return False
    return not any(
        sum(one.name == entry["class"] for one in found) >= entry["count"]
        for entry in wanted.get("exclude", ())
    )


def relations(first: Detection, second: Detection) -> set[str]:
    """Return how `first` lies to `second`: up to two of four words, none if unclear.

    In one direction the centres' distance, less a tenth of both objects' sizes, must be
    more than half of their whole distance. True scenes keep a stricter rule,
    `scenes.relation`, so an edge that is found a pixel off changes no answer.
    """
    a, b = (np.asarray(one.box).reshape(2, 2) for one in (first, second))
    offset = a.mean(0) - b.mean(0)
    clear = abs(offset) - (a[1] - a[0] + b[1] - b[0]) / 10
    half = math.hypot(*offset) / 2
    found = set()
    if clear[0] > half:
        found.add("left of" if offset[0] < 0 else "right of")
    if clear[1] > half:
        found.add("above" if offset[1] < 0 else "below")
    return found


def wanted_of(scene: Scene) -> Wanted:
    """Return what a prompt of a true picture's category would want of it."""
    include: list[dict[str, Any]] = []
    for group in scene.groups:
        entry: dict[str, Any] = {"class": group.name, "count": group.count}
        if scene.category in ("colors", "color_attr"):
            entry["color"] = group.colour
        include.append(entry)
    if scene.category == "position":
        include.reverse()
        include[1]["position"] = [relation(*scene.objects), 0]
    wanted = {"tag": scene.category, "include": include}
    if scene.category == "counting":
        wanted["exclude"] = [{**e, "count": e["count"] + 1} for e in include]
    return wanted


def spoilt(wanted: Wanted, rng: np.random.Generator) -> Wanted:
    """Return a prompt that is just not true where this one is.

    Another object, one more or one less, another colour (or colours exchanged), the
    opposite relation: what the category is about.
    """
    include = [dict(entry) for entry in wanted["include"]]
    tag, entry = wanted["tag"], include[int(rng.integers(len(include)))]
    if tag in ("single_object", "two_object"):
        known = {one["class"] for one in include}
        entry["class"] = str(
            rng.choice([name for name in OBJECTS if name not in known])
        )
    elif tag == "counting":
        entry["count"] += 1 if entry["count"] == 1 or rng.random() < 0.5 else -1
    elif tag == "position":
        how, other = include[1]["position"]
        include[1]["position"] = [OPPOSITE[how], other]
    elif tag == "color_attr":
        first, second = (one["color"] for one in include)
        include[0]["color"], include[1]["color"] = second, first
    else:
        entry["color"] = str(rng.choice([c for c in COLOURS if c != entry["color"]]))
    made = {**wanted, "include": include}
    if tag == "counting":
        made["exclude"] = [{**e, "count": e["count"] + 1} for e in include]
    return made


def tasks(count: int, split: str = "heldout", seed: int = SEED) -> list[Wanted]:
    """Return `count` prompts of each category of a split."""
    found: list[Wanted] = []
    for number, category in enumerate(categories(split)):
        rng = np.random.default_rng((seed, number))
        found += islice(prompts(category, split, rng), count)
    return found


def true_pictures(
    count: int, size: int, split: str = "heldout", seed: int = SEED
) -> list[tuple[Tensor, Wanted]]:
    """Return `count` true pictures of each category and what is to be found there."""
    drawn = Scenes(split, size=size, seed=seed % 2**32)
    left, index = dict.fromkeys(categories(split), count), 0
    found = []
    while any(left.values()):
        if left[drawn.truth(index).category]:
            one = drawn.draw(index)
            left[one.scene.category] -= 1
            found.append((one.image, wanted_of(one.scene)))
        index += 1
    return found


def accuracies(results: Iterable[tuple[str, bool]]) -> dict[str, float]:
    """Return each category's share of right ones, and their "mean" as in GenEval."""
    sums: dict[str, list[bool]] = {}
    for tag, right in results:
        sums.setdefault(tag, []).append(right)
    found = {tag: sum(those) / len(those) for tag, those in sums.items()}
    return {**found, "mean": sum(found.values()) / len(found)}


def judge(
    detector: Detector, pictures: Iterable[tuple[Tensor, Wanted]], batch: int = 64
) -> Iterator[tuple[str, bool]]:
    """Yield the category of each picture and whether it shows what is wanted.

    Args:
        detector: Who says what is there.
        pictures: uint8 [3, R, R] each.
        batch: Pictures at a time.
    """
    waiting = iter(pictures)
    while part := list(islice(waiting, batch)):
        found = detector.detect(torch.stack([image for image, _ in part]))
        for (_, wanted), those in zip(part, found, strict=True):
            yield wanted["tag"], correct(wanted, those)


def check_detector(
    detector: Detector, pictures: Sequence[tuple[Tensor, Wanted]]
) -> dict[str, dict[str, float]]:
    """Return how often a detector is right about true pictures.

    Returns:
        "true": accuracies on what is there; "spoilt": on what is just not there.
    """
    rng = np.random.default_rng(SEED)
    wrong = [(image, spoilt(wanted, rng)) for image, wanted in pictures]
    refused = ((tag, not right) for tag, right in judge(detector, wrong))
    return {
        "true": accuracies(judge(detector, pictures)),
        "spoilt": accuracies(refused),
    }


def trusted(checked: dict[str, dict[str, float]]) -> bool:
    """Say whether a detector that was checked may judge."""
    return min(scores["mean"] for scores in checked.values()) >= TRUSTED


def redrawn(
    tokenizer: Any, pictures: Sequence[tuple[Tensor, Wanted]], batch: int = 64
) -> Iterator[tuple[Tensor, Wanted]]:
    """Yield true pictures as the tokenizer has them."""
    for start in range(0, len(pictures), batch):
        part = pictures[start : start + batch]
        images = from_uint8(torch.stack([image for image, _ in part]))
        with torch.no_grad():
            encoded = tokenizer.encode(images.to(tokenizer.device))
            made = tokenizer.decode(encoded, output="pt")
        yield from zip(
            to_uint8(made).cpu(), (wanted for _, wanted in part), strict=True
        )


def draw(
    model: Any,
    wanted: Sequence[Wanted],
    *,
    guidance: float,
    refinement: Sequence[tuple[int, float]],
    images: int = 4,
    seed: int = 0,
    batch: int = 32,
) -> Iterator[tuple[int, Tensor, Wanted]]:
    """Yield (number of the prompt, uint8 picture, prompt), `images` of each prompt.

    Prompt number i is drawn with a generator of its own, so that the others do not
    change its pictures; about `batch` pictures are drawn at a time.
    """
    many = max(1, batch // images)
    for start in range(0, len(wanted), many):
        part = wanted[start : start + many]
        seeds = range(seed + start, seed + start + len(part))
        made = model.generate(
            [one["prompt"] for one in part],
            guidance_scale=guidance,
            refinement=refinement,
            generator=[torch.Generator().manual_seed(number) for number in seeds],
            num_images=images,
            output="pt",
        )
        for count, image in enumerate(to_uint8(made).cpu()):
            number = count // images
            yield start + number, image, part[number]


def write(
    folder: Path, number: int, picture: int, image: Tensor, wanted: Wanted
) -> None:
    """Write one picture where GenEval's published judge looks for it.

    `folder`/00012/metadata.jsonl has the prompt, samples/0000.png the first picture.
    """
    from PIL import Image

    place = folder / f"{number:05d}"
    (place / "samples").mkdir(parents=True, exist_ok=True)
    if not picture:
        text = json.dumps(wanted, ensure_ascii=False) + "\n"
        (place / "metadata.jsonl").write_text(text, encoding="utf-8")
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(pixels).save(place / "samples" / f"{picture:04d}.png")


def evaluate_generation(
    model: Any,
    wanted: Sequence[Wanted],
    detector: Detector,
    *,
    guidance: float,
    refinement: Sequence[tuple[int, float]],
    images: int = 4,
    seed: int = 0,
    batch: int = 32,
    output: Path | None = None,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Draw pictures of prompts and judge them.

    Args:
        model: A `TokenFlowForGeneration`.
        wanted: Prompts, see `tasks`.
        detector: Who judges.
        guidance, refinement: As of `generate`.
        images: Pictures of each prompt.
        seed: Of the draws.
        batch: Pictures at a time, about.
        output: Folder for pictures and prompts in GenEval's layout; None for none.
        tick: Called after each picture.

    Returns:
        The accuracies of the categories and their "mean".
    """

    def drawn() -> Iterator[tuple[Tensor, Wanted]]:
        settings = {"guidance": guidance, "refinement": refinement, "images": images}
        made = draw(model, wanted, **settings, seed=seed, batch=batch)
        for count, (number, image, one) in enumerate(made):
            if output is not None:
                write(output, number, count % images, image, one)
            tick()
            yield image, one

    return accuracies(judge(detector, drawn()))
