"""Where a corpus lies: a folder, or a URL that fsspec knows. Files appear there whole or not at all.

A store of objects (S3, GCS, Azure) shows an object when all of it has arrived, the hub of Hugging Face when it is
committed. Elsewhere a file is written beside and renamed. Either way a group of files appears last to first, so that
the first says that all are there.
"""

from __future__ import annotations

import io
import os
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TextIO, cast

from ..errors import MediaError, OutputExistsError, UsageError, one_line
from ..files import atomic_outputs, make_folder
from .remote import filesystem_of, is_url, retried

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci", "tos", "hf"}
MOST_KEPT = 16  # shards of a remote corpus on the local disk
BESIDE, TEMPORARY = ".tokodec-", ".tmp"


class Place(Protocol):
    """A folder of files. Methods raise MediaError for what cannot be read or written."""

    name: str

    def same_as(self, other: Place) -> bool: ...

    def make(self) -> None: ...

    def has(self, name: str) -> bool: ...

    def names(self, start: str, end: str = "") -> list[str]:
        """Of the files that begin and end so, sorted."""

    def size(self, name: str) -> int: ...

    def open(self, name: str) -> BinaryIO:
        """For reading, to the end."""

    def outputs(self, names: Sequence[str], force: bool = True) -> Any:
        """Context of binary files that are written; they appear when it ends well, the first one last.

        Raises: OutputExistsError if one is there and not ``force``.
        """

    def log(self, name: str) -> Any:
        """Context of a text file whose lines are on the disk as they are written, at the latest when it ends."""

    def remove(self, name: str) -> None:
        """If it is there."""

    def local(self, names: Sequence[str]) -> Path:
        """A folder of this machine in which all these files are."""

    def tidy(self) -> None:
        """Remove what killed processes left. Nobody may be writing shards."""


def place_of(folder: str | Path | Place) -> Place:
    """The place that a path or URL names."""
    if isinstance(folder, (str, Path)):
        text = str(folder)
        if is_url(text) and not text.startswith("file://"):
            return RemotePlace(text)
        return LocalPlace(Path(text.removeprefix("file://")))
    return folder


def move(name: str, source: Place, target: Place) -> None:
    """Raises UsageError if another file has that name there; the same one is what a move left that broke off."""
    if target.has(name):
        with source.open(name) as own, target.open(name) as other:
            blocks = iter(lambda: own.read(1 << 20), b"")
            if source.size(name) != target.size(name) or any(block != other.read(1 << 20) for block in blocks):
                raise UsageError(f"{source.name} and {target.name} both have a {name}: their ranks are the same")
        source.remove(name)
        return
    if isinstance(source, LocalPlace) and isinstance(target, LocalPlace):
        with suppress(OSError):  # of another disk
            (source.path / name).rename(target.path / name)
            return
    with source.open(name) as file, target.outputs([name]) as (out,):
        shutil.copyfileobj(file, out)
    source.remove(name)


class LocalPlace:
    """A folder of this machine, or one that it has mounted."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)

    def same_as(self, other: Place) -> bool:
        return isinstance(other, LocalPlace) and self.path.resolve() == other.path.resolve()

    def make(self) -> None:
        make_folder(self.path)

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def names(self, start: str, end: str = "") -> list[str]:
        return sorted(path.name for path in self.path.glob(f"{start}*{end}"))

    def size(self, name: str) -> int:
        return (self.path / name).stat().st_size

    def open(self, name: str) -> BinaryIO:
        try:
            return (self.path / name).open("rb")
        except OSError as error:
            raise MediaError(f"cannot read {self.path / name}: {one_line(error)}") from error

    def outputs(self, names: Sequence[str], force: bool = True) -> Any:
        return atomic_outputs([self.path / name for name in names], force)

    def log(self, name: str) -> Any:
        return (self.path / name).open("w", encoding="utf-8", buffering=1)

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def local(self, names: Sequence[str]) -> Path:
        return self.path

    def tidy(self) -> None:
        ranks = [self.path / name for name in self.names("_rank-", ".json")]
        ended = max((path.stat().st_mtime for path in ranks), default=0.0)
        for path in self.path.glob(f"{BESIDE}*{TEMPORARY}"):  # later ones are those of another rank that finishes
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < ended:
                    path.unlink()


class RemotePlace:
    """A folder by URL. Files are made on the local disk and then sent; shards are fetched whole, and the last are kept.

    Forked workers share what was fetched; the process that made this removes it.
    """

    def __init__(self, url: str) -> None:
        self.name = url.rstrip("/")
        self._kept: Path | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "_kept": None}

    def _call(self, method: str, name: str, *arguments: Any, doing: str = "read", **options: Any) -> Any:
        """A method of the file system, whose cached listings would not know what other ranks wrote."""
        url = f"{self.name}/{name}" if name else self.name
        fs, path = filesystem_of(url, use_listings_cache=False)  # made anew after a fork
        fs.invalidate_cache()  # which that of the hub keeps nevertheless
        try:
            return retried(lambda: getattr(fs, method)(path, *arguments, **options))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise MediaError(f"cannot {doing} {url}: {one_line(error)}") from error

    @property
    def _atomic(self) -> bool:
        fs, _ = filesystem_of(self.name)
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        return bool(protocols & OBJECT_STORES)

    def same_as(self, other: Place) -> bool:
        return self.name == other.name

    def make(self) -> None:
        if not self._atomic:
            self._call("makedirs", "", exist_ok=True, doing="make")

    def has(self, name: str) -> bool:
        return bool(self._call("exists", name))

    def names(self, start: str, end: str = "") -> list[str]:
        try:
            found = self._call("ls", "", detail=False)
        except FileNotFoundError:
            return []
        names = (path.rstrip("/").rpartition("/")[2] for path in found)
        return sorted(name for name in names if name.startswith(start) and name.endswith(end))

    def size(self, name: str) -> int:
        return int(self._call("size", name))

    def open(self, name: str) -> BinaryIO:
        return io.BytesIO(self._read(name))

    def _read(self, name: str) -> bytes:
        try:
            data: bytes = self._call("cat_file", name)
            return data
        except FileNotFoundError as error:
            raise MediaError(f"cannot read {self.name}/{name}: no such file") from error

    @contextmanager
    def outputs(self, names: Sequence[str], force: bool = True) -> Iterator[list[BinaryIO]]:
        with tempfile.TemporaryDirectory(prefix="tokodec-") as folder, ExitStack() as stack:
            files = [stack.enter_context(Path(folder, str(i)).open("w+b")) for i in range(len(names))]
            yield cast("list[BinaryIO]", files)
            for file in files:
                file.flush()
            if not force and (there := [name for name in names if self.has(name)]):
                raise OutputExistsError(f"{self.name}/{there[0]} exists already")
            for file, name in reversed(list(zip(files, names, strict=True))):
                self._put(Path(file.name), name)

    def _put(self, source: Path, name: str) -> None:
        if self._atomic:
            self._send(source, name)
            return
        beside = f"{BESIDE}{secrets.token_hex(8)}-{name}{TEMPORARY}"
        self._send(source, beside)
        self.remove(name)  # not every file system renames onto a file
        self._call("mv", beside, filesystem_of(f"{self.name}/{name}")[1], doing="rename")

    def _send(self, source: Path, name: str) -> None:
        fs, path = filesystem_of(f"{self.name}/{name}")
        try:
            retried(lambda: fs.put_file(str(source), path))
        except OSError as error:
            raise MediaError(f"cannot write {self.name}/{name}: {one_line(error)}") from error

    @contextmanager
    def log(self, name: str) -> Iterator[TextIO]:
        file = io.StringIO()
        try:
            yield file
        finally:
            with self.outputs([name]) as (out,):
                out.write(file.getvalue().encode())

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            if self.has(name):  # the hub's error for what is not there is another
                self._call("rm_file", name, doing="remove")

    def local(self, names: Sequence[str]) -> Path:
        if self._kept is None:
            self._kept = Path(tempfile.mkdtemp(prefix="tokodec-"))
            weakref.finalize(self, _forget, self._kept, os.getpid())
        for name in names:
            kept = self._kept / name
            if kept.is_file():
                kept.touch()  # among the last that were used
                continue
            beside = self._kept / f"{BESIDE}{secrets.token_hex(8)}{TEMPORARY}"
            fs, remote = filesystem_of(f"{self.name}/{name}")
            try:
                retried(lambda: fs.get_file(remote, str(beside)))  # noqa: B023 (called here)
                beside.replace(kept)
            except OSError as error:
                raise MediaError(f"cannot read {self.name}/{name}: {one_line(error)}") from error
            finally:
                beside.unlink(missing_ok=True)
        times = {}
        for path in self._kept.glob("part-*"):
            with suppress(FileNotFoundError):  # a forked worker removed it
                times[path] = path.stat().st_mtime
        for path in sorted(times, key=times.__getitem__)[: -MOST_KEPT * len(names)]:
            path.unlink(missing_ok=True)  # who has it open keeps it
        return self._kept

    def tidy(self) -> None:
        for name in self.names(BESIDE, TEMPORARY):
            if "-part-" in name:
                self.remove(name)


def _forget(folder: Path, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
