"""`DacModel` of `transformers`, such as descript/dac_24khz.

Source: Kumar et al. 2023, "High-Fidelity Audio Compression with Improved RVQGAN", arXiv:2306.06546.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from .audio import ResidualCodec


class Dac(ResidualCodec):
    """Mono; silence fills the last frame, as in its feature extractor."""

    module = "transformers:DacModel"

    def __init__(self, net: Any, name: str = "dac") -> None:
        super().__init__(net, name)
        self.set_rate(net.config.sampling_rate, net.config.hop_length)

    @property
    def levels(self) -> Any:
        return self.net.quantizer.quantizers

    def table(self, level: Any) -> Tensor:
        own: Tensor = level.codebook.weight
        return own

    def quantize(self, z: Tensor) -> Tensor:
        before = self.net.quantizer.training
        try:
            codes: Tensor = self.net.quantizer.eval()(z)[1]  # in training it leaves levels out
        finally:
            self.net.quantizer.train(before)
        return codes

    def vectors(self, codes: Tensor) -> Iterator[Tensor]:
        for level, own in zip(self.levels, codes.unbind(1), strict=False):
            yield level.out_proj(level.codebook(own).transpose(1, 2))
