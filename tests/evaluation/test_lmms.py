"""lmms-eval drives the model: against its interface as it is recorded here.

The package is not installed; `recorded` is a stand-in with the names, abstract methods,
registry and order of arguments that lmms-eval gives to the models it drives.
"""

import abc
import sys
from types import ModuleType, SimpleNamespace

import pytest
import tiny_understanding as tiny
import torch

from tokenflow.evaluation import lmms


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


@pytest.fixture(scope="module")
def model():
    return tiny.model(text={"max_position_embeddings": 120})


class Base(abc.ABC):
    """Of lmms_eval.api.model."""

    def __init__(self):
        self._rank, self._world_size = 0, 1
        self.hooked, self.task_dict = [], {}
        self.cache_hook = SimpleNamespace(
            add_partial=lambda *told: self.hooked.append(told)
        )

    @abc.abstractmethod
    def loglikelihood(self, requests):
        pass

    @abc.abstractmethod
    def generate_until(self, requests):
        pass

    @abc.abstractmethod
    def generate_until_multi_round(self, requests):
        pass

    @classmethod
    def create_from_arg_string(cls, words, more=None):
        pairs = dict(pair.split("=") for pair in words.split(","))
        return cls(**pairs, **(more or {}))


@pytest.fixture
def recorded(monkeypatch):
    """The registry of the stand-in, by name."""
    known = {}

    def register_model(*names):
        def add(made):
            for name in names:
                assert issubclass(made, Base) and name not in known
                known[name] = made
            return made

        return add

    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    registry = ModuleType("lmms_eval.api.registry")
    monkeypatch.setitem(sys.modules, "lmms_eval.api.registry", registry)
    sys.modules["lmms_eval.api.model"].lmms = Base
    registry.register_model = register_model
    lmms.adapter.cache_clear()
    yield known
    lmms.adapter.cache_clear()


DOCUMENTS = [
    {"question": "What is it?", "pictures": [1], "answer": "cat"},
    {"question": "Is <image> like <image>?", "pictures": [2, 3], "answer": "no"},
    {"question": "Hello", "pictures": [], "answer": "hi"},
    {"question": "<image>\nHow many?", "pictures": [4, 5], "answer": "2"},
]


def see(document):
    return [tiny.picture(seed) for seed in document["pictures"]]


def driven(model, **how):
    made = lmms.adapter()(pretrained=model, **how)
    made.task_dict = {"t": {"test": DOCUMENTS}}
    return made


def request(*args):
    return SimpleNamespace(args=args)


def asked(number, **how):
    question = DOCUMENTS[number]["question"]
    return request(question, {"max_new_tokens": 6, **how}, see, number, "t", "test")


def expected(model, number, question=None, **how):
    document = DOCUMENTS[number]
    question = question or document["question"]
    return model.answer(see(document), question, max_new_tokens=6, **how)


@pytest.mark.parametrize("batch", [1, 3])
def test_answers_are_the_model_s_in_order(recorded, model, batch):
    made = driven(model, batch_size=batch)
    assert recorded == {"tokenflow": type(made)}
    said = made.generate_until([asked(n) for n in (2, 0, 1, 3)])
    assert said == [
        expected(model, 2),
        expected(model, 0),
        expected(model, 1),
        expected(model, 3, "How many?"),  # its one mark stands for both pictures
    ]
    assert [told[2] for told in made.hooked] == said
    assert made.hooked[1][:2] == (
        "generate_until",
        ("What is it?", {"max_new_tokens": 6}),
    )


def test_a_task_says_how_an_answer_is_made(recorded, model):
    made = driven(model, batch_size=4)
    (whole,) = made.generate_until([asked(0)])
    middle = whole[len(whole) // 2]
    cut = made.generate_until([asked(0, until=[middle]), asked(0, until=middle)])
    assert cut == [whole.split(middle)[0].strip()] * 2
    beams, short = made.generate_until(
        [asked(0, num_beams=2, image_aspect_ratio="pad"), asked(0, max_new_tokens=2)]
    )
    assert beams == expected(model, 0, num_beams=2)
    assert whole.startswith(short) and len(short) < len(whole)
    torch.manual_seed(0)
    (drawn,) = made.generate_until([asked(0, temperature=3.0, top_p=0.9)])
    torch.manual_seed(0)
    again = expected(model, 0, do_sample=True, temperature=3.0, top_p=0.9)
    assert drawn == again != whole
    long = made.generate_until([asked(0, max_new_tokens=4096)])  # the context's rest
    assert long[0].startswith(whole)


def test_likelihoods_are_those_of_the_words_one_by_one(recorded, model):
    made = driven(model)
    greedy = expected(model, 0)
    targets = ("cat", greedy, lambda document: document["answer"])
    found = made.loglikelihood(
        [request("What is it?", t, see, 0, "t", "test") for t in targets]
    )
    assert found[0] == found[2]
    processor = model.processor
    prompt = processor.prompt("What is it?")
    total, best = 0.0, True
    for letter in "cat":  # the words of this model are single bytes
        inputs = processor(see(DOCUMENTS[0]), prompt)
        with torch.no_grad():
            chances = model(**inputs).logits[0, -1].log_softmax(-1)
        (token,) = processor.tokenizer(letter)["input_ids"]
        total, best = total + chances[token].item(), best and chances.argmax() == token
        prompt += letter
    assert found[0][0] == pytest.approx(total, rel=1e-4) and found[0][1] == bool(best)
    assert found[0][1] is False


def test_rounds_go_on_until_the_task_ends_them(recorded, model):
    calls = []

    def go_on(document, previous_output, round_idx, previous_round_info):
        calls.append((list(previous_output), round_idx, previous_round_info))
        over = round_idx == 2
        pictures = None if over else [tiny.picture(9)]
        return pictures, f"Sure {round_idx}?", over, previous_output, f"i{round_idx}"

    made = driven(model)
    how = {"max_new_tokens": 6}
    (said,) = made.generate_until_multi_round(
        [request("What is it?", how, see, go_on, 0, "t", "test")]
    )
    second = model.answer(tiny.picture(9), "Sure 1?", max_new_tokens=6)
    assert said == [expected(model, 0), second]
    assert calls == [(said[:1], 1, None), (said, 2, "i1")]


def test_arguments_come_as_words_on_the_command_line(recorded, model, tmp_path):
    model.save_pretrained(tmp_path, dtype=torch.bfloat16)
    made = lmms.adapter().create_from_arg_string(
        f"pretrained={tmp_path},batch_size=2", {"device": "cpu"}
    )
    assert made.batch_size == 2 and made.model.dtype == torch.bfloat16


def test_what_cannot_be_is_told(recorded, model, monkeypatch):
    with pytest.raises(ValueError, match=r"got \['conv_template'\]"):
        driven(model, conv_template="x")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        driven(model, batch_size=0)
    film = request("Q", {}, lambda document: ["film.mp4"], 0, "t", "test")
    with pytest.raises(TypeError, match="must show PIL pictures, got str"):
        driven(model).generate_until([film])
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="must be one process, got 4"):
        driven(model)


def test_without_lmms_eval_it_says_what_is_needed(monkeypatch):
    lmms.adapter.cache_clear()
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    with pytest.raises(ImportError, match="lmms-eval must be installed"):
        lmms.adapter()
