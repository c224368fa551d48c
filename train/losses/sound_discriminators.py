"""Discriminators of sound: of samples folded by a period, and of complex spectra."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

Judgement = tuple[Tensor, list[Tensor]]  # logits and the features of every layer
PERIODS = (2, 3, 5, 7, 11)
WINDOWS = (512, 1024, 2048)


def _judged(x: Tensor, layers: nn.ModuleList, last: nn.Module) -> Judgement:
    features = []
    for layer in layers:
        x = F.leaky_relu(layer(x), 0.1)
        features.append(x)
    return last(x), features


class PeriodDiscriminator(nn.Module):
    """Samples as a picture of rows of one period (HiFi-GAN, Kong et al. 2020, arXiv:2010.05646, section 2.3)."""

    def __init__(self, period: int, width: int) -> None:
        super().__init__()
        self.period = period
        widths = [1, width, 2 * width, 4 * width, 8 * width]
        pairs = pairwise(widths)
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), stride=(3, 1), padding=(2, 0))) for a, b in pairs
        )
        self.last = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, x: Tensor) -> Judgement:
        x = F.pad(x, (0, -x.shape[2] % self.period)).unflatten(2, (-1, self.period))
        x = x.contiguous(memory_format=torch.channels_last)
        return _judged(x, self.layers, self.last)


class SpectrumDiscriminator(nn.Module):
    """Real and imaginary parts of a short-time spectrum (EnCodec, Defossez et al. 2022, arXiv:2210.13438).

    We differ: no dilation over time, which has no fast kernels in bfloat16.
    """

    hann: Tensor

    def __init__(self, window: int, width: int) -> None:
        super().__init__()
        self.window = window
        self.register_buffer("hann", torch.hann_window(window) / (window / 8) ** 0.5, persistent=False)
        layers = [nn.Conv2d(2, width, (9, 3), padding=(4, 1))]
        layers += [nn.Conv2d(width, width, (9, 3), stride=(2, 1), padding=(4, 1)) for _ in range(3)]
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)
        self.last = weight_norm(nn.Conv2d(width, 1, (3, 3), padding=(1, 1)))

    def forward(self, x: Tensor) -> Judgement:
        with torch.autocast(x.device.type, enabled=False):
            spectrum = torch.stft(
                x[:, 0].float(), self.window, self.window // 4, window=self.hann, pad_mode="constant",
                return_complex=True,
            )  # fmt: skip
            x = torch.view_as_real(spectrum).permute(0, 3, 1, 2)  # [B, 2, frequencies, moments]
            x = x.contiguous(memory_format=torch.channels_last)
        return _judged(x, self.layers, self.last)


class SoundDiscriminators(nn.Module):
    """All discriminators; ``[B, 1, n]`` to a judgement each."""

    def __init__(self, width: int = 16, periods: Sequence[int] = PERIODS, windows: Sequence[int] = WINDOWS) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(
            [*(PeriodDiscriminator(p, width) for p in periods), *(SpectrumDiscriminator(w, 2 * width) for w in windows)]
        )

    def forward(self, x: Tensor) -> list[Judgement]:
        return [judge(x) for judge in self.discriminators]


def discriminator_loss(real: list[Judgement], fake: list[Judgement]) -> Tensor:
    """Loss of the discriminators, least squares: real to 1, fake to 0 (Mao et al. 2017, arXiv:1611.04076)."""
    total = torch.zeros((), device=real[0][0].device)
    for (a, _), (b, _) in zip(real, fake, strict=True):
        total = total + (1 - a.float()).square().mean() + b.float().square().mean()
    return total / len(real)


def told_apart(real: list[Judgement], fake: list[Judgement]) -> Tensor:
    """Share of real and fake places that discriminators take for what they are, mean over discriminators; a scalar."""
    pairs = [((a.detach() > 0.5).float().mean(), (b.detach() < 0.5).float().mean())
             for (a, _), (b, _) in zip(real, fake, strict=True)]  # fmt: skip
    return torch.stack([(a + b) / 2 for a, b in pairs]).mean()


def generator_loss(fake: list[Judgement]) -> Tensor:
    """Loss of the generator: fake to 1 (Mao et al. 2017, arXiv:1611.04076)."""
    return torch.stack([(1 - logits.float()).square().mean() for logits, _ in fake]).mean()


def feature_loss(real: list[Judgement], fake: list[Judgement]) -> Tensor:
    """Mean difference of features, in units of the real ones' mean size (Larsen et al. 2016, arXiv:1512.09300)."""
    terms = []
    for (_, a), (_, b) in zip(real, fake, strict=True):
        terms += [
            (x.detach().float() - y.float()).abs().mean() / (x.detach().float().abs().mean() + 1e-4)
            for x, y in zip(a, b, strict=True)
        ]
    return torch.stack(terms).mean()
