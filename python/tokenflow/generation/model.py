"""The whole generator: words in, a picture out.

A prompt becomes text ids; the language model predicts the tokens of each scale from the
enlarged sum of the scales before; the tokenizer redraws them. `forward` is the training
half of the same sequence, `generate` the drawing half.
Source: TokenFlow, arXiv:2412.03069, section 3.4; sizes and order of the published code.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tokenflow import checkpoint
from tokenflow._transformers import ModelOutput, PreTrainedModel, register
from tokenflow.generation import (
    drawing,
    folders,
    inputs,
    memory,
    places,
    sampling,
)
from tokenflow.generation.config import TokenFlowGenerationConfig
from tokenflow.generation.llama import Llama, LlamaConfig
from tokenflow.generation.loss import cross_entropy, linear_cross_entropy
from tokenflow.generation.prompts import Prompts, as_pair
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.tokenizer.scales import as_pairs

OUTPUTS = ("pil", "tokens", "pt")
DECODED = 32  # pictures at a time

Pictures = list[Image.Image] | Tensor


@dataclass
class TokenFlowGenerationOutput(ModelOutput):
    """What a training step needs."""

    loss: Tensor | None = None  # image_loss, and text_loss where that was asked for
    image_loss: Tensor | None = None  # mean over image tokens and what follows them
    text_loss: Tensor | None = None  # mean over the words of the prompts
    logits: Tensor | None = None  # [B, N + S, vocabulary], unless left out


class TokenFlowForGeneration(PreTrainedModel):
    """Words to pictures.

    Two parts are attached rather than owned, since neither is trained here and both may
    be shared: `image_tokenizer` (a `TokenFlowTokenizer`), which moves along with
    `.to()`, and `text_tokenizer` (any of transformers'). `from_pretrained` brings both.
    Source: arXiv:2412.03069, figure 3.

    Args:
        config: All sizes; `TokenFlowGenerationConfig.preset` has the published ones.
    """

    config_class = TokenFlowGenerationConfig
    base_model_prefix = ""
    main_input_name = "prefix"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Layer"]

    def __init__(self, config: TokenFlowGenerationConfig) -> None:
        super().__init__(config)
        language = LlamaConfig(vocab_size=config.vocabulary, **config.language)
        language._attn_implementation = config._attn_implementation
        width, count = language.hidden_size, len(config.scales)
        self.embed = nn.Embedding(config.embedded, width)
        self.projector = nn.Sequential(
            nn.Linear(config.code_width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.levels = nn.Parameter(torch.empty(count + 1, width))  # 0: no picture
        self.positions = nn.Parameter(torch.empty(config.num_tokens, width))
        self.llama = Llama(language, config.qk_norm_eps)
        self.head = nn.Linear(width, config.vocabulary, bias=False)
        self.scales = as_pairs(config.scales)
        self.text_tokenizer: Any = None
        self._attached: list[TokenFlowTokenizer] = []  # so that no weight of it is ours
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        from transformers import initialization

        super()._init_weights(module)
        if module is self:
            std, more = (3 * self.levels.shape[1]) ** -0.5, self.config.inputs
            initialization.trunc_normal_(self.levels, std=more * std)
            initialization.trunc_normal_(self.positions, std=std)
            if more != 1:
                for rows in (self.embed.weight, self.projector[2].weight):
                    usual = self.llama.config.initializer_range
                    initialization.normal_(rows, std=more * usual)
            for layer in self.llama.layers:
                for norm in (layer.attention_norm, layer.mlp_norm):
                    initialization.constant_(norm.weight, self.config.branch)

    # the two attached parts

    @property
    def image_tokenizer(self) -> TokenFlowTokenizer:
        """The tokenizer whose entries are read and which redraws.

        Raises:
            ValueError: None is attached.
        """
        if not self._attached:
            raise ValueError(
                "TokenFlowForGeneration: an image tokenizer must be attached, "
                "`model.attach(TokenFlowTokenizer.from_pretrained(...))`"
            )
        return self._attached[0]

    def attach(self, tokenizer: TokenFlowTokenizer) -> "TokenFlowForGeneration":
        """Use this image tokenizer, frozen; return the model.

        Raises:
            ValueError: Its books or its schedule are not those the model was made for.
        """
        folders.check_fit(self.config, tokenizer)
        self._attached = [tokenizer.to(self.device).eval().requires_grad_(False)]
        return self

    def _apply(self, *args: Any, **kwargs: Any) -> "TokenFlowForGeneration":
        for tokenizer in self._attached:
            tokenizer._apply(*args, **kwargs)
        return super()._apply(*args, **kwargs)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the layers, where the time goes; arguments as of `torch.compile`.

        The scales have different lengths: one graph for all of them unless `dynamic`
        says otherwise.
        """
        for layer in self.llama.layers:
            layer.compile(*args, **{"dynamic": True, **kwargs})

    # ids and entries → what the language model reads

    def entries(self, indices: Tensor) -> Tensor:
        """Look up entries: [B, n] int64 → [B, n, Ds + Dp] float32."""
        return self.image_tokenizer.quantizer.entries(indices)

    def embed_prompt(self, ids: Tensor) -> Tensor:
        """Embed text ids [B, P], the last of which predicts the first image token."""
        x = self.embed(ids) + self.levels[0]
        return torch.cat([x[:, :-1], x[:, -1:] + self.positions[0]], dim=1)

    def embed_image(self, rows: Tensor, scale: int, start: int) -> Tensor:
        """Embed what the positions of one scale read: [B, n, Ds + Dp] → [B, n, width].

        Args:
            rows: The enlarged sum of the scales before it, see `inputs.cascade`.
            scale: Its number, 1 for the second.
            start: Number of its first token.
        """
        x = self.projector(rows.to(self.projector[0].weight.dtype))
        return x + self.levels[scale + 1] + self.positions[start : start + x.shape[1]]

    def embed_sequence(self, prefix: Tensor, indices: Tensor, tail: Tensor) -> Tensor:
        """Embed prompt, picture and what follows it.

        Args:
            prefix: [B, P] text ids.
            indices: [B, N] int64 in [0, K), every scale.
            tail: [B, S] text ids behind the picture.

        Returns:
            [B, P + N + S, width]. The N positions behind the prompt are the N − 1 that
            read the cascade, and a placeholder.
        """
        rows = inputs.cascade(self.entries(indices), self.scales)
        level = inputs.levels(self.scales)[1:].to(rows.device)
        x = self.projector(rows.to(self.projector[0].weight.dtype))
        x = x + self.levels[level + 1] + self.positions[1:]
        place = self.levels[0].expand(len(x), 1, -1)
        return torch.cat(
            [self.embed_prompt(prefix), x, place, self.embed(tail) + self.levels[0]],
            dim=1,
        )

    def places(self, prompt: int, length: int) -> Tensor:
        """Return where positions are; see `places.of_painting`."""
        kind, device = self.config.places, self.embed.weight.device
        return places.of_painting(prompt, length, self.scales, kind, device)

    def image_logits(self, hidden: Tensor) -> Tensor:
        """Return logits of the entries alone: [B, n, width] → [B, n, K]."""
        return F.linear(hidden, self.head.weight[self.config.image_start :])

    # training

    def forward(
        self,
        prefix: Tensor,
        indices: Tensor,
        suffix: Tensor | None = None,
        *,
        near: Tensor | None = None,
        shares: Tensor | None = None,
        with_text: bool = False,
        with_logits: bool = True,
    ) -> TokenFlowGenerationOutput:
        """Predict every token of a picture, and the words where that is asked for.

        Args:
            prefix: [B, P] int64, as `prompts.prefix_ids` makes them.
            indices: [B, N] int64, the picture's tokens, which later ones are told from.
            suffix: [S] or [B, S] int64, what is to follow it; nothing when None.
            near: [B, N, m] int64, entries that share each target; the tokens alone
                when None, as published.
            shares: [B, N, m] float32, each entry's share of 1; equal ones when None.
            with_text: Also learn to predict the prompts (not so as published).
            with_logits: Return them. Without, training takes less time and memory, and
                reads `head.weight` itself: an adapter around the head is not seen.

        Returns:
            Losses and logits, see `TokenFlowGenerationOutput`.

        Raises:
            ValueError: indices are not the tokens of whole pictures, or near or shares
                do not fit them.
        """
        if indices.ndim != 2 or indices.shape[1] != self.config.num_tokens:
            raise ValueError(
                f"forward: indices must be [B, {self.config.num_tokens}], every scale "
                f"of a picture, got {list(indices.shape)}"
            )
        if suffix is None:
            suffix = prefix.new_empty(0)
        suffix = suffix.expand(len(prefix), -1)
        x = self.embed_sequence(prefix, indices, suffix)
        real = prefix != self.config.pad_id
        seen = inputs.attended(real, self.scales, tail=1 + suffix.shape[1])
        where = self.places(prefix.shape[1], x.shape[1])
        hidden = self.llama(x, where, seen[:, None])
        first = prefix.shape[1] - 1
        told = hidden[:, first : first + indices.shape[1] + suffix.shape[1]]
        ids, weights = self._targets(indices, suffix, near, shares)
        logits = self.head(told) if with_logits else None
        image_loss = self._loss(told, logits, ids, weights)
        loss, text_loss = image_loss, None
        if with_text:
            words, said = prefix[:, 1:, None], real[:, 1:, None]
            weights = said * (said.numel() / said.sum())  # the mean of what is real
            rows = hidden[:, :first]
            named = self.head(rows) if with_logits else None
            text_loss = self._loss(rows, named, words, weights)
            loss = image_loss + text_loss
        return TokenFlowGenerationOutput(
            loss=loss, image_loss=image_loss, text_loss=text_loss, logits=logits
        )

    def _loss(
        self, hidden: Tensor, logits: Tensor | None, ids: Tensor, shares: Tensor
    ) -> Tensor:
        """Return the loss from logits, or without ever having them all."""
        if logits is not None:
            return cross_entropy(logits, ids, shares)
        return linear_cross_entropy(hidden, self.head.weight, ids, shares)

    def _targets(
        self,
        indices: Tensor,
        suffix: Tensor,
        near: Tensor | None,
        shares: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return ids and shares of what is predicted, both [B, N + S, m]."""
        if near is None:
            near = indices[..., None]
        if near.ndim != 3 or near.shape[:2] != indices.shape or not near.shape[2]:
            raise ValueError(
                f"forward: near must be {[*indices.shape, 'm']} with m ≥ 1, got "
                f"{list(near.shape)}"
            )
        if shares is None:
            shares = torch.ones_like(near) / near.shape[2]
        if shares.shape != near.shape:
            raise ValueError(
                f"forward: shares must be {list(near.shape)}, got {list(shares.shape)}"
            )
        ends = suffix[..., None].expand(-1, -1, near.shape[2])
        ids = torch.cat([near + self.config.image_start, ends], dim=1)
        return ids, torch.cat([shares, torch.ones_like(ends) / ends.shape[2]], dim=1)

    # drawing

    def generate(
        self,
        prompts: Prompts,
        *,
        guidance_scale: float | None = None,
        refinement: sampling.Refinement | None = None,
        negative_prompt: Prompts | None = None,
        generator: sampling.Generators = None,
        num_images: int = 1,
        scales: int | Sequence | None = None,
        output: str = "pil",
    ) -> Pictures:
        """Draw pictures.

        Args:
            prompts: One text, several, or their ids [B, P] int64.
            guidance_scale: How far the last scale is led away from the negative prompt;
                0 at the first scale, growing evenly. 0 takes half the time; the
                config's when None (7.5 where it does not say).
            refinement: (k, p) of each look at a scale but the first: draw from the k
                largest logits and the smallest set of probability p; k = 0 and p = 0
                keep all. The config's when None (`sampling.THREE_PASSES`, the paper's,
                where it does not say).
            negative_prompt: One text for all, one each, or ids; the config's when None.
            generator: For the draws; torch's own when None. One seed gives the same
                tokens on every device if the generator stays on the CPU. A list has
                one for each prompt, whose pictures then are those it would have alone
                (but for draws that hang on the last digits of a logit, since matrix
                products round differently in another batch).
            num_images: Pictures of each prompt.
            scales: The first few scales alone, as a number or a list: a rough sketch
                whose tokens are those of the whole picture.
            output: "pil", "tokens" or "pt".

        Returns:
            B · num_images pictures, those of one prompt beside each other: PIL
            pictures, tokens [B · num_images, L] int64, or [B · num_images, 3, H, W]
            float32 in [-1, 1].

        Raises:
            TypeError: A prompt is no text.
            ValueError: A prompt is empty, too long, or of words that the text tokenizer
                has not; a setting is out of its range; or so many pictures at once
                are too many for the memory, and the message says how many are not.
        """
        _check_output(output)
        *_, tokens = self.stream(
            prompts,
            guidance_scale=guidance_scale,
            refinement=refinement,
            negative_prompt=negative_prompt,
            generator=generator,
            num_images=num_images,
            scales=scales,
            output="tokens",
        )
        return self._as(output, tokens)

    @torch.no_grad()
    def stream(
        self,
        prompts: Prompts,
        *,
        guidance_scale: float | None = None,
        refinement: sampling.Refinement | None = None,
        negative_prompt: Prompts | None = None,
        generator: sampling.Generators = None,
        num_images: int = 1,
        scales: int | Sequence | None = None,
        output: str = "pil",
    ) -> Iterator[Pictures]:
        """Draw pictures, and yield them after every scale.

        Args:
            prompts, guidance_scale, refinement, negative_prompt: As of `generate`.
            generator, num_images, scales, output: As of `generate`.

        Yields:
            What `generate` would return with so many scales; the last is its result.

        Raises:
            TypeError, ValueError: As `generate`.
        """
        _check_output(output)
        usual = self.config.sampling
        if guidance_scale is None:
            guidance_scale = usual["guidance_scale"]
        passes = sampling.check(
            guidance_scale, usual["refinement"] if refinement is None else refinement
        )
        chosen = inputs.leading(self.scales, scales)
        if num_images < 1:
            raise ValueError(f"generate: num_images must be ≥ 1, got {num_images}")
        if negative_prompt is None:
            negative_prompt = self.config.negative_prompt
        wanted, unwanted = as_pair(
            prompts,
            negative_prompt if guidance_scale else None,
            self.text_tokenizer,
            self.config,
        )
        if isinstance(generator, list | tuple) and len(generator) != len(wanted):
            raise ValueError(
                f"generate: generator must be one or {len(wanted)}, one for each "
                f"prompt, got {len(generator)}"
            )
        memory.check(
            self,
            len(wanted) * num_images,
            wanted.shape[1],
            guided=unwanted is not None,
            passes=len(passes),
            scales=chosen,
        )
        wanted = wanted.to(self.device).repeat_interleave(num_images, dim=0)
        if unwanted is not None:
            unwanted = unwanted.to(self.device).repeat_interleave(num_images, dim=0)
        found = wanted.new_empty(len(wanted), 0)
        for indices in drawing.draw_scales(
            self,
            wanted,
            unwanted,
            guidance=guidance_scale,
            passes=passes,
            scales=chosen,
            generator=generator,
        ):
            found = torch.cat([found, indices], dim=1)
            yield self._as(output, found)

    def _as(self, output: str, tokens: Tensor) -> Pictures:
        if output == "tokens":
            return tokens
        parts = [
            self.image_tokenizer.decode(part, scales=self.scales, output=output)
            for part in tokens.split(DECODED)
        ]
        return torch.cat(parts) if output == "pt" else sum(parts, [])

    # files

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike,
        *args: Any,
        image_tokenizer: TokenFlowTokenizer | None = None,
        **kwargs: Any,
    ) -> "TokenFlowForGeneration":
        """Load a model and its two tokenizers: a shipped name, a folder, or a hub id.

        Args:
            name: See `TokenFlowTokenizer.from_pretrained`.
            args, kwargs: As of `PreTrainedModel.from_pretrained`; float32 unless
                `dtype=` says otherwise.
            image_tokenizer: Attached instead of the one that the config names.

        Raises:
            ValueError: The weights, or the image tokenizer, are not this model's.
            OSError: There is no such model.
        """
        place = folders.find(name, cls.config_class)
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", torch.float32)
        folder = place if isinstance(place, Path) else None
        made = checkpoint.load_whole(
            super().from_pretrained, folder, name, *args, **kwargs
        )
        model = made[0] if isinstance(made, tuple) else made
        hub = {key: kwargs[key] for key in checkpoint.HUB if key in kwargs}
        model.text_tokenizer = folders.text_tokenizer(place, **hub)
        if image_tokenizer is None:
            hub["dtype"] = model.dtype
            image_tokenizer = folders.image_tokenizer(place, model.config, **hub)
        if image_tokenizer is not None:
            model.attach(image_tokenizer)
        return made

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any
    ) -> None:
        """Write config, safetensors and tokenizers; a broken write leaves the old.

        An image tokenizer that the config names is not written; any other goes into a
        folder inside.

        Args:
            save_directory: Folder, made if it is not there.
            args, kwargs: As of `PreTrainedModel.save_pretrained`.
        """
        folders.save(self, super().save_pretrained, save_directory, *args, **kwargs)

    @classmethod
    def from_upstream(
        cls,
        source: str | os.PathLike,
        config: TokenFlowGenerationConfig | None = None,
    ) -> "TokenFlowForGeneration":
        """Load published weights, safely; `save_pretrained` then converts them.

        Args:
            source: A published folder, or one file of weights.
            config: What it holds; recognised from its shapes when None.

        Raises:
            FileNotFoundError: There is nothing.
            ValueError: It is damaged or holds something else; the message names the
                first differing weights.
        """
        return folders.from_upstream(cls, source, config)


def _check_output(output: str) -> None:
    if output not in OUTPUTS:
        raise ValueError(
            f"generate: output must be one of {list(OUTPUTS)}, got {output!r}"
        )


register(TokenFlowGenerationConfig, TokenFlowForGeneration)
