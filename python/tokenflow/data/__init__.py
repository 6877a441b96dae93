"""Pictures to train on and to judge by.

A source is a sequence of samples: `folder`, `tars` and `parquet` read the user's own
pictures, `glyphs` draws its own from the glyphs of an installed emoji font over
`backgrounds`, `scenes` a small world whose whole truth is known; `sources.open_source`
picks one by what it is given. `stream.Stream` turns a source into batches.
"""

from tokenflow.data.errors import BrokenPicture

__all__ = ["BrokenPicture"]
