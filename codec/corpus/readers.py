"""Reading and decoding of media in processes of their own, in order and with bounded memory."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..container.fields import SIGNATURE
from ..errors import OUT_OF_MEMORY, TokodecError, UsageError, is_out_of_memory, one_line
from ..image.prepare import prepare
from ..media.kind import media_kind
from ..media.read_image import read_image
from .token_files import TOKEN_SUFFIXES

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from .sources import Sample


MOST_PIXELS = 1 << 22  # larger pictures are decoded when it is their turn: few of them would fill the memory
TOGETHER = 8  # samples that a process gets at once: small pictures take less time than the way there and back
PACKAGES = ("pillow", "soundfile", "soxr", "av")  # whose versions decide samples, and so tokens
A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class Loaded:
    """A sample that was read.

    Attributes:
        sha256: of its bytes, hex digits; "" if they could not be read.
        pixels: ``[H, W, C]`` uint8 of a picture, ready for the tokenizer.
        data: of anything else, where it can be read.
        problem: why there is neither.
        damaged: whether that is damage that leaves a part to be decoded.
        seconds: that it took.
    """

    sha256: str = ""
    pixels: np.ndarray | None = None
    data: Path | BytesIO | None = None
    problem: str = ""
    damaged: bool = False
    seconds: float = 0.0


def reader_versions() -> dict[str, str | None]:
    """Versions of the packages that decode media here."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def reason(error: Exception) -> str:
    """Why a sample failed, in one line."""
    if isinstance(error, TokodecError):
        return str(error)
    return OUT_OF_MEMORY if is_out_of_memory(error) else f"{type(error).__name__}: {one_line(error)}"


def load(sample: Sample, pictures: bool, max_pixels: int) -> Loaded:
    """Read a sample; of pictures, if those are wanted, also the pixels. No error leaves this function."""
    begin = time.monotonic()
    if sample.problem:
        return Loaded(problem=sample.problem)
    try:
        data = sample.open()
        sha256, start = _digest(data)
        done = Loaded(sha256, data=data)
        own = Path(sample.source).suffix.lower() in (".tok", *TOKEN_SUFFIXES) or start.startswith(SIGNATURE)
        if pictures and not own and media_kind(data)[0] == "image":
            picture = prepare(read_image(data, sample.source, max_pixels))
            if picture.problems:
                done = Loaded(sha256, problem=picture.problems[0], damaged=True)
            elif picture.pixels.size <= MOST_PIXELS:
                done = Loaded(sha256, picture.pixels)
    except Exception as error:  # whatever a file of a million does to a decoder, the others go on
        done = Loaded(problem=reason(error))
    object.__setattr__(done, "seconds", time.monotonic() - begin)
    return done


def _digest(data: Path | BytesIO) -> tuple[str, bytes]:
    """SHA-256 of a file, and its first bytes."""
    if isinstance(data, BytesIO):
        return hashlib.sha256(data.getbuffer()).hexdigest(), data.getvalue()[: len(SIGNATURE)]
    digest, start = hashlib.sha256(), b""
    with data.open("rb") as file:
        while block := file.read(1 << 20):
            start = start or block[: len(SIGNATURE)]
            digest.update(block)
    return digest.hexdigest(), start


class Readers:
    """Calls of a function in other processes, whose results come in the order of the calls.

    Each process has a thread here that gives it a few items at a time. Pixels come back as they are, beside the rest.
    A call that raises ends its process, as one that kills it does.

    Args: workers: processes; 0: calls happen here.  ahead: calls that are made before their results are taken.
          processes: False for threads in their place, which start at once and are enough to fetch and hash files.
    """

    def __init__(self, workers: int, ahead: int, processes: bool = True) -> None:
        self.workers, self.ahead, self.processes = workers, ahead, processes
        self._threads = ThreadPoolExecutor(workers) if workers else None
        self._own = threading.local()
        self._started: list[_Process] = []
        self._closed = False

    def map(self, call: Callable[[A], B], items: Iterable[A], crashed: B) -> Iterator[tuple[A, B]]:
        """Items with their results. crashed: the result of an item that kills the process."""
        if self._threads is None:
            yield from ((item, call(item)) for item in items)
            return
        items = iter(items)
        share = min(TOGETHER, max(1, self.ahead // (2 * self.workers)))
        waiting: deque[tuple[list[A], Future[list[B]]]] = deque()
        while True:
            while len(waiting) * share < self.ahead and (few := list(islice(items, share))):
                waiting.append((few, self._threads.submit(self._results, call, few, crashed)))
            if not waiting:
                return
            few, future = waiting.popleft()
            yield from zip(few, future.result(), strict=True)

    def _results(self, call: Callable[[A], B], items: list[A], crashed: B) -> list[B]:
        """Of the process of this thread. If it dies, of a new one that gets the items one by one."""
        if self._closed:
            return []
        if not self.processes:
            return [call(item) for item in items]
        process: _Process | None = getattr(self._own, "process", None)
        if process is None:
            process = self._own.process = _Process()
            self._started.append(process)
        try:
            found: list[B] = process.results(call, items)
            return found
        except (EOFError, OSError):
            process.close()
            self._started.remove(process)
            self._own.process = None
            if len(items) == 1:
                return [crashed]
            return [result for item in items for result in self._results(call, [item], crashed)]

    def close(self) -> None:
        self._closed = True
        for process in list(self._started):
            process.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)


class _Process:
    """A process that calls functions. It ends when its pipe does, so also when its parent is gone, however it went.

    Raises: UsageError if it does not start.
    """

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would share the threads and the GPU of PyTorch
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other,), daemon=True)
        self._process.start()
        other.close()
        try:
            self._pipe.recv()
        except (EOFError, OSError) as error:
            raise UsageError(
                "a process that reads could not start; a script runs its work under if __name__ == '__main__'"
            ) from error

    def results(self, call: Callable[[A], B], items: list[A]) -> Any:
        """Raises EOFError or OSError if the process dies."""
        self._pipe.send((call, items))
        found = []
        for result, shape in self._pipe.recv():
            if shape is not None:
                pixels = np.empty(shape, np.uint8)
                _read_into(self._pipe, pixels)
                result = replace(result, pixels=pixels)
            found.append(result)
        return found

    def close(self) -> None:
        self._process.terminate()
        self._process.join()
        self._pipe.close()


def _serve(pipe: Connection) -> None:
    """Answer until nobody asks any more. Ctrl-C is left to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, OSError):
        pipe.send("ready")
        while True:
            call, items = pipe.recv()
            results = [call(item) for item in items]
            arrays = [result.pixels if isinstance(result, Loaded) else None for result in results]
            answer = []
            for result, x in zip(results, arrays, strict=True):
                answer.append((result, None) if x is None else (replace(result, pixels=None), x.shape))
            pipe.send(answer)
            for x in arrays:
                if x is not None:
                    _write(pipe, x)


def _write(pipe: Connection, x: np.ndarray) -> None:
    """The bytes of an array as they are: a message of `Connection` is copied several times, which takes ten times as
    long on the other side."""
    rest = np.ascontiguousarray(x).data.cast("B")
    while rest:
        rest = rest[os.write(pipe.fileno(), rest) :]


def _read_into(pipe: Connection, x: np.ndarray) -> None:
    """What :func:`_write` wrote. Raises EOFError if it ends early."""
    rest = x.data.cast("B")
    while rest:
        got = os.readv(pipe.fileno(), [rest])
        if not got:
            raise EOFError
        rest = rest[got:]
