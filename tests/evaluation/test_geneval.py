"""GenEval's rules on hand-made detections, and the scores that follow from them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tokenflow.data.scenes import CATEGORIES, Scenes
from tokenflow.evaluation import geneval
from tokenflow.evaluation.detector import Detection, Detector
from tokenflow.evaluation.geneval import correct

pytestmark = pytest.mark.usefixtures("one_thread")


def at(name, x, y, colour=None):
    """An object a quarter wide with its centre there."""
    return Detection(name, colour, (x - 0.125, y - 0.125, x + 0.125, y + 0.125))


def entry(name, count=1, **more):
    return {"class": name, "count": count, **more}


def test_one_object_is_enough_where_one_is_wanted():
    wanted = {"tag": "single_object", "include": [entry("cat")]}
    assert correct(wanted, [at("cat", 0.5, 0.5)])
    assert correct(wanted, [at("dog", 0.2, 0.2), at("cat", 0.5, 0.5)])
    assert not correct(wanted, [at("dog", 0.5, 0.5)])
    assert not correct(wanted, [])


def test_two_objects_must_both_be_there():
    wanted = {"tag": "two_object", "include": [entry("cat"), entry("dog")]}
    cat, dog = at("cat", 0.2, 0.2), at("dog", 0.8, 0.8)
    assert correct(wanted, [dog, cat])
    assert not correct(wanted, [cat, cat])


def test_counts_are_exact():
    wanted = {
        "tag": "counting",
        "include": [entry("cat", 2), entry("dog", 1)],
        "exclude": [entry("cat", 3), entry("dog", 2)],
    }
    cats, dog = [at("cat", x, 0.2) for x in (0.2, 0.5, 0.8)], at("dog", 0.5, 0.7)
    assert correct(wanted, [*cats[:2], dog])
    assert not correct(wanted, [*cats[:1], dog])
    assert not correct(wanted, [*cats, dog])
    assert not correct(wanted, [*cats[:2], dog, dog])
    assert not correct(wanted, cats[:2])


def test_colours_are_those_of_the_surest():
    wanted = {"tag": "colors", "include": [entry("car", color="red")]}
    red, blue = at("car", 0.2, 0.2, "red"), at("car", 0.8, 0.8, "blue")
    assert correct(wanted, [red, blue])
    assert not correct(wanted, [blue, red])
    assert not correct(wanted, [at("car", 0.2, 0.2)])


def test_each_object_has_its_own_colour():
    include = [entry("car", color="red"), entry("key", color="blue")]
    wanted = {"tag": "color_attr", "include": include}
    assert correct(wanted, [at("key", 0.2, 0, "blue"), at("car", 0.8, 0, "red")])
    assert not correct(wanted, [at("key", 0.2, 0, "red"), at("car", 0.8, 0, "blue")])


@pytest.mark.parametrize(
    "how, place",
    [
        ("left of", (0.1, 0.5)),
        ("right of", (0.9, 0.5)),
        ("above", (0.5, 0.1)),
        ("below", (0.5, 0.9)),
    ],
)
def test_a_relation_is_of_the_second_to_the_first(how, place):
    include = [entry("cat"), entry("dog", position=[how, 0])]
    wanted = {"tag": "position", "include": include}
    cat = at("cat", 0.5, 0.5)
    assert correct(wanted, [cat, at("dog", *place)])
    assert not correct(wanted, [replace(cat, name="dog"), at("cat", *place)])
    assert not correct(wanted, [cat, at("dog", 0.53, 0.53)])  # hardly beside
    assert not correct(wanted, [cat])


def test_two_relations_may_hold_at_once_and_sizes_count():
    """Centres (0.3, 0.4) apart, objects of 0.25: 0.25 is just half of the distance."""
    cat = at("cat", 0.5, 0.5)
    assert geneval.relations(at("dog", 0.19, 0.9), cat) == {"left of", "below"}
    assert geneval.relations(at("dog", 0.21, 0.9), cat) == {"below"}
    assert geneval.relations(at("dog", 0.56, 0.5), cat) == set()
    assert geneval.relations(at("dog", 0.61, 0.5), cat) == {"right of"}
    assert geneval.relations(cat, cat) == set()


def test_true_pictures_are_right_and_spoilt_prompts_wrong(emoji_font):
    rng = np.random.default_rng(0)
    scenes = Scenes("heldout", size=32)
    tags = set()
    for number in range(200):
        scene = scenes.truth(number)
        found = [Detection(o.name, o.colour, o.box) for o in scene.objects]
        wanted = geneval.wanted_of(scene)
        assert correct(wanted, found)
        assert not correct(geneval.spoilt(wanted, rng), found)
        tags.add(wanted["tag"])
    assert tags == set(CATEGORIES)


def test_the_score_is_the_mean_of_the_categories():
    results = [("counting", True)] * 3 + [("counting", False), ("colors", False)]
    found = geneval.accuracies(results)
    assert found == {"counting": 0.75, "colors": 0.0, "mean": 0.375}


def test_prompts_are_the_same_every_time_and_of_every_category():
    tasks = geneval.tasks(3)
    assert tasks == geneval.tasks(3) != geneval.tasks(3, seed=1)
    tags = [one["tag"] for one in tasks]
    assert tags == [tag for tag in CATEGORIES for _ in range(3)]
    assert len(geneval.tasks(2, "combinations")) == 10


def test_true_pictures_are_of_every_category(emoji_font):
    found = geneval.true_pictures(2, 32)
    tags = sorted(wanted["tag"] for _, wanted in found)
    assert tags == sorted([*CATEGORIES] * 2)
    assert found[0][0].shape == (3, 32, 32)


def test_a_blind_detector_is_not_trusted(emoji_font):
    blind = Detector(("cat",), ("red",), 16, 1).eval()
    checked = geneval.check_detector(blind, geneval.true_pictures(2, 32))
    assert checked["true"]["mean"] == 0 and checked["spoilt"]["mean"] == 1
    assert not geneval.trusted(checked)
    assert geneval.trusted({"true": {"mean": 0.97}, "spoilt": {"mean": 1.0}})


class Painter:
    """Draws noise of each prompt's generator."""

    def generate(self, prompts, *, generator, num_images, output, **settings):
        assert len(prompts) == len(generator)
        made = [torch.rand(num_images, 3, 32, 32, generator=one) for one in generator]
        return torch.cat(made) * 2 - 1


class Sees:
    """Finds a cat everywhere."""

    def detect(self, images):
        return [[at("cat", 0.5, 0.5)] for _ in images]


def test_pictures_are_written_as_the_published_judge_reads_them(tmp_path):
    wanted = [
        {"tag": "single_object", "include": [entry(name)], "prompt": f"a {name}"}
        for name in ("cat", "dog")
    ]
    settings = {"guidance": 1.0, "refinement": ((1, 0.0),), "images": 2}
    found = geneval.evaluate_generation(
        Painter(), wanted, Sees(), output=tmp_path, **settings
    )
    assert found == {"single_object": 0.5, "mean": 0.5}
    names = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*"))
    assert names == [
        f"0000{n}/{name}"
        for n in (0, 1)
        for name in ("metadata.jsonl", "samples/0000.png", "samples/0001.png")
    ]
    held = json.loads((tmp_path / "00001" / "metadata.jsonl").read_text())
    assert held == wanted[1]


def test_a_prompts_pictures_do_not_depend_on_the_others():
    wanted = [{"tag": "a", "include": [], "prompt": str(n)} for n in range(3)]
    settings = {"guidance": 0.0, "refinement": ((1, 0.0),), "images": 2}
    all_of_them = [image for _, image, _ in geneval.draw(Painter(), wanted, **settings)]
    first = [image for _, image, _ in geneval.draw(Painter(), wanted[:1], **settings)]
    assert all(map(torch.equal, all_of_them, first))
    assert not torch.equal(all_of_them[0], all_of_them[2])
    for batch in (1, 4, 5):
        found = [*geneval.draw(Painter(), wanted, **settings, batch=batch)]
        assert all(map(torch.equal, [image for _, image, _ in found], all_of_them))
        assert [number for number, *_ in found] == [0, 0, 1, 1, 2, 2]
        assert all(one is wanted[number] for number, _, one in found)
