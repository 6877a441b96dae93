"""The claim that ships, with so small models that a run takes a second."""

import tiny_understanding as tiny
import yaml

from tokenflow.training.claim import ClaimRecipe
from tokenflow.training.config import FOLDER, build

SHARED = {
    "model": {
        "text": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        "vocabulary": 300,
        "length": 512,
    },
    "data": {"heldout_dialogues": 2},
    "run": {"batch": 2, "steps": 2, "tensorboard": False, "evaluate_every": 0},
}


def home(folder, seeds=(0,)):
    """A folder like that of an ablation: a teacher and three tokenizers."""
    tiny.teacher_folder(folder / "teacher" / "model")
    kinds = {
        "teacher_start": {},
        "pixel_only": {"semantic_dim": 0},
        "semantic_only": {"pixel_dim": 0},
    }
    for name, changes in kinds.items():
        for seed in seeds:
            tiny.eyes(**changes).save_pretrained(folder / f"{name}-{seed}" / "model")
    return folder


def values(folder, **changes):
    """The recipe that ships, tiny, as YAML holds it."""
    found = yaml.safe_load((FOLDER / "claim" / "scenes.yaml").read_text())
    found["home"] = str(folder)
    found["understanding"] = {"recipe": "mini", "changes": SHARED}
    found["judged"] = {"questions": 12}
    return {**found, "seeds": [0], **changes}


def recipe(folder, **changes):
    return build(ClaimRecipe, values(folder, **changes))
