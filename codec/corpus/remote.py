"""Media and folders by URL: whatever fsspec reads and writes, tried again where a network fails."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar, cast

from ..errors import TokodecError, UsageError, one_line

ATTEMPTS = 8
FIRST_WAIT = 0.1  # seconds; each wait is twice the last, up to a quarter more or less by chance
# What another attempt would not change. Packages have errors of their own for networks: all else is taken for one.
LASTING = (
    TokodecError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError,
    ImportError, NotImplementedError, ValueError, TypeError, AttributeError, KeyError, MemoryError,
)  # fmt: skip
T = TypeVar("T")


def is_url(name: object) -> bool:
    return "://" in str(name)


def filesystem_of(url: str, **options: Any) -> tuple[Any, str]:
    """The fsspec file system of a URL, and what it calls it. Raises UsageError if there is none."""
    try:
        import fsspec

        found: tuple[Any, str] = fsspec.core.url_to_fs(url, **options)
        return found
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"{url} cannot be read: {one_line(error)}; pip install 'tokodec[corpus]', s3:// needs 'tokodec[s3]'"
            " and hf:// 'tokodec[hub]'"
        ) from error


def retried(call: Callable[[], T]) -> T:
    """What a call gives; after a fault of the network it is made again, ``ATTEMPTS`` times in all.

    Raises: the last error; OSError in place of errors of a service.
    """
    for attempt in range(ATTEMPTS):
        try:
            return call()
        except LASTING:
            raise
        except Exception as error:
            if attempt == ATTEMPTS - 1:
                raise error if isinstance(error, OSError) else OSError(one_line(error) or repr(error)) from error
            time.sleep(FIRST_WAIT * 2**attempt * random.uniform(0.75, 1.25))
    raise AssertionError


def read_url(url: str, place: tuple[int, int] | None = None) -> bytes:
    """The bytes of a file, or of a part of it. Raises OSError, and UsageError without fsspec.

    Args: place: offset and number of bytes.
    """
    fs, path = filesystem_of(url)
    if place is None:
        whole: bytes = retried(lambda: fs.cat_file(path))
        return whole
    offset, size = place
    data: bytes = retried(lambda: fs.cat_file(path, start=offset, end=offset + size))
    if len(data) > size:  # a web server that gives no parts of files gives all of it
        data = data[offset : offset + size]
    if len(data) != size:
        raise OSError(f"{url} ends early")
    return data


def open_url(url: str) -> IO[bytes]:
    """A file for reading in order, a block at a time. Raises OSError, and UsageError without fsspec."""
    fs, path = filesystem_of(url)
    return cast(IO[bytes], io.BufferedReader(_Steady(retried(lambda: fs.open(path, "rb"))), 1 << 20))


def is_folder(url: str) -> bool:
    """Raises OSError, and UsageError without fsspec."""
    fs, path = filesystem_of(url)
    return bool(retried(lambda: fs.isdir(path)))


def list_url(url: str) -> Iterator[str]:
    """Names of the files in a folder and those inside it, below it; folder by folder, sorted, hidden ones left out.

    Raises: UsageError if it is none.
    """
    fs, top = filesystem_of(url)
    waiting = [""]
    while waiting:
        here = waiting.pop()
        try:
            found = retried(lambda: fs.ls(f"{top.rstrip('/')}/{here}".rstrip("/"), detail=True))  # noqa: B023
        except OSError as error:
            raise UsageError(f"cannot read the folder {url}: {one_line(error)}") from error
        names = {entry["name"].rstrip("/").rpartition("/")[2]: entry["type"] == "directory" for entry in found}
        shown = sorted(name for name in names if not name.startswith("."))
        yield from (here + name for name in shown if not names[name])
        waiting += [f"{here}{name}/" for name in reversed(shown) if names[name]]


class _Steady(io.RawIOBase):
    """A file whose reads are tried again."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readinto(self, buffer: Any) -> int:
        here = self._file.tell()

        def read() -> bytes:
            if self._file.tell() != here:
                self._file.seek(here)
            return self._file.read(len(buffer))

        data = retried(read)
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def close(self) -> None:
        self._file.close()
        super().close()
