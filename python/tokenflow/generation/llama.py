"""The language model: Llama with norms behind its branches, queries and keys normed.

Each layer adds RMSNorm(attention(x)) and then RMSNorm(MLP(x)), where Llama would norm
what goes into a branch; queries and keys are normed over each head before they are
rotated. Everything else is taken from `transformers`: norms, MLP, rotation, and its
attention functions, of which the fused one is the default. `Cache` keeps keys and
values of positions that no later one changes.
Source: the published text-to-image code; post-norm with normed queries and keys is
Chameleon's, arXiv:2405.09818.
"""

import tokenflow._transformers  # noqa: F401, I001  first: it settles what is imported

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

Rotary = tuple[Tensor, Tensor]  # cosines and sines, [B, T, head width] each


class Cache:
    """Keys and values of the positions so far, and room for the next scale's.

    A pass over a scale writes behind what is kept. Where more passes over that scale
    follow, `hold` sets its first keys aside and `settle` puts them back: later scales
    look at those, as if the other passes had never been.

    Args:
        layers: Keys and values of the prompt, each [U, heads, P, d].
        rows: [R] int64, the prompt that each row continues.
        room: Positions to come.
    """

    def __init__(
        self, layers: list[tuple[Tensor, Tensor]], rows: Tensor, room: int
    ) -> None:
        self.length = layers[0][0].shape[2]  # positions kept
        self.pending = 0  # positions of the current scale, behind those
        self.kept = [
            (_spread(keys, rows, room), _spread(values, rows, room))
            for keys, values in layers
        ]
        self.held: list[tuple[Tensor, Tensor]] = []

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write one layer's keys of the current scale; return them behind all kept."""
        self.pending = keys.shape[2]
        end = self.length + self.pending
        mine = self.kept[layer]
        for whole, part in zip(mine, (keys, values), strict=True):
            whole[:, :, self.length : end] = part
        return mine[0][:, :, :end], mine[1][:, :, :end]

    def hold(self) -> None:
        """Set the keys just written aside."""
        here = slice(self.length, self.length + self.pending)
        self.held = [
            (k[:, :, here].clone(), v[:, :, here].clone()) for k, v in self.kept
        ]

    def settle(self) -> None:
        """Keep the current scale for good: what was held, or what was written last."""
        here = slice(self.length, self.length + self.pending)
        for (keys, values), (k, v) in zip(self.kept, self.held, strict=False):
            keys[:, :, here], values[:, :, here] = k, v
        self.held = []
        self.length += self.pending


def _spread(prompt: Tensor, rows: Tensor, room: int) -> Tensor:
    """Return [U, h, P, d] as [R, h, P + room, d], the end not written."""
    _, heads, length, width = prompt.shape
    whole = prompt.new_empty(len(rows), heads, length + room, width)
    whole[:, :, :length] = prompt[rows]
    return whole


class Attention(nn.Module):
    """Attention with normed queries and keys.

    Args:
        config: Llama's.
        layer: Number of the layer.
        norm_eps: Of the two norms.
    """

    def __init__(self, config: LlamaConfig, layer: int, norm_eps: float) -> None:
        super().__init__()
        width, heads = config.hidden_size, config.num_attention_heads
        self.config, self.layer = config, layer
        self.head = width // heads
        self.num_key_value_groups = heads // config.num_key_value_heads
        pairs = config.num_key_value_heads * self.head
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, pairs, bias=False)
        self.v_proj = nn.Linear(width, pairs, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.query_norm = LlamaRMSNorm(self.head, eps=norm_eps)
        self.key_norm = LlamaRMSNorm(self.head, eps=norm_eps)

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        mask: Tensor | None,
        cache: Cache | None,
        kept: list[tuple[Tensor, Tensor]] | None,
    ) -> Tensor:
        """[B, T, width] → [B, T, width]; see `Llama.forward`."""
        queries, keys, values = (
            part(x).unflatten(-1, (-1, self.head))
            for part in (self.q_proj, self.k_proj, self.v_proj)
        )
        queries = self.query_norm(queries).transpose(1, 2)
        keys, values = self.key_norm(keys).transpose(1, 2), values.transpose(1, 2)
        queries, keys = apply_rotary_pos_emb(queries, keys, *rotary)
        if kept is not None:
            kept.append((keys, values))
        if cache is not None:
            keys, values = cache.write(self.layer, keys, values)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        found, _ = attend(
            self,
            queries,
            keys,
            values,
            mask,
            dropout=0.0,
            scaling=self.head**-0.5,
            is_causal=False,
        )
        return self.o_proj(found.flatten(2))


class Layer(GradientCheckpointingLayer):
    """Attention, then MLP, each normed before it is added.

    Args:
        config: Llama's.
        layer: Number of the layer.
        norm_eps: Of the norms of queries and keys.
    """

    def __init__(self, config: LlamaConfig, layer: int, norm_eps: float) -> None:
        super().__init__()
        self.attention = Attention(config, layer, norm_eps)
        self.mlp = LlamaMLP(config)
        self.attention_norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp_norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        rotary: Rotary,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        kept: list[tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """[B, T, width] → [B, T, width]; see `Llama.forward`."""
        x = x + self.attention_norm(self.attention(x, rotary, mask, cache, kept))
        return x + self.mlp_norm(self.mlp(x))


class Llama(nn.Module):
    """The stack of layers and the final norm.

    Args:
        config: Llama's.
        norm_eps: Of the norms of queries and keys.
    """

    def __init__(self, config: LlamaConfig, norm_eps: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Layer(config, number, norm_eps)
            for number in range(config.num_hidden_layers)
        )
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.config = config
        with torch.device("cpu"):  # no weights: stays exact whatever the model becomes
            self._rotary = (LlamaRotaryEmbedding(config),)

    def forward(
        self,
        x: Tensor,
        where: Tensor,
        seen: Tensor | None = None,
        cache: Cache | None = None,
        kept: list[tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """Run the layers.

        Args:
            x: [B, T, width].
            where: [T] or [B, T] int64, numbers in the sequence; or [B or 1, T, 2]
                float32, rows and columns; see `places`.
            seen: [B or 1, 1, T or 1, keys] bool, who may look at whom; all where None.
            cache: Keys before these, which those of x are written behind.
            kept: Takes keys and values of every layer.

        Returns:
            [B, T, width], normed.
        """
        rotary = self._turned(x, where)
        mask = None
        if seen is not None:
            # added, and finite: who may look at nothing (padding) looks at everything
            least = torch.finfo(x.dtype).min
            mask = torch.zeros_like(seen, dtype=x.dtype).masked_fill(~seen, least)
            mask = mask.expand(len(x), 1, x.shape[1], -1)
        for layer in self.layers:
            x = layer(x, rotary, mask, cache, kept)
        return self.norm(x)

    def _turned(self, x: Tensor, where: Tensor) -> Rotary:
        """Return what turns queries and keys."""
        usual = self._rotary[0]
        if where.ndim < 3:
            return usual(x, where.view(-1, x.shape[1]))
        rates = usual.inv_freq[::2].to(where)  # rows have as many pairs as columns
        angles = (where[..., None] * rates).flatten(2).repeat(1, 1, 2)
        size = usual.attention_scaling
        return (angles.cos() * size).to(x.dtype), (angles.sin() * size).to(x.dtype)
