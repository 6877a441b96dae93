"""Captions are true, answers are right, and questions alone give little away."""

import re
from collections import Counter, defaultdict
from itertools import islice

import numpy as np
import pytest

from tokenflow.data.scenes import (
    CATEGORIES,
    COLOURS,
    OBJECTS,
    QUESTION_KINDS,
    RELATIONS,
    SEEN,
    SPLITS,
    Group,
    Scene,
    SceneObject,
    Scenes,
    caption,
    description,
    heldout_pair,
    prompts,
    questions,
    relation,
)
from tokenflow.data.scenes.words import article, phrase

NUMBERS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4, "five": 5}
FRAMES = ("a picture of", "an image of")
FRAME = re.compile(r"^(?:a picture of |an image of |there (is|are) )?(.*)$")
BETWEEN = re.compile(r" (?:to the )?(left of|right of|above|below) ")
NOUNS = {thing.name: (name, 1) for name, thing in OBJECTS.items()}
NAMES = {form: t.name for t in OBJECTS.values() for form in (t.name, t.plural)}
PLURALS = {thing.plural: (name, 2) for name, thing in OBJECTS.items()}


def thing(name, colour=None, left=0.0, top=0.0):
    box = (left, top, left + 0.25, top + 0.25)
    return SceneObject(name, colour, box, 1.0, False)


def rng(seed=0):
    return np.random.default_rng(seed)


def asked(scene, seeds=200):
    """Every question that some generator asks of a scene: {question: answer}."""
    found = {}
    for seed in range(seeds):
        for one in questions(scene, rng(seed)):
            assert found.setdefault((one.kind, one.question), one.answer) == one.answer
    return found


def understood(words):
    """Read "two red apples" back: (name, colour, count), or raise."""
    first, *rest = words.split(" ")
    said = re.fullmatch(r"(.*) that is (\w+)", " ".join(rest))
    colour = said[2] if said else rest.pop(0) if rest[0] in COLOURS else None
    noun = said[1] if said else " ".join(rest)
    count = NUMBERS[first]
    name, _ = NOUNS[noun] if count == 1 else PLURALS[noun]
    if count == 1:
        assert first == ("an" if (words.split(" ")[1])[0] in "aeiou" else "a"), words
    return name, colour, count


@pytest.mark.parametrize(
    "group, plain, coloured",
    [
        (Group("cat", None, 1), "a cat", "a cat"),
        (Group("apple", "red", 1), "an apple", "a red apple"),
        (Group("umbrella", "blue", 3), "three umbrellas", "three blue umbrellas"),
        (Group("ice cream", None, 2), "two ice creams", "two ice creams"),
        (Group("leaf", "pink", 5), "five leaves", "five pink leaves"),
        (Group("sheep", None, 4), "four sheep", "four sheep"),
    ],
)
def test_groups_in_words(group, plain, coloured):
    assert phrase(group) == plain and phrase(group, coloured=True) == coloured
    assert article("owl") == "an owl"


@pytest.mark.parametrize(
    "scene, all_said",
    [
        (Scene("single_object", (thing("owl"),)), {"an owl"}),
        (
            Scene("colors", (thing("apple", "red"),)),
            {"a red apple", "an apple that is red"},
        ),
        (
            Scene("counting", (thing("car", "blue"),) * 2 + (thing("cat"),)),
            {
                f"{one} {link} {other}"
                for link in ("and", "with")
                for one, other in (("two cars", "a cat"), ("a cat", "two cars"))
            },
        ),
        (
            Scene("position", (thing("cat"), thing("key", "red", left=0.5))),
            {
                "a cat left of a key",
                "a cat to the left of a key",
                "a key right of a cat",
                "a key to the right of a cat",
            },
        ),
        (
            Scene("position", (thing("cat", top=0.5), thing("dog"))),
            {"a cat below a dog", "a dog above a cat"},
        ),
    ],
    ids=lambda value: getattr(value, "category", ""),
)
def test_captions_worked_by_hand(scene, all_said):
    said = {caption(scene, rng(seed)) for seed in range(300)}
    framed = {f"{frame} {words}" for words in all_said for frame in FRAMES}
    for words in all_said:
        many = words.split()[0] in ("two", "three", "four", "five")
        framed |= {words, f"there {'are' if many else 'is'} {words}"}
    assert said == framed


@pytest.mark.parametrize("split", SPLITS)
def test_captions_are_true_of_the_truth(emoji_font, split):
    """Read back into names, colours, numbers and relation."""
    source = Scenes(split)
    for index in range(500):
        scene = source.truth(index)
        said = caption(scene, rng(index))
        verb, body = FRAME.match(said).groups()
        between = BETWEEN.search(body)
        parts = re.split(rf"{BETWEEN.pattern}| and | with ", body)
        parts = [understood(p) for p in parts if p and p not in RELATIONS]
        truth = {group.name: group for group in scene.groups}
        assert {name for name, *_ in parts} == set(truth), said
        for name, colour, count in parts:
            assert count == truth[name].count, said
            if scene.category in ("colors", "color_attr"):
                assert colour == truth[name].colour, said
            else:
                assert colour is None, said
        if verb:
            assert verb == ("are" if parts[0][2] > 1 else "is"), said
        assert bool(between) == (scene.category == "position"), said
        if between:
            by_name = {o.name: o for o in scene.objects}
            objects = [by_name[name] for name, *_ in parts]
            assert relation(*objects) == between[1], said


def test_a_description_names_all_from_left_to_right():
    things = (
        thing("key", "red", left=0.7),
        thing("cat", left=0.4),
        thing("key", "red", left=0.1),
        thing("key", "blue", left=0.2),
    )
    said = description(Scene("counting", things))
    assert said == "two red keys and a blue key and a cat"


def test_questions_worked_by_hand():
    """A cat left of a red key."""
    scene = Scene("position", (thing("cat"), thing("key", "red", left=0.5)))
    found = asked(scene)
    of = {kind: {q: a for (k, q), a in found.items() if k == kind} for kind, _ in found}
    assert of["colour"] == {"What colour is the key?": "red"}
    assert of["count"] == {
        "How many cats are there?": "1",
        "How many keys are there?": "1",
    }
    assert of["position"] == {
        "Is the cat left of the key?": "yes",
        "Is the cat right of the key?": "no",
        "Is the key right of the cat?": "yes",
        "Is the key left of the cat?": "no",
        "What is left of the key?": "cat",
        "What is right of the cat?": "key",
    }
    yes = {question for question, answer in of["existence"].items() if answer == "yes"}
    assert yes == {
        "Is there a cat in the picture?",
        "Are there any cats in the picture?",
        "Is there a key in the picture?",
        "Are there any keys in the picture?",
    }
    for question in set(of["existence"]) - yes:
        assert not re.search(r"\b(cats?|keys?)\b", question)
    assert "naming" not in of


def test_questions_about_many_worked_by_hand():
    """Two blue cars and a cat: no relation of cars, no single name."""
    cars = (thing("car", "blue"), thing("car", "blue", left=0.5))
    found = asked(Scene("counting", (*cars, thing("cat", top=0.5))))
    assert found["colour", "What colour are the cars?"] == "blue"
    assert found["count", "How many cars are there?"] == "2"
    assert found["count", "How many cats are there?"] == "1"
    assert {kind for kind, _ in found} == {"existence", "count", "colour"}


def test_no_question_has_two_answers():
    """A red and a blue car: two of them, of no one colour, and neither is "the car"."""
    cars = (thing("car", "red"), thing("car", "blue", left=0.5))
    found = asked(Scene("color_attr", cars))
    assert found["count", "How many cars are there?"] == "2"
    assert {kind for kind, _ in found} == {"existence", "count"}


def test_one_object_alone_is_named():
    found = asked(Scene("single_object", (thing("owl"),)))
    assert found["naming", "What is in the picture?"] == "owl"
    assert {kind for kind, _ in found} == {"existence", "count", "naming"}


def test_an_absent_object_is_one_of_the_same_part_of_the_vocabulary(emoji_font):
    for split in ("train", "objects"):
        source = Scenes(split)
        for index in range(300):
            pair = [q for q in source.questions(index) if q.kind == "existence"]
            assert {q.answer for q in pair} == {"yes", "no"} and len(pair) == 2
            form = r"(?:there an?|any) (.*) in the picture"
            one, other = (OBJECTS[NAMES[re.search(form, q.question)[1]]] for q in pair)
            assert (one.seen, one.takes_hue) == (other.seen, other.takes_hue)


ASKED = {
    "existence": r"(?:Is there an?|Are there any) (.*) in the picture",
    "count": r"How many (.*) are there",
    "colour": r"What colour (?:is|are) the (.*)",
    "position": r"(?:Is the (.*)|What is) (left of|right of|above|below) the (.*)",
    "naming": r"What (?:is in the picture|does the picture show)",
}


def test_answers_are_right_and_balanced(emoji_font):
    """Read every question back and answer it from boxes and names."""
    source, given = Scenes("heldout"), defaultdict(Counter)
    for index in range(1500):
        scene = source.truth(index)
        objects = {o.name: o for o in scene.objects}
        names = Counter(o.name for o in scene.objects)
        for one in source.questions(index):
            heard = re.fullmatch(ASKED[one.kind] + r"\?", one.question).groups()
            told = [NAMES.get(noun, noun) for noun in heard]
            match one.kind:
                case "existence":
                    right = "yes" if names[told[0]] else "no"
                case "count":
                    right = str(names[told[0]])
                case "colour":
                    right = objects[told[0]].colour
                case "naming":
                    (right,) = objects
                case "position" if told[0] is None:
                    (right,) = set(objects) - {told[2]}
                    assert relation(objects[right], objects[told[2]]) == told[1]
                case "position":
                    how = relation(objects[told[0]], objects[told[2]])
                    right = "yes" if how == told[1] else "no"
            assert one.answer == right, (one, scene)
            given[one.kind][right] += 1
    for kind in ("existence", "position"):
        yes, no = given[kind]["yes"], given[kind]["no"]
        assert abs(yes - no) < 4 * (yes + no) ** 0.5, kind
    counts = given["count"]
    assert set(counts) == set("12345") and max(counts.values()) < 2 * counts["4"]


def test_questions_alone_give_little_away(emoji_font):
    """The best guess from the words of a question, learnt on other pictures."""
    source, learnt = Scenes("heldout"), defaultdict(Counter)
    right = defaultdict(list)
    for index in range(4500):
        for one in source.questions(index):
            if index < 3000:
                learnt[one.kind, one.question][one.answer] += 1
                learnt[one.kind][one.answer] += 1
            else:
                seen = learnt.get((one.kind, one.question)) or learnt[one.kind]
                guess = seen.most_common(1)[0][0]
                right[one.kind].append(guess == one.answer)
    most = {
        "existence": 0.55,
        "count": 0.32,
        "colour": 0.27,
        "position": 0.40,
        "naming": 0.10,
    }
    assert set(right) == set(most) == set(QUESTION_KINDS)
    for kind, bound in most.items():
        assert np.mean(right[kind]) < bound, (kind, np.mean(right[kind]))
    assert np.mean(sum(right.values(), [])) < 0.45


def test_answers_are_short_and_in_lower_case(emoji_font):
    source = Scenes()
    for index in range(200):
        assert source.questions(index) == source.questions(index)
        for one in source.questions(index):
            assert one.answer == one.answer.lower() and len(one.answer) <= 12
            assert one.question.endswith("?") and one.kind in QUESTION_KINDS


@pytest.mark.parametrize("category", CATEGORIES)
def test_prompts_have_the_format_of_geneval(category):
    for wanted in islice(prompts(category, "train", rng()), 100):
        assert wanted["tag"] == category
        said = FRAME.match(wanted["prompt"])[2]
        for entry in wanted["include"]:
            coloured = category in ("colors", "color_attr")
            assert ("color" in entry) == coloured
            assert entry["class"] in SEEN
            group = Group(entry["class"], entry.get("color"), entry["count"])
            words = phrase(group, coloured=coloured)
            assert words in said or f"that is {entry['color']}" in said
        assert ("exclude" in wanted) == (category == "counting")
        for entry, more in zip(wanted["include"], wanted.get("exclude", []), strict=0):
            assert more == {**entry, "count": entry["count"] + 1}
        if category == "position":
            how, other = wanted["include"][1]["position"]
            assert other == 0 and "position" not in wanted["include"][0]
            first, second = (wanted["include"][i]["class"] for i in (1, 0))
            short = said.replace("to the ", "")
            inverse = {"left of": "right of", "right of": "left of"}
            inverse |= {"above": "below", "below": "above"}
            assert short in (
                f"{article(first)} {how} {article(second)}",
                f"{article(second)} {inverse[how]} {article(first)}",
            )


def test_prompts_keep_to_their_split_and_generator():
    again = [
        list(islice(prompts("position", "combinations", rng(4)), 20)) for _ in "ab"
    ]
    assert again[0] == again[1]
    for wanted in again[0]:
        assert heldout_pair(*(entry["class"] for entry in wanted["include"]))


def test_wrong_prompts_are_named_at_once():
    with pytest.raises(ValueError, match="scenes: split must be one of .*, got 'test'"):
        prompts("counting", "test", rng())
    with pytest.raises(ValueError, match="category must be one of .*, got 'colours'"):
        prompts("colours", "train", rng())
    with pytest.raises(ValueError, match="'combinations', got 'single_object'"):
        prompts("single_object", "combinations", rng())
