"""Sounds: media file <-> `.tok`. Twins: encoding above, decoding below, each block by block.

The signals that are coded are the one channel, or middle and side of two, or each of more; one alone stands for
channels that are all the same. A segment is two seconds of all signals, decodable on its own, in one chunk: for each
signal its number of levels, then the codes of all of them in one payload. So a rate is met by giving each segment its
own number of levels, and samples are never in memory all at once; an hour of codes takes 4 MB a signal.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..tokenizers.api import Tokens
from ..tokenizers.audio.grvq import FRAME, RATE, AudioGRVQ, StreamingDecoder, StreamingEncoder
from .allocation import Levels, fit
from .container import MAX_CHANNELS, MAX_SAMPLES, AudioHeader, TokFile, write_tok
from .errors import ChunkError, FormatError, MediaError, RateError, UsageError
from .media.audio import AudioReader, AudioWriter, Resampler, Samples, Sound
from .refine_sound import SoundRefiner

if TYPE_CHECKING:
    from .encode import Rate
    from .models import Model

Progress = Callable[[float], None]
Codes = npt.NDArray[np.int16]

SEGMENT = 150  # frames of a segment: two seconds
BLOCK = 750  # frames that go through the nets at once
LEVEL_KBPS = 0.6  # that a level of a signal takes, about
MARGIN = 10  # frames beside a wanted span, for the resampler's filter


@dataclass(frozen=True)
class Search:
    """How codes are searched for: for a file of so many levels, kbit/s or bytes, in ``n_steps`` steps of descent
    (:mod:`.refine_sound`)."""

    levels: int  # of the codes that are made
    kbps: float | None = None
    size: int | None = None
    n_steps: int | None = None  # None: no descent

    def seen(self, signals: int, seconds: float | None) -> int:
        """About how many levels a signal will have; all where nobody knows."""
        kbps = 8e-3 * self.size / seconds if self.size is not None and seconds else self.kbps
        return self.levels if kbps is None else min(self.levels, max(1, round(kbps / signals / LEVEL_KBPS)))


@dataclass(frozen=True)
class SoundTokens:
    """The codes of a sound, before the rate is chosen.

    Attributes:
        codes: ``[signals, K, t]``.
        errors: ``[signals, K, t]`` float32, squared error of the latents after 1, 2, ... levels; None if not asked for.
    """

    codes: Codes
    errors: npt.NDArray[np.float32] | None
    samples: int
    sample_rate: int
    channels: int
    bit_depth: int
    notes: list[str]

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate


def to_signals(x: Samples) -> Samples:
    """Channels to what is coded: two become middle and side, ``(l + r) / 2`` and ``(l - r) / 2``."""
    return np.stack([x[0] + x[1], x[0] - x[1]]) * np.float32(0.5) if len(x) == 2 else x


def to_channels(signals: Samples, channels: int) -> Samples:
    """Inverse of :func:`to_signals`; one signal alone is every channel."""
    if len(signals) == 2:
        return np.stack([signals[0] + signals[1], signals[0] - signals[1]])
    return np.repeat(signals, channels, axis=0) if len(signals) < channels else signals


def analyse_sound(
    source: Path | BinaryIO,
    name: str,
    model: AudioGRVQ,
    levels: int | None = None,
    errors: bool = False,
    progress: Progress | None = None,
    max_samples: int = MAX_SAMPLES,
    search: Search | None = None,
) -> SoundTokens:
    """Codes of a sound of any rate and 1 to 8 channels, block by block.

    Args:   levels: of the codes, all if None.  errors: whether those are wanted.  search: what the codes are for.
    Raises: MediaError for what is no sound, is damaged, or has no samples at all.
    """
    with AudioReader(source, name, max_samples) as reader:
        found = analyse_samples(reader, model, levels, errors, progress, search=search)
    if found is None:
        raise MediaError(f"{name}: a sound without samples")
    return found


def analyse_samples(
    reader: AudioReader,
    model: AudioGRVQ,
    levels: int | None = None,
    errors: bool = False,
    progress: Progress | None = None,
    skip: int = 0,
    search: Search | None = None,
) -> SoundTokens | None:
    """As :func:`analyse_sound`, of what a reader gives without its first ``skip`` samples; None if there are none."""
    encoder = StreamingEncoder(model)
    resampler = Resampler(reader.sample_rate, RATE, reader.channels)
    codes: list[Codes] = []
    distances: list[npt.NDArray[np.float32]] = []
    same = True
    refiner: SoundRefiner | None = None
    seen: int | None = None

    def take(z: Tensor) -> None:
        if z.shape[2]:
            z = z if refiner is None else refiner.refine(z)
            found = model.codes(z, levels, seen=seen)
            codes.append(found.cpu().numpy().astype(np.int16))
            if errors:
                distances.append(model.errors(z, found).cpu().numpy())

    def push(signals: Samples) -> None:
        nonlocal refiner, seen
        x = torch.from_numpy(signals)[:, None].to(model.device)
        if search is not None and seen is None:  # with the first block, which tells whether all channels are the same
            seconds = reader.frames / reader.sample_rate if reader.frames else None
            seen = search.seen(1 if same else len(x), seconds)
            refiner = None if search.n_steps is None else SoundRefiner(model, seen, search.n_steps)
        if refiner is not None:
            refiner.push(x)
        take(encoder.latents(x))

    with torch.inference_mode():
        for block in reader.blocks(max(1, BLOCK * FRAME * reader.sample_rate // RATE)):
            block = block[:, max(0, block.shape[1] + skip - reader.position) :]
            same = same and bool((block == block[:1]).all())
            push(resampler(to_signals(block)))
            if progress is not None and reader.frames:
                progress(min(1.0, reader.position / reader.frames))
        if reader.position <= skip:
            return None
        push(resampler(np.zeros((reader.channels, 0), dtype=np.float32), last=True))
        take(encoder.last_latents())
    signals = 1 if same else reader.channels
    return SoundTokens(
        np.concatenate(codes, axis=2)[:signals],
        np.concatenate(distances, axis=2)[:signals] if errors else None,
        reader.position - skip,
        reader.sample_rate,
        reader.channels,
        reader.bit_depth,
        list(reader.notes),
    )


class SoundFile:
    """Files of one sound at any rate.

    Args: codes: ``[signals, K, t]``.
    """

    def __init__(self, model: Model, tokens: SoundTokens, metadata: AudioHeader) -> None:
        self.model, self.tokens, self.header = model, tokens, metadata
        self.spans = [metadata.segment_span(s) for s in range(metadata.n_segments)]
        self.shape = (len(self.spans), metadata.signals)

    def payloads(self, levels: Levels) -> list[bytes]:
        """Of all segments, of which the one numbered s has ``levels[s, c]`` levels of signal c."""
        row = []
        for (begin, end), own in zip(self.spans, levels, strict=True):
            parts = [codes[:k, begin:end].astype(np.int64) for k, codes in zip(own, self.tokens.codes, strict=True)]
            row.append(bytes(own.tolist()) + self.model.prior.compress_joint(parts))
        return row

    def build(self, levels: Levels) -> bytes:
        """The file with :meth:`payloads`."""
        return write_tok(self.header, [self.payloads(levels)])

    def uniform(self, levels: int) -> bytes:
        """The file with so many levels everywhere."""
        return self.build(np.full(self.shape, levels, dtype=np.int64))

    def within(self, most: int) -> tuple[bytes, Levels]:
        """The file of at most ``most`` bytes whose latents have the least error, and its levels; see :func:`fit`.

        Raises: RateError if one level everywhere takes more.
        """
        data, levels = self.nearest(most)
        if len(data) > most:
            kbps = 8e-3 * len(data) / self.tokens.seconds
            raise RateError(
                f"the smallest file takes {len(data)} bytes ({kbps:.2f} kbps), more than the {most} asked for"
            )
        return data, levels

    def nearest(self, most: int) -> tuple[bytes, Levels]:
        """As :meth:`within`, but with one level everywhere if that takes more."""
        assert self.tokens.errors is not None
        bits = np.stack([self._bits(begin, end) for begin, end in self.spans])  # [segments, signals, K]
        errors = np.stack([self.tokens.errors[:, :, a:b].sum(2, dtype=np.float64) for a, b in self.spans])
        return fit(self.build, bits, errors, most)

    def _bits(self, begin: int, end: int) -> npt.NDArray[np.float64]:
        """Bits of every level of every signal of a span, ``[signals, K]``."""
        return np.stack([self.model.prior.bits(codes[:, begin:end].astype(np.int64)) for codes in self.tokens.codes])


def sound_header(tokens: SoundTokens, model: Model) -> AudioHeader:
    return AudioHeader(
        model=model.tokenizer.name,
        weights_hash=model.tokenizer.weights_hash,
        prior=model.prior.wire_id,
        prior_hash=model.prior.hash,
        layers=1,
        samples=tokens.samples,
        sample_rate=tokens.sample_rate,
        channels=tokens.channels,
        signals=len(tokens.codes),
        bit_depth=tokens.bit_depth,
        coded_rate=RATE,
        stride=FRAME,
        segment=SEGMENT,
    )


def encode_sound(
    source: Path | BinaryIO, name: str, model: Model, rate: Rate, progress: Progress | None = None,
    max_samples: int = MAX_SAMPLES, n_steps: int = 0,
) -> tuple[bytes, Levels, SoundTokens]:
    """File of a sound, levels ``[segments, signals]`` in it, and its tokens.

    Args:   n_steps: of descent towards better codes.
    Raises: UsageError for a rate that sounds do not have, RateError if the smallest file is too large; MediaError.
    """
    tokenizer = audio_tokenizer(model)
    n_levels = len(tokenizer.codebook_sizes)
    if rate.bpp is not None:
        raise UsageError("bits per pixel are for pictures: use --kbps or --bytes for a sound")
    levels = n_levels
    if rate.levels is not None:
        levels = rate.levels
        if not 1 <= levels <= n_levels:
            raise UsageError(f"levels is 1 to {n_levels} with this model, got {levels}")
    elif rate.quality is not None:
        levels = min(n_levels, 1 + int(rate.quality * n_levels / 100))
    searched = rate.kbps is not None or rate.size is not None
    search = Search(levels, rate.kbps, rate.size, n_steps or None)
    tokens = analyse_sound(source, name, tokenizer, levels, searched, progress, max_samples, search)
    files = SoundFile(model, tokens, sound_header(tokens, model))
    if not searched:
        return files.uniform(levels), np.full(files.shape, levels), tokens
    most = rate.size if rate.kbps is None else int(rate.kbps * 125 * tokens.seconds)
    assert most is not None
    data, chosen = files.within(most)
    return data, chosen, tokens


def audio_tokenizer(model: Model) -> AudioGRVQ:
    """Raises ChunkError if the model is for something else."""
    if not isinstance(model.tokenizer, AudioGRVQ):
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
    if (header.coded_rate, header.stride) != (RATE, FRAME):
        raise ChunkError(f"the header's coded rate or stride is not that of {header.model}")
    total = len(tokenizer.codebook_sizes)
    if levels is not None and levels < 1:
        raise UsageError(f"levels must be at least 1, got {levels}")
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
            parts = model.prior.decompress_joint(payload[header.signals :], own, (end - begin,))
        except ValueError as error:
            seconds = (begin * FRAME / RATE, end * FRAME / RATE)
            what = "segment" if tok.track is None else "sound segment"
            tok.damaged(f"{what} {segment}: {error}; {seconds[0]:.2f} to {seconds[1]:.2f} s are silent")
            continue
        for signal, codes in zip(out, parts, strict=True):
            kept = codes[:wanted]
            signal[: len(kept), begin - first : end - first] = kept
    return out


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
    tok: TokFile, model: Model, span: Span, levels: int | None = None, progress: Progress | None = None
) -> Iterator[Samples]:
    """Samples ``[channels, n]`` of a span, block by block; decoding starts shortly before it, so that they are those
    of the whole sound. Lost segments are silent."""
    header, tokenizer = tok.sound, audio_tokenizer(model)
    # The resampler starts at a frame that lies on a sample of the sound.
    every = RATE // math.gcd(RATE, header.sample_rate)
    step = every // math.gcd(every, FRAME)
    before = span.begin * RATE // header.sample_rate // FRAME - tokenizer.reach - MARGIN
    first = max(0, before) // step * step
    last = min(header.grid[0], -(-span.end * RATE // (header.sample_rate * FRAME)) + MARGIN)
    skip = span.begin - first * FRAME * header.sample_rate // RATE
    left = span.end - span.begin
    resampler = Resampler(RATE, header.sample_rate, header.signals)
    signals = _signals(tok, model, first, last, levels)
    done = False
    while left and not done:
        block = next(signals, None)
        done = block is None
        if block is None:
            block = np.zeros((header.signals, 0), dtype=np.float32)
        made = resampler(block, last=done)
        dropped = min(skip, made.shape[1])
        skip -= dropped
        made = made[:, dropped : dropped + left]
        left -= made.shape[1]
        if made.shape[1]:
            yield to_channels(made, header.channels)
        if progress is not None:
            progress(1 - left / (span.end - span.begin))


def _signals(tok: TokFile, model: Model, first: int, last: int, levels: int | None) -> Iterator[Samples]:
    """Samples of the signals from frame ``first`` to ``last``, ``[signals, n]`` at the rate of the model.

    After a lost segment decoding begins anew, as after silence, since the nets were never shown a gap.
    """
    header, tokenizer = tok.sound, audio_tokenizer(model)
    end = min(header.coded_samples - first * FRAME, (last - first) * FRAME)
    given = 0

    def cut(x: Tensor) -> Samples:
        nonlocal given
        block: Samples = x[:, 0, : max(0, end - given)].cpu().numpy()
        given += block.shape[1]
        return block

    decoder: StreamingDecoder | None = None
    for segment in range(first // header.segment, -(-last // header.segment)):
        begin = header.segment_span(segment)[0]
        codes = torch.from_numpy(read_codes(tok, model, levels, range(segment, segment + 1)))
        codes = codes[:, :, max(0, first - begin) : last - begin].to(tokenizer.device)
        lost = bool((codes[:, 0] < 0).all())
        with torch.inference_mode():
            if lost:
                if decoder is not None:
                    yield cut(decoder.finish())
                    decoder = None
                yield cut(torch.zeros(len(codes), 1, codes.shape[2] * FRAME))
                continue
            decoder = decoder or StreamingDecoder(tokenizer)
            yield cut(decoder.push(codes))
    if decoder is not None:
        with torch.inference_mode():
            yield cut(decoder.finish())


def decode_sound(
    tok: TokFile, model: Model, span: Span, levels: int | None = None, progress: Progress | None = None
) -> Sound:
    """A span of a sound, in memory."""
    blocks = list(decode_blocks(tok, model, span, levels, progress))
    header = tok.sound
    return Sound(np.concatenate(blocks, axis=1), header.sample_rate, header.bit_depth)


def write_sound(
    tok: TokFile,
    model: Model,
    span: Span,
    target: BinaryIO,
    suffix: str,
    name: str,
    levels: int | None = None,
    strict: bool = False,
    progress: Progress | None = None,
) -> list[str]:
    """Decode a span into a WAV or FLAC file, block by block. Returns what the file could not hold.

    Raises: FormatError if ``strict`` and something is damaged; a target that cannot seek has then got nothing.
    """
    header = tok.sound
    with (
        seekable(target) as file,
        AudioWriter(file, suffix, name, header.sample_rate, header.channels, header.bit_depth) as writer,
    ):
        for block in decode_blocks(tok, model, span, levels, progress):
            writer.write(block)
        if strict and tok.problems:
            raise FormatError(tok.problems[0])
        return writer.notes


@contextmanager
def seekable(target: BinaryIO) -> Iterator[BinaryIO]:
    """``target``, or a file in its place that is copied into it in the end: headers are written last."""
    if target.seekable():
        yield target
        return
    with tempfile.TemporaryFile() as file:
        yield file
        file.seek(0)
        while block := file.read(1 << 20):
            target.write(block)


def file_codes(tok: TokFile, model: Model, levels: int | None = None) -> Tokens:
    """Tokens ``[signals, K, t]`` of a file; levels that no segment has are left out."""
    codes = read_codes(tok, model, levels)
    held = max(1, int((codes >= 0).any(axis=(0, 2)).sum()))
    spec = audio_tokenizer(model).spec(tok.sound.coded_samples, len(codes))
    return Tokens(torch.from_numpy(codes[:, :held]), spec)


def media_codes(
    source: Path | BinaryIO, name: str, model: Model, levels: int | None = None
) -> tuple[Tokens, list[str]]:
    """Tokens ``[signals, K, t]`` of a sound, and what they do not tell of it, one line each."""
    tokenizer = audio_tokenizer(model)
    found = analyse_sound(source, name, tokenizer, levels)
    notes = list(found.notes)
    if found.sample_rate != RATE:
        notes.append(f"tokens are of {RATE} Hz, the source has {found.sample_rate}")
    if found.channels > len(found.codes):
        notes.append(f"the {found.channels} channels are the same, tokens are of one")
    n = -(-found.samples * RATE // found.sample_rate)
    codes = torch.from_numpy(found.codes.astype(np.int64))
    return Tokens(codes, tokenizer.spec(n, len(codes))), notes


def file_of_codes(tokens: Tokens, model: Model) -> bytes:
    """A `.tok` file from tokens ``[signals, K, t]``, of a sound at the model's rate.

    Raises: UsageError if there are more signals than a file holds.
    """
    codes = tokens.codes.numpy()
    if len(codes) > MAX_CHANNELS:
        raise UsageError(f"a .tok file holds {MAX_CHANNELS} signals at most, not {len(codes)}")
    sound = SoundTokens(codes.astype(np.int16), None, tokens.spec.size[0], RATE, len(codes), 16, [])
    files = SoundFile(model, sound, sound_header(sound, model))
    held = (codes >= 0).all(axis=2).sum(1)  # levels of each signal
    if (held < 1).any() or ((codes >= 0).sum(axis=(1, 2)) > held * codes.shape[2]).any():
        raise UsageError("some codes are absent (-1), a .tok file wants all of them")
    return files.build(np.tile(held, (len(files.spans), 1)))


def sound_of_codes(tokens: Tokens, model: Model) -> Sound:
    """Samples of tokens ``[signals, K, t]`` at the model's rate."""
    with torch.inference_mode():
        x_hat = audio_tokenizer(model).decode(tokens.to(model.tokenizer.device))
    signals: Samples = x_hat[:, 0].cpu().numpy()
    return Sound(to_channels(signals, len(signals)), RATE)
