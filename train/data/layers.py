"""Clips with things that move in front of others, made of clips in which a camera moves over pictures.

What real clips have too little of where they are few: borders of motion, what they cover and uncover, light that
changes, blur and noise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

EDGES = 4  # cells of the noise that outlines are the level lines of, along both axes
SHARP = 12.0  # of an outline: how fast it goes from one side to the other
LIGHT = 0.1  # three times the standard deviation of the change of brightness over a clip
NOISE = 0.02  # likewise, of noise
FADED = 0.3  # share of clips in which light changes; of those with noise, and those out of focus at first or last


def layered(back: Tensor, front: Tensor, generator: torch.Generator) -> Tensor:
    """Things cut out of ``front``, moving as its camera does, before ``back``: ``[n, 3, T, H, W]`` in [0, 1].

    Args: front: ``[n, 4, T, H, W]``, the last channel the heights of :func:`outlines`, moved with the picture.
    """
    n = len(back)
    level = 0.35 + 0.3 * _rand(generator, n)
    mask = torch.sigmoid(SHARP * 4 * (front[:, 3:] - level))
    x = back + mask * (front[:, :3] - back)
    moments = torch.linspace(0, 1, x.shape[2], device=x.device)[:, None, None]
    light = _normal(generator, n) * LIGHT / 3 * (_rand(generator, n) < FADED)
    x = x * (1 + light * moments)
    blurred = F.avg_pool3d(F.pad(x, (2, 2, 2, 2, 0, 0), mode="replicate"), (1, 5, 5), stride=1)
    focus = (_rand(generator, n) < FADED) * torch.where(_rand(generator, n) < 0.5, moments, 1 - moments)
    x = torch.lerp(x, blurred, focus.expand_as(x))
    strength = _normal(generator, n).abs() * NOISE / 3 * (_rand(generator, n) < FADED)
    grain = torch.randn(x.shape, device=x.device, generator=generator)
    return (x + strength * grain).clamp(0, 1)


def outlines(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Smooth heights ``[n, 1, size, size]`` in 0..1, whose level lines are outlines of things."""
    coarse = torch.rand(n, 1, EDGES, EDGES, device=generator.device, generator=generator)
    return F.interpolate(coarse, size, mode="bicubic", align_corners=True).clamp(0, 1)


def _rand(generator: torch.Generator, n: int) -> Tensor:
    return torch.rand(n, 1, 1, 1, 1, device=generator.device, generator=generator)


def _normal(generator: torch.Generator, n: int) -> Tensor:
    return torch.randn(n, 1, 1, 1, 1, device=generator.device, generator=generator).clamp(-3, 3)
