"""The clips of benchmarks: every codec gets the same pixels or samples, from memory.

Pictures are RGB of 8 bits without alpha and metadata, sounds mono at 24 kHz rounded to 16 bits, videos RGB frames of 8
bits.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..container.fields import MAX_PIXELS
from ..errors import MediaError, UsageError
from ..media.audio import AUDIO_SUFFIXES_IN, Sound, read_audio, refuse_damage, resample, write_audio
from ..media.read_image import IMAGE_SUFFIXES_IN, read_image
from ..media.read_video import VIDEO_SUFFIXES_IN, Pixels, VideoReader

if TYPE_CHECKING:
    from ..metrics.spectrogram import Mono


SUFFIXES = {"pictures": IMAGE_SUFFIXES_IN, "sounds": AUDIO_SUFFIXES_IN, "videos": VIDEO_SUFFIXES_IN}
SAMPLE_RATE = 24000  # of sounds
DEFAULT_FPS = Fraction(25)  # of a video that does not say
SPEECH = "speech"  # the kind of sounds that speech metrics apply to
UNKNOWN = "other"  # the kind of a sound whose name has no "_"


def files_in(folder: Path, things: str, limit: int | None, show: Collection[str] = ()) -> list[Path]:
    """Files in a folder by suffix, sorted; things: "pictures", "sounds" or "videos".

    Raises: UsageError if there are none, or one of the names to ``show`` is missing.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"the limit must be at least 1, got {limit}")
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES[things] and p.is_file())[:limit]
    if not paths:
        raise UsageError(f"no {things} in {folder}")
    missing = set(show) - {path.name for path in paths}
    if missing:
        raise UsageError(f"{min(missing)} is not among the {things}")
    return paths


# --------------------------------------------------------------------------------------------------------- pictures


@dataclass(frozen=True)
class Photo:
    """A picture. ``x``: ``[H, W, 3]`` uint8.  ``source``: bytes of its file."""

    name: str
    x: np.ndarray
    source: int = 0

    @property
    def pixels(self) -> int:
        return self.x.shape[0] * self.x.shape[1]

    def as_file(self) -> bytes:
        """The same as PPM."""
        return b"P6\n%d %d\n255\n" % (self.x.shape[1], self.x.shape[0]) + self.x.tobytes()


def read_photo(path: Path) -> Photo:
    """A file as a picture without alpha and metadata. Raises MediaError, for a damaged one too."""
    from ..metrics.picture import as_rgb

    return Photo(path.name, as_rgb(read_image(path, str(path), MAX_PIXELS, strict=True).pixels), path.stat().st_size)


# ----------------------------------------------------------------------------------------------------------- sounds


@dataclass(frozen=True)
class Clip:
    """A sound. ``x``: ``[n]`` at :data:`SAMPLE_RATE`; ``wav``: the same as a file of 16 bits."""

    name: str
    kind: str
    x: Mono
    wav: bytes

    @staticmethod
    def of(name: str, x: Mono) -> Clip:
        """A clip of samples ``[n]`` at :data:`SAMPLE_RATE`, which are rounded to 16 bits."""
        wav = io.BytesIO()
        write_audio(Sound(x[None], SAMPLE_RATE), wav, ".wav", name)
        wav.seek(0)
        return Clip(name, kind_of(name), read_audio(wav, name).samples[0], wav.getvalue())

    @property
    def seconds(self) -> float:
        return len(self.x) / SAMPLE_RATE

    def as_file(self) -> bytes:
        return self.wav


def kind_of(name: str) -> str:
    """What comes before the first "_" of a file's name, e.g. "speech"."""
    kind, found, _ = name.partition("_")
    return kind if found and kind else UNKNOWN


def read_clip(path: Path, max_seconds: float | None = None) -> Clip:
    """A file as a clip: the mean of its channels, resampled where it has another rate, only so many seconds of it.

    Raises: MediaError, for a damaged one too.
    """
    sound = read_audio(path, str(path), strict=True)
    if not sound.samples.shape[1]:
        raise MediaError(f"{path}: a sound without samples")
    mono = resample(sound.samples.mean(0, keepdims=True, dtype=np.float32), sound.sample_rate, SAMPLE_RATE)[0]
    return Clip.of(path.name, mono if max_seconds is None else mono[: max(1, round(max_seconds * SAMPLE_RATE))])


# ----------------------------------------------------------------------------------------------------------- videos


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


def read_video(path: Path, frames: int | None = None) -> Video:
    """A file as a clip, only so many frames of it; its first frame is at 0.

    Raises: MediaError, for a damaged one too.
    """
    pixels: list[Pixels] = []
    times: list[Fraction] = []
    with VideoReader(path, str(path)) as reader:
        for frame in reader:
            pixels.append(frame.pixels)
            times.append(frame.time)
            end = frame.time + frame.duration
            if len(pixels) == frames:
                break
        rate, base = reader.rate or DEFAULT_FPS, reader.time_base
        refuse_damage(reader.problems, str(path))
    first = times[0]
    times = [time - first for time in times]
    return Video(path.name, np.stack(pixels), tuple(times), end - first, rate=rate, time_base=base)
