"""Begin a unified model with what a generation model has learned.

The weights of the two are the same but for the rows of words: a unified model has a
vocabulary for conversations too. A token that both know keeps its row of the embedding,
whatever its id. The rows of others, and those of the head that say words, which a
painter never does, stay as they are.
"""

import torch

from tokenflow.generation.model import TokenFlowForGeneration
from tokenflow.unified.model import TokenFlowUnified

SIZES = ("language", "scales", "codebook_size", "code_width")
READ, SAID = "embed.weight", "head.weight"


@torch.no_grad()
def begin(model: TokenFlowUnified, painter: TokenFlowForGeneration) -> int:
    """Give a model the weights of a painter, both with a text tokenizer attached.

    Returns:
        How many tokens both know.

    Raises:
        ValueError: They differ in more than words.
    """
    its, sizes = painter.config, model.config
    for name in SIZES:
        if getattr(its, name) != getattr(sizes, name):
            raise ValueError(
                f"train: painter must have the model's {name}, "
                f"{getattr(sizes, name)}, got {getattr(its, name)}"
            )
    weights = painter.state_dict()
    begun = model.state_dict()  # the model's own memory
    for name in begun.keys() - {READ, SAID}:
        begun[name].copy_(weights[name])
    begun[SAID][sizes.image_start :] = weights[SAID][its.image_start :]
    known = painter.text_tokenizer.get_vocab()
    shared = {
        number: known[token]
        for token, number in model.text_tokenizer.get_vocab().items()
        if token in known
    }
    begun[READ][list(shared)] = weights[READ][list(shared.values())].to(begun[READ])
    return len(shared)
