"""Transforms of the literature, whose state dicts have the names of CompressAI: `g_a.0.weight`, `h_a.2.bias`.

::

    x [B, 3, 16h, 16w] -> g_a -> y [B, M, h, w] -> h_a -> z [B, N, h/4, w/4];      y_hat [B, M, h, w] -> g_s -> x_hat

Written from the papers; with the same weights they compute what the modules of CompressAI do.

Sources: Balle et al. 2018, "Variational image compression with a scale hyperprior", arXiv:1802.01436; Minnen et al.
2018, "Joint autoregressive and hierarchical priors", arXiv:1809.02736; Cheng et al. 2020, "Learned image compression
with discretized Gaussian mixture likelihoods and attention modules", arXiv:2001.01568; names: Begaint et al. 2020,
arXiv:2011.03029.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PEDESTAL = 2.0**-36  # of the squares that beta and gamma are stored as roots of
BETA_MIN = 1e-6


class LowerBound(torch.autograd.Function):
    """``max(x, bound)``; gradients that lead back over the bound pass (Balle et al. 2018, appendix 6.1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp_min(bound)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.where((x >= ctx.bound) | (grad < 0), grad, 0.0), None


class GDN(nn.Module):
    """Generalized divisive normalization: ``x_i / sqrt(beta_i + sum_j gamma_ij x_j^2)``, or times the root if inverse.

    The parameters are roots of ``beta + 2^-36`` and ``gamma + 2^-36``. In float32, also under autocast.

    Source: Balle et al. 2016, arXiv:1511.06281.
    """

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter((torch.ones(channels) + PEDESTAL).sqrt())
        self.gamma = nn.Parameter((0.1 * torch.eye(channels) + PEDESTAL).sqrt())

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            beta = LowerBound.apply(self.beta, (BETA_MIN + PEDESTAL) ** 0.5) ** 2 - PEDESTAL
            gamma = LowerBound.apply(self.gamma, PEDESTAL**0.5) ** 2 - PEDESTAL
            norm = F.conv2d(x**2, gamma[:, :, None, None], beta)
            return x * (norm.sqrt() if self.inverse else norm.rsqrt())


def conv(inputs: int, outputs: int, kernel: int = 5, stride: int = 2) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)


def deconv(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 5, 2, padding=2, output_padding=1)


def subpixel(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv(inputs, 4 * outputs, 3, 1), nn.PixelShuffle(2))


class ResidualDown(nn.Module):
    """To half the resolution: ``gdn(conv(leaky(conv(x)))) + conv1x1(x)`` (Cheng et al. 2020, figure 4)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(inputs, outputs, 3), conv(outputs, outputs, 3, 1)
        self.gdn, self.skip = GDN(outputs), conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.gdn(self.conv2(F.leaky_relu(self.conv1(x)))) + self.skip(x)
        return out


class ResidualUp(nn.Module):
    """To twice the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.subpel_conv, self.upsample = subpixel(channels, channels), subpixel(channels, channels)
        self.conv, self.igdn = conv(channels, channels, 3, 1), GDN(channels, inverse=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.igdn(self.conv(F.leaky_relu(self.subpel_conv(x)))) + self.upsample(x)
        return out


class Residual(nn.Module):
    """Two kernels of 3 x 3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv(channels, channels, 3, 1), conv(channels, channels, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x))))


class ResidualUnit(nn.Module):
    """Part of an :class:`Attention`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv = nn.Sequential(
            conv(channels, half, 1, 1), nn.ReLU(), conv(half, half, 3, 1), nn.ReLU(), conv(half, channels, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv(x))


class Attention(nn.Module):
    """``x + a(x) sigmoid(b(x))``: the mask is made of a neighbourhood, not of the whole picture (figure 5 there)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        a, b = ([ResidualUnit(channels) for _ in range(3)] for _ in range(2))
        self.conv_a, self.conv_b = nn.Sequential(*a), nn.Sequential(*b, conv(channels, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_a(x) * torch.sigmoid(self.conv_b(x))


Parts = tuple[nn.Sequential, nn.Sequential, nn.Sequential]  # g_a, g_s, h_a


def gdn_transforms(n: int, m: int, activation: Callable[[], nn.Module]) -> Parts:
    """Four kernels of 5 x 5 with GDN between them (Balle et al. 2018, figure 4)."""
    g_a = nn.Sequential(conv(3, n), GDN(n), conv(n, n), GDN(n), conv(n, n), GDN(n), conv(n, m))
    g_s = [deconv(m, n), GDN(n, True), deconv(n, n), GDN(n, True), deconv(n, n), GDN(n, True), deconv(n, 3)]
    return g_a, nn.Sequential(*g_s), nn.Sequential(conv(m, n, 3, 1), activation(), conv(n, n), activation(), conv(n, n))


def residual_transforms(n: int, m: int, attention: bool) -> Parts:
    """Residual blocks of 3 x 3 and sub-pixel kernels (Cheng et al. 2020, figure 3). Raises ValueError if N is not M."""
    if n != m:
        raise ValueError(f"y of cheng2020 has as many channels as the nets, got {m} and {n}")
    mask: list[Callable[[], nn.Module]] = [lambda: Attention(n)] if attention else []
    g_a = [
        ResidualDown(3, n), Residual(n), ResidualDown(n, n), *(make() for make in mask), Residual(n),
        ResidualDown(n, n), Residual(n), conv(n, n, 3), *(make() for make in mask),
    ]  # fmt: skip
    g_s = [
        *(make() for make in mask), Residual(n), ResidualUp(n), Residual(n), ResidualUp(n), *(make() for make in mask),
        Residual(n), ResidualUp(n), Residual(n), subpixel(n, 3),
    ]  # fmt: skip
    h_a = [
        conv(n, n, 3, 1), nn.LeakyReLU(), conv(n, n, 3, 1), nn.LeakyReLU(), conv(n, n, 3), nn.LeakyReLU(),
        conv(n, n, 3, 1), nn.LeakyReLU(), conv(n, n, 3),
    ]  # fmt: skip
    return nn.Sequential(*g_a), nn.Sequential(*g_s), nn.Sequential(*h_a)


@dataclass(frozen=True)
class Architecture:
    """Attributes:
    make: N and M to the parts.
    halos: cells of context that a tile needs on each side, of g_a and of g_s.
    magnitudes: whether h_a reads ``|y|``.
    """

    make: Callable[[int, int], Parts]
    halos: tuple[int, int]
    magnitudes: bool = False


# By the names of CompressAI's zoo.
ARCHITECTURES = {
    "bmshj2018-factorized": Architecture(lambda n, m: gdn_transforms(n, m, nn.LeakyReLU), (2, 2)),
    "bmshj2018-hyperprior": Architecture(lambda n, m: gdn_transforms(n, m, nn.ReLU), (2, 2), magnitudes=True),
    "mbt2018-mean": Architecture(lambda n, m: gdn_transforms(n, m, nn.LeakyReLU), (2, 2)),
    "mbt2018": Architecture(lambda n, m: gdn_transforms(n, m, nn.LeakyReLU), (2, 2)),
    "cheng2020-anchor": Architecture(lambda n, m: residual_transforms(n, m, False), (4, 7)),
    "cheng2020-attn": Architecture(lambda n, m: residual_transforms(n, m, True), (8, 11)),
}
