"""Teachers: frozen networks whose features the semantic half learns to rebuild.

A teacher sees the picture the tokenizer sees, scaled the way it was trained, and says
one vector per patch. CLIP's go through its visual projection, ViTamin's are its
tokens, SigLIP's are those that enter its last layer; a model of `tokenflow train
teacher` gives its patches as they are compared with words. The tokenizer's semantic
encoder has the same classes, and may start as its teacher's equal.
Source: TokenFlow, arXiv:2412.03069, section 3 and table 5.
"""

import os
from typing import Any

import torch
from torch import Tensor, nn

from tokenflow.tokenizer import model_files, towers
from tokenflow.tokenizer.semantic import SEMANTIC_ENCODERS
from tokenflow.tokenizer.transformer import (
    CLIP_MEAN,
    CLIP_STD,
    SIGLIP_MEAN,
    SIGLIP_STD,
    InputScaling,
)

KINDS = (*SEMANTIC_ENCODERS, "contrastive")


class Teacher(nn.Module):
    """A frozen picture encoder: one float32 vector per patch.

    It is always in eval mode, its parameters take no gradient, and none flows through
    it; `train()` changes nothing.

    Args:
        kind: One of `KINDS`.
        encoder: Pictures → tokens [B, h·w, encoder.width].
        head: Tokens → what the teacher says, None if that is the tokens.
        width: Features the head gives; None where there is no head.
        scaling: Pictures in [-1, 1] → what the encoder takes; None where the encoder
            does that itself.
        options: What `new_teacher` makes an equal one of; None where that is unknown.
    """

    def __init__(
        self,
        kind: str,
        encoder: nn.Module,
        head: nn.Module | None = None,
        width: int | None = None,
        scaling: nn.Module | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.kind, self.options = kind, options
        self.scaling = scaling or nn.Identity()
        self.encoder = encoder
        self.head = head or nn.Identity()
        self.width: int = encoder.width if width is None else width
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode, whatever `mode` says."""
        return super().train(False)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the tokens per column and row of a picture."""
        return self.encoder.grid(height, width)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return what is on each patch.

        Args:
            images: [B, 3, H, W] float in [-1, 1].

        Returns:
            [B, h·w, width] float32, rows first.

        Raises:
            TypeError: The pictures are no floats.
            ValueError: They do not fit the encoder.
        """
        if not images.is_floating_point():
            raise TypeError(
                f"Teacher: images must be floats in [-1, 1], got {images.dtype}"
            )
        return self.head(self.encoder(self.scaling(images.float()))).float()


def load_teacher(
    source: str | os.PathLike, kind: str | None = None, *, revision: str | None = None
) -> Teacher:
    """Read a teacher: one that ships, a folder, a file of weights, or from the hub.

    Args:
        source: "teacher-mini", which ships; a Hugging Face folder of CLIP (with its
            visual projection) or SigLIP, with or without their text halves; a timm or
            open_clip folder of ViTamin-XL; a folder that `tokenflow train teacher`
            wrote; one file of weights, with its config.json beside it; or the id of any
            of these on the hub. With HF_HUB_OFFLINE set, an id is read from the local
            cache alone.
        kind: "clip", "siglip", "vitamin" or "contrastive", where another would be an
            error; recognised when None.
        revision: Of a model on the hub.

    Raises:
        OSError: There is no such model, or it is out of reach.
        ValueError: It is of another kind or layout, damaged, or incomplete; the
            message names what differs.
    """
    if kind not in (None, *KINDS):
        raise ValueError(
            f"load_teacher: kind must be one of {list(KINDS)}, got {kind!r}"
        )
    files = model_files.find(source, revision)
    ours = files.config.get("model_type") == "tokenflow_image_text"
    if kind == "contrastive" and not ours:
        raise ValueError(
            f"load_teacher: {source} must be a folder that `tokenflow train teacher` "
            "wrote, its config.json says otherwise"
        )
    if ours and kind in (None, "contrastive"):
        return _contrastive(files)
    tower = towers.read(files, kind)
    encoder = _encoder(tower, files.source)
    options = {
        "kind": tower.kind,
        "encoder": {"kind": tower.kind, **tower.arguments},
        "head": None,
    }
    if tower.kind != "clip":
        return Teacher(tower.kind, encoder, options=options)
    if tower.projection is None:
        raise ValueError(
            f"load_teacher: {source} must hold CLIP's visual projection "
            "(visual_projection.weight) beside the tower"
        )
    out, width = tower.projection.shape
    if width != encoder.width:
        raise ValueError(
            f"load_teacher: {source}: the visual projection must take "
            f"{encoder.width} features, got {[out, width]}"
        )
    head = nn.Linear(width, out, bias=False)
    head.weight = nn.Parameter(tower.projection.contiguous())
    options["head"] = {"width": out, "bias": False}
    scaling = InputScaling(CLIP_MEAN, CLIP_STD)
    return Teacher("clip", encoder, head, out, scaling, options)


def new_teacher(options: dict[str, Any]) -> Teacher:
    """Make a teacher with weights of its own, to be filled with another's.

    Args:
        options: `Teacher.options` of that other, plain values: "kind"; "encoder", its
            kind and arguments; "head", its "width" and "bias", or None.

    Raises:
        KeyError: Options or a kind are not there.
    """
    arguments = dict(options["encoder"])
    encoder = SEMANTIC_ENCODERS[arguments.pop("kind")](**arguments)
    head, width = options["head"], None
    if head is not None:
        width = head["width"]
        head = nn.Linear(encoder.width, width, bias=head["bias"])
    kind = options["kind"]
    scaling = InputScaling(CLIP_MEAN, CLIP_STD) if kind == "clip" else None
    return Teacher(kind, encoder, head, width, scaling, options)


def _encoder(tower: towers.Tower, source: str) -> nn.Module:
    """Build the encoder on no memory and give it the tower's weights."""
    with torch.device("meta"):
        encoder = SEMANTIC_ENCODERS[tower.kind](**tower.arguments)
    weights, expected = dict(tower.weights), encoder.state_dict()
    scaling = {
        "siglip": InputScaling(SIGLIP_MEAN, SIGLIP_STD),
        "vitamin": InputScaling(CLIP_MEAN, CLIP_STD),
    }.get(tower.kind)
    if scaling is not None:
        weights |= {f"scaling.{k}": v for k, v in scaling.state_dict().items()}
    if tower.kind == "siglip":  # a tower may come without what no feature depends on
        unused = ("head.", "post_layernorm.")
        for name in expected.keys() - weights.keys():
            if name.startswith(unused):
                weights[name] = torch.zeros(expected[name].shape)
    towers.check_weights(f"load_teacher: {source}", weights, expected)
    encoder.load_state_dict(weights, assign=True)
    return encoder


def _contrastive(files: model_files.Files) -> Teacher:
    from tokenflow.tokenizer.contrastive import ImageTextModel

    model = ImageTextModel.from_pretrained(files.folder)
    options = {
        "kind": "contrastive",
        "encoder": model.encoder_options,
        "head": {"width": model.width, "bias": True},
    }
    return Teacher(
        "contrastive",
        model.image_encoder,
        model.patch_head,
        model.width,
        options=options,
    )


def start_from_teacher(model: nn.Module, teacher: Teacher) -> None:
    """Give a tokenizer's semantic encoder the weights of its teacher's encoder.

    Args:
        model: A `TokenFlowTokenizer`; changed in place.
        teacher: Of the same kind and sizes as the model's semantic encoder.

    Raises:
        ValueError: Kind or shapes differ; the message names the first of them.
    """
    student = model.semantic_encoder
    if type(student) is not type(teacher.encoder):
        raise ValueError(
            "start_from_teacher: the semantic encoder must be of the teacher's class, "
            f"got {type(student).__name__} for {type(teacher.encoder).__name__}"
        )
    weights = teacher.encoder.state_dict()
    towers.check_weights(
        "start_from_teacher: the teacher", weights, student.state_dict()
    )
    student.load_state_dict(weights)
