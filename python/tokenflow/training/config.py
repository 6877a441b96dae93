"""Recipes: frozen dataclasses read from YAML, changed from the command line.

A recipe's sections are dataclasses that live beside the code they are for; this file
only turns YAML into them, checks every name and type on the way, and says which field
of which section is wrong. A recipe that ships has a name, any other is a path.
"""

import dataclasses
import difflib
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from tokenflow._files import writing

FOLDER = Path(__file__).parent / "configs"
RECIPE = "recipe.yaml"
T = TypeVar("T")


def recipes(task: str) -> list[str]:
    """Return the names of the recipes that ship for a task, "tokenizer" for example."""
    return sorted(path.stem for path in (FOLDER / task).glob("*.yaml"))


def load(kind: type[T], recipe: str | Path, changes: typing.Sequence[str] = ()) -> T:
    """Read a recipe and change it.

    Args:
        kind: The dataclass of the whole recipe; its `task` names the folder of those
            that ship.
        recipe: The name of one that ships, or the path of a YAML file.
        changes: "section.field=value" each, the value as YAML would have it.

    Raises:
        FileNotFoundError: Neither a shipped recipe nor a file.
        ValueError: The file is no YAML, a field is unknown, has the wrong type or is
            out of its range.
    """
    import yaml

    task = kind.task  # type: ignore[attr-defined]
    named = FOLDER / task / f"{recipe}.yaml"
    path = named if named.is_file() else Path(recipe)
    if not path.is_file():
        raise FileNotFoundError(
            f"train: recipe must be one of {recipes(task)} or a YAML file, got {recipe}"
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"train: {path} must be a YAML file ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"train: {path} must hold fields with names, got {values!r}")
    for change in changes:
        _change(values, change)
    return build(kind, values)


def _change(values: dict[str, Any], change: str) -> None:
    """Set one field: "loss.perceptual=0.5"."""
    import yaml

    name, equals, text = change.partition("=")
    if not equals or not name.strip():
        raise ValueError(f"train: a change must be section.field=value, got {change!r}")
    *sections, field = name.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ValueError(f"train: {section} has no fields, got {change!r}")
    values[field] = yaml.safe_load(text)


def build(kind: type[T], values: dict[str, Any], where: str = "") -> T:
    """Make a dataclass of nested dictionaries, as JSON or YAML hold it.

    Raises:
        ValueError: A field is unknown, missing, of the wrong type or out of range.
    """
    hints = typing.get_type_hints(kind)
    known = {f.name: hints[f.name] for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    found = {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"; is {where}{near[0]} meant?" if near else ""
            raise ValueError(
                f"train: {where.rstrip('.') or 'a recipe'} must have only fields of "
                f"{sorted(known)}, got {name}{hint}"
            )
        found[name] = _fit(f"{where}{name}", known[name], value)
    return kind(**found)


def write(folder: Path, config: Any) -> None:
    """Write RUN/recipe.yaml, from which `of_run` makes the same recipe."""
    import yaml

    with writing(folder / RECIPE) as beside:
        # by way of JSON, which turns tuples into lists
        values = json.loads(json.dumps(dataclasses.asdict(config)))
        beside.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def changed(config: Any, where: str = "") -> dict[str, Any]:
    """Return the fields that are not as their dataclass has them, by dotted name."""
    found = {}
    for known in dataclasses.fields(config):
        name, value = f"{where}{known.name}", getattr(config, known.name)
        if dataclasses.is_dataclass(value):
            found |= changed(value, f"{name}.")
            continue
        make = known.default_factory
        if value != (known.default if make is dataclasses.MISSING else make()):
            found[name] = value
    return found


def of_run(kind: type[T], folder: Path, changes: typing.Sequence[str] = ()) -> T:
    """Return the recipe a run was started with, changed.

    Raises:
        FileNotFoundError: The folder holds no run.
        ValueError: A change is wrong.
    """
    if not (folder / RECIPE).is_file():
        raise FileNotFoundError(
            f"train: nothing to resume, {folder / RECIPE} is not there"
        )
    return load(kind, folder / RECIPE, changes)


def _fit(where: str, hint: Any, value: Any) -> Any:
    """Return the value as the type that is asked for."""
    kind = typing.get_origin(hint) or hint
    arguments = typing.get_args(hint)
    if kind in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _fit(where, next(a for a in arguments if a is not type(None)), value)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict | None):
        return build(kind, value or {}, f"{where}.")
    if kind is tuple and isinstance(value, list | tuple):
        every = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        if len(every) == len(value):
            return tuple(
                _fit(f"{where}[{i}]", a, v)
                for i, (a, v) in enumerate(zip(every, value, strict=True))
            )
    elif kind is float and isinstance(value, int | float | str):
        try:  # YAML reads 1e-4 as text
            if not isinstance(value, bool):
                return float(value)
        except ValueError:
            pass
    elif kind is str and value is None:
        return ""  # as in --set init=
    elif kind is Any or (isinstance(value, kind) and not _a_bool_for(kind, value)):
        return value
    name = getattr(hint, "__name__", None) if not arguments else None
    raise ValueError(f"train: {where} must be {name or hint}, got {value!r}")


def _a_bool_for(kind: Any, value: Any) -> bool:
    return isinstance(value, bool) and kind is not bool
