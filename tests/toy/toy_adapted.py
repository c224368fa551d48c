"""An autoencoder around ResidualVQ of `vector-quantize-pytorch` that is not ours, as somebody else would package it.

It is all that a package needs beside an entry point::

    [project.entry-points."tokodec.tokenizers"]
    ShopVQ = "toy_adapted:KIND"
"""

from dataclasses import dataclass

from torch import nn
from vector_quantize_pytorch import ResidualVQ

import tokodec
from tokodec.tokenizers.adapters.vq_pytorch import Modules, VQImage

KIND = tokodec.TokenizerKind("toy_adapted", "image")


@dataclass(frozen=True)
class ShopConfig:
    dim: int = 8
    codebook_size: int = 64
    levels: int = 3


class ShopVQ(VQImage):
    """Cells of 8 x 8 pixels."""

    config_class = ShopConfig
    strides = (8, 8)

    def build(self) -> Modules:
        c = self.config
        quantizer = ResidualVQ(dim=c.dim, codebook_size=c.codebook_size, num_quantizers=c.levels)
        return nn.Conv2d(3, c.dim, 8, 8), quantizer, nn.ConvTranspose2d(c.dim, 3, 8, 8)
