"""Residual audio codecs of `transformers`: a sum of one vector a level between two nets.

::

    samples -> encoder -> latents -> codes, level by level          (the quantizer of the model itself)
    codes -> vectors, one a level -> their sum -> decoder -> samples

A sound of at most ``block_seconds`` goes through the nets whole, so its codes are those of the original; of a longer
one, blocks with ``context`` frames on both sides do. Files are decoded in segments with this context.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..audio.base import AudioTokenizer
from ..precision import whole_float32
from .base import ForeignFolder

CONTEXT_SECONDS = 2.0


class ResidualCodec(ForeignFolder, AudioTokenizer):
    """What the adapters of `transformers` have in common. The model is ``net``."""

    extra = "transformers"
    block_seconds: ClassVar[int] = 60

    def set_rate(self, hertz: int, stride: int, seconds: float = CONTEXT_SECONDS) -> None:
        """Say how many samples a second and a frame has, and the seconds of context."""
        self.sample_rate, self.strides = float(hertz), (stride,)
        self.context = max(1, round(seconds * hertz / stride))

    def check_mono(self) -> None:
        """Raises ValueError for a model that takes both channels at once."""
        channels = self.net.config.audio_channels
        if channels != 1:
            raise ValueError(f"{self.name} takes {channels} channels at once, files code them one by one")

    @property
    def levels(self) -> Any:
        """The quantizers of the model, one a level."""
        return self.net.quantizer.layers

    def table(self, level: Any) -> Tensor:
        """The codewords of a level, ``[N, D]``."""
        own: Tensor = level.codebook.embed
        return own

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.net.config.codebook_size,) * len(self.levels)

    def codewords(self) -> list[npt.NDArray[np.float32]]:
        return [self.table(level).detach().float().cpu().numpy() for level in self.levels]

    def latents(self, x: Tensor) -> Tensor:
        """Signals ``[B, 1, n]`` to what the vectors of the codes add up to, ``[B, D, t]``."""
        z: Tensor = self.net.encoder(x)
        return z

    def vectors(self, codes: Tensor) -> Iterator[Tensor]:
        """Codes ``[B, k, t]``, none of them absent, to the vectors ``[B, D, t]`` of each level."""
        return (level.decode(own) for level, own in zip(self.levels, codes.unbind(1), strict=False))

    @abc.abstractmethod
    def quantize(self, z: Tensor) -> Tensor:
        """Latents to codes ``[B, K, t]``."""

    def synthesise(self, z: Tensor) -> Tensor:
        """Sums of vectors to signals ``[B, 1, n]``."""
        x_hat: Tensor = self.net.decoder(z)
        return x_hat

    def encode_codes(self, x: Tensor) -> Tensor:
        with whole_float32(self.device):
            return self.quantize(self.latents(x))

    def decode_codes(self, codes: Tensor) -> Tensor:
        with whole_float32(self.device):
            *_, total = self.sums(codes)
            x_hat = self.synthesise(total)
        lacks = codes.shape[2] * self.stride - x_hat.shape[2]
        return torch.nn.functional.pad(x_hat, (0, lacks))

    def sums(self, codes: Tensor) -> Iterator[Tensor]:
        """Sums of the vectors of 1, 2, ... levels; an absent code adds nothing."""
        total = torch.zeros((), device=codes.device)
        for own, vectors in zip(codes.unbind(1), self.vectors(codes.clamp_min(0)), strict=True):
            total = total + torch.where((own >= 0)[:, None], vectors, 0.0)
            yield total

    def level_errors(self, x: Tensor, codes: Tensor) -> Tensor:
        """Those of the latents."""
        with whole_float32(self.device):
            z = self.latents(x)
            return torch.stack([(z - z_q).square().sum(1) for z_q in self.sums(codes)], 1)
