"""An output file appears whole or not at all."""

import errno
import io
import os
import resource
import signal
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from tokodec.codec import files
from tokodec.codec.errors import MediaError, OutputExistsError, ReaderGoneError, UsageError
from tokodec.codec.files import (
    atomic_output,
    atomic_outputs,
    open_output,
    read_bytes,
    same_file,
    seekable,
    stored,
)


@pytest.fixture
def umask() -> Iterator[int]:
    old = os.umask(0o027)
    yield 0o027
    os.umask(old)


def write_and_raise(target: Path, force: bool, error: type[BaseException]) -> None:
    with atomic_output(target, force) as file:
        file.write(b"abc")
        raise error


def test_file_appears_at_the_end_and_nothing_else_stays(tmp_path: Path) -> None:
    target = tmp_path / "a.tok"
    with atomic_output(target, force=False) as file:
        file.write(b"abc")
        file.flush()
        assert not target.exists()
        (beside,) = tmp_path.iterdir()
        assert beside.name.startswith(".")
    assert target.read_bytes() == b"abc"
    assert list(tmp_path.iterdir()) == [target]


def test_file_is_seekable_and_readable(tmp_path: Path) -> None:
    with atomic_output(tmp_path / "a", force=False) as file:
        file.write(b"xxcd")
        file.seek(0)
        file.write(b"ab")
        file.seek(0)
        assert file.read() == b"abcd"
    assert (tmp_path / "a").read_bytes() == b"abcd"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("force", [False, True])
def test_any_exception_leaves_no_trace(tmp_path: Path, error: type[BaseException], force: bool) -> None:
    with pytest.raises(error):
        write_and_raise(tmp_path / "a.tok", force, error)
    assert list(tmp_path.iterdir()) == []


def test_exception_leaves_the_old_file_alone(tmp_path: Path) -> None:
    target = tmp_path / "a.tok"
    target.write_bytes(b"old")
    with pytest.raises(KeyError):
        write_and_raise(target, True, KeyError)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_existing_file_is_refused_before_the_work(tmp_path: Path) -> None:
    target = tmp_path / "a.tok"
    target.write_bytes(b"old")
    ran = False
    refusal = pytest.raises(OutputExistsError, match=r"a\.tok exists already: use --force")
    with refusal, atomic_output(target, force=False):
        ran = True
    assert not ran
    assert target.read_bytes() == b"old"


def test_force_replaces(tmp_path: Path) -> None:
    target = tmp_path / "a.tok"
    target.write_bytes(b"old and longer")
    with atomic_output(target, force=True) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old and longer"
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("links", [True, False])
def test_file_that_appears_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    if not links:
        _forbid_links(monkeypatch)
    target = tmp_path / "a.tok"
    refusal = pytest.raises(OutputExistsError)
    with refusal, atomic_output(target, force=False) as file:
        file.write(b"ours")
        target.write_bytes(b"theirs")
    assert target.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [target]


def test_works_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _forbid_links(monkeypatch)
    with atomic_output(tmp_path / "a.tok", force=False) as file:
        file.write(b"abc")
    assert (tmp_path / "a.tok").read_bytes() == b"abc"
    assert len(list(tmp_path.iterdir())) == 1


def _forbid_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)


def test_permissions_follow_the_umask(tmp_path: Path, umask: int) -> None:
    with atomic_output(tmp_path / "a.tok", force=False) as file:
        file.write(b"abc")
    assert stat.S_IMODE((tmp_path / "a.tok").stat().st_mode) == 0o666 & ~umask


def test_permissions_of_a_replaced_file_stay(tmp_path: Path, umask: int) -> None:
    target = tmp_path / "a.tok"
    target.touch()
    target.chmod(0o604)
    with atomic_output(target, force=True) as file:
        file.write(b"abc")
    assert stat.S_IMODE(target.stat().st_mode) == 0o604


def test_symbolic_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(OutputExistsError), atomic_output(tmp_path / "link", force=False):
        pass
    with atomic_output(tmp_path / "link", force=True) as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_device_is_written_not_replaced() -> None:
    with atomic_output(Path(os.devnull), force=False) as file:
        file.write(b"abc")
    assert not Path(os.devnull).is_file()


def test_longest_name_works(tmp_path: Path) -> None:
    with atomic_output(tmp_path / ("n" * 255), force=False) as file:
        file.write(b"abc")
    assert (tmp_path / ("n" * 255)).read_bytes() == b"abc"


def test_missing_folder(tmp_path: Path) -> None:
    target = tmp_path / "no" / "a.tok"
    refusal = pytest.raises(UsageError, match=r"^cannot write .*a\.tok: the folder .*no does not exist$")
    with refusal, atomic_output(target, force=False):
        pass


def test_folder_as_output(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"it is a folder$"), atomic_output(tmp_path, force=True):
        pass


def test_file_as_folder(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(UsageError, match=r"f is not a folder$"), atomic_output(tmp_path / "f" / "a.tok", force=False):
        pass


def test_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: str, flags: int, mode: int = 0o777, **rest: object) -> int:  # the superuser may write anywhere
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    refusal = pytest.raises(MediaError, match=r"^cannot write .*a\.tok: permission denied$")
    with refusal, atomic_output(tmp_path / "a.tok", force=False):
        pass


def test_outputs_that_belong_together_appear_together(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    with atomic_outputs(paths, force=False) as outputs:
        for file in outputs:
            file.write(b"x")
        assert not any(path.exists() for path in paths)
    assert all(path.read_bytes() == b"x" for path in paths)
    paths[1].write_bytes(b"precious")
    paths[0].unlink()
    paths[2].unlink()
    with pytest.raises(OutputExistsError, match="b exists"), atomic_outputs(paths, force=False):
        pytest.fail("not reached")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    with pytest.raises(KeyboardInterrupt), atomic_outputs(paths, force=True):
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert paths[1].read_bytes() == b"precious"


def test_of_outputs_that_belong_together_the_first_gets_its_name_last(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    with pytest.raises(OutputExistsError, match="a exists"), atomic_outputs(paths, force=False):
        paths[0].write_bytes(b"theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert paths[0].read_bytes() == b"theirs"


# ------------------------------------------------------------------------------------------- refusals of the system


class Disk(io.RawIOBase):
    """Has room for so many bytes; what does not fit is taken in part, then refused, as by a disk."""

    def __init__(self, room: int) -> None:
        self.room, self.held = room, b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        taken = bytes(data)[: self.room - len(self.held)]
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.held += taken
        return len(taken)


def test_writes_in_parts_are_finished() -> None:
    class Slow(Disk):
        def write(self, data: Any) -> int:
            return super().write(bytes(data)[:3])

    disk = Slow(100)
    with open_output(cast(BinaryIO, disk), force=False) as file:
        assert file is not None
        assert file.write(b"abcdefgh") == 8
    assert disk.held == b"abcdefgh"


def test_first_refusal_is_what_is_told() -> None:
    """Also if the library that writes swallowed it, or stumbled over what followed from it."""

    def write(swallow: bool, then: Exception | None) -> None:
        with open_output(cast(BinaryIO, Disk(5)), False) as file:
            assert file is not None
            with suppress(MediaError if swallow else ZeroDivisionError):
                file.write(b"abcdefgh")
            if then is not None:
                raise then

    for swallow, then in ((False, None), (True, None), (True, RuntimeError("encoder error -2"))):
        with pytest.raises(MediaError, match=r"^cannot write the output: no space left on device$"):
            write(swallow, then)


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Whether it is noticed when bytes are handed over, or only when they reach the disk."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    target = tmp_path / "a.tok"
    target.write_bytes(b"old")
    refusal = pytest.raises(MediaError, match=r"^cannot write .*a\.tok: no space left on device$")
    if call == "fsync":
        monkeypatch.setattr(os, "fsync", refuse)
        with refusal, atomic_output(target, force=True) as file:
            file.write(b"abc")
    else:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))  # the kernel takes a part, then EFBIG
        try:
            with pytest.raises(MediaError, match="too large"), atomic_output(target, force=True) as file:
                file.write(bytes(100_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tok"]
    assert target.read_bytes() == b"old"


def test_file_systems_that_cannot_sync_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    with atomic_output(tmp_path / "a", force=False) as file:
        file.write(b"abc")
    assert (tmp_path / "a").read_bytes() == b"abc"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only: there is no such device")
def test_full_device_is_one_line() -> None:
    for size in (3, 100_000):  # refused when closed, refused at once
        refusal = pytest.raises(MediaError, match=r"^cannot write /dev/full: no space left on device$")
        with refusal, atomic_output(Path("/dev/full"), force=False) as file:
            file.write(bytes(size))


def test_descriptors_are_written_to_in_place(tmp_path: Path) -> None:
    """`-o /dev/stdout > file` writes to that file; it does not put another in its place."""
    with (tmp_path / "a").open("wb") as file:
        before = os.fstat(file.fileno()).st_ino
        with atomic_output(Path(f"/dev/fd/{file.fileno()}"), force=False) as output:
            output.write(b"abc")
    assert (tmp_path / "a").read_bytes() == b"abc"
    assert (tmp_path / "a").stat().st_ino == before


def test_pipe_without_reader() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(ReaderGoneError), atomic_output(Path(f"/dev/fd/{writing}"), force=False) as output:
        output.write(b"abc")
    os.close(writing)
    assert ReaderGoneError.exit_code == 0


# ---------------------------------------------------------------------------------------------- inputs, read once


def test_overwriting_an_input_is_refused_by_file_not_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.png").write_bytes(b"precious")
    (tmp_path / "hard").hardlink_to(tmp_path / "own.png")
    (tmp_path / "soft").symlink_to("own.png")
    (tmp_path / "other.png").write_bytes(b"precious")
    monkeypatch.chdir(tmp_path)
    for name in ("own.png", "./own.png", "hard", "soft", str(tmp_path / "own.png"), "../" + tmp_path.name + "/own.png"):
        with pytest.raises(UsageError, match=r"^own\.png would be overwritten"), open_output(name, True, "own.png"):
            pytest.fail("not reached")
    assert not same_file("own.png", "other.png")
    assert same_file("none", "./none")
    assert not same_file(os.devnull, os.devnull)
    assert (tmp_path / "own.png").read_bytes() == b"precious"


def test_fifo_is_read_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    data = bytes(range(256)) * 1000
    writer = threading.Thread(target=fifo.write_bytes, args=(data,))
    writer.start()
    seen: list[bytes] = []
    copy = stored(fifo, seen.append)
    writer.join()
    assert not isinstance(copy, Path)
    assert copy.seekable()
    assert copy.read() == data
    assert seen == [data[:4096]]
    assert stored(tmp_path / "missing") == tmp_path / "missing"


def test_long_streams_go_to_a_temporary_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(files, "_IN_MEMORY", 1000)
    monkeypatch.setattr(files, "_BLOCK", 300)
    reading, writing = os.pipe()
    data = bytes(range(256)) * 200
    with os.fdopen(writing, "wb") as out:
        out.write(data)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        copy = stored(cast(BinaryIO, pipe))
    assert not isinstance(copy, (Path, io.BytesIO))
    assert copy.read() == data


def test_devices_that_say_they_can_seek_are_read_once() -> None:
    def refuse(start: bytes) -> None:
        raise MediaError(f"{len(start)} bytes are enough")

    with open("/dev/zero", "rb") as zeros, pytest.raises(MediaError, match=r"^4096 bytes are enough$"):  # noqa: PTH123
        stored(zeros, refuse)
    memory = io.BytesIO(b"x")
    assert stored(memory, refuse) is memory


def test_signature_comes_first() -> None:
    """A stream without an end is refused by what it begins with."""
    assert read_bytes("/dev/zero", b"\x89TOK") == bytes(4)

    def refuse(start: bytes) -> None:
        assert start == bytes(4096)
        raise MediaError("not of a known kind")

    with pytest.raises(MediaError, match="not of a known kind"):
        stored(Path("/dev/zero"), refuse)
    assert read_bytes(io.BytesIO(b"\x89TOK and more"), b"\x89TOK") == b"\x89TOK and more"
    with pytest.raises(MediaError, match=r"^cannot read nowhere: no such file or directory$"):
        read_bytes("nowhere", b"\x89TOK")


def test_unseekable_outputs_get_their_bytes_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as pipe, seekable(pipe) as file:
        file.write(b"xxc")
        file.seek(0)
        file.write(b"ab")
    assert os.read(reading, 10) == b"abc"
    os.close(reading)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: cast(BinaryIO, io.BufferedRandom(FullTemporary())))
    reading, writing = os.pipe()
    with (
        os.fdopen(writing, "wb") as pipe,
        pytest.raises(MediaError, match=r"^cannot write a temporary file in .*: no space left"),
        seekable(pipe) as file,
    ):
        file.write(bytes(100_000))
    os.close(reading)


class FullTemporary(Disk):
    def __init__(self) -> None:
        super().__init__(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0
