"""Samples of a corpus: media in folders, WebDataset tars, parquet files and lists of paths, in one order, split over
ranks.

A listing is read as it is needed: memory is that of the largest folder, never that of all samples.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import IO

from ..errors import MediaError, UsageError, one_line
from .remote import is_folder, is_url, list_url, open_url, read_url
from .tables import Table
from .webdataset import check_end

LIST_SUFFIXES = (".txt", ".list")
INSIDE = "!"  # between a tar and the name of its member


@dataclass(frozen=True)
class Sample:
    """A medium, and what it is called.

    Attributes:
        key: its name in the corpus, without suffix and dots.
        source: path or URL; of a member of a tar that of the tar, "!" and the name of the member.
        place: offset and number of bytes in the tar.
        row: column, row group and row of it in the parquet file.
        data: its bytes, if they were read already.
        problem: why it cannot be read, if that is known already.
    """

    key: str
    source: str
    place: tuple[int, int] | None = None
    row: tuple[str, int, int] | None = None
    data: bytes | None = None
    problem: str = ""

    def open(self) -> Path | io.BytesIO:
        """Where it can be read: a local file itself, anything else in memory. Raises MediaError."""
        if self.data is not None:
            return io.BytesIO(self.data)
        if self.row is not None:
            with closing(Rows()) as rows:
                filled = rows.fill(self)
            if filled.problem:
                raise MediaError(f"{self.source}: {filled.problem}")
            return filled.open()
        if self.place is None:
            return io.BytesIO(read_url(self.source)) if is_url(self.source) else Path(self.source)
        path = self.source.rpartition(INSIDE)[0]
        if is_url(path):
            return io.BytesIO(read_url(path, self.place))
        offset, size = self.place
        with Path(path).open("rb") as file:
            file.seek(offset)
            return io.BytesIO(file.read(size))


def key_of(name: str) -> str:
    """The key of a file: its name without suffix and dots."""
    return str(Path(name).with_suffix("").as_posix()).replace(".", "_")


def owner(key: str, world: int) -> int:
    """The rank that a file of this key belongs to: the same on every machine."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % world


def open_source(name: str) -> IO[bytes]:
    """A local file or whatever fsspec reads, for binary reading. Raises OSError, and UsageError without fsspec."""
    return open_url(name) if is_url(name) else Path(name).open("rb")


class Rows:
    """Reads media of parquet files, those of a row group in one pass as long as they come in order."""

    def __init__(self) -> None:
        self._table: Table | None = None
        self._name = ("", "")

    def fill(self, sample: Sample) -> Sample:
        """The sample with its bytes, or with a path in their place, or a problem; others as they are."""
        if sample.row is None or sample.problem:
            return sample
        column, group, row = sample.row
        path = sample.source.rpartition(INSIDE)[0]
        try:
            if self._table is None or self._name != (path, column):
                self.close()
                self._table, self._name = Table(open_source(path), path, column), (path, column)
            found = self._table.media(group, row)
        except Exception as error:  # of pyarrow and of file systems
            self.close()
            return replace(sample, problem=f"cannot read the row: {one_line(error)}")
        if found is None:
            return replace(sample, problem="the row is empty")
        if isinstance(found, str):
            return replace(sample, source=_beside(path, found), row=None)
        return replace(sample, data=found)

    def close(self) -> None:
        if self._table is not None:
            self._table.close()
        self._table = None


def list_samples(sources: Sequence[str], wanted: tuple[str, ...], rank: int = 0, world: int = 1) -> Iterator[Sample]:
    """All samples of a rank, in an order that is the same every time.

    Folders are walked with all folders inside them, links and hidden names left out. Of tars, whose names may hold
    ranges (`{000..099}`), each belongs to one rank as a whole, and so does each row group of a parquet file with bytes.
    A list (text with a path or URL on each line, or a parquet column of them) has paths from its own folder. A file
    stands for itself. Where several sources are given, the keys of files in folders begin with the name of the folder;
    those in a tar or parquet file always begin with that of the file. `FILE.parquet#NAME` names a column.

    Args:    wanted: suffixes of media; others in folders and tars are passed over.
    Raises:  UsageError for a source that is not there. A tar that breaks off, or a parquet file that cannot be read, is
             a sample with a problem.
    """
    named = [name for source in sources for name in expand(source)]
    for name in named:
        if not is_url(name) and not Path(_file_of(name)).exists():
            raise UsageError(f"no folder, file or list {name}")
    packed = [name for name in named if _suffix(name) in (".tar", ".parquet")]
    same = len({Path(_file_of(name)).name for name in packed}) < len(packed)  # then with the folders that they are in
    parts = count()  # of parquet files: row groups so far
    for name in named:
        called = _relative(_file_of(name)) if same else Path(_file_of(name)).name
        if _suffix(name) == ".tar":
            if packed.index(name) % world == rank:
                yield from _tar_samples(name, called, wanted)
        elif _suffix(name) == ".parquet":
            for sample, part in _table_samples(name, called, parts):
                if (owner(sample.key, world) if part is None else part % world) == rank:
                    yield sample
        else:
            for key, path in _files(name, wanted, len(sources) > 1):
                if owner(key, world) == rank:
                    yield Sample(key, path)


def _file_of(name: str) -> str:
    """A source without the column that it names."""
    file, _, _ = name.rpartition(".parquet#")
    return file + ".parquet" if file else name


def _suffix(name: str) -> str:
    return Path(_file_of(name)).suffix.lower()


def expand(source: str) -> list[str]:
    """Names with one number for each in `{000..099}`; several ranges may be there."""
    span = re.search(r"\{(\d+)\.\.(\d+)\}", source)
    if span is None:
        return [source]
    first, last = span[1], span[2]
    names = [source[: span.start()] + f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
    return [name + rest for name in names for rest in expand(source[span.end() :])]


def _files(source: str, wanted: tuple[str, ...], several: bool) -> Iterator[tuple[str, str]]:
    """Keys and paths of a folder, a list, or a file alone."""
    path = Path(source)
    known = path.suffix.lower() in (*wanted, *LIST_SUFFIXES)
    if is_url(source) and (source.endswith("/") or (not known and is_folder(source))):
        top = (path.name,) if several else ()
        for place in list_url(source):
            if Path(place).suffix.lower() in wanted:
                yield key_of(Path(*top, place).as_posix()), f"{source.rstrip('/')}/{place}"
    elif not is_url(source) and path.is_dir():
        start = path.resolve().name + "/" if several else ""
        for name in _walk(path, wanted):
            key = start + name.rpartition(".")[0]  # to ask Path would take most of the time of a listing
            yield key.replace(".", "_"), name if path == Path() else f"{str(path).rstrip('/')}/{name}"
    elif path.suffix.lower() in LIST_SUFFIXES:
        try:
            with open_source(source) as file:
                for line in io.TextIOWrapper(file, "utf-8", "surrogateescape"):
                    if name_in := line.strip():
                        yield key_of(_relative(name_in)), _beside(source, name_in)
        except OSError as error:
            raise UsageError(f"cannot read the list {source}: {one_line(error)}") from error
    else:
        yield key_of(path.name), source


def _beside(source: str, name: str) -> str:
    """What a path or URL in a list means: paths are those from its folder."""
    if is_url(name) or name.startswith("/"):
        return name
    return f"{source.rpartition('/')[0]}/{name}" if is_url(source) else str(Path(source).parent / name)


def _table_samples(source: str, name: str, parts: count[int]) -> Iterator[tuple[Sample, int | None]]:
    """Media of a parquet file, each with the number of its row group; None for paths and URLs."""
    path = _file_of(source)
    stem = key_of(name)
    try:
        with closing(Table(open_source(path), path, source[len(path) + 1 :])) as table:
            if table.paths:
                for found in table.values():
                    if found:
                        yield Sample(key_of(_relative(found)), _beside(path, found)), None
                return
            first = 0
            for group, rows in enumerate(table.groups):
                part = next(parts)
                for row in range(rows):
                    place = table.column, group, row
                    yield Sample(f"{stem}/{first + row:08}", f"{path}{INSIDE}{first + row}", row=place), part
                first += rows
    except UsageError:
        raise
    except Exception as error:  # of pyarrow and of file systems
        yield Sample(stem, path, problem=f"cannot read the parquet file: {one_line(error)}"), next(parts)


def _relative(name: str) -> str:
    """A path or URL as a path below something: no scheme, no root, no way up."""
    parts = name.rpartition("://")[2].split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))


def _walk(top: Path, wanted: tuple[str, ...]) -> Iterator[str]:
    """Files below a folder, as paths from it."""

    def refuse(error: OSError) -> None:
        raise UsageError(f"cannot read the folder {error.filename}: {one_line(error)}")

    for here, below, names in os.walk(top, onerror=refuse):
        below[:] = sorted(name for name in below if not name.startswith("."))
        inside = os.path.relpath(here, top) + "/" if below or names else ""
        for name in sorted(names):
            if not name.startswith(".") and "." + name.rpartition(".")[2].lower() in wanted:
                yield (inside + name).removeprefix("./")


def _tar_samples(path: str, name: str, wanted: tuple[str, ...]) -> Iterator[Sample]:
    """Media in a tar, their keys those of WebDataset below the name of the tar."""
    stem = key_of(name)
    try:
        with open_source(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
                folder, _, base = member.name.rpartition("/")
                key, _, suffix = base.partition(".")
                if not key or not member.isfile() or "." + suffix.lower().rpartition(".")[2] not in wanted:
                    continue
                key = "/".join(part for part in (stem, folder.replace(".", "_").strip("/"), key) if part)
                problem = "a sparse member of a tar" if member.issparse() else ""
                yield Sample(key, path + INSIDE + member.name, (member.offset_data, member.size), problem=problem)
            check_end(tar, file)
    except (OSError, tarfile.TarError, ValueError, MediaError) as error:
        yield Sample(stem, path, problem=f"cannot read the tar: {one_line(error)}")
