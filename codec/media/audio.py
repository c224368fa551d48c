"""Sounds in and out: any common file <-> float samples, block by block, so that an hour takes no more memory than a
second.

What libsndfile reads (WAV, FLAC, Ogg Vorbis and Opus, MP3, AIFF, CAF, ...) it reads; PyAV reads the rest (AAC, MP4 and
Matroska). The content decides which, never the suffix. Sample counts are exact: both libraries cut off the delay and
padding that lossy formats declare; where a file declares none (AAC without an edit list), they are part of the sound.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from ..container.fields import MAX_CHANNELS, MAX_SAMPLES, RATES
from ..errors import MediaError, UnsupportedMediaError, UsageError

AUDIO_SUFFIXES_IN = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff", ".caf", ".w64", ".au", ".mka",
)  # fmt: skip
AUDIO_SUFFIXES_OUT = (".wav", ".flac")

FLAC_CHANNELS, FLAC_RATE = 8, 655350  # what the format can say
BLOCK = 1 << 16  # samples of each channel that are read and written at once
_BITS = {"PCM_S8": 8, "PCM_U8": 8, "PCM_16": 16, "PCM_24": 24, "PCM_32": 32, "FLOAT": 32, "DOUBLE": 32}

Samples = npt.NDArray[np.float32]  # [channels, n], full scale is -1..1


@dataclass
class Sound:
    """A whole sound.

    Attributes:
        samples: ``[channels, n]`` float32; full scale is -1..1, files of floats may go beyond.
        sample_rate: samples a second of each channel, Hz.
        bit_depth: 8, 16, 24 or 32 of the file; 16 for lossy formats.
        notes: what could not be kept, one line each.
    """

    samples: Samples
    sample_rate: int
    bit_depth: int = 16
    notes: list[str] = field(default_factory=list)


class _Source(Protocol):
    frames: int  # samples of each channel, 0 if nobody knows before the end
    sample_rate: int
    channels: int
    bit_depth: int
    start: Fraction  # seconds to the first sample
    notes: list[str]

    def read(self, n: int) -> Samples:
        """The next ``n`` samples of each channel at most, none at the end."""

    def close(self) -> None: ...


class AudioReader:
    """A sound that is read block by block; a context manager.

    Args:    source: path, or binary file object, which is read into memory if it cannot seek.
             name: what messages call it.
             max_samples: refuse sounds with more, all channels together.
             of_video: the sound track of a video, which is refused otherwise.
    Raises:  MediaError, one line, for what is no sound, or damaged, or has samples that are not numbers.

    Attributes: start: of a video's sound, seconds from the beginning of the time line to the first sample; else 0.
    """

    def __init__(
        self, source: Path | BinaryIO, name: str, max_samples: int = MAX_SAMPLES, of_video: bool = False
    ) -> None:
        self.name, self.max_samples = name, max_samples
        self._source = _open_track(source, name) if of_video else _open(source, name)
        self.start = self._source.start
        self.sample_rate, self.channels = self._source.sample_rate, self._source.channels
        self.bit_depth, self.notes = self._source.bit_depth, self._source.notes
        self.frames = self._source.frames
        self.position = 0  # samples of each channel that were given out
        try:
            if not 1 <= self.channels <= MAX_CHANNELS:
                raise UnsupportedMediaError(f"{name}: {self.channels} channels, at most {MAX_CHANNELS} are possible")
            if not RATES[0] <= self.sample_rate <= RATES[1]:
                raise UnsupportedMediaError(f"{name}: {self.sample_rate} Hz is no sample rate of a sound")
        except MediaError:
            self.close()
            raise

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._source.close()

    def blocks(self, n: int = BLOCK) -> Iterator[Samples]:
        """The rest of the sound in blocks ``[channels, n]``, the last one shorter."""
        while True:
            block = self._source.read(n)
            if not block.shape[1]:
                return
            wrong = ~np.isfinite(block).all(0)
            if wrong.any():
                place = self.position + int(wrong.argmax())
                raise MediaError(f"{self.name}: sample {place} is not a number")
            self.position += block.shape[1]
            if self.position * self.channels > self.max_samples:
                raise MediaError(f"{self.name}: more than {self.max_samples} samples; allow more if that is intended")
            yield block


def read_audio(source: Path | BinaryIO, name: str, max_samples: int = MAX_SAMPLES) -> Sound:
    """A whole sound; see :class:`AudioReader`."""
    with AudioReader(source, name, max_samples) as reader:
        blocks = list(reader.blocks())
        empty: Samples = np.zeros((reader.channels, 0), dtype=np.float32)
        samples = np.concatenate(blocks, axis=1) if blocks else empty
        return Sound(samples, reader.sample_rate, reader.bit_depth, reader.notes)


def _open(source: Path | BinaryIO, name: str) -> _Source:
    """The first library that knows what this is."""
    if isinstance(source, Path):
        try:
            if source.is_dir():
                raise MediaError(f"{name}: a folder, not a sound")
            with source.open("rb") as file:
                empty = not file.read(1)
        except OSError as error:
            raise MediaError(f"{name}: {error.strerror or error}") from error
    else:
        if not source.seekable():
            source = io.BytesIO(source.read())
        start = source.tell()
        empty = not source.read(1)
        source.seek(start)
    if empty:
        raise MediaError(f"{name}: the file is empty")
    for kind in (_SoundfileSource, _AvSource):
        try:
            return kind(source, name)
        except _NotMine:
            if not isinstance(source, Path):
                source.seek(start)
    raise MediaError(f"{name}: not a sound that can be read")


def _open_track(source: Path | BinaryIO, name: str) -> _Source:
    """The sound track of a video."""
    try:
        return _AvSource(source, name, of_video=True)
    except _NotMine as error:
        raise MediaError(f"{name}: not a video whose sound can be read") from error


class _NotMine(Exception):
    """A library does not know the format."""


class _SoundfileSource:
    start = Fraction(0)

    def __init__(self, source: Path | BinaryIO, name: str) -> None:
        import soundfile

        self.name, self.error = name, soundfile.LibsndfileError
        try:
            self.file = soundfile.SoundFile(str(source) if isinstance(source, Path) else source)
        except (soundfile.LibsndfileError, TypeError, RuntimeError) as error:
            raise _NotMine from error
        self.sample_rate, self.channels = self.file.samplerate, self.file.channels
        self.bit_depth = _BITS.get(self.file.subtype, 16)
        self.notes: list[str] = []
        if self.file.subtype in ("FLOAT", "DOUBLE", "PCM_32"):
            self.bit_depth = 24
            self.notes.append(f"{self.file.subtype_info} samples are kept with 24 bits")
        self.left = self.file.frames
        self.frames = self.left if self.left < 1 << 62 else 0

    def read(self, n: int) -> Samples:
        try:
            block = self.file.read(n, dtype="float32", always_2d=True)
        except (self.error, RuntimeError) as error:
            raise MediaError(f"{self.name}: damaged: {one_line(error)}") from error
        self.left -= len(block)
        if len(block) < n and 0 < self.left < 1 << 62 and self.file.format in ("WAV", "FLAC", "AIFF", "WAVEX"):
            raise MediaError(f"{self.name}: cut off: {self.left} samples of each channel are missing")
        return np.ascontiguousarray(block.T)

    def close(self) -> None:
        self.file.close()


class _AvSource:
    def __init__(self, source: Path | BinaryIO, name: str, of_video: bool = False) -> None:
        import av

        self.name, self.error = name, av.FFmpegError
        try:
            self.container: Any = av.open(str(source) if isinstance(source, Path) else source)
        except (av.FFmpegError, ValueError, OSError) as error:
            raise _NotMine from error
        streams = self.container.streams.audio
        if not streams:
            self.container.close()
            raise MediaError(f"{name}: holds no sound")
        pictures = av.stream.Disposition.attached_pic  # the cover of a record is no video
        if not of_video and any(not stream.disposition & pictures for stream in self.container.streams.video):
            self.container.close()
            raise UnsupportedMediaError(f"{name}: a video, not a sound; extract its sound first")
        self.stream = streams[0]
        if self.stream.codec_context is None:
            self.container.close()
            raise MediaError(f"{name}: no decoder for its sound")
        self.notes = [f"only the first of {len(streams)} sound tracks is kept"] if len(streams) > 1 else []
        self.sample_rate, self.channels = self.stream.codec_context.sample_rate, self.stream.codec_context.channels
        self.bit_depth = 16
        duration, base = self.stream.duration, self.stream.time_base
        self.frames = round(duration * base * self.sample_rate) if duration and base else 0
        self.to_planes = av.AudioResampler(format="fltp", layout=self.stream.codec_context.layout)
        self.decoded = self._decoded()
        self.rest: Samples = np.zeros((self.channels, 0), dtype=np.float32)
        self.start = Fraction(0)
        if of_video:
            self.rest = next(self.decoded, self.rest)  # its time is known once it is decoded
            self.start = self.begin

    def _decoded(self) -> Iterator[Samples]:
        self.begin, first = Fraction(0), True
        try:
            for frame in self.container.decode(self.stream):
                if first and frame.pts is not None:
                    self.begin = Fraction(frame.pts * frame.time_base)
                first = False
                for plane in self.to_planes.resample(frame):
                    yield plane.to_ndarray().reshape(self.channels, -1).astype(np.float32)
            for plane in self.to_planes.resample(None):
                yield plane.to_ndarray().reshape(self.channels, -1).astype(np.float32)
        except (self.error, ValueError) as error:
            raise MediaError(f"{self.name}: damaged: {one_line(error)}") from error

    def read(self, n: int) -> Samples:
        parts = [self.rest]
        have = self.rest.shape[1]
        while have < n:
            part = next(self.decoded, None)
            if part is None:
                break
            parts.append(part)
            have += part.shape[1]
        joined = np.concatenate(parts, axis=1)
        self.rest = joined[:, n:]
        return np.ascontiguousarray(joined[:, :n])

    def close(self) -> None:
        self.container.close()


def one_line(error: object) -> str:
    return " ".join(str(error).split())


class AudioWriter:
    """A WAV or FLAC file that is written block by block; a context manager.

    Args:    target: binary file object that can seek.  suffix: ".wav" or ".flac".  bit_depth: more than 16 gives 24.
    Raises:  UsageError for another suffix, MediaError for what the format cannot hold.
    """

    def __init__(
        self, target: BinaryIO, suffix: str, name: str, sample_rate: int, channels: int, bit_depth: int = 16
    ) -> None:
        import soundfile

        if suffix.lower() not in AUDIO_SUFFIXES_OUT:
            raise UsageError(f"cannot write {suffix or 'no suffix'}: use one of {', '.join(AUDIO_SUFFIXES_OUT)}")
        if suffix.lower() == ".flac" and (channels > FLAC_CHANNELS or sample_rate > FLAC_RATE):
            raise MediaError(
                f"{name}: FLAC holds {FLAC_CHANNELS} channels and {FLAC_RATE} Hz at most, not {channels} and"
                f" {sample_rate}; write .wav"
            )
        self.name, self.bits = name, 24 if bit_depth > 16 else 16
        self.clipped = 0
        self.error = soundfile.LibsndfileError
        try:
            self.file = soundfile.SoundFile(
                target, "w", sample_rate, channels, f"PCM_{self.bits}", format=suffix[1:].upper()
            )
        except (soundfile.LibsndfileError, TypeError) as error:
            raise MediaError(f"{name}: {one_line(error)}") from error

    def __enter__(self) -> AudioWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(self.error):
            self.file.close()

    def write(self, samples: Samples) -> None:
        """The next samples ``[channels, n]``, rounded to the file's bits; what is beyond full scale is cut off."""
        top = 2 ** (self.bits - 1)
        values = np.round(samples.T.astype(np.float64) * top)
        self.clipped += int(((values < -top) | (values > top - 1)).any(1).sum())
        whole = np.clip(values, -top, top - 1).astype(np.int32) << (32 - self.bits)
        try:
            self.file.write(whole)
        except (self.error, OSError) as error:
            raise MediaError(f"{self.name}: {one_line(error)}") from error

    @property
    def notes(self) -> list[str]:
        """What the file could not hold."""
        return [f"{self.clipped} samples were beyond full scale and are cut off"] if self.clipped else []


def write_audio(sound: Sound, target: BinaryIO, suffix: str, name: str) -> list[str]:
    """Write a whole sound; see :class:`AudioWriter`. Returns what the file could not hold."""
    channels = len(sound.samples)
    with AudioWriter(target, suffix, name, sound.sample_rate, channels, sound.bit_depth) as writer:
        for begin in range(0, sound.samples.shape[1], BLOCK):
            writer.write(sound.samples[:, begin : begin + BLOCK])
        return writer.notes


def resampled_length(n: int, rate_in: int, rate_out: int) -> int:
    """Samples that ``n`` become: ``ceil(n * rate_out / rate_in)``."""
    return -(-n * rate_out // rate_in)


class Resampler:
    """A sound at another sample rate, block by block; of n samples :func:`resampled_length` are made.

    Args:    channels: of the blocks ``[channels, n]``.
    """

    def __init__(self, rate_in: int, rate_out: int, channels: int) -> None:
        self.rates, self.channels = (rate_in, rate_out), channels
        self.taken = self.given = 0
        self.stream: Any = None
        if rate_in != rate_out:
            import soxr

            self.stream = soxr.ResampleStream(rate_in, rate_out, channels, dtype="float32", quality="HQ")

    def __call__(self, block: Samples, last: bool = False) -> Samples:
        """The next samples, and with ``last`` all that are left."""
        self.taken += block.shape[1]
        if self.stream is None:
            return block
        made: Samples = self.stream.resample_chunk(np.ascontiguousarray(block.T), last=last).reshape(-1, self.channels)
        made = np.ascontiguousarray(made.T)
        room = resampled_length(self.taken, *self.rates) - self.given
        made = made[:, :room]
        if last and made.shape[1] < room:
            made = np.pad(made, ((0, 0), (0, room - made.shape[1])))
        self.given += made.shape[1]
        return made


def resample(samples: Samples, rate_in: int, rate_out: int) -> Samples:
    """A whole sound ``[channels, n]`` at another rate."""
    if not samples.shape[1]:
        return samples
    return Resampler(rate_in, rate_out, len(samples))(samples, last=True)
