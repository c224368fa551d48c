"""Sounds in and out: any common file <-> float samples, block by block, so that an hour takes no more memory than a
second.

FFmpeg (PyAV) reads, the content decides as what, never the suffix. A sound is as long as what was decoded of it, to the
end of the file, whatever its header says; delay and padding that lossy formats declare are cut off, and where a file
declares none (AAC without an edit list), they are part of the sound. Time stamps count: see :mod:`.sound_stream`.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..container.fields import MAX_CHANNELS, MAX_SAMPLES, RATES
from ..errors import MediaError, UnsupportedMediaError, UsageError, one_line
from ..files import seekable, stored
from .guard import Media, open_big_endian, open_media, video_streams
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
        media, stream = _opened(stored(source), name, track)
        try:
            self._begin(media, name, max_samples, stream)
        except BaseException:
            media.close()
            raise
        self._pieces = self._joined(track)
        if media.extent.further:
            self.frames = 0

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
        self._media, self._stream, self._pieces = media, stream, stream.pieces
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
            part = next(self._pieces, None)
            if part is None:
                break
            parts.append(part)
            have += part.shape[1]
        joined = np.concatenate(parts, axis=1)
        self._rest = joined[:, n:]
        return np.ascontiguousarray(joined[:, :n])

    def _joined(self, track: int | None) -> Iterator[Samples]:
        """The sound, and those behind it in the same file, as far as they are of the same kind."""
        yield from self._stream.pieces
        media, kind = self._media, (self.sample_rate, self.channels, self.layout)
        while media.extent.further:
            media.file.seek(-media.extent.further, io.SEEK_END)
            try:
                following, stream = _opened(media.file, self.name, track)
            except (MediaError, UsageError):
                break
            with closing(following):
                if (stream.sample_rate, stream.channels, stream.mask) != kind:
                    break
                yield from stream.pieces
            self.notes += [note for note in stream.notes if note not in self.notes]
            self.problems += stream.problems
            media = following
        self.problems += media.extent.problems


def _opened(source: Path | BinaryIO, name: str, track: int | None) -> tuple[Media, SoundStream | BigEndianStream]:
    """Raises MediaError, UsageError, as :class:`AudioReader`."""
    media = open_big_endian(source, name) or open_media(source, name, "a sound", alone=True)
    try:
        if media.container is None:
            return media, BigEndianStream(media, name, track)
        if video_streams(media.container):
            raise UnsupportedMediaError(f"{name}: a video, not a sound; extract its sound first")
        return media, SoundStream(media, name, track)
    except BaseException:
        media.close()
        raise


def read_audio(
    source: Path | BinaryIO, name: str, max_samples: int = MAX_SAMPLES, track: int | None = None, strict: bool = False
) -> Sound:
    """A whole sound; see :class:`AudioReader`. strict: refuse a damaged one, of which otherwise what is there is read.

    Raises: MediaError, UsageError.
    """
    with AudioReader(source, name, max_samples, track) as reader:
        empty: Samples = np.zeros((reader.channels, 0), dtype=np.float32)
        samples = np.concatenate([empty, *reader.blocks()], axis=1)
    if strict:
        refuse_damage(reader.problems, name)
    return Sound(
        samples, reader.sample_rate, reader.bit_depth, reader.notes, layout=reader.layout, problems=reader.problems
    )


def refuse_damage(problems: list[str], name: str) -> None:
    """Raise MediaError for the first problem of a sound or a video, if there is one."""
    if problems:
        raise MediaError(f"{name}: {problems[0]}")


def to_integers(samples: Samples, bits: int) -> tuple[npt.NDArray[np.int32], int]:
    """``[channels, n]`` rounded to integers of so many bits, ``[n, channels]``; and how many of the n were beyond full
    scale in a channel, and are cut off."""
    top = 2 ** (bits - 1)
    values = np.round(samples.T.astype(np.float64) * top)
    clipped = int(((values < -top) | (values > top - 1)).any(1).sum())
    return np.clip(values, -top, top - 1).astype(np.int32), clipped


def packed_frame(rows: npt.NDArray[Any], form: str, layout: str, rate: int, at: int) -> Any:
    """``[n, channels]`` as a frame of FFmpeg; integers are of 16 bits or, as "s32", of 24. at: samples before it."""
    import av

    values = rows.astype(np.int16) if form == "s16" else rows << 8 if form == "s32" else rows
    # Packed: planes of a frame are not to be counted beyond eight.
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(values).reshape(1, -1), format=form, layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
    return frame


def clipping(n: int) -> list[str]:
    """A note, if samples were beyond full scale."""
    return [f"{n} samples were beyond full scale and are cut off"] if n else []


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
        for begin in range(0, samples.shape[1], BLOCK):
            whole, clipped = to_integers(samples[:, begin : begin + BLOCK], self.bits)
            self.clipped += clipped
            self._sink.write(whole)

    @property
    def notes(self) -> list[str]:
        """What the file could not hold."""
        notes = clipping(self.clipped)
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

        self.name, self.layout, self.rate, self.at = name, layout, sample_rate, 0
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
        if not len(whole):
            return
        frame = packed_frame(whole, self.format, self.layout, self.rate, self.at)
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
        writer.write(sound.samples)
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
