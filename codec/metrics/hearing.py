"""How loud two sounds are in each band of hearing, and whether that rises and falls alike, as a loss.

Mel distances weigh every band and moment alike, the inaudible ones among them. Here bands are as wide as the ear's,
moments as long as a syllable's parts, and what lies far below the loudest band of a moment does not count. Measures of
speech quality look at sounds in this way too (ViSQOL), so they say little about a model that was trained with it that
the loss has not said before: name it where results are shown.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 2048  # samples at 24 kHz: 85 ms
STEP = 480  # 20 ms
BANDS = 32
LOWEST, HIGHEST = 50.0, 10000.0  # Hz, middles of the first and the last band
BELOW = 45.0  # dB under the loudest band of a moment, where nothing counts any more
FAINT = 1e-7  # mean power in a band below which it is silence
STEADY = 2.0  # dB^2: variance below which rise and fall count less and less
LEAST = 0.1  # dB^2, added to variances: their roots have gradients everywhere
TYPICAL = 5.0  # dB that are one unit of the distance


@lru_cache
def band_filters(rate: int, device: torch.device) -> Tensor:
    """Powers of gammatone filters of order 4, ``[WINDOW / 2 + 1, BANDS]``, each with a sum of one.

    Middles are even on the scale of equivalent rectangular bandwidths (Glasberg and Moore 1990, ``ERB = 24.7 (4.37 f /
    1000 + 1)``); the amplitude is ``(1 + ((f - m) / b)^2)^-2`` with ``b = 1.019 ERB`` (Patterson et al. 1992).
    """

    def place(f: float) -> float:
        return 21.4 * math.log10(1 + 0.00437 * f)

    places = torch.linspace(place(LOWEST), place(HIGHEST), BANDS, dtype=torch.float64)
    middles = (10 ** (places / 21.4) - 1) / 0.00437
    widths = 1.019 * 24.7 * (1 + 0.00437 * middles)
    frequency = torch.linspace(0, rate / 2, WINDOW // 2 + 1, dtype=torch.float64)[:, None]
    power = (1 + ((frequency - middles) / widths) ** 2) ** -4
    return (power / power.sum(0)).float().to(device)


def band_levels(x: Tensor, rate: int) -> Tensor:
    """Mean power of ``x [B, n]`` in every band and moment, in dB: ``[B, BANDS, 1 + n / STEP]``."""
    hann = torch.hann_window(WINDOW, device=x.device)
    spectrum = torch.stft(x.float(), WINDOW, STEP, window=hann, pad_mode="constant", return_complex=True)
    power = torch.view_as_real(spectrum).square().sum(-1) / hann.square().sum()
    return 10 * torch.log10(power.transpose(1, 2) @ band_filters(rate, x.device) + FAINT).transpose(1, 2)


def hearing_distance(x: Tensor, x_hat: Tensor, rate: int) -> Tensor:
    """Differences of levels, and dissimilarity of their rise and fall around each band and moment, both in 0 and up.

    ``[B, n]`` each to ``[B]``: the mean difference over ``TYPICAL`` dB, plus one minus the correlation of the levels in
    windows of 3 x 3 bands and moments (the structure term of NSIM: Hines and Harte 2012, with a constant for steady
    sounds that fits levels in dB).
    """
    a, b = band_levels(x, rate), band_levels(x_hat, rate)
    floor = a.amax(1, keepdim=True) - BELOW
    a, b = a.maximum(floor), b.maximum(floor)

    def around(levels: Tensor) -> Tensor:  # weights 1 2 1 along both axes
        padded = F.pad(levels[:, None], (1, 1, 1, 1), mode="replicate")
        return F.avg_pool2d(F.avg_pool2d(padded, 2, 1), 2, 1)[:, 0]

    mean_a, mean_b = around(a), around(b)
    var_a, var_b = ((around(v.square()) - m.square()).clamp(min=0) + LEAST for v, m in ((a, mean_a), (b, mean_b)))
    covariance = around(a * b) - mean_a * mean_b + LEAST
    alike = (covariance + STEADY) / ((var_a * var_b).sqrt() + STEADY)
    return (a - b).abs().mean((1, 2)) / TYPICAL + (1 - alike).mean((1, 2))
