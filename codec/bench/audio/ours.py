"""Our models for sounds in benchmarks: files, the nets alone, and streams."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ....tokenizers.audio.base import AudioTokenizer
from ....tokenizers.audio.grvq import AudioGRVQ, StreamingDecoder, StreamingEncoder
from ....tokenizers.tokens import Tokens
from ...audio.decode import audio_tokenizer
from ...container.read import read_tok
from ...decode import file_tokens
from ...media.audio import resample
from ...metrics.spectrogram import Mono
from ...models import load_model
from ...settings import Setting
from ..clips import SAMPLE_RATE
from ..contender import Coded, Spec, Timed, timed
from ..ours import Ours, decode, load_ours, rates

CHUNK = 1920  # samples of a stream that come at once: 80 ms


class SoundCoder(Ours):
    """A model for sounds at rates."""

    smallest = Setting("levels", 1)

    @property
    def tokenizer(self) -> AudioTokenizer:
        return audio_tokenizer(load_model(self.model, self.device))

    def decode(self, coded: Coded, variant: str = "") -> Mono:
        """Samples ``[n]`` at 24 kHz."""
        sound = decode(coded.files[0], self.model, self.device).sound
        assert sound.sample_rate == SAMPLE_RATE
        assert len(sound.samples) == 1
        return sound.samples[0]

    def spec(self) -> Spec:
        """The largest rate."""
        setting = self.settings[-1]
        arguments = {"model": self.model, "device": self.device, "kbps": [setting.value], "effort": self.effort}
        return Spec("audio.ours:prepare_sound", arguments, setting)


def prepare_sound(model: str | None, device: str, kbps: Sequence[float], effort: int = 0) -> SoundCoder:
    """Load the model and check the rates. Raises UsageError for another kind of model, no rates, no effort."""
    settings = rates(kbps or [0.0])
    model, device, tokenizer = load_ours(model, "audio", device, effort)
    return SoundCoder(model, tokenizer.name, tuple(settings), device, effort)


class Codes(NamedTuple):
    """What is in our file: ``bits`` that its codes would take without an entropy model, 10 each where a codebook has
    1024 words, and the mean ``levels`` of a frame."""

    bits: float
    levels: float


def count_codes(data: bytes, coder: SoundCoder) -> Codes:
    """Count the codes of our file, segment by segment as many as there are."""
    tokens, _ = file_tokens(read_tok(data), coder.model, coder.device)
    counts = (tokens.codes >= 0).sum((0, 2)).tolist()
    bits = sum(n * math.log2(size) for n, size in zip(counts, tokens.spec.codebook_sizes, strict=False))
    return Codes(float(bits), sum(counts) / tokens.codes.shape[2])


def run_nets(x: Mono, coder: SoundCoder, levels: int) -> tuple[Timed[Tokens], Timed[Tensor]]:
    """The nets and the quantizer alone, without entropy coding and files: encoding and decoding."""
    tokenizer = coder.tokenizer
    signal = torch.from_numpy(resample(x[None], SAMPLE_RATE, tokenizer.hertz))[None].to(coder.device)
    encoded = timed(tokenizer.encode, signal, levels)
    return encoded, timed(lambda: tokenizer.decode(encoded.result).cpu())


def run_stream(x: Mono, coder: SoundCoder, levels: int) -> tuple[Timed[list[Tensor]], Timed[Mono]]:
    """The nets of a model that streams in chunks of :data:`CHUNK` samples, as they come from a microphone: codes, then
    samples ``[320 t]``."""
    tokenizer = coder.tokenizer
    assert isinstance(tokenizer, AudioGRVQ)
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
