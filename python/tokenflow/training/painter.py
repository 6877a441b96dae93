"""Begin a unified model with what a generation model has learned.

The weights of the two are the same but for the rows of words: a unified model has a
vocabulary for conversations too. A token that both know keeps its row of the embedding,
whatever its id. The rows of others stay as they are, and so do the head's below
`image_start`: a painter says there that a picture ends, and nothing else.
"""

import torch

from tokenflow.generation.model import TokenFlowForGeneration
from tokenflow.unified.model import TokenFlowUnified

ALIKE = ("language", "codebook_size", "code_width", "places", "qk_norm_eps")
READ, SAID = "embed.weight", "head.weight"


@torch.no_grad()
def begin(model: TokenFlowUnified, painter: TokenFlowForGeneration) -> int:
    """Give a model the weights of a painter, both with a text tokenizer attached.

    Returns:
        How many tokens both know.

    Raises:
        ValueError: They differ in more than words, or the painter has none.
    """
    if painter.text_tokenizer is None:
        raise ValueError("train: painter must have a text tokenizer, this one has none")
    its, ours = painter.config, model.config
    kinds = [(name, getattr(its, name), getattr(ours, name)) for name in ALIKE]
    for name, theirs, wanted in (*kinds, ("scales", painter.scales, model.scales)):
        if theirs != wanted:
            raise ValueError(
                f"train: painter must have the model's {name}, {wanted}, got {theirs}"
            )
    weights = painter.state_dict()
    begun = model.state_dict()  # the model's own memory
    for name in begun.keys() - {READ, SAID}:
        begun[name].copy_(weights[name])
    begun[SAID][ours.image_start :] = weights[SAID][its.image_start :]
    known = painter.text_tokenizer.get_vocab()
    shared = {
        number: known[token]
        for token, number in model.text_tokenizer.get_vocab().items()
        if token in known
    }
    begun[READ][list(shared)] = weights[READ][list(shared.values())].to(begun[READ])
    return len(shared)
