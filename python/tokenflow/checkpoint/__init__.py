"""Weights on disk: read published files safely, write folders whole.

`reading` opens published files, `files` finds and writes folders. The only rooms that
know upstream's parameter names are here: `tokenizer`.
"""

from tokenflow.checkpoint.files import (
    SHIPPED,
    SHOWN,
    check_complete,
    check_shapes,
    local_folder,
    replacing,
)
from tokenflow.checkpoint.reading import CONTAINERS, read_upstream
from tokenflow.checkpoint.tokenizer import (
    USAGE_KEY,
    USAGE_LENGTH,
    fill,
    our_name,
    recognise,
    to_upstream,
    upstream_name,
)

__all__ = [
    "CONTAINERS",
    "SHIPPED",
    "SHOWN",
    "USAGE_KEY",
    "USAGE_LENGTH",
    "check_complete",
    "check_shapes",
    "fill",
    "local_folder",
    "our_name",
    "read_upstream",
    "recognise",
    "replacing",
    "to_upstream",
    "upstream_name",
]
