"""Models of CompressAI whose tables are part of their weights: `bmshj2018-factorized`.

::

    x -> g_a -> y [B, M, h, w] -> round(y - medians) -> symbols -> codes, a level for each of the M latents
    codes -> symbols + medians -> g_s -> x_hat

Symbols are those that the model's own `compress` codes. Here codes count from the lowest value of a table that was made
wide enough for whatever a picture holds, see :mod:`...entropy.factorized`.

Source: Balle et al. 2018, "Variational Image Compression with a Scale Hyperprior", arXiv:1802.01436.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ...entropy.factorized import SPARE, FactorizedPrior, spread_table
from ..precision import whole_float32
from .base import AdaptedImage, WholeWeights, needed

PACKAGE, EXTRA = "compressai.models", "compressai"
ARCHITECTURES = ("FactorizedPrior", "FactorizedPriorReLU")
TABLES = ("_quantized_cdf", "_cdf_length", "_offset")  # buffers of an entropy bottleneck


@dataclass(frozen=True)
class FactorizedConfig:
    """architecture: a class of `compressai.models`.  channels, latents: N and M, of the nets and of y."""

    architecture: str
    channels: int
    latents: int


def check_fixed(net: nn.Module) -> None:
    """Raise ValueError for a model that has no tables, or none that are the same on every machine."""
    kind = type(net).__name__
    for name, part in net.named_modules():
        if any(base.__name__ == "GaussianConditional" for base in type(part).__mro__):
            raise ValueError(
                f"{kind} takes the tables of its {name} from the output of a network in floats, which differs from"
                " machine to machine, and one table that differs ruins a file: only models with fixed tables"
                " (bmshj2018-factorized) have files"
            )
    bottleneck = getattr(net, "entropy_bottleneck", None)
    if not all(hasattr(net, part) for part in ("g_a", "g_s", "N", "M")) or not hasattr(bottleneck, "quantiles"):
        raise ValueError(f"{kind} is no FactorizedPrior of CompressAI: it wants g_a, g_s and an entropy_bottleneck")
    if not getattr(bottleneck, TABLES[0]).numel():
        raise ValueError(f"{kind} has no tables yet: call its update() first")


class FactorizedImage(WholeWeights, AdaptedImage):
    """Pictures by a FactorizedPrior of CompressAI, which is ``net``. Its prior is :attr:`entropy`."""

    config_class, extra = FactorizedConfig, EXTRA
    needs_prior = True  # codes of fixed lengths would be of 11 bits and more, nearly all of them unused

    def __init__(self, config: FactorizedConfig, name: str = "bmshj2018-factorized", net: Any = None) -> None:
        super().__init__(config, name)
        if net is None:
            if config.architecture not in ARCHITECTURES:
                raise ValueError(f"{config.architecture} is code: adapt_compressai makes a tokenizer of it")
            net = getattr(needed(PACKAGE, EXTRA), config.architecture)(config.channels, config.latents)
        self.net = net
        self.strides = (net.downsampling_factor,) * 2
        self._entropy: tuple[Tensor, FactorizedPrior] | None = None

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *more: Any) -> None:
        """Tables are as long as those of the file: a model that was not updated has none."""
        bottleneck = self.net.entropy_bottleneck
        for name in TABLES:
            held = state_dict.get(f"{prefix}net.entropy_bottleneck.{name}")
            if held is not None:
                setattr(bottleneck, name, torch.empty_like(held, device=self.device))
        super()._load_from_state_dict(state_dict, prefix, *more)

    def _tables(self) -> Iterator[npt.NDArray[np.integer]]:
        """For each latent the frequencies of its values, and the one of all others, which sum to 2^16."""
        cdf, lengths, offset = (getattr(self.net.entropy_bottleneck, name).cpu() for name in TABLES)
        if cdf.ndim != 2 or not lengths.shape == offset.shape == cdf.shape[:1] == (self.config.latents,):
            raise ValueError(f"{self.name} has no tables of {self.config.latents} latents: update() makes them")
        return (row[:n].diff().numpy() for row, n in zip(cdf, lengths.tolist(), strict=True))

    @property
    def entropy(self) -> FactorizedPrior:
        """The entropy model, of the tables that the module has now."""
        cdf = self.net.entropy_bottleneck._quantized_cdf
        if self._entropy is None or self._entropy[0] is not cdf:
            self._entropy = cdf, FactorizedPrior([spread_table(own) for own in self._tables()]).hashed()
        return self._entropy[1]

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return tuple(len(own) - 1 + 2 * SPARE for own in self._tables())

    def _ends(self) -> tuple[Tensor, Tensor]:
        """The value of code 0 of each latent, and its median, ``[M, 1, 1]`` both."""
        bottleneck = self.net.entropy_bottleneck
        return bottleneck._offset.long()[:, None, None] - SPARE, bottleneck.quantiles[:, :, 1:2].detach()

    def encode_codes(self, x: Tensor) -> Tensor:
        low, medians = self._ends()
        with whole_float32(self.device):
            codes = (self.net.g_a(x) - medians).round().int().long() - low
        sizes = torch.tensor(self.codebook_sizes, device=codes.device)[:, None, None]
        outside = ((codes < 0) | (codes >= sizes)).nonzero()
        if len(outside):
            m = int(outside[0, 1])
            raise ValueError(f"{self.name}: a latent of channel {m} is more than {SPARE} beyond its table")
        return codes

    def decode_codes(self, codes: Tensor) -> Tensor:
        low, medians = self._ends()
        n = codes.shape[1]
        y_hat = medians.expand(len(codes), -1, *codes.shape[2:]).clone()
        y_hat[:, :n] = torch.where(codes >= 0, (codes + low[:n]).float() + medians[:n], y_hat[:, :n])
        with whole_float32(self.device):
            x_hat: Tensor = self.net.g_s(y_hat).clamp(0, 1)
        return x_hat


def adapt_compressai(net: nn.Module, name: str = "bmshj2018-factorized") -> FactorizedImage:
    """A tokenizer around a model of CompressAI whose tables are fixed, re-coded by our exact coder.

    >>> tokenizer = tokodec.adapt_compressai(compressai.zoo.bmshj2018_factorized(quality=3, pretrained=True))
    >>> tokodec.encode_file("photo.png", "photo.tok", model=tokenizer)

    Args:    net: `FactorizedPrior`, or another module with its parts, whose tables are up to date.  name: for files.
    Returns: a tokenizer of the module itself, not of a copy; in evaluation mode.
    Raises:  ValueError for other models; hyperpriors are refused by name, with the reason.
    """
    check_fixed(net)
    made: Any = net
    return FactorizedImage(FactorizedConfig(type(net).__name__, made.N, made.M), name, net).eval()
