"""Codebook health: entries start, learn, are counted and woken as promised."""

import multiprocessing
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from training_rooms import Room

from tokenflow.training.codebook import (
    CodebookConfig,
    CodebookHealth,
    centre_features,
)
from tokenflow.training.distinct import distinct
from tokenflow.training.world import World
from tokenflow_ext.nn import PyramidQuantizer

pytestmark = pytest.mark.usefixtures("one_thread")

SCALES = (1, 2, 4)


@dataclass
class Moment:
    step: int = 0
    progress: float = 0.0
    world: World = field(default_factory=World)
    seed: int = 0

    def rng(self, *names):
        return random.Random(repr((self.seed, self.step, names)))


def quantizer(entries=32, widths=(4, 2), scales=SCALES, **settings):
    torch.manual_seed(0)
    return PyramidQuantizer(entries, *widths, scales=scales, **settings).train()


def config(**changes):
    quiet = {"revive_after": 0, "warn_every": 0}
    return CodebookConfig(**{**quiet, **changes})


def adam(module):
    return torch.optim.AdamW(module.parameters(), 1e-2, weight_decay=0.0)


def set_books(module, semantic, pixel):
    with torch.no_grad():
        module.semantic_book.copy_(torch.tensor(semantic))
        module.pixel_book.copy_(torch.tensor(pixel))


def feed(health, features):
    """Show features [B, D, h, w] to a watched quantizer."""
    with torch.no_grad(), health.watch():
        return health.quantizer(features)


def vectors(rows):
    """Features of one scale, one picture per row: [n, D] → [n, D, 1, 1]."""
    return torch.tensor(rows)[:, :, None, None]


# what the quantizer hands out


def test_the_observer_gets_what_each_token_was_compared_by():
    module = quantizer()
    got = []
    module.observer = got.append
    features = torch.randn(3, 6, 4, 4, requires_grad=True)
    out = module(features)
    ((given, rows, indices, pairs),) = got
    assert torch.equal(given, features) and not given.requires_grad
    assert rows.shape == (3, 21, 6) and not rows.requires_grad
    assert pairs == ((1, 1), (2, 2), (4, 4)) and torch.equal(indices, out.indices)
    first = features.mean(dim=(2, 3)).split([4, 2], dim=1)
    first = torch.cat([F.normalize(half, dim=1) for half in first], dim=1)
    assert torch.allclose(rows[:, 0], first, atol=1e-6)
    losses = (rows - module.entries(indices)).square().mean(dim=2)
    parts = [part.mean() for part in losses.split([1, 4, 16], dim=1)]
    assert torch.allclose(torch.stack(parts), out.vq_losses, atol=1e-6)


def test_nothing_is_watched_outside_the_block():
    module = quantizer()
    health = CodebookHealth(module, config())
    with pytest.raises(RuntimeError, match="channels"), health.watch():
        raise RuntimeError("channels")
    assert module.observer is None
    module(torch.randn(1, 6, 4, 4))
    facts = health.after_step(adam(module), Moment())
    assert facts["usage"] == 0 and facts["perplexity"] == 0


# counting


def test_usage_and_perplexity_by_hand():
    module = quantizer(4, (2, 1), scales=(1,), normalize=False)
    set_books(module, [[0.0, 0], [1, 0], [2, 0], [3, 0]], [[0.0]] * 4)
    health = CodebookHealth(module, config(window=2))
    optimizer = adam(module)
    feed(health, vectors([[0.0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 0, 0]]))
    facts = health.after_step(optimizer, Moment(0))
    assert facts["usage"] == facts["usage/1x1"] == 0.5
    assert facts["perplexity"] == pytest.approx(2)
    assert facts["dead"] == 0 and facts["revived"] == 0
    feed(health, vectors([[2.0, 0, 0]] * 2))
    facts = health.after_step(optimizer, Moment(1))
    assert facts["usage"] == 0.75 and facts["dead"] == 1
    # Half of the first step's counts, and those of the second: 1, 1, 2.
    assert facts["perplexity"] == pytest.approx(2 * 2**0.5)
    feed(health, vectors([[2.0, 0, 0]]))
    facts = health.after_step(optimizer, Moment(2))
    assert facts["usage"] == 0.25 and facts["dead"] == 3  # the window has passed


def test_every_scale_is_counted_for_itself_and_a_dropped_one_waits():
    module = quantizer()
    health = CodebookHealth(module, config(window=1))
    features = torch.randn(2, 6, 4, 4)
    indices = feed(health, features).indices
    facts = health.after_step(adam(module), Moment(0))
    parts = dict(zip(("1x1", "2x2", "4x4"), indices.split([1, 4, 16], 1), strict=True))
    for name, part in parts.items():
        assert facts[f"usage/{name}"] == len(part.unique()) / 32
    assert facts["usage"] == len(indices.unique()) / 32
    with torch.no_grad(), health.watch():
        module(features, [1, 4])
    after = health.after_step(adam(module), Moment(1))
    assert after["usage/2x2"] == facts["usage/2x2"] > 0
    assert after["perplexity/2x2"] == facts["perplexity/2x2"]
    assert after["usage/1x1"] == facts["usage/1x1"]


def test_distinct_is_perplexity_until_rows_fall_together():
    apart = torch.eye(4)
    counts = torch.tensor([1, 1, 1, 1])
    assert distinct(apart, counts, 0.1) == pytest.approx(4)
    assert distinct(apart[[0, 0, 2, 2]], counts, 0.1) == pytest.approx(2)
    near = apart[[0, 0, 2, 3]] + torch.tensor([[0.0], [0.05], [0], [0]])
    assert distinct(near, torch.tensor([1, 1, 2, 0]), 0.2) == pytest.approx(2)
    assert distinct(near, torch.tensor([1, 1, 2, 0]), 0.01) == pytest.approx(2 * 2**0.5)
    assert distinct(apart, torch.zeros(4), 0.1) == 0


def test_judging_tells_a_fallen_half_from_one_in_use():
    module = quantizer(4, (2, 1), scales=(1,), normalize=False)
    set_books(module, [[0.0, 0], [1, 0], [2, 0], [3, 0]], [[1.0]] * 4)
    health = CodebookHealth(module, config())
    feed(health, vectors([[0.0, 0, 1], [1, 0, 1], [2, 0, 1], [3, 0, 1]]))
    health.after_step(adam(module), Moment())
    found = health.judge()
    assert found["semantic_entries"] == pytest.approx(4)
    assert found["pixel_entries"] == pytest.approx(1)


# learning


def test_a_running_mean_by_hand():
    module = quantizer(3, (1, 1), scales=(1,), normalize=False)
    set_books(module, [[0.0], [10], [20]], [[0.0], [0], [4]])
    health = CodebookHealth(module, config(learning="ema", decay=0.5))
    feed(health, vectors([[1.0, 2], [3, 0], [12, 2]]))  # entries 0, 0 and 1
    health.after_step(adam(nn.Linear(1, 1)), Moment())
    sizes = [0.5 * 1 + 0.5 * 2, 0.5 * 1 + 0.5 * 1, 0.5]
    assert health.sizes.tolist() == sizes
    smooth = [(n + 1e-5) / (3 + 3e-5) * 3 for n in sizes]
    expected = [
        [(0.5 * 0 + 0.5 * 4) / smooth[0], (0.5 * 0 + 0.5 * 2) / smooth[0]],
        [(0.5 * 10 + 0.5 * 12) / smooth[1], (0.5 * 0 + 0.5 * 2) / smooth[1]],
        [20.0, 4.0],  # unused: stays
    ]
    books = torch.cat(module.books(), dim=1)
    torch.testing.assert_close(books, torch.tensor(expected), atol=1e-5, rtol=1e-6)


def test_running_means_of_directions_have_unit_length():
    module = quantizer()
    health = CodebookHealth(module, config(learning="ema", decay=0.5))
    before = [book.clone() for book in module.books()]
    indices = feed(health, torch.randn(4, 6, 4, 4)).indices
    health.after_step(adam(nn.Linear(1, 1)), Moment())
    used = torch.zeros(32, dtype=torch.bool)
    used[indices.unique()] = True
    for book, old in zip(module.books(), before, strict=True):
        assert torch.allclose(book.norm(dim=1), torch.ones(32), atol=1e-6)
        assert torch.equal((book != old).any(dim=1), used)


def test_an_optimizer_leaves_running_means_alone():
    module = quantizer()
    optimizer = torch.optim.AdamW(module.parameters(), 0.1, weight_decay=0.1)
    CodebookHealth(module, config(learning="ema"))
    before = [book.clone() for book in module.books()]
    features = torch.randn(2, 6, 4, 4, requires_grad=True)
    out = module(features)
    (out.vq_loss + out.commitment_loss).backward()
    optimizer.step()
    assert features.grad.abs().max() > 0 and out.vq_loss > 0
    for book, old in zip(module.books(), before, strict=True):
        assert torch.equal(book, old)


def test_running_means_follow_their_vectors():
    module = quantizer(8, scales=(1,))
    health = CodebookHealth(module, config(learning="ema", decay=0.9))
    features = torch.randn(64, 6, 1, 1)
    losses = []
    for step in range(60):
        losses.append(feed(health, features).vq_loss.item())
        health.after_step(adam(nn.Linear(1, 1)), Moment(step))
    assert losses[-1] < 0.7 * losses[0]


# starting


def groups(many=24, each=10, seed=0):
    """Vectors of well separated groups: ([n, 6] of unit halves, [n] group numbers)."""
    rng = torch.Generator().manual_seed(seed)
    centres = nn.init.orthogonal_(torch.empty(many, 28), generator=rng)
    noise = 0.005 * torch.randn(many, each, 28, generator=rng)
    rows = (centres[:, None] + noise).flatten(0, 1)
    rows = torch.cat([F.normalize(rows[:, :20]), F.normalize(rows[:, 20:])], dim=1)
    order = torch.randperm(len(rows), generator=rng)
    return rows[order], torch.arange(many).repeat_interleave(each)[order]


def test_kmeans_finds_separate_groups():
    rows, group = groups()
    module = quantizer(24, (20, 8), scales=(1,))
    health = CodebookHealth(module, config(start="kmeans"))
    feed(health, rows[:, :, None, None])
    health.start(adam(module), Moment())
    found = module.quantize(rows[:, :, None, None])[0].flatten()
    pairs = {*zip(group.tolist(), found.tolist(), strict=True)}
    assert len(pairs) == 24 and len({entry for _, entry in pairs}) == 24
    for number, entry in pairs:
        mean = rows[group == number].mean(dim=0)
        halves = F.normalize(mean[:20], dim=0), F.normalize(mean[20:], dim=0)
        for book, half in zip(module.books(), halves, strict=True):
            assert torch.allclose(book[entry], half, atol=1e-5)


@pytest.mark.parametrize("start", ["vectors", "kmeans"])
def test_a_start_sets_both_halves_onto_what_occurs(start):
    module = quantizer(64, scales=(4,))
    optimizer = adam(module)
    features = torch.randn(8, 6, 4, 4)
    before = module(features)
    before.vq_loss.backward()
    optimizer.step()
    health = CodebookHealth(module, config(start=start, learning="ema"))
    feed(health, features)
    health.start(optimizer, Moment())
    after = feed(health, features)
    assert after.vq_loss < 0.6 * before.vq_loss
    cells = health.metric.read(features.permute(0, 2, 3, 1).flatten(0, 2))
    apart = torch.cdist(torch.cat(module.books(), dim=1), cells).amin(dim=1)
    assert apart.max() < (0.4 if start == "vectors" else 0.8)
    assert len(after.indices.unique()) > 56 > len(before.indices.unique())
    for book in module.books():
        assert torch.allclose(book.norm(dim=1), torch.ones(64), atol=1e-5)
        for name in ("exp_avg", "exp_avg_sq"):
            assert optimizer.state[book][name].abs().max() == 0
    assert torch.equal(health.sums, torch.cat(module.books(), dim=1))


@pytest.mark.parametrize("start", ["vectors", "kmeans"])
def test_a_start_does_not_depend_on_the_entries_before_it(start):
    features = torch.randn(8, 6, 4, 4, generator=torch.Generator().manual_seed(1))
    books = []
    for scales in ((1, 2, 4), (4,)):
        module = quantizer(scales=scales)
        if len(scales) == 1:
            module.reset_parameters()
        health = CodebookHealth(module, config(start=start))
        feed(health, features)
        health.start(adam(module), Moment())
        books.append(torch.cat(module.books(), dim=1))
    assert torch.equal(*books)


def test_starts_are_due_when_the_config_says():
    module = quantizer()
    health = CodebookHealth(module, config(start="kmeans", start_at=[0, 50]))
    assert [s for s in range(100) if health.starts(s)] == [0, 50]
    assert not CodebookHealth(module, config(start_at=(0,))).starts(0)
    with pytest.raises(ValueError, match="there must be rows to draw from, got none"):
        health.start(adam(module), Moment())


def test_more_entries_than_vectors_all_get_one():
    module = quantizer(64, scales=(1,))
    for start in ("vectors", "kmeans"):
        health = CodebookHealth(module, config(start=start))
        features = torch.randn(5, 6, 1, 1)
        feed(health, features)
        health.start(adam(module), Moment())
        assert len(feed(health, features).indices.unique()) == 5
        if start == "vectors":  # a little apart, so that they can part ways
            assert len(torch.cat(module.books(), dim=1).unique(dim=0)) == 64
        assert torch.cat(module.books(), dim=1).isfinite().all()


def test_a_vector_that_is_not_finite_is_nobodys_start():
    module = quantizer(4, scales=(1,))
    for start in ("vectors", "kmeans"):
        health = CodebookHealth(module, config(start=start, learning="ema"))
        features = torch.randn(6, 6, 1, 1)
        features[2] = torch.nan
        feed(health, features)
        health.start(adam(module), Moment())
        feed(health, features)
        health.after_step(adam(module), Moment())
        assert torch.cat(module.books(), dim=1).isfinite().all()


# waking


def collapsed(**changes):
    """Train a codebook whose entries all lie far off; return the last usage."""
    module = quantizer(32, scales=(2,))
    with torch.no_grad():
        for book in module.books():
            book.copy_(F.normalize(0.02 * torch.randn_like(book) - 1, dim=1))
    health = CodebookHealth(module, config(window=5, **changes))
    optimizer = adam(module)
    features = torch.randn(16, 6, 2, 2)
    for step in range(40):
        with health.watch():
            loss = module(features).vq_loss
        optimizer.zero_grad()
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
        facts = health.after_step(optimizer, Moment(step, step / 40))
    return facts


@pytest.mark.parametrize("learning", ["gradient", "ema"])
def test_a_collapsed_book_recovers_by_waking_alone(learning):
    assert collapsed(learning=learning)["usage"] < 0.5
    woken = collapsed(learning=learning, revive_after=5, revive_most=8)
    assert woken["usage"] > 0.9 and woken["dead"] == 0


def test_only_entries_unused_long_enough_are_woken_and_nothing_is_remembered():
    module = quantizer()
    optimizer = adam(module)
    changes = {"revive_after": 3, "revive_most": 5, "revive_until": 0.5}
    health = CodebookHealth(module, config(learning="ema", **changes))
    for book in module.books():
        book.requires_grad_(True)  # so that the optimizer remembers something
    features = torch.randn(1, 6, 4, 4)
    for step in range(3):
        module(features).vq_loss.backward()
        optimizer.step()
        if step == 2:
            out = feed(health, features)
            before = [book.detach().clone() for book in module.books()]
        facts = health.after_step(optimizer, Moment(step))
        assert facts["revived"] == (5 if step == 2 else 0)
    used = out.indices.unique()
    assert facts["dead"] == 32 - len(used) - 5
    changed = (module.books()[0] != before[0]).any(dim=1)
    woken = (health.unseen[0] == 1 << 30) & (health.idle == 0) & changed
    assert woken.sum() == 5 and not woken[used].any()
    got = []
    module.observer = lambda seen: got.append(seen.rows)
    set_books(module, *(book.tolist() for book in before))
    module(features)
    rows = got[0][0]
    assert torch.equal(
        health.sums[woken].unsqueeze(1).eq(rows).all(2).sum(1) > 0,
        torch.ones(5, dtype=torch.bool),
    )
    assert health.sizes[woken].eq(1).all()
    for book in module.books():
        for name in ("exp_avg", "exp_avg_sq"):
            memory = optimizer.state[book][name]
            assert memory[woken].abs().max() == 0
            assert memory[used].abs().max() > 0
    feed(health, features)
    assert health.after_step(optimizer, Moment(3, progress=0.5))["revived"] == 0


# saying so


def test_low_usage_is_said_with_what_helps():
    said = []
    module = quantizer(512, scales=(1,))
    health = CodebookHealth(
        module, config(window=20, warn_every=10, warn_below=0.2), said.append
    )
    features = torch.randn(1, 6, 1, 1).expand(64, -1, -1, -1)
    for step in range(20):
        feed(health, features)
        health.after_step(adam(module), Moment(step))
    assert len(said) == 2
    assert "0.2% of 512 entries" in said[0] and "as evenly as 1 entries" in said[0]
    assert "below warn_below = 20%" in said[0] and "revive_after above 0" in said[0]


def test_few_vectors_are_no_low_usage():
    said = []
    module = quantizer(512, scales=(1,))
    health = CodebookHealth(module, config(warn_every=1), said.append)
    feed(health, torch.randn(16, 6, 1, 1))
    assert health.after_step(adam(module), Moment())["usage"] < 0.04
    assert not said


# a checkpoint


def test_a_restored_run_goes_on_bit_for_bit():
    changes = {"learning": "ema", "revive_after": 2, "revive_most": 3, "window": 3}

    def steps(module, health, some):
        optimizer = adam(nn.Linear(1, 1))
        facts = []
        for step in some:
            rng = torch.Generator().manual_seed(step)
            feed(health, torch.randn(2, 6, 4, 4, generator=rng))
            facts.append(health.after_step(optimizer, Moment(step)))
        return facts

    module = quantizer()
    health = CodebookHealth(module, config(**changes))
    steps(module, health, range(4))
    state = {k: v.clone() for k, v in health.state_dict().items()}
    books = {k: v.clone() for k, v in module.state_dict().items()}
    facts = steps(module, health, range(4, 8))
    other = quantizer()
    restored = CodebookHealth(other, config(**changes))
    other.load_state_dict(books)
    restored.load_state_dict(state)
    assert steps(other, restored, range(4, 8)) == facts
    assert any(fact["revived"] for fact in facts)
    for name, value in health.state_dict().items():
        assert torch.equal(restored.state_dict()[name], value), name
    for one, two in zip(module.books(), other.books(), strict=True):
        assert torch.equal(one, two)
    assert not any("book" in name for name in state)  # those are the quantizer's


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"learning": "sgd"}, r"codebook.learning must be one of .*, got 'sgd'"),
        ({"start": "zeros"}, r"codebook.start must be one of .*, got 'zeros'"),
        ({"start_at": (-1,)}, r"codebook.start_at must hold steps from 0 on"),
        ({"decay": 1.0}, r"codebook.decay must be in \[0, 1\), got 1.0"),
        ({"kmeans_rounds": -1}, "codebook.kmeans_rounds must be at least 0, got -1"),
        ({"revive_after": -1}, "codebook.revive_after must be at least 0"),
        ({"warn_every": -1}, "codebook.warn_every must be at least 0"),
        ({"kmeans_vectors": 0}, "codebook.kmeans_vectors must be at least 1"),
        ({"revive_most": 0}, "codebook.revive_most must be at least 1"),
        ({"window": 0}, "codebook.window must be at least 1"),
        ({"revive_until": 1.5}, r"codebook.revive_until must be in \[0, 1\]"),
        ({"warn_below": -0.1}, r"codebook.warn_below must be in \[0, 1\]"),
        ({"same_within": -1.0}, "codebook.same_within must be at least 0"),
    ],
)
def test_a_config_out_of_range_is_refused(changes, words):
    with pytest.raises(ValueError, match="train: " + words):
        CodebookConfig(**changes)


# any number of processes

MODES = {
    "gradient": {"revive_after": 2, "revive_most": 4},
    "ema": {"learning": "ema", "revive_after": 2, "revive_most": 4},
    "vectors": {"start": "vectors", "start_at": (0, 2)},
    "kmeans": {"start": "kmeans", "start_at": (0, 2), "kmeans_vectors": 100},
    "kmeans-ema": {"start": "kmeans", "learning": "ema", "revive_after": 1},
    "unnormalised": {"start": "kmeans", "learning": "ema", "revive_after": 1},
}


building = threading.Lock()  # both draw from torch's one generator


def train(world, mode, micro=1):
    """Train an encoder and its books on 8 pictures; return indices, books, facts."""
    torch.set_num_threads(1)
    with building:
        module = quantizer(48, normalize=mode != "unnormalised", pixel_weight=2.0)
        encoder = nn.Conv2d(3, 6, 1)
    health = CodebookHealth(module, config(window=3, **MODES[mode]))
    both = nn.ModuleList([encoder, module])
    moved = [p for p in both.parameters() if p.requires_grad]
    # Adam divides by the size of a gradient: what is rounded in one of almost nothing
    # would be blown up, and that is no promise of ours.
    optimizer = torch.optim.AdamW(moved, 1e-2, eps=1e-3)
    pictures = torch.randn(6, 8, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    told = []
    for step in range(6):
        moment = Moment(step, world=world)
        share = pictures[step].chunk(world.size)[world.rank]
        if health.starts(step):
            with torch.no_grad(), health.watch():
                for part in share.chunk(micro):
                    module(encoder(part))
            health.start(optimizer, moment)
        optimizer.zero_grad()
        indices = []
        for part in share.chunk(micro):
            with health.watch():
                out = module(encoder(part))
            loss = out.vq_loss + out.commitment_loss + out.quantized.square().mean()
            (loss / micro).backward()
            indices.append(out.indices)
        for parameter in moved:
            parameter.grad = world.mean(parameter.grad)
        optimizer.step()
        facts = health.after_step(optimizer, moment)
        told.append((world.gather(torch.cat(indices)), facts))
    state = {**health.state_dict(), **both.state_dict()}
    return told, {name: value.clone() for name, value in state.items()}


def same(one, other):
    (told, state), (told_other, state_other) = one, other
    for (indices, facts), (others, facts_other) in zip(told, told_other, strict=True):
        assert torch.equal(indices, others)
        assert facts == facts_other
    for name, value in state.items():
        assert (value - state_other[name]).abs().max() <= 1e-6, name


@pytest.mark.parametrize("mode", MODES)
def test_micro_batches_change_nothing(mode):
    whole = train(World(), mode)
    same(whole, train(World(), mode, micro=4))
    assert whole[0][-1][1]["usage"] > 0
    if "revive_after" in MODES[mode]:
        assert any(facts["revived"] for _, facts in whole[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [2, 4])
def test_any_split_of_the_batch_trains_the_same_books(size, mode):
    alone = train(World(), mode)
    with ThreadPoolExecutor(size) as pool:
        for result in pool.map(train, Room(size).worlds, [mode] * size):
            same(alone, result)


def be_one_of(rank, size, folder):
    """One process: train in every mode; the first writes what came out."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet{size}", rank=rank, world_size=size
    )
    world = World(rank, size)
    results = {mode: train(world, mode) for mode in MODES}
    torch.save(results, f"{folder}/{size}-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_any_number_of_processes_trains_the_same_books(size, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tokenflow.training.codebook", "pytest"])
    processes = [
        context.Process(target=be_one_of, args=(rank, size, str(tmp_path)))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
        assert process.exitcode == 0
    for mode in MODES:
        alone = train(World(), mode)
        for rank in range(size):
            same(alone, torch.load(tmp_path / f"{size}-{rank}.pt")[mode])


# features


def test_centred_features_have_mean_0_and_unit_halves():
    from tokenflow.config import TokenFlowConfig
    from tokenflow.tokenizer.model import TokenFlowTokenizer

    torch.manual_seed(0)
    config = TokenFlowConfig.preset("mini", codebook_size=128)
    whole, *parts = (TokenFlowTokenizer(config) for _ in range(3))
    for part in parts:
        part.load_state_dict(whole.state_dict())
    side, width = config.image_size, config.semantic_dim
    images = torch.rand(4, 3, side, side) * 2 - 1
    before = whole.features(images)
    centre_features(whole, images)
    after = whole.features(images)
    assert before.mean(dim=(0, 2, 3)).abs().max() > 1e-2
    assert after.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    for half in after.split([width, after.shape[1] - width], dim=1):
        assert (half.square().sum(dim=1).mean() - 1).abs() < 0.02
    with ThreadPoolExecutor(2) as pool:  # two processes with half the pictures each
        shares = images.split(2)
        [*pool.map(centre_features, parts, shares, Room(2).worlds)]
    for part in parts:
        assert torch.allclose(part.features(images), after, atol=1e-5)
