"""An image tokenizer that is known by its name is not saved a second time.

The folder of a model then holds the name and a digest of what makes tokens of pictures;
both are loaded as one.
"""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenflow import checkpoint
from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.understanding.config import TokenFlowUnderstandingConfig

if TYPE_CHECKING:
    from tokenflow.understanding.model import TokenFlowForUnderstanding

PREFIX = "tokenizer."
PARTS = "semantic_encoder", "semantic_head", "pixel_encoder", "quant_conv", "quantizer"


def digest(state: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits of a tokenizer's weights that tokens come from.

    What redraws does not enter, so another decoder keeps it.
    """
    found = hashlib.sha256()
    for key in sorted(state):
        if key.split(".")[0] in PARTS:
            value = state[key].detach().to("cpu", torch.float32).contiguous()
            found.update(f"{key} {tuple(value.shape)}".encode())
            found.update(value.numpy().tobytes())
    return found.hexdigest()[:16]


def to_save(
    config: TokenFlowUnderstandingConfig, state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return what is saved of a state dict: all but a tokenizer that is named.

    A tokenizer that is not the named one, to the bit, or whose name leads nowhere just
    now, is saved with the rest, and the config names none.
    """
    own = {key: value for key, value in state.items() if key.startswith(PREFIX)}
    if config.image_tokenizer is None or not own:
        return state
    if (named := _weights(config.image_tokenizer)) is not None and (
        named.keys() == own.keys()
        and all(torch.equal(own[k].to(value), value) for k, value in named.items())
    ):
        config.image_digest = digest(
            {key.removeprefix(PREFIX): value for key, value in named.items()}
        )
        return {key: value for key, value in state.items() if key not in own}
    config.image_tokenizer = config.image_digest = None
    return state


def _weights(name: str) -> dict[str, Tensor] | None:
    """Return the weights of a lasting name, None where it is none or is not there."""
    try:
        if checkpoint.lasting(name) is None:
            return None
        return TokenFlowTokenizer.from_pretrained(name).state_dict(prefix=PREFIX)
    except OSError:
        return None


def fill(model: "TokenFlowForUnderstanding", **hub: Any) -> None:
    """Give a loaded model the tokenizer that its config names, if it names one.

    Args:
        model: Its other weights are loaded.
        hub: What `from_pretrained` was given; how a hub is asked is taken from it.

    Raises:
        OSError: There is no such tokenizer.
        ValueError: Its tokens are not those of the model's training.
        RuntimeError: The model's tokenizer is not on a device (offloaded).
    """
    name, wanted = model.config.image_tokenizer, model.config.image_digest
    if name is None:
        return
    if model.eye.device.type == "meta":
        raise RuntimeError(
            "from_pretrained: the tokenizer must be on a device, it is offloaded; "
            "give it one in device_map, or more memory to the first device"
        )
    asked = {key: hub[key] for key in checkpoint.HUB if key in hub}
    asked.pop("revision", None)  # of another repository
    state = TokenFlowTokenizer.from_pretrained(name, **asked).state_dict()
    if wanted is not None and digest(state) != wanted:
        raise ValueError(
            f"from_pretrained: the image tokenizer {name!r} must make the tokens that "
            f"the model was trained with, {wanted}, it makes those of {digest(state)}; "
            "name a folder of the right one as image_tokenizer="
        )
    model.tokenizer.requires_grad_(False).load_state_dict(state)
