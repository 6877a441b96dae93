"""What a tokenizer is trained against, as one value that a step asks for.

The decoder's side: the redrawn picture against the picture (by values, by looks, and
by a discriminator's word), the rebuilt features against the teacher's, and what the
quantizer asks for. The discriminator's side: real against redrawn.
Source: TokenFlow, arXiv:2412.03069, section 3.2; weights of table 11 and, where the
paper is silent or differs (a cosine for the semantic term), of the published code.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenflow.training import perceptual
from tokenflow.training.discriminator import (
    GAMES,
    adaptive_weight,
    adopt_weight,
    discriminator_loss,
    generator_loss,
)

CHOICES = {
    "reconstruction": ("l2", "l1"),
    "perceptual": perceptual.KINDS,
    "adversarial": GAMES,
    "semantic": ("cosine", "l2"),
}


@dataclass(frozen=True)
class LossConfig:
    """Which terms there are, and what they weigh.

    Args:
        reconstruction: "l2" (mean squared error) or "l1" (mean absolute error).
        reconstruction_weight: Its weight.
        perceptual: "lpips", "stand-in" (ours, needs no files; see `perceptual`), or
            "none".
        perceptual_weight: Its weight; 0 leaves it out.
        vgg: For "lpips": path of torchvision's VGG16 weights.
        heads: For "lpips": path of the linear heads, v0.1.
        adversarial: The game with the discriminator: "hinge", "vanilla" or
            "non_saturating".
        adversarial_weight: Its weight for both sides; 0 leaves it out.
        adversarial_start: First step, counted from 1, at which it is played.
        adaptive: Multiply the decoder's side of it by `adaptive_weight`.
        semantic: "cosine" (mean of 1 − cosine, as the published code) or "l2" (mean
            squared error, as the paper says).
        semantic_weight: Its weight; 0 leaves it out.

    Raises:
        ValueError: A choice is unknown, or a weight is negative or not finite.
    """

    reconstruction: str = "l2"
    reconstruction_weight: float = 1.0
    perceptual: str = "lpips"
    perceptual_weight: float = 1.0
    vgg: str | None = None
    heads: str | None = None
    adversarial: str = "hinge"
    adversarial_weight: float = 0.5
    adversarial_start: int = 20000
    adaptive: bool = False
    semantic: str = "cosine"
    semantic_weight: float = 1.0

    def __post_init__(self) -> None:  # noqa: D105
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"LossConfig: {name} must be one of {list(known)}, "
                    f"got {getattr(self, name)!r}"
                )
            weight = getattr(self, f"{name}_weight")
            if not 0 <= weight < math.inf:
                raise ValueError(
                    f"LossConfig: {name}_weight must be finite and at least 0, "
                    f"got {weight}"
                )
        if self.adversarial_start < 1:
            raise ValueError(
                "LossConfig: adversarial_start must be at least 1, as steps count "
                f"from 1, got {self.adversarial_start}"
            )


class Output(Protocol):
    """What is read of `tokenflow.tokenizer.model.TokenFlowOutput`."""

    pixel_reconstruction: Tensor
    semantic_reconstruction: Tensor
    vq_loss: Tensor
    commitment_loss: Tensor
    entropy_loss: Tensor


class Discriminator(Protocol):
    """A `PatchDiscriminator`, bare or wrapped: pictures [B, 3, H, W] → logits."""

    def __call__(self, images: Tensor, /) -> Tensor: ...  # noqa: D102


class TokenizerLoss(nn.Module):
    """Both sides of a training step, in float32 also under autocast.

    It holds the perceptual network, which is frozen and must be on the pictures'
    device; nothing in it is trained, and no checkpoint needs it.

    Args:
        config: Terms and weights.
        measure: Takes two pictures [B, 3, H, W] and returns [B]; by default what
            `config.perceptual` names.

    Raises:
        FileNotFoundError, ValueError: LPIPS is to be read from files and cannot; see
            `LPIPS.from_files`.
    """

    def __init__(self, config: LossConfig, measure: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        if measure is None and config.perceptual_weight > 0:
            measure = perceptual.make(config.perceptual, config.vgg, config.heads)
        self.perceptual = measure

    def plays(self, step: int) -> bool:
        """Tell whether the discriminator is asked at `step`, counted from 1."""
        return self._adversarial_weight(step) > 0

    def _adversarial_weight(self, step: int) -> float:
        config = self.config
        return adopt_weight(config.adversarial_weight, step, config.adversarial_start)

    def generator(
        self,
        output: Output,
        images: Tensor,
        target: Tensor | None,
        *,
        step: int,
        discriminator: Discriminator | None = None,
        last_layer: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the tokenizer's terms by name, as they are, and their sum as "loss".

        The gradient reaches the discriminator's weights too: clear it before the
        discriminator's own step. A DistributedDataParallel around it would average
        that gradient in vain; its module alone does as well here.

        Args:
            output: What the model returned for `images`; its losses come weighted.
            images: [B, 3, H, W] in [-1, 1].
            target: The teacher's features [B, h·w, width]; None for no semantic term.
            step: Counted from 1.
            discriminator: Asked about the redrawn pictures once `plays(step)`.
            last_layer: Weight of the decoder's last convolution; for `adaptive`.

        Returns:
            Scalars: "reconstruction", "perceptual", "semantic", "adversarial" (0 where
            it is left out), "adversarial_weight" (all factors together), "vq",
            "commitment", "entropy", unweighted but for the last three; and "loss",
            the weighted sum, the one to be differentiated.

        Raises:
            ValueError: The game is on and has no discriminator, `adaptive` has no
                last layer, or shapes differ.
        """
        config = self.config
        redrawn, images = output.pixel_reconstruction.float(), images.float()
        _check_shapes("pixel_reconstruction", redrawn, "images", images)
        zero = redrawn.new_zeros(())
        terms = dict.fromkeys(
            ("reconstruction", "perceptual", "semantic", "adversarial"), zero
        )
        with torch.autocast(images.device.type, enabled=False):
            squared = config.reconstruction == "l2"
            difference = F.mse_loss if squared else F.l1_loss
            terms["reconstruction"] = difference(redrawn, images)
            if self.perceptual is not None and config.perceptual_weight > 0:
                terms["perceptual"] = self.perceptual(images, redrawn).float().mean()
            if target is not None and config.semantic_weight > 0:
                rebuilt = output.semantic_reconstruction.float()
                terms["semantic"] = self._semantic(rebuilt, target.float())
            seen = config.reconstruction_weight * terms["reconstruction"]
            seen = seen + config.perceptual_weight * terms["perceptual"]
            weight = zero + self._adversarial_weight(step)
            if self.plays(step):
                if discriminator is None:
                    raise ValueError(
                        f"TokenizerLoss: discriminator must be given from step "
                        f"{config.adversarial_start} on, got None at step {step}"
                    )
                fake = discriminator(redrawn).float()
                terms["adversarial"] = generator_loss(config.adversarial, fake)
                if config.adaptive:
                    weight = weight * self._adaptive(seen, terms, last_layer)
            terms |= {
                "vq": output.vq_loss.float(),
                "commitment": output.commitment_loss.float(),
                "entropy": output.entropy_loss.float(),
            }
            loss = seen + config.semantic_weight * terms["semantic"]
            loss = loss + weight * terms["adversarial"]
            loss = loss + terms["vq"] + terms["commitment"] + terms["entropy"]
        return {"loss": loss, **terms, "adversarial_weight": weight}

    def _semantic(self, rebuilt: Tensor, target: Tensor) -> Tensor:
        _check_shapes("semantic_reconstruction", rebuilt, "target", target)
        target = target.detach()  # the teacher learns nothing here
        if self.config.semantic == "l2":
            return F.mse_loss(rebuilt, target)
        return (1 - F.cosine_similarity(rebuilt, target, dim=-1)).mean()

    def _adaptive(
        self, seen: Tensor, terms: dict[str, Tensor], last_layer: Tensor | None
    ) -> Tensor:
        if last_layer is None:
            raise ValueError(
                "TokenizerLoss: last_layer must be given with adaptive=True, got None"
            )
        return adaptive_weight(seen, terms["adversarial"], last_layer)

    def discriminator(
        self,
        images: Tensor,
        reconstruction: Tensor,
        *,
        step: int,
        discriminator: Discriminator,
    ) -> dict[str, Tensor]:
        """Return the discriminator's loss as "loss", and what it said.

        As published the loss is multiplied by `adversarial_weight`. Before the game
        starts the discriminator is not asked and the loss is a plain 0 without a
        graph: skip its step while `plays(step)` is False.

        Args:
            images: [B, 3, H, W] in [-1, 1].
            reconstruction: The same shape; no gradient flows back to it.
            step: Counted from 1.
            discriminator: Asked twice, about either batch of pictures.

        Returns:
            Scalars: "loss"; "discriminator", the same unweighted; "real" and "fake",
            the mean logits, without gradient.

        Raises:
            ValueError: The shapes differ.
        """
        images, redrawn = images.float().detach(), reconstruction.float().detach()
        _check_shapes("reconstruction", redrawn, "images", images)
        if not self.plays(step):
            zero = images.new_zeros(())
            return dict.fromkeys(("loss", "discriminator", "real", "fake"), zero)
        with torch.autocast(images.device.type, enabled=False):
            real, fake = (discriminator(x).float() for x in (images, redrawn))
            loss = discriminator_loss(self.config.adversarial, real, fake)
        return {
            "loss": self._adversarial_weight(step) * loss,
            "discriminator": loss,
            "real": real.detach().mean(),
            "fake": fake.detach().mean(),
        }


def _check_shapes(name: str, found: Tensor, other: str, wanted: Tensor) -> None:
    if found.shape != wanted.shape:
        raise ValueError(
            f"TokenizerLoss: {name} must have the shape of {other}, "
            f"{list(wanted.shape)}, got {list(found.shape)}"
        )
