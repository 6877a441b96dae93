"""Other packages named `tokenflow`, and how one is noticed.

An unrelated distribution installs an import package of the same name. Side by side in
one environment the two overwrite each other's files, and what breaks then is far from
the cause; so the build and `tokenflow info` look, and say it in one sentence.
Source: ours.
"""

import sys
from importlib.metadata import packages_distributions

OURS = "tokenflow-ext"


def conflict() -> str | None:
    """Return one sentence if another distribution's `tokenflow` is in the way.

    Returns:
        Which one stands beside ours and what to do, or None where none does.
    """
    owners = set(packages_distributions().get("tokenflow", [])) - {OURS}
    if not owners:
        return None
    names = " ".join(sorted(owners))
    return (
        f"tokenflow: {names} installs another package of this name here, and the two "
        f"overwrite each other; run `pip uninstall {names}` and install {OURS} again, "
        "or use a fresh environment"
    )


if __name__ == "__main__":
    sys.exit(conflict())
