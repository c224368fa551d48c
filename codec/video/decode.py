"""`.tok` -> video, frame by frame. The twin of encode.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...tokenizers.video.base import ClipDecoder
from ..audio.decode import Span, decode_blocks
from ..container.fields import VideoHeader
from ..container.read import TokFile
from ..errors import FormatError, UsageError
from ..files import seekable
from ..media.read_video import Pixels
from ..media.write_video import SILENT_SUFFIXES, SoundTrack, VideoWriter
from ..progress import SILENT, Progress
from .clock import Clock, clock_of, shown_clock
from .joined import Numbered, joined
from .segments import read_segment, video_tokenizer

if TYPE_CHECKING:
    from ..contract import Sink
    from ..models import Model
    from .segments import Codes


SegmentFrames = Callable[[int], Iterator[Pixels]]  # frames of a segment, one by one; none if it is lost
LONG = 1  # seconds
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
    before ``start``, but a frame that has been there for more than a second is shown from ``start`` on.

    Raises: UsageError if there are none.
    """
    for wanted in (start, end):
        if wanted is not None and not 0 <= wanted < float("inf"):
            raise UsageError(f"a moment in a video is 0 seconds or later, got {wanted:g}")
    first, last, begin, stop = 0, clock.frames, Fraction(0), None
    over = clock.time(clock.frames)
    if start is not None:
        moment = _exact(start)
        first = max(0, clock.shown(moment))
        begin = min(clock.time(first), moment // clock.tick * clock.tick)
        if moment - begin > LONG:
            begin = moment // clock.fine * clock.fine
        if moment >= over:
            last = first
    if end is not None:
        stop = -(-_exact(end) // clock.fine) * clock.fine
        last = min(last, clock.shown(stop - clock.fine) + 1)
        stop = None if stop >= over and last == clock.frames else stop
    if first >= last or (start is not None and end is not None and start >= end):
        raise UsageError(f"no frame lies between the moments asked for: the video ends after {float(over):.2f} s")
    return Part(first, last, begin, stop)


def _exact(moment: float) -> Fraction:
    """A moment that a user wrote: 0.28 is 7/25, and not the double nearest to it."""
    return Fraction(moment).limit_denominator(1_000_000)


def segment_frames_of(tok: TokFile, model: Model, levels: int | None = None) -> SegmentFrames:
    """Frames of a segment from at most so many levels, one by one, none if it is lost."""
    header = tok.video

    def frames(segment: int) -> Iterator[Pixels]:
        codes = read_segment(tok, model, segment, levels)
        decoder = video_tokenizer(model).decoder(header.height, header.width)
        return iter(()) if codes is None else frames_of_codes(codes, decoder)

    return frames


def decode_frames(
    tok: TokFile, segment_frames: SegmentFrames, part: Part | None = None, progress: Progress = SILENT
) -> Iterator[tuple[Fraction, Pixels]]:
    """Frames ``[H, W, 3]`` uint8 of a part of a video, all of it by default, with their times in seconds, one by one.

    Only segments of that part are decoded, and those beside it whose borders touch it. A lost segment is the last good
    frame, or gray if there is none.

    Args: segment_frames: decodes a segment, see :meth:`.format.AnyVideoFormat.frames_of`.
    """
    header, clock = tok.video, clock_of(tok)
    first, last = (0, header.frames) if part is None else (part.first, part.last)
    begin, end = first, last
    if header.joined:
        begin = max(0, first - header.joined)
        border = -(-last // header.segment) * header.segment
        end = min(header.frames, border + 1 if border - last < header.joined else last)
    frames = _frames(header, segment_frames, begin // header.segment, end)
    for i, pixels in joined(frames, header.segment, header.joined) if header.joined else frames:
        if first <= i < last:
            yield clock.time(i), pixels
            progress.update((i + 1 - first) / (last - first), frames=i + 1 - first)


def _frames(header: VideoHeader, segment_frames: SegmentFrames, segment: int, last: int) -> Iterator[Numbered]:
    """Frames up to ``last`` (excluded) with their numbers, from the beginning of a segment on."""
    good: Pixels = np.full((header.height, header.width, 3), GRAY, dtype=np.uint8)
    for number in range(segment, -(-last // header.segment)):
        begin, end = header.segment_span(number)
        frames = segment_frames(number)
        for i in range(begin, min(end, last)):
            good = next(frames, good)
            yield i, good


def frames_of_codes(codes: Codes, decoder: ClipDecoder) -> Iterator[Pixels]:
    """Frames of the codes ``[k, t, h, w]`` of a clip, those that only fill its last cell among them."""
    for cell in codes.swapaxes(0, 1):
        yield from decoder.push(cell)
    yield from decoder.finish()


def write_frames(
    tok: TokFile,
    segment_frames: SegmentFrames,
    part: Part,
    sink: Sink,
    *,
    load_sound: Callable[[], Model] | None = None,
    strict: bool = False,
    progress: Progress = SILENT,
) -> list[str]:
    """Decode a part of a video into a file, frame by frame. Returns what the file could not hold.

    Args:   segment_frames: as in :func:`decode_frames`.
            load_sound: loads the model of the file's sound; None leaves the sound out.
    Raises: FormatError if ``strict`` and something is damaged; a target that cannot seek has then got nothing.
    """
    header, clock = tok.video, shown_clock(tok)
    rate = None if clock.rate is None else clock.rate.limit_denominator(1 << 20) or None
    track = None if load_sound is None else _track(tok, part)
    blocks: Iterator[npt.NDArray[np.float32]] = iter(())
    heard = None
    if track is not None:
        heard, span = track
        if sink.suffix.lower() not in SILENT_SUFFIXES:
            assert load_sound is not None
            blocks = decode_blocks(tok, load_sound(), span)
    with (
        seekable(sink.file) as file,
        VideoWriter(
            file,
            sink.suffix,
            sink.name,
            header.height,
            header.width,
            time_base=clock.fine,
            rate=rate,
            sound=heard,
            pixel_aspect=header.pixel_aspect,
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

        for i, (time, pixels) in enumerate(decode_frames(tok, segment_frames, part, progress), start=part.first):
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
