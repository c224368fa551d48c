"""Videos: media file -> `.tok`, frame by frame. The twin of decode.py.

A segment is about a second of frames that begins with one that stands alone, so it decodes on its own: in one chunk are
its number of levels and the codes of all of them. A rate is met by giving each segment its own number, as for sounds.
The sound is coded by a model for sounds, in chunks of its own, which lie beside the segments that they belong to.

Frames are in memory group by group. While a rate is searched, codes wait in a temporary file; otherwise only what is
coded is kept. So memory does not grow with the length of a video, but for the `.tok` file itself.
"""

from __future__ import annotations

import io
import tempfile
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from ...tokenizers.video.base import ClipEncoder
from ..allocation import Levels, Numbers, fit
from ..container.chunks import CodedSound
from ..container.fields import VideoHeader
from ..container.write import write_video
from ..contract import Encoded, Source
from ..errors import too_small
from ..media.read_video import VideoReader
from ..progress import SILENT, Progress
from .clock import Clock, ClockMaker, clock_fields
from .joined import FRAMES
from .refine import RefinedEncoder, check_refinable
from .segments import layout_of, segment_frames, segment_payload, video_tokenizer
from .track import code_track, most_bytes, open_video

if TYPE_CHECKING:
    from ..models import Model
    from ..options import EncodeOptions
    from .segments import Codes


ASIDE = 0.9  # share of the work that frames take if there is sound


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
            sound = "" if self.track is None else ", sound included (see --sound-kbps and --no-sound)"
            raise too_small(len(data), most, seconds=float(seconds), note=sound)
        return data, levels


def analyse_frames(
    reader: VideoReader, files: VideoFile, segment: int, progress: Progress = SILENT, n_steps: int = 0
) -> Clock:
    """Frames to codes, segment by segment of so many frames, which go into ``files``.

    Args: n_steps: gradient steps towards better codes, see :mod:`.refine`.
    """
    tokenizer, searched = video_tokenizer(files.model), files.levels is None
    clock = ClockMaker(reader.time_base, reader.name)
    encoder: ClipEncoder | None = None
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
        if reader.frames or reader.end:
            reached = done - ((done - 1) % segment + 1) * (1 - step)  # frames, in parts of this segment
            progress.update(share(reached, frame.time * Fraction(reached / done)))

    for done, frame in enumerate(reader, start=1):
        clock.add(frame)
        if encoder is None:
            size = reader.height, reader.width
            if n_steps:
                encoder = RefinedEncoder(files.model, *size, files.levels, n_steps, refined)
            else:
                encoder = tokenizer.encoder(*size, files.levels, searched)
        made.append(encoder.push(frame.pixels))
        if done % segment == 0:
            close()
        known = not n_steps and (reader.frames or reader.end)
        progress.update(share(done, frame.time) if known else None, frames=done)
    close()
    return clock.clock(reader.rate)


def encode_video(source: Source, model: Model, options: EncodeOptions, progress: Progress = SILENT) -> Encoded:
    """File of a video.

    Raises: UsageError for a number of levels that makes no sense, RateError if the smallest file is too large;
            MediaError.
    """
    rate = options.rate
    tokenizer = video_tokenizer(model)
    n_levels = len(tokenizer.codebook_sizes)
    if options.n_steps:
        check_refinable(tokenizer)
    levels = None if rate.searched else rate.fixed_levels(n_levels)
    with open_video(source, options) as reader, VideoFile(model, levels) as files:
        segment = segment_frames(tokenizer, reader.rate, reader.height, reader.width)
        heard = reader.has_sound and options.sound is not None
        clock = analyse_frames(reader, files, segment, progress.part(0, ASIDE if heard else 1), options.n_steps)
        notes = list(reader.notes)
        pixels = reader.height * reader.width * clock.frames
        files.track, clock, said = code_track(reader, options, pixels, clock, progress.part(ASIDE, 1))
        notes += said
        most = most_bytes(rate, pixels, clock.seconds)
        files.times = clock.chunk()
        files.header = _header(reader, model, clock, segment, files.track is not None)
        data, chosen = files.finish() if most is None else files.within(most, clock.seconds)
        progress.update(1.0)
    return Encoded(
        data,
        int(chosen.max()),
        pixels=pixels,
        notes=notes,
        seconds=float(clock.seconds),
        frames=clock.frames,
        problems=reader.problems,
    )


def _header(reader: VideoReader, model: Model, clock: Clock, segment: int, sound: bool) -> VideoHeader:
    tokenizer = video_tokenizer(model)
    return VideoHeader(
        model=model.tokenizer.name,
        weights_hash=model.tokenizer.weights_hash,
        prior=model.prior.wire_id,
        prior_hash=model.prior.hash,
        layers=1,
        height=reader.height,
        width=reader.width,
        frames=clock.frames,
        segment=segment,
        sound=int(sound),
        joined=min(FRAMES, segment // 4) if tokenizer.jumps and clock.frames > segment else 0,
        **layout_of(tokenizer),
        **clock_fields(reader, clock),
    )
