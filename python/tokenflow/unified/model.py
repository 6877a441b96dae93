"""A generation model that also reads: one language model over one token space.

Painting is the generation model's, id for id. To be asked about, a picture takes the
positions of its last scale: each reads the sum of the entries of all scales at its
place, through the projector, the level and the position that painting has there when it
looks at that scale again. The alternative is a projector of its own, as understanding
models have; but both would read sums of the same entries, and with one, whatever either
task learns about an entry serves the other, and a generation model needs no weight more
to be a unified one. The positions of one picture all see each other, as in painting;
words see what is before them. The rows of the one output head below `image_start` say
words, those above it paint.
Source: TokenFlow, arXiv:2412.03069, sections 3.3 and 3.4, which trains two models.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenflow._transformers import register
from tokenflow.generation import places
from tokenflow.generation.model import (
    TokenFlowForGeneration,
    TokenFlowGenerationOutput,
)
from tokenflow.tokenizer.scales import token_counts
from tokenflow.understanding.processing import TokenFlowProcessor, positions
from tokenflow.understanding.prompts import IGNORED
from tokenflow.unified import answering
from tokenflow.unified.config import TokenFlowUnifiedConfig


@dataclass
class TokenFlowUnifiedOutput(TokenFlowGenerationOutput):
    """What a training step needs; `loss` is the sum of those that were asked for."""

    answer_loss: Tensor | None = None  # mean over learned words
    answer_logits: Tensor | None = None  # [B, T, text ids]


class TokenFlowUnified(TokenFlowForGeneration):
    """Words to pictures, and questions about pictures to words.

    `generate` and `stream` paint, `answer` answers. The image tokenizer and the text
    tokenizer, one for both tasks, are attached as to a `TokenFlowForGeneration`.

    Args:
        config: All sizes; `TokenFlowUnifiedConfig.preset` has some by name.
    """

    config_class = TokenFlowUnifiedConfig

    answer = answering.answer

    def __init__(self, config: TokenFlowUnifiedConfig) -> None:
        super().__init__(config)
        self._processor: TokenFlowProcessor | None = None

    # words and pictures → what the language model reads

    @property
    def processor(self) -> TokenFlowProcessor:
        """What makes ids of questions, of the two attached tokenizers.

        Raises:
            ValueError: One of them is not attached, or `<image>` has no id below
                `image_start`.
        """
        words, made = self.text_tokenizer, self._processor
        if made is not None and made.tokenizer is words:
            return made
        if words is None:
            raise ValueError(
                "processor: a text tokenizer must be attached, "
                "`model.text_tokenizer = ...`"
            )
        made = TokenFlowProcessor(
            words,
            self.image_tokenizer.config.image_size,
            token_counts(self.scales)[-1],
            self.config.resize,
            self.config.template,
        )
        if made.image_token_id >= self.config.image_start:
            raise ValueError(
                f"processor: <image> must have a text id, below image_start = "
                f"{self.config.image_start}, got {made.image_token_id}; the model's "
                "image_start leaves no room for it"
            )
        self._processor = made
        return made

    def embed_pictures(self, indices: Tensor) -> Tensor:
        """Embed the tokens of whole pictures: [n, N] int64 → [n, h·w, width]."""
        with torch.no_grad(), torch.autocast(indices.device.type, enabled=False):
            features = self.image_tokenizer.understanding_features(indices)
        start = self.config.num_tokens - features.shape[1]
        return self.embed_image(features, len(self.scales) - 1, start)

    def read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pictures: Tensor | None = None,
        *,
        position_ids: Tensor | None = None,
        kept: list[tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """Run the language model over conversations.

        Args:
            input_ids: [B, T] int64, as `processor` makes them.
            attention_mask: [B, T] with 0 where a row is padded, on either side; or
                [B, T, T] bool, which position may look back at which.
            pictures: [n, N] int64, the tokens of all pictures, row after row.
            position_ids: [B, T], wanted with the second kind; from the first when None.
            kept: Takes keys and values of every layer.

        Returns:
            [B, T, width], normed.

        Raises:
            ValueError: There are more places than positions of pictures, or fewer; or
                position_ids are missing.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if attention_mask.ndim == 3 and position_ids is None:
            raise ValueError(
                "read: position_ids must be given with an attention_mask [B, T, T], "
                "got none"
            )
        pictured = input_ids == self.processor.image_token_id
        count = token_counts(self.scales)[-1]
        given = 0 if pictures is None else len(pictures)
        if int(pictured.sum()) != given * count:
            raise ValueError(
                f"read: input_ids must have {count} places for each of {given} "
                f"pictures, got {int(pictured.sum())}"
            )
        x = self.embed(input_ids.masked_fill(pictured, 0)) + self.levels[0]
        if pictures is not None and given:
            rows = self.embed_pictures(pictures).to(x.dtype)
            x = x.masked_scatter(pictured[..., None].expand_as(x), rows)
        seen = attended(attention_mask.bool(), pictured, count)
        if position_ids is None:
            position_ids = positions(attention_mask)
        kind = self.config.places
        where = places.of_conversation(position_ids, pictured, self.scales, kind)
        return self.llama(x, where, seen[:, None], kept=kept)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Return logits of the text ids alone: [..., width] → [..., image_start]."""
        return F.linear(hidden, self.head.weight[: self.config.image_start])

    # training

    def forward(
        self,
        prefix: Tensor | None = None,
        indices: Tensor | None = None,
        suffix: Tensor | None = None,
        *,
        near: Tensor | None = None,
        shares: Tensor | None = None,
        with_text: bool = False,
        with_logits: bool = True,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pictures: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> TokenFlowUnifiedOutput:
        """Predict pictures, or words about pictures, or both in one step.

        Args:
            prefix, indices, suffix: Painting; see `TokenFlowForGeneration.forward`.
            near, shares, with_text, with_logits: Likewise.
            input_ids, attention_mask, pictures, position_ids: Answering; see `read`.
            labels: [B, T] int64, −100 where nothing is learned; adds `answer_loss`.

        Returns:
            Losses and logits of what was given, see `TokenFlowUnifiedOutput`.

        Raises:
            ValueError: Nothing to paint or read is given; or as the two parts say.
        """
        missing = prefix is None and input_ids is None
        if missing or (prefix is None) != (indices is None):
            raise ValueError(
                "forward: prefix and indices, or input_ids, or all three must be given"
            )
        found: dict[str, Any] = {}
        if prefix is not None and indices is not None:
            found |= super().forward(
                prefix,
                indices,
                suffix,
                near=near,
                shares=shares,
                with_text=with_text,
                with_logits=with_logits,
            )
        if input_ids is not None:
            hidden = self.read(
                input_ids, attention_mask, pictures, position_ids=position_ids
            )
            logits = found["answer_logits"] = self.text_logits(hidden)
            if labels is not None:
                found["answer_loss"] = loss = F.cross_entropy(
                    logits[:, :-1].flatten(0, 1).float(),
                    labels[:, 1:].flatten(),
                    ignore_index=IGNORED,
                )
                found["loss"] = loss + found.get("loss", 0)
        return TokenFlowUnifiedOutput(**found)


def attended(real: Tensor, pictured: Tensor, count: int) -> Tensor:
    """Return which position of a conversation may look at which.

    Everything looks back at what is no padding; a picture's positions see each other.

    Args:
        real: [B, T] bool, false where a row is padded; or [B, T, T], false where one
            may not look back at the other.
        pictured: [B, T] bool, true where pictures are, each `count` in a row.
        count: Positions of one picture.

    Returns:
        [B, T, T] bool, queries × keys.
    """
    length = real.shape[1]
    back = torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
    looked = real if real.ndim == 3 else real[:, None]
    number = (pictured.long().cumsum(1) - 1) // count  # of each one's picture
    both = pictured[:, :, None] & pictured[:, None]
    return (back & looked) | (both & (number[:, :, None] == number[:, None]))


register(TokenFlowUnifiedConfig, TokenFlowUnified)
