"""Videos out: frames, one by one, and their sound to a file. PyAV (FFmpeg) writes all but Y4M.

Times are kept as exactly as a format can say them:

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
import re
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..errors import MediaError, UnsupportedMediaError, UsageError, one_line
from .audio import Resampler, Samples, clipping, packed_frame, to_integers
from .layout import CUSTOMARY, described, layout_name
from .read_video import ITU709, SWSCALE, untagged_matrix

if TYPE_CHECKING:
    from .read_video import Pixels


VIDEO_SUFFIXES_OUT = (".mp4", ".mov", ".mkv", ".webm", ".y4m", ".gif")
SILENT_SUFFIXES = (".y4m", ".gif")  # those that hold no sound
CRF = {"libx264": "14", "libvpx-vp9": "18"}  # constant quality, hardly told from the frames it is given
# Positions of channels that come back from a codec, by their masks; FLAC holds all.
_HELD = {
    "aac": {0x3, 0x4, 0x7, 0x107, 0x33, 0x37, 0x3F, 0x63F},
    "libopus": {0x3, 0x4, 0x7, 0x33, 0x37, 0x3F, 0x70F, 0x63F},
}
AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
AUDIO_BITS = 96_000  # a second and channel, of AAC and Opus


# ---------------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class SoundTrack:
    """What a writer must know of the sound before its first sample.

    Attributes:
        sample_rate: Hz.  channels: 1 to 8.
        bit_depth: of .mkv: more than 16 gives 24.
        start: seconds from the beginning of the time line to the first sample.
        layout: mask of the channels' positions, see :mod:`.layout`; 0 if there is nothing to tell.
    """

    sample_rate: int
    channels: int
    bit_depth: int = 16
    start: Fraction = Fraction(0)
    layout: int = 0


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
            self._sink = _Y4m(target, name, height, width, rate=rate, aspect=pixel_aspect, notes=self.notes)
        else:
            kind = _Gif if suffix == ".gif" else _Av
            self._sink = kind(
                target,
                suffix,
                name,
                height,
                width,
                time_base=time_base,
                rate=rate,
                sound=sound,
                aspect=pixel_aspect,
                notes=self.notes,
            )

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
    """Pixels ``[H, W, 3]`` uint8 as a frame of FFmpeg in limited YUV; :func:`~.read_video.rgb_pixels` undoes it."""
    import av

    return av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
        format=pixel_format,
        src_colorspace=matrix,
        dst_colorspace=matrix,
        dst_color_range="MPEG",
        interpolation=SWSCALE,
    )


class _Y4m(_Sink):
    """YUV4MPEG2 (wiki.multimedia.cx/index.php/YUV4MPEG2): a line of text, then planes as they are."""

    def __init__(
        self,
        target: BinaryIO,
        name: str,
        height: int,
        width: int,
        *,
        rate: Fraction | None,
        aspect: Fraction,
        notes: list[str],
    ) -> None:
        if rate is None:
            raise UnsupportedMediaError(f"{name}: .y4m holds one frame rate, and this video has none; write .mp4")
        self.target, self.name, self.rate, self.count, self.notes = target, name, rate, 0, notes
        self.last: Fraction | None = None  # duration of the last frame
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
        self.last = duration
        frame = yuv_frame(pixels, "yuv444p", self.matrix)
        self._put(b"FRAME\n" + frame.to_ndarray().tobytes())

    def close(self) -> None:
        if self.last is not None and abs(self.last * self.rate - 1) > Fraction(1, 10):
            self.notes.append(
                f"the last frame is shown for {float(self.last):.3f} s, and in .y4m as long as the others"
            )

    def _put(self, data: bytes) -> None:
        try:
            self.target.write(data)
        except OSError as error:
            raise MediaError(f"{self.name}: {one_line(error)}") from error


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

        self.name, self.notes, self.suffix, self.target = name, notes, suffix, target
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
            raise MediaError(f"{name} cannot be written: {one_line(error)}") from error

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
        context.colorspace = 1 if self.matrix == ITU709 else 6
        context.color_primaries = context.color_trc = 1  # BT.709, whose primaries are those of sRGB
        return stream

    def write(self, pixels: Pixels, time: Fraction, duration: Fraction | None) -> None:
        place = self._place(time)
        self._close_frame(place)
        self.last = (place, duration)
        try:
            self._encode(pixels, place)
        except self.errors as error:
            raise MediaError(f"{self.name} cannot be written: {one_line(error)}") from error

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
            raise MediaError(f"{self.name} cannot be written: {one_line(error)}") from error

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
            raise MediaError(f"{self.name} cannot be written: {one_line(error)}") from error

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

    def close(self) -> None:
        """FFmpeg shows the last frame as long as the one before, so its delay is written over."""
        super().close()
        assert self.last is not None
        _place, duration = self.last
        wanted = max(1, round((duration or 1 / self.rate) / self.time_base))
        delay = min(wanted, 0xFFFF)
        held = self.target.readable() and self._set_last_delay(delay)
        if not held or delay < wanted:
            self.notes.append("the last frame is not shown as long as it was")

    def _set_last_delay(self, delay: int) -> bool:
        """Whether the last graphic control extension (GIF89a, section 23) was found and changed."""
        try:
            size = self.target.seek(0, io.SEEK_END)
            begin = max(0, size - (1 << 24))
            self.target.seek(begin)
            found = list(re.finditer(rb"\x21\xf9\x04.(..).\0\x2c", self.target.read(), re.DOTALL))
            if found:
                self.target.seek(begin + found[-1].start(1))
                self.target.write(delay.to_bytes(2, "little"))
            self.target.seek(size)
        except OSError as error:
            raise MediaError(f"{self.name} cannot be written: {one_line(error)}") from error
        return bool(found)


class _AvSound:
    """The sound track of a container."""

    def __init__(self, container: Any, suffix: str, sound: SoundTrack, notes: list[str]) -> None:
        self.container, self.channels, self.notes, self.clipped = container, sound.channels, notes, 0
        options = {}
        rate = sound.sample_rate
        if suffix == ".mkv":
            codec, self.format = "flac", "s32" if sound.bit_depth > 16 else "s16"
        elif suffix == ".webm":
            codec, self.format, rate = "libopus", "flt", 48000
            if sound.channels > 2:
                options = {"mapping_family": "1"}
        else:
            codec, self.format = "aac", "flt"
            rate = rate if rate in AAC_RATES else 48000
        if rate != sound.sample_rate:
            notes.append(f"the sound is resampled to {rate} Hz, since {suffix} does not hold {sound.sample_rate}")
        layout = self._layout(codec, sound, suffix, notes)
        self.layout, self.rate = layout, rate
        self.resample = Resampler(sound.sample_rate, rate, sound.channels)
        self.stream = container.add_stream(codec, rate=rate, layout=layout, options=options)
        if codec == "flac":
            self.stream.codec_context.format = self.format
        else:
            self.stream.codec_context.bit_rate = AUDIO_BITS * sound.channels
        self.place = round(sound.start * rate)  # of the next sample

    def _layout(self, codec: str, sound: SoundTrack, suffix: str, notes: list[str]) -> str:
        """The layout to write: that of the sound, or the customary one, noted, where the codec does not hold it."""
        custom = CUSTOMARY[sound.channels]
        mask = sound.layout or custom
        if sound.layout and mask not in _HELD.get(codec, {mask}):
            held = (
                f"they are written as {described(custom)}"
                if custom in _HELD[codec]
                else "it does not say where they are"
            )
            notes.append(f"{suffix} does not hold channels at {described(mask)}: {held}")
            return layout_name(custom, sound.channels)
        return layout_name(mask, sound.channels)

    def write(self, samples: Samples, last: bool = False) -> None:
        if len(samples) != self.channels:
            raise ValueError(f"the sound has {self.channels} channels, not {len(samples)}")
        samples = self.resample(samples, last)
        early = min(max(0, -self.place), samples.shape[1])  # before the first frame can be
        samples, self.place = samples[:, early:], self.place + early
        if not samples.shape[1]:
            return
        rows: Any = np.clip(samples, -1, 1).T
        clipped = int((np.abs(samples) > 1).any(0).sum())
        if self.format != "flt":
            rows, clipped = to_integers(samples, 16 if self.format == "s16" else 24)
        self.clipped += clipped
        frame = packed_frame(rows, self.format, self.layout, self.rate, self.place)
        self.place += samples.shape[1]
        self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        self.write(np.zeros((self.channels, 0), dtype=np.float32), last=True)
        self.notes += clipping(self.clipped)
        self.container.mux(self.stream.encode(None))
