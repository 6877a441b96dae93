"""How much features say about what is where, read off them in two plain ways.

Nearest neighbours ask whether things of one name lie together, a linear map whether
they can be told apart by planes. Neither draws a random number or depends on the order
of the pictures, so two tokenizers differ by their features alone.
Source: ours; the pair is the usual one, as in Caron et al. 2021, arXiv:2104.14294.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokenflow.data.scenes.truth import Scene
from tokenflow.tokenizer.model import TokenFlowTokenizer

NEIGHBOURS = 20
RIDGE = 1e-3  # of the mean square of a feature, which is 1
NONE = "none"  # what lies in a cell without an object
STRATEGIES = ("last", "semantic", "pixel")
_CHUNK = 256  # rows compared with all others at a time
_STEPS = 2.0**30  # cosines closer than one such step are equal


def probe(
    features_train: Tensor,
    labels_train: Sequence[Any],
    features_test: Tensor,
    labels_test: Sequence[Any],
    *,
    neighbours: int = NEIGHBOURS,
) -> dict[str, float]:
    """Return how often labels are told right from features.

    Args:
        features_train: [N, D], any float dtype.
        labels_train: N labels of one kind that can be sorted: strings or numbers.
        features_test: [M, D].
        labels_test: M labels; one that training never showed counts as told wrong.
        neighbours: How many training rows vote, at most N.

    Returns:
        Shares in [0, 1]. "knn": the label that most of the nearest rows have, nearest
        by cosine; whoever is as near as the last of them votes too, and a tie goes to
        the label that sorts first. "linear": the largest output of a ridge regression
        of standardised features on the labels. "majority": always the label most
        frequent in training.

    Raises:
        ValueError: Shapes disagree, something is empty, or neighbours is below 1.
    """
    _check(features_train, labels_train, features_test, labels_test)
    if neighbours < 1:
        raise ValueError(f"probe: neighbours must be at least 1, got {neighbours}")
    classes = sorted(set(labels_train))
    number = {label: i for i, label in enumerate(classes)}
    known = torch.tensor([number[label] for label in labels_train])
    wanted = torch.tensor([number.get(label, -1) for label in labels_test])
    train, test = (f.detach().double().cpu() for f in (features_train, features_test))
    targets = torch.nn.functional.one_hot(known, len(classes)).double()
    votes = _nearest(train, targets, test, min(neighbours, len(train)))
    outputs = _linear(train, targets, test)
    frequent = targets.sum(dim=0).argmax()
    return {
        "knn": _share(votes.argmax(dim=1) == wanted),
        "linear": _share(outputs.argmax(dim=1) == wanted),
        "majority": _share(frequent == wanted),
    }


def probe_tokenizer(
    model: TokenFlowTokenizer,
    scenes_train: Any,
    scenes_test: Any,
    strategy: str = "semantic",
    *,
    background: bool = True,
    batch: int = 64,
) -> dict[str, float]:
    """Return how often the object in a cell is told from the cell's quantized feature.

    Every cell of the model's grid in every picture is one row; see `cell_labels`.

    Args:
        model: In evaluation mode.
        scenes_train: A source whose items have "image" and "scene", and whose pictures
            lie in a square, as `tokenflow.data.scenes.Scenes`.
        scenes_test: Another, of pictures that are not among the first.
        strategy: "semantic", "pixel", or "last" for both halves of the sum over all
            scales.
        background: Whether cells without an object are rows too, labelled `NONE`.
            There are many of them; without them the shares speak of objects alone.
        batch: Pictures at a time.

    Returns:
        As `probe`.

    Raises:
        ValueError: The strategy is unknown, or a source is empty.
    """
    if strategy not in STRATEGIES:
        raise ValueError(
            f"probe: strategy must be one of {list(STRATEGIES)}, got {strategy!r}"
        )
    rows = []
    for source in (scenes_train, scenes_test):
        features, labels = _cells(model, source, strategy, batch)
        if not background:
            kept = [i for i, label in enumerate(labels) if label != NONE]
            features, labels = features[kept], [labels[i] for i in kept]
        rows += [features, labels]
    return probe(*rows)


def cell_labels(scene: Scene, grid: int) -> list[str]:
    """Return the name of what lies in each cell of a square grid, row by row.

    That is the topmost object whose box holds the middle of the cell, or `NONE`.
    """
    labels = []
    for row in range(grid):
        for column in range(grid):
            x, y = (column + 0.5) / grid, (row + 0.5) / grid
            names = [
                thing.name
                for thing in scene.objects
                if thing.box[0] <= x < thing.box[2] and thing.box[1] <= y < thing.box[3]
            ]
            labels.append(names[-1] if names else NONE)
    return labels


def _cells(
    model: TokenFlowTokenizer, source: Any, strategy: str, batch: int
) -> tuple[Tensor, list[str]]:
    """Return the features of every cell of every picture, and the labels."""
    features, labels = [], []
    for start in range(0, len(source), batch):
        items = [source[i] for i in range(start, min(start + batch, len(source)))]
        half = "semantic" if strategy == "semantic" else "last"
        found = model.understanding_features([item["image"] for item in items], half)
        if strategy == "pixel":
            found = found[..., model.config.semantic_dim :]
        features.append(found.flatten(0, 1).cpu())
        for item in items:
            labels += cell_labels(item["scene"], model.config.grid)
    return torch.cat(features) if features else torch.empty(0, 1), labels


def _nearest(train: Tensor, targets: Tensor, test: Tensor, count: int) -> Tensor:
    """Return [M, C]: how many of the nearest training rows have each label."""
    train, test = (torch.nn.functional.normalize(x, dim=1) for x in (train, test))
    votes = []
    for rows in test.split(_CHUNK):
        cosines = (rows @ train.T * _STEPS).round()
        last = cosines.topk(count, dim=1).values[:, -1:]
        votes.append((cosines >= last).double() @ targets)
    return torch.cat(votes)


def _linear(train: Tensor, targets: Tensor, test: Tensor) -> Tensor:
    """Return [M, C]: the outputs of a ridge regression on one-hot labels."""
    mean, spread = train.mean(dim=0), train.std(dim=0, correction=0)
    spread = torch.where(spread > 0, spread, 1.0)
    train, test = (train - mean) / spread, (test - mean) / spread
    share = targets.mean(dim=0)
    gram = train.T @ train / len(train)
    gram.diagonal().add_(RIDGE)
    slopes = torch.linalg.solve(gram, train.T @ (targets - share) / len(train))
    return share + test @ slopes


def _share(right: Tensor) -> float:
    return right.double().mean().item()


def _check(
    features_train: Tensor,
    labels_train: Sequence[Any],
    features_test: Tensor,
    labels_test: Sequence[Any],
) -> None:
    width = features_train.shape[-1]
    for name, features, labels in (
        ("train", features_train, labels_train),
        ("test", features_test, labels_test),
    ):
        if features.ndim != 2 or features.shape[1] != width or not len(features):
            raise ValueError(
                f"probe: features_{name} must be [N, {width}] with N at least 1, "
                f"got {list(features.shape)}"
            )
        if len(labels) != len(features):
            raise ValueError(
                f"probe: labels_{name} must be as many as its features, "
                f"{len(features)}, got {len(labels)}"
            )
