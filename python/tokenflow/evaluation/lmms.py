"""A model of lmms-eval, so that its benchmarks can ask ours.

`adapter()` makes the class of lmms-eval's own base class and registers it; all it does
is in `Answers`, which needs no lmms-eval. A request's `args` name a document of a task;
`task_dict[task][split][doc_id]` is that document, `doc_to_visual` gives its pictures.
Source: the interface that lmms-eval (EvolvingLMMs-Lab) documents for its models.
"""

import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tokenflow.understanding import prompts
from tokenflow.understanding.answering import stop_ids
from tokenflow.understanding.model import TokenFlowForUnderstanding

NAME = "tokenflow"
NEW_TOKENS = 512  # of an answer, where a task says nothing


class Answers:
    """What lmms-eval asks of a model.

    Args:
        pretrained: A shipped name, a folder or a hub id; or a model.
        device: Where it is put; where it is when None.
        batch_size: Questions at a time.
        dtype: Of projector and language model, "auto" for that of the files.

    Raises:
        OSError: There is no such model.
        ValueError: A number is below 1, or there are several processes.
    """

    cache_hook: Any  # these two are lmms-eval's
    task_dict: dict[str, Any]

    def __init__(
        self,
        pretrained: str | TokenFlowForUnderstanding = "mini",
        device: str | None = None,
        batch_size: int | str = 1,
        dtype: str = "auto",
        **others: Any,
    ) -> None:
        super().__init__()
        if others:
            raise ValueError(
                "lmms: model_args must be pretrained, device, batch_size and dtype, "
                f"got {sorted(others)}"
            )
        if int(batch_size) < 1:
            raise ValueError(f"lmms: batch_size must be at least 1, got {batch_size}")
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        if processes > 1:
            raise ValueError(f"lmms: there must be one process, got {processes}")
        if isinstance(pretrained, str):
            pretrained = TokenFlowForUnderstanding.from_pretrained(
                pretrained, dtype=dtype
            )
        self.model = pretrained.eval()
        if device is not None:
            self.model.to(device)
        self.batch_size = int(batch_size)

    # what lmms-eval calls

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the answer to each request.

        Args:
            requests: `args` are the question, what to generate with ("until",
                "max_new_tokens", "temperature", "top_p", "num_beams"; others mean
                nothing here), doc_to_visual, doc_id, task and split.
        """
        said: list[str] = []
        for how, part in self._parts(requests):
            questions = [request.args[0] for request in part]
            pictures = [self._pictures(*request.args[2:6]) for request in part]
            answers = self._answer(questions, pictures, how)
            for question, answer in zip(questions, answers, strict=True):
                self.cache_hook.add_partial("generate_until", (question, how), answer)
            said += answers
        return said

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Return the answers of all rounds to each request.

        Args:
            requests: `args` are as of `generate_until`, with doc_to_text behind
                doc_to_visual: of the document, the answers so far, the round and what
                it said itself the round before, it makes the next round's pictures
                and question, whether there is none, the answers to count, and what it
                will be given again.
        """
        said = []
        for request in requests:
            question, how, look, ask_on, number, task, split = request.args
            document = self.task_dict[task][split][number]
            pictures, kept = self._pictures(look, number, task, split), None
            answers: list[str] = []
            for place in itertools.count(1):
                answers += self._answer([question], [pictures], how)
                shown, question, over, counted, kept = ask_on(
                    document,
                    previous_output=answers,
                    round_idx=place,
                    previous_round_info=kept,
                )
                answers = list(counted)
                if over:
                    break
                pictures = _checked(shown)
            said.append(answers)
        return said

    @torch.no_grad()
    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Return how likely each request's continuation is.

        Args:
            requests: `args` are the question, the continuation (or doc_to_target, which
                makes it of the document), doc_to_visual, doc_id, task and split.

        Returns:
            For each the natural logarithm of its probability, and whether each of its
            tokens is the likeliest. The mark that ends an answer does not count.
        """
        found = []
        for request in requests:
            question, target, look, number, task, split = request.args
            if callable(target):
                target = target(self.task_dict[task][split][number])
            pictures = self._pictures(look, number, task, split)
            logits, labels = self._read(question, str(target), pictures)
            spoken = labels != prompts.IGNORED
            chances = logits[spoken].float().log_softmax(-1)
            likely = chances.gather(1, labels[spoken][:, None]).sum()
            greedy = (chances.argmax(-1) == labels[spoken]).all()
            found.append((likely.item(), bool(greedy)))
        return found

    # how

    def _parts(self, requests: Sequence[Any]) -> Iterator[tuple[dict, list[Any]]]:
        """Yield neighbours that are generated alike, at most a batch of them."""
        for how, group in itertools.groupby(requests, lambda request: request.args[1]):
            alike = list(group)
            for start in range(0, len(alike), self.batch_size):
                yield how, alike[start : start + self.batch_size]

    def _pictures(self, look: Any, number: Any, task: str, split: str) -> list[Any]:
        return _checked(look(self.task_dict[task][split][number]))

    def _prompt(self, question: str, pictures: list[Any]) -> str:
        """Return a question behind its pictures, unless it says where they go."""
        if question.count(prompts.IMAGE) != len(pictures):
            question = question.replace(prompts.IMAGE, "").strip()
        return self.model.processor.prompt(question, len(pictures))

    @torch.no_grad()
    def _answer(
        self, questions: list[str], pictures: list[list[Any]], how: dict[str, Any]
    ) -> list[str]:
        model, processor = self.model, self.model.processor
        pairs = zip(questions, pictures, strict=True)
        texts = [self._prompt(question, shown) for question, shown in pairs]
        inputs = processor([p for shown in pictures for p in shown], texts)
        model.check_context(inputs["input_ids"])
        length = inputs["input_ids"].shape[1]
        most = how.get("max_new_tokens", NEW_TOKENS)
        if model.context is not None:
            most = min(most, max(1, model.context - length))
        drawn = (how.get("temperature") or 0) > 0
        own = {k: how[k] for k in ("num_beams",) if how.get(k) is not None}
        if drawn:
            kept = ("temperature", "top_p")
            own |= {k: how[k] for k in kept if how.get(k) is not None}
        stops = stop_ids(model)
        made = model.generate(
            **inputs.to(model.get_input_embeddings().weight.device),
            **own,
            max_new_tokens=most,
            do_sample=drawn,
            eos_token_id=stops,
            pad_token_id=stops[0],
        )
        until = how.get("until") or []
        until = [until] if isinstance(until, str) else until
        return [
            _cut(answer, until) for answer in processor.batch_decode(made[:, length:])
        ]

    def _read(
        self, question: str, target: str, pictures: list[Any]
    ) -> tuple[Tensor, Tensor]:
        """Return logits [T − 1, vocabulary] and labels [T − 1]."""
        model, processor = self.model, self.model.processor
        frame = prompts.template(processor.template)
        asked = self._prompt(question, pictures)
        pieces = [(asked, False), (f"{frame.lead}{target}", True)]
        ids, labels = prompts.tokenized(
            pieces, processor.tokenizer, processor.image_tokens
        )
        inputs = {"input_ids": torch.tensor([ids])}
        inputs |= processor._pictures(pictures, None, processor.resize)
        device = model.get_input_embeddings().weight.device
        output = model(**{name: value.to(device) for name, value in inputs.items()})
        return output.logits[0, :-1], torch.tensor(labels[1:], device=device)


def _checked(shown: Any) -> list[Image.Image]:
    """Return what a task shows as a list of pictures.

    Raises:
        TypeError: It shows something else, a video for example.
    """
    pictures = list(shown or [])
    for picture in pictures:
        if not isinstance(picture, Image.Image):
            raise TypeError(
                f"lmms: a task must show PIL pictures, got {type(picture).__name__}"
            )
    return pictures


def _cut(answer: str, until: Sequence[str]) -> str:
    """Return an answer up to the first of some strings."""
    for stop in until:
        if stop:
            answer = answer.split(stop)[0]
    return answer.strip()


@functools.cache
def adapter() -> type:
    """Return the class that lmms-eval knows as "tokenflow" from then on.

    Raises:
        ImportError: lmms-eval is not installed.
    """
    try:
        from lmms_eval.api.model import lmms
        from lmms_eval.api.registry import register_model
    except ImportError as error:
        raise ImportError(
            "lmms: lmms-eval must be installed to be driven by it (pip install "
            f"lmms-eval): {error}"
        ) from error
    made: type = register_model(NAME)(type("TokenFlow", (Answers, lmms), {}))
    return made
