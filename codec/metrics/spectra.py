"""How far two sounds are apart, most of it in their spectra, for training and for benchmarks; on any device.

The filters are made here and not taken from torchaudio, which cannot be imported beside a CPU-only PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

MEL_SCALES = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))  # window, mel bands
FLOOR = 1e-5  # of magnitudes, before their logarithm


def hertz_to_mel(frequency: Tensor) -> Tensor:
    """Slaney's scale (Auditory Toolbox 1998): straight below 1000 Hz, logarithmic above."""
    straight = frequency * 3 / 200
    bent = 15 + 27 * torch.log(frequency.clamp(min=1000) / 1000) / math.log(6.4)
    return torch.where(frequency < 1000, straight, bent)


def mel_to_hertz(mel: Tensor) -> Tensor:
    """Inverse of :func:`hertz_to_mel`."""
    return torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * math.log(6.4) / 27))


@lru_cache
def mel_filters(window: int, bands: int, rate: int, device: torch.device) -> Tensor:
    """Triangles of equal area, ``[window / 2 + 1, bands]`` (as librosa's and torchaudio's with norm "slaney").

    A band too narrow to hold a frequency of the FFT is zero everywhere.
    """
    top = hertz_to_mel(torch.tensor(rate / 2, dtype=torch.float64))
    edges = mel_to_hertz(torch.linspace(0, 1, bands + 2, dtype=torch.float64) * top)
    frequency = torch.linspace(0, rate / 2, window // 2 + 1, dtype=torch.float64)[:, None]
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    triangle = torch.minimum((frequency - low) / (middle - low), (high - frequency) / (high - middle)).clamp(min=0)
    return (triangle * 2 / (high - low)).float().to(device)


def magnitudes(x: Tensor, window: int) -> Tensor:
    """``[B, n]`` to the magnitudes of its short-time spectra ``[B, window / 2 + 1, 1 + 4 n / window]``, Hann window."""
    hann = torch.hann_window(window, device=x.device)
    spectrum = torch.stft(x.float(), window, window // 4, window=hann, pad_mode="constant", return_complex=True)
    return torch.view_as_real(spectrum).square().sum(-1).clamp(min=FLOOR**2).sqrt()


def mel_distance(x: Tensor, x_hat: Tensor, rate: int, scales: Sequence[tuple[int, int]] = MEL_SCALES) -> Tensor:
    """Mean difference of log10 mel magnitudes over some windows, ``[B, n]`` each to ``[B]``; lower is better.

    Args:   scales: window and mel bands of each.

    Source: DAC (Kumar et al. 2023, arXiv:2306.06546), section 3.4: windows of 32 to 2048 samples, 5 to 320 bands. We
            differ in the floor of the magnitudes only.
    """
    total = x.new_zeros(len(x))
    for window, bands in scales:
        filters = mel_filters(window, bands, rate, x.device)
        a, b = (torch.log10((magnitudes(s, window).transpose(1, 2) @ filters).clamp(min=FLOOR)) for s in (x, x_hat))
        total = total + (a - b).abs().mean((1, 2))
    return total / len(scales)


def stft_distance(x: Tensor, x_hat: Tensor, windows: tuple[int, ...] = (512, 1024, 2048)) -> Tensor:
    """Spectral convergence plus difference of log magnitudes, mean over windows, ``[B, n]`` each to ``[B]``.

    Source: Yamamoto et al. 2020 (Parallel WaveGAN, arXiv:1910.11480), eq. (4) to (6).
    """
    total = x.new_zeros(len(x))
    for window in windows:
        a, b = magnitudes(x, window), magnitudes(x_hat, window)
        convergence = (a - b).flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1).clamp(min=1e-3)
        total = total + convergence + (a.log() - b.log()).abs().mean((1, 2))
    return total / len(windows)


def si_sdr(x: Tensor, x_hat: Tensor) -> float:
    """Scale-invariant ratio of signal to distortion in dB, ``[n]`` each (Le Roux et al. 2019, arXiv:1811.02508)."""
    target = (x @ x_hat) / (x @ x).clamp(min=1e-8) * x
    return 10 * math.log10(float(target.square().sum() + 1e-8) / float((x_hat - target).square().sum() + 1e-8))
