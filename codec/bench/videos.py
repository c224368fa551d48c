"""The clips of a video benchmark, and what every codec in it can do: each gets the same RGB frames of 8 bits."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import UsageError
from ..media.read_video import VIDEO_SUFFIXES_IN, Pixels, VideoReader

RATE = Fraction(25)  # frames a second of a clip that does not say


@dataclass(frozen=True)
class Video:
    """A clip. ``frames``: ``[n, H, W, 3]`` uint8; ``times``: seconds from 0 when each is first shown, exact."""

    name: str
    frames: Pixels
    times: tuple[Fraction, ...]
    seconds: Fraction
    rate: Fraction  # frames a second, nominal
    time_base: Fraction  # all times are multiples of it

    @property
    def height(self) -> int:
        return int(self.frames.shape[1])

    @property
    def width(self) -> int:
        return int(self.frames.shape[2])

    def as_file(self) -> bytes:
        """The same frames and times as a file that any reader of videos takes: raw pixels in QuickTime, no sound."""
        import av

        buffer = io.BytesIO()
        timescale = str(self.time_base.denominator)  # of the whole file, a thousand a second if not told
        with av.open(buffer, "w", format="mov", options={"movie_timescale": timescale}) as container:
            stream: Any = container.add_stream("rawvideo", rate=self.rate.limit_denominator(1 << 20))
            # Rows of three bytes a pixel could be odd, which its readers do not expect.
            stream.width, stream.height, stream.pix_fmt = self.width, self.height, "argb"
            stream.codec_context.time_base = self.time_base
            for pixels, time in zip(self.frames, self.times, strict=True):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="argb")
                frame.pts, frame.time_base = int(time / self.time_base), self.time_base
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return buffer.getvalue()


@dataclass(frozen=True)
class VideoSetting:
    """A place of a codec's rate dial, e.g. "crf 31"."""

    dial: str
    value: float

    @property
    def label(self) -> str:
        if self.dial == "file":
            return "as it is"
        if self.dial == "levels":
            return f"{self.value:g} level{'s' * (self.value != 1)}"
        return f"{self.value:g} {self.dial}" if self.dial == "kbit/s" else f"{self.dial} {self.value:g}"


@dataclass(frozen=True)
class Coded:
    """What a codec made of a clip: one file, or one for every ``every``-th frame; ``n``: frames of the clip."""

    files: tuple[bytes, ...]
    n: int
    every: int = 1

    @property
    def places(self) -> range:
        """The frames that were coded."""
        return range(0, self.n, self.every)

    @property
    def size(self) -> int:
        """Bytes of the whole clip: all files, times what one of ``every`` frames stands for."""
        return round(sum(map(len, self.files)) * self.n / len(self.places))


class VideoCodec(Protocol):
    """A codec at rest. ``kind``: "ours", "frames" (a picture codec, frame by frame) or "peer"."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def settings(self) -> tuple[VideoSetting, ...]: ...
    @property
    def described(self) -> str:
        """How it was run, for the report."""

    def encode(self, video: Video, setting: VideoSetting) -> Coded: ...
    def decode(self, coded: Coded) -> Iterator[Pixels]:
        """Frames ``[H, W, 3]`` uint8, those of ``coded.places`` in order."""

    def job(self) -> dict[str, Any] | None:
        """What another process needs to weigh it at one setting, see :mod:`.memory`; None if nothing is weighed."""


def video_files(folder: Path, limit: int | None) -> list[Path]:
    """Videos in a folder by suffix, sorted. Raises UsageError if there are none."""
    if limit is not None and limit < 1:
        raise UsageError(f"the limit must be at least 1, got {limit}")
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES_IN and p.is_file())
    if not paths:
        raise UsageError(f"no videos in {folder}")
    return paths[:limit]


def read_video(path: Path, frames: int | None = None) -> Video:
    """A file as a clip, only so many frames of it; its first frame is at 0. Raises MediaError."""
    pixels: list[Pixels] = []
    times: list[Fraction] = []
    with VideoReader(path, str(path)) as reader:
        for frame in reader:
            pixels.append(frame.pixels)
            times.append(frame.time)
            end = frame.time + frame.duration
            if len(pixels) == frames:
                break
        rate, base = reader.rate or RATE, reader.time_base
    first = times[0]
    times = [time - first for time in times]
    return Video(path.name, np.stack(pixels), tuple(times), end - first, rate, base)


def middle(settings: Sequence[VideoSetting]) -> VideoSetting:
    return settings[len(settings) // 2]
