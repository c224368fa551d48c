"""Sounds in and out: any common file <-> float samples, block by block, so that an hour takes no more memory than a
second.

FFmpeg (PyAV) reads, the content decides as what, never the suffix. A sound is as long as what was decoded of it, to the
end of the file, whatever its header says; delay and padding that lossy formats declare are cut off, and where a file
declares none (AAC without an edit list), they are part of the sound. Time stamps count: see :mod:`.sound_stream`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..container.fields import MAX_CHANNELS, MAX_SAMPLES, RATES
from ..errors import MediaError, UnsupportedMediaError, UsageError
from ..files import seekable, stored
from .guard import Media, one_line, open_big_endian, open_media, video_streams
from .layout import CUSTOMARY, described, layout_name
from .sound_stream import BigEndianStream, Samples, SoundStream

AUDIO_SUFFIXES_IN = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff", ".caf", ".w64", ".au", ".mka",
    ".mp2", ".ac3", ".eac3", ".wv", ".tta", ".ape", ".wma", ".amr", ".dts", ".voc",
)  # fmt: skip
AUDIO_SUFFIXES_OUT = (".wav", ".flac")

FLAC_CHANNELS, FLAC_RATE = 8, 655350  # what the format can say
BLOCK = 1 << 16  # samples of each channel that are read and written at once


@dataclass
class Sound:
    """A whole sound.

    Attributes:
        samples: ``[channels, n]`` float32; full scale is -1..1, files of floats may go beyond.
        sample_rate: samples a second of each channel, Hz.
        bit_depth: 8, 16, 24 or 32 of the file; 16 for lossy formats.
        notes: what could not be kept, one line each.
        layout: mask of the channels' positions, see :mod:`.layout`; 0 if there is nothing to tell.
        problems: what was damaged or missing, one line each.
    """

    samples: Samples
    sample_rate: int
    bit_depth: int = 16
    notes: list[str] = field(default_factory=list)
    layout: int = 0
    problems: list[str] = field(default_factory=list)


class AudioReader:
    """A sound that is read block by block; a context manager.

    Args:    source: path, or binary file object, which is read into memory if it cannot seek.
             name: what messages call it.
             max_samples: refuse sounds with more, all channels together.
             track: which of several sound tracks, from 1 on; None: the one that the file calls its default.
    Raises:  MediaError, one line, for what is no sound, or of which nothing can be decoded, or has samples that are not
             numbers; UsageError for a track that is not there.

    Attributes:
        sample_rate, channels, bit_depth: of what :meth:`blocks` gives.
        layout: mask of the channels' positions, see :mod:`.layout`; 0 if there is nothing to tell.
        frames: samples of each channel that the file says there are, 0 if nobody knows before the end.
        position: samples of each channel that were given out.
        start: of a video's sound, seconds from the beginning of the file's clock to the first sample.
        notes: what could not be kept.  problems: what is damaged or missing. One line each, complete at the end.
    """

    def __init__(
        self, source: Path | BinaryIO, name: str, max_samples: int = MAX_SAMPLES, track: int | None = None
    ) -> None:
        source = stored(source)
        media = open_big_endian(source, name) or open_media(source, name, "a sound")
        try:
            stream: SoundStream | BigEndianStream
            if media.container is None:
                stream = BigEndianStream(media, name)
            elif video_streams(media.container):
                raise UnsupportedMediaError(f"{name}: a video, not a sound; extract its sound first")
            else:
                stream = SoundStream(media, name, track)
            self._begin(media, name, max_samples, stream)
        except BaseException:
            media.close()
            raise

    @classmethod
    def of_video(
        cls, source: Path | bytes, name: str, max_samples: int, track: int | None, picture: int
    ) -> AudioReader:
        """The sound of a video. picture: index of the video track, whose clock it shares."""
        media = open_media(source, name, "a video")
        reader = cls.__new__(cls)
        try:
            beside = (media.container.streams[picture],)
            reader._begin(media, name, max_samples, SoundStream(media, name, track, beside))
        except BaseException:
            media.close()
            raise
        return reader

    def _begin(self, media: Media, name: str, max_samples: int, stream: SoundStream | BigEndianStream) -> None:
        self.name, self.max_samples, self.position = name, max_samples, 0
        self._media, self._stream = media, stream
        self._rest: Samples = np.zeros((stream.channels, 0), dtype=np.float32)
        self.sample_rate, self.channels, self.bit_depth = stream.sample_rate, stream.channels, stream.bit_depth
        self.layout, self.frames, self.start = stream.mask, stream.frames, stream.start
        self.notes, self.problems = stream.notes, stream.problems
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise UnsupportedMediaError(f"{name}: {self.channels} channels, at most {MAX_CHANNELS} are possible")
        if not RATES[0] <= self.sample_rate <= RATES[1]:
            raise UnsupportedMediaError(f"{name}: {self.sample_rate} Hz is no sample rate of a sound")

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._media.close()

    def blocks(self, n: int = BLOCK) -> Iterator[Samples]:
        """The rest of the sound in blocks ``[channels, n]``, the last one shorter."""
        while True:
            block = self._read(n)
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

    def _read(self, n: int) -> Samples:
        """The next ``n`` samples of each channel at most, none at the end."""
        parts = [self._rest]
        have = self._rest.shape[1]
        while have < n:
            part = next(self._stream.pieces, None)
            if part is None:
                break
            parts.append(part)
            have += part.shape[1]
        joined = np.concatenate(parts, axis=1)
        self._rest = joined[:, n:]
        return np.ascontiguousarray(joined[:, :n])


def read_audio(source: Path | BinaryIO, name: str, max_samples: int = MAX_SAMPLES, track: int | None = None) -> Sound:
    """A whole sound; see :class:`AudioReader`."""
    with AudioReader(source, name, max_samples, track) as reader:
        blocks = list(reader.blocks())
        empty: Samples = np.zeros((reader.channels, 0), dtype=np.float32)
        samples = np.concatenate(blocks, axis=1) if blocks else empty
        return Sound(
            samples, reader.sample_rate, reader.bit_depth, reader.notes, layout=reader.layout, problems=reader.problems
        )


class AudioWriter:
    """A WAV or FLAC file that is written block by block; a context manager.

    Args:    target: binary file object that can seek.  suffix: ".wav" or ".flac".  bit_depth: more than 16 gives 24.
             layout: mask of the channels' positions, see :mod:`.layout`; 0 if there is nothing to tell.
    Raises:  UsageError for another suffix, MediaError for what the format cannot hold.
    """

    def __init__(
        self,
        target: BinaryIO,
        suffix: str,
        name: str,
        sample_rate: int,
        channels: int,
        bit_depth: int = 16,
        *,
        layout: int = 0,
    ) -> None:
        if suffix.lower() not in AUDIO_SUFFIXES_OUT:
            raise UsageError(f"cannot write {suffix or 'no suffix'}: use one of {', '.join(AUDIO_SUFFIXES_OUT)}")
        if suffix.lower() == ".flac" and (channels > FLAC_CHANNELS or sample_rate > FLAC_RATE):
            raise MediaError(
                f"{name}: FLAC holds {FLAC_CHANNELS} channels and {FLAC_RATE} Hz at most, not {channels} and"
                f" {sample_rate}; write .wav"
            )
        self.name, self.bits = name, 24 if bit_depth > 16 else 16
        self.clipped = 0
        self._guessed = suffix.lower() == ".flac" and channels > 2 and not layout
        self._positions = described(CUSTOMARY[channels]) if channels in CUSTOMARY else ""
        if layout:
            self._sink: _Plain | _Placed = _Placed(
                target, suffix.lower(), name, sample_rate, bits=self.bits, layout=layout_name(layout, channels)
            )
        else:
            self._sink = _Plain(target, suffix, name, sample_rate, bits=self.bits, channels=channels)

    def __enter__(self) -> AudioWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._sink.close(kind is not None)

    def write(self, samples: Samples) -> None:
        """The next samples ``[channels, n]``, rounded to the file's bits; what is beyond full scale is cut off."""
        top = 2 ** (self.bits - 1)
        for begin in range(0, samples.shape[1], BLOCK):
            values = np.round(samples[:, begin : begin + BLOCK].T.astype(np.float64) * top)
            self.clipped += int(((values < -top) | (values > top - 1)).any(1).sum())
            self._sink.write(np.clip(values, -top, top - 1).astype(np.int32))

    @property
    def notes(self) -> list[str]:
        """What the file could not hold."""
        notes = [f"{self.clipped} samples were beyond full scale and are cut off"] if self.clipped else []
        if self._guessed:
            notes.append(f"where the channels belong is not known: .flac takes them for {self._positions}")
        return notes


class _Plain:
    """A file whose channels have no positions, by libsndfile."""

    def __init__(self, target: BinaryIO, suffix: str, name: str, sample_rate: int, bits: int, channels: int) -> None:
        import soundfile

        self.name, self.shift, self.error = name, 32 - bits, soundfile.LibsndfileError
        try:
            self.file = soundfile.SoundFile(
                target, "w", sample_rate, channels, f"PCM_{bits}", format=suffix[1:].upper()
            )
        except (soundfile.LibsndfileError, TypeError) as error:
            raise MediaError(f"{name}: {one_line(error)}") from error

    def write(self, whole: npt.NDArray[np.int32]) -> None:
        """``[n, channels]`` integers of the file's bits."""
        try:
            self.file.write(whole << self.shift)
        except (self.error, OSError) as error:
            raise MediaError(f"{self.name}: {one_line(error)}") from error

    def close(self, failed: bool) -> None:
        try:
            self.file.close()
        except (self.error, OSError) as error:
            if not failed:
                raise MediaError(f"{self.name}: {one_line(error)}") from error


class _Placed:
    """A file that says where its channels belong, by FFmpeg: WAVE_FORMAT_EXTENSIBLE, or a tag of FLAC."""

    def __init__(self, target: BinaryIO, suffix: str, name: str, sample_rate: int, bits: int, layout: str) -> None:
        import av

        self.name, self.bits, self.layout, self.rate, self.at = name, bits, layout, sample_rate, 0
        self.errors = (av.FFmpegError, ValueError, OSError)
        self.format = "s16" if bits == 16 else "s32"
        options = {"fflags": "+bitexact"} | ({"rf64": "auto"} if suffix == ".wav" else {})
        try:
            self.container: Any = av.open(target, "w", format=suffix[1:], options=options)
            codec = "flac" if suffix == ".flac" else f"pcm_s{bits}le"
            self.stream: Any = self.container.add_stream(codec, rate=sample_rate, layout=layout)
            context: Any = self.stream.codec_context
            context.format = self.format
        except self.errors as error:
            raise MediaError(f"{name}: {one_line(error)}") from error

    def write(self, whole: npt.NDArray[np.int32]) -> None:
        """``[n, channels]`` integers of the file's bits."""
        import av

        if not len(whole):
            return
        rows = whole.astype(np.int16) if self.bits == 16 else whole << 8
        frame = av.AudioFrame.from_ndarray(rows.reshape(1, -1), format=self.format, layout=self.layout)
        frame.sample_rate, frame.pts, frame.time_base = self.rate, self.at, Fraction(1, self.rate)
        self.at += len(whole)
        try:
            self.container.mux(self.stream.encode(frame))
        except self.errors as error:
            raise MediaError(f"{self.name}: {one_line(error)}") from error

    def close(self, failed: bool) -> None:
        try:
            if not failed:
                self.container.mux(self.stream.encode(None))
            self.container.close()
        except self.errors as error:
            if not failed:
                raise MediaError(f"{self.name}: {one_line(error)}") from error


def write_audio(sound: Sound, target: BinaryIO, suffix: str, name: str) -> list[str]:
    """Write a whole sound; see :class:`AudioWriter`. Returns what the file could not hold."""
    channels = len(sound.samples)
    with (
        seekable(target) as file,
        AudioWriter(
            file, suffix, name, sound.sample_rate, channels=channels, bit_depth=sound.bit_depth, layout=sound.layout
        ) as writer,
    ):
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
