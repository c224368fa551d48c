"""Layers and sizes that tokenizers of pictures share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..quantize.base import Quantizer
from ..quantize.codebook import CodebookQuantizer

STRIDE = 16
PATCH = 4  # the nets work on 4 x 4 patches: the stem and the head are pixel (un)shuffles


class ResidualBlock(nn.Module):
    """``x + conv1x1(gelu(conv3x3(x)))`` without normalisation; starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 3, padding=1)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.pointwise.weight)
        assert self.pointwise.bias is not None
        nn.init.zeros_(self.pointwise.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pointwise(F.gelu(self.spatial(x), approximate="tanh"))


M = TypeVar("M", bound=nn.Module)


def channels_last(module: M) -> M:
    """Lay kernels out as NHWC, in place: twice as fast as NCHW on CPUs, and what tensor cores want."""
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return module


def blocks(channels: int, n: int) -> list[nn.Module]:
    return [ResidualBlock(channels) for _ in range(n)]


def halo_cells(blocks_per_stride: Sequence[int], extra: int) -> int:
    """Radius of the receptive field in grid cells, rounded up.

    A 3 x 3 convolution at stride s reaches s pixels further; stride-2 convolutions and shuffles stay inside a cell.
    ``extra`` is the reach in pixels of the 3 x 3 convolutions outside the blocks.
    """
    n4, n8, n16 = blocks_per_stride
    return -(-(4 * n4 + 8 * n8 + 16 * n16 + extra) // STRIDE)


class ResidualGrid:
    """What a tokenizer has whose nets make a grid of latents for a quantizer."""

    config: Any
    quantizer: Quantizer

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return self.quantizer.codebook_sizes

    @property
    def codebooks(self) -> list[CodebookQuantizer]:
        """The quantizer's levels, coarse to fine; none if they are no tables in a row."""
        return [level for level in self.quantizer.cascade if isinstance(level, CodebookQuantizer)]

    @property
    def analysis_halo(self) -> int:
        """Cells of context that a tile needs on each side for the codes of the whole picture."""
        return halo_cells(self.config.analysis_blocks, extra=PATCH)

    @property
    def synthesis_halo(self) -> int:
        """Cells of context that a tile of codes needs on each side for the pixels of the whole picture."""
        return halo_cells(self.config.synthesis_blocks, extra=PATCH + STRIDE)

    def codewords(self) -> list[npt.NDArray[np.float32]] | None:
        return self.quantizer.tables()
