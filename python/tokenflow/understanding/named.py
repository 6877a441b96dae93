"""An image tokenizer that is known by its name is not saved a second time.

The folder of a model then holds the name and the fingerprint; both are loaded as one.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokenflow.tokenizer.model import TokenFlowTokenizer
from tokenflow.understanding.config import TokenFlowUnderstandingConfig

if TYPE_CHECKING:
    from tokenflow.understanding.model import TokenFlowForUnderstanding

PREFIX = "tokenizer."
HUB = ("cache_dir", "force_download", "local_files_only", "token")  # for both


def to_save(
    config: TokenFlowUnderstandingConfig, state: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return what is saved of a state dict: all but a tokenizer that is named.

    A tokenizer that is not the named one any more, to the bit, is saved with the rest,
    and the config names none.
    """
    if config.image_tokenizer is None:
        return state
    named = TokenFlowTokenizer.from_pretrained(config.image_tokenizer)
    weights = named.state_dict(prefix=PREFIX)
    own = {key: value for key, value in state.items() if key.startswith(PREFIX)}
    if weights.keys() == own.keys() and all(
        torch.equal(own[key].to(value), value) for key, value in weights.items()
    ):
        config.fingerprint = named.fingerprint()
        return {key: value for key, value in state.items() if key not in own}
    config.image_tokenizer = config.fingerprint = None
    return state


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
    config = model.config
    if config.image_tokenizer is None:
        return
    if model.eye.device.type == "meta":
        raise RuntimeError(
            "from_pretrained: the tokenizer must be on a device, it is offloaded; "
            "give it one in device_map, or more memory to the first device"
        )
    asked = {key: value for key, value in hub.items() if key in HUB}
    named = TokenFlowTokenizer.from_pretrained(config.image_tokenizer, **asked)
    if named.fingerprint() != config.fingerprint:
        raise ValueError(
            f"from_pretrained: the image tokenizer {config.image_tokenizer!r} must be "
            f"the one of the model's training, {config.fingerprint}, got "
            f"{named.fingerprint()}"
        )
    model.tokenizer.requires_grad_(False).load_state_dict(named.state_dict())
