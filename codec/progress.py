"""How work goes on, told to whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


class Progress:
    """Told how work goes on. This one ignores it; override :meth:`update` to show it."""

    def update(self, share: float | None = None, *, frames: int | None = None, note: str = "") -> None:
        """share: of the work that is done, 0 to 1.  frames: of a video that are done.  note: how it stands."""

    def part(self, begin: float, end: float) -> Progress:
        """Progress of a part of the work, which goes from one share of the whole to another."""
        return _Part(self, begin, end)


@dataclass(frozen=True)
class _Part(Progress):
    whole: Progress
    begin: float
    end: float

    def update(self, share: float | None = None, *, frames: int | None = None, note: str = "") -> None:
        share = None if share is None else self.begin + share * (self.end - self.begin)
        self.whole.update(share, frames=frames, note=note)


@dataclass(frozen=True)
class _Called(Progress):
    function: Callable[[float], None]

    def update(self, share: float | None = None, *, frames: int | None = None, note: str = "") -> None:
        if share is not None:
            self.function(share)


SILENT = Progress()


def as_progress(progress: Progress | Callable[[float], None] | None) -> Progress:
    """What a caller gave: nothing, a function of the share that is done, or a :class:`Progress`."""
    if progress is None:
        return SILENT
    return progress if isinstance(progress, Progress) else _Called(progress)
