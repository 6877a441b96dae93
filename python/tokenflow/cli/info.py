"""`tokenflow info`: what is installed, built and usable; for bug reports."""

import platform
import re
import warnings
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from typing import Any

import typer

from tokenflow.cli._options import Json, say_json

app = typer.Typer()


@app.command()
def info(as_json: Json = False) -> None:
    """Say what is installed, built and usable here."""
    facts = gather()
    if as_json:
        say_json(facts)
        return
    for key, value in facts.items():
        typer.echo(f"{key:<16} {_words(value)}")


def gather() -> dict[str, Any]:
    """Return the facts, in the order they are shown."""
    import torch

    with warnings.catch_warnings():  # missing kernels are a line of the report
        warnings.simplefilter("ignore")
        import tokenflow_ext

    from tokenflow.foreign import OURS, conflict

    ops = tokenflow_ext.info()
    cuda_built = ops["build"].get("cuda", "")
    return {
        "tokenflow": ops["version"],
        "python": platform.python_version(),
        "torch": ops["torch"],
        "platform": platform.platform(),
        "kernels": ops["kernels"],
        "compiler": ops["build"].get("compiler"),
        "isa": ops["isa"],
        "isas": ops["isas"],
        "threads": ops["threads"],
        "cuda_built": cuda_built or None,
        "cuda_for": ops["build"].get("cuda_architectures") or None,
        "cuda_usable": bool(cuda_built) and torch.cuda.is_available(),
        "cuda_device": ops["cuda_device"],
        "models": shipped(),
        "extras": extras(OURS),
        "conflict": conflict(),
    }


def shipped() -> list[str]:
    """Return the names of the models that came with the package."""
    from importlib.resources import files

    folder = files("tokenflow") / "weights"
    if not folder.is_dir():
        return []
    found = (path for path in folder.iterdir() if path.is_dir())
    return sorted(p.name for p in found if (p / "config.json").is_file())


def extras(distribution: str) -> dict[str, list[str]]:
    """Return, for each extra, the packages it still lacks: [] where it is complete."""
    try:
        names = metadata(distribution).get_all("Provides-Extra") or []
        needs = requires(distribution) or []
    except PackageNotFoundError:
        return {}
    direct: dict[str, set[str]] = {name: set() for name in names}
    nested: dict[str, set[str]] = {name: set() for name in names}
    for need in needs:
        match = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?.*extra == ['\"]([\w-]+)", need)
        if match and match[1] == distribution:
            nested[match[3]] |= set(match[2].split(","))
        elif match:
            direct[match[3]].add(match[1])
    return {name: sorted(filter(_absent, _all(name, direct, nested))) for name in names}


def _all(
    name: str, direct: dict[str, set[str]], nested: dict[str, set[str]]
) -> set[str]:
    found = set(direct[name])
    for other in nested[name]:
        found |= _all(other, direct, nested)
    return found


def _absent(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return True
    return False


def _words(value: Any) -> str:
    if isinstance(value, dict):
        lacks = {name: f"lacks {', '.join(parts)}" for name, parts in value.items()}
        return "; ".join(
            f"{name} ({lacks[name] if value[name] else 'complete'})" for name in value
        )
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
