"""Our models for sounds in benchmarks: files, the nets alone, and streams."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ....tokenizers.audio.grvq import AudioGRVQ, StreamingDecoder, StreamingEncoder
from ....tokenizers.tokens import Tokens
from ...container.read import read_tok
from ...decode import decode_file, file_tokens
from ...encode import encode_file
from ...errors import UsageError
from ...metrics.spectrogram import Mono
from ...models import load_model, pick_device
from ...options import check_effort
from ...registry import MODALITIES
from ...settings import Setting
from ..clips import SAMPLE_RATE, Clip
from ..contender import Codec, Coded, Spec, Timed, timed

CHUNK = 1920  # samples of a stream that come at once: 80 ms


@dataclass(frozen=True)
class SoundCoder(Codec):
    """A model for sounds, ready to run. ``model``: name, folder or hub id.  ``settings``: rates, rising."""

    model: str
    name: str
    settings: tuple[Setting, ...]
    device: str
    effort: int = 0
    kind = "ours"
    smallest = Setting("levels", 1)

    @property
    def described(self) -> str:
        return f".tok files: {', '.join(setting.label for setting in self.settings)}"

    @property
    def tokenizer(self) -> AudioGRVQ:
        tokenizer = load_model(self.model, self.device).tokenizer
        assert isinstance(tokenizer, AudioGRVQ)
        return tokenizer

    def encode(self, clip: Clip, setting: Setting) -> Coded:
        source = io.BytesIO(clip.wav)
        encoded = encode_file(source, model=self.model, device=self.device, effort=self.effort, **setting.rate)
        return Coded.of(encoded.data)

    def decode(self, coded: Coded, variant: str = "") -> Mono:
        """Samples ``[n]`` at 24 kHz."""
        sound = decode_file(io.BytesIO(coded.files[0]), model=self.model, device=self.device).sound
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
    check_effort(effort)
    chosen = sorted(set(kbps))
    if not chosen or not all(rate > 0 and math.isfinite(rate) for rate in chosen):
        raise UsageError("rates are numbers above 0, in kbit/s")
    model = model or MODALITIES["audio"].encode_model
    device = pick_device(device)
    tokenizer = load_model(model, device).tokenizer
    if not isinstance(tokenizer, AudioGRVQ):
        raise UsageError(f"{tokenizer.name} is not a model for sounds")
    return SoundCoder(model, tokenizer.name, tuple(Setting("kbps", rate) for rate in chosen), device, effort)


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
    signal = torch.from_numpy(x)[None, None].to(coder.device)
    encoded = timed(tokenizer.encode, signal, levels)
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
