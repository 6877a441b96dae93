"""Meaning in and out: the encoders whose features are quantized, and their decoder.

An encoder is a published vision transformer, started from its published weights
and trained on with the tokenizer; what it hands over is one feature per patch.
The decoder is a small transformer that, from quantized features, predicts what the
frozen original of the encoder (the teacher) says about the picture. A `TaskHead`
narrows or widens on either side. All parts are plain torch modules, written here:
no model library is needed to run a tokenizer.

    images in [-1, 1] → encoder → [B, h·w, width] → TaskHead → [B, h·w, 32]
    quantized [B, 32, h, w] → SemanticDecoder → [B, h·w, width] → TaskHead

Sources: TokenFlow, arXiv:2412.03069; CLIP, arXiv:2103.00020; SigLIP,
arXiv:2303.15343; BEiT v2, arXiv:2208.06366. ViTamin has a file of its own.
"""

import torch
from torch import Tensor, nn

from tokenflow.tokenizer.transformer import (
    MLP,
    SIGLIP_MEAN,
    SIGLIP_STD,
    Attention,
    Block,
    InputScaling,
    KeylessBiasAttention,
    QuickGELU,
    SeparateAttention,
    check_heads,
    check_images,
    new_table,
    run_blocks,
    stretch_by_scale,
    stretch_by_size,
)
from tokenflow.tokenizer.vitamin import VitaminEncoder


class ClipEncoder(nn.Module):
    """CLIP's vision transformer, up to its patch tokens.

    The pictures go in as they come, in [-1, 1] and without CLIP's mean and std:
    so TokenFlow-B was trained, and its weights expect it. A class token runs along
    and is dropped at the end; CLIP's projection is not part of the encoder.
    Source: arXiv:2103.00020.

    Args:
        width: Features per token.
        layers: Transformer layers.
        heads: Attention heads; width must be a multiple.
        patch: Side of a patch in pixels.
        image_size: Side of the square picture the position table is made for;
            on other grids positions are interpolated (`stretch_by_scale`), each
            axis by its own factor.

    Raises:
        ValueError: width is no multiple of heads, the table would be empty, or (in
            `forward`) the pictures do not fit.
    """

    def __init__(
        self,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        patch: int = 16,
        image_size: int = 224,
    ) -> None:
        super().__init__()
        check_heads("ClipEncoder", width, heads)
        self.width, self.patch = width, patch
        self.side = _native_side("ClipEncoder", image_size, patch)
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = new_table(width)
        self.positional_embedding = new_table(self.side**2 + 1, width)
        self.ln_pre = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            Block(
                width,
                Attention(width, heads),
                MLP(width, 4 * width, QuickGELU()),
                eps=1e-5,
            )
            for _ in range(layers)
        )
        self.ln_post = nn.LayerNorm(width)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the tokens per column and row of a picture; whole patches only."""
        return height // self.patch, width // self.patch

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, h·w, width], rows first."""
        check_images("ClipEncoder", images, self.patch)
        table = self.positional_embedding
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = x + stretch_by_scale(table[1:], self.side, self.grid(*images.shape[2:]))
        first = (self.class_embedding + table[0]).expand(x.shape[0], 1, -1)
        x = self.ln_pre(torch.cat([first, x], dim=1))
        return self.ln_post(run_blocks(self.blocks, x)[:, 1:])


class PoolingHead(nn.Module):
    """SigLIP's attention pooling, held for its weights alone: never run here.

    Published checkpoints carry it, frozen and without influence on any token.
    """

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.probe = new_table(1, 1, width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.layernorm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = MLP(width, mlp_width, nn.GELU(approximate="tanh"))


class SiglipEncoder(nn.Module):
    """SigLIP's vision transformer, up to the last layer but one.

    The features are those that enter the last layer. That layer, the norm behind it
    and the pooling head are kept, frozen and not computed, so that a published
    checkpoint goes in and out complete.
    Source: arXiv:2303.15343; SO400M/14 at 384 in TokenFlow-XL.

    Args:
        width: Features per token.
        layers: Transformer layers of the published network, the last included;
            layers − 1 are run.
        heads: Attention heads; width must be a multiple.
        mlp_width: Hidden features of each MLP.
        patch: Side of a patch in pixels.
        image_size: Side of the square picture the position table is made for;
            TokenFlow uses no other. On other grids positions are interpolated
            (`stretch_by_size`).

    Raises:
        ValueError: width is no multiple of heads, there is no layer, the table would
            be empty, or (in `forward`) the pictures do not fit.
    """

    def __init__(
        self,
        width: int = 1152,
        layers: int = 27,
        heads: int = 16,
        mlp_width: int = 4304,
        patch: int = 14,
        image_size: int = 384,
    ) -> None:
        super().__init__()
        check_heads("SiglipEncoder", width, heads)
        if layers < 1:
            raise ValueError(f"SiglipEncoder: layers must be ≥ 1, got {layers}")
        self.width, self.patch = width, patch
        self.side = _native_side("SiglipEncoder", image_size, patch)
        self.scaling = InputScaling(SIGLIP_MEAN, SIGLIP_STD)
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch)
        self.position_embedding = new_table(self.side**2, width)
        self.blocks = nn.ModuleList(
            Block(
                width,
                SeparateAttention(width, heads),
                MLP(width, mlp_width, nn.GELU(approximate="tanh")),
                eps=1e-6,
            )
            for _ in range(layers)
        )
        self.post_layernorm = nn.LayerNorm(width, eps=1e-6)
        self.head = PoolingHead(width, heads, mlp_width)
        for unused in (self.blocks[-1], self.post_layernorm, self.head):
            unused.requires_grad_(False)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the tokens per column and row of a picture; whole patches only."""
        return height // self.patch, width // self.patch

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → [B, h·w, width], rows first."""
        check_images("SiglipEncoder", images, self.patch)
        x = self.patch_embedding(self.scaling(images)).flatten(2).transpose(1, 2)
        grid = self.grid(*images.shape[2:])
        x = x + stretch_by_size(self.position_embedding, self.side, grid)
        return run_blocks(self.blocks[:-1], x)


SEMANTIC_ENCODERS: dict[str, type[nn.Module]] = {
    "clip": ClipEncoder,
    "siglip": SiglipEncoder,
    "vitamin": VitaminEncoder,
}


class SemanticDecoder(nn.Module):
    """Quantized semantic halves → features for every cell.

    A transformer in the manner of BEiT v2: a class token runs along and is
    dropped, then every token is normalised.
    Source: arXiv:2208.06366, arXiv:2412.03069.

    Args:
        in_channels: Width of the semantic half.
        width: Features per token.
        grid: Side of the square map the position table is made for; on other maps
            positions are interpolated (`stretch_by_scale`).
        depth: Transformer layers.
        heads: Attention heads; width must be a multiple.

    Raises:
        ValueError: width is no multiple of heads, grid < 1, or (in `forward`) the
            map does not fit.
    """

    def __init__(
        self,
        in_channels: int = 32,
        width: int = 768,
        grid: int = 14,
        depth: int = 3,
        heads: int = 12,
    ) -> None:
        super().__init__()
        check_heads("SemanticDecoder", width, heads)
        self.width = width
        self.side = _native_side("SemanticDecoder", grid, 1)
        self.patch_embed = nn.Conv2d(in_channels, width, 1)
        self.cls_token = new_table(1, 1, width)
        self.pos_embed = new_table(1, self.side**2 + 1, width)
        self.blocks = nn.ModuleList(
            Block(
                width,
                KeylessBiasAttention(width, heads),
                MLP(width, 4 * width, nn.GELU()),
                eps=1e-6,
            )
            for _ in range(depth)
        )
        self.fc_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, quantized: Tensor) -> Tensor:
        """[B, in_channels, h, w] → [B, h·w, width], rows first."""
        channels = self.patch_embed.in_channels
        if quantized.ndim != 4 or quantized.shape[1] != channels:
            raise ValueError(
                f"SemanticDecoder: quantized must be [B, {channels}, h, w], "
                f"got {list(quantized.shape)}"
            )
        table = self.pos_embed[0]
        x = self.patch_embed(quantized).flatten(2).transpose(1, 2)
        x = x + stretch_by_scale(table[1:], self.side, tuple(quantized.shape[2:]))
        first = (self.cls_token[0, 0] + table[0]).expand(x.shape[0], 1, -1)
        x = run_blocks(self.blocks, torch.cat([first, x], dim=1))
        return self.fc_norm(x[:, 1:])


class TaskHead(nn.Sequential):
    """Linear, tanh, Linear: [..., width] → [..., out].

    Between an encoder and the quantizer (out = 32), and between the semantic
    decoder and the teacher's features.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, out))


def _native_side(owner: str, size: int, patch: int) -> int:
    if patch < 1 or size // patch < 1:
        raise ValueError(
            f"{owner}: the native size must hold at least one patch, "
            f"got size {size} with patches of {patch}"
        )
    return size // patch
