"""Several questions about one picture are read at once, each as if it were alone."""

import pytest
import tiny_understanding as tiny
import torch
from tiny_unified import model as unified_model

from tokenflow.data.errors import BrokenPicture
from tokenflow.generation.places import PLACES
from tokenflow.training import talks
from tokenflow.training.dialogues import Writer
from tokenflow.training.run import RunConfig
from tokenflow.training.understanding import UnderstandingRecipe, UnderstandingTask
from tokenflow.training.unified import UnifiedTask
from tokenflow.training.world import World
from tokenflow.understanding.processing import TokenFlowProcessor
from tokenflow.understanding.prompts import IGNORED

pytestmark = pytest.mark.usefixtures("one_thread")
ASKED = (("What is it?", "A cat."), ("What colour?", "red"), ("Why?", "So it is."))


def turns(question, answer):
    return [
        {"role": "user", "content": f"<image>\n{question}"},
        {"role": "assistant", "content": answer},
    ]


def sample(seed, count, side):
    made = torch.Generator().manual_seed(seed)
    shape = (3, side, side)
    picture = torch.randint(0, 256, shape, generator=made, dtype=torch.uint8)
    talk = [turns(*asked) for asked in ASKED[seed : seed + count]]
    return {"talks": talk, "images": [picture]}


def learned(ids):
    """Labels of a talk whose last two ids are learned."""
    return [IGNORED] * (len(ids) - 2) + ids[-2:]


def test_what_is_common_is_written_once():
    rows = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 7, 8], [1, 2, 9, 4, 5, 6]]
    (ids, labels), forks = talks.together([(ids, learned(ids)) for ids in rows], 99)
    assert ids == [1, 2, 3, 4, 5, 6, 3, 7, 8, 9, 4, 5, 6] and forks == (2, 6, 9)
    n = IGNORED
    assert labels == [n, n, n, n, 5, 6, n, 7, 8, n, n, 5, 6]


def test_what_is_learned_and_the_id_before_it_are_never_shared():
    for rows in ([[1, 2, 3, 4], [1, 2, 3, 5]], [[1, 2, 3, 4], [1, 2, 3, 4]]):
        (ids, labels), forks = talks.together([(i, learned(i)) for i in rows], 99)
        assert ids == rows[0] + rows[1][1:] and forks == (1, 4)
        assert labels[4] == IGNORED


def test_one_alone_has_no_forks_and_is_cut():
    ids = [1, 2, 3, 4]
    assert talks.together([(ids, learned(ids))], 3) == (
        ([1, 2, 3], [-100, -100, 3]),
        (),
    )


def test_those_that_do_not_fit_are_left_out():
    rows = [[1, 2, 3, 4, 5], [1, 6, 7, 8, 9, 9, 9], [1, 3, 3]]
    (ids, _), forks = talks.together([(i, learned(i)) for i in rows], 8)
    assert ids == [1, 2, 3, 4, 5, 1, 3, 3] and forks == (0, 5)


def test_nobody_sees_another_and_all_see_what_is_common():
    row = talks.Row([0] * 6, [0] * 6, torch.empty(0), (2, 4))
    number, place = talks.numbered([row, row._replace(ids=[0] * 3, forks=())], 7)
    assert number.tolist() == [[0, 0, 1, 1, 2, 2, 0], [0] * 7]
    assert place.tolist() == [[0, 1, 2, 3, 2, 3, 6], list(range(7))]
    real = torch.tensor([[1] * 6 + [0], [1] * 3 + [0] * 4])
    seen = talks.looking_back(number, real).int()
    assert seen[0].tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 0, 0],
    ]
    assert torch.equal(seen[1], torch.ones(7, 7).tril().int() * real[1])


def judge(read, writer, side):
    """Each answer's logits, read together and alone; the batch holds several rows."""
    samples = [sample(0, 3, side), sample(1, 1, side), sample(1, 2, side)]
    whole = writer.batch([writer(s) for s in samples])
    assert whole["attention_mask"].ndim == 3
    together = read(whole)[whole["labels"][:, 1:] != IGNORED]
    alone = []
    for one in samples:
        for talk in one["talks"]:
            batch = writer.batch([writer({"turns": talk, "images": one["images"]})])
            assert batch["attention_mask"].ndim == 2
            alone.append(read(batch)[batch["labels"][:, 1:] != IGNORED])
    return together, torch.cat(alone)


@pytest.mark.parametrize("family", ["qwen2", "llama"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_understanding_model_reads_each_as_if_alone(family, attention):
    model = tiny.model(family)
    model.language_model.set_attn_implementation(attention)
    writer = Writer(model.processor, 400)
    task = UnderstandingTask.__new__(UnderstandingTask)  # without what it learns from
    task.model, task.world = model, World()
    task.recipe = UnderstandingRecipe(run=RunConfig(steps=1))

    @torch.no_grad()
    def read(batch):
        return task._read(model, batch)[0]

    together, alone = judge(read, writer, 32)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", PLACES)
def test_a_unified_model_reads_each_as_if_alone(kind):
    model = unified_model(places=kind)
    side = model.image_tokenizer.config.image_size
    writer = Writer(model.processor, 400)
    task = UnifiedTask.__new__(UnifiedTask)  # without what it learns from
    task.model, task.world = model, World()

    @torch.no_grad()
    def read(batch):
        return task._read(batch)[0]

    together, alone = judge(read, writer, side)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_the_same_is_learned_as_in_rows_of_their_own():
    writer = Writer(tiny.model().processor, 400)
    rows = [writer(sample(0, 3, 32))]
    whole = writer.batch(rows)
    parts = [
        writer.batch([writer({"turns": t, "images": sample(0, 3, 32)["images"]})])
        for t in sample(0, 3, 32)["talks"]
    ]
    words = [b["labels"][b["labels"] != IGNORED].tolist() for b in parts]
    assert whole["labels"][whole["labels"] != IGNORED].tolist() == sum(words, [])
    assert len(whole["images"][0]) == 1  # and one picture instead of three


def test_pictures_that_cannot_be_shared_leave_one_conversation():
    processor = TokenFlowProcessor(tiny.words(), 32, 3, template="plain")
    row = Writer(processor, 400)(sample(0, 3, 32))
    assert row.forks == () and row.ids.count(processor.image_token_id) == 3
    assert "So it is." in processor.tokenizer.decode(row.ids)  # the last
    late = sample(0, 2, 32)
    for (ask, _), (words, _) in zip(late["talks"], ASKED, strict=False):
        ask["content"] = f"{words}\n<image>"
    row = Writer(tiny.model().processor, 400)(late)
    assert row.forks == ()


def test_a_picture_that_does_not_fit_is_broken():
    with pytest.raises(BrokenPicture, match="1 pictures must fit into 20"):
        Writer(TokenFlowProcessor(tiny.words(), 32, 100), 20)(sample(0, 2, 32))
