"""Videos in: any common file -> uint8 frames with exact times, one by one, so that an hour takes no more
memory than a second.

PyAV (FFmpeg) reads. As with pictures, what is in the file is either in the frames and facts of a
:class:`VideoReader`, or named in its ``notes``, or a reason to refuse.

Times are rationals, counted from the beginning of the file's time line, on which its sound lies too.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..container.fields import MAX_PIXELS, MAX_SAMPLES, MAX_SIDE
from ..errors import MediaError, UnsupportedMediaError, one_line
from .audio import AudioReader
from .color import Conversion, conversion_for
from .guard import choose_track, dropped, open_media, rereadable, video_streams
from .timeline import Timeline

VIDEO_SUFFIXES_IN = (
    ".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".y4m", ".gif", ".ts", ".m2ts", ".mpg", ".mpeg", ".flv",
    ".wmv", ".ogv", ".ivf", ".h264", ".264", ".h265", ".265", ".hevc",
)  # fmt: skip
_ABSOLUTE = {"mpegts", "mpeg"}  # their clocks begin anywhere
SWSCALE = 0x4 | 0x2000 | 0x4000 | 0x40000 | 0x80000  # bicubic, full chroma both ways, accurate rounding, exact
_ITU601, ITU709 = 5, 1  # swscale's numbers of matrices
_MATRICES = {1: ITU709, 4: 4, 5: _ITU601, 6: _ITU601, 7: 7, 9: 9, 10: 9}  # from FFmpeg's numbers of colour spaces
# Formats in which a file that is cut off shows it, so that a last frame that is shown for long is just that.
_TELLING = {"matroska", "mov", "avi", "gif", "ogg"}
_DECODED = {"avi"}  # formats that state when a frame is decoded, and not when it is shown
_LONGEST = 86_400  # seconds that a last frame may be shown
_SLACK = Fraction(1, 2)  # seconds that a file may end before it said it would
Pixels = npt.NDArray[np.uint8]  # [H, W, 3] RGB


@dataclass(frozen=True)
class Frame:
    """One frame of a video, upright.

    Attributes:
        pixels: ``[H, W, 3]`` uint8 RGB.
        time: seconds from the beginning of the time line to when the frame is first shown.
        duration: seconds until the next one, of the last one as the file says, or one of the nominal rate.
    """

    pixels: Pixels
    time: Fraction
    duration: Fraction


class VideoReader:
    """A video that is read frame by frame; a context manager, and an iterator over :class:`Frame`, once.

    Args:    source: path, or binary file object, which is read into memory (as stored, not as frames).
             name: what messages call it.
             max_pixels: refuse larger frames, before any is decoded.
             track, sound_track: which of several, from 1 on; None: the one that the file calls its default.
    Raises:  MediaError, one line, for what is no video, or has no frames that can be decoded. UnsupportedMediaError for
             frames whose size changes; UsageError for a track that is not there.

    Attributes:
        height, width: of a frame in pixels, after the rotation that the file asks for.
        frames: how many the file says there are (it may show less), 0 if nobody knows before the end.
        time_base: every time is a multiple of it, plus the first frame's.
        rate: nominal frames a second, None if unknown; frames need not keep to it.
        end: when the last frame ends by the file's word, seconds; None if unknown.
        pixel_aspect: width of a pixel over its height.
        has_sound: whether :meth:`sound` gives one.
        notes: what could not be kept.  problems: what is damaged or missing. A line each, complete once all frames are
            read.

    Memory:  a few frames: what the decoder holds to put them in order.
    """

    def __init__(
        self,
        source: Path | BinaryIO,
        name: str,
        max_pixels: int = MAX_PIXELS,
        track: int | None = None,
        sound_track: int | None = None,
    ) -> None:
        import av

        self.name, self.max_pixels = name, max_pixels
        self.notes: list[str] = []
        self.problems: list[str] = []
        self._source, self._tracks = rereadable(source), (track, sound_track)
        self._errors = (av.FFmpegError, ValueError, OSError)
        self._media = open_media(self._source, name, "a video")
        self._container = self._media.container
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        stream = self._stream = self._choose_stream()
        self._picture = stream.index
        coded = (stream.codec_context.width, stream.codec_context.height)
        _check_size(*coded, self.name, self.max_pixels)
        # A stream may change its size on the way: then the decoder must refuse before it allocates. It counts whole
        # blocks, of 128 pixels a side at most.
        stream.codec_context.options = {"max_pixels": str(4 * self.max_pixels + (1 << 14))}
        stream.thread_type = "AUTO"
        self.time_base = Fraction(stream.time_base)
        rate = stream.guessed_rate or stream.average_rate
        self.rate = Fraction(rate) if rate else None
        sounds = self._container.streams.audio
        self.has_sound = any(sound.codec_context is not None for sound in sounds)
        if self.has_sound or self._tracks[1] is not None:  # one that was asked for must be there
            beside = [choose_track(sounds, self._tracks[1], "sound", self.name)[0]]
        else:
            beside = []
            self.notes += ["the sound is not kept: there is no decoder for it"] * bool(sounds)
        self.frames = int(stream.frames)
        self._count = self._moved = self._corrupt = self._bad = self._reached = 0
        self._last: Fraction | None = None
        self._packet = b""  # the first one
        self._began: int | None = None  # when the first packet is decoded
        self._delay: int | None = None  # from then until the first frame comes out
        self._origin = Fraction(0)
        if self._container.format.name in _ABSOLUTE:
            starts = [track.start_time * track.time_base for track in (stream, *sounds) if track.start_time is not None]
            self._origin = min(starts, default=self._origin)
        self._timeline = Timeline(self._media, [stream, *beside])
        self._missing = self._media.extent.missing
        self._decoded = self._decode()
        first = next(self._decoded, None)
        if first is None:
            why = f"damaged: {self.problems[0]}" if self.problems else "holds no frames"
            if len(video_streams(self._container)) > 1:
                why += "; another of its video tracks can be chosen (track)"
            if self._bad:
                why = f"damaged: none of its {self._bad} frames can be decoded"
            raise MediaError(f"{self.name}: {'; '.join(filter(None, (why, self._media.extent.lacks)))}")
        self._size = (first.width, first.height)
        self._matrix = _matrix_of(first, self._size)
        self._conversion, notes = conversion_for(first)
        self._turn, turned = _turn_of(first, self._packet)
        if self._turn is None:
            self.notes.append("the file asks for a rotation by an angle that is not right: not applied")
        self.height, self.width = (self._size[0], self._size[1]) if turned else (self._size[1], self._size[0])
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        self.pixel_aspect = 1 / aspect if turned else aspect
        self._note_losses(first)
        self.notes += notes
        time = self._time(first)
        self._origin += min(Fraction(0), time)  # the time line begins at 0
        self.end = self._declared_end()
        self._first: Any = first

    def _choose_stream(self) -> Any:
        streams = video_streams(self._container)
        if not streams:
            what = "only sound" if self._container.streams.audio else "neither pictures nor sound"
            raise MediaError(f"{self.name}: not a video: it holds {what}")
        stream, notes = choose_track(streams, self._tracks[0], "video", self.name)
        self.notes += notes
        if self._container.streams.subtitles:
            self.notes.append("subtitles are not kept")
        self.notes += dropped(self._container, stream)
        return stream

    def _note_losses(self, frame: Any) -> None:
        bits = max((part.bits for part in frame.format.components), default=8)
        if bits > 8:
            self.notes.append(f"{bits} bits per sample reduced to 8")
        beside = self._stream.metadata.get("alpha_mode") == "1"  # of VP8 and VP9: a second stream, not decoded
        if beside or (len(frame.format.components) in (2, 4) and self._is_transparent(frame)):
            self.notes.append("the alpha channel is not kept")
        if frame.interlaced_frame:
            self.notes.append("interlaced: both fields of a frame are kept as its rows")

    def _is_transparent(self, frame: Any) -> bool:
        """Whether alpha says anything; every frame of a GIF has it."""
        return self._container.format.name != "gif" or bool((frame.to_ndarray(format="rgba")[..., 3] < 255).any())

    def _declared_end(self) -> Fraction | None:
        """When the file says that the video ends, without :attr:`_origin`."""
        stream = self._stream
        if stream.duration is not None:
            return (stream.start_time or 0) * self.time_base + stream.duration * self.time_base - self._origin
        text = stream.metadata.get("DURATION", "")  # Matroska, of a track: hours:minutes:seconds
        with suppress(ValueError):
            hours, minutes, seconds = text.split(":")
            return 3600 * int(hours) + 60 * int(minutes) + Fraction(seconds)
        if self._container.duration is not None and not self.has_sound:
            return Fraction((self._container.start_time or 0) + self._container.duration, 1_000_000) - self._origin
        return None

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._media.close()

    def __iter__(self) -> Iterator[Frame]:
        first, self._first = self._first, None
        if first is None:
            raise ValueError("the frames of a VideoReader come once")
        held, duration = self._upright(first), _duration(first)
        for frame in self._decoded:
            pixels, time = self._upright(frame)
            # What decoders say of durations is in the order of the file, where frames that look ahead are in another.
            yield Frame(*held, time - held[1])
            held, duration = (pixels, time), _duration(frame)
        pixels, time = held
        yield Frame(pixels, time, self._last_duration(time, duration))
        self._finish()

    def _last_duration(self, time: Fraction, duration: Fraction) -> Fraction:
        """How long the last frame is shown: to the end that the file states, unless it is cut off before that."""
        own = duration or 1 / (self.rate or Fraction(25))
        left = Fraction(0) if self.end is None or self._timeline.jumps else self.end - time
        if left <= 0:
            return own
        missing = left - own > max(_SLACK, 5 / (self.rate or 25))
        told = bool(_TELLING & set(self._container.format.name.split(",")))  # whether being cut off would show
        if left > _LONGEST or (missing and (self._missing or self.problems or self._bad or not told)):
            end, said = float(time + own), float(self.end or 0)
            self.problems.append(f"cut off: it ends after {end:.2f} s and not {said:.2f} s")
            return own
        return left

    def _finish(self) -> None:
        """Notes and problems that the end tells."""
        self.notes += self._timeline.notes
        if self._moved:
            self.notes.append(f"times of {self._moved} frames did not increase and were moved")
        if self._bad:
            self.problems.append(f"{self._bad} packets of the video are damaged: their frames are left out")
        if self._corrupt:
            self.problems.append(f"{self._corrupt} frames are damaged and kept as the decoder could make them")
        left = self._media.file.seek(0, io.SEEK_END) - self._reached
        if self._container.format.name == "yuv4mpegpipe" and left:  # FFmpeg says nothing
            self.problems.append(f"cut off: the last {left} bytes are no whole frame")
        if self._missing and not any(problem.startswith("cut off") for problem in self.problems):
            self.problems.append(self._media.extent.lacks or "")
        self.problems += self._media.extent.problems

    def _decode(self) -> Iterator[Any]:
        """Frames, with damage written down."""
        packets = self._timeline.packets
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
            except self._errors as error:
                self.problems.append(f"damaged after frame {self._count}: {one_line(error)}")
                with suppress(*self._errors):
                    yield from self._stream.codec_context.decode(None)
                return
            if packet.size:
                self._timeline.straighten(packet)
                self._reached = (packet.pos or 0) + packet.size
            if packet.stream.index != self._picture:
                continue
            try:
                frames = packet.decode()
            except self._errors:
                self._bad += bool(packet.size)
                continue
            self._began = packet.dts if self._began is None else self._began
            if self._delay is None and self._began is not None and frames and frames[0].dts is not None:
                self._delay = frames[0].dts - self._began
            if not self._packet:
                self._packet = bytes(packet)
            yield from frames

    def _time(self, frame: Any) -> Fraction:
        stamp = frame.pts
        if self._container.format.name in _DECODED:
            stamp = None if frame.dts is None else frame.dts - (self._delay or 0)
        if stamp is not None and frame.time_base:
            return Fraction(stamp * frame.time_base) - self._origin
        step = 1 / (self.rate or Fraction(25))  # raw streams tell no times
        return Fraction(0) if self._last is None else self._last + step

    def _upright(self, frame: Any) -> tuple[Pixels, Fraction]:
        if (frame.width, frame.height) != self._size:
            raise UnsupportedMediaError(
                f"{self.name}: frame {self._count} is {frame.width} x {frame.height}, those before"
                f" {self._size[0]} x {self._size[1]}; only videos of one size can be read"
            )
        time = self._time(frame)
        if self._last is not None and time <= self._last:
            time = self._last + self.time_base
            self._moved += 1
        self._last = time
        self._corrupt += bool(frame.is_corrupt)
        self._count += 1
        try:
            pixels = rgb_pixels(frame, self._matrix, self._conversion)
        except self._errors as error:
            raise MediaError(f"{self.name}: damaged after frame {self._count}: {one_line(error)}") from error
        if self._turn:
            pixels = np.ascontiguousarray(_turned(pixels, *self._turn))
        return pixels, time

    def sound(self, max_samples: int = MAX_SAMPLES) -> tuple[AudioReader, Fraction]:
        """The sound track, to be read block by block beside the frames, and when it begins on their time line.

        Raises: MediaError if there is none, or it is damaged; see :class:`AudioReader`.
        """
        reader = AudioReader.of_video(self._source, self.name, max_samples, self._tracks[1], self._picture)
        return reader, reader.start - self._origin


def has_video_stream(source: Path | BinaryIO, name: str) -> bool:
    """Whether a container (MP4, Matroska, Ogg, ...) has a video track. Raises MediaError if it cannot be opened."""
    here = None if isinstance(source, Path) else source.tell()
    try:
        media = open_media(source, name, "a video")
        try:
            return bool(video_streams(media.container))
        finally:
            media.close()
    finally:
        if here is not None and not isinstance(source, Path):
            source.seek(here)


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise MediaError(f"{name}: damaged, or holds no frames: they are {width} x {height}")
    if width * height > max_pixels:
        raise MediaError(f"{name}: frames have {width} x {height} pixels, more than the limit of {max_pixels}")
    if max(width, height) > MAX_SIDE:
        raise MediaError(f"{name}: frames of {width} x {height}: sides are at most {MAX_SIDE}")


def untagged_matrix(height: int, width: int) -> int:
    """The matrix of YUV that says nothing about it, by the custom of players: BT.709 from high definition on."""
    return ITU709 if width >= 1280 or height > 576 else _ITU601


def _matrix_of(frame: Any, size: tuple[int, int]) -> int:
    return _MATRICES.get(int(frame.colorspace), untagged_matrix(size[1], size[0]))


def _duration(frame: Any) -> Fraction:
    """Of a frame, 0 if it does not say."""
    return Fraction((frame.duration or 0) * (frame.time_base or 0))


def rgb_pixels(frame: Any, matrix: int, conversion: Conversion | None = None) -> Pixels:
    """``[H, W, 3]`` uint8 of a frame of FFmpeg, whose YUV has the ``matrix`` of this number of swscale.

    conversion: of its colours to BT.709.
    """
    if conversion is not None:
        deep = frame.reformat(format="rgb48le", src_colorspace=matrix, dst_colorspace=matrix, interpolation=SWSCALE)
        return conversion(deep.to_ndarray())
    rgb = frame.reformat(format="rgb24", src_colorspace=matrix, dst_colorspace=matrix, interpolation=SWSCALE)
    pixels: Pixels = rgb.to_ndarray()
    return pixels


_Turn = tuple[bool, bool, bool]  # rows become columns; then columns, then rows in reverse


_EXIF_TURNS: dict[int, _Turn] = {  # by the orientation of EXIF
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


def _orientation(packet: bytes) -> int:
    """What the EXIF block of a JPEG asks for, 1 to 8; 1 if there is none."""
    from PIL import Image

    from .pillow_guard import DECODER_ERRORS, pillow_without_limits

    try:
        with pillow_without_limits(), Image.open(io.BytesIO(packet), formats=["JPEG"]) as picture:
            found = picture.getexif().get(0x0112, 1)
    except DECODER_ERRORS:
        return 1
    return found if found in _EXIF_TURNS else 1


def _turn_of(frame: Any, packet: bytes) -> tuple[_Turn | None, bool]:
    """What a frame's display matrix asks for, None if it cannot be had; and whether rows become columns.

    packet: the coded frame.

    The matrix takes a pixel (x, y), y downwards, to (a x + c y, b x + d y).
    """
    try:
        found = [data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"]
    except ValueError:  # PyAV does not know every kind of side data: this is EXIF, in frames of Motion JPEG
        turn = _EXIF_TURNS[_orientation(packet)]
        return turn, turn[0]
    if not found:
        return (False, False, False), False
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(found[0]))
    if b == c == 0 and a and d:
        return (False, a < 0, d < 0), False
    if a == d == 0 and b and c:
        return (True, c < 0, b < 0), True
    return None, False


def _turned(pixels: Pixels, swap: bool, reverse_columns: bool, reverse_rows: bool) -> Pixels:
    x = pixels.transpose(1, 0, 2) if swap else pixels
    return x[:: -1 if reverse_rows else 1, :: -1 if reverse_columns else 1]
