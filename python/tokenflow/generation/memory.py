"""What drawing takes in memory, told before it is taken.

Nearly all of it are the keys and values of every position of every row, and, at the
last scale, the logits and what sampling makes of them. Both grow with the pictures
that are drawn at once.
"""

from typing import TYPE_CHECKING

from tokenflow._memory import available
from tokenflow.tokenizer.scales import Scales, token_counts

if TYPE_CHECKING:
    from tokenflow.generation.model import TokenFlowForGeneration

SAMPLED = 44  # bytes for each logit: guided, sorted with its place, summed, kept, drawn


def needed(
    model: "TokenFlowForGeneration",
    pictures: int,
    prompt: int,
    *,
    guided: bool,
    passes: int,
    scales: Scales,
) -> int:
    """Return about how many bytes it takes to draw so many pictures at once.

    Args:
        model: Its sizes and dtype count.
        pictures: All of them, of whatever prompts.
        prompt: Positions of a prompt.
        guided: Whether there is a second row for each.
        passes: Looks at each scale.
        scales: That are drawn.
    """
    language, counts = model.llama.config, token_counts(scales)
    size, width = model.head.weight.element_size(), language.hidden_size
    largest = max(counts)
    head = width // language.num_attention_heads
    kept = 2 * head * language.num_key_value_heads  # values of a position and layer
    positions = prompt + sum(counts) - 1
    set_aside = max(counts[:-1], default=0) if passes > 1 else 0
    row = language.num_hidden_layers * kept * (positions + set_aside)
    row += 2 * width * positions
    row += largest * (3 * language.intermediate_size + 8 * width)
    entries = model.config.codebook_size
    row += largest * entries
    return pictures * ((1 + guided) * row * size + SAMPLED * largest * entries)


def check(model: "TokenFlowForGeneration", pictures: int, *sizes: int, **facts) -> None:  # type: ignore[no-untyped-def]
    """Raise ValueError where `needed` is more than there is.

    Args:
        model, pictures, sizes, facts: As of `needed`.
    """
    wanted, free = needed(model, pictures, *sizes, **facts), available(model.device)
    if free is not None and wanted > free:
        most = free * pictures // wanted
        raise ValueError(
            f"generate: {pictures} pictures at once would take about "
            f"{wanted / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free; "
            f"draw at most {most} at a time"
        )
