"""The parts the vision transformers of this room are put together from.

Four published networks differ in how the attention stores its matrices and in
what stands between its layers, not in what a block does: x + attention(norm(x)),
then x + mlp(norm(x)). Here is one block, three attentions, two MLPs, the scaling of
the pictures, and the two ways in which a table of positions is stretched to a grid
it was not made for.
Plain torch modules, so that importing the tokenizer loads no model library.
Source: ViT, arXiv:2010.11929.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)


class InputScaling(nn.Module):
    """Pictures in [-1, 1] → what a pretrained network was trained on.

    Clamped to the range of a picture, then (x − mean) / std per channel, x in
    [0, 1]. The constants are buffers, saved with the weights.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer("scale", torch.tensor(std).reshape(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] → the same shape."""
        unit = ((images + 1) * 127.5).clamp(0, 255) / 255
        return (unit - self.shift) / self.scale


def check_images(owner: str, images: Tensor, least: int) -> None:
    """Raise ValueError unless images are [B, 3, H, W] with H, W ≥ `least`."""
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < least:
        raise ValueError(
            f"{owner}: images must be [B, 3, H, W] with H and W at least {least}, "
            f"got {list(images.shape)}"
        )


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Let every query look at every key, in `heads` slices of the width.

    Args:
        q, k, v: [B, L, W] each, W a multiple of `heads`.
        heads: Slices; scores are scaled by (W / heads)^-0.5.

    Returns:
        [B, L, W].
    """
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def check_heads(owner: str, width: int, heads: int) -> None:
    """Raise ValueError where `width` does not split into `heads` equal slices."""
    if heads < 1 or width < 1 or width % heads:
        raise ValueError(
            f"{owner}: width must be a positive multiple of heads, "
            f"got width {width} with {heads} heads"
        )


class Attention(nn.Module):
    """Self-attention whose query, key and value matrices are stored as one."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, W] → the same shape."""
        return self.proj(attend(*self.qkv(x).chunk(3, dim=-1), self.heads))


class SeparateAttention(nn.Module):
    """Self-attention with a matrix each for query, key and value, as in SigLIP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, W] → the same shape."""
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.out_proj(attend(q, k, v, self.heads))


class KeylessBiasAttention(nn.Module):
    """Self-attention with a bias for query and value, none for the key, as in BEiT.

    A key's bias would shift all scores of a query alike, which softmax ignores.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, W] → the same shape."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias)
        return self.proj(attend(*qkv.chunk(3, dim=-1), self.heads))


class QuickGELU(nn.Module):
    """x · σ(1.702 x), the approximation CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → the same shape."""
        return x * torch.sigmoid(1.702 * x)


class MLP(nn.Module):
    """Widen, bend, narrow again."""

    def __init__(self, width: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.activation = activation
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, W] → the same shape."""
        return self.fc2(self.activation(self.fc1(x)))


class GatedMLP(nn.Module):
    """w2(gelu(w0 x) · w1 x) behind a norm of its own, as in ViTamin."""

    def __init__(self, width: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.w0 = nn.Linear(width, hidden)
        self.w1 = nn.Linear(width, hidden)
        self.w2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, W] → the same shape."""
        x = self.norm(x)
        return self.w2(F.gelu(self.w0(x)) * self.w1(x))


class Block(nn.Module):
    """One transformer layer: attention, then MLP, each behind a norm and added."""

    def __init__(
        self, width: int, attention: nn.Module, mlp: nn.Module, eps: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = attention
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, W] → the same shape."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def run_blocks(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    """Send tokens [B, L, W] through the layers in order."""
    for block in blocks:
        x = block(x)
    return x


def new_table(*shape: int) -> nn.Parameter:
    """Return a learned table of positions or tokens, N(0, 0.02²)."""
    return nn.Parameter(torch.randn(shape) * 0.02)


def _stretch(
    table: Tensor, side: int, grid: tuple[int, int], resize: Callable[[Tensor], Tensor]
) -> Tensor:
    if grid == (side, side):
        return table
    wide = table.to(torch.promote_types(table.dtype, torch.float32))
    planes = wide.unflatten(0, (side, side)).permute(2, 0, 1)[None]
    return resize(planes)[0].flatten(1).t().to(table.dtype)


def stretch_by_scale(table: Tensor, side: int, grid: tuple[int, int]) -> Tensor:
    """Stretch positions as CLIP and the semantic decoder do: bicubic, by a factor.

    The factor per axis is (n + 0.1) / side, and it, not the ratio of the sizes,
    says where samples are taken; so the result differs a little from a resize by
    size. For a grid that is not square each axis has its own factor.
    Source: as in DINO, arXiv:2104.14294, which TokenFlow follows.

    Args:
        table: [side², W], row-major.
        side: Side of the square grid the table was made for.
        grid: (height, width) wanted; returned unchanged if (side, side).

    Returns:
        [height · width, W], the table's dtype; interpolated in float32 or wider.
    """
    factor = tuple((n + 0.1) / side for n in grid)
    return _stretch(
        table,
        side,
        grid,
        lambda p: F.interpolate(p, scale_factor=factor, mode="bicubic"),
    )


def stretch_by_size(table: Tensor, side: int, grid: tuple[int, int]) -> Tensor:
    """Stretch positions as today's SigLIP does: bicubic, to the size.

    TokenFlow uses SigLIP at its own grid alone; elsewhere this is the rule of the
    Hugging Face implementation (`interpolate_pos_encoding`).

    Args, Returns:
        As in `stretch_by_scale`.
    """
    return _stretch(
        table, side, grid, lambda p: F.interpolate(p, size=grid, mode="bicubic")
    )
