"""What a teacher sees in a picture, as one vector, for a Fréchet distance.

Its distances are no FID: they compare only with those of the same teacher.
"""

import torch
from torch import Tensor, nn

from tokenflow.tokenizer.processing import from_uint8


class TeacherFeatures:
    """uint8 pictures to the mean of a teacher's patch tokens.

    Args:
        teacher: [B, 3, H, W] in [-1, 1] -> [B, tokens, D]; has `width`, which is D.
        name: What results call it.
    """

    def __init__(self, teacher: nn.Module, name: str) -> None:
        self.teacher = teacher
        self.name = name
        self.width: int = teacher.width

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> float32 [B, D]."""
        tokens = self.teacher(from_uint8(images))
        return tokens.float().mean(dim=1)
