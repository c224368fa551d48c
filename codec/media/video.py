"""Videos in and out: any common file <-> uint8 frames with exact times, one by one, so that an hour takes no more
memory than a second.

PyAV (FFmpeg) reads and writes. As with pictures, what is in the file is either in the frames and facts of a
:class:`VideoReader`, or named in its ``notes``, or a reason to refuse.

Times are rationals, counted from the beginning of the file's time line, on which its sound lies too. A writer keeps
them as exactly as its format can say them:

| suffix     | codec                       | times                    | sound            |
| ---------- | --------------------------- | ------------------------ | ---------------- |
| .mp4, .mov | H.264                       | exact                    | AAC              |
| .mkv       | H.264                       | rounded to 1/1000 s      | FLAC (lossless)  |
| .webm      | VP9, 4:2:0                  | rounded to 1/1000 s      | Opus (48 kHz)    |
| .y4m       | none: 4:4:4 samples, 8 bits | one rate for all frames  | -                |
| .gif       | 256 colours for each frame  | rounded to 1/100 s       | -                |

H.264 is written as 4:2:0, which every player shows, if both sides are even, and as 4:4:4 if not: it is the only way in
which H.264 holds an odd side, and players in hardware refuse it, which a note says.
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

from ..container import MAX_PIXELS, MAX_SAMPLES, MAX_SIDE
from ..errors import MediaError, UnsupportedMediaError, UsageError
from .audio import AudioReader, Resampler, Samples

VIDEO_SUFFIXES_IN = (
    ".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".y4m", ".gif", ".ts", ".m2ts", ".mpg", ".mpeg", ".flv",
    ".wmv", ".ogv", ".ivf",
)  # fmt: skip
VIDEO_SUFFIXES_OUT = (".mp4", ".mov", ".mkv", ".webm", ".y4m", ".gif")
SILENT_SUFFIXES = (".y4m", ".gif")  # those that hold no sound

# Demuxers that may look at a file. The others are never asked: playlists open further files, and addresses.
DEMUXERS = "mov,matroska,avi,gif,yuv4mpegpipe,mpegts,mpeg,mpegvideo,flv,asf,ogg,ivf,h264,hevc,m4v"
_ABSOLUTE = {"mpegts", "mpeg"}  # their clocks begin anywhere

CRF = {"libx264": "14", "libvpx-vp9": "18"}  # constant quality, hardly told from the frames it is given
AUDIO_BITS = 96_000  # a second and channel, of AAC and Opus
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
_LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
_SWSCALE = 0x4 | 0x2000 | 0x4000 | 0x40000 | 0x80000  # bicubic, full chroma both ways, accurate rounding, exact
_ITU601, _ITU709 = 5, 1  # swscale's numbers of matrices
_MATRICES = {1: _ITU709, 4: 4, 5: _ITU601, 6: _ITU601, 7: 7, 9: 9, 10: 9}  # from FFmpeg's numbers of colour spaces
_HDR = {16: "PQ", 18: "HLG"}  # transfer functions
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
    Raises:  MediaError, one line, for what is no video, or damaged, or has no frames; while reading also for files that
             end before they say, for other reasons than an unfinished recording. UnsupportedMediaError for frames
             whose size changes.

    Attributes:
        height, width: of a frame in pixels, after the rotation that the file asks for.
        frames: how many the file says there are (it may show less), 0 if nobody knows before the end.
        time_base: every time is a multiple of it, plus the first frame's.
        rate: nominal frames a second, None if unknown; frames need not keep to it.
        end: when the last frame ends, seconds; None if unknown.
        pixel_aspect: width of a pixel over its height.
        has_sound: whether :meth:`sound` gives one.
        notes: what could not be kept, a line each; complete once all frames are read.

    Memory:  a few frames: what the decoder holds to put them in order.
    """

    def __init__(self, source: Path | BinaryIO, name: str, max_pixels: int = MAX_PIXELS) -> None:
        import av

        self.name, self.max_pixels = name, max_pixels
        self.notes: list[str] = []
        self._source = source if isinstance(source, Path) else source.read()
        self._errors = (av.FFmpegError, ValueError, OSError)
        self._container: Any = _open(self._source, name)
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        stream = self._stream = self._choose_stream()
        coded = (stream.codec_context.width, stream.codec_context.height)
        _check_size(*coded, self.name, self.max_pixels)
        # A stream may change its size on the way: then the decoder must refuse before it allocates. It counts whole
        # blocks, of 128 pixels a side at most.
        stream.codec_context.options = {"max_pixels": str(4 * self.max_pixels + (1 << 14))}
        stream.thread_type = "AUTO"
        self.time_base = Fraction(stream.time_base)
        rate = stream.guessed_rate or stream.average_rate
        self.rate = Fraction(rate) if rate else None
        self.has_sound = bool(self._container.streams.audio)
        self.frames = int(stream.frames)
        self._count = self._moved = self._corrupt = 0
        self._last: Fraction | None = None
        self._origin = Fraction(0)
        if self._container.format.name in _ABSOLUTE:
            tracks = (stream, *self._container.streams.audio)
            starts = [track.start_time * track.time_base for track in tracks if track.start_time is not None]
            self._origin = min(starts, default=self._origin)
        self._decoded = self._decode()
        first = next(self._decoded, None)
        if first is None:
            raise MediaError(f"{self.name}: holds no frames")
        self._size = (first.width, first.height)
        self._matrix = _matrix_of(first, self._size)
        self._turn, turned = _turn_of(first)
        if self._turn is None:
            self.notes.append("the file asks for a rotation by an angle that is not right: not applied")
        self.height, self.width = (self._size[0], self._size[1]) if turned else (self._size[1], self._size[0])
        aspect = Fraction(stream.sample_aspect_ratio or 1)
        self.pixel_aspect = 1 / aspect if turned else aspect
        self._note_losses(first)
        time = self._time(first)
        self._origin += min(Fraction(0), time)  # the time line begins at 0
        self.end = self._declared_end()
        self._first: Any = first

    def _choose_stream(self) -> Any:
        streams = _video_streams(self._container)
        if not streams:
            what = "only sound" if self._container.streams.audio else "neither pictures nor sound"
            raise MediaError(f"{self.name}: not a video: it holds {what}")
        if len(streams) > 1:
            self.notes.append(f"only the first of {len(streams)} video tracks is kept")
        if self._container.streams.subtitles:
            self.notes.append("subtitles are not kept")
        if streams[0].codec_context is None:
            raise MediaError(f"{self.name}: no decoder for its video track")
        return streams[0]

    def _note_losses(self, frame: Any) -> None:
        bits = max((part.bits for part in frame.format.components), default=8)
        if bits > 8:
            self.notes.append(f"{bits} bits per sample reduced to 8")
        if len(frame.format.components) in (2, 4) and self._is_transparent(frame):
            self.notes.append("the alpha channel is not kept")
        if frame.color_trc in _HDR:
            self.notes.append(f"high dynamic range ({_HDR[frame.color_trc]}) is kept as it is, without tone mapping")
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
        self._container.close()

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
        if self.end is not None and time < self.end < time + (duration or 0) + 1:
            duration = self.end - time
        duration = duration or 1 / (self.rate or Fraction(25))
        yield Frame(pixels, time, duration)
        if self.end is not None and self.end - time - duration > max(_SLACK, 5 / (self.rate or 25)):
            end, said = float(time + duration), float(self.end)
            raise MediaError(f"{self.name}: cut off: it ends after {end:.2f} s and not {said:.2f} s")
        if self._moved:
            self.notes.append(f"times of {self._moved} frames did not increase and were moved")
        if self._corrupt:
            self.notes.append(f"{self._corrupt} frames are damaged and kept as the decoder could make them")

    def _decode(self) -> Iterator[Any]:
        try:
            yield from self._container.decode(self._stream)
        except self._errors as error:
            place = f" after frame {self._count}" if self._count else ""
            raise MediaError(f"{self.name}: damaged{place}: {_one_line(error)}") from error

    def _time(self, frame: Any) -> Fraction:
        if frame.pts is not None:
            return Fraction(frame.pts * frame.time_base) - self._origin
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
            pixels = rgb_pixels(frame, self._matrix)
        except self._errors as error:
            raise MediaError(f"{self.name}: damaged after frame {self._count}: {_one_line(error)}") from error
        if self._turn:
            pixels = np.ascontiguousarray(_turned(pixels, *self._turn))
        return pixels, time

    def sound(self, max_samples: int = MAX_SAMPLES) -> tuple[AudioReader, Fraction]:
        """The first sound track, to be read block by block beside the frames, and when it begins on their time line.

        Raises: MediaError if there is none, or it is damaged; see :class:`AudioReader`.
        """
        source = self._source if isinstance(self._source, Path) else io.BytesIO(self._source)
        reader = AudioReader(source, self.name, max_samples, of_video=True)
        return reader, reader.start - self._origin


def _open(source: Path | bytes, name: str) -> Any:
    """The container of a file, opened. Raises MediaError."""
    import av

    if isinstance(source, Path):
        try:
            if source.is_dir():
                raise MediaError(f"{name}: a folder, not a video")
            with source.open("rb") as file:
                empty = not file.read(1)
        except OSError as error:
            raise MediaError(f"{name}: {error.strerror or error}") from error
    else:
        empty = not source
    if empty:
        raise MediaError(f"{name}: the file is empty")
    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
    # The protocol in front, or a name like "pipe:1" would be an address.
    where = f"file:{source.absolute()}" if isinstance(source, Path) else io.BytesIO(source)
    try:
        return av.open(where, container_options=options, metadata_errors="replace")
    except (av.FFmpegError, ValueError, OSError) as error:
        raise MediaError(f"{name}: not a video that can be read, or a damaged one ({_one_line(error)})") from error


def _video_streams(container: Any) -> list[Any]:
    """Video tracks, without covers of records."""
    import av

    pictures = av.stream.Disposition.attached_pic
    return [stream for stream in container.streams.video if not stream.disposition & pictures]


def moves(source: Path | BinaryIO, name: str) -> bool:
    """Whether a container (MP4, Matroska, Ogg, ...) has a video track. Raises MediaError if it cannot be opened."""
    if isinstance(source, Path):
        container = _open(source, name)
    else:
        here = source.tell()
        container = _open(source.read(), name)
        source.seek(here)
    try:
        return bool(_video_streams(container))
    finally:
        container.close()


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise MediaError(f"{name}: damaged, or holds no frames: they are {width} x {height}")
    if width * height > max_pixels:
        raise MediaError(f"{name}: frames have {width} x {height} pixels, more than the limit of {max_pixels}")
    if max(width, height) > MAX_SIDE:
        raise MediaError(f"{name}: frames of {width} x {height}: sides are at most {MAX_SIDE}")


def untagged_matrix(height: int, width: int) -> int:
    """The matrix of YUV that says nothing about it, by the custom of players: BT.709 from high definition on."""
    return _ITU709 if width >= 1280 or height > 576 else _ITU601


def _matrix_of(frame: Any, size: tuple[int, int]) -> int:
    return _MATRICES.get(int(frame.colorspace), untagged_matrix(size[1], size[0]))


def _duration(frame: Any) -> Fraction:
    """Of a frame, 0 if it does not say."""
    return Fraction((frame.duration or 0) * (frame.time_base or 0))


def rgb_pixels(frame: Any, matrix: int) -> Pixels:
    """``[H, W, 3]`` uint8 of a frame of FFmpeg, whose YUV has the ``matrix`` of this number of swscale."""
    rgb = frame.reformat(format="rgb24", src_colorspace=matrix, dst_colorspace=matrix, interpolation=_SWSCALE)
    pixels: Pixels = rgb.to_ndarray()
    return pixels


_Turn = tuple[bool, bool, bool]  # rows become columns; then columns, then rows in reverse


def _turn_of(frame: Any) -> tuple[_Turn | None, bool]:
    """What a frame's display matrix asks for, None if it cannot be had; and whether rows become columns.

    The matrix takes a pixel (x, y), y downwards, to (a x + c y, b x + d y).
    """
    found = [data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"]
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


def _one_line(error: object) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()) or type(error).__name__


# ---------------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class SoundTrack:
    """What a writer must know of the sound before its first sample.

    Attributes:
        sample_rate: Hz.  channels: 1 to 8.
        bit_depth: of .mkv: more than 16 gives 24.
        start: seconds from the beginning of the time line to the first sample.
    """

    sample_rate: int
    channels: int
    bit_depth: int = 16
    start: Fraction = Fraction(0)


class VideoWriter:
    """A video file that is written frame by frame; a context manager. What each format does: see the module's text.

    Frames and sound go into the file as they come: to keep memory constant, write those of about one time in turns.

    Args:    target: binary file object that can seek.  suffix: one of ``VIDEO_SUFFIXES_OUT``.
             name: what messages call the output.
             height, width: of the frames.
             time_base: all times and durations are multiples of it, in .mp4 exactly.
             rate: frames a second, nominal; of .y4m, which wants it, exact.
             sound: what sound will come; None: none.  pixel_aspect: width of a pixel over its height.
    Raises:  UsageError for another suffix; UnsupportedMediaError for what the format cannot hold; MediaError for
             everything that the disk or the codec refuses.
    """

    def __init__(
        self,
        target: BinaryIO,
        suffix: str,
        name: str,
        height: int,
        width: int,
        time_base: Fraction,
        rate: Fraction | None = None,
        sound: SoundTrack | None = None,
        pixel_aspect: Fraction = Fraction(1),
    ) -> None:
        suffix = suffix.lower()
        if suffix not in VIDEO_SUFFIXES_OUT:
            raise UsageError(f"cannot write {suffix or 'no suffix'}: use one of {', '.join(VIDEO_SUFFIXES_OUT)}")
        if min(height, width) < 1 or time_base <= 0 or (rate is not None and rate <= 0):
            raise ValueError(f"a video has pixels and time, not {width} x {height} and {time_base} s")
        self.name, self.size, self.notes = name, (height, width), list[str]()
        if sound is not None and suffix in SILENT_SUFFIXES:
            self.notes.append(f"the sound is not kept: {suffix} has no place for it")
            sound = None
        if pixel_aspect != 1 and suffix in (".webm", ".gif"):  # of the others, what is coded says it
            self.notes.append(f"pixels are not square ({pixel_aspect}), and {suffix} is written as if they were")
        self._last: Fraction | None = None
        self._suffix, self._begin = suffix, Fraction(0)
        self._sink: _Sink
        if suffix == ".y4m":
            self._sink = _Y4m(target, name, height, width, rate, pixel_aspect)
        else:
            kind = _Gif if suffix == ".gif" else _Av
            self._sink = kind(target, suffix, name, height, width, time_base, rate, sound, pixel_aspect, self.notes)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._sink.abandon()

    def write(self, pixels: Pixels, time: Fraction, duration: Fraction | None = None) -> None:
        """The next frame ``[H, W, 3]`` uint8, shown from ``time`` on, seconds; only the last one's duration counts."""
        if pixels.dtype != np.uint8 or pixels.shape != (*self.size, 3):
            raise ValueError(f"a frame is uint8 {[*self.size, 3]}, not {pixels.dtype} {list(pixels.shape)}")
        if time < 0 or (self._last is not None and time <= self._last):
            raise ValueError(f"times of frames increase from 0: {time} comes after {self._last}")
        if self._last is None and time and self._suffix in (".y4m", ".gif"):
            self._begin = time
            self.notes.append(f"the first frame is at {float(time):.3f} s, and {self._suffix} begins at 0")
        self._last = time
        self._sink.write(np.ascontiguousarray(pixels), time - self._begin, duration)

    def write_sound(self, samples: Samples) -> None:
        """The next samples ``[channels, n]`` float32; formats without sound ignore them."""
        self._sink.write_sound(samples)

    def close(self) -> None:
        """Write what is left. Raises MediaError if no frame was written."""
        if self._last is None:
            self._sink.abandon()
            raise MediaError(f"{self.name}: a video without frames cannot be written")
        self._sink.close()


class _Sink:
    """A file of one format."""

    def write(self, pixels: Pixels, time: Fraction, duration: Fraction | None) -> None:
        raise NotImplementedError

    def write_sound(self, samples: Samples) -> None:
        """Nothing: most formats without pictures' sound."""

    def close(self) -> None:
        """Nothing is left."""

    def abandon(self) -> None:
        """The file will be thrown away."""


def yuv_frame(pixels: Pixels, pixel_format: str, matrix: int) -> Any:
    """Pixels ``[H, W, 3]`` uint8 as a frame of FFmpeg in YUV of limited range; :func:`rgb_pixels` undoes it."""
    import av

    return av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
        format=pixel_format,
        src_colorspace=matrix,
        dst_colorspace=matrix,
        dst_color_range="MPEG",
        interpolation=_SWSCALE,
    )


class _Y4m(_Sink):
    """YUV4MPEG2 (wiki.multimedia.cx/index.php/YUV4MPEG2): a line of text, then planes as they are."""

    def __init__(
        self, target: BinaryIO, name: str, height: int, width: int, rate: Fraction | None, aspect: Fraction
    ) -> None:
        if rate is None:
            raise UnsupportedMediaError(f"{name}: .y4m holds one frame rate, and this video has none; write .mp4")
        self.target, self.name, self.rate, self.count = target, name, rate, 0
        self.matrix = untagged_matrix(height, width)
        self._put(
            f"YUV4MPEG2 W{width} H{height} F{rate.numerator}:{rate.denominator} Ip"
            f" A{aspect.numerator}:{aspect.denominator} C444 XCOLORRANGE=LIMITED\n".encode()
        )

    def write(self, pixels: Pixels, time: Fraction, duration: Fraction | None) -> None:
        # Times of containers that count in ticks are near a multiple of the frame, not on it.
        if abs(time * self.rate - self.count) > Fraction(1, 10):
            raise UnsupportedMediaError(
                f"{self.name}: .y4m holds one frame rate, and frame {self.count} is not at its time; write .mp4"
            )
        self.count += 1
        frame = yuv_frame(pixels, "yuv444p", self.matrix)
        self._put(b"FRAME\n" + frame.to_ndarray().tobytes())

    def _put(self, data: bytes) -> None:
        try:
            self.target.write(data)
        except OSError as error:
            raise MediaError(f"{self.name}: {_one_line(error)}") from error


class _Av(_Sink):
    """MP4, Matroska and WebM, through FFmpeg's encoders and muxers."""

    def __init__(
        self,
        target: BinaryIO,
        suffix: str,
        name: str,
        height: int,
        width: int,
        time_base: Fraction,
        rate: Fraction | None,
        sound: SoundTrack | None,
        aspect: Fraction,
        notes: list[str],
    ) -> None:
        import av

        self.name, self.notes, self.suffix = name, notes, suffix
        self.errors = (av.FFmpegError, ValueError, OSError, OverflowError)
        self.rate = rate or Fraction(25)
        self.durations: dict[int, int] = {}  # of frames that the encoder holds, by their time
        self.last: tuple[int, Fraction | None] | None = None
        self.ticks = {".mp4": None, ".mov": None, ".gif": Fraction(1, 100)}.get(suffix, Fraction(1, 1000))
        self.time_base = time_base if self.ticks is None else self.ticks
        self.rounded = False
        muxer = {".mkv": "matroska"}.get(suffix, suffix[1:])
        options = {}
        if self.ticks is None:  # where tracks begin is said in ticks of the whole file, a thousand a second if not told
            options["movie_timescale"] = str(time_base.denominator * max(1, 90_000 // time_base.denominator))
        try:
            self.container: Any = av.open(target, "w", format=muxer, options=options)
            self.stream = self._video_stream(height, width, aspect)
            self.sound = None if sound is None else _AvSound(self.container, suffix, sound, notes)
        except self.errors as error:
            raise MediaError(f"{name} cannot be written: {_one_line(error)}") from error

    def _video_stream(self, height: int, width: int, aspect: Fraction) -> Any:
        codec = "libvpx-vp9" if self.suffix == ".webm" else "libx264"
        options = {"crf": CRF[codec]}
        if codec == "libx264":
            options |= {"preset": "fast"}
        else:
            options |= {"b": "0", "deadline": "good", "cpu-used": "4", "row-mt": "1"}
        odd = height % 2 or width % 2
        self.pixel_format = "yuv444p" if odd and codec == "libx264" else "yuv420p"
        if self.pixel_format == "yuv444p":
            self.notes.append(f"{width} x {height} has an odd side: written as H.264 4:4:4, which some players refuse")
        self.matrix = untagged_matrix(height, width)
        stream = self.container.add_stream(codec, rate=self.rate.limit_denominator(1 << 20), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, self.pixel_format
        context = stream.codec_context
        context.time_base = self.time_base
        context.sample_aspect_ratio = aspect.limit_denominator(1 << 15)
        context.color_range = 1  # limited
        context.colorspace = 1 if self.matrix == _ITU709 else 6
        context.color_primaries = context.color_trc = 1  # BT.709, whose primaries are those of sRGB
        return stream

    def write(self, pixels: Pixels, time: Fraction, duration: Fraction | None) -> None:
        place = self._place(time)
        self._close_frame(place)
        self.last = (place, duration)
        try:
            self._encode(pixels, place)
        except self.errors as error:
            raise MediaError(f"{self.name} cannot be written: {_one_line(error)}") from error

    def _place(self, time: Fraction) -> int:
        """A time in ticks of the format."""
        exact = time / self.time_base
        place = round(exact)
        if exact != place and not self.rounded:
            self.rounded = True
            self.notes.append(f"times of frames are rounded to {self.time_base} s, the finest that {self.suffix} holds")
        if self.last is not None and place <= self.last[0]:
            raise UnsupportedMediaError(
                f"{self.name}: frames less than {self.time_base} s apart cannot be held by {self.suffix}; write .mp4"
            )
        return place

    def _close_frame(self, next_place: int) -> None:
        if self.last is not None:
            self.durations[self.last[0]] = next_place - self.last[0]

    def _encode(self, pixels: Pixels, place: int) -> None:
        frame = yuv_frame(pixels, self.pixel_format, self.matrix)
        frame.pts, frame.time_base = place, self.time_base
        self._mux(self.stream.encode(frame))

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            if packet.pts is not None:
                known = self.durations.pop(packet.pts, None)
                if known is not None:
                    packet.duration = known
            self.container.mux(packet)

    def write_sound(self, samples: Samples) -> None:
        try:
            if self.sound is not None:
                self.sound.write(samples)
        except self.errors as error:
            raise MediaError(f"{self.name} cannot be written: {_one_line(error)}") from error

    def close(self) -> None:
        assert self.last is not None
        place, duration = self.last
        ticks = (duration or 1 / self.rate) / self.time_base
        self.durations[place] = max(1, round(ticks))
        try:
            self._finish()
            if self.sound is not None:
                self.sound.close()
            self.container.close()
        except self.errors as error:
            raise MediaError(f"{self.name} cannot be written: {_one_line(error)}") from error

    def _finish(self) -> None:
        self._mux(self.stream.encode(None))

    def abandon(self) -> None:
        with suppress(*self.errors):
            self.container.close()


class _Gif(_Av):
    """Each frame with a palette of its own (FFmpeg's palettegen and paletteuse), shown for ever."""

    def _video_stream(self, height: int, width: int, aspect: Fraction) -> Any:
        import av

        self.notes.append(".gif holds 256 colours a frame: the others are dithered")
        stream = self.container.add_stream("gif", rate=self.rate.limit_denominator(1 << 15))
        stream.width, stream.height, stream.pix_fmt = width, height, "pal8"
        stream.codec_context.time_base = self.time_base
        graph: Any = av.filter.Graph()
        self.source = graph.add_buffer(width=width, height=height, format="rgb24", time_base=self.time_base)
        split, self.sink = graph.add("split"), graph.add("buffersink")
        palette = graph.add("palettegen", "stats_mode=single:reserve_transparent=0")
        use = graph.add("paletteuse", "new=1:dither=sierra2_4a")
        self.source.link_to(split)
        split.link_to(palette, 0, 0)
        split.link_to(use, 1, 0)
        palette.link_to(use, 0, 1)
        use.link_to(self.sink)
        graph.configure()
        self.graph = graph
        return stream

    def _encode(self, pixels: Pixels, place: int) -> None:
        import av

        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = place, self.time_base
        self.source.push(frame)
        self._pull()

    def _pull(self) -> None:
        import av

        with suppress(av.BlockingIOError, av.EOFError):
            while True:
                self._mux(self.stream.encode(self.sink.pull()))

    def _finish(self) -> None:
        self.source.push(None)
        self._pull()
        super()._finish()


class _AvSound:
    """The sound track of a container."""

    def __init__(self, container: Any, suffix: str, sound: SoundTrack, notes: list[str]) -> None:
        self.container, self.channels = container, sound.channels
        layout = _LAYOUTS[sound.channels]
        options = {}
        rate = sound.sample_rate
        if suffix == ".mkv":
            codec, self.format = "flac", "s32" if sound.bit_depth > 16 else "s16"
        elif suffix == ".webm":
            codec, self.format, rate = "libopus", "flt", 48000
            if sound.channels > 2:
                options = {"mapping_family": "1"}
        else:
            codec, self.format = "aac", "fltp"
            rate = rate if rate in _AAC_RATES else 48000
        if rate != sound.sample_rate:
            notes.append(f"the sound is resampled to {rate} Hz, since {suffix} does not hold {sound.sample_rate}")
        self.layout, self.rate = layout, rate
        self.resample = Resampler(sound.sample_rate, rate, sound.channels)
        self.stream = container.add_stream(codec, rate=rate, layout=layout, options=options)
        if codec == "flac":
            self.stream.codec_context.format = self.format
        else:
            self.stream.codec_context.bit_rate = AUDIO_BITS * sound.channels
        self.place = round(sound.start * rate)  # of the next sample

    def write(self, samples: Samples, last: bool = False) -> None:
        import av

        if len(samples) != self.channels:
            raise ValueError(f"the sound has {self.channels} channels, not {len(samples)}")
        samples = self.resample(samples, last)
        early = min(max(0, -self.place), samples.shape[1])  # before the first frame can be
        samples, self.place = samples[:, early:], self.place + early
        if not samples.shape[1]:
            return
        rows = np.clip(samples, -1, 1)
        if self.format in ("s16", "s32"):
            top = 2.0 ** (15 if self.format == "s16" else 23)
            whole = np.clip(np.round(rows.astype(np.float64) * top), -top, top - 1)
            kind = np.int16 if self.format == "s16" else np.int32
            rows = (whole.astype(np.int32) << (0 if self.format == "s16" else 8)).astype(kind)
        if self.format != "fltp":
            rows = rows.T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(rows), format=self.format, layout=self.layout)
        frame.sample_rate, frame.pts, frame.time_base = self.rate, self.place, Fraction(1, self.rate)
        self.place += samples.shape[1]
        self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        self.write(np.zeros((self.channels, 0), dtype=np.float32), last=True)
        self.container.mux(self.stream.encode(None))
