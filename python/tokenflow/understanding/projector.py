"""From the width of an image token's features to that of a language model's words.

Source: LLaVA-1.5, arXiv:2310.03744 (`mlp2x_gelu`), as the published models use it.
"""

from torch import nn

PROJECTORS = ("mlp2x_gelu",)


class Projector(nn.Sequential):
    """Linear, exact GELU, Linear: [..., in_width] → [..., out_width].

    Args:
        in_width: Width of a feature: Ds + Dp, or Ds with the "semantic" strategy.
        out_width: Width of the language model's embeddings.
    """

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__(
            nn.Linear(in_width, out_width), nn.GELU(), nn.Linear(out_width, out_width)
        )
