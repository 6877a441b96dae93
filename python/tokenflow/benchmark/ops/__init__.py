"""The ops that are timed: one file each, found by looking.

A file has
    CASES      list of dicts: what `make` takes, in the order of the table
    TINY       the same of a size that is nothing, for tests and for warming up
    LABEL      format string of such a dict
    make       (values, device) -> case: the seeded arguments
    truth      (case) -> what is right, in float64; of a part where the whole is too
               much
    judge      (found, truth, case) -> dict with `right`, and `mismatches` of `judged`
               rows, or `error`
    work       (values) -> what it takes at least: `fma`, `int8` operations, bytes of
               `copy`; the shares of the machine's ceilings are computed from it
    method     a `Methods`: ours, the published form, and every peer
and, where there are data families (`families`), FAMILIES = True and `in_family`;
GRADIENTS = True where methods need them; EXACT = False where ours may differ too.
Names that begin with _ are no ops.
"""

import pkgutil


def names() -> list[str]:
    """Every op there is."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if not name.startswith("_"))
