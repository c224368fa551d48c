"""`.tok` -> video, frame by frame. The twin of encode.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt

from ...tokenizers.video.tiling import FrameDecoder
from ..audio.decode import Span, decode_blocks
from ..container.chunks import LAYR
from ..container.read import TokFile
from ..errors import FormatError, UsageError
from ..files import seekable
from ..media.read_video import Pixels
from ..media.write_video import SILENT_SUFFIXES, SoundTrack, VideoWriter
from .clock import Clock, clock_of
from .segments import lost_segment, read_segment, video_tokenizer

if TYPE_CHECKING:
    from ..contract import Count, Progress
    from ..models import Model
    from .segments import Codes


GRAY = 128  # what stands for frames that are lost from the beginning on


# -------------------------------------------------------------------- decoding


@dataclass(frozen=True)
class Part:
    """Some frames of a video, from ``first`` to ``last`` (excluded).

    Attributes: begin, end: seconds on the time line; end is None for all that there is, of the sound too.
    """

    first: int
    last: int
    begin: Fraction
    end: Fraction | None


def part_of(clock: Clock, start: float | None, end: float | None) -> Part:
    """The frames that are shown between two moments in seconds. It begins with the first of them, which may be somewhat
    before ``start``. Raises UsageError if there are none."""
    for wanted in (start, end):
        if wanted is not None and not 0 <= wanted < float("inf"):
            raise UsageError(f"a moment in a video is 0 seconds or later, got {wanted:g}")
    first, last, begin, stop = 0, clock.frames, Fraction(0), None
    over = clock.time(clock.frames)
    if start is not None:
        moment = _exact(start)
        first = max(0, clock.shown(moment))
        begin = min(clock.time(first), moment // clock.tick * clock.tick)
        if moment >= over:
            last = first
    if end is not None:
        stop = -(-_exact(end) // clock.tick) * clock.tick
        last = min(last, clock.shown(stop - clock.tick) + 1)
        stop = None if stop >= over and last == clock.frames else stop
    if first >= last or (start is not None and end is not None and start >= end):
        raise UsageError(f"no frame lies between the moments asked for: the video ends after {float(over):.2f} s")
    return Part(first, last, begin, stop)


def _exact(moment: float) -> Fraction:
    """A moment that a user wrote: 0.28 is 7/25, and not the double nearest to it."""
    return Fraction(moment).limit_denominator(1_000_000)


def segment_pixels(tok: TokFile, model: Model | str, segment: int, levels: int | None = None) -> Iterator[Pixels]:
    """Frames of a segment, one by one, none if it is lost. model: as in :func:`decode_frames`."""
    header = tok.video
    if not isinstance(model, str):
        codes = read_segment(tok, model, segment, levels)
        decoder = FrameDecoder(video_tokenizer(model), header.height, header.width)
        return iter(()) if codes is None else _decoded(codes, decoder)
    from .fit.format import fitted_frames

    begin, end = header.segment_span(segment)
    payload = tok.payload(LAYR, 0, segment)
    try:
        if payload is None:
            raise ValueError("missing or damaged")
        return fitted_frames(tok, payload, end - begin, model)
    except ValueError as error:
        lost_segment(tok, segment, error)
        return iter(())


def decode_frames(
    tok: TokFile,
    model: Model | str,
    part: Part | None = None,
    levels: int | None = None,
    progress: Progress | None = None,
    count: Count | None = None,
) -> Iterator[tuple[Fraction, Pixels]]:
    """Frames ``[H, W, 3]`` uint8 of a part of a video, all of it by default, with their times in seconds, one by one.

    Only segments of that part are decoded. A lost segment is the last good frame, or gray if there is none.

    Args:   model: of the file; for a file that needs none, the device to use.  levels: decode at most so many.
            progress: is called with the share that is done, ``count`` with frames.
    """
    header, clock = tok.video, clock_of(tok)
    first, last = (0, header.frames) if part is None else (part.first, part.last)
    good: Pixels = np.full((header.height, header.width, 3), GRAY, dtype=np.uint8)
    for segment in range(first // header.segment, -(-last // header.segment)):
        begin, end = header.segment_span(segment)
        frames = segment_pixels(tok, model, segment, levels)
        for i in range(begin, min(end, last)):
            good = next(frames, good)
            if i < first:
                continue
            yield clock.time(i), good
            if count is not None:
                count(i + 1 - first)
            if progress is not None:
                progress((i + 1 - first) / (last - first))


def _decoded(codes: Codes, decoder: FrameDecoder) -> Iterator[Pixels]:
    for cell in codes.swapaxes(0, 1):
        yield from decoder.push(cell)


def write_frames(
    tok: TokFile,
    model: Model | str,
    part: Part,
    target: BinaryIO,
    suffix: str,
    name: str,
    *,
    sound: Callable[[], Model] | None = None,
    levels: int | None = None,
    strict: bool = False,
    progress: Progress | None = None,
    count: Count | None = None,
) -> list[str]:
    """Decode a part of a video into a file, frame by frame. Returns what the file could not hold.

    Args:   model: as in :func:`decode_frames`.  sound: loads the model of the file's sound; None leaves the sound out.
    Raises: FormatError if ``strict`` and something is damaged; a target that cannot seek has then got nothing.
    """
    header, clock = tok.video, clock_of(tok)
    rate = None if clock.rate is None else clock.rate.limit_denominator(1 << 20) or None
    track = _track(tok, part) if sound is not None else None
    blocks: Iterator[npt.NDArray[np.float32]] = iter(())
    heard = None
    if track is not None:
        heard, span = track
        if suffix.lower() not in SILENT_SUFFIXES:
            assert sound is not None
            blocks = decode_blocks(tok, sound(), span)
    with (
        seekable(target) as file,
        VideoWriter(
            file, suffix, name, header.height, header.width, clock.tick, rate, heard, header.pixel_aspect
        ) as writer,
    ):
        place = part.begin if heard is None else part.begin + heard.start  # of the next samples

        def hear(until: Fraction | None) -> None:
            nonlocal place
            while until is None or place <= until:
                block = next(blocks, None)
                if block is None:
                    return
                writer.write_sound(block)
                assert heard is not None
                place += Fraction(block.shape[1], heard.sample_rate)

        for i, (time, pixels) in enumerate(decode_frames(tok, model, part, levels, progress, count), start=part.first):
            hear(time)
            end = clock.time(i) + clock.last * clock.tick if i == clock.frames - 1 else clock.time(i + 1)
            end = end if part.end is None else min(end, part.end)
            begin = max(time, part.begin)
            writer.write(pixels, begin - part.begin, end - begin)
        hear(None)
        if strict and tok.problems:
            raise FormatError(tok.problems[0])
    return writer.notes


def _track(tok: TokFile, part: Part) -> tuple[SoundTrack, Span] | None:
    """What a writer must know of the sound of a part, and its samples; None if there are none."""
    if tok.track is None:
        return None
    header, start = tok.track
    rate = header.sample_rate
    begin = max(0, round(part.begin * rate) - start)
    end = header.samples if part.end is None else min(header.samples, round(part.end * rate) - start)
    if begin >= end:
        return None
    where = Fraction(start + begin, rate) - part.begin
    return SoundTrack(rate, header.channels, header.bit_depth, where, header.layout), Span(begin, end)
