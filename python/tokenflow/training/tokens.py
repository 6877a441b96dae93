"""Tokens that pictures were turned into before training, with their captions.

A folder of `.tok` files, as `tokenflow encode` writes them, in the place of the
pictures: nothing is encoded in training, and the pictures need not be there. Captions
are a table in the folder or text files beside the tokens, as `data.folder` has it; a
table may name the pictures that the tokens were made of.
"""

from functools import partial
from pathlib import Path
from typing import Any

from tokenflow.data.folder import Folder, stem, walk
from tokenflow.data.sources import open_source
from tokenflow.data.stream import Source
from tokenflow.tokenizer import tokfile
from tokenflow.tokenizer.model import TokenFlowTokenizer


class TokenFolder(Folder):
    """The `.tok` files below a folder, sorted by their names.

    Item i is {"indices": int64 [N]}, and "caption" and "label" as a `Folder` has them.

    Args:
        path: The folder.
        tokenizer: Whose tokens they must be.
        options: Of `Folder`.

    Raises:
        FileNotFoundError: No such folder, or no tokens in it.
        ValueError: The first tokens are not the tokenizer's.
    """

    suffixes, what = (tokfile.SUFFIX,), "tokens"
    row_of = staticmethod(stem)

    def __init__(
        self, path: str | Path, *, tokenizer: TokenFlowTokenizer, **options: Any
    ) -> None:
        self.fingerprint = tokenizer.fingerprint()
        self.entries = tokenizer.config.codebook_size
        self.scales = tokenizer.scales
        super().__init__(path, **options)
        try:
            self.read(self.path / self.names[0])
        except ValueError as error:
            raise ValueError(f"train: data.source: {error}") from None

    def read(self, path: Path) -> dict[str, Any]:
        """Return the tokens of a file.

        Raises:
            ValueError: They are not the tokenizer's, or not those of a whole picture.
        """
        tokens = tokfile.load(path)
        try:
            tokens.check_model(self.fingerprint, self.entries)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        if tokens.scales != self.scales or int(tokens.indices.min()) < 0:
            raise ValueError(
                f"{path} must hold the entries of the tokenizer's own schedule "
                f"{[list(s) for s in self.scales]}, got {list(tokens.scales)} and "
                f"entries from {int(tokens.indices.min())} on"
            )
        return {"indices": tokens.indices}


def _open(spec: str, *, tokenizer: TokenFlowTokenizer, **options: Any) -> Source:
    folder = Path(spec).expanduser()
    if folder.is_dir() and any(n.endswith(tokfile.SUFFIX) for n in walk(folder)):
        return TokenFolder(folder, tokenizer=tokenizer, **options)
    return open_source(spec, **options)


def holds_tokens(source: Any) -> bool:
    """Say whether a source, or what it takes its samples from, is a `TokenFolder`."""
    return isinstance(getattr(source, "source", source), TokenFolder)


def opener(tokenizer: TokenFlowTokenizer) -> Any:
    """Return what opens a source: tokens of this tokenizer, or pictures."""
    return partial(_open, tokenizer=tokenizer)
