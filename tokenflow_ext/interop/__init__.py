"""Our ops under other people's models, which stay what they are.

`accelerate_vq` replaces the search of their quantizers, `fuse_decoder` the costly pairs
of their decoders; `replaced` says what was. Nothing of those libraries is imported.
"""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from ..nn.decoder import GroupNormSiLU, UpsampleConv
from . import decoders, quantizers, vector_quantize_pytorch
from ._swap import family_of, logger, replace_all, swap

Model = TypeVar("Model", bound=nn.Module)

__all__ = ["accelerate_vq", "fuse_decoder", "replaced"]


def accelerate_vq(model: Model) -> Model:
    """Put `tokenflow_ext.nearest` under the quantizers of a model, in place.

    Known are VectorQuantize of vector-quantize-pytorch (Euclidean and cosine), the
    image tokenizers of Chameleon, Emu3, Janus and GLM-Image in transformers,
    VectorQuantizer of diffusers, and by structure those of taming-transformers,
    LlamaGen and VAR (its encoding), tried on copies first. What they return and their
    gradients stay the same, but for vectors all but equally near to two entries (margin
    of the squared distance below about 1e-5), where ours is the exact one. In half
    precision the search becomes exact, where theirs rounds. Options we do not know,
    such as sampled codes, are left alone. Calling it again changes nothing.

    Args:
        model: A quantizer, or any module that holds some.

    Returns:
        The model itself; `replaced(model)` says which modules changed.

    Raises:
        TypeError: `model` is no module.
        ValueError: It holds no quantizer that can be replaced.
    """
    _check("accelerate_vq", model)
    families = (*quantizers.FAMILIES, *vector_quantize_pytorch.FAMILIES)
    names, left = replace_all(model, families)
    _report(
        "accelerate_vq", "quantizer", model, names, left, {f.name for f in families}
    )
    return model


def fuse_decoder(model: Model) -> Model:
    """Run the costly pairs of a VQGAN-like decoder in one pass each, in place.

    Nearest ×2 enlargement with a 3×3 convolution becomes `upsample_conv`, GroupNorm
    with SiLU becomes `group_norm_silu`, and in a residual block, in float32 on the CPU,
    part of the 3×3 convolution behind it (`conv3x3`, which keeps transformed weights
    while no gradient of them is asked for). The parameters are shared, not copied, and
    the state dict keeps its keys. Known are the residual and upsampling blocks of
    diffusers, Chameleon, Emu3 and Janus, and by structure those of taming-transformers,
    LlamaGen and VAR (tried on copies first), encoders included. A last norm whose SiLU
    is written out in the forward of the decoder stays. Results differ by rounding, and
    can be differentiated once. Calling it again changes nothing; a decoder built of
    `tokenflow_ext.nn` is fused already.

    Args:
        model: A decoder, or any module that holds one.

    Returns:
        The model itself; `replaced(model)` says which modules changed.

    Raises:
        TypeError: `model` is no module.
        ValueError: It holds nothing that can be replaced.
    """
    _check("fuse_decoder", model)
    names, left = replace_all(model, decoders.FAMILIES)
    for name, module in list(model.named_modules()):
        for part, family in decoders.pairs(module):
            swap(part, family)
            names.append(f"{name}: {family.name}")
    if not any(isinstance(m, UpsampleConv | GroupNormSiLU) for m in model.modules()):
        known = {f.name for f in decoders.FAMILIES}
        _report("fuse_decoder", "decoder block", model, names, left, known)
    return model


def replaced(model: nn.Module) -> dict[str, str]:
    """Return the modules that `accelerate_vq` and `fuse_decoder` replaced.

    Returns:
        Name in the model → kind, for example {"quantize": "taming"}.
    """
    found = ((name, family_of(module)) for name, module in model.named_modules())
    return {name: family.name for name, family in found if family is not None}


def _check(function: str, model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{function}: model must be a torch.nn.Module, got {type(model).__name__}"
        )


def _report(
    function: str,
    what: str,
    model: nn.Module,
    names: list[str],
    left: dict[str, str],
    known: set[str],
) -> None:
    logger.info("%s: replaced %d modules: %s", function, len(names), names)
    reasons = "; ".join(f"{name or 'the model'}: {why}" for name, why in left.items())
    if left:
        logger.info("%s: left alone: %s", function, reasons)
    kinds = {family.name for family in map(family_of, model.modules()) if family}
    if not kinds & known:
        raise ValueError(
            f"{function}: model must hold a {what} of a known kind ("
            f"{', '.join(sorted(known))}), got a {type(model).__name__} with none"
            + (f"; left alone: {reasons}" if left else "")
        )
