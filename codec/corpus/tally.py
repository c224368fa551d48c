"""What a rank has done, and where its time goes."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..console import EXIT_DAMAGED, EXIT_USER

if TYPE_CHECKING:
    from ...tokenizers.tokens import TokenSpec


@dataclass
class Tally:
    """What a rank has done.

    Attributes:
        written: samples in shards, those of earlier runs included.  made: of this run.
        failed, damaged: samples in the errors.  shards: names and samples.
        hours: of sounds and videos of this run.
        waited: seconds for "readers", "device" and "writer".  computing: see :class:`.device.Device`.
    """

    written: int = 0
    made: int = 0
    failed: int = 0
    damaged: int = 0
    shards: list[tuple[str, int]] = field(default_factory=list)
    waited: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    begin: float = field(default_factory=time.monotonic)
    hours: float = 0.0
    computing: float = 0.0
    finished: bool = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begin

    @property
    def exit_code(self) -> int:
        """0; 3 if samples are left out because of damage; 2 if some could not be read at all."""
        return EXIT_USER if self.failed > self.damaged else EXIT_DAMAGED if self.damaged else 0

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.waited[what] += time.monotonic() - start

    def count(self, spec: TokenSpec) -> None:
        """A sample was written."""
        self.made += 1
        if spec.sample_rate:
            self.hours += spec.size[0] / spec.sample_rate / 3600

    @property
    def note(self) -> str:
        """Speed, how busy the device is, and what the others wait for."""
        seconds = max(1e-9, self.seconds)
        slowest = max(self.waited, key=self.waited.__getitem__, default="readers")
        hours = f", {self.hours / seconds:.3g} hours/s" if self.hours else ""
        busy, waited = self.computing / seconds, self.waited[slowest] / seconds
        return (
            f"{self.made / seconds:.1f} samples/s{hours}, "
            f"device computing {busy:.0%} of the time, {waited:.0%} spent waiting for the {slowest}"
        )
