"""The process of a command: its standard streams, the signals that end it, and its exit code."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

from .console import say
from .errors import ReaderGoneError, TokodecError
from .files import Output

EXIT_SIGNAL = 128  # and the number of the signal, as shells have it
_SIGNALS = ("SIGTERM", "SIGHUP")


class TerminatedError(BaseException):
    """The process is to end: raised where it is at work, so that whatever it holds open is put in order first."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def signals_raise() -> Iterator[None]:
    """Raise :class:`TerminatedError` for SIGTERM and SIGHUP, unless they are ignored (``nohup``)."""
    before: dict[int, Any] = {}

    def stop(number: int, _: FrameType | None) -> None:
        for other in before:  # the first one is enough: a second must not interrupt what it sets in order
            signal.signal(other, signal.SIG_IGN)
        raise TerminatedError(number)

    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _ClosedStream(io.RawIOBase):
    """A standard stream that was closed before the process began: it refuses."""

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def readinto(self, _: Any) -> int:
        raise OSError(errno.EBADF, "it is closed")

    def write(self, _: Any) -> int:
        raise OSError(errno.EBADF, "it is closed")


def open_streams() -> None:
    """Put standard streams in order: whatever is printed is checked, and what was closed refuses by name.

    A descriptor 0, 1 or 2 that is closed is given to the null device; otherwise the first file to be opened would get
    its number, and with it what libraries write to the terminal.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the smallest that is free
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(_ClosedStream()))
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)  # the null device by now
    stream = cast(Any, _ClosedStream() if sys.stdout is None else sys.stdout.buffer)
    encoding = getattr(sys.stdout, "encoding", "utf-8")
    errors = getattr(sys.stdout, "errors", "strict")
    terminal = sys.stdout is not None and sys.stdout.isatty()
    output = cast(io.BufferedIOBase, Output(stream, "standard output"))
    sys.stdout = io.TextIOWrapper(output, encoding, errors, line_buffering=terminal)


def run_process(run: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Call ``run`` as a process and return its exit code; see :func:`open_streams` and :func:`signals_raise`."""
    open_streams()
    try:
        with signals_raise():
            code = run(arguments)
    except TerminatedError as stopped:
        say(f"codec: stopped by {stopped}")
        return EXIT_SIGNAL + stopped.number
    try:
        sys.stdout.flush()
    except ReaderGoneError:
        pass
    except TokodecError as error:
        say(f"codec: {error}")
        code = code or error.exit_code
    return code
