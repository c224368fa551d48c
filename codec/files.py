"""Output files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, cast

from .errors import MediaError, OutputExistsError, TokodecError, UsageError

# What link() answers where the file system (FAT, some network shares) has no hard links.
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EXDEV}


@contextmanager
def atomic_output(path: Path, force: bool) -> Iterator[BinaryIO]:
    """Open ``path`` for writing so that it exists only once it is complete.

    The bytes go to a hidden file in the same folder, which takes the name ``path`` when the block ends well and is
    removed when it ends with any exception, KeyboardInterrupt included. Permissions are those of a plain ``open``
    (umask), or those of the file that is replaced. A symbolic link is followed, not replaced. A device or a pipe
    (``/dev/null``) is written to directly, since it must not be replaced by a file.

    Args:    path: the output.  force: whether an existing file may be replaced.
    Returns: a context manager that gives a seekable binary file object, open for reading and writing.
    Raises:  OutputExistsError if ``path`` exists and not ``force``: before the block runs, and again at its end if
             somebody else created it meanwhile (their file is kept). UsageError for a folder, or a folder that does
             not exist. MediaError if the folder or the disk refuses.
    """
    target = Path(os.path.realpath(path))
    try:
        found: os.stat_result | None = target.stat()
    except FileNotFoundError:
        found = None
    except NotADirectoryError:
        raise UsageError(f"cannot write {path}: {path.parent} is not a folder") from None
    except OSError as error:
        raise MediaError(f"cannot write {path}: {_reason(error)}") from error
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise UsageError(f"cannot write {path}: it is a folder")
    if found is not None and not stat.S_ISREG(found.st_mode):
        with _refusals(path):
            special = target.open("wb")
        with special:
            yield special
        return
    if found is not None and not force:
        raise _exists(path)
    if not target.parent.is_dir():
        raise UsageError(f"cannot write {path}: the folder {path.parent} does not exist")

    # Not named after the target: a name of 255 bytes would leave no room for a prefix.
    beside = target.parent / f".tokodec-{secrets.token_hex(8)}.tmp"
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    with _refusals(path):
        descriptor = os.open(beside, flags, 0o666)  # the umask takes its part; tempfile's 0600 would stay private
    try:
        with os.fdopen(descriptor, "w+b") as file:
            if found is not None and hasattr(os, "fchmod"):
                with suppress(PermissionError):  # another user's file in a folder of ours
                    os.fchmod(file.fileno(), stat.S_IMODE(found.st_mode))
            yield cast(BinaryIO, file)
            with _refusals(path):
                file.flush()
        with _refusals(path):
            _give_name(beside, target, path, force)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def atomic_outputs(paths: Sequence[Path], force: bool) -> Iterator[list[BinaryIO]]:
    """Several outputs that belong together, each as :func:`atomic_output`; refused as one if any is there already.

    They get their names last to first, so put first what a reader opens first: once that is there, all are. If somebody
    created one of them meanwhile, those that have their names already are removed.
    """
    named: list[Path] = []

    @contextmanager
    def output(path: Path) -> Iterator[BinaryIO]:
        with atomic_output(path, force) as file:
            yield file
        named.append(path)

    try:
        with ExitStack() as stack:
            yield [stack.enter_context(output(path)) for path in paths]
    except BaseException:
        for path in named:
            if not force and path.is_file():
                path.unlink()
        raise


def _give_name(beside: Path, target: Path, path: Path, force: bool) -> None:
    """Rename; without ``force`` in a way that cannot replace a file that appeared meanwhile."""
    if force:
        beside.replace(target)
        return
    try:
        os.link(beside, target)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        try:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # claim the name, then replace
        except FileExistsError:
            raise _exists(path) from None
        beside.replace(target)


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn the system's refusals into one line that names the file."""
    try:
        yield
    except TokodecError:
        raise
    except OSError as error:
        raise MediaError(f"cannot write {path}: {_reason(error)}") from error


def _exists(path: Path) -> OutputExistsError:
    return OutputExistsError(f"{path} exists already: use --force to replace it")


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


@contextmanager
def open_output(dst: str | Path | BinaryIO | None, force: bool) -> Iterator[BinaryIO | None]:
    """Output by path (:func:`atomic_output`), to a file object that the caller owns, or nowhere (None).

    Opened before the work begins, so that an output that cannot be written is known before minutes are spent on it.
    """
    if isinstance(dst, (str, Path)):
        with atomic_output(Path(dst), force) as file:
            yield file
    else:
        yield dst


def read_bytes(src: str | Path | BinaryIO) -> bytes:
    """The whole file. Raises MediaError if it cannot be read."""
    if not isinstance(src, (str, Path)):
        return src.read()
    try:
        return Path(src).read_bytes()
    except OSError as error:
        raise MediaError(f"cannot read {src}: {error.strerror}") from error


@contextmanager
def seekable(target: BinaryIO) -> Iterator[BinaryIO]:
    """``target``, or a file in its place that is copied into it in the end: headers are written last."""
    if target.seekable():
        yield target
        return
    with tempfile.TemporaryFile() as file:
        yield file
        file.seek(0)
        while block := file.read(1 << 20):
            target.write(block)
