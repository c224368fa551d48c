"""A tokenizer of videos that is not ours, as somebody else would write it: grays of blocks of two frames by 8 x 8
pixels, each level eight times as finely as the one before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tokodec
from tokodec.tokenizers.video.base import VideoTokenizer

KIND = tokodec.TokenizerKind("toy_video", "video")
BLOCK = (2, 8, 8)


@dataclass(frozen=True)
class GraysConfig:
    steps: int = 8
    levels: int = 2


class Grays(VideoTokenizer):
    """Mean grays of blocks."""

    config_class = GraysConfig
    strides = BLOCK

    def __init__(self, config: GraysConfig | None = None, name: str = "grays") -> None:
        super().__init__(config or GraysConfig(), name)
        n = self.config.steps
        self.ticks = nn.Parameter((torch.arange(n) + 0.5) / n, requires_grad=False)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.config.steps,) * self.config.levels

    def encode_codes(self, x: Tensor) -> Tensor:
        left, n, codes = F.avg_pool3d(x.mean(1), BLOCK), self.config.steps, []
        for _ in range(self.config.levels):
            codes.append((left * n).long().clamp(0, n - 1))
            left = left * n - codes[-1]
        return torch.stack(codes, 1)

    def decode_codes(self, codes: Tensor) -> Tensor:
        n, gray = self.config.steps, torch.full(codes[:, 0].shape, 0.5, device=codes.device)
        for k, own in enumerate(codes.unbind(1)):
            gray = gray + torch.where(own >= 0, self.ticks[own.clamp_min(0)] - 0.5, 0) / n**k
        for axis, size in enumerate(BLOCK):
            gray = gray.repeat_interleave(size, axis + 1)
        return gray[:, None].expand(-1, 3, -1, -1, -1)
