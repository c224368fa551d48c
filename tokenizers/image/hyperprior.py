"""Codecs of the literature with an exact entropy model: transforms of CompressAI's models, all else as `image-photo`.

A hyperprior of CompressAI predicts its tables by a network in floats, which differ from machine to machine, so that the
file of one machine may be noise on another. Here the prediction is that of `image-photo`, in integers
(:mod:`...entropy.hyperprior`), from hyper latents as before; g_a, g_s and h_a are those of the original, and gains for
each channel make the rate continuous. `train/photo_compressai.py` makes such models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .photo import ImagePhoto
from .photo_nets import DISTORTIONS, Dial
from .transforms import ARCHITECTURES

MOST = 4096  # channels of a layer


@dataclass(frozen=True)
class ImageHyperpriorConfig:
    """Sizes of the nets of an ImageHyperprior."""

    architecture: str  # name in CompressAI's zoo
    channels: int = 128  # N, of the nets, and of z
    latents: int = 192  # M, channels of y
    distortion: str = "mse"  # that of the training, see ImagePhotoConfig
    rate_weights: tuple[float, ...] = (0.001, 0.2)

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"unknown architecture {self.architecture!r}: {', '.join(ARCHITECTURES)}")
        if not 1 <= min(self.channels, self.latents) <= max(self.channels, self.latents) <= MOST:
            raise ValueError(f"channels and latents are 1 to {MOST}")
        if self.distortion not in DISTORTIONS:
            raise ValueError(f"unknown distortion {self.distortion!r}: {' or '.join(DISTORTIONS)}")
        if len(self.rate_weights) < 2 or not 0 < min(self.rate_weights) <= max(self.rate_weights) < math.inf:
            raise ValueError("rate_weights are two positive numbers or more, at quality 0 to 100")

    @property
    def hyper(self) -> int:
        """Channels of z."""
        return self.channels


class HyperpriorNets(nn.Module):
    """The nets that compute in float, and gains; what :class:`~.photo_nets.PhotoNets` are to `image-photo`.

    Attributes: order: ``[M]``, the channels of g_a in the order in which they are coded.
    """

    order: Tensor

    def __init__(self, config: ImageHyperpriorConfig) -> None:
        super().__init__()
        self.config = config
        own = ARCHITECTURES[config.architecture]
        self.magnitudes = own.magnitudes
        self.g_a, self.g_s, self.h_a = own.make(config.channels, config.latents)
        self.log_gain, self.log_inverse = Dial(config.latents), Dial(config.latents)
        self.register_buffer("order", torch.arange(config.latents))

    def analysis(self, x: Tensor) -> Tensor:
        """Pictures ``[B, 3, 16h, 16w]`` in [-1, 1] to ``y [B, M, h, w]``."""
        y: Tensor = self.g_a((x + 1) / 2)
        return y[:, self.order]

    def hyper_analysis(self, y: Tensor) -> Tensor:
        """``y [B, M, h, w]`` in steps of the quantiser to ``z [B, N, h/4, w/4]``."""
        y = y[:, self.order.argsort()]
        z: Tensor = self.h_a(y.abs() if self.magnitudes else y)
        return z

    def synthesis(self, y: Tensor, quality: Tensor) -> Tensor:
        """``y [B, M, h, w]`` to pictures ``[B, 3, 16h, 16w]`` in [-1, 1]; the quality is in y alone."""
        return 2 * self.g_s(y[:, self.order.argsort()]) - 1

    def gain(self, quality: Tensor) -> Tensor:
        """Steps of the quantiser that a unit of a latent takes, ``[B] -> [B, M, 1, 1]``."""
        return torch.exp(self.log_gain(quality))

    def inverse_gain(self, quality: Tensor) -> Tensor:
        """What a step of the quantiser is worth when it comes back, ``[B] -> [B, M, 1, 1]``."""
        return torch.exp(self.log_inverse(quality))


class ImageHyperprior(ImagePhoto):
    """Photographs by the transforms of a model of CompressAI, see the module's text. Weights are kept as trained."""

    config_class = ImageHyperpriorConfig
    nets_class: ClassVar[Callable[[Any], Any]] = HyperpriorNets
    int8_weights: ClassVar[tuple[str, ...]] = ()
    whole_weights = True
    synthesis_weights = ("nets.g_s.", "nets.log_inverse.")

    config: ImageHyperpriorConfig  # type: ignore[assignment]

    @property
    def analysis_halo(self) -> int:
        return ARCHITECTURES[self.config.architecture].halos[0]

    @property
    def synthesis_halo(self) -> int:
        return ARCHITECTURES[self.config.architecture].halos[1]
