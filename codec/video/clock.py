"""When the frames of a video are shown, exactly: whole numbers of ticks, the longest tick in which all times are whole.

Frames that are evenly spaced take one number; others one number each, which a file keeps in a TIME chunk.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from ..container.chunks import TIME, pack_times, read_times
from ..container.fields import MAX_CLIP, MAX_TICK
from ..container.read import TokFile
from ..errors import ChunkError, MediaError
from ..media.read_video import Frame, VideoReader

MOST = 0xFFFFFFFF  # of any number in a header


@dataclass(frozen=True)
class Clock:
    """Times of the frames of a video.

    Attributes:
        tick: seconds.
        start: ticks to the first frame.
        duration: ticks from frame to frame, about so many if ``ticks`` is there.
        last: ticks that the last frame is shown.
        frames: how many there are.
        ticks: ``[frames]``, those of every frame from the first one on; None if they are evenly spaced.
        nominal: frames a second, if that is known and they are not evenly spaced.
    """

    tick: Fraction
    start: int
    duration: int
    last: int
    frames: int
    ticks: npt.NDArray[np.int64] | None = None
    nominal: Fraction | None = None

    def time(self, frame: int) -> Fraction:
        """Seconds from the beginning of the time line to a frame; to the end of the last one for ``frames``."""
        if frame == self.frames:
            return self.time(frame - 1) + self.last * self.tick
        return (self.start + self._since(frame)) * self.tick

    def _since(self, frame: int) -> int:
        """Ticks from the first frame to another."""
        return frame * self.duration if self.ticks is None else int(self.ticks[frame])

    @property
    def fine(self) -> Fraction:
        """A tick, or the part of a long one that moments between frames are rounded to, a millisecond at most."""
        return self.tick if self.tick <= Fraction(1, 10) else self.tick / math.ceil(self.tick * 1000)

    @property
    def seconds(self) -> Fraction:
        """From the first frame to the end of the last one."""
        return self.time(self.frames) - self.time(0)

    def until(self, moment: Fraction) -> Clock:
        """With a last frame that is shown until a moment, seconds, if that is more than a frame and 0.1 s later.

        A sound may go on behind the frames, for long if a still picture stands for all of it.
        """
        last = math.ceil(moment / self.tick) - (self.start + self._since(self.frames - 1))
        own = self.duration if self.frames > 1 else self.last
        later = (last - self.last) * self.tick > Fraction(1, 10) and last - self.last > own
        return replace(self, last=last) if later and last <= MOST else self

    @property
    def rate(self) -> Fraction | None:
        """Frames a second, nominal if they are not evenly spaced."""
        return 1 / (self.tick * self.duration) if self.ticks is None else self.nominal

    def shown(self, moment: Fraction) -> int:
        """The last frame that begins at a moment or before it, -1 if none does."""
        since = math.floor(moment / self.tick) - self.start
        if self.ticks is not None:
            return int(np.searchsorted(self.ticks, since, side="right")) - 1
        return min(max(-1, since // self.duration), self.frames - 1)

    def chunk(self) -> bytes | None:
        """Payload of TIME, None if there is nothing to tell."""
        return None if self.ticks is None else pack_times(np.diff(self.ticks).tolist(), self.nominal)


class ClockMaker:
    """Gathers the times of frames, 8 bytes each.

    Args: base: seconds of which times after the first are a multiple; what is not is rounded.
    """

    def __init__(self, base: Fraction, name: str) -> None:
        self.base, self.name = base, name
        self.ticks = array("q")
        self.first, self.last = Fraction(0), base

    def add(self, frame: Frame) -> None:
        """Raises MediaError for more frames than a file holds."""
        if not self.ticks:
            self.first = frame.time
        if len(self.ticks) == MAX_CLIP:
            raise MediaError(f"{self.name}: more than {MAX_CLIP} frames; cut it into several files")
        ticks = round((frame.time - self.first) / self.base)
        self.ticks.append(max(ticks, self.ticks[-1] + 1) if self.ticks else 0)
        self.last = frame.duration

    def clock(self, rate: Fraction | None) -> Clock:
        """Of at least one frame. rate: nominal frames a second. Raises MediaError if times are too far apart."""
        ticks = np.array(self.ticks, dtype=np.int64)
        steps = np.diff(ticks)
        last = max(1, round(self.last / self.base))
        tick = self.base * math.gcd(last, *set(steps.tolist()))
        if self.first:
            finer = _common(tick, self.first)  # usually the same
            if _fit(finer, self.first / finer, last * self.base / finer):
                tick = finer
        scale = self.base / tick  # ticks of the clock for one of the base
        start, longest = round(self.first / tick), int(steps.max(initial=last))
        if not _fit(tick, longest * scale, start):
            raise MediaError(f"{self.name}: times of its frames are too far apart, or too fine, for a .tok file")
        even = not len(steps) or bool((steps == steps[0]).all())
        duration = Fraction(int(ticks[-1]), len(steps)) if len(steps) else Fraction(last)
        own = None if even else ticks * scale.numerator // scale.denominator
        duration_ticks = max(1, round(duration * scale))
        return Clock(
            tick,
            start,
            duration_ticks,
            round(last * scale),
            frames=len(ticks),
            ticks=own,
            nominal=None if even else rate,
        )


def _fit(tick: Fraction, *numbers: Fraction | int) -> bool:
    """Whether a header can hold a tick, and numbers of ticks."""
    return max(tick.numerator, tick.denominator) <= MAX_TICK and all(number <= MOST for number in numbers)


def _common(a: Fraction, b: Fraction) -> Fraction:
    """The largest number of which both are multiples."""
    return Fraction(math.gcd(a.numerator * b.denominator, b.numerator * a.denominator), a.denominator * b.denominator)


def clock_of(tok: TokFile) -> Clock:
    """The clock of a file. Where its TIME chunk is lost, which is noted, frames are evenly spaced."""
    header = tok.video
    ticks, rate = None, None
    if header.times:
        payload = tok.payload(TIME)
        try:
            if payload is None:
                raise ChunkError("missing or damaged")
            steps, rate = read_times(payload, header.frames)
            ticks = np.concatenate([[0], np.cumsum(np.array(steps, dtype=np.int64))])
        except ChunkError as error:
            tok.damaged(f"the times of frames are lost, they are evenly spaced: {error}")
    return Clock(
        header.tick, header.start, header.duration, header.last, frames=header.frames, ticks=ticks, nominal=rate
    )


def shown_clock(tok: TokFile) -> Clock:
    """The clock of a file whose last frame stays until its sound ends, see :meth:`Clock.until`."""
    clock = clock_of(tok)
    if tok.track is None:
        return clock
    sound, start = tok.track
    return clock.until(Fraction(start + sound.samples, sound.sample_rate))


def clock_fields(reader: VideoReader, clock: Clock) -> dict[str, int]:
    """The fields of a header that say when frames are shown and how wide their pixels are."""
    aspect = reader.pixel_aspect.limit_denominator(65535)
    if not 0 < aspect.numerator <= 65535:
        aspect = Fraction(1)
    return {
        "tick_seconds": clock.tick.numerator,
        "tick_parts": clock.tick.denominator,
        "start": clock.start,
        "duration": clock.duration,
        "last": clock.last,
        "times": int(clock.ticks is not None),
        "aspect_width": aspect.numerator,
        "aspect_height": aspect.denominator,
    }
