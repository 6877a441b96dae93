"""One model that paints and answers: what holds of both, and what is no question."""

import copy

import pytest
import tiny_unified as tiny
import torch
from tiny_unified import picture

from tokenflow import (
    TokenFlowForGeneration,
    TokenFlowGenerationConfig,
    TokenFlowUnified,
    TokenFlowUnifiedConfig,
)
from tokenflow.generation.places import PLACES
from tokenflow.generation.prompts import prefix_ids, suffix_ids
from tokenflow.understanding.prompts import render, template, tokenized
from tokenflow.unified.answering import say
from tokenflow.unified.model import attended

pytestmark = pytest.mark.usefixtures("one_thread")
PAINT = {"refinement": [(8, 0.9), (4, 0.5)], "guidance_scale": 2.0, "output": "tokens"}
SHORT = {"max_new_tokens": 12}
ASKED = ["what?", "what is in the picture, or is it none?", "why"]


@pytest.fixture(scope="module")
def model():
    return tiny.model()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tokens_of(model, *pictures):
    return model.image_tokenizer.encode(list(pictures), resize="pad").indices


def plainly(model, question, indices, most):
    """The likeliest answer, everything read again for every word."""
    processor, said = model.processor, []
    prompt = processor.prompt(question, len(indices))
    ids = processor(None, prompt, indices=indices)["input_ids"]
    for _ in range(most):
        with torch.no_grad():
            logits = model(input_ids=ids, pictures=indices).answer_logits[0, -1]
        logits[processor.image_token_id] = -torch.inf
        said.append(int(logits.argmax()))
        if said[-1] in processor.stop_ids:
            break
        ids = torch.cat([ids, torch.tensor([said[-1:]])], dim=1)
    return processor.decode(said)


# painting


def test_it_paints_what_a_generator_of_its_weights_paints(model):
    other = TokenFlowForGeneration(TokenFlowGenerationConfig(**tiny.MODEL)).eval()
    other.load_state_dict(model.state_dict())  # not one weight more
    other.text_tokenizer = model.text_tokenizer
    other.attach(model.image_tokenizer)
    prompts = ["two cats", "a"]
    one, two = (
        m.generate(prompts, generator=seeded(), **PAINT) for m in (model, other)
    )
    assert torch.equal(one, two) and one.unique().numel() > 5
    ids = prefix_ids(model.text_tokenizer, prompts, 12, 0)
    end = suffix_ids(model.text_tokenizer)
    mine, theirs = (m(ids, one, end, with_text=True) for m in (model, other))
    assert torch.equal(mine.loss, theirs.loss) and mine.answer_loss is None


# answering


@pytest.mark.parametrize("kind", PLACES)
def test_words_one_by_one_are_those_of_reading_anew(kind):
    model, found = tiny.model(places=kind), set()
    for seed, question in enumerate(ASKED):
        indices = tokens_of(model, picture(seed))
        told = model.answer(None, question, indices=indices, **SHORT)
        assert told == plainly(model, question, indices, 12)
        found.add(told)
    assert len(found) == 3  # pictures and questions are heard


@pytest.mark.parametrize("kind", PLACES)
def test_a_padded_batch_is_each_of_its_questions(kind):
    model = tiny.model(places=kind)
    pictures = [picture(1), picture(2), picture(3), picture(4)]
    asked = [*ASKED[:2], "is <image> like <image>?"]
    single = [
        model.answer(pictures[0], asked[0], **SHORT),
        model.answer(pictures[1], asked[1], **SHORT),
        model.answer(pictures[2:], asked[2], **SHORT),
    ]
    assert model.answer(pictures, asked, **SHORT) == single
    blind = [model.answer(None, question, **SHORT) for question in ASKED]
    assert model.answer(None, ASKED, **SHORT) == blind
    assert blind[0] != single[0]


@pytest.mark.parametrize("kind", PLACES)
def test_padding_on_either_side_changes_no_state(kind):
    model = tiny.model(places=kind)
    processor, indices = model.processor, tokens_of(model, picture(1), picture(2))
    prompts = [processor.prompt(question) for question in ASKED[:2]]
    left = processor(None, prompts, indices=indices)
    ids, mask = left["input_ids"], left["attention_mask"]
    assert mask[0, 0] == 0 and mask[1].all()
    shift = int((mask[0] == 0).sum())
    states = model.read(ids, mask, indices)
    turned = [torch.stack([v[0].roll(-shift), v[1]]) for v in (ids, mask)]
    right = model.read(*turned, indices)
    alone = model.read(ids[:1, shift:], None, indices[:1])
    torch.testing.assert_close(states[0, shift:], alone[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(right[0, :-shift], alone[0], atol=1e-5, rtol=1e-4)


def test_tokens_are_answered_as_their_picture(model):
    seen, question = picture(3), ASKED[1]
    told = model.answer(seen, question, **SHORT)
    encoded = model.image_tokenizer.encode(seen, resize="pad")
    for given in (encoded, [seen]):
        assert model.answer(given, question, **SHORT) == told
    for indices in (encoded.indices, encoded.indices[0], encoded):
        assert model.answer(None, question, indices=indices, **SHORT) == told


def test_a_picture_reads_the_sum_of_its_entries_at_its_last_scale(model):
    indices = tokens_of(model, picture(1))
    features = model.image_tokenizer.understanding_features(indices, "last")
    rows = model.projector(features) + model.levels[3] + model.positions[5:]
    assert torch.equal(model.embed_pictures(indices), rows)


def test_pictures_see_themselves_and_words_see_back():
    real = torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1]]).bool()
    places = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 0]]).bool()  # two, of two places
    rows = ["".join(str(int(v)) for v in row) for row in attended(real, places, 2)[0]]
    assert rows == [
        "00000000",
        "01000000",
        "01110000",
        "01110000",
        "01111100",
        "01111100",
        "01111110",
        "01111111",
    ]


def test_the_stream_is_the_answer_in_pieces(model):
    seen = picture(2)
    pieces = list(model.answer(seen, ASKED[0], stream=True, max_new_tokens=30))
    assert len(pieces) > 1 and all(pieces)
    assert "".join(pieces) == model.answer(seen, ASKED[0], max_new_tokens=30)


def test_draws_follow_their_generator(model):
    how = {"do_sample": True, "temperature": 3.0, **SHORT}
    first, second, other = (
        model.answer(picture(), "what?", generator=seeded(seed), **how)
        for seed in (1, 1, 2)
    )
    assert first == second != other


def test_the_mark_of_a_picture_is_never_said(model):
    mark, prompt = model.processor.image_token_id, model.processor.prompt("what?", 0)
    inputs = {
        k: model.processor(None, prompt)[k] for k in ("input_ids", "attention_mask")
    }
    odds = []

    def choose(logits):
        odds.append(logits[0, mark].item())
        return logits.argmax(-1)

    assert len(list(say(model, inputs, torch.tensor([2]), 5, choose))) == 5
    assert odds == [-torch.inf] * 5


# learning


def lesson(model, *pairs):
    """(pictures' tokens, prompts, their end, conversations): as training has them."""
    processor, caption, rows = model.processor, [], []
    for said, answer in pairs:
        caption.append(said)
        turns = [
            {"role": "user", "content": "<image>\nwhat colour is it?"},
            {"role": "assistant", "content": answer},
        ]
        pieces = render(template("qwen_2_5"), turns, answer_next=False)
        rows.append(tokenized(pieces, processor.tokenizer, processor.image_tokens))
    longest = max(len(ids) for ids, _ in rows)
    ids = [ids + [0] * (longest - len(ids)) for ids, _ in rows]
    mask = [[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows]
    labels = [labels + [-100] * (longest - len(labels)) for _, labels in rows]
    names = ("input_ids", "attention_mask", "labels")
    talk = dict(zip(names, map(torch.tensor, (ids, mask, labels)), strict=True))
    prefix = prefix_ids(model.text_tokenizer, caption, 12, 0)
    return prefix, suffix_ids(model.text_tokenizer), talk


def test_two_pictures_are_learned_by_heart_both_ways():
    model = tiny.model(sure=0.1).train()
    indices = tokens_of(model, picture(1), picture(2))
    prefix, end, talk = lesson(model, ("one", "red"), ("another", "blue 7"))
    moves = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        found = model(prefix, indices, end, **talk, pictures=indices)
        moves.zero_grad()
        found.loss.backward()
        moves.step()
    assert found.image_loss < 0.1 and found.answer_loss < 0.1
    model.eval()
    paint = {"guidance_scale": 0, "refinement": [(1, 0.0)], "output": "tokens"}
    assert torch.equal(model.generate(["one", "another"], **paint), indices)
    seen = [picture(1), picture(2)]
    asked = ["what colour is it?"] * 2
    assert model.answer(seen, asked) == ["red", "blue 7"]
    assert model.answer(seen[1], asked[0]) == "blue 7"


def test_one_step_for_both_is_the_sum_of_two_and_moves_everything(model):
    made = copy.deepcopy(model)
    indices = tokens_of(made, picture(1), picture(2))
    prefix, end, talk = lesson(made, ("one", "red"), ("another", "blue"))
    found = made(prefix, indices, end, **talk, pictures=indices)
    painted = made(prefix, indices, end)
    read = made(**talk, pictures=indices)
    assert torch.equal(found.loss, painted.loss + read.loss)
    assert torch.equal(found.answer_logits, read.answer_logits)
    learned = talk["labels"][:, 1:] != -100
    odds = read.answer_logits[:, :-1].log_softmax(-1)
    right = odds.gather(-1, talk["input_ids"][:, 1:, None])[..., 0]
    torch.testing.assert_close(read.loss, -right[learned].mean())
    read.loss.backward()
    still = {
        n for n, p in made.named_parameters() if p.grad is None or not p.grad.any()
    }
    assert not still


# files


def test_a_model_is_read_back_as_it_was(model, tmp_path):
    from transformers import AutoModel

    model.save_pretrained(tmp_path)
    for read in (
        TokenFlowUnified.from_pretrained(tmp_path),
        AutoModel.from_pretrained(tmp_path),
    ):
        assert isinstance(read, TokenFlowUnified)
        again, once = (
            m.generate("cats", generator=seeded(), **PAINT) for m in (read, model)
        )
        assert torch.equal(again, once)
        pictures = [picture(1), picture(2), picture(3)]
        told = model.answer(pictures, ASKED, **SHORT)
        assert read.answer(pictures, ASKED, **SHORT) == told and len(set(told)) > 1
    half = TokenFlowUnified.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert isinstance(half.answer(picture(), "what?", **SHORT), str)


def test_how_it_is_spoken_to_is_kept(tmp_path):
    made = tiny.model(template="vicuna_v1", resize="squash")
    made.save_pretrained(tmp_path)
    read = TokenFlowUnified.from_pretrained(tmp_path)
    assert (read.processor.template, read.processor.resize) == ("vicuna_v1", "squash")
    told = made.answer(picture(1), "what?", **SHORT)
    assert read.answer(picture(1), "what?", **SHORT) == told


def test_each_kind_of_folder_is_its_own(model, tmp_path):
    model.save_pretrained(tmp_path / "both")
    with pytest.raises(ValueError, match="must be a generation model.*unified"):
        TokenFlowForGeneration.from_pretrained(tmp_path / "both")
    other = TokenFlowForGeneration(TokenFlowGenerationConfig(**tiny.MODEL))
    other.save_pretrained(tmp_path / "one")
    with pytest.raises(ValueError, match="must be a unified model.*generation"):
        TokenFlowUnified.from_pretrained(tmp_path / "one")


# what does not fit


@pytest.mark.parametrize(
    ("images", "question", "settings", "error", "words"),
    [
        (1, "", {}, ValueError, "must have at least 1 word, got ''"),
        (1, "<image>\n", {}, ValueError, "must have at least 1 word"),
        (1, [], {}, ValueError, "at least one text"),
        (1, ["a", 3], {}, TypeError, "a question must be a str, got int"),
        (1, ["a"], {"stream": True}, ValueError, "stream must be False"),
        (1, "<image> <image>?", {}, ValueError, "once for each of 1 pictures"),
        (0, "<image>?", {}, ValueError, "once for each of 0 pictures"),
        (3, ["a", "b"], {}, ValueError, "2 marks and 3 pictures"),
        (1, "a", {"max_new_tokens": 0}, ValueError, "max_new_tokens must be ≥ 1"),
        (1, "a", {"temperature": 0.0}, ValueError, "temperature must be > 0"),
        (1, "a", {"indices": torch.zeros(1, 21).long()}, ValueError, "got both"),
    ],
)
def test_what_is_no_question_is_told(model, images, question, settings, error, words):
    given = [picture(i) for i in range(images)] or None
    with pytest.raises(error, match=words):
        model.answer(given, question, **settings)


def test_part_of_a_picture_is_not_asked_about(model):
    with pytest.raises(ValueError, match="indices"):
        model.answer(None, "what?", indices=torch.zeros(1, 7, dtype=torch.int64))


def test_places_and_pictures_are_as_many(model):
    processor = model.processor
    ids = processor(picture(), processor.prompt("a"))["input_ids"]
    with pytest.raises(ValueError, match="16 places for each of 0 pictures, got 16"):
        model(input_ids=ids)
    square = torch.ones(1, 4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="position_ids must be given"):
        model.read(torch.ones(1, 4, dtype=torch.int64), square)
    with pytest.raises(ValueError, match="prefix and indices, or input_ids"):
        model()
    with pytest.raises(ValueError, match="prefix and indices, or input_ids"):
        model(torch.zeros(1, 3, dtype=torch.int64), input_ids=ids)


def test_both_tokenizers_are_needed(model):
    bare = TokenFlowUnified(TokenFlowUnifiedConfig(**tiny.MODEL))
    with pytest.raises(ValueError, match="a text tokenizer must be attached"):
        bare.answer(picture(), "what?")
    bare.text_tokenizer = model.text_tokenizer
    with pytest.raises(ValueError, match="an image tokenizer must be attached"):
        bare.answer(picture(), "what?")
    few = tiny.learn(["a"], 262)  # as many as the model has text ids, none <image>
    full = TokenFlowUnified(
        TokenFlowUnifiedConfig(**{**tiny.MODEL, "image_start": len(few)})
    ).attach(model.image_tokenizer)
    full.text_tokenizer = few
    with pytest.raises(ValueError, match="<image> must have a text id, below .* = 262"):
        full.answer(picture(), "what?")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"template": "x"}, "template must be one of"),
        ({"resize": "x"}, "resize must be one of"),
        ({"text_length": 0}, "text_length must be ≥ 1"),
    ],
)
def test_a_config_that_does_not_fit_is_told(changes, words):
    with pytest.raises(ValueError, match=words):
        TokenFlowUnifiedConfig.preset("mini", **changes)
