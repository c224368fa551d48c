"""x264, x265 and SVT-AV1 beside ours, through PyAV: one pass at constant quality (CRF), no sound.

What is fair to them here:

- Their file is the bare stream of their own standard (H.264 and H.265 Annex B, AV1 OBU): the smallest whole file that
  players take. The text in which x264 and x265 name their options (0.7 kB) is left out. Ours is the whole .tok file,
  with the times of the frames. What the same stream takes in the .mp4 that FFmpeg writes of it without tags, which has
  the times as well, is said beside: about 1 kB more, a third of the file at the lowest rates.
- CRF up to the end of the scale, so that they meet ours at few bytes; SVT-AV1 goes to 70 here.
- One thread by default: several cost x264 bytes, where they cut pictures into slices.
- With AVX-512, x264 (core 165) makes files that differ by up to 1.4 % from run to run; with fewer instructions it does
  not. It is left as its users have it.
- Presets x264 medium, x265 medium and SVT-AV1 6, which is as fast as x265 medium. All keep their default tuning, which
  spends bits on what eyes like and not on PSNR; "x264-psnr" is x264 medium tuned for it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from ...errors import MediaError
from ...media.read_video import Pixels, rgb_pixels, untagged_matrix
from ...media.write_video import yuv_frame
from ...settings import Setting
from ..clips import Video
from ..contender import Codec, Coded, Spec, check_ffmpeg_encoder, ffmpeg_encoder, middle

CRFS = (51, 46, 41, 36, 31, 26, 21)
AV1_CRFS = (70, 66, 61, 54, 46, 38, 30)
MATRIX_TAGS = {1: 1, 5: 6}  # from swscale's numbers of matrices to those that streams carry


@dataclass(frozen=True)
class VideoPeer(Codec):
    """An encoder of FFmpeg and the bare stream that it writes. Decoders are FFmpeg's own, of AV1 dav1d.

    ``dial``: from a CRF and a number of threads to the encoder's options that depend on them.
    """

    name: str
    encoder: str
    muxer: str
    options: dict[str, str]
    crfs: tuple[int, ...]
    dial: Callable[[float, int], dict[str, str]]
    drop: str = ""  # a filter of FFmpeg that takes what is not needed out of the stream
    threads: int = 1
    kind = "peer"

    @property
    def settings(self) -> tuple[Setting, ...]:
        return tuple(Setting("crf", crf) for crf in self.crfs)

    @property
    def described(self) -> str:
        how = ffmpeg_encoder(self.encoder, self.options)
        crfs = ", ".join(map(str, self.crfs))
        return f"{how}, CRF {crfs}; bytes of the bare .{self.muxer} stream, and beside of that in an .mp4"

    def encode(self, clip: Video, setting: Setting) -> Coded:
        """The frames one after the other at the nominal rate. Raises MediaError if the library refuses."""
        import av

        size = f"{clip.width} x {clip.height}"
        if clip.width % 2 or clip.height % 2:
            raise MediaError(f"{clip.name}: {self.name} has 4:2:0, which cannot hold the odd side of {size} pixels")
        buffer = io.BytesIO()
        rate = clip.rate.limit_denominator(1 << 20)
        matrix = untagged_matrix(clip.height, clip.width)
        try:
            with av.open(buffer, "w", format=self.muxer) as container:
                options = self.options | self.dial(setting.value, self.threads)
                stream: Any = container.add_stream(self.encoder, rate=rate, options=options)
                stream.width, stream.height, stream.pix_fmt = clip.width, clip.height, "yuv420p"
                context = stream.codec_context
                context.time_base = 1 / rate
                context.thread_count, context.thread_type = self.threads, "FRAME"
                context.color_range, context.colorspace = 1, MATRIX_TAGS[matrix]
                only: Any = None
                for i, pixels in enumerate([*clip.frames, None]):
                    frame = None
                    if pixels is not None:
                        frame = yuv_frame(pixels, "yuv420p", matrix)
                        frame.pts, frame.time_base = i, 1 / rate
                    for packet in stream.encode(frame):
                        if self.drop and only is None:  # the encoder is open now
                            only = av.BitStreamFilterContext(self.drop, stream)
                        container.mux(only.filter(packet) if only else packet)
        except (av.FFmpegError, ValueError) as error:
            raise MediaError(f"{clip.name}: {self.name} cannot write frames of {size}: {error}") from error
        return Coded.of(buffer.getvalue())

    def decode(self, coded: Coded, variant: str = "") -> list[Pixels]:
        """Frames ``[H, W, 3]`` uint8."""
        import av

        with av.open(io.BytesIO(coded.files[0]), "r", format=self.muxer) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = self.threads
            return [rgb_pixels(frame, untagged_matrix(frame.height, frame.width)) for frame in container.decode(stream)]

    def mp4_of(self, coded: Coded, rate: Fraction) -> bytes:
        """The stream in an .mp4 without tags. rate: frames a second."""
        import av

        tick, buffer = 1 / rate.limit_denominator(1 << 20), io.BytesIO()
        with av.open(io.BytesIO(coded.files[0]), "r", format=self.muxer) as source:
            stream = source.streams.video[0]
            stream.codec_context.thread_count = 1
            packets: list[Any] = []  # as they were coded
            shown: list[Any] = []  # their numbers, as they are shown
            for packet in source.demux(stream):
                packet.pts = packet.dts = len(packets) if packet.size else None
                shown += [frame.pts for frame in packet.decode()]
                packets += [packet] if packet.size else []
            with av.open(buffer, "w", format="mp4", options={"fflags": "+bitexact"}) as target:
                own = target.add_stream_from_template(stream, opaque=True)
                delay = max((i - shown.index(i) for i in range(len(packets))), default=0)
                for i, packet in enumerate(packets):
                    packet.stream, packet.time_base = own, tick
                    packet.dts, packet.pts, packet.duration = i - delay, shown.index(i), 1
                    target.mux(packet)
        return buffer.getvalue()

    def spec(self) -> Spec:
        return Spec("video.peers:find_video_peer", {"name": self.name, "threads": self.threads}, middle(self.settings))


def _crf(crf: float, threads: int) -> dict[str, str]:
    return {"crf": f"{crf:g}"}


def _x265(crf: float, threads: int) -> dict[str, str]:
    return {"crf": f"{crf:g}", "x265-params": f"log-level=none:info=0:frame-threads=1:pools={threads}"}


def _svt(crf: float, threads: int) -> dict[str, str]:
    return {"svtav1-params": f"crf={crf:g}:lp={threads}"}  # FFmpeg's own option ends at 63


_X264 = VideoPeer("x264", "libx264", "h264", {"preset": "medium"}, CRFS, dial=_crf, drop="filter_units=remove_types=6")
VIDEO_PEERS = {
    peer.name: peer
    for peer in (
        _X264,
        VideoPeer("x265", "libx265", "hevc", {"preset": "medium"}, CRFS, dial=_x265),
        VideoPeer("av1", "libsvtav1", "obu", {"preset": "6"}, AV1_CRFS, dial=_svt),
        replace(_X264, name="x264-psnr", options={"preset": "medium", "tune": "psnr"}),
    )
}


def find_video_peer(name: str, threads: int) -> VideoPeer:
    """A peer by name, ready to run. Raises UsageError for an unknown one, or one that this PyAV lacks."""
    peer = VIDEO_PEERS[name]
    check_ffmpeg_encoder(peer.encoder)
    os.environ.setdefault("SVT_LOG", "1")  # errors only
    return replace(peer, threads=threads)
