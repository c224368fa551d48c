"""Videos with `video-fit`: media file -> `.tok`, and the frames of such a file.

Frames wait in a temporary file, since how long a segment may be fitted depends on how many there are. Most videos are
one segment: what stands still is in the file once for each.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator

import numpy as np
import torch

from ...container.chunks import LAYR
from ...container.fields import FIT, VideoHeader
from ...container.read import TokFile
from ...container.write import write_video
from ...contract import Encoded, Source
from ...errors import ChunkError, RateError, UsageError
from ...media.read_video import Pixels, VideoReader
from ...models import Model, pick_device
from ...options import SOUND_OPTIONS, DecodeOptions, EncodeOptions
from ...progress import SILENT, Progress
from ...registry import FITTED
from ..clock import Clock, ClockMaker, clock_fields
from ..decode import SegmentFrames
from ..format import TokenlessFormat
from ..segments import lost_segment
from ..track import code_track, most_bytes, open_video
from .optimize import Fit, FitProgress, default_shape
from .payload import MAX_CELLS, check_frame, read_fitted

MINUTES = 3.0  # that a fit takes if nothing is said
QUALITY = 30.0  # likewise; see :func:`bit_cost`
SOUND_WORK = 0.02  # share of the work that the sound takes
SEGMENT = 512  # frames at most
WINDOW_PIXELS = 1 << 22  # about so many does a step look at
AT_ONCE = 1 << 22  # pixels that are decoded together
STRIDE = 64  # in the header, of which only its limits are meant
NO_HASH = "0" * 16


def bit_cost(quality: float) -> float:
    """The least gain in mean squared error that a bit per pixel must bring: ``10^(-quality / 25)``."""
    return float(10 ** (-quality / 25))


class FittedFormat(TokenlessFormat):
    """Files whose segments hold the networks that decode them."""

    rates = ("quality", "bpp", "kbps", "bytes")
    options = frozenset({"minutes", "start", "end", "track", *SOUND_OPTIONS})
    needs_model = False
    reason = f"{FITTED} makes no tokens: the networks of a file are its own"

    def encode(self, source: Source, model: Model | None, options: EncodeOptions, progress: Progress) -> Encoded:
        return encode_fitted(source, options, progress)

    def frames_of(self, tok: TokFile, model: Model | None, options: DecodeOptions) -> SegmentFrames:
        if given := [name for name in ("levels", "model") if getattr(options, name) is not None]:
            raise UsageError(f"{' and '.join(given)} cannot be chosen: a file of {FITTED} holds its own networks")
        check_fitted(tok.video)
        device = pick_device(options.device)

        def frames(segment: int) -> Iterator[Pixels]:
            begin, end = tok.video.segment_span(segment)
            payload = tok.payload(LAYR, 0, segment)
            try:
                if payload is None:
                    raise ValueError("missing or damaged")
                return fitted_frames(tok, payload, end - begin, device)
            except ValueError as error:
                lost_segment(tok, segment, error)
                return iter(())

        return frames


def encode_fitted(source: Source, options: EncodeOptions, progress: Progress = SILENT) -> Encoded:
    """File of a video. Ctrl-C ends the fit of a segment, and the file is written with what there is.

    Raises: RateError if the file stays too large; UsageError; MediaError.
    """
    minutes = MINUTES if options.minutes is None else options.minutes
    rate, device = options.rate, pick_device(options.device)
    quality = QUALITY if rate.quality is None else rate.quality
    with open_video(source, options) as reader, tempfile.TemporaryFile() as spool:
        clock = ClockMaker(reader.time_base, reader.name)
        for frame in reader:
            clock.add(frame)
            spool.write(np.ascontiguousarray(frame.pixels).tobytes())
        spool.flush()
        times = clock.clock(reader.rate)
        shape = times.frames, reader.height, reader.width
        notes = list(reader.notes)
        track, times, said = code_track(reader, options, math.prod(shape), times, progress.part(0, SOUND_WORK))
        notes += said
        work = progress.part(SOUND_WORK if track is not None else 0, 1)
        most = most_bytes(rate, math.prod(shape), times.seconds)
        header = _header(reader, times, track is not None)
        chunk = times.chunk()
        room = None
        if most is not None:
            room = most - len(write_video(header, [b""] * header.n_segments, chunk, track))
            if room <= 0:
                raise RateError(
                    f"{source.name}: without any picture the file takes {most - room} bytes, more than {most}"
                )
        frames = np.memmap(spool, dtype=np.uint8, mode="r", shape=(*shape, 3))
        payloads = []
        for s in range(header.n_segments):
            begin, end = header.segment_span(s)
            clip = torch.from_numpy(np.array(frames[begin:end]))
            window = max(2, WINDOW_PIXELS // (reader.height * reader.width))
            fit = Fit(clip, default_shape(clip), bit_cost(quality), device, window)
            own = None if room is None else room * (end - begin) // header.frames
            part = work.part(begin / header.frames, end / header.frames)

            def tell(p: FitProgress, part: Progress = part) -> None:
                note = f"{p.steps} steps, {p.rate:.1f}/s, about {p.bits / 8000:.1f} kB, {p.psnr:.2f} dB"
                part.update(p.share, note=note)

            fit.run(60 * minutes * (end - begin) / header.frames, tell, most=own)
            try:
                payloads.append(fit.export() if own is None else fit.export_within(own))
            except ValueError as error:
                raise RateError(f"{source.name}: {error}") from error
            if own is not None:
                quality = fit.quality
        data = write_video(header, payloads, chunk, track)
    return Encoded(
        data,
        1,
        pixels=math.prod(shape),
        notes=notes,
        quality=quality,
        seconds=float(times.seconds),
        frames=shape[0],
        problems=reader.problems,
    )


def _header(reader: VideoReader, clock: Clock, sound: bool) -> VideoHeader:
    pixels = reader.height * reader.width
    check_frame(reader.height, reader.width)
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


def check_fitted(header: VideoHeader) -> None:
    """Raise ChunkError for a header that no writer makes."""
    if (header.model, header.weights_hash, header.prior_hash) != (FITTED, NO_HASH, NO_HASH):
        raise ChunkError(f"a file with the entropy model fit is one of {FITTED} without hashes")
