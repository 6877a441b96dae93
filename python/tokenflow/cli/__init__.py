"""The command line: one file here is one command.

A file's `app` is a `typer.Typer`. One command in it becomes `tokenflow <file>`; several
become `tokenflow <file> <command>`. Files are found by looking, so a new command is a
new file and nothing else; names that begin with _ are no commands. The files import
torch and the models inside their functions only, so that `--help` is quick.

Results go to stdout, progress and complaints to stderr. Exit status: 0 done, 1 some
inputs failed (each is listed), 2 usage, 3 environment (an extra, the kernels or a model
is missing).
"""

import pkgutil
import re
import sys
from importlib import import_module
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import typer

ENVIRONMENT = 3


def build() -> "typer.Typer":
    """Return the app with every command found in this folder."""
    import typer

    root = typer.Typer(
        name="tokenflow",
        help="Pictures into tokens that are understood and redrawn.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    root.callback()(_root)
    for found in pkgutil.iter_modules(__path__):
        if found.name.startswith("_"):
            continue
        app = import_module(f"{__name__}.{found.name}").app
        commands = app.registered_commands
        group = app.registered_groups or app.registered_callback
        if len(commands) == 1 and not group:
            commands[0].name = commands[0].name or found.name
            root.registered_commands.append(commands[0])
        else:
            root.add_typer(app, name=found.name)
    return root


def _root() -> None:
    pass  # a callback makes `tokenflow` a group even while it has one command


def main() -> None:
    """Run the command line; the entry point `tokenflow`."""
    try:
        build()()
    except ImportError as error:
        _stop(_missing(error))
    except OSError as error:
        _stop(str(error))


def _stop(reason: str) -> NoReturn:
    print(f"tokenflow: {reason}", file=sys.stderr)
    sys.exit(ENVIRONMENT)


def _missing(error: ImportError) -> str:
    """Say which extra brings a missing library."""
    from importlib.metadata import PackageNotFoundError, requires

    library = (error.name or "").split(".")[0]
    try:
        needs = requires("tokenflow-ext") or []
    except PackageNotFoundError:
        needs = []
    distribution = _DISTRIBUTIONS.get(library, library)
    for need in needs:
        match = re.match(r"([\w-]+).*extra == ['\"](\w+)['\"]", need)
        if library and match and match[1].lower() == distribution:
            return (
                f"{library} is needed and not installed; "
                f"run: pip install 'tokenflow-ext[{match[2]}]'"
            )
    return str(error)


_DISTRIBUTIONS = {  # where import name and distribution differ
    "PIL": "pillow",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
