"""`.tok` -> sound, block by block. The twin of encode.py."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...tokenizers.audio.base import AudioTokenizer, SoundDecoder
from ..container.fields import AudioHeader
from ..container.read import TokFile
from ..errors import ChunkError, FormatError, UsageError
from ..files import seekable
from ..media.audio import AudioWriter, Resampler, Samples, Sound
from ..progress import SILENT, Progress
from .stereo import LEFT_RIGHT, to_middle_side

if TYPE_CHECKING:
    from ..contract import Sink
    from ..models import Model
    from ..options import DecodeOptions


PIECE = 150  # frames that go through the nets at once, however long a segment is
OUTPUT = 1 << 21  # samples of all channels that are made at once, about, whatever their rate
MARGIN = 10  # frames beside a wanted span, for the resampler's filter


def to_channels(signals: Samples, channels: int) -> Samples:
    """Inverse of :func:`~.encode.to_signals`; one signal alone is every channel."""
    if len(signals) == 2:
        return np.stack([signals[0] + signals[1], signals[0] - signals[1]])
    return np.repeat(signals, channels, axis=0) if len(signals) < channels else signals


def audio_tokenizer(model: Model) -> AudioTokenizer:
    """Raises ChunkError if the model is for something else."""
    if not isinstance(model.tokenizer, AudioTokenizer):
        raise ChunkError(f"{model.tokenizer.name} is a model for {model.tokenizer.modality}, not for sounds")
    return model.tokenizer


# -------------------------------------------------------------------- decoding


def read_codes(
    tok: TokFile, model: Model, levels: int | None = None, segments: range | None = None
) -> npt.NDArray[np.int64]:
    """Codes ``[signals, K, t]`` of some segments, all of them by default; -1 where there are none.

    A lost segment has no codes at all. What is lost is noted in ``tok.problems``.
    """
    header, tokenizer = tok.sound, audio_tokenizer(model)
    if (header.coded_rate, header.stride) != (tokenizer.hertz, tokenizer.stride):
        raise ChunkError(f"the header's coded rate or stride is not that of {header.model}")
    total = len(tokenizer.codebook_sizes)
    wanted = total if levels is None else min(levels, total)
    segments = range(header.n_segments) if segments is None else segments
    first, last = header.segment_span(segments[0])[0], header.segment_span(segments[-1])[1]
    out = np.full((header.signals, total, last - first), -1, dtype=np.int64)
    for segment in segments:
        begin, end = header.segment_span(segment)
        payload = tok.sound_payload(segment)
        try:
            if payload is None:
                raise ValueError("missing or damaged")
            own = payload[: header.signals]
            if len(own) < header.signals:
                raise ValueError("its levels are missing")
            if header.signals == 2:
                own = bytes([own[0] & ~LEFT_RIGHT, own[1]])
            parts = model.prior.decompress_joint(payload[header.signals :], own, (end - begin,))
        except ValueError as error:
            seconds = [frame * header.stride / header.coded_rate for frame in (begin, end)]
            what = "segment" if tok.track is None else "sound segment"
            tok.damaged(f"{what} {segment}: {error}; {seconds[0]:.2f} to {seconds[1]:.2f} s are silent")
            continue
        for signal, codes in zip(out, parts, strict=True):
            kept = codes[:wanted]
            signal[: len(kept), begin - first : end - first] = kept
    return out


def is_left_right(tok: TokFile, segment: int) -> bool:
    """Whether the two signals of a segment are left and right."""
    payload = tok.sound_payload(segment) if tok.sound.signals == 2 else None
    return bool(payload and payload[0] & LEFT_RIGHT)


@dataclass(frozen=True)
class Span:
    """A part of a sound in samples of its own rate, ``begin`` to ``end``."""

    begin: int
    end: int


def span_of(header: AudioHeader, start: float | None, end: float | None) -> Span:
    """The samples between two moments in seconds. Raises UsageError if there are none."""
    for moment in (start, end):
        if moment is not None and not 0 <= moment < math.inf:
            raise UsageError(f"a moment in a sound is 0 seconds or later, got {moment:g}")
    first = 0 if start is None else round(start * header.sample_rate)
    last = header.samples if end is None else min(round(end * header.sample_rate), header.samples)
    if first >= last:
        raise UsageError(f"nothing lies between the moments asked for: the sound has {header.seconds:.2f} s")
    return Span(first, last)


def decode_blocks(
    tok: TokFile, model: Model, span: Span, levels: int | None = None, progress: Progress = SILENT
) -> Iterator[Samples]:
    """Samples ``[channels, n]`` of a span, block by block; decoding starts shortly before it, so that they are those
    of the whole sound. Lost segments are silent."""
    header, tokenizer = tok.sound, audio_tokenizer(model)
    rate, frame = header.coded_rate, header.stride
    # The resampler starts at a frame that lies on a sample of the sound; blocks are those of the whole sound.
    every = rate // math.gcd(rate, header.sample_rate)
    step = every // math.gcd(every, frame)
    reach = after = tokenizer.context + header.segment
    if tokenizer.streaming:
        reach, after = tokenizer.reach, 0
    else:
        step = math.lcm(step, header.segment)
    before = span.begin * rate // header.sample_rate // frame - reach - MARGIN
    first = max(0, before) // step * step
    last = min(header.grid[0], -(-span.end * rate // (header.sample_rate * frame)) + MARGIN + after)
    skip = span.begin - first * frame * header.sample_rate // rate
    left = span.end - span.begin
    resampler = Resampler(rate, header.sample_rate, header.signals)
    most = max(frame, OUTPUT * rate // (header.sample_rate * header.channels))
    end: Samples = np.zeros((header.signals, 0), dtype=np.float32)
    for block in itertools.chain(_sliced(_signals(tok, model, first, last, levels), most), [end]):
        made = resampler(block, last=block is end)
        dropped = min(skip, made.shape[1])
        skip -= dropped
        made = made[:, dropped : dropped + left]
        left -= made.shape[1]
        if made.shape[1]:
            yield to_channels(made, header.channels)
        progress.update(1 - left / (span.end - span.begin))
        if not left:
            return


def _sliced(blocks: Iterator[Samples], n: int) -> Iterator[Samples]:
    """Blocks ``[signals, n]`` at most."""
    for block in blocks:
        for begin in range(0, block.shape[1], n):
            yield block[:, begin : begin + n]


def _signals(tok: TokFile, model: Model, first: int, last: int, levels: int | None) -> Iterator[Samples]:
    """Samples of the signals from frame ``first`` to ``last``, ``[signals, n]`` at the rate of the model.

    After a lost segment decoding begins anew, as after silence, since the nets were never shown a gap; and where the
    signals change from middle and side to left and right, which become middle and side here, or back.
    """
    header, tokenizer = tok.sound, audio_tokenizer(model)
    frame = header.stride
    end = min(header.coded_samples - first * frame, (last - first) * frame)
    given = 0

    def cut(x: Tensor) -> Samples:
        nonlocal given
        block: Samples = x[:, 0, : max(0, end - given)].cpu().numpy()
        given += block.shape[1]
        return to_middle_side(block) if left_right else block

    left_right = False
    decoder: SoundDecoder | None = None
    for segment in range(first // header.segment, -(-last // header.segment)):
        begin = header.segment_span(segment)[0]
        codes = torch.from_numpy(read_codes(tok, model, levels, range(segment, segment + 1)))
        codes = codes[:, :, max(0, first - begin) : last - begin].to(tokenizer.device)
        lost = bool((codes[:, 0] < 0).all())
        pair = not lost and is_left_right(tok, segment)
        with torch.inference_mode():
            if pair != left_right and decoder is not None:
                yield cut(decoder.finish())
                decoder = None
            left_right = pair
            if lost:
                if decoder is not None:
                    yield cut(decoder.finish())
                    decoder = None
                yield cut(torch.zeros(len(codes), 1, codes.shape[2] * frame))
                continue
            decoder = decoder or tokenizer.decoder(header.segment)
            for part in codes.split(PIECE, dim=2):
                yield cut(decoder.push(part))
    if decoder is not None:
        with torch.inference_mode():
            yield cut(decoder.finish())


def decode_sound(
    tok: TokFile, model: Model, span: Span, levels: int | None = None, progress: Progress = SILENT
) -> Sound:
    """A span of a sound, in memory."""
    header = tok.sound
    samples: Samples = np.empty((header.channels, span.end - span.begin), dtype=np.float32)
    at = 0
    for block in decode_blocks(tok, model, span, levels, progress):
        samples[:, at : at + block.shape[1]] = block
        at += block.shape[1]
    return Sound(samples[:, :at], header.sample_rate, header.bit_depth, layout=header.layout)


def write_sound(
    tok: TokFile, model: Model, span: Span, sink: Sink, options: DecodeOptions, progress: Progress = SILENT
) -> list[str]:
    """Decode a span into a WAV or FLAC file, block by block. Returns what the file could not hold.

    Raises: FormatError if it is to be strict and something is damaged; a target that cannot seek has then got nothing.
    """
    header = tok.sound
    with (
        seekable(sink.file) as file,
        AudioWriter(
            file,
            sink.suffix,
            sink.name,
            header.sample_rate,
            header.channels,
            bit_depth=header.bit_depth,
            layout=header.layout,
        ) as writer,
    ):
        for block in decode_blocks(tok, model, span, options.levels, progress):
            writer.write(block)
        if options.strict and tok.problems:
            raise FormatError(tok.problems[0])
        return writer.notes
