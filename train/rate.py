"""Entropy-constrained quantization at export: the search of a released model counts the bits of codewords.

Source: Chou, Lookabaugh and Gray 1989. A codeword costs its squared distance plus ``weight * lambda`` times its bits,
with ``lambda = 2 ln 2 D_k / D``, the slope of the rate-distortion curve of a Gaussian source at the squared error D_k
that level k leaves over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..entropy.tables import table_bits
from ..tokenizers.quantize.codebook import CodebookQuantizer
from .trainer import static_prior

ROUNDS = 2  # the penalty changes the statistics that it is made of


@torch.no_grad()
def residual_energies(levels: Sequence[CodebookQuantizer], latents: Iterable[Tensor]) -> list[float]:
    """Mean squared length of what each level leaves over of latents, ``[1, D, *grid]`` each; one number a level."""
    sums, cells = [0.0] * len(levels), 0
    for residual in latents:
        cells += residual[0, 0].numel()
        for k, level in enumerate(levels):
            residual = residual - level.decode(level.encode(residual))
            sums[k] += float(residual.square().sum())
    return [total / cells for total in sums]


def no_penalties(levels: Iterable[CodebookQuantizer]) -> None:
    """Let the search look at squared distances alone."""
    for level in levels:
        level.penalty = torch.zeros(level.codebook_sizes, device=level.codebook.device)


def lambdas(levels: Sequence[CodebookQuantizer], latents: Iterable[Tensor]) -> list[float]:
    """Lambda of each level, see the module's text. The levels must be without penalties."""
    return [2 * math.log(2) * energy / levels[0].dim for energy in residual_energies(levels, latents)]


def set_penalties(
    levels: Sequence[CodebookQuantizer], weight: float, slopes: Sequence[float], count: Callable[[], list[Tensor]]
) -> list[Tensor]:
    """Set the penalties of the search for a weight; returns the histograms of codes chosen so.

    Args: slopes: :func:`lambdas`.  count: histograms of the codes of some media, as the model chooses them now.
    """
    no_penalties(levels)
    counts = count()
    for _ in range(ROUNDS if weight else 0):
        for level, slope, table in zip(levels, slopes, static_prior(counts).tables, strict=True):
            bits = table_bits(table)
            level.penalty = torch.from_numpy(weight * slope * (bits - bits.min())).float().to(level.codebook.device)
        counts = count()
    return counts
