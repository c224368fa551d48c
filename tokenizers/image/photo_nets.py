"""The nets of image-photo: analysis, synthesis and hyper analysis, and what depends on the quality."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PATCH = 8


POINTS = 8  # control points of the gains over quality 0..100


GAINS = (4.0, 40.0)  # at quality 0 and 100, before training


DISTORTIONS = ("mse", "ms-ssim")


@dataclass(frozen=True)
class ImagePhotoConfig:
    """Sizes of the nets of an ImagePhoto."""

    channels: tuple[int, ...] = (256, 384)  # width at strides 8 and 16
    analysis_blocks: tuple[int, ...] = (6, 3)  # residual blocks at strides 8 and 16
    synthesis_blocks: tuple[int, ...] = (6, 3)
    latents: int = 256  # M, channels of y
    detail: int = 0  # how many of them, the last ones, are those of stride 8
    hyper: int = 128  # Nz, channels of z
    hyper_width: int = 192  # of the hyper analysis net
    # What the model was trained for, and an encoder may try harder for: rate + lambda(quality) * distortion.
    distortion: str = "mse"  # "mse", of 8-bit values, or "ms-ssim"
    # lambda at even steps of quality 0 to 100, in between its logarithm is a straight line: bits a pixel for a unit
    rate_weights: tuple[float, ...] = (0.001, 0.2)

    def __post_init__(self) -> None:
        if self.distortion not in DISTORTIONS:
            raise ValueError(f"unknown distortion {self.distortion!r}: {' or '.join(DISTORTIONS)}")
        if len(self.rate_weights) < 2 or not 0 < min(self.rate_weights) <= max(self.rate_weights) < math.inf:
            raise ValueError("rate_weights are two positive numbers or more, at quality 0 to 100")
        if not 0 <= self.detail < self.latents:
            raise ValueError("latents of detail are some of all latents")
        if not len(self.channels) == len(self.analysis_blocks) == len(self.synthesis_blocks) == 2:
            raise ValueError("channels and blocks have two entries each, for strides 8 and 16")


class BottleneckBlock(nn.Module):
    """``x + conv1x1(act(conv3x3(act(conv1x1(x)))))`` at half the width inside; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.reduce = nn.Conv2d(channels, inner, 1)
        self.spatial = nn.Conv2d(inner, inner, 3, padding=1)
        self.expand = nn.Conv2d(inner, channels, 1)
        nn.init.zeros_(self.expand.weight)
        assert self.expand.bias is not None
        nn.init.zeros_(self.expand.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.reduce(x), approximate="tanh")
        return x + self.expand(F.gelu(self.spatial(hidden), approximate="tanh"))


def blocks(channels: int, n: int) -> list[nn.Module]:
    return [BottleneckBlock(channels) for _ in range(n)]


class Dial(nn.Module):
    """Numbers for each channel that depend on the quality: straight lines between control points."""

    def __init__(self, channels: int, first: float = 0.0, last: float = 0.0) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.linspace(first, last, POINTS)[:, None].repeat(1, channels))

    def forward(self, quality: Tensor) -> Tensor:
        """``quality [B]`` in 0..1 to ``[B, channels, 1, 1]``."""
        place = quality * (POINTS - 1)
        weight = (1 - (place[:, None] - torch.arange(POINTS, device=place.device)).abs()).clamp_min(0)  # [B, POINTS]
        return (weight @ self.points)[:, :, None, None]


Beside = tuple[Tensor, Tensor]  # what is known besides, at the widths of strides 8 and 16


class Synthesis(nn.Module):
    """g_s: ``[B, M, h, w]`` and the quality to ``[B, 3, 16h, 16w]``."""

    def __init__(self, config: ImagePhotoConfig) -> None:
        super().__init__()
        c8, c16 = config.channels
        n8, n16 = config.synthesis_blocks
        self.parts = (config.latents - config.detail, config.detail)
        self.enter = nn.Conv2d(self.parts[0], c16, 3, padding=1)
        self.scale16, self.shift16 = Dial(c16), Dial(c16)
        self.coarse = nn.Sequential(*blocks(c16, n16))
        self.up = nn.Sequential(nn.Conv2d(c16, 4 * c8, 1), nn.PixelShuffle(2))
        if config.detail:
            self.detail = nn.Sequential(nn.Conv2d(config.detail, 4 * c8, 1), nn.PixelShuffle(2))
        self.scale8, self.shift8 = Dial(c8), Dial(c8)
        self.fine = nn.Sequential(*blocks(c8, n8))
        self.leave = nn.Sequential(nn.Conv2d(c8, 3 * PATCH**2, 3, padding=1), nn.PixelShuffle(PATCH))

    def features(self, y: Tensor, quality: Tensor, beside: Beside | None = None) -> Tensor:
        """What the pixels are made of, ``[B, c8, 2h, 2w]``. beside: added where the widths change."""
        y, detail = y.split(self.parts, 1)
        x = self.enter(y)
        if beside is not None:
            x = x + beside[1]
        x = self.coarse(x * torch.exp(self.scale16(quality)).to(x.dtype) + self.shift16(quality).to(x.dtype))
        x = self.up(x)
        if self.parts[1]:
            x = x + self.detail(detail)
        if beside is not None:
            x = x + beside[0]
        fine: Tensor = self.fine(x * torch.exp(self.scale8(quality)).to(x.dtype) + self.shift8(quality).to(x.dtype))
        return fine

    def forward(self, y: Tensor, quality: Tensor) -> Tensor:
        return self.leave(self.features(y, quality))


class Analysis(nn.Module):
    """g_a: ``[B, 3, 16h, 16w] -> [B, M, h, w]``."""

    def __init__(self, config: ImagePhotoConfig) -> None:
        super().__init__()
        c8, c16 = config.channels
        n8, n16 = config.analysis_blocks
        self.unshuffle = nn.PixelUnshuffle(PATCH)
        self.enter = nn.Conv2d(3 * PATCH**2, c8, 3, padding=1)
        self.fine = nn.Sequential(*blocks(c8, n8))
        self.down = nn.Conv2d(c8, c16, 2, stride=2)
        self.coarse = nn.Sequential(*blocks(c16, n16))
        self.leave = nn.Conv2d(c16, config.latents - config.detail, 3, padding=1)
        self.detail = nn.Conv2d(c8, config.detail, 2, stride=2) if config.detail else None

    def forward(self, x: Tensor, beside: Beside | None = None) -> Tensor:
        """beside: added where the widths change."""
        x = self.enter(self.unshuffle(x))
        x = self.fine(x if beside is None else x + beside[0])  # [B, c8, 2h, 2w]
        coarse = self.down(x)
        y = self.leave(self.coarse(coarse if beside is None else coarse + beside[1]))  # [B, M - detail, h, w]
        return y if self.detail is None else torch.cat([y, self.detail(x)], 1)


def hyper_analysis_net(config: ImagePhotoConfig) -> nn.Sequential:
    """h_a: ``[B, M, h, w] -> [B, Nz, h/4, w/4]``."""
    width = config.hyper_width
    return nn.Sequential(
        nn.Conv2d(config.latents, width, 3, padding=1),
        nn.GELU("tanh"),
        nn.Conv2d(width, width, 3, stride=2, padding=1),
        nn.GELU("tanh"),
        nn.Conv2d(width, width, 3, stride=2, padding=1),
        nn.GELU("tanh"),
        nn.Conv2d(width, config.hyper, 1),
    )


class PhotoNets(nn.Module):
    """The nets of the photo codec that compute in float, and its gains."""

    def __init__(self, config: ImagePhotoConfig) -> None:
        super().__init__()
        self.config = config
        self.analysis = Analysis(config)
        self.hyper_analysis = hyper_analysis_net(config)
        self.synthesis = Synthesis(config)
        self.log_gain = Dial(config.latents, math.log(GAINS[0]), math.log(GAINS[1]))
        self.log_inverse = Dial(config.latents, -math.log(GAINS[0]), -math.log(GAINS[1]))

    def gain(self, quality: Tensor) -> Tensor:
        """Steps of the quantiser that a unit of a latent takes, ``[B] -> [B, M, 1, 1]``."""
        return torch.exp(self.log_gain(quality))

    def inverse_gain(self, quality: Tensor) -> Tensor:
        """What a step of the quantiser is worth when it comes back, ``[B] -> [B, M, 1, 1]``."""
        return torch.exp(self.log_inverse(quality))
