"""The clips of a sound benchmark: every codec gets the same mono samples at 24 kHz, rounded to 16 bits."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from ..errors import MediaError, UsageError
from ..media.audio import AUDIO_SUFFIXES_IN, Sound, read_audio, resample, write_audio

if TYPE_CHECKING:
    from ..metrics.spectrogram import Mono


RATE = 24000
SPEECH = "speech"  # the kind of clips that speech metrics apply to
UNKNOWN = "other"  # the kind of a clip whose name has no "_"
T = TypeVar("T")


@dataclass(frozen=True)
class Clip:
    """A sound. ``x``: ``[n]`` at :data:`RATE`; ``wav``: the same as a file of 16 bits."""

    name: str
    kind: str
    x: Mono
    wav: bytes

    @staticmethod
    def of(name: str, x: Mono) -> Clip:
        """A clip of samples ``[n]`` at :data:`RATE`, which are rounded to 16 bits."""
        wav = io.BytesIO()
        write_audio(Sound(x[None], RATE), wav, ".wav", name)
        wav.seek(0)
        return Clip(name, kind_of(name), read_audio(wav, name).samples[0], wav.getvalue())

    @property
    def seconds(self) -> float:
        return len(self.x) / RATE


@dataclass(frozen=True)
class Timed(Generic[T]):
    """A result, and the seconds it took: by the clock, and of the processor in all threads of this process."""

    result: T
    wall_s: float
    cpu_s: float


def timed(work: Callable[[], T]) -> Timed[T]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return Timed(result, time.perf_counter() - wall, time.process_time() - cpu)


def clip_files(folder: Path, limit: int | None) -> list[Path]:
    """Sounds in a folder by suffix, sorted. Raises UsageError if there are none."""
    if limit is not None and limit < 1:
        raise UsageError(f"the limit must be at least 1, got {limit}")
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in AUDIO_SUFFIXES_IN and p.is_file())
    if not paths:
        raise UsageError(f"no sounds in {folder}")
    return paths[:limit]


def kind_of(name: str) -> str:
    """What comes before the first "_" of a file's name, e.g. "speech"."""
    kind, found, _ = name.partition("_")
    return kind if found and kind else UNKNOWN


def read_clip(path: Path, max_seconds: float | None = None) -> Clip:
    """A file as a clip: the mean of its channels, resampled where it has another rate, only so many seconds of it.

    Raises: MediaError.
    """
    sound = read_audio(path, str(path))
    if not sound.samples.shape[1]:
        raise MediaError(f"{path}: a sound without samples")
    mono = resample(sound.samples.mean(0, keepdims=True, dtype=np.float32), sound.sample_rate, RATE)[0]
    return Clip.of(path.name, mono if max_seconds is None else mono[: max(1, round(max_seconds * RATE))])
