"""A tokenizer of sounds that is not ours, as somebody else would write it: frames of 64 samples at 12 kHz by their
discrete cosine transform, whose first bands are rounded, each level nine times as finely as the one before."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import tokodec
from tokodec.tokenizers.audio.base import AudioTokenizer

KIND = tokodec.TokenizerKind("toy_sound", "audio")
FRAME = 64
BANDS = 4  # that are kept, a codeword for every combination of their values
STEPS = 9


@dataclass(frozen=True)
class BandsConfig:
    levels: int = 3


class Bands(AudioTokenizer):
    """The first bands of a frame after a window that reaches into its neighbours."""

    config_class = BandsConfig
    strides = (FRAME,)
    sample_rate = 12000.0
    context = 1

    def __init__(self, config: BandsConfig | None = None, name: str = "bands") -> None:
        super().__init__(config or BandsConfig(), name)
        n = torch.arange(2 * FRAME)
        window = torch.sin(math.pi * (n + 0.5) / (2 * FRAME))  # lapped: MDCT, each frame reaches into the next one
        phase = (n[:, None] + 0.5 + FRAME / 2) * (torch.arange(FRAME) + 0.5)
        basis = window[:, None] * torch.cos(math.pi / FRAME * phase) * math.sqrt(2 / FRAME)
        self.basis = nn.Parameter(basis[:, :BANDS].contiguous(), requires_grad=False)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (STEPS**BANDS,) * self.config.levels

    def encode_codes(self, x: Tensor) -> Tensor:
        lapped = torch.nn.functional.pad(x[:, 0], (0, FRAME)).unfold(1, 2 * FRAME, FRAME)  # [B, t, 128]
        left, codes = lapped @ self.basis, []
        for k in range(self.config.levels):
            ticks = (left * STEPS**k).round().clamp(-(STEPS // 2), STEPS // 2)
            left = left - ticks / STEPS**k
            digits = ticks.long() + STEPS // 2
            codes.append((digits * STEPS ** torch.arange(BANDS, device=x.device)).sum(2))
        return torch.stack(codes, 1)

    def decode_codes(self, codes: Tensor) -> Tensor:
        bands = torch.zeros(len(codes), codes.shape[2], BANDS, device=codes.device)
        for k, own in enumerate(codes.unbind(1)):
            digits = own[..., None] // STEPS ** torch.arange(BANDS, device=codes.device) % STEPS
            bands = bands + torch.where((own >= 0)[..., None], digits - STEPS // 2, 0) / STEPS**k
        first, second = (bands @ self.basis.T).split(FRAME, 2)
        x_hat = first + torch.nn.functional.pad(second, (0, 0, 1, 0))[:, :-1]
        return x_hat.flatten(1)[:, None]
