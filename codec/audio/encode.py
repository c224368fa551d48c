"""Sounds: media file -> `.tok`, block by block. The twin of decode.py.

The signals that are coded are the one channel, or middle and side of two, or each of more; one alone stands for
channels that are all the same. A segment is two seconds of all signals, decodable on its own, in one chunk: for each
signal its number of levels, then the codes of all of them in one payload. So a rate is met by giving each segment its
own number of levels, and samples are never in memory all at once; an hour of codes takes 4 MB a signal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from ...tokenizers.audio.base import AudioTokenizer, Coded, SoundEncoder
from ..allocation import Levels, fit
from ..container.fields import MAX_FRAMES, AudioHeader
from ..container.write import write_tok
from ..errors import MediaError, too_small
from ..media.audio import AudioReader, Resampler, Samples
from ..progress import SILENT, Progress
from .decode import audio_tokenizer
from .refine import check_refinable, refiner_of
from .stereo import LEFT_RIGHT, StereoSegments, to_middle_side

if TYPE_CHECKING:
    from ..contract import Source
    from ..models import Model
    from ..options import EncodeOptions


Codes = npt.NDArray[np.integer]  # int16, or int32 if a codebook is too large for that
SEGMENT_SECONDS = 2
BLOCK_SECONDS = 10.0  # that are read at once
LEVEL_KBPS = 0.6  # that a level of a signal takes, about


@dataclass(frozen=True)
class Search:
    """How codes are searched for: for a file of so many levels, kbit/s or bytes, in ``n_steps`` gradient steps
    (:mod:`.refine`)."""

    levels: int  # of the codes that are made
    kbps: float | None = None
    size: int | None = None
    n_steps: int | None = None  # None: no gradient steps

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
        layout: positions of the channels, see :mod:`..media.layout`.
        left_right: of each segment, whether its two signals are left and right; none if none is.
        notes, problems: of the source, what could not be kept, and what is damaged or missing.
    """

    codes: Codes
    errors: npt.NDArray[np.float32] | None
    samples: int
    sample_rate: int
    channels: int
    bit_depth: int
    notes: list[str]
    problems: list[str] = field(default_factory=list)
    layout: int = 0
    left_right: Sequence[bool] = ()

    @property
    def seconds(self) -> float:
        return self.samples / self.sample_rate


def segment_frames(hertz: float, stride: int) -> int:
    """Frames of a segment, of signals of so many samples a second and a frame."""
    return min(MAX_FRAMES, max(1, round(SEGMENT_SECONDS * hertz / stride)))


def code_type(sizes: Sequence[int]) -> np.dtype[np.integer]:
    """What codes of codebooks of these sizes are kept as."""
    return np.dtype(np.int16 if max(sizes) <= 1 << 15 else np.int32)


def to_signals(x: Samples) -> Samples:
    """Channels to what is coded: two become middle and side, ``(l + r) / 2`` and ``(l - r) / 2``."""
    return to_middle_side(x) if len(x) == 2 else x


def analyse_samples(
    reader: AudioReader,
    model: AudioTokenizer,
    levels: int | None = None,
    errors: bool = False,
    progress: Progress = SILENT,
    skip: int = 0,
    search: Search | None = None,
    pairs: bool = False,
) -> SoundTokens | None:
    """Codes of a sound of any rate and 1 to 8 channels, block by block; None if it has no samples.

    Args:   levels: of the codes, all if None.  errors: whether those are wanted.  skip: leave out so many samples.
            search: what the codes are for.  pairs: whether segments of two channels may be coded as left and right.
    Raises: MediaError for what is damaged.
    """
    encoder: SoundEncoder | None = None
    resampler = Resampler(reader.sample_rate, model.hertz, reader.channels)
    segment = segment_frames(model.hertz, model.stride) * model.stride
    kind = code_type(model.codebook_sizes)
    codes: list[Codes] = []
    distances: list[npt.NDArray[np.float32]] = []
    same = True
    seen: int | None = None
    stereo = StereoSegments(segment) if pairs and reader.channels == 2 else None
    left_right = False  # of what was pushed last

    def take(coded: Coded) -> None:
        codes.append(coded.codes.cpu().numpy().astype(kind))
        if coded.errors is not None:
            distances.append(coded.errors.cpu().numpy())

    def push(signals: Samples) -> None:
        nonlocal encoder, seen
        x = torch.from_numpy(signals)[:, None].to(model.device)
        if search is not None and seen is None:  # with the first block, which tells whether all channels are the same
            seconds = reader.frames / reader.sample_rate if reader.frames else None
            seen = search.seen(1 if same else len(x), seconds)
        if encoder is None:
            n_steps = None if search is None else search.n_steps
            refiner = None if n_steps is None or seen is None else refiner_of(model, seen, n_steps)
            encoder = model.encoder(levels, errors=errors, seen=seen, refiner=refiner)
        take(encoder.code(x))

    def push_pairs(middle_side: Samples, last: bool = False) -> None:
        """As ``push``, after a choice of signals; where it changes, the nets begin anew."""
        nonlocal encoder, left_right
        assert stereo is not None
        for signals in stereo.push(middle_side, last):
            if left_right != stereo.left_right[-1] and encoder is not None:
                take(encoder.code_rest())
                encoder = None
            left_right = stereo.left_right[-1]
            push(signals)

    with torch.inference_mode():
        for block in reader.blocks(round(BLOCK_SECONDS * reader.sample_rate)):
            block = block[:, max(0, block.shape[1] + skip - reader.position) :]
            same = same and bool((block == block[:1]).all())
            signals = resampler(to_signals(block))
            push_pairs(signals) if stereo is not None else push(signals)
            if reader.frames:
                progress.update(min(1.0, reader.position / reader.frames))
        if reader.position <= skip:
            return None
        signals = resampler(np.zeros((reader.channels, 0), dtype=np.float32), last=True)
        push_pairs(signals, last=True) if stereo is not None else push(signals)
        assert encoder is not None  # there is a sample
        take(encoder.code_rest())
    n_signals = 1 if same else reader.channels
    return SoundTokens(
        codes=np.concatenate(codes, axis=2)[:n_signals],
        errors=np.concatenate(distances, axis=2)[:n_signals] if errors else None,
        samples=reader.position - skip,
        sample_rate=reader.sample_rate,
        channels=reader.channels,
        bit_depth=reader.bit_depth,
        notes=list(reader.notes),
        problems=list(reader.problems),
        layout=reader.layout,
        left_right=stereo.left_right if stereo is not None and any(stereo.left_right) else (),
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
        for s, ((begin, end), own) in enumerate(zip(self.spans, levels, strict=True)):
            parts = [codes[:k, begin:end].astype(np.int64) for k, codes in zip(own, self.tokens.codes, strict=True)]
            head = bytearray(own.tolist())
            if self.tokens.left_right and self.tokens.left_right[s]:
                head[0] |= LEFT_RIGHT
            row.append(bytes(head) + self.model.prior.compress_joint(parts))
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
            raise too_small(len(data), most, seconds=self.tokens.seconds)
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
    tokenizer = audio_tokenizer(model)
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
        coded_rate=tokenizer.hertz,
        stride=tokenizer.stride,
        segment=segment_frames(tokenizer.hertz, tokenizer.stride),
        layout=tokens.layout,
    )


def without_samples(reader: AudioReader) -> MediaError:
    """The error for a sound in which there is nothing, with what is known of the reason."""
    return MediaError(f"{reader.name}: {'; '.join(['a sound without samples', *reader.problems])}")


def encode_sound(
    source: Source, model: Model, options: EncodeOptions, progress: Progress = SILENT
) -> tuple[bytes, Levels, SoundTokens]:
    """File of a sound, levels ``[segments, signals]`` in it, and its tokens.

    Raises: UsageError for a number of levels that makes no sense, RateError if the smallest file is too large;
            MediaError.
    """
    tokenizer, rate = audio_tokenizer(model), options.rate
    levels = rate.fixed_levels(len(tokenizer.codebook_sizes))
    if options.n_steps:
        check_refinable(tokenizer)
    search = Search(levels, rate.kbps, rate.size, options.n_steps or None)
    with AudioReader(source.data, source.name, options.max_samples, options.track) as reader:
        tokens = analyse_samples(reader, tokenizer, levels, rate.searched, progress, search=search, pairs=True)
    if tokens is None:
        raise without_samples(reader)
    files = SoundFile(model, tokens, sound_header(tokens, model))
    if not rate.searched:
        return files.uniform(levels), np.full(files.shape, levels), tokens
    most = rate.size if rate.kbps is None else int(rate.kbps * 125 * tokens.seconds)
    assert most is not None
    data, chosen = files.within(most)
    return data, chosen, tokens
