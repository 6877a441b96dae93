"""A small model of pictures and words in one space, to be a teacher.

Two encoders end in unit vectors of the same width: a picture's (its patches pooled by
attention), each patch's own, and a text's. What belongs together points the same way.
The picture encoder is one of the tokenizer's semantic encoders, so that a tokenizer
can start from it; what a tokenizer learns to rebuild are the patch vectors.
The vocabulary is learned from the captions: byte pairs, so any script will do. It is
part of the saved folder:

    config.json   model.safetensors   tokenizer.json

Sources: CLIP, arXiv:2103.00020; SigLIP, arXiv:2303.15343 (temperature and bias).
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenflow import checkpoint
from tokenflow.tokenizer import processing, towers
from tokenflow.tokenizer.byte_pairs import learn_pairs
from tokenflow.tokenizer.semantic import SEMANTIC_ENCODERS
from tokenflow.tokenizer.transformer import check_heads, new_table

MODEL_TYPE = "tokenflow_image_text"
PAD, START = 0, 1
SPECIAL = ("[PAD]", "[START]")


class Vocabulary:
    """Text → token numbers: byte pairs learned from captions, in lower case.

    Args:
        tokenizer: A `tokenizers.Tokenizer` whose first tokens are SPECIAL.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __len__(self) -> int:
        """Return how many tokens there are, the special ones included."""
        return self._tokenizer.get_vocab_size()

    @classmethod
    def learn(cls, captions: Iterable[str], size: int) -> "Vocabulary":
        """Learn at most `size` tokens from captions; see `byte_pairs`.

        Raises:
            ValueError: `size` does not hold every byte.
        """
        return cls(learn_pairs(captions, size, SPECIAL, lower=True))

    @classmethod
    def from_text(cls, text: str) -> "Vocabulary":
        """Return the vocabulary that `text` (a tokenizer.json) describes."""
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_str(text))

    def text(self) -> str:
        """Return the vocabulary as a tokenizer.json."""
        return self._tokenizer.to_str(pretty=True)

    def numbers(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's tokens, START not included."""
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]


def as_batch(numbers: Sequence[Sequence[int]], length: int) -> Tensor:
    """Return token lists as one [N, T] int64: START first, cut at `length`, PAD after.

    T is that of the longest.
    """
    rows = [[START, *row][:length] for row in numbers]
    longest = max(map(len, rows), default=1)
    return torch.tensor(
        [row + [PAD] * (longest - len(row)) for row in rows], dtype=torch.int64
    ).reshape(len(rows), longest)


class TextEncoder(nn.Module):
    """Tokens [N, T] → one vector [N, out] each: a transformer, then the mean.

    Args:
        vocabulary: How many tokens there are.
        out: Width of the result.
        width: Features per token.
        layers: Transformer layers.
        heads: Attention heads; width must be a multiple.
        length: Most tokens of a text.
    """

    def __init__(
        self,
        vocabulary: int,
        out: int,
        width: int = 128,
        layers: int = 2,
        heads: int = 4,
        length: int = 48,
    ) -> None:
        super().__init__()
        check_heads("TextEncoder", width, heads)
        self.length = length
        self.tokens = new_table(vocabulary, width)
        self.positions = new_table(length, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                heads,
                4 * width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Linear(width, out)

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, T] int64, PAD after the end → [N, out]."""
        if tokens.ndim != 2 or tokens.shape[1] > self.length:
            raise ValueError(
                f"TextEncoder: tokens must be [N, T] with T ≤ {self.length}, "
                f"got {list(tokens.shape)}"
            )
        padded = tokens == PAD
        x = F.embedding(tokens, self.tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, src_key_padding_mask=padded)
        there = (~padded)[..., None].to(x.dtype)
        return self.proj((self.norm(x) * there).sum(1) / there.sum(1))


class AttentionPool(nn.Module):
    """Tokens [B, L, width] → one vector [B, out]: a learned query looks at them all."""

    def __init__(self, width: int, out: int, heads: int = 4) -> None:
        super().__init__()
        self.probe = new_table(1, 1, width)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.proj = nn.Linear(width, out)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, L, width] → [B, out]."""
        tokens = self.norm(tokens)
        probe = self.probe.to(tokens.dtype).expand(len(tokens), -1, -1)
        pooled, _ = self.attention(probe, tokens, tokens, need_weights=False)
        return self.proj(pooled[:, 0])


class ImageTextModel(nn.Module):
    """Pictures, their patches and texts as vectors of one space.

    Args:
        encoder: `kind` and the arguments of one of `semantic.SEMANTIC_ENCODERS`.
        vocabulary: Of the texts.
        image_size: Side of the pictures it is made for.
        width: Width of the shared space.
        text: Arguments of `TextEncoder`, but vocabulary and out.

    Raises:
        ValueError: There is no such encoder, or the sizes do not fit.
    """

    def __init__(
        self,
        encoder: dict[str, Any],
        vocabulary: Vocabulary,
        image_size: int,
        width: int = 128,
        text: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        kind = encoder.get("kind")
        if kind not in SEMANTIC_ENCODERS:
            raise ValueError(
                f"ImageTextModel: encoder['kind'] must be one of "
                f"{list(SEMANTIC_ENCODERS)}, got {kind!r}"
            )
        self.encoder_options, self.text_options = dict(encoder), dict(text or {})
        self.vocabulary, self.image_size, self.width = vocabulary, image_size, width
        options = {k: v for k, v in encoder.items() if k != "kind"}
        self.image_encoder = SEMANTIC_ENCODERS[kind](**options)
        inner, heads = self.image_encoder.width, options.get("heads", 4)
        self.patch_head = nn.Linear(inner, width)
        self.pool = AttentionPool(inner, width, heads)
        self.text_encoder = TextEncoder(len(vocabulary), width, **self.text_options)
        # logit = exp(scale) · cosine + bias, for pictures and for patches
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-4.0))
        self.patch_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.patch_bias = nn.Parameter(torch.tensor(0.0))

    def encode_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return unit vectors of pictures and of their patches.

        [B, 3, H, W] in [-1, 1] → [B, width] and [B, h·w, width], float32.
        """
        tokens = self.image_encoder(images)
        patches = F.normalize(self.patch_head(tokens).float(), dim=-1)
        return F.normalize(self.pool(tokens).float(), dim=-1), patches

    def encode_tokens(self, tokens: Tensor) -> Tensor:
        """Return unit vectors of texts given as tokens: [N, T] → [N, width]."""
        return F.normalize(self.text_encoder(tokens).float(), dim=-1)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors of texts: [N, width] float32."""
        tokens = as_batch(self.vocabulary.numbers(texts), self.text_encoder.length)
        return self.encode_tokens(tokens.to(self.scale.device))

    def forward(
        self, images: Tensor, captions: Tensor, pieces: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return unit vectors of pictures, patches, captions and pieces of captions.

        Training's way in. [B, 3, H, W], [N, T] and [M, U] tokens → [B, width],
        [B, h·w, width], [N, width], [M, width].
        """
        pictures, patches = self.encode_images(images)
        return (
            pictures,
            patches,
            self.encode_tokens(captions),
            self.encode_tokens(pieces),
        )

    def batch(self, images: processing.Pictures) -> Tensor:
        """Return pictures as [B, 3, image_size, image_size] where the model is."""
        batch = processing.to_batch(images, self.image_size, "crop")
        return batch.to(self.scale.device)

    @torch.no_grad()
    def similarity(self, images: processing.Pictures, texts: Sequence[str]) -> Tensor:
        """Return the cosine of every picture and every text: [B, N] in [-1, 1].

        The largest of a row names the picture without any training on those texts.

        Args:
            images: B pictures, as `processing.to_batch` takes them.
            texts: N texts.
        """
        pictures, _ = self.encode_images(self.batch(images))
        return pictures @ self.encode_texts(texts).T

    @torch.no_grad()
    def locate(self, images: processing.Pictures, texts: Sequence[str]) -> Tensor:
        """Return the cosine of every patch and every text: [B, N, h, w]."""
        batch = self.batch(images)
        _, patches = self.encode_images(batch)
        grid = self.image_encoder.grid(*batch.shape[-2:])
        found = patches @ self.encode_texts(texts).T
        return found.transpose(1, 2).unflatten(2, grid)

    # files

    def save_pretrained(
        self, folder: str | os.PathLike, weights: dict[str, Tensor] | None = None
    ) -> None:
        """Write config.json, model.safetensors and tokenizer.json, all or nothing.

        Args:
            folder: Made if it is not there.
            weights: What to write as weights, those of the model when None.
        """
        from safetensors.torch import save_file

        config = {
            "model_type": MODEL_TYPE,
            "encoder": self.encoder_options,
            "image_size": self.image_size,
            "width": self.width,
            "text": self.text_options,
        }
        weights = self.state_dict() if weights is None else weights
        state = {k: v.detach().contiguous() for k, v in weights.items()}
        with checkpoint.replacing(folder) as made:
            (made / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            (made / "tokenizer.json").write_text(self.vocabulary.text(), "utf-8")
            save_file(state, made / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike) -> "ImageTextModel":
        """Read what `save_pretrained` wrote; comes in eval mode.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: The folder holds another model, or its files do not fit each
                other; the message names the first difference.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder}: there is no {name}")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config.pop("model_type", None) != MODEL_TYPE:
            raise ValueError(f"{folder}: config.json must have model_type {MODEL_TYPE}")
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        model = cls(vocabulary=Vocabulary.from_text(text), **config)
        try:
            weights = load_file(folder / "model.safetensors")
        except SafetensorError as error:
            raise ValueError(
                f"{folder}: the weights must be whole safetensors; they are truncated "
                f"or damaged ({error})"
            ) from None
        towers.check_weights(str(folder), weights, model.state_dict())
        model.load_state_dict(weights)
        return model.eval()
