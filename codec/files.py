"""Files in and out: inputs that are read once and in order, outputs that appear whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from .errors import MediaError, OutputExistsError, ReaderGoneError, TokodecError, UsageError

# What link() answers where the file system (FAT, some network shares) has no hard links.
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.EXDEV}
_NO_SYNC = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}  # file systems that cannot wait for a disk
_DESCRIPTORS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_ALIASES = {".jpeg": ".jpg", ".tif": ".tiff"}  # suffixes of the same format
_BLOCK = 1 << 20
_IN_MEMORY = 64 << 20  # bytes of a stream that wait in memory; longer ones go to a temporary file


# ----------------------------------------------------------------------------------------------------------- inputs


def source_name(src: str | Path | BinaryIO) -> str:
    """What messages call an input."""
    return str(src) if isinstance(src, (str, Path)) else "standard input"


def is_stream(path: Path) -> bool:
    """Whether a path can be read only once and in order: a pipe, a device, a socket. False if there is nothing."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def stored(source: Path | BinaryIO, check: Callable[[bytes], object] | None = None) -> Path | BinaryIO:
    """A source that may be read more than once.

    Args:    source: a path, or a binary file object.  check: given the first 4 KiB of what is read only once, before
             the rest is; it raises what is to be raised about a stream that is of no use (``/dev/zero`` has no end).
    Returns: ``source`` itself if it is a regular file, a folder, missing or in memory; else a copy, in memory or in a
             temporary file that goes with it.
    Raises:  MediaError if it cannot be read, or the copy finds no place.
    """
    if isinstance(source, Path):
        if not is_stream(source):
            return source
        try:
            with source.open("rb", buffering=0) as file:
                return _copy(cast(BinaryIO, file), str(source), check)
        except OSError as error:
            raise MediaError(f"cannot read {source}: {_reason(error)}") from error
    if _can_seek(source):
        return source
    try:
        return _copy(source, "standard input", check)
    except OSError as error:
        raise MediaError(f"cannot read standard input: {_reason(error)}") from error


def _can_seek(file: BinaryIO) -> bool:
    """Whether a file object can be read again: ``/dev/zero`` says so, too, but has no end to look for."""
    if not file.seekable():
        return False
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except OSError:  # in memory
        return True


def _copy(stream: BinaryIO, name: str, check: Callable[[bytes], object] | None) -> BinaryIO:
    start = read_exactly(stream, 4096)
    if check is not None:
        check(start)
    held: IO[bytes] = io.BytesIO()
    try:
        held.write(start)
        while block := stream.read(_BLOCK):
            if isinstance(held, io.BytesIO) and held.tell() + len(block) > _IN_MEMORY:
                spill = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as what is returned)
                spill.write(held.getbuffer())
                held = spill
            held.write(block)
        held.seek(0)
    except OSError as error:
        held.close()
        raise MediaError(f"cannot keep a copy of {name}: {_reason(error)}") from error
    return cast(BinaryIO, held)


def read_exactly(stream: BinaryIO, count: int) -> bytes:
    """``count`` bytes, fewer only at the end: one read of a pipe gives what is there."""
    blocks = []
    while count and (block := stream.read(count)):
        blocks.append(block)
        count -= len(block)
    return b"".join(blocks)


def read_bytes(src: str | Path | BinaryIO, signature: bytes = b"") -> bytes:
    """The whole file, or only as many bytes as ``signature`` has if it begins otherwise: ``/dev/zero`` has no end.

    Raises:  MediaError if it cannot be read.
    """
    try:
        if isinstance(src, (str, Path)):
            with Path(src).open("rb") as file:
                return _read_signed(file, signature)
        return _read_signed(src, signature)
    except OSError as error:
        raise MediaError(f"cannot read {source_name(src)}: {_reason(error)}") from error


def _read_signed(file: BinaryIO, signature: bytes) -> bytes:
    start = read_exactly(file, len(signature))
    return start + file.read() if start == signature else start


# ---------------------------------------------------------------------------------------------------------- outputs


class Output(io.BufferedIOBase):
    """A binary file that is written: every refusal names it, and the first one is what is told in the end.

    Libraries that write through callbacks may swallow an error; whoever closes an output calls :meth:`finish`, which
    raises it again. There is no ``fileno``: Pillow would write to it and take no notice of what a full disk refuses.

    Args: file: where the bytes go; it is not closed.  name: what messages call it.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        self.file, self.called = file, name
        self.refusal: TokodecError | None = None

    @contextmanager
    def _told(self) -> Iterator[None]:
        if self.refusal is not None:  # what is written after a hole would be of no use
            raise self.refusal
        try:
            yield
        except BrokenPipeError as error:
            self.refusal = ReaderGoneError(f"nobody reads {self.called} any more")
            raise self.refusal from error
        except OSError as error:
            self.refusal = MediaError(f"cannot write {self.called}: {_reason(error)}")
            raise self.refusal from error

    def write(self, data: Any) -> int:
        """All of ``data``, also where the system takes it in parts."""
        with self._told():
            view = memoryview(data).cast("B")
            done = 0
            while done < len(view):
                taken = self.file.write(view[done:] if done else view)
                if not taken:
                    raise OSError(errno.EIO, "nothing was written")
                done += taken
            return done

    def flush(self) -> None:
        if self.closed or self.refusal is not None or self.file.closed:  # closing tries once more
            return
        with self._told():
            self.file.flush()

    def finish(self, sync: bool = False) -> None:
        """Flush, and wait for the disk if ``sync``. Raises the first refusal if there was one."""
        with self._told():
            self.file.flush()
            if sync:
                try:
                    os.fsync(self.file.fileno())
                except OSError as error:
                    if error.errno not in _NO_SYNC:
                        raise

    def read(self, size: int | None = -1, /) -> bytes:
        return self.file.read(-1 if size is None else size)

    def read1(self, size: int = -1, /) -> bytes:
        return self.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        with self._told():  # writes what is buffered
            return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def truncate(self, size: int | None = None, /) -> int:
        with self._told():
            return self.file.truncate(size)

    def seekable(self) -> bool:
        return self.file.seekable()

    def readable(self) -> bool:
        return self.file.readable()

    def writable(self) -> bool:
        return True


@contextmanager
def atomic_output(path: Path, force: bool) -> Iterator[BinaryIO]:
    """Open ``path`` for writing so that it exists only once it is complete.

    The bytes go to a hidden file in the same folder, which takes the name ``path`` when the block ends well and all of
    them are on the disk, and is removed when it ends with any exception, KeyboardInterrupt included. Permissions are
    those of a plain ``open`` (umask), or those of the file that is replaced. A symbolic link is followed, not replaced.
    A device or a pipe (``/dev/null``, ``/dev/stdout``) is written to directly, since it must not be replaced by a file.

    Args:    path: the output.  force: whether an existing file may be replaced.
    Returns: a context manager that gives a seekable binary file object, open for reading and writing (devices and
             pipes: what they can do).
    Raises:  OutputExistsError if ``path`` exists and not ``force``: before the block runs, and again at its end if
             somebody else created it meanwhile (their file is kept). UsageError for a folder, or a folder that does
             not exist. MediaError if the folder or the disk refuses, ReaderGoneError if a pipe has lost its reader,
             both instead of whatever the block raised because of it.
    """
    special = _open_special(path)
    if special is not None:
        with _owned(special, path, sync=False) as output:
            yield output
        return
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
    if found is not None and not force:
        raise _exists(path)
    if not target.parent.is_dir():
        raise UsageError(f"cannot write {path}: the folder {path.parent} does not exist")

    # Not named after the target: a name of 255 bytes would leave no room for a prefix.
    beside = target.parent / f".tokodec-{secrets.token_hex(8)}.tmp"
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        with _refusals(path):
            descriptor = os.open(beside, flags, 0o666)  # the umask takes its part; tempfile's 0600 would stay private
            file = os.fdopen(descriptor, "w+b")
        with _owned(file, path, sync=True) as output:
            if found is not None and hasattr(os, "fchmod"):
                with suppress(PermissionError):  # another user's file in a folder of ours
                    os.fchmod(descriptor, stat.S_IMODE(found.st_mode))
            yield output
        with _refusals(path):
            _give_name(beside, target, path, force)
    finally:
        beside.unlink(missing_ok=True)


def _open_special(path: Path) -> IO[bytes] | None:
    """A file object that writes to a device, a pipe or an open descriptor; None for other paths."""
    descriptor = _DESCRIPTORS.get(str(path))
    if (found := re.fullmatch(r"/(?:dev|proc/self)/fd/([0-9]{1,9})", str(path))) is not None:
        descriptor = int(found[1])
    with _refusals(path):
        if descriptor is not None:
            return os.fdopen(os.dup(descriptor), "wb")
        return path.open("wb") if is_stream(path) else None


@contextmanager
def _first_refusal(output: Output) -> Iterator[None]:
    """If the system refused a write, that is what is raised, whatever a library made of it on the way."""
    try:
        yield
    except Exception:
        if output.refusal is not None:
            raise output.refusal from output.refusal.__cause__
        raise


@contextmanager
def _owned(file: IO[bytes], path: Path, sync: bool) -> Iterator[BinaryIO]:
    """Write to ``file`` and close it. The first refusal of the system is raised, and no second one by closing."""
    output = Output(file, str(path))
    try:
        with _first_refusal(output):
            yield cast(BinaryIO, output)
            output.finish(sync)
    finally:
        # What is buffered has been flushed, or is not wanted: closing the whole would try again to write it.
        with _refusals(path):
            getattr(file, "raw", file).close()


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


def same_file(one: str | Path, other: str | Path) -> bool:
    """Whether two paths name the same file, by whatever links; paths to nothing are compared as what they resolve to.

    Pipes and devices are never the same: writing to one does not overwrite what is read from it.
    """
    if is_stream(Path(one)) or is_stream(Path(other)):
        return False
    try:
        return Path(one).samefile(other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def refuse_overwriting(inputs: Iterable[object], dst: object) -> None:
    """Raise UsageError if ``dst`` is one of the files that are read. What is not a path is passed over."""
    if not isinstance(dst, (str, Path)):
        return
    for src in inputs:
        if isinstance(src, (str, Path)) and same_file(src, dst):
            raise UsageError(f"{src} would be overwritten by the output {dst}: name another")


def output_name(dst: object) -> str:
    """What messages call an output."""
    if isinstance(dst, (str, Path)):
        return str(dst)
    return "standard output" if getattr(dst, "name", None) == "<stdout>" else "the output"


def make_folder(path: Path) -> None:
    """A folder for outputs, if it is not there. Raises UsageError if it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {path}: {(error.strerror or str(error)).lower()}") from error


def output_suffix(dst: object, format: str | None) -> str:
    """The suffix of an output: that of its name, or else what ``format`` says; "" if neither does.

    Raises: UsageError if they contradict each other.
    """
    own = Path(dst).suffix if isinstance(dst, (str, Path)) else ""
    said = f".{format.lstrip('.')}" if format else ""
    names = {_ALIASES.get(suffix.lower(), suffix.lower()) for suffix in (own, said) if suffix}
    if len(names) > 1:
        raise UsageError(f"{dst} is to be {said}: give it that suffix, or no format")
    return own or said


@contextmanager
def open_output(dst: str | Path | BinaryIO | None, force: bool, *inputs: object) -> Iterator[BinaryIO | None]:
    """Output by path (:func:`atomic_output`), to a file object that the caller owns, or nowhere (None).

    Opened before the work begins, so that an output that cannot be written is known before minutes are spent on it.

    Args:    inputs: what is read; UsageError if a path among them is that of the output.
    Raises:  as :func:`atomic_output`, also where a file object refuses.
    """
    refuse_overwriting(inputs, dst)
    if isinstance(dst, (str, Path)):
        with atomic_output(Path(dst), force) as file:
            yield file
    elif dst is None:
        yield None
    else:
        output = Output(dst, output_name(dst))
        with _first_refusal(output):
            yield cast(BinaryIO, output)
            output.finish()


@contextmanager
def seekable(target: BinaryIO) -> Iterator[BinaryIO]:
    """``target``, or a file in its place that is copied into it in the end: headers are written last."""
    if target.seekable():
        yield target
        return
    with tempfile.TemporaryFile() as file:
        waiting = Output(file, f"a temporary file in {tempfile.gettempdir()}")
        yield cast(BinaryIO, waiting)
        waiting.finish()
        file.seek(0)
        while block := file.read(_BLOCK):
            target.write(block)
