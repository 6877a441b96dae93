"""The ablation that ships, with so small a model that it takes seconds."""

import yaml
from tiny_recipe import TINY

from tokenflow.training.ablation import AblationRecipe
from tokenflow.training.config import FOLDER, build

ENCODER = {"kind": "clip", "layers": 1, "patch": 8, **TINY["semantic_encoder"]}
TEACHER = {
    "model": {
        "encoder": ENCODER,
        "image_size": 32,
        "width": 32,
        "text": {"width": 32, "layers": 1, "heads": 2, "length": 16},
        "captions": 50,
        "vocabulary": 300,
    },
    "data": {"heldout_pictures": 4},
    "run": {"batch": 4, "steps": 2, "tensorboard": False},
}
QUICK = {"batch": 4, "steps": 3, "save_every": 2, "evaluate_every": 0}
QUICK |= {"tensorboard": False, "precision": "float32"}


def values(**changes):
    """The recipe that ships, with a tiny model and few steps, as YAML holds it."""
    text = (FOLDER / "ablation" / "scenes.yaml").read_text()
    found = yaml.safe_load(text)
    small = {k: v for k, v in TINY.items() if k != "scales"}
    for part in ("model", "data", "run"):
        small_part = {"model": small, "data": {"heldout_pictures": 4}, "run": QUICK}
        found["tokenizer"][part] |= small_part[part]
    for variant in found["variants"].values():
        model = variant["changes"].get("model", {})
        if "scales" in model:
            model["scales"] = [4, 4] if len(model["scales"]) == 3 else [1, 2, 4]
    found["tokenizer"]["model"]["scales"] = [4]
    found["teacher"] = {"changes": TEACHER}
    found["judged"] = {"pictures": 4, "probe_train": 6, "probe_test": 4}
    return {**found, **changes}


def recipe(**changes):
    return build(AblationRecipe, values(**changes))
