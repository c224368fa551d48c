"""Decoded media in one flat buffer on a device, from which crops are gathered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .stream import SHELVES, Load, Stream, load_of


class Store:
    """Media in one flat buffer: all of them, or with a stream some, in whose place come others.

    Args:
        media: as they were read; those that are no use to the store are left out.
        device: where the buffer lives and crops are made.
        stream: of further media; ``media`` are its ``first``.

    Attributes:
        buffer: rows ``[n, *unit]``.  start: the first row of each medium, on the device.
        most: rows of a shelf.  served: crops since a shelf was exchanged.
        generator: of random numbers on the device.

    Raises: ValueError if no medium is of use.
    """

    unit: tuple[int, ...] = ()  # shape of a row
    gap = 0  # rows of zeros after each medium

    def __init__(
        self, media: Sequence[Tensor], device: torch.device | str, seed: int = 0, stream: Stream | None = None
    ) -> None:
        self.device, self.stream = torch.device(device), stream
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.served, self.turn, self.end = 0.0, 0, (0, 0)
        self.files: list[list[int]] = []
        self.shapes: list[list[tuple[int, ...]]] = []
        if stream is None:
            kept = [medium for medium in media if self.usable(medium)]
            if not kept:
                raise ValueError(self.nothing())
            self.buffer = torch.cat([self.flat(medium) for medium in kept]).to(self.device)
            self.shapes = [[tuple(medium.shape) for medium in kept]]
            self._index()
        else:
            self._fill(media, stream)

    def usable(self, medium: Tensor) -> bool:
        """Whether a crop can be made of it."""
        raise NotImplementedError

    def nothing(self) -> str:
        """What is said if there is no such medium."""
        raise NotImplementedError

    def indexed(self, shapes: Tensor) -> None:
        """Take note of the shapes ``[media, axes]`` of what lies in the buffer."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.start)

    # ---- how media lie there

    def flat(self, medium: Tensor) -> Tensor:
        """Its rows, and the gap after them."""
        rows = medium.reshape(-1, *self.unit)
        return torch.cat([rows, rows.new_zeros(self.gap, *self.unit)]) if self.gap else rows

    def rows_of(self, medium: Tensor) -> int:
        """How many rows that are."""
        return medium.numel() // math.prod(self.unit) + self.gap

    def fitted(self, made: Sequence[Tensor]) -> list[Tensor]:
        """What of one file can be used, its ends cut off where one shelf would not hold it."""
        parts: list[Tensor] = []
        rows = 0
        for medium in made:
            if len(medium):
                room = max(0, self.most - rows - self.gap)
                part = medium[: room // max(1, medium[0].numel() // math.prod(self.unit))]
                if self.usable(part):
                    parts.append(part)
                    rows += self.rows_of(part)
        return parts

    def _fill(self, media: Sequence[Tensor], stream: Stream) -> None:
        """Put what was read first on shelves: ``SHELVES``, or fewer if one would not hold the largest medium."""
        made = list(stream.pool.map(stream.expand, media))
        per_row = math.prod(self.unit) * media[0].element_size()
        n = min(SHELVES, max(2, stream.bytes // per_row // max(sum(map(self.rows_of, own)) for own in made)))
        self.most = max(1, stream.bytes // n // per_row)
        self.buffer = torch.zeros(n * self.most, *self.unit, dtype=media[0].dtype, device=self.device)
        self.files, self.shapes = [[] for _ in range(n)], [[] for _ in range(n)]
        files: list[int] = []
        parts: list[Tensor] = []
        shelf = rows = 0
        for i, all_of_it in zip(stream.first, made, strict=True):
            own = self.fitted(all_of_it)
            size = sum(map(self.rows_of, own))
            if parts and rows + size > self.most:
                self._put(shelf, load_of(files, parts, self, (0, 0)))
                files, parts, rows, shelf = [], [], 0, shelf + 1
                if shelf == n:
                    break
            if own:
                files, parts, rows = [*files, i], parts + own, rows + size
        if parts:
            self._put(shelf, load_of(files, parts, self, (0, 0)))
            shelf += 1
        if not shelf:
            raise ValueError(self.nothing())
        self.turn = shelf % n  # empty ones come first
        self._index()

    def _put(self, shelf: int, load: Load) -> None:
        begin = shelf * self.most
        self.buffer[begin : begin + len(load.rows)].copy_(load.rows, non_blocking=True)
        self.files[shelf], self.shapes[shelf] = load.files, load.shapes

    def _index(self) -> None:
        starts = []
        for shelf, shapes in enumerate(self.shapes):
            at = shelf * getattr(self, "most", 0)
            for shape in shapes:
                starts.append(at)
                at += math.prod(shape) // math.prod(self.unit) + self.gap
        self.start = torch.tensor(starts, device=self.device)
        self.indexed(torch.tensor([shape for shapes in self.shapes for shape in shapes]))

    # ---- the stream

    def drawn(self, crops: int) -> None:
        """Count crops, and exchange a shelf if it has served: before they are drawn."""
        if self.stream is None:
            return
        self.served += crops
        while self.served >= (due := self.stream.reuse * len(self) / sum(map(bool, self.shapes))):
            self.served -= due
            load = self.stream.take(self)
            self._put(self.turn, load)
            self.turn, self.end = (self.turn + 1) % len(self.files), load.end
            self._index()

    @property
    def waited(self) -> float:
        """Seconds that training has waited for media."""
        return self.stream.waited if self.stream is not None else 0.0

    def close(self) -> None:
        """Read no further."""
        if self.stream is not None:
            self.stream.close()

    def parts(self) -> dict[str, Any]:
        """What a state of the run holds, see :mod:`..state`."""
        return {"generator": self.generator, "shelves": self}

    def state_dict(self) -> dict[str, Any]:
        """What lies on the shelves, by the places of files."""
        return {"files": list(self.files), "turn": self.turn, "served": self.served, "end": self.end}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read again what lay on the shelves. Raises UsageError if it can no longer be read."""
        if self.stream is None:
            return
        self.stream.seek(tuple(state["end"]))
        for shelf, files in enumerate(state["files"]):
            if files != self.files[shelf]:
                self.shapes[shelf], self.files[shelf] = [], []
                if files:
                    self._put(shelf, self.stream.again(files, self))
        self.turn, self.served, self.end = state["turn"], state["served"], tuple(state["end"])
        self._index()
