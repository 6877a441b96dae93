"""The tokenizer's run on one, two and four processes: the same pictures, one result.

Networks that stay as they are say the same of a picture on any number of processes, and
then indices and books are the same bit for bit, whatever is counted, averaged, drawn
or woken.

Networks that learn differ by rounding, as gradients are added in another order. Steps
are plain gradient descent here, which hands that on as it is, while Adam, which divides
by the gradient's size, makes a whole step of it wherever a gradient is nearly nothing.
A weight that differs in its last bit (1e-7) moves features, and the books that are set
onto them, by up to 2e-6 when this was written. Where entries are fewer than cells, no
two of them are nearly the same, and indices are still equal. The counters that are
compared bit for bit hold how often each entry was used at each scale in every step, so
that they tell of every index.
"""

import pytest
import torch
import whole_runs
from tiny_recipe import TINY, values

pytestmark = pytest.mark.slow
STILL = 1e-30  # a rate that changes no weight

CASES = {
    "gradient": {"start": "random", "revive_after": 0},
    "kmeans": {"start": "kmeans", "revive_after": 0, "start_at": [0, 2]},
    "vectors": {"start": "vectors", "revive_after": 0, "start_at": [0, 2]},
    "revival": {"start": "random", "revive_after": 2},
    "all": {"start": "kmeans", "start_at": [0, 2], "revive_after": 2, "decay": 0.8}
    | {"learning": "ema"},
}


def sections(case, rate=0.02, **run):
    """Five steps, from the third on with a discriminator that sees pictures singly."""
    steps = {"batch": 8, "steps": 5, "save_every": 0, **run}
    return values(
        model={**TINY, "codebook_size": 128 if rate == STILL else 32},
        data={"source": "scenes", "heldout_pictures": 4},
        loss={"adversarial_weight": 0.5, "adversarial_start": 3},
        discriminator={
            "norm": "group",
            "optimizer": {"learning_rate": rate, "clip": 0.0},
        },
        codebook=CASES[case],
        optimizer={"learning_rate": rate},
        run=steps,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(case, count=1, …) is all that such a run ends with, made once."""
    made = {}

    def make(case, count=1, **options):
        key = repr((case, count, options))
        if key not in made:
            folder = tmp_path_factory.mktemp("trained") / "run"
            made_of = sections(case, **options)
            status = whole_runs.run(made_of, folder, count=count, plain=True)
            assert status == [0] * count, whole_runs.said(folder)
            made[key] = whole_runs.read(folder)[1]
        return made[key]

    return make


def books_of(tensors):
    start = "part/model/quantizer.", "kept/codebook/"
    return {name: value for name, value in tensors.items() if name.startswith(start)}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


@pytest.mark.parametrize(
    ("case", "parallel", "count"),
    [(case, "ddp", 2) for case in ("kmeans", "vectors", "revival", "all")]
    + [("all", "ddp", 4), ("all", "fsdp", 2)],
)
def test_books_on_still_networks_are_the_same_bits(trained, case, parallel, count):
    one = trained(case, rate=STILL)
    other = trained(case, count, rate=STILL, parallel=parallel)
    assert_equal(books_of(one), books_of(other))


@pytest.mark.parametrize(
    ("case", "parallel", "count"),
    [
        ("gradient", "ddp", 2),
        ("gradient", "ddp", 4),
        ("kmeans", "ddp", 2),
        ("gradient", "fsdp", 2),
        ("kmeans", "fsdp", 4),
    ],
)
def test_processes_find_what_one_finds(trained, case, parallel, count):
    one, other = trained(case), trained(case, count, parallel=parallel)
    for counter in ("idle", "unseen", "shares"):
        name = f"kept/codebook/{counter}"
        assert torch.equal(one[name], other[name]), name
    apart = {
        name: (value - other[name]).abs().max().item()
        for name, value in one.items()
        if name.startswith(("part/", "average/", "kept/codebook/sizes"))
    }
    print(case, parallel, count, max(apart.values()), max(apart, key=apart.get))
    assert max(apart.values()) < (1e-5 if case == "kmeans" else 1e-6)


def test_the_cases_are_what_they_are_called(trained):
    """All of them moved the books, and entries were set anew or averaged."""
    books = {
        case: trained(case, rate=STILL)["part/model/quantizer.semantic_book"]
        for case in ("kmeans", "vectors", "revival", "all")
    }
    assert len({book.sum().item() for book in books.values()}) == len(books)
    assert "kept/codebook/sums" in trained("all", rate=STILL)
