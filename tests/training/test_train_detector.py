"""A detector learns, is written and read, and says where things are."""

import pytest
import torch

from tokenflow.data.scenes import COLOURS, OBJECTS, Scene, SceneObject, Scenes
from tokenflow.evaluation.detector import Detection, Detector, _distinct, overlap
from tokenflow.tokenizer.processing import from_uint8
from tokenflow.training.config import build, load
from tokenflow.training.detector import (
    DetectorConfig,
    DetectorRecipe,
    DetectorTask,
    losses,
    targets,
    train_detector,
)
from tokenflow.training.world import World

pytestmark = pytest.mark.usefixtures("one_thread")


def recipe(**run):
    model = {"width": 16, "blocks": 1, "image_size": 32, "heldout": 1}
    run = {"batch": 4, "steps": 2, "tensorboard": False, **run}
    return build(DetectorRecipe, {"model": model, "run": run})


def test_what_is_to_be_found_is_what_a_perfect_answer_finds():
    """Targets turned into answers are decoded into the objects they came from."""
    boxes = ((0.1, 0.1, 0.4, 0.5), (0.55, 0.5, 0.95, 0.9), (0.5, 0.02, 0.8, 0.3))
    things = (("cat", None), ("car", "blue"), ("car", "red"))
    scene = Scene(
        "counting",
        tuple(
            SceneObject(name, colour, box, 1.0, False)
            for (name, colour), box in zip(things, boxes, strict=True)
        ),
    )
    wanted = targets([scene], 16)
    detector = Detector(tuple(OBJECTS), tuple(COLOURS), 16, 1)
    hues = torch.nn.functional.one_hot(wanted["colour"].clamp(min=0), len(COLOURS) + 1)
    answer = (
        (wanted["hills"] - 0.5) * 20,
        hues.permute(0, 3, 1, 2).float() * 9,
        wanted["edges"],
    )
    detector.forward = lambda images: answer
    found = detector.detect(torch.zeros(1, 3, 64, 64))[0]
    assert sorted((one.name, str(one.colour)) for one in found) == [
        ("car", "blue"),
        ("car", "red"),
        ("cat", "None"),
    ]
    for one in found:
        truth = boxes[things.index((one.name, one.colour))]
        assert one.box == pytest.approx(truth, abs=1e-5)
    terms = losses(answer, wanted)
    assert terms["edges"] == 0 and terms["colours"] < 1e-2 and terms["centres"] < 0.05
    worse = losses((-answer[0], answer[1].roll(1, 1), answer[2] + 0.1), wanted)
    assert all(worse[name] > terms[name] + 0.05 for name in terms)


def test_one_place_has_one_object():
    box = (0.0, 0.0, 0.5, 0.5)
    assert overlap(box, box) == 1 and overlap(box, (0.6, 0, 0.9, 0.5)) == 0
    assert overlap(box, (0.25, 0, 0.75, 0.5)) == pytest.approx(1 / 3)
    sure, unsure = Detection("cat", None, box, 0.9), Detection("dog", None, box, 0.5)
    beside = Detection("dog", None, (0.25, 0, 0.75, 0.5), 0.6)
    assert _distinct([unsure, beside, sure]) == [sure, beside]


def test_it_learns_what_it_is_shown(emoji_font):
    torch.manual_seed(0)
    scenes = [Scenes("train", size=32).draw(n) for n in range(4)]
    images = torch.stack([one.image for one in scenes])
    wanted = targets([one.scene for one in scenes], 8)
    model = Detector(tuple(OBJECTS), tuple(COLOURS), 32, 1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        terms = losses(model(from_uint8(images)), wanted)
        sum(terms.values()).backward()
        optimizer.step()
    for found, one in zip(model.eval().detect(images), scenes, strict=True):
        named = sorted((thing.name, str(thing.colour)) for thing in found)
        true = sorted((thing.name, str(thing.colour)) for thing in one.scene.objects)
        assert named == true


def test_a_run_is_a_folder_that_is_read_again(tmp_path, emoji_font):
    facts = train_detector(recipe(), tmp_path, bar=False)
    assert facts["steps"] == 2 and 0 <= facts["mean"] <= facts["spoilt"] + 1
    model = Detector.from_pretrained(tmp_path / "model")
    assert model.names == tuple(OBJECTS) and not model.training
    with pytest.raises(FileNotFoundError, match=r"there is no config\.json"):
        Detector.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must have model_type tokenflow_detector"):
        (tmp_path / "config.json").write_text("{}")
        Detector.from_pretrained(tmp_path)


def test_two_processes_see_the_pictures_of_one(emoji_font):
    task = DetectorTask(recipe(), World())
    whole = next(task.batches(3, World()))
    parts = [next(task.batches(3, World(rank, 2))) for rank in range(2)]
    for name, value in whole.items():
        assert torch.equal(value, torch.cat([part[name] for part in parts]))


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="image_size must be a multiple of 8"):
        DetectorConfig(image_size=60)
    with pytest.raises(ValueError, match="model.splits must be of"):
        DetectorConfig(splits=("heldout",))
    with pytest.raises(ValueError, match="width a multiple of 16"):
        Detector(("cat",), (), 8)
    with pytest.raises(ValueError, match=r"sides that are multiples of 8, got \[1, 3,"):
        Detector(("cat",), (), 16, 1)(torch.zeros(1, 3, 36, 32))


def test_the_recipe_that_ships_is_one():
    found = load(DetectorRecipe, "scenes")
    assert found.run.steps and found.model.image_size == 64
