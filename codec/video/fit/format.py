"""Videos with `video-fit`: media file -> `.tok`, and the frames of such a file.

Frames wait in a temporary file, since how long a segment may be fitted depends on how many there are. Most videos are
one segment: what stands still is in the file once for each.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch

from ...container.chunks import CodedSound
from ...container.fields import FIT, MAX_PIXELS, MAX_SAMPLES, VideoHeader
from ...container.read import TokFile
from ...container.write import write_video
from ...contract import encoded_video
from ...errors import ChunkError, RateError, UsageError
from ...media.read_video import Pixels, VideoReader
from ...models import Model, model_for, pick_device
from ...registry import FITTED
from ..clock import Clock, ClockMaker
from ..track import sound_wanted
from .optimize import Fit, Progress, default_shape
from .payload import MAX_CELLS, read_fitted

if TYPE_CHECKING:
    from ...contract import Encoded, EncodedVideo, Rate, SoundOptions
    from ..track import SoundWanted


def encode_fitted_file(
    source: Path | BinaryIO,
    name: str,
    rate: Rate,
    minutes: float | None,
    sound: SoundOptions | None,
    device: str,
    limits: tuple[int, int],
    progress: Callable[[float], None] | None,
    report: Callable[[str], None] | None,
) -> Encoded:
    wanted, place = sound_wanted(sound, device), pick_device(device)
    found, quality = encode_fitted(source, name, rate, minutes, wanted, place, progress, report, *limits)  # 1, 3, 4, 5
    return encoded_video(found, quality)


MINUTES = 3.0  # that a fit takes if nothing is said
QUALITY = 30.0  # likewise; see :func:`bit_cost`
SEGMENT = 512  # frames at most
WINDOW_PIXELS = 1 << 22  # about so many does a step look at
AT_ONCE = 1 << 22  # pixels that are decoded together
STRIDE = 64  # in the header, of which only its limits are meant
NO_HASH = "0" * 16
SOUND_SHARE = 5  # no more than a fifth of a size is for the sound, unless that was said
Report = Callable[[str], None]


def bit_cost(quality: float) -> float:
    """The least gain in mean squared error that a bit per pixel must bring: ``10^(-quality / 25)``."""
    return float(10 ** (-quality / 25))


def encode_fitted(
    source: Path | BinaryIO,
    name: str,
    rate: Rate,
    minutes: float | None = None,
    sound: SoundWanted | None = None,
    device: str = "cpu",
    progress: Callable[[float], None] | None = None,
    report: Report | None = None,
    max_pixels: int = MAX_PIXELS,
    max_samples: int = MAX_SAMPLES,
) -> tuple[EncodedVideo, float]:
    """File of a video, and its quality.

    Ctrl-C ends the fit of a segment, and the file is written with what there is.

    Args:   minutes: of fitting, for all segments together.  sound: None leaves it out.  report: is told how it stands.
    Raises: UsageError for a rate or a time that makes no sense, RateError if the file stays too large; MediaError.
    """
    from ...contract import EncodedVideo
    from ..track import encode_track

    minutes = MINUTES if minutes is None else minutes
    if not 0 < minutes < float("inf"):
        raise UsageError(f"minutes must be positive, got {minutes:g}")
    if rate.levels is not None or rate.tokens is not None:
        raise UsageError(f"the rate dial of {FITTED} is a quality: use --quality, --bpp, --kbps or --bytes")
    quality = QUALITY if rate.quality is None else rate.quality
    with VideoReader(source, name, max_pixels) as reader, tempfile.TemporaryFile() as spool:
        clock = ClockMaker(reader.time_base, reader.name)
        for frame in reader:
            clock.add(frame)
            spool.write(np.ascontiguousarray(frame.pixels).tobytes())
        spool.flush()
        times = clock.clock(reader.rate)
        shape = times.frames, reader.height, reader.width
        notes = list(reader.notes)
        most = rate.most_bytes(math.prod(shape)) if rate.kbps is None else int(rate.kbps * 125 * times.seconds)
        track: CodedSound | None = None
        if reader.has_sound and sound is not None:
            share = float("inf") if most is None else most / 125 / float(times.seconds) / SOUND_SHARE
            track, said = encode_track(reader, sound, share, max_samples)
            notes += said
        elif reader.has_sound:
            notes.append("the sound is left out as asked")
        header = _header(reader, times, track is not None)
        chunk = times.chunk()
        room = None
        if most is not None:
            room = most - len(write_video(header, [b""] * header.n_segments, chunk, track))
            if room <= 0:
                raise RateError(f"{name}: without any picture the file takes {most - room} bytes, more than {most}")
        frames = np.memmap(spool, dtype=np.uint8, mode="r", shape=(*shape, 3))
        payloads = []
        for s in range(header.n_segments):
            begin, end = header.segment_span(s)
            clip = torch.from_numpy(np.array(frames[begin:end]))
            window = max(2, WINDOW_PIXELS // (reader.height * reader.width))
            fit = Fit(clip, default_shape(clip), bit_cost(quality), device, window)
            own = None if room is None else room * (end - begin) // header.frames

            def tell(p: Progress, first: int = begin, last: int = end) -> None:
                done = (first + p.share * (last - first)) / header.frames
                if progress is not None:
                    progress(done)
                if report is not None:
                    report(f"{p.steps} steps, {p.rate:.1f}/s, about {p.bits / 8000:.1f} kB, {p.psnr:.2f} dB")

            fit.run(60 * minutes * (end - begin) / header.frames, tell, most=own)
            try:
                payloads.append(fit.export() if own is None else fit.export_within(own))
            except ValueError as error:
                raise RateError(f"{name}: {error}") from error
            if own is not None:
                quality = fit.quality
        data = write_video(header, payloads, chunk, track)
    encoded = EncodedVideo(
        data, np.ones(header.n_segments, np.int64), reader.height, reader.width, times.frames, times.seconds, notes
    )
    return encoded, quality


def _header(reader: VideoReader, clock: Clock, sound: bool) -> VideoHeader:
    from ..clock import clock_fields

    pixels = reader.height * reader.width
    most = min(SEGMENT, (MAX_CELLS - 2 * pixels) * 10 // pixels)  # still grids take less than 2 HW, moving ones HW / 10
    if most < 1:
        raise UsageError(f"{reader.name} has too many pixels for {FITTED}")
    segment = -(-clock.frames // -(-clock.frames // most))
    return VideoHeader(
        model=FITTED,
        weights_hash=NO_HASH,
        prior=FIT,
        prior_hash=NO_HASH,
        layers=1,
        height=reader.height,
        width=reader.width,
        stride=STRIDE,
        frames=clock.frames,
        group=1,
        segment=segment,
        sound=int(sound),
        **clock_fields(reader, clock),
    )


def fitted_frames(tok: TokFile, payload: bytes, frames: int, device: str) -> Iterator[Pixels]:
    """The frames ``[H, W, 3]`` of a segment, one by one. Raises ValueError before the first if it is damaged."""
    header = tok.video
    fitted = read_fitted(payload, frames, header.height, header.width)
    n = max(1, AT_ONCE // (header.height * header.width))

    def decoded() -> Iterator[Pixels]:
        for begin in range(0, frames, n):
            yield from fitted.frames(begin, min(begin + n, frames), device)

    return decoded()


def video_model(header: VideoHeader, name: str | None, device: str) -> Model | str:
    """What decodes a video: its model (see :func:`~.models.model_for`), or the device, for a file that needs none."""
    if header.prior != FIT:
        return model_for(header, name, device)
    check_fitted(header)
    return device


def check_fitted(header: VideoHeader) -> None:
    """Raise ChunkError for a header that no writer makes."""
    if (header.model, header.weights_hash, header.prior_hash) != (FITTED, NO_HASH, NO_HASH):
        raise ChunkError(f"a file with the entropy model fit is one of {FITTED} without hashes")
