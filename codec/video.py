"""Videos: media file <-> `.tok`. Twins: encoding above, decoding below, each frame by frame.

A segment is about a second of frames that begins with one that stands alone, so it decodes on its own: in one chunk are
its number of levels and the codes of all of them. A rate is met by giving each segment its own number, as for sounds.
The sound is coded by a model for sounds, in chunks of its own, which lie beside the segments that they belong to.

Frames are in memory group by group. While a rate is searched, codes wait in a temporary file; otherwise only what is
coded is kept. So memory does not grow with the length of a video, but for the `.tok` file itself.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt

from ..tokenizers.image.grid import STRIDE
from ..tokenizers.video.grid import GROUP, VideoGrid
from ..tokenizers.video.tiling import FrameDecoder, FrameEncoder
from .allocation import Levels, Numbers, fit
from .clock import Clock, ClockMaker, clock_of
from .container import (
    LAYR,
    MAX_CELLS,
    MAX_FRAMES,
    MAX_PIXELS,
    MAX_SAMPLES,
    CodedSound,
    TokFile,
    VideoHeader,
    write_video,
)
from .errors import ChunkError, FormatError, MediaError, RateError, UsageError
from .media.video import SILENT_SUFFIXES, Pixels, SoundTrack, VideoReader, VideoWriter
from .refine_video import RefinedEncoder
from .sound import Search, SoundFile, Span, analyse_samples, audio_tokenizer, decode_blocks, seekable, sound_header

if TYPE_CHECKING:
    from .encode import Rate
    from .models import Model

Progress = Callable[[float], None]
Count = Callable[[int], None]  # frames that are done
Codes = npt.NDArray[np.int64]

SECONDS = Fraction(13, 10)  # about so long is a segment
UNIT = 8 * GROUP  # frames by which segments are longer for higher rates
SOUND_KBPS = 3.0  # of every signal, unless that is much of the file
SOUND_SHARE = 5  # then a fifth of it
GRAY = 128  # what stands for frames that are lost from the beginning on
ASIDE = 0.9  # share of the work that frames take if there is sound


@dataclass(frozen=True)
class SoundWanted:
    """What is to become of a video's sound: a model for it, and thousands of bits a second, None for the default."""

    load: Callable[[], Model]
    kbps: float | None = None

    def __post_init__(self) -> None:
        if self.kbps is not None and not 0 < self.kbps < float("inf"):
            raise UsageError(f"kbps of the sound must be positive, got {self.kbps:g}")


@dataclass(frozen=True)
class EncodedVideo:
    """A file and what it holds. levels: of its segments."""

    data: bytes
    levels: Levels
    height: int
    width: int
    frames: int
    seconds: Fraction
    notes: list[str]


def video_tokenizer(model: Model) -> VideoGrid:
    """Raises ChunkError if the model is for something else."""
    if not isinstance(model.tokenizer, VideoGrid):
        raise ChunkError(f"{model.tokenizer.name} is a model for {model.tokenizer.modality}, not for videos")
    return model.tokenizer


def segment_frames(rate: Fraction | None, height: int, width: int) -> int:
    """Frames of a segment: 33, more of videos with many frames a second, fewer of frames of very many pixels."""
    units = 1 if rate is None else max(1, round(SECONDS * rate / UNIT))
    room = MAX_CELLS // (-(-height // STRIDE) * -(-width // STRIDE)) - 1  # cells behind the first frame
    return 1 + GROUP * min(units * UNIT // GROUP, (MAX_FRAMES - 1) // GROUP, max(0, room))


class _Waiting:
    """Codes of segments, in a temporary file."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115, closed by its owner
        self.kind = np.dtype(np.int16 if max(sizes) <= 1 << 15 else np.int32)
        self.places: list[tuple[int, tuple[int, ...]]] = []

    def add(self, codes: Codes) -> None:
        self.places.append((self.file.seek(0, io.SEEK_END), codes.shape))
        self.file.write(np.ascontiguousarray(codes, dtype=self.kind).tobytes())

    def levels(self, segment: int, n: int) -> Codes:
        """The first ``n`` levels of a segment's codes."""
        at, (_, *grid) = self.places[segment]
        self.file.seek(at)
        data = self.file.read(n * int(np.prod(grid)) * self.kind.itemsize)
        return np.frombuffer(data, self.kind).reshape(n, *grid).astype(np.int64)


def segment_payload(codes: Codes, model: Model) -> bytes:
    """What a LAYR holds of a segment's codes ``[k, t, h, w]``."""
    return bytes([len(codes)]) + model.prior.compress_joint([codes])


class VideoFile:
    """Files of one video, whose segments come one by one; a context manager.

    Args:   levels: of all segments; None: as many as :meth:`within` finds, which keeps codes of all levels.
    """

    def __init__(self, model: Model, levels: int | None) -> None:
        self.model, self.levels = model, levels
        self.payloads: list[tuple[int, bytes]] = []  # of each segment its levels and payload, as last made
        self.waiting = None if levels is not None else _Waiting(model.tokenizer.codebook_sizes)
        self.bits: list[Numbers] = []
        self.errors: list[Numbers] = []
        self.header: VideoHeader | None = None
        self.times: bytes | None = None
        self.track: CodedSound | None = None

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(self, *_: object) -> None:
        if self.waiting is not None:
            self.waiting.file.close()

    def add(self, codes: Codes, errors: Numbers) -> None:
        """The next segment's codes ``[K, t, h, w]``, and their error after 1, 2, ... levels, ``[K]``."""
        if self.waiting is None:
            self.payloads.append((len(codes), segment_payload(codes, self.model)))
            return
        self.waiting.add(codes)
        self.bits.append(self.model.prior.bits(codes))
        self.errors.append(errors)
        self.payloads.append((0, b""))

    def build(self, levels: Levels) -> bytes:
        """The file in which segment s has ``levels[s]`` levels."""
        assert self.header is not None
        for segment, n in enumerate(levels.tolist()):
            if self.payloads[segment][0] != n:
                assert self.waiting is not None
                self.payloads[segment] = n, segment_payload(self.waiting.levels(segment, n), self.model)
        return write_video(self.header, [payload for _, payload in self.payloads], self.times, self.track)

    def finish(self) -> tuple[bytes, Levels]:
        """The file with ``levels`` levels everywhere."""
        assert self.levels is not None
        levels = np.full(len(self.payloads), self.levels, dtype=np.int64)
        return self.build(levels), levels

    def within(self, most: int, seconds: Fraction) -> tuple[bytes, Levels]:
        """The file of at most ``most`` bytes whose latents have the least error, and its levels; see :func:`fit`.

        Raises: RateError if one level everywhere takes more.
        """
        data, levels = fit(self.build, np.stack(self.bits), np.stack(self.errors), most)
        if len(data) > most:
            kbps = 8e-3 * len(data) / float(seconds)
            sound = "" if self.track is None else ", sound included (see --sound-kbps and --no-sound)"
            raise RateError(
                f"the smallest file takes {len(data)} bytes ({kbps:.2f} kbps){sound}, more than the {most} asked for"
            )
        return data, levels


def analyse_frames(
    reader: VideoReader,
    files: VideoFile,
    segment: int,
    progress: Progress | None = None,
    count: Count | None = None,
    effort: int = 0,
) -> Clock:
    """Frames to codes, segment by segment of so many frames, which go into ``files``.

    Args: effort: steps of descent towards better codes, see :mod:`.refine_video`.
    """
    tokenizer, searched = video_tokenizer(files.model), files.levels is None
    clock = ClockMaker(reader.time_base, reader.name)
    encoder: FrameEncoder | RefinedEncoder | None = None
    made: list[tuple[Codes, Numbers]] = []  # of the segment's cells

    def close() -> None:
        nonlocal encoder
        if encoder is not None:
            made.append(encoder.finish())
            codes, errors = zip(*made, strict=True)
            files.add(np.concatenate(codes, axis=1), np.sum(errors, axis=0))
        made.clear()
        encoder = None

    def share(done: float, time: Fraction) -> float:
        return float(min(1, done / reader.frames if reader.frames else time / (reader.end or 1)))

    def refined(step: float) -> None:
        """Progress while a segment is refined, whose last frame is ``frame``."""
        if progress is not None and (reader.frames or reader.end):
            reached = done - ((done - 1) % segment + 1) * (1 - step)  # frames, in parts of this segment
            progress(share(reached, frame.time * Fraction(reached / done)))

    for done, frame in enumerate(reader, start=1):
        clock.add(frame)
        if encoder is None:
            size = reader.height, reader.width
            if effort:
                encoder = RefinedEncoder(files.model, *size, files.levels, effort, refined)
            else:
                encoder = FrameEncoder(tokenizer, *size, files.levels, searched)
        made.append(encoder.push(frame.pixels))
        if done % segment == 0:
            close()
        if count is not None:
            count(done)
        if progress is not None and not effort and (reader.frames or reader.end):
            progress(share(done, frame.time))
    close()
    return clock.clock(reader.rate)


def encode_track(
    reader: VideoReader, wanted: SoundWanted, most: float, max_samples: int, progress: Progress | None = None
) -> tuple[CodedSound | None, list[str]]:
    """The sound of a video, coded, None if it has no samples; and notes.

    Args:   most: thousands of bits a second that are fine for the sound if it was not said.
    Raises: RateError if the sound cannot be coded with what was said; MediaError.
    """
    try:
        source, begin = reader.sound(max_samples)
        with source:
            model = wanted.load()
            tokenizer = audio_tokenizer(model)
            start = round(begin * source.sample_rate)
            kbps = min(SOUND_KBPS * source.channels, most) if wanted.kbps is None else wanted.kbps
            search = Search(len(tokenizer.codebook_sizes), kbps)
            tokens = analyse_samples(source, tokenizer, None, True, progress, max(0, -start), search)
            notes = list(source.notes)
    except MediaError as error:
        raise type(error)(f"{error} (its sound; --no-sound leaves it out)") from error
    if start < 0:
        notes.append(f"{-start} samples of sound before the beginning of the time line are not kept")
    if tokens is None:
        return None, [*notes, "its sound track holds no samples"]
    files = SoundFile(model, tokens, sound_header(tokens, model))
    kbps = min(SOUND_KBPS * len(tokens.codes), most) if wanted.kbps is None else wanted.kbps
    size = int(kbps * 125 * tokens.seconds)
    try:
        _, levels = files.nearest(size) if wanted.kbps is None else files.within(size)
    except RateError as error:
        raise RateError(f"{reader.name}: of its sound, {error}") from error
    return CodedSound(files.header, max(0, start), files.payloads(levels)), notes


def encode_video(
    source: Path | BinaryIO,
    name: str,
    model: Model,
    rate: Rate,
    sound: SoundWanted | None = None,
    progress: Progress | None = None,
    count: Count | None = None,
    max_pixels: int = MAX_PIXELS,
    max_samples: int = MAX_SAMPLES,
    effort: int = 0,
) -> EncodedVideo:
    """File of a video. sound: None leaves it out.  effort: steps of descent towards better codes.

    Raises: UsageError for a rate that videos do not have, RateError if the smallest file is too large; MediaError.
    """
    n_levels = len(video_tokenizer(model).codebook_sizes)
    if rate.tokens is not None:
        raise UsageError(f"the rate dial of {model.tokenizer.name} is its levels, not a number of tokens")
    levels: int | None = n_levels
    if rate.levels is not None:
        levels = rate.levels
        if not 1 <= levels <= n_levels:
            raise UsageError(f"levels is 1 to {n_levels} with this model, got {levels}")
    elif rate.quality is not None:
        levels = min(n_levels, 1 + int(rate.quality * n_levels / 100))
    elif (rate.bpp, rate.kbps, rate.size) != (None, None, None):
        levels = None
    with VideoReader(source, name, max_pixels) as reader, VideoFile(model, levels) as files:
        segment = segment_frames(reader.rate, reader.height, reader.width)
        heard = reader.has_sound and sound is not None
        clock = analyse_frames(reader, files, segment, _part(progress, 0, ASIDE if heard else 1), count, effort)
        notes = list(reader.notes)
        if reader.has_sound and not heard:
            notes.append("the sound is left out as asked")
        pixels = reader.height * reader.width * clock.frames
        most = rate.most_bytes(pixels) if rate.kbps is None else int(rate.kbps * 125 * clock.seconds)
        if heard:
            assert sound is not None
            share = float("inf") if most is None else most / 125 / float(clock.seconds) / SOUND_SHARE
            files.track, said = encode_track(reader, sound, share, max_samples, _part(progress, ASIDE, 1))
            notes += said
        files.times = clock.chunk()
        files.header = _header(reader, model, clock, segment, files.track is not None)
        data, chosen = files.finish() if most is None else files.within(most, clock.seconds)
        if progress is not None:
            progress(1.0)
    return EncodedVideo(data, chosen, reader.height, reader.width, clock.frames, clock.seconds, notes)


def _part(progress: Progress | None, begin: float, end: float) -> Progress | None:
    """For a part of the work, from one share of it to another."""
    return None if progress is None else lambda share: progress(begin + share * (end - begin))


def _header(reader: VideoReader, model: Model, clock: Clock, segment: int, sound: bool) -> VideoHeader:
    return VideoHeader(
        model=model.tokenizer.name,
        weights_hash=model.tokenizer.weights_hash,
        prior=model.prior.wire_id,
        prior_hash=model.prior.hash,
        layers=1,
        height=reader.height,
        width=reader.width,
        stride=STRIDE,
        frames=clock.frames,
        group=GROUP,
        segment=segment,
        sound=int(sound),
        **clock_fields(reader, clock),
    )


def clock_fields(reader: VideoReader, clock: Clock) -> dict[str, int]:
    """The fields of a header that say when frames are shown and how wide their pixels are."""
    aspect = reader.pixel_aspect.limit_denominator(65535)
    if not 0 < aspect.numerator <= 65535:
        aspect = Fraction(1)
    return {
        "tick_seconds": clock.tick.numerator,
        "tick_parts": clock.tick.denominator,
        "start": clock.start,
        "duration": clock.duration,
        "last": clock.last,
        "times": int(clock.ticks is not None),
        "aspect_width": aspect.numerator,
        "aspect_height": aspect.denominator,
    }


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


def read_segment(tok: TokFile, model: Model, segment: int, levels: int | None = None) -> Codes | None:
    """Codes ``[k, t, h, w]`` of a segment, at most ``levels``; None if it is lost, noted in ``tok.problems``."""
    header, tokenizer = tok.video, video_tokenizer(model)
    if (header.stride, header.group) != (STRIDE, GROUP):
        raise ChunkError(f"the header's stride or group is not that of {header.model}")
    if levels is not None and levels < 1:
        raise UsageError(f"levels must be at least 1, got {levels}")
    payload = tok.payload(LAYR, 0, segment)
    try:
        if not payload:
            raise ValueError("missing or damaged" if payload is None else "its levels are missing")
        if payload[0] > len(tokenizer.codebook_sizes):
            raise ValueError(f"it has {payload[0]} levels, the model {len(tokenizer.codebook_sizes)}")
        codes = model.prior.decompress_joint(payload[1:], payload[:1], header.segment_grid(segment))[0]
        return np.asarray(codes[:levels], dtype=np.int64)
    except ValueError as error:
        _lost(tok, segment, error)
        return None


def _lost(tok: TokFile, segment: int, error: ValueError) -> None:
    begin, end = tok.video.segment_span(segment)
    tok.damaged(f"segment {segment}: {error}; frames {begin} to {end - 1} are lost, the one before stands for them")


def segment_pixels(tok: TokFile, model: Model | str, segment: int, levels: int | None = None) -> Iterator[Pixels]:
    """Frames of a segment, one by one, none if it is lost. model: as in :func:`decode_frames`."""
    header = tok.video
    if not isinstance(model, str):
        codes = read_segment(tok, model, segment, levels)
        decoder = FrameDecoder(video_tokenizer(model), header.height, header.width)
        return iter(()) if codes is None else _decoded(codes, decoder)
    from .fit_video import fitted_frames

    begin, end = header.segment_span(segment)
    payload = tok.payload(LAYR, 0, segment)
    try:
        if payload is None:
            raise ValueError("missing or damaged")
        return fitted_frames(tok, payload, end - begin, model)
    except ValueError as error:
        _lost(tok, segment, error)
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

        for i, (time, pixels) in enumerate(
            decode_frames(tok, model, part, levels, progress, count), start=part.first
        ):
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
    return SoundTrack(rate, header.channels, header.bit_depth, where), Span(begin, end)
