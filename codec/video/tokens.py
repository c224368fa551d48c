"""Tokens of clips, for `codec tokenize` and `detokenize`: a video as one stream of codes, which does not begin anew.

A `.tok` file begins anew with every segment, so its codes are those of one clip only if it has one segment.
"""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...tokenizers.tokens import Tokens
from ..container.fields import MAX_CELLS, MAX_FRAMES, VideoHeader
from ..container.read import TokFile
from ..container.write import write_video
from ..contract import Tokenized
from ..errors import UsageError
from ..files import seekable
from ..media.read_video import VideoReader
from ..media.write_video import VideoWriter
from .clock import ClockMaker, clock_of
from .decode import frames_of_codes
from .segments import layout_of, read_segment, segment_payload, video_tokenizer

if TYPE_CHECKING:
    from ..contract import Sink, Source
    from ..models import Model
    from ..options import TokenizeOptions


RATE = 25.0  # frames a second of tokens that do not tell theirs


def media_codes(source: Source, model: Model, options: TokenizeOptions) -> Tokenized:
    """Tokens ``[1, K, t, h, w]`` of a video, and what they do not tell of it."""
    tokenizer = video_tokenizer(model)
    with VideoReader(source.data, source.name, options.max_pixels, options.track) as reader:
        clock = ClockMaker(reader.time_base, source.name)
        encoder = tokenizer.encoder(reader.height, reader.width, options.levels)
        cells = []
        for frame in reader:
            clock.add(frame)
            cells.append(encoder.push(frame.pixels)[0])
        cells.append(encoder.finish()[0])
        times = clock.clock(reader.rate)
        notes = list(reader.notes)
        notes += ["the sound is not part of tokens"] * reader.has_sound
        notes += ["uneven times of frames are not part of tokens"] * (times.ticks is not None)
        rate = None if times.rate is None else float(times.rate)
        spec = tokenizer.spec((times.frames, reader.height, reader.width), sample_rate=rate)
    return Tokenized(Tokens(torch.from_numpy(np.concatenate(cells, axis=1)[None]), spec), reader.problems, notes)


def file_codes(tok: TokFile, model: Model, levels: int | None = None) -> Tokens:
    """Tokens ``[1, k, t, h, w]`` of a file of one segment. Raises UsageError for more."""
    header = tok.video
    if header.n_segments > 1:
        raise UsageError(
            f"its codes begin anew in each of {header.n_segments} segments, so they are not those of one clip"
        )
    codes = read_segment(tok, model, 0, levels)
    if codes is None:
        codes = np.full((1, *header.grid), -1, dtype=np.int64)
    clock = clock_of(tok)
    rate = None if clock.rate is None else float(clock.rate)
    spec = video_tokenizer(model).spec((header.frames, header.height, header.width), sample_rate=rate)
    return Tokens(torch.from_numpy(codes[None]), spec)


def rate_of(tokens: Tokens) -> Fraction:
    """Frames a second: 29.97... is 30000/1001."""
    return Fraction(tokens.spec.sample_rate or RATE).limit_denominator(1001)


def file_of_codes(tokens: Tokens, model: Model) -> bytes:
    """A `.tok` file of one segment from tokens ``[1, k, t, h, w]``.

    Raises: UsageError if they are more than a segment holds, or some are absent.
    """
    frames, height, width = tokens.spec.size
    codes = tokens.codes[0].numpy()
    layout = layout_of(video_tokenizer(model))
    segment = (layout["first"] or 1) + layout["group"] * (codes.shape[1] - 1)
    if segment > MAX_FRAMES or codes[0].size > MAX_CELLS:
        raise UsageError(f"{frames} frames are more than a .tok file holds as one clip: encode the video itself")
    if int(codes.min()) < 0:
        raise UsageError("some codes are absent (-1), a .tok file wants all of them")
    tick = 1 / rate_of(tokens)
    header = VideoHeader(
        model=model.tokenizer.name,
        weights_hash=model.tokenizer.weights_hash,
        prior=model.prior.wire_id,
        prior_hash=model.prior.hash,
        layers=1,
        height=height,
        width=width,
        frames=frames,
        segment=segment,
        tick_seconds=tick.numerator,
        tick_parts=tick.denominator,
        start=0,
        duration=1,
        last=1,
        **layout,
    )
    return write_video(header, [segment_payload(codes, model)])


def write_codes(tokens: Tokens, model: Model, sink: Sink) -> list[str]:
    """Tokens ``[1, k, t, h, w]`` to a media file, cell by cell. Returns what the file could not hold."""
    frames, height, width = tokens.spec.size
    rate = rate_of(tokens)
    decoder = video_tokenizer(model).decoder(height, width)
    with (
        seekable(sink.file) as file,
        VideoWriter(file, sink.suffix, sink.name, height, width, time_base=1 / rate, rate=rate) as writer,
    ):
        made = frames_of_codes(tokens.codes[0].numpy(), decoder)
        for done, pixels in enumerate(itertools.islice(made, frames)):
            writer.write(pixels, done / rate, 1 / rate)
    return writer.notes
