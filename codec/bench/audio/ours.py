"""Our side of `codec bench audio`: a model, its rates, its files in memory, its nets alone, and its streams."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ....tokenizers.audio.grvq import AudioGRVQ, StreamingDecoder, StreamingEncoder
from ....tokenizers.tokens import Tokens
from ...container.read import read_tok
from ...contract import Encoded, check_effort
from ...decode import decode_file, file_tokens
from ...encode import encode_file
from ...errors import UsageError
from ...metrics.spectrogram import Mono
from ...models import load_model, pick_device
from ...registry import MODALITIES
from ..clips import RATE, Timed, timed

KBPS = (0.75, 1.5, 3.0, 6.0)
CHUNK = 1920  # samples of a stream that come at once: 80 ms


@dataclass(frozen=True)
class SoundCoder:
    """Our codec, ready to run."""

    model: str  # name, folder or hub id
    name: str
    kbps: tuple[float, ...]  # what is asked for, rising
    device: str
    effort: int = 0

    @property
    def tokenizer(self) -> AudioGRVQ:
        tokenizer = load_model(self.model, self.device).tokenizer
        assert isinstance(tokenizer, AudioGRVQ)
        return tokenizer


def prepare_sound(model: str | None, device: str, kbps: Sequence[float], effort: int = 0) -> SoundCoder:
    """Load the model and check the rates. Raises UsageError for another kind of model, no rates, no effort."""
    check_effort(effort)
    chosen = tuple(sorted(set(kbps)))
    if not chosen or not all(rate > 0 and math.isfinite(rate) for rate in chosen):
        raise UsageError("rates are numbers above 0, in kbit/s")
    model = model or MODALITIES["audio"].encode_model
    device = pick_device(device)
    tokenizer = load_model(model, device).tokenizer
    if not isinstance(tokenizer, AudioGRVQ):
        raise UsageError(f"{tokenizer.name} is not a model for sounds")
    return SoundCoder(model, tokenizer.name, chosen, device, effort)


def encode_sound(wav: bytes, coder: SoundCoder, kbps: float) -> Encoded:
    """Our file of at most so many kbit/s. Raises RateError if our smallest file is larger."""
    return encode_file(io.BytesIO(wav), model=coder.model, kbps=kbps, device=coder.device, effort=coder.effort)


def encode_smallest(wav: bytes, coder: SoundCoder) -> Encoded:
    """Our smallest file."""
    return encode_file(io.BytesIO(wav), model=coder.model, levels=1, device=coder.device, effort=coder.effort)


def decode_sound(data: bytes, coder: SoundCoder) -> Mono:
    """Samples ``[n]`` at 24 kHz."""
    sound = decode_file(io.BytesIO(data), model=coder.model, device=coder.device).sound
    assert sound.sample_rate == RATE
    assert len(sound.samples) == 1
    return sound.samples[0]


@dataclass(frozen=True)
class Codes:
    """What is in our file: ``bits`` that its codes would take without an entropy model, 10 each where a codebook has
    1024 words, and the mean ``levels`` of a frame."""

    bits: float
    levels: float


def codes_of(data: bytes, coder: SoundCoder) -> Codes:
    """Count the codes of our file, segment by segment as many as there are."""
    tokens, _ = file_tokens(read_tok(data), coder.model, coder.device)
    counts = (tokens.codes >= 0).sum((0, 2)).tolist()
    bits = sum(n * math.log2(size) for n, size in zip(counts, tokens.spec.codebook_sizes, strict=False))
    return Codes(float(bits), sum(counts) / tokens.codes.shape[2])


def run_nets(x: Mono, coder: SoundCoder, levels: int) -> tuple[Timed[Tokens], Timed[Tensor]]:
    """The nets and the quantizer alone, without entropy coding and files: encoding and decoding."""
    tokenizer = coder.tokenizer
    signal = torch.from_numpy(x)[None, None].to(coder.device)
    encoded = timed(lambda: tokenizer.encode(signal, levels))
    return encoded, timed(lambda: tokenizer.decode(encoded.result).cpu())


def run_stream(x: Mono, coder: SoundCoder, levels: int) -> tuple[Timed[list[Tensor]], Timed[Mono]]:
    """The nets in chunks of :data:`CHUNK` samples, as they come from a microphone: codes, then samples ``[320 t]``."""
    tokenizer = coder.tokenizer
    signal = torch.from_numpy(x)[None, None].to(coder.device)

    def encode() -> list[Tensor]:
        stream = StreamingEncoder(tokenizer, levels)
        codes = [stream.push(part).cpu() for part in signal.split(CHUNK, 2)]
        return [*codes, stream.finish().cpu()]

    encoded = timed(encode)

    def decode() -> Mono:
        stream = StreamingDecoder(tokenizer)
        parts = [stream.push(codes.to(coder.device)).cpu() for codes in encoded.result]
        return torch.cat([*parts, stream.finish().cpu()], 2)[0, 0].numpy()

    return encoded, timed(decode)
