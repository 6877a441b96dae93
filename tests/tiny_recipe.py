"""A tokenizer so small that training it takes milliseconds a step."""

from tokenflow.training.config import build
from tokenflow.training.tokenizer import TokenizerRecipe

TINY = {
    "image_size": 32,
    "grid": 4,
    "scales": [1, 2, 4],
    "semantic_encoder": {"width": 32, "layers": 1, "heads": 2, "image_size": 32},
    "semantic_decoder": {"width": 32, "grid": 4, "heads": 2},
    "semantic_target": 32,
    "pixel_encoder": {"multipliers": [1, 1, 1, 1]},
    "pixel_decoder": {"multipliers": [1, 1, 1, 1]},
    "pixel_latent": 32,
    "codebook_size": 128,
}


def values(**sections):
    """The recipe as YAML would hold it; keyword arguments change its sections."""
    base = {
        "model": TINY,
        "data": {"source": "glyphs", "heldout_pictures": 4},
        "loss": {"perceptual": "none", "adversarial_weight": 0.0},
        "codebook": {"start": "vectors", "revive_after": 2},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        "discriminator": {"width": 8, "layers": 1},
        "run": {"batch": 4, "steps": 6, "tensorboard": False, "log_every": 1},
    }
    for name, changes in sections.items():
        old = base.get(name)
        base[name] = {**old, **changes} if isinstance(old, dict) else changes
    return base


def recipe(**sections):
    return build(TokenizerRecipe, values(**sections))
