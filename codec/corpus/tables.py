"""Media in parquet files: columns of bytes, plain or as `datasets` of Hugging Face writes them, of paths or of URLs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from ..errors import UsageError, one_line

PATHS = ("path", "url", "file", "file_name", "filename", "image", "audio", "video")  # columns of paths, first to last
ROWS = 16  # that are read at once
BUFFER = 1 << 20  # bytes of a column that are read at once


def pyarrow() -> Any:
    """The package with its parquet files. Raises UsageError without it."""
    try:
        import pyarrow.parquet

        return pyarrow
    except ImportError as error:
        raise UsageError(f"parquet needs pyarrow ({one_line(error)}): pip install 'tokodec[corpus]'") from error


class Table:
    """A parquet file whose media are read in order, a few rows at a time.

    Args: file: open; it is closed with the table.  name: for messages.  column: the one that holds media, where several
          may.
    Attributes:
        column: its name.  paths: whether it holds paths and URLs, not bytes.
        groups: number of rows in each row group.

    Raises: UsageError if there is no such column, or several without a choice; of pyarrow for what is no parquet file.
    """

    def __init__(self, file: IO[bytes], name: str, column: str = "") -> None:
        self._file = pyarrow().parquet.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False)
        self.column, self.paths = _media_column(self._file.schema_arrow, name, column)
        self.groups = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._place = (-1, 0)
        self._rows: Iterator[Any] = iter(())

    def media(self, group: int, row: int) -> bytes | str | None:
        """Bytes of a row, or the path or URL that it names instead; None if there is neither. Rows of a group that are
        asked for in order are read once."""
        if self._place[0] != group or self._place[1] > row:
            self._place, self._rows = (group, 0), self.values([group])
        found = None
        while self._place[1] <= row:
            found = next(self._rows)
            self._place = group, self._place[1] + 1
        if isinstance(found, dict):
            path = found.get("path")
            return found["bytes"] if found["bytes"] is not None else path
        return found

    def values(self, groups: list[int] | None = None) -> Iterator[Any]:
        """Of the column, row by row."""
        groups = list(range(len(self.groups))) if groups is None else groups
        for batch in self._file.iter_batches(ROWS, row_groups=groups, columns=[self.column]):
            for value in batch.column(0):
                yield value.as_py()

    def close(self) -> None:
        self._file.close(force=True)


def _media_column(schema: Any, name: str, column: str) -> tuple[str, bool]:
    """The column that holds media, and whether as paths. Raises UsageError."""
    types = pyarrow().types

    def binary(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(field.name == "bytes" and binary(field.type) for field in kind)
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    def text(kind: Any) -> bool:
        return bool(types.is_string(kind) or types.is_large_string(kind))

    media = [field.name for field in schema if binary(field.type)]
    paths = [field.name for field in schema if text(field.type)]
    if column:
        if column not in media + paths:
            raise UsageError(f"{name} has no column {column!r} of bytes or paths, only {', '.join(schema.names)}")
        return column, column in paths
    found = media or [path for path in PATHS if path in paths][:1] or paths
    if len(found) != 1:
        which = f"which of {', '.join(found)}" if found else f"none of {', '.join(schema.names)}"
        raise UsageError(f"{name}: {which} holds the media? name the column: {name}#COLUMN")
    return found[0], not media
