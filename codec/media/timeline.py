"""The clock of a file that may start anew: recordings that were joined, streams that were cut.

Packets of all tracks come in the order of the file. Where the clock of a track jumps, all that follows is moved, for
all tracks alike, so that it goes on where the longest track ended: sound and picture stay together.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from .guard import Media

JOINED = {"mpegts", "mpeg", "ogg", "flv"}  # formats whose parts may simply be joined: their clocks leap forward too
BACK, FORTH = Fraction(1, 4), Fraction(10)  # seconds, beyond which a step of the clock is a jump


class Timeline:
    """Straightens times of packets, in the order of the file.

    Args:       tracks: streams of PyAV whose packets will come.
    Attributes: jumps: how many there were.
    """

    def __init__(self, media: Media, tracks: Iterable[Any]) -> None:
        self.packets = media.container.demux(*tracks)
        self.leaps = bool(JOINED & set(media.container.format.name.split(",")))
        self.jumps = 0
        self._offset = Fraction(0)
        self._last: dict[int, Fraction] = {}  # of each track, when its last packet was due
        self._end = Fraction(0)  # when the longest track ends

    def straighten(self, packet: Any) -> None:
        """Move a packet's times by what the jumps before it take."""
        stamp = packet.pts if packet.dts is None else packet.dts
        if stamp is None or not packet.time_base:
            return
        base, track = packet.time_base, packet.stream.index
        time = stamp * base + self._offset
        last = self._last.get(track)
        ordered = packet.dts is not None or packet.stream.type == "audio"  # frames that look ahead are not, by pts
        if last is not None and ordered and (time < last - BACK or (self.leaps and time > last + FORTH)):
            self.jumps += 1
            step = self._end - time
            self._offset += step
            time += step
        moved = round(self._offset / base)
        if moved:
            packet.pts, packet.dts = _moved(packet.pts, moved), _moved(packet.dts, moved)
        if ordered:
            self._last[track] = time
        self._end = max(self._end, time + (packet.duration or 0) * base)

    @property
    def notes(self) -> list[str]:
        if not self.jumps:
            return []
        return [f"the clock of the file jumps ({self.jumps} times): what follows is joined to what was before"]


def _moved(stamp: int | None, by: int) -> int | None:
    """A stamp that is moved; None where it then is none that FFmpeg holds."""
    return None if stamp is None or abs(stamp + by) >> 62 else stamp + by
