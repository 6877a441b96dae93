"""Weights on disk: read published files safely, write folders whole.

`reading` opens published files, `files` finds and writes folders. The only rooms that
know upstream's parameter names are here: `tokenizer`, `generation` and
`understanding`.
"""

from tokenflow.checkpoint.files import (
    HUB,
    SHIPPED,
    SHOWN,
    check_complete,
    check_shapes,
    lasting,
    load_whole,
    local_folder,
    replacing,
    shipped,
)
from tokenflow.checkpoint.generation import (
    fill_generation,
    generation_to_upstream,
    is_generation,
    our_generation_name,
    recognise_generation,
    upstream_generation_name,
)
from tokenflow.checkpoint.reading import (
    CONTAINERS,
    published_names,
    read_published,
    read_upstream,
)
from tokenflow.checkpoint.tokenizer import (
    USAGE_KEY,
    USAGE_LENGTH,
    fill,
    our_name,
    recognise,
    to_upstream,
    upstream_name,
)
from tokenflow.checkpoint.understanding import (
    Llava,
    is_llava,
    our_understanding_name,
    read_llava,
    read_projector,
    understanding_state,
    upstream_understanding_name,
)

__all__ = [
    "CONTAINERS",
    "HUB",
    "SHIPPED",
    "SHOWN",
    "USAGE_KEY",
    "USAGE_LENGTH",
    "Llava",
    "check_complete",
    "check_shapes",
    "fill",
    "fill_generation",
    "generation_to_upstream",
    "is_generation",
    "is_llava",
    "lasting",
    "load_whole",
    "local_folder",
    "our_generation_name",
    "our_name",
    "our_understanding_name",
    "published_names",
    "read_llava",
    "read_projector",
    "read_published",
    "read_upstream",
    "recognise",
    "recognise_generation",
    "replacing",
    "shipped",
    "to_upstream",
    "understanding_state",
    "upstream_generation_name",
    "upstream_name",
    "upstream_understanding_name",
]
