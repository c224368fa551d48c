"""The samples of one sound track, as FFmpeg decodes them, laid out by their time stamps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MediaError, one_line
from .guard import Bytes, Media, check_track, choose_track, dropped
from .layout import CUSTOMARY, MONO, described, mask_of
from .timeline import Timeline

Samples = npt.NDArray[np.float32]  # [channels, n], full scale is -1..1

TIMED = {"matroska", "mov", "mpegts", "mpeg", "flv", "asf", "ogg"}  # formats whose time stamps are more than a count
# Which say how long they are, and mean it; AIFF of other codecs than PCM counts samples or blocks, nobody knows which.
COUNTED = {"flac", "tta", "wv", "ape", "tak", "mpc8", "mov", "aiff", "caf", "sds"}
FACT = {"wav", "w64"}  # which say in a chunk "fact" how many samples coded blocks hold
SLACK = Fraction(1, 50)  # seconds by which a time stamp may be off before samples are moved
LOOSE = Fraction(1, 4)  # the same of ASF: stamps are those of packets, which hold back what the next one completes
SILENCE = (600, 8)  # seconds of gaps that may be filled in any case, and for each second of sound
PIECE = 1 << 16  # samples of silence made at once
_BITS = {"u8": 8, "s16": 16, "s32": 24, "s64": 24}  # of decoded integers
_FLOATS = ("flt", "dbl")  # lossless in some codecs; DTS, which may be lossless, is so in integers
KEPT = "samples are kept with 24 bits"
_BEYOND = ("PCM_32", "FLOAT", "DOUBLE")  # what libsndfile calls samples of more than 24 bits
_TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICS")  # what lies among the packets of joined MP3 files and is no sound


class SoundStream:
    """A sound track that is decoded piece by piece.

    Args:    media: opened; closed by its owner.  name: what messages call it.
             track: number of the sound track, see :func:`.guard.choose_track`.
             beside: further tracks whose clock it shares.
    Raises:  MediaError, one line.

    Attributes:
        sample_rate, channels: of the first frame; what changes later is converted.
        mask: positions of the channels, see :mod:`.layout`.
        frames: samples of each channel that the file says there are, 0 if nobody knows before the end.
        bit_depth: 8, 16 or 24.
        start: seconds from the beginning of the file's clock to the first sample.
        notes, problems: what could not be kept, and what was damaged; complete at the end.
    """

    def __init__(self, media: Media, name: str, track: int | None = None, beside: tuple[Any, ...] = ()) -> None:
        import av

        self.name, self.error = name, (av.FFmpegError, ValueError)
        container = self._container = media.container
        formats = set(container.format.name.split(","))
        self._timed, self._slack = bool(TIMED & formats), LOOSE if "asf" in formats else SLACK
        if not container.streams.audio:
            raise MediaError(f"{name}: holds {'no sound' if container.streams.video else 'neither pictures nor sound'}")
        self.stream, self.notes = choose_track(container.streams.audio, track, "sound", name)
        self.notes += dropped(container, self.stream)
        codec = self.stream.codec_context.name
        coded, primed = not codec.startswith("pcm_"), "ogg" in formats and codec == "vorbis"
        self._counted = bool(COUNTED & formats) and not (coded and "aiff" in formats)
        self._trimmed = "mov" in formats or (coded and bool(FACT & formats))
        if primed or ("caf" in formats and codec == "alac"):
            # FFmpeg counts samples of the first packet of Vorbis, which gives none, and cuts as many too many off the
            # end; of ALAC in CAF it cuts off what the decoder has left out already.
            self.stream.codec_context.options = {"flags2": "+skip_manual"}
            self._trimmed = True
        self.problems: list[str] = []
        self._broken = ""  # why the demuxer went no further
        self._extent = media.extent
        self._timeline = Timeline(media, (self.stream, *beside))
        self._resampler: Any = None
        self._of_frame: tuple[str, str, int] | None = None
        self._given = self._silent = self._gaps = self._overlaps = self._changes = self._bad = 0
        self._lost = Fraction(0)  # seconds of damaged packets that no time stamp will tell of
        self._frames = self._decoded()
        first = next(self._frames, None)
        if primed:
            first = next(self._frames, None)
        if first is None and self._broken:
            raise MediaError(f"{name}: damaged: {self._broken}; nothing of it can be decoded")
        if first is None and self._bad:
            raise MediaError(f"{name}: damaged: none of its {self._bad} packets can be decoded")
        self._describe(first)
        self.start = self._origin = self._time(first) or Fraction(0)
        self._lost = Fraction(0)
        self.pieces = self._placed(first)

    def _describe(self, first: Any) -> None:
        """Fill in what the first frame tells, or the header if there is none."""
        of = self.stream.codec_context if first is None else first
        self.sample_rate, self.channels = of.sample_rate, of.layout.nb_channels
        self.layout = of.layout
        self.mask, self.order = mask_of(of.layout) if self.channels else (0, None)
        if first is None and not self.channels:  # a header that says nothing, of a track in which there is nothing
            self.sample_rate, self.channels = 48_000, 1
        codec, form = self.stream.codec_context.codec, "" if first is None else first.format.name.removesuffix("p")
        self.bit_depth, self._deeper = _BITS.get(form, 16), form == "s64"
        if form in _FLOATS and codec.lossless and codec.name != "dca":
            self.bit_depth = 24
            self.notes.append(f"float {KEPT}")
        self._whole = form in ("s32", "s64") and codec.lossless
        duration, base = self.stream.duration, self.stream.time_base
        self.seconds = Fraction(duration * base) if duration and base and duration > 0 else None
        self.frames = round((self.seconds or Fraction(0)) * (self.sample_rate or 0))

    def _decoded(self) -> Iterator[Any]:
        """Frames, with what is no sound left out and damage written down."""
        packets = self._timeline.packets
        while True:
            try:
                packet = next(packets, None)
            except self.error as error:
                self._broken = one_line(error)
                with suppress(*self.error):
                    yield from self.stream.codec_context.decode(None)
                packet = None
            if packet is None:
                return
            if packet.size:
                self._timeline.straighten(packet)
            if packet.stream.index != self.stream.index:
                continue
            try:
                frames = packet.decode()
            except self.error:
                if not bytes(packet)[:8].startswith(_TAGS):
                    self._bad += 1
                    if not self._timed:
                        self._lost += (packet.duration or 0) * (packet.time_base or 0)
                continue
            yield from frames

    def _damage(self, problem: str) -> None:
        self.problems.append(f"damaged after {self._given / (self.sample_rate or 1):.2f} s: {problem}")

    def _time(self, frame: Any) -> Fraction | None:
        if frame is None or frame.pts is None or not frame.time_base:
            return None
        return Fraction(frame.pts * frame.time_base)

    def _samples(self, frame: Any) -> Samples:
        """``[channels, n]`` of a frame, at the rate and in the layout of the first one."""
        import av

        kind = frame.format.name, frame.layout.name, frame.sample_rate
        parts = []
        if kind != self._of_frame:
            if self._of_frame is not None:
                parts += self._resampler.resample(None)
                if kind[1:] != self._of_frame[1:]:
                    self._changes += 1
            # Packed: the planes of a frame are not to be counted beyond eight.
            form = "s32" if self._whole else "flt"
            self._resampler = av.AudioResampler(format=form, layout=self.layout, rate=self.sample_rate)
            self._of_frame = kind
        parts += self._resampler.resample(frame)
        return self._joined(parts)

    def _joined(self, parts: list[Any]) -> Samples:
        dtype = np.int32 if self._whole else np.float32
        rows = [
            np.frombuffer(part.planes[0], dtype, part.samples * self.channels).reshape(-1, self.channels)
            for part in parts
        ]
        x: npt.NDArray[Any] = np.concatenate(rows) if rows else np.zeros((0, self.channels), dtype)
        if self._whole:  # a decoder gives 32 bits where there are 24 as well
            self._deeper = self._deeper or bool((x & 0xFF).any())
            x = (x * 2.0**-31).astype(np.float32)
        x = x if self.order is None else x[:, self.order]
        return np.ascontiguousarray(x.T)

    def _placed(self, frame: Any) -> Iterator[Samples]:
        """Pieces of the sound: silence where stamps leave a gap, and nothing twice."""
        held: list[Samples] = []  # the last pieces, which may have to be trimmed
        while frame is not None:
            try:
                x = self._samples(frame)
            except self.error as error:  # a layout that cannot be converted
                self._damage(one_line(error))
                break
            off = self._off(frame)
            if len(held) > 2:
                yield held.pop(0)
            if off > 0:
                yield from held
                held.clear()
                yield from self._silence(off)
            elif off < 0:
                self._overlaps += 1
                x = x[:, -off:]
            self._given += x.shape[1]
            if x.shape[1]:
                held.append(x)
            frame = next(self._frames, None)
        if self._resampler is not None:
            held.append(self._joined(self._resampler.resample(None)))
            self._given += held[-1].shape[1]
            yield self._trim(np.concatenate(held, axis=1))
        self._finish()

    def _off(self, frame: Any) -> int:
        """Samples by which a frame comes too late (or, below 0, too early) for what was given out before it."""
        lost, self._lost = self._lost, Fraction(0)
        if not self._timed:
            return round(lost * self.sample_rate)
        time = self._time(frame)
        off = 0 if time is None else round((time - self._origin) * self.sample_rate) - self._given
        return off if abs(off) > self._slack * self.sample_rate else 0

    def _silence(self, n: int) -> Iterator[Samples]:
        """Fill a gap of n samples, unless gaps would become most of the sound."""
        most, share = SILENCE
        if self._silent + n > self.sample_rate * most + share * (self._given - self._silent):
            self.problems.append(
                f"a gap of {n / self.sample_rate:.0f} s after {self._given / self.sample_rate:.2f} s is left out:"
                " there is more silence than sound"
            )
            self._origin += Fraction(n, self.sample_rate)
            return
        self._gaps += 1
        self._silent += n
        self._given += n
        for begin in range(0, n, PIECE):
            yield np.zeros((self.channels, min(PIECE, n - begin)), np.float32)

    def _trim(self, x: Samples) -> Samples:
        """The last pieces without the padding behind the end that the file states."""
        if not self._trimmed or self.seconds is None or not self.sample_rate:
            return x
        extra = self._given - round(self.seconds * self.sample_rate)
        if 0 < extra < x.shape[1]:
            self._given -= extra
            return x[:, :-extra]
        return x

    def _finish(self) -> None:
        """Notes and problems that the end tells."""
        rate = self.sample_rate
        self.notes += self._timeline.notes
        if self._gaps:
            silent = f"{self._silent / rate:.3f} s of silence"
            self.notes.append(f"{self._gaps} gap{'s' * (self._gaps > 1)} in its time stamps became {silent}")
        if self._overlaps:
            self.notes.append(f"{self._overlaps} frames overlapped those before and were cut")
        if self._changes:
            self.notes.append(f"rate or channels change {self._changes} times: all is as at its beginning")
        if self._deeper:
            self.notes.append(f"integer {KEPT}")
        if self._bad:
            self.problems.append(f"{self._bad} packets of sound are damaged")
        short = self.frames - self._given
        if self._broken and not (self._counted and short <= 0 < self.frames):  # a tag behind the sound is no damage
            self._damage(self._broken)
        if self._extent.lacks:
            self.problems.append(self._extent.lacks)
        elif self._counted and not self._extent.further and short > max(4608, rate // 2 if self._timed else 0):
            self.problems.append(f"cut off: {short} samples of each channel are missing")

    @property
    def positions(self) -> str:
        """Where its channels belong, for messages."""
        return described(self.mask or CUSTOMARY.get(self.channels, MONO))


class BigEndianStream:
    """A WAV file of the other byte order (RIFX), which FFmpeg does not read, by libsndfile; as :class:`SoundStream`."""

    def __init__(self, media: Media, name: str, track: int | None = None) -> None:
        import soundfile

        self.name, self.error = name, (soundfile.LibsndfileError, RuntimeError)
        check_track(1, track, "sound", name)
        try:
            self._file = soundfile.SoundFile(Bytes(media.file, less=media.extent.further))
        except (*self.error, TypeError) as error:
            raise MediaError(f"{name}: not a sound that can be read, or a damaged one ({one_line(error)})") from error
        self.sample_rate, self.channels, self.mask = self._file.samplerate, self._file.channels, 0
        self.frames, self.start = self._file.frames, Fraction(0)
        subtype = self._file.subtype
        self.bit_depth = 24 if subtype in ("PCM_24", *_BEYOND) else 8 if subtype in ("PCM_U8", "PCM_S8") else 16
        self.notes = [f"{'integer' if subtype == 'PCM_32' else 'float'} {KEPT}"] if subtype in _BEYOND else []
        self.problems = [media.extent.lacks] if media.extent.lacks else []
        self.pieces = self._read()

    def _read(self) -> Iterator[Samples]:
        try:
            while len(block := self._file.read(PIECE, dtype="float32", always_2d=True)):
                yield np.ascontiguousarray(block.T)
        except self.error as error:
            self.problems.append(f"damaged: {one_line(error)}")
