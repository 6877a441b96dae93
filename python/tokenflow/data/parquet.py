"""Pictures in Parquet files, as Hugging Face datasets are stored.

A column `image` holds the bytes of picture files, plain or as a struct of `bytes` and
`path`; a column `caption` or `text`, if there is one, the captions. A row is reached
by reading its row group, so the last few groups are kept, and a `Stream` mixes the
rows of no more groups at a time than that.
"""

import io
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenflow._pictures import open_image
from tokenflow.data.captions import CAPTION_KEYS
from tokenflow.data.errors import BrokenPicture
from tokenflow.data.paths import Patterns, files_of

if TYPE_CHECKING:
    import pyarrow as pa


class Parquet:
    """The pictures in Parquet files, file after file, row after row.

    Item i is {"image": RGB picture}, and "caption" where there is such a column ("" for
    a row without one). A damaged file is left out; `problems` says so, and a warning.

    Args:
        paths: A file, a pattern such as `train-*.parquet`, or several.
        image: The column of the pictures.
        caption: The column of the captions; None takes `caption` or `text`, if there,
            and False none.
        window: How many row groups are kept in memory, and mixed by a `Stream`.

    Raises:
        FileNotFoundError: A pattern means no file, or a file is not there.
        ImportError: pyarrow is not installed.
        ValueError: A file lacks a column, or no file that can be read has rows.
    """

    def __init__(
        self,
        paths: Patterns,
        *,
        image: str = "image",
        caption: str | bool | None = None,
        window: int = 4,
    ):
        if window < 1:
            raise ValueError(f"parquet: window must be at least 1, got {window}")
        self.paths = files_of(paths, "parquet")
        self.window, self.image = window, image
        self.problems: list[str] = []
        groups, rows = [], []
        columns: set[str | None] = set()
        for number, path in enumerate(self.paths):
            try:
                file = _open(path)
            except (OSError, ValueError) as error:  # those of pyarrow are ValueErrors
                self.problems.append(f"{path}: {error}")
                continue
            with file:
                columns.add(_check_columns(path, file.schema_arrow, image, caption))
                for group in range(file.num_row_groups):
                    groups.append((number, group))
                    rows.append(file.metadata.row_group(group).num_rows)
        if len(columns) > 1:
            raise ValueError(
                "parquet: all files must have the same column of captions, got "
                f"{sorted(map(str, columns))}"
            )
        if not sum(rows):
            words = "; ".join(self.problems[:3]) or "they hold none"
            raise ValueError(
                f"parquet: {self.paths[0]} and the rest of {len(self.paths)} files "
                f"must hold rows: {words}"
            )
        if self.problems:
            warnings.warn(
                f"parquet: {len(self.problems)} of {len(self.paths)} files are damaged "
                f"and left out: {'; '.join(self.problems[:3])}",
                stacklevel=2,
            )
        self.caption = columns.pop()
        self._groups = np.array(groups, np.int64).reshape(-1, 2)
        self._ends = np.cumsum(rows, dtype=np.int64)
        self._kept: OrderedDict[int, pa.Table] = OrderedDict()

    def __len__(self) -> int:
        """Return how many rows there are."""
        return int(self._ends[-1])

    def blocks(self) -> list[int]:
        """Return how many rows each row group holds."""
        return np.diff(self._ends, prepend=0).tolist()

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one picture, and its caption.

        Raises:
            BrokenPicture: It, or its row group, cannot be read.
            IndexError: There is no such row.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"parquet: index must be in [0, {len(self)}), got {index}")
        block = int(np.searchsorted(self._ends, index, "right"))
        row = index - (int(self._ends[block - 1]) if block else 0)
        number, group = self._groups[block]
        where = f"row {row} of group {group} in {self.paths[number]}"
        try:
            table = self._table(block)
            stored = table.column(self.image)[row].as_py()
            if isinstance(stored, dict):
                stored = stored["bytes"]
            if stored is None:
                raise ValueError("the picture must be stored as bytes, there are none")
            sample: dict[str, Any] = {"image": open_image(io.BytesIO(stored))}
        except (OSError, ValueError) as error:  # those of pyarrow are ValueErrors
            words = str(error).removeprefix("open_image: ")
            raise BrokenPicture(f"parquet: {where}: {words}") from None
        if self.caption:
            words = table.column(self.caption)[row].as_py()
            sample["caption"] = (words or "").strip()
        return sample

    def _table(self, block: int) -> "pa.Table":
        """Return a row group, from those kept or from its file."""
        if block not in self._kept:
            number, group = self._groups[block].tolist()
            columns = [self.image, *filter(None, [self.caption])]
            with _open(self.paths[number]) as file:
                table = file.read_row_group(group, columns, use_threads=False)
            self._kept[block] = table
            if len(self._kept) > self.window:
                self._kept.popitem(last=False)
        self._kept.move_to_end(block)
        return self._kept[block]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the row groups behind."""
        return {**self.__dict__, "_kept": OrderedDict()}


def _open(path: Path) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            "parquet: reading Parquet files needs pyarrow; install tokenflow-ext[data]"
        ) from error
    return pq.ParquetFile(path, memory_map=True)


def _check_columns(
    path: Path, schema: "pa.Schema", image: str, caption: str | bool | None
) -> str | None:
    """Check the columns of a file and return the name of its captions'."""
    import pyarrow as pa

    wanted = [image] + ([caption] if isinstance(caption, str) else [])
    for name in wanted:
        if name not in schema.names:
            raise ValueError(
                f"parquet: {path} must have a column {name!r}, got {schema.names}"
            )
    kind = schema.field(image).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise ValueError(
            f"parquet: column {image!r} of {path} must be bytes, or a struct with "
            f"bytes, got {schema.field(image).type}"
        )
    texts = [field.name for field in schema if _is_text(field.type)]
    if caption is False:
        return None
    if not isinstance(caption, str):
        return next((name for name in CAPTION_KEYS if name in texts), None)
    if caption not in texts:
        raise ValueError(
            f"parquet: column {caption!r} of {path} must be text, got "
            f"{schema.field(caption).type}"
        )
    return caption


def _is_text(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)
