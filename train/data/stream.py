"""Media of sets that memory does not hold: read on the way, in random order, in place of others.

A store (:mod:`.store`) is one flat buffer on a device, so that a batch of crops costs one gather. If all media fit into
it, they stay. Else it has ``SHELVES`` parts, and while crops are made of all of them, threads decode what comes on the
next one. A shelf is exchanged once as many crops were drawn as its media are to give, whether the next media are there
or must be waited for: so the same seed leads to the same crops on every machine.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...codec.errors import UsageError
from .reading import WORKERS, Reading, attempt

SHELVES = 8
Place = tuple[int, int]  # in a stream: pass over the data, and how many of its files were read


class Shelf(Protocol):
    """What a stream knows of a store."""

    most: int  # rows of a shelf

    def fitted(self, made: Sequence[Tensor]) -> list[Tensor]:
        """What it takes of what was made of a file."""

    def flat(self, medium: Tensor) -> Tensor:
        """Its rows in the buffer."""

    def rows_of(self, medium: Tensor) -> int:
        """How many they are."""


@dataclass(frozen=True)
class Load:
    """What lies on a shelf: places of files, shapes of what was made of them, and its rows.

    Attributes: end: where the stream goes on.
    """

    files: list[int]
    shapes: list[tuple[int, ...]]
    rows: Tensor
    end: Place


class Stream:
    """Media that were not read at first, and then again all of them, without end, each pass in another order.

    Args:
        reading: what was read; its other files come first.  every: media at every such place are held out.
        bytes: of a store that is filled.  reuse: crops of a medium before another takes its place.
        ranks: of this process, and how many share the files.
        expand: a medium to all that is made of it.

    Attributes: first: places of the media that were read.  waited: seconds that training has waited for media.
    """

    def __init__(
        self, reading: Reading, every: int, bytes: int, reuse: float = 8.0, seed: int = 0,
        ranks: tuple[int, int] = (0, 1), expand: Callable[[Tensor], list[Tensor]] | None = None,
    ) -> None:  # fmt: skip
        if reuse <= 0:
            raise ValueError(f"--reuse is above 0, got {reuse:g}")
        self.reading, self.bytes, self.reuse, self.seed, self.ranks = reading, bytes, reuse, seed, ranks
        self.first = reading.trained(every)
        self.every, self.expand = every, expand or (lambda medium: [medium])
        self.waited, self.closed = 0.0, False
        self.pool, self.gathering = ThreadPoolExecutor(WORKERS), ThreadPoolExecutor(1)
        self.next: Future[Load] | None = None
        self.seek((0, 0))

    def order(self, turn: int) -> list[int]:
        """The files of a pass for this process."""
        files: Sequence[int] = self.reading.left
        if turn:
            shuffled = torch.Generator().manual_seed(self.seed + turn)
            files = torch.randperm(len(self.reading.paths), generator=shuffled).tolist()
        rank, world = self.ranks
        return [i for i in files if not self.every or i % self.every][rank::world]

    def seek(self, place: Place) -> None:
        """Go on from a place; what was decoded after another one is forgotten."""
        if self.next is not None:
            self.next.result()
        self.next = None
        self.files = self._files(place)
        self.ahead: deque[tuple[int, Place, Future[list[Tensor]]]] = deque()
        self.size = 0.0  # mean rows of what is made of a file

    def _files(self, place: Place) -> Iterator[tuple[int, Place]]:
        """Files from a place on, with the place after each."""
        first, done = place
        for turn in itertools.count(first):
            order = self.order(turn)
            if turn and not order:
                raise UsageError("there are fewer files to train on than processes")
            for i in range(done if turn == first else 0, len(order)):
                yield order[i], (turn, i + 1)

    def decoded(self, i: int) -> list[Tensor]:
        """What is made of a file; nothing if it cannot be read."""
        medium, _ = attempt(self.reading.read, self.reading.paths[i])
        return [] if medium is None else self.expand(medium)

    def _gather(self, shelf: Shelf) -> Load:
        """Decode what comes on a shelf."""
        files: list[int] = []
        media: list[Tensor] = []
        rows, useless, end = 0, 0, (0, 0)
        while not self.closed:
            # As many at once as there are threads, but no more than a shelf holds.
            while len(self.ahead) < (min(WORKERS, 1 + int(shelf.most / self.size)) if self.size else 1):
                i, after = next(self.files)
                self.ahead.append((i, after, self.pool.submit(self.decoded, i)))
            i, after, future = self.ahead[0]
            fitted = shelf.fitted(future.result())
            size = sum(map(shelf.rows_of, fitted))
            if files and rows + size > shelf.most:
                break
            self.ahead.popleft()
            end, useless = after, 0 if fitted else useless + 1
            if useless > 2 * len(self.reading.paths):  # the rest of a pass, and a whole one
                raise UsageError("none of the files that are left can be used: they are damaged, or too small")
            if fitted:
                files.append(i)
                media += fitted
                rows += size
                self.size += (size - self.size) * (0.1 if self.size else 1.0)
        return load_of(files, media, shelf, end)

    def take(self, shelf: Shelf) -> Load:
        """What comes next; what comes after it is decoded from now on."""
        begin = time.monotonic()
        load = (self.next or self.gathering.submit(self._gather, shelf)).result()
        self.waited += time.monotonic() - begin
        self.next = self.gathering.submit(self._gather, shelf)
        return load

    def again(self, files: Sequence[int], shelf: Shelf) -> Load:
        """What was on a shelf before. Raises UsageError if it can no longer be read."""
        made = self.pool.map(self.decoded, files)
        return load_of(list(files), [part for own in made for part in shelf.fitted(own)], shelf, (0, 0))

    def close(self) -> None:
        self.closed = True
        self.pool.shutdown(wait=False, cancel_futures=True)
        self.gathering.shutdown(wait=False, cancel_futures=True)


def load_of(files: list[int], media: Iterable[Tensor], shelf: Shelf, end: Place) -> Load:
    """Media as they are to lie on a shelf; in memory from which a GPU copies while it computes, if there is one."""
    parts = list(media)
    flat = [shelf.flat(medium) for medium in parts]
    if not flat:
        raise UsageError("the files of a shelf can no longer be read")
    size = (sum(map(len, flat)), *flat[0].shape[1:])
    rows = torch.empty(size, dtype=flat[0].dtype, pin_memory=torch.cuda.is_available())
    torch.cat(flat, out=rows)
    return Load(files, [tuple(medium.shape) for medium in parts], rows, end)
