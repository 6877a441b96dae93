"""The two losses of pictures with captions, and the words they are about."""

import math

import pytest
import torch
import torch.nn.functional as F
from squares import Squares, batch_of, moment, sample, task, terms_of

from tokenflow.tokenizer.contrastive import (
    PAD,
    START,
    TextEncoder,
    Vocabulary,
    as_batch,
)
from tokenflow.training import teacher as training
from tokenflow.training.contrastive import (
    dense_loss,
    pieces_of,
    read_texts,
    sigmoid_loss,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def squares(monkeypatch):
    """Every task of this file learns from squares and is judged by others."""
    two = Squares(0), Squares(10_000)
    monkeypatch.setattr(training, "open_pictures", lambda *given: two)


def test_the_sigmoid_loss_by_hand():
    """Two pictures, three texts, cosines 1, 0 and −1; temperature 2, bias −½."""
    pictures = torch.tensor([[1.0, 0], [0, 1]])
    texts = torch.tensor([[1.0, 0], [0, 1], [-1, 0]])
    scale, bias = torch.tensor(math.log(2.0)), torch.tensor(-0.5)

    def cost(logit):
        return math.log(1 + math.exp(-logit))

    first = cost(1.5) + cost(0.5) + cost(2.5)  # 2·1−½; −(2·0−½); −(2·(−1)−½)
    second = cost(1.5) + cost(0.5) + cost(0.5)
    belongs = torch.tensor([[True, False, False], [False, True, False]])
    loss = sigmoid_loss(pictures, texts, belongs, scale, bias)
    assert loss.item() == pytest.approx((first + second) / 2, abs=1e-6)


def test_the_dense_loss_by_hand():
    """One picture of two patches, two pieces of which the first belongs to it."""
    patches = torch.tensor([[[1.0, 0], [0, 1]]])
    texts = torch.tensor([[1.0, 0], [0.6, 0.8]])
    scale, bias = torch.tensor(math.log(3.0)), torch.tensor(0.25)
    first = math.log((math.exp(3) + 1) / 2) + 0.25
    second = math.log((math.exp(1.8) + math.exp(2.4)) / 2) + 0.25
    expected = (math.log(1 + math.exp(-first)) + math.log(1 + math.exp(second))) / 2
    belongs = torch.tensor([[True, False]])
    loss = dense_loss(patches, texts, belongs, scale, bias)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_the_patch_that_shows_a_piece_gets_most_of_its_gradient():
    patches = F.normalize(torch.tensor([[[2.0, 1], [-1, 2], [-2, 1]]]), dim=-1)
    patches.requires_grad_()
    texts = torch.tensor([[1.0, 0]])
    loss = dense_loss(
        patches, texts, torch.tensor([[True]]), torch.tensor(2.3), torch.tensor(0.0)
    )
    loss.backward()
    shares = patches.grad.norm(dim=-1)[0]
    assert shares[0] > 0.99 * shares.sum()


def test_a_vocabulary_reads_any_script_and_comes_back(tmp_path):
    learned = Vocabulary.learn(["a red car", "ein roter Wagen", "红色的汽车"] * 5, 320)
    assert 258 < len(learned) <= 320
    again = Vocabulary.from_text(learned.text())
    texts = ["A RED CAR", "红色的猫", "кот", "", "🐱"]
    assert learned.numbers(texts) == again.numbers(texts)
    assert learned.numbers(["A red car"]) == learned.numbers(["a RED car"])
    assert all(START < n < len(learned) for row in learned.numbers(texts) for n in row)
    assert learned.numbers([""]) == [[]]
    with pytest.raises(ValueError, match="at least 258 tokens, .* got 257"):
        Vocabulary.learn(["a"], 257)


def test_a_vocabulary_does_not_depend_on_chance():
    captions = [sample(n)["caption"] for n in range(200)]
    assert (
        Vocabulary.learn(captions, 300).text() == Vocabulary.learn(captions, 300).text()
    )


def test_texts_are_cut_and_filled_up():
    assert as_batch([[5, 6, 7, 8], [9]], 4).tolist() == [
        [START, 5, 6, 7],
        [START, 9, PAD, PAD],
    ]
    assert as_batch([], 4).shape == (0, 1)
    with pytest.raises(ValueError, match=r"\[N, T\] with T ≤ 4, got \[1, 5\]"):
        TextEncoder(9, 4, 8, 1, 2, 4)(torch.ones(1, 5, dtype=torch.int64))


@pytest.mark.parametrize("training", [True, False])
def test_a_text_does_not_see_how_long_its_neighbours_are(training):
    torch.manual_seed(0)
    encoder = TextEncoder(40, 8, 16, 2, 2, 10).train(training)
    short = torch.tensor([[START, 7, 9]])
    filled = torch.tensor([[START, 7, 9, PAD, PAD, PAD], [START, 3, 4, 5, 6, 7]])
    torch.testing.assert_close(encoder(short), encoder(filled)[:1])
    swapped = torch.tensor([[START, 9, 7]])  # the order of the words counts
    assert (encoder(short) - encoder(swapped)).abs().max() > 1e-3


def test_pieces_are_runs_of_one_to_three_tokens():
    runs = pieces_of([7, 8, 7, 8])
    assert sorted(runs.values()) == [(7,), (7, 8), (7, 8, 7), (8,), (8, 7), (8, 7, 8)]
    assert len(runs) == 6 and 0 not in runs
    assert pieces_of([7])[7] == (7,) and pieces_of([]) == {}
    longest = (1 << 20) - 1
    assert all(0 < key < 1 << 60 for key in pieces_of([longest] * 3))


def test_the_pieces_of_a_caption_follow_from_it_alone():
    vocabulary = Vocabulary.learn([sample(n)["caption"] for n in range(99)], 300)
    captions = [sample(n)["caption"] for n in range(4)] + [""]
    both = read_texts(captions, vocabulary, 16, 3, moment().rng)
    one = read_texts(captions[2:3], vocabulary, 16, 3, moment().rng)
    assert torch.equal(both.keys[6:9], one.keys)
    assert torch.equal(both.pieces[6:9], one.pieces)
    assert (both.keys[-3:] == 0).all() and (both.pieces[-3:, 1:] == PAD).all()
    for row, keys in zip(both.all_keys, both.keys.view(5, 3), strict=True):
        assert set(keys.tolist()) <= {*row.tolist(), 0}
    later = read_texts(captions, vocabulary, 16, 3, moment(step=1).rng)
    assert not torch.equal(both.keys, later.keys)


def test_a_batch_counts_every_piece_once():
    """The same caption twice is no wrong pair and weighs no more."""
    made = task()
    batch = batch_of([3, 4, 3, 5])
    terms = terms_of(made, [3, 4, 3, 5])
    model = made.model
    texts = read_texts(
        batch["caption"],
        model.vocabulary,
        16,
        6,
        lambda caption: moment().rng("pieces", caption),
    )
    distinct = {k: t for k, t in zip(texts.keys.tolist(), texts.pieces, strict=True)}
    assert len(distinct) < len(texts.keys)
    vectors = model.encode_tokens(torch.stack([distinct[k] for k in sorted(distinct)]))
    belongs = torch.tensor(
        [[k in row for k in sorted(distinct)] for row in texts.all_keys.tolist()]
    )
    pictures, patches = model.encode_images(batch["image"] / 127.5 - 1)
    expected = dense_loss(
        patches, vectors, belongs, model.patch_scale, model.patch_bias
    )
    torch.testing.assert_close(terms["dense"], expected)
    known = sorted(set(batch["caption"]))
    assert len(known) == 3
    belongs = torch.tensor([[c == k for k in known] for c in batch["caption"]])
    expected = sigmoid_loss(
        pictures, model.encode_texts(known), belongs, model.scale, model.bias
    )
    torch.testing.assert_close(terms["captions"], expected)
    torch.testing.assert_close(terms["loss"], terms["captions"] + terms["dense"])
