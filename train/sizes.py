"""What of the media fits into memory and time: what is read, and what evaluations look at."""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from torch import Tensor

from .data.images import CropStore, list_images, read_rgb
from .data.reading import Limits, Reading, Source, bytes_of, default_bytes, read_within
from .data.stream import Stream
from .loop import TrainingRun
from .state import Attributes

T = TypeVar("T")

# Shares of --minutes, where measuring would take more of them: reading, evaluations on the way, export. But not below
# LEAST seconds each, and training gets half of the time whatever the others took.
READING, CHECKS, EXPORT = 0.2, 0.1, 0.2
LEAST = 5.0
REUSE = 8  # crops of a medium that is read on the way, before another takes its place
MIDDLE = 256  # edge in pixels of what is evaluated of a picture without a GPU


class SizedRun(TrainingRun):
    """A run that reads as much as memory and time allow, and measures with as much.

    Attributes:
        memory: bytes of decoded media, at most.
        media, held: what is trained on and was read first, and what is held out.
        was_read: of every set of media a hash of its files, and which of them were read: a state has to know.
    """

    media: Sequence[Any]
    held: Sequence[Any]

    def __init__(self, recipe: Any, args: argparse.Namespace) -> None:
        super().__init__(recipe, args)
        if args.memory is not None and args.memory <= 0:
            raise ValueError(f"--memory is above 0, got {args.memory:g}")
        self.memory = default_bytes(self.device) if args.memory is None else 1e9 * args.memory
        self.was_read: list[dict[str, Any]] = []
        self.tests: Sequence[Source] = ()

    @property
    def timed(self) -> bool:
        """Whether time is what the run has so much of: not steps, and not an export alone."""
        return bool(self.args.minutes) and self.args.steps is None

    def own_parts(self) -> dict[str, Any]:
        return super().own_parts() | {"read": Attributes(self, "was_read")}

    def read(self, paths: Sequence[Source], read: Callable[[Source], Tensor], part: float = 1.0) -> Reading:
        """Decode media within the limits of memory and time. part: of the memory, for these media.

        Raises: ValueError if the state to go on from was made with other files.
        """
        files = files_hash(paths)
        seconds = max(2 * LEAST, READING * 60 * self.args.minutes) if self.timed else math.inf
        limits, again = Limits(max(1, int(part * self.memory)), seconds), None
        if self.states.found is not None:
            before = self.states.found["own"]["read"]["was_read"][len(self.was_read) :][:1]
            if [own["files"] for own in before] != [files]:
                raise self.states.of_another("other media")
            again = before[0]["tried"], before[0]["failed"]
        reading = read_within(paths, read, limits, self.args.seed, again)
        self.was_read.append({"files": files, "tried": reading.tried, "failed": list(reading.failed)})
        for note in reading.notes:
            self.log(note)
        return reading

    def picture_store(self, size: int, every: int, **how: float) -> CropStore:
        """Read the pictures of ``--data``: what is held out, and a store of crops of the others.

        Args: size, how: of a :class:`CropStore`.  every: pictures at every such place are held out.
        """
        reading = self.read(list_images(self.args.data), read_rgb)
        self.media, self.held = reading.split(every)
        stream = self.stream(reading, every)
        return CropStore(self.media, size, self.device, seed=self.seed, stream=stream, **how)

    def stream(
        self, reading: Reading, every: int, part: float = 1.0, expand: Callable[[Tensor], list[Tensor]] | None = None
    ) -> Stream | None:
        """What was not read, for a store of ``part`` of the memory; None if nothing is left.

        Args: every: media at every such place are held out.  expand: a medium to all that is made of it.
        """
        if not reading.left:
            return None
        return Stream(
            reading, every, int(part * self.memory), reuse=self.args.reuse or REUSE, seed=self.args.seed,
            ranks=(self.process, self.accelerator.num_processes), expand=expand,
        )  # fmt: skip

    def test_on(self, list_media: Callable[[Sequence[str]], list[Source]], read: Callable[[Source], Tensor]) -> None:
        """List the media of ``--test`` before anything is trained. Raises FileNotFoundError if there are none."""
        self.tests, self.read_test = list_media([self.args.test]) if self.args.test else [], read

    def test_media(self) -> list[Any]:
        """The media of ``--test``, whole. Those that cannot be read are left out with a note."""
        if not self.tests:
            return []
        try:
            reading = read_within(self.tests, self.read_test, Limits(sys.maxsize, math.inf))
        except ValueError as error:  # a model that was trained is not given up for it
            self.log(f"note: no test: {error}")
            return []
        for note in reading.notes:
            self.log(note)
        return list(reading.media.values())

    def middles(self, *sets: Sequence[Tensor], edge: int = MIDDLE, frames: int = 1) -> Iterator[list[Tensor]]:
        """What is evaluated and counted of sets of pictures ``[H, W, 3]`` or clips ``[T, H, W, 3]``, uint8.

        All of them; without a GPU their middle, and the first frames.
        """
        if self.device.type == "cuda" or not self.args.minutes:
            yield from map(list, sets)
            return
        part = f"{frames} frames" if frames > 1 else "pictures"
        self.log(f"note: without a GPU the middle {edge} x {edge} pixels of {part} are evaluated and counted")
        for media in sets:
            corners = [[max(0, n - edge) // 2 for n in m.shape[-3:-1]] for m in media]
            middle = [m[..., y : y + edge, x : x + edge, :] for m, (y, x) in zip(media, corners, strict=True)]
            yield [m[:frames] if m.ndim == 4 else m for m in middle]

    def some(self, media: Sequence[T], share: float, each: float) -> list[T]:
        """As many media, evenly spaced, as a share of the budget allows at ``each`` seconds; one at least."""
        n = len(media)
        if self.timed:
            n = min(n, max(1, int(max(LEAST, share * 60 * self.args.minutes) / max(each, 1e-4))))
        return [media[i * len(media) // n] for i in range(n)]

    def seconds_of(self, work: Callable[[], object]) -> float:
        """How long it takes; the first time on a GPU, which is that of its libraries, does not count."""
        for _ in range(1 + (self.device.type == "cuda")):
            begin = time.monotonic()
            work()
        return time.monotonic() - begin


def files_hash(paths: Sequence[Source]) -> str:
    """A hash of the names and sizes of files, in their order."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name} {bytes_of(path)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]
