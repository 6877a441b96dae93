"""Pictures that ship with the package: one scene, drawn by `samples.scene`."""

from pathlib import Path

SCENE = Path(__file__).resolve().parent / "scene.png"
