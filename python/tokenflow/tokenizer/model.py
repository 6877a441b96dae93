"""The whole tokenizer: a picture in, tokens out, the picture back.

encode: the semantic encoder sees what is there, the pixel encoder what it looks like;
their features, one beside the other, are snapped to shared entries scale by scale.
decode mirrors it: entries are summed, the pixel half is redrawn; the semantic half is
what a language model reads (and what training holds against a teacher).
Source: TokenFlow, arXiv:2412.03069, section 3.
"""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tokenflow import checkpoint
from tokenflow._transformers import ModelOutput, PreTrainedModel, quiet, register
from tokenflow.config import TokenFlowConfig
from tokenflow.tokenizer import pixel, processing, semantic
from tokenflow.tokenizer.quantizer import Quantizer
from tokenflow.tokenizer.scales import Scales, as_pairs, for_grid, prefix, token_counts

STRATEGIES = ("last", "all", "residual", "semantic")

Size = int | tuple[int, int]
Schedule = Sequence[int | Sequence[int]]


@dataclass(frozen=True)
class Encoded:
    """What `TokenFlowTokenizer.encode` returns."""

    indices: Tensor  # [B, L] int64
    quantized: Tensor  # [B, Ds + Dp, h, w] float32
    scales: Scales  # (height, width) of each, coarse to fine

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of the final grid."""
        return tuple(self.quantized.shape[-2:])


@dataclass
class TokenFlowOutput(ModelOutput):
    """What a training step needs; the losses are averaged over the scales used."""

    pixel_reconstruction: Tensor | None = None  # [B, 3, H, W], not clamped
    semantic_reconstruction: Tensor | None = None  # [B, h·w, target]
    vq_loss: Tensor | None = None  # moves entries towards features
    commitment_loss: Tensor | None = None  # moves features towards entries, times β
    entropy_loss: Tensor | None = None  # times its weight
    usage: Tensor | None = None  # share of the entries seen lately
    indices: Tensor | None = None  # [B, L] int64
    quantized: Tensor | None = None  # [B, Ds + Dp, h, w] float32, straight-through


class TokenFlowTokenizer(PreTrainedModel):
    """Pictures to shared tokens and back.

    The networks run in the dtype of their parameters; quantization is always float32,
    and so are the two books, whatever the model is cast to.
    Source: arXiv:2412.03069, figure 3.

    Args:
        config: All sizes; `TokenFlowConfig.preset` has the published ones.

    Raises:
        ValueError: The parts do not fit together.
    """

    config_class = TokenFlowConfig
    base_model_prefix = ""
    main_input_name = "images"
    _keep_in_fp32_modules_strict = {"quantizer"}
    _no_split_modules: list[str] = []

    def __init__(self, config: TokenFlowConfig) -> None:
        super().__init__(config)
        latent = config.pixel_latent
        meaning, look = config.semantic_dim, config.pixel_dim
        self.semantic_encoder = self.semantic_head = None
        if meaning:
            self.semantic_encoder = _semantic_encoder(config)
            self.semantic_head = semantic.TaskHead(self.semantic_encoder.width, meaning)
        self.pixel_encoder = self.quant_conv = None
        if look:
            self.pixel_encoder = pixel.PixelEncoder(
                latent=latent, **config.pixel_encoder
            )
            self.quant_conv = nn.Conv2d(latent, look, 1)
        self.quantizer = Quantizer(config)
        self.post_quant_conv = nn.Conv2d(look or meaning, latent, 1)
        self.pixel_decoder = pixel.PixelDecoder(latent=latent, **config.pixel_decoder)
        self.semantic_decoder = semantic.SemanticDecoder(
            in_channels=meaning or look, **config.semantic_decoder
        )
        self.semantic_target_head = semantic.TaskHead(
            config.semantic_decoder["width"], config.semantic_target
        )
        self.scales = as_pairs(config.scales)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave every module as its own constructor made it."""

    # pixels → features → tokens

    def features(self, images: Tensor) -> Tensor:
        """Return what is quantized: [B, 3, H, W] in [-1, 1] → [B, Ds + Dp, h, w].

        Raises:
            ValueError: H and W are no whole number of grid cells.
        """
        height, width = self.grid(*images.shape[-2:])
        dtype = self.post_quant_conv.weight.dtype
        halves = []
        if self.semantic_encoder is not None:
            tokens = self.semantic_head(self.semantic_encoder(images.to(dtype)))
            halves.append(tokens.transpose(1, 2).unflatten(2, (height, width)))
        if self.pixel_encoder is not None:
            factor = self.config.pixel_factor
            images = _resize(images, (factor * height, factor * width))
            halves.append(self.quant_conv(self.pixel_encoder(images.to(dtype))))
        return torch.cat(halves, dim=1)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) of the final grid for a picture of that size."""
        native, side = self.config.grid, self.config.image_size
        if height < 1 or width < 1 or height * native % side or width * native % side:
            unit = next(n for n in range(1, side + 1) if n * native % side == 0)
            raise ValueError(
                f"encode: height and width of a picture must be multiples of {unit} "
                f"pixels (native {side}×{side}), got {height}×{width}"
            )
        cells = height * native // side, width * native // side
        if self.semantic_encoder is None:
            return cells
        seen = self.semantic_encoder.grid(height, width)
        if (
            seen != cells
        ):  # patches of 14 in cells of 384 / 27: apart from 896 pixels on
            raise ValueError(
                f"encode: the semantic encoder must make a grid of {cells} from "
                f"{height}×{width} pixels, it makes {seen}; take a smaller picture"
            )
        return cells

    def schedule(
        self, grid: tuple[int, int], schedule: Schedule | None = None
    ) -> Scales:
        """Return the scales for a grid: those given, or the config's, stretched."""
        if schedule is not None:
            return as_pairs(schedule)
        return for_grid(self.scales, self.config.grid, grid)

    @torch.no_grad()
    def encode(
        self,
        images: processing.Pictures,
        *,
        scales: Schedule | None = None,
        size: Size | None = None,
        resize: str = "crop",
    ) -> Encoded:
        """Turn pictures into tokens.

        Args:
            images: PIL picture, uint8 array or tensor, a list of these, or a float
                tensor [B, 3, H, W] in [-1, 1]; see `processing.to_batch`.
            scales: Another schedule than the config's, for example `[16]` for one
                scale; side lengths or (height, width) pairs.
            size: Side or (height, width) to bring pictures to, image_size when None.
                Float tensors are never resized.
            resize: "crop", "pad" or "squash"; see `processing.fit`.

        Returns:
            `indices` [B, L] int64, L = Σ sh·sw, scale after scale, each row by row;
            `quantized` [B, Ds + Dp, h, w] float32, their sum; and the `scales`.

        Raises:
            TypeError, ValueError: What was given is no picture of a fitting size.
        """
        size = self.config.image_size if size is None else size
        batch = processing.to_batch(images, size, resize)
        features = self.features(batch.to(self.device))
        pairs = self.schedule(tuple(features.shape[-2:]), scales)
        indices, quantized = self.quantizer.quantize(features, pairs)
        return Encoded(indices, quantized, pairs)

    # tokens → features → pixels

    @torch.no_grad()
    def quantized(
        self,
        indices: Tensor,
        *,
        scales: Schedule | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """Sum the entries that indices name: [B, L] → [B, Ds + Dp, h, w] float32.

        Args:
            indices: [B, L] or [L] integers: every scale, or the first few, whole.
            scales: The schedule they were made with, the config's when None.
            grid: (height, width) of the final grid, the native one when None.

        Raises:
            TypeError: indices are no integers.
            IndexError: There is no such entry.
            ValueError: L ends inside a scale.
        """
        indices, pairs, grid = self._read(indices, scales, grid)
        return self.quantizer.lookup(indices, pairs, grid)

    def _read(
        self, indices: Any, schedule: Schedule | None, grid: tuple[int, int] | None
    ) -> tuple[Tensor, Scales, tuple[int, int]]:
        """Return indices as [B, L] on our device, their scales and the final grid."""
        indices = torch.as_tensor(indices)
        if indices.is_floating_point() or indices.dtype == torch.bool:
            raise TypeError(f"decode: indices must be integers, got {indices.dtype}")
        if indices.ndim == 1:
            indices = indices[None]
        if indices.ndim != 2:
            raise ValueError(
                f"decode: indices must be [B, L] or [L], got {list(indices.shape)}"
            )
        indices = indices.to(self.device, torch.int64)
        entries = self.config.codebook_size
        if indices.numel() and not -1 <= indices.min() <= indices.max() < entries:
            raise IndexError(
                f"decode: indices must be in [0, {entries}), or -1 for nothing, got "
                f"{int(indices.min())} to {int(indices.max())}"
            )
        grid = grid or (self.config.grid, self.config.grid)
        pairs = prefix(self.schedule(grid, schedule), indices.shape[1])
        return indices, pairs, grid

    def decode_pixels(self, quantized: Tensor) -> Tensor:
        """Redraw: [B, Ds + Dp, h, w] → [B, 3, H, W] about [-1, 1], not clamped."""
        grid = quantized.shape[-2:]
        look = quantized
        if self.config.pixel_dim:
            look = quantized[:, self.config.semantic_dim :]
        x = self.post_quant_conv(look.to(self.post_quant_conv.weight.dtype))
        side = self.config.output_size or self.config.image_size
        size = tuple(round(side * cells / self.config.grid) for cells in grid)
        return _resize(self.pixel_decoder(x), size)

    def decode_semantics(self, quantized: Tensor) -> Tensor:
        """Rebuild the teacher's features: [B, Ds + Dp, h, w] → [B, h·w, target]."""
        meaning = quantized
        if self.config.semantic_dim:
            meaning = quantized[:, : self.config.semantic_dim]
        meaning = meaning.to(self.post_quant_conv.weight.dtype)
        return self.semantic_target_head(self.semantic_decoder(meaning))

    @torch.no_grad()
    def decode(
        self,
        encoded: Encoded | Tensor | Sequence[int],
        *,
        scales: Schedule | None = None,
        grid: tuple[int, int] | None = None,
        output: str = "pil",
    ) -> list[Image.Image] | Tensor:
        """Turn tokens back into pictures.

        `decode(enc)` equals `decode(enc.indices)` bit for bit.

        Args:
            encoded: What `encode` returned, or its indices [B, L] or [L], or the
                first few whole scales of them.
            scales: For indices: the schedule they were made with.
            grid: For indices of a picture that had not the native size.
            output: "pil" for a list of B pictures, "pt" for a tensor.

        Returns:
            PIL pictures, or [B, 3, H, W] float32 in [-1, 1].

        Raises:
            TypeError: indices are no integers.
            IndexError: There is no such entry.
            ValueError: indices end inside a scale, or `output` is unknown.
        """
        if output not in ("pil", "pt"):
            raise ValueError(f"decode: output must be 'pil' or 'pt', got {output!r}")
        if isinstance(encoded, Encoded):
            quantized = encoded.quantized.to(self.device)
        else:
            quantized = self.quantized(encoded, scales=scales, grid=grid)
        images = self.decode_pixels(quantized).float().clamp(-1, 1)
        return processing.to_pil(images) if output == "pil" else images

    # what a language model reads

    @torch.no_grad()
    def understanding_features(
        self,
        source: processing.Pictures | Tensor | Encoded,
        strategy: str = "last",
        *,
        scales: Schedule | None = None,
        grid: tuple[int, int] | None = None,
        resize: str = "pad",
    ) -> Tensor:
        """Return the tokens' features in the form a language model reads.

        Args:
            source: Pictures (padded to a square unless `resize` says otherwise),
                indices [B, L] int64 of every scale, or what `encode` returned.
            strategy: "last": the sum over all scales, at the final grid (the paper's
                choice). "semantic": its semantic half. "residual": every scale's own
                entries, scale after scale. "all": for every scale the sum up to it,
                averaged over the cells of that scale's grid, scale after scale.
            scales: For pictures and indices: another schedule than the config's.
            grid: For indices of a picture that had not the native size.
            resize: For pictures: "pad", "crop" or "squash".

        Returns:
            float32; "last" [B, h·w, Ds + Dp], "semantic" [B, h·w, Ds], "residual" and
            "all" [B, L, Ds + Dp]. Positions row by row.
            Source: arXiv:2412.03069, table 8.

        Raises:
            ValueError: The strategy is unknown, or the model has no semantic half; else
                as `encode` and `decode`.
        """
        if strategy not in STRATEGIES:
            raise ValueError(
                f"understanding_features: strategy must be one of {list(STRATEGIES)}, "
                f"got {strategy!r}"
            )
        if strategy == "semantic" and not self.config.semantic_dim:
            raise ValueError(
                "understanding_features: strategy 'semantic' needs a semantic half, "
                "the model has none (semantic_dim is 0)"
            )
        encoded = self._as_encoded(source, scales, grid, resize)
        if strategy == "residual":
            return self.quantizer.entries(encoded.indices)
        if strategy == "all":
            return self._sums(encoded)
        features = encoded.quantized.flatten(2).transpose(1, 2)
        half = strategy == "semantic"
        return features[..., : self.config.semantic_dim] if half else features

    def _as_encoded(
        self,
        source: Any,
        schedule: Schedule | None,
        grid: tuple[int, int] | None,
        resize: str,
    ) -> Encoded:
        if isinstance(source, Encoded):
            return source
        integers = isinstance(source, Tensor) and not (
            source.is_floating_point() or source.dtype == torch.uint8
        )
        if not integers:
            return self.encode(source, scales=schedule, resize=resize)
        indices, pairs, grid = self._read(source, schedule, grid)
        return Encoded(indices, self.quantizer.lookup(indices, pairs, grid), pairs)

    def _sums(self, encoded: Encoded) -> Tensor:
        """Return for each scale the sum up to it at that scale's grid, end to end."""
        parts, total = [], torch.zeros_like(encoded.quantized)
        pieces = encoded.indices.split(token_counts(encoded.scales), dim=1)
        for scale, piece in zip(encoded.scales, pieces, strict=True):
            total = total + self.quantizer.lookup(piece, (scale,), encoded.grid)
            pooled = F.adaptive_avg_pool2d(total, scale)
            parts.append(pooled.flatten(2).transpose(1, 2))
        return torch.cat(parts, dim=1)

    # training

    def forward(
        self,
        images: Tensor,
        *,
        scales: Schedule | None = None,
        rng: random.Random | None = None,
    ) -> TokenFlowOutput:
        """Encode and decode with gradients, and the quantizer's losses.

        In training mode one scale but the first is left out with probability
        `config.scale_drop`.

        Args:
            images: [B, 3, H, W] float in [-1, 1].
            scales: Another schedule than the config's.
            rng: Draws the scale to leave out; Python's own generator when None.

        Returns:
            Both reconstructions, the losses and usage, see `TokenFlowOutput`.
        """
        pairs = self.schedule(self.grid(*images.shape[-2:]), scales)
        result = self.quantizer(self.features(images), pairs, rng)
        seen = result.quantized
        if not self.config.pixel_gradient:
            seen = seen.detach()
        return TokenFlowOutput(
            pixel_reconstruction=self.decode_pixels(seen),
            semantic_reconstruction=self.decode_semantics(result.quantized),
            vq_loss=result.vq_loss,
            commitment_loss=result.commitment_loss,
            entropy_loss=result.entropy_loss,
            usage=result.usage,
            indices=result.indices,
            quantized=result.quantized,
        )

    # files

    def fingerprint(self) -> str:
        """Return 16 hex digits that two models share iff their tokens mean the same.

        The SHA-256 of both books in float32 and of the settings that say how they are
        compared; the networks do not enter, so a retrained decoder keeps it.
        """
        return self.quantizer.fingerprint()

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike, *args: Any, **kwargs: Any
    ) -> "TokenFlowTokenizer":
        """Load a tokenizer: a shipped name such as "mini", a folder, or a hub id.

        A shipped name needs no network; write "./mini" for a folder of that name.
        Networks come in float32 unless `dtype=` says otherwise.

        Raises:
            ValueError: The weights are not those of this class and its config; the
                first differing names are in the message.
            OSError: There is no such model.
        """
        folder = checkpoint.local_folder(name)
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", torch.float32)
        load = super().from_pretrained
        return checkpoint.load_whole(load, folder, name, *args, **kwargs)

    @classmethod
    def from_upstream(
        cls, source: str | os.PathLike, config: TokenFlowConfig | None = None
    ) -> "TokenFlowTokenizer":
        """Load a published `.pt` file, safely; `save_pretrained` then converts it.

        Args:
            source: The file, see `checkpoint.read_upstream`.
            config: What it holds; recognised from its shapes when None.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is damaged or holds something else; the message names the
                file and the first differing weights.
        """
        weights = checkpoint.read_upstream(source)
        if config is None:
            config = checkpoint.recognise(weights, source)
        with torch.device("meta"):
            model = cls(config)
        kind = config.semantic_encoder["kind"]
        checkpoint.fill(model, weights, kind, source)
        return model.eval()

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *args: Any,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        """Write config.json and safetensors; a broken write leaves the old files.

        Args:
            save_directory: Folder, made if it is not there.
            args, kwargs: As in `PreTrainedModel.save_pretrained`.
            dtype: Store the networks in this dtype (the books stay float32).
        """
        state = kwargs.pop("state_dict", None) or self.state_dict()
        if dtype is not None:
            state = {
                key: value if key.startswith("quantizer.") else value.to(dtype)
                for key, value in state.items()
            }
        if kwargs.get("push_to_hub"):  # would be named after the folder on the way
            kwargs.setdefault("repo_id", Path(save_directory).resolve().name)
        with checkpoint.replacing(save_directory) as folder, quiet():
            super().save_pretrained(folder, *args, state_dict=state, **kwargs)


def _semantic_encoder(config: TokenFlowConfig) -> nn.Module:
    """Build the semantic encoder and check that its patches are the grid's cells."""
    kind = config.semantic_encoder["kind"]
    arguments = {k: v for k, v in config.semantic_encoder.items() if k != "kind"}
    encoder = semantic.SEMANTIC_ENCODERS[kind](**arguments)
    side = config.image_size
    if encoder.grid(side, side) != (config.grid, config.grid):
        raise ValueError(
            f"TokenFlowTokenizer: the semantic encoder must make a grid of "
            f"{config.grid}×{config.grid} from {side}×{side} pixels, it makes "
            f"{encoder.grid(side, side)}"
        )
    return encoder


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic to (height, width), as published; nothing where it fits already."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    wide = images.float()
    resized = F.interpolate(wide, size=size, mode="bicubic", align_corners=False)
    return resized.to(images.dtype)


register(TokenFlowConfig, TokenFlowTokenizer)
