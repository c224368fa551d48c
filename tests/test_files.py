"""An output file appears whole or not at all."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tokodec.codec.errors import MediaError, OutputExistsError, UsageError
from tokodec.codec.files import atomic_output, atomic_outputs


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
    with atomic_outputs(paths, force=False) as files:
        for file in files:
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
