"""The probes: worked by hand, and on features whose answers are known."""

import math

import pytest
import torch
from small_tokenizer import small_tokenizer

from tokenflow.data.scenes.truth import Scene, SceneObject
from tokenflow.evaluation.probe import cell_labels, probe, probe_tokenizer


def turned(degrees):
    angles = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def thing(name, left, top, right, bottom):
    return SceneObject(name, None, (left, top, right, bottom), 1.0, False)


def test_nearest_neighbours_by_hand():
    train, labels = turned([0, 10, 20, 90, 100]), ["a", "a", "b", "b", "b"]
    test = turned([5, 60, 95])
    # of 5: 0, 10 and 20 vote; of 60: 90, 20 and 100 (or 10: 50 away, not 40)
    found = probe(train, labels, test, ["a", "b", "b"], neighbours=3)
    assert found["knn"] == 1.0
    found = probe(train, labels, test, ["b", "a", "a"], neighbours=3)
    assert found["knn"] == 0.0
    everyone = probe(train, labels, test, ["b", "b", "a"], neighbours=20)
    assert everyone["knn"] == pytest.approx(2 / 3)  # three of five are b


def test_length_does_not_matter_to_neighbours():
    train, labels = turned([0, 90]) * torch.tensor([[100.0], [0.01]]), ["a", "b"]
    found = probe(train, labels, turned([10, 80]), ["a", "b"], neighbours=1)
    assert found["knn"] == 1.0


def test_who_is_as_near_as_the_last_votes_too():
    """Four rows are one feature: neither their order nor their number is chosen."""
    train = turned([0, 0, 0, 0, 90])
    for labels in (["b", "a", "a", "a", "b"], ["a", "a", "a", "b", "b"]):
        assert probe(train, labels, turned([1]), ["a"], neighbours=1)["knn"] == 1.0


def test_a_tie_goes_to_the_first_label():
    train = turned([-10, 10])
    for labels in (["a", "b"], ["b", "a"]):
        assert probe(train, labels, turned([0]), ["a"], neighbours=2)["knn"] == 1.0


def test_the_linear_probe_is_ridge_regression():
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    generator = torch.Generator().manual_seed(0)
    train, test = (torch.randn(n, 6, generator=generator) for n in (200, 100))
    train, test = train * 3 + 5, test * 3 + 5
    labels, wanted = ((x[:, :3].argmax(dim=1)).tolist() for x in (train, test))
    scale = StandardScaler().fit(train)
    ridge = Ridge(alpha=200 * 1e-3).fit(
        scale.transform(train), torch.eye(3)[labels].numpy()
    )
    guess = ridge.predict(scale.transform(test)).argmax(axis=1)
    share = (guess == wanted).mean()
    assert 0.5 < share < 1
    assert probe(train, labels, test, wanted)["linear"] == pytest.approx(share)


def test_what_a_plane_parts_is_told_whatever_lies_near():
    """One feature says all, beside five others a thousand times as large."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(400, 6, generator=generator) * 1000
    features[:, 0] /= 1000
    features[:, 0] = features[:, 0].sign() * (1 + features[:, 0].abs())
    labels = ["left" if x < 0 else "right" for x in features[:, 0].tolist()]
    found = probe(features[:300], labels[:300], features[300:], labels[300:])
    assert found["linear"] == 1.0
    assert found["knn"] < 0.8


def test_noise_is_told_no_better_than_the_majority():
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(4000, 4, generator=generator)
    labels = torch.randint(4, (4000,), generator=generator).clamp_min(1).tolist()
    found = probe(features[:3000], labels[:3000], features[3000:], labels[3000:])
    assert found["majority"] == pytest.approx(0.5, abs=0.05)
    assert found["knn"] < 0.55 and found["linear"] < 0.55


def test_the_order_of_the_pictures_does_not_matter():
    generator = torch.Generator().manual_seed(3)
    codes = torch.randn(12, 5, generator=generator)  # as of a codebook: many are equal
    picked = torch.randint(12, (700,), generator=generator)
    labels = [int(i) % 5 + int(n) % 2 for n, i in enumerate(picked)]
    features, order = codes[picked], torch.randperm(500, generator=generator)
    rows = features[500:], labels[500:]
    one = probe(features[:500], labels[:500], *rows)
    other = probe(features[order], [labels[i] for i in order], *rows)
    assert one == other


def test_a_label_never_seen_is_told_wrong():
    same = turned([0, 0])
    assert probe(same, ["a", "a"], same, ["a", "b"]) == {
        "knn": 0.5,
        "linear": 0.5,
        "majority": 0.5,
    }


def test_the_label_of_a_cell_is_what_lies_on_top_of_its_middle():
    scene = Scene(
        "two_object",
        (thing("cat", 0.0, 0.0, 0.5, 0.75), thing("bus", 0.3, 0.4, 0.9, 1.0)),
    )
    # middles lie at 0.125, 0.375, 0.625 and 0.875
    assert cell_labels(scene, 4) == [
        *("cat", "cat", "none", "none"),
        *("cat", "cat", "none", "none"),
        *("cat", "bus", "bus", "bus"),
        *("none", "bus", "bus", "bus"),
    ]


class Painted:
    """Scenes of one object each, as plain as can be: its colour is its name."""

    colours = {"cat": 0, "bus": 1, "none": 2}

    def __init__(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        corners = torch.randint(5, (count, 2), generator=generator) / 8
        names = torch.randint(2, (count,), generator=generator).tolist()
        self.scenes = [
            Scene("single_object", (thing(n, x, y, x + 0.5, y + 0.5),))
            for n, (x, y) in zip(
                (("cat", "bus")[i] for i in names), corners.tolist(), strict=True
            )
        ]

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        labels = cell_labels(self.scenes[index], 8)
        colours = torch.tensor([self.colours[label] for label in labels])
        planes = torch.nn.functional.one_hot(colours, 3).T.reshape(3, 8, 8)
        image = planes.repeat_interleave(8, 1).repeat_interleave(8, 2) * 255
        return {"image": image.to(torch.uint8), "scene": self.scenes[index]}


class Seeing:
    """Stands in for a model whose semantic half is the colour; the rest is nothing."""

    class config:
        grid, semantic_dim = 8, 3

    def understanding_features(self, images, strategy):
        pooled = torch.nn.functional.avg_pool2d(torch.stack(images).float(), 8)
        colours = pooled.flatten(2).transpose(1, 2)
        if strategy == "semantic":
            return colours
        return torch.cat([colours, torch.zeros_like(colours)], dim=2)


def test_a_model_that_sees_tells_every_cell():
    train, test = Painted(20, seed=0), Painted(10, seed=1)
    for strategy in ("semantic", "last"):
        found = probe_tokenizer(Seeing(), train, test, strategy, batch=7)
        assert found["knn"] == found["linear"] == 1.0
        assert found["majority"] == 0.75  # an object covers a quarter
    blind = probe_tokenizer(Seeing(), train, test, "pixel", batch=7)
    assert blind["knn"] == blind["linear"] == blind["majority"]


def test_cells_without_an_object_may_be_left_out():
    train, test = Painted(20, seed=0), Painted(10, seed=1)
    found = probe_tokenizer(Seeing(), train, test, background=False)
    names = [[scene.objects[0].name for scene in part.scenes] for part in (train, test)]
    frequent = max(sorted(set(names[0])), key=names[0].count)
    assert found["knn"] == found["linear"] == 1.0
    assert found["majority"] == names[1].count(frequent) / 10


def test_a_tokenizer_is_probed(emoji_font):
    from tokenflow.data.scenes import Scenes

    model = small_tokenizer(scales=[1, 2, 4], codebook_size=64)
    train = Scenes("train", size=64, length=12)
    test = Scenes("heldout", size=64, length=6)
    one, other = (probe_tokenizer(model, train, test, batch=b) for b in (4, 12))
    assert one == other
    assert one.keys() == {"knn", "linear", "majority"}
    assert one["linear"] > 0


def test_wrong_arguments_are_named():
    two = turned([0, 90])
    with pytest.raises(ValueError, match=r"features_test must be \[N, 2\].*\[2, 1\]"):
        probe(two, ["a", "b"], two[:, :1], ["a", "b"])
    with pytest.raises(ValueError, match="labels_train must be as many.*2, got 1"):
        probe(two, ["a"], two, ["a", "b"])
    with pytest.raises(ValueError, match="features_train must be.*N at least 1"):
        probe(two[:0], [], two, ["a", "b"])
    with pytest.raises(ValueError, match="neighbours must be at least 1, got 0"):
        probe(two, ["a", "b"], two, ["a", "b"], neighbours=0)
    with pytest.raises(ValueError, match="strategy must be one of.*'all'"):
        probe_tokenizer(Seeing(), Painted(2, 0), Painted(2, 1), "all")
