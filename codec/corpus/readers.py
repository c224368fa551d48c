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
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..container.fields import SIGNATURE
from ..errors import OUT_OF_MEMORY, TokodecError, is_out_of_memory, one_line
from ..image.prepare import prepare
from ..media.kind import media_kind
from ..media.read_image import read_image
from .token_files import TOKEN_SUFFIXES

if TYPE_CHECKING:
    import numpy as np

    from .sources import Sample

    Pixels = np.ndarray

MOST_PIXELS = 1 << 22  # larger pictures are decoded when it is their turn: few of them would fill the memory
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
    pixels: Pixels | None = None
    data: Path | BytesIO | None = None
    problem: str = ""
    damaged: bool = False
    seconds: float = 0.0


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

    Args: workers: processes; 0: calls happen here.  ahead: calls that are made before their results are taken.
    """

    def __init__(self, workers: int, ahead: int) -> None:
        self.workers, self.ahead = workers, ahead
        self._pool = self._started()

    def _started(self) -> ProcessPoolExecutor | None:
        if not self.workers:
            return None
        context = multiprocessing.get_context("spawn")  # a fork would share the threads and the GPU of PyTorch
        return ProcessPoolExecutor(self.workers, context, _begin_worker)

    def map(self, call: Callable[[A], B], items: Iterable[A], crashed: B) -> Iterator[tuple[A, B]]:
        """Items with their results. crashed: the result of an item that kills the process."""
        if self._pool is None:
            yield from ((item, call(item)) for item in items)
            return
        waiting: deque[tuple[A, Future[B]]] = deque()
        for item in items:
            waiting.append((item, self._pool.submit(call, item)))
            if len(waiting) >= self.ahead:
                yield self._first(call, waiting, crashed)
        while waiting:
            yield self._first(call, waiting, crashed)

    def _first(self, call: Callable[[A], B], waiting: deque[tuple[A, Future[B]]], crashed: B) -> tuple[A, B]:
        """The result that is next. If a process has died, all that wait are begun again, this one alone."""
        item, future = waiting.popleft()
        try:
            return item, future.result()
        except BrokenProcessPool:
            result = self._alone(call, item, crashed)
            others = [other for other, _ in waiting]
            waiting.clear()
            assert self._pool is not None
            waiting.extend((other, self._pool.submit(call, other)) for other in others)
            return item, result

    def _alone(self, call: Callable[[A], B], item: A, crashed: B) -> B:
        self._pool = self._started()
        assert self._pool is not None
        try:
            return self._pool.submit(call, item).result()
        except BrokenProcessPool:
            self._pool = self._started()
            return crashed

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _begin_worker() -> None:
    """A worker leaves Ctrl-C to its parent, and ends when that is gone, however it went."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
