"""Quantizers that are made of others: residual, group-residual and product ones, as :mod:`.quantizers` names them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .quantize.base import Quantizer
from .quantize.codebook import CodebookQuantizer
from .quantize.product import ProductQuantizer
from .quantize.residual import GroupResidualQuantizer, ResidualQuantizer
from .quantizers import MOST_CODEBOOKS, make_quantizer

DEFAULT = "simvq"


def _levels(of: Any, dim: int, sizes: Sequence[int]) -> list[CodebookQuantizer]:
    """A quantizer with a table for each of the sizes. Raises ValueError for a kind without."""
    made = [make_quantizer(of, "quantizer.of", dim=dim, codebook_sizes=(n,)) for n in _bounded(sizes)]
    levels = [level for level in made if isinstance(level, CodebookQuantizer)]
    if len(levels) < len(made):
        raise ValueError("quantizer.of is a kind whose codewords are a table: simvq, vq, ema or fullvq")
    if any(level.codebook_sizes != (n,) for level, n in zip(levels, sizes, strict=True)):
        raise ValueError("quantizer.codebook_sizes has the sizes, quantizer.of none")
    return levels


def _bounded(sizes: Sequence[int]) -> Sequence[int]:
    if not 1 <= len(sizes) <= MOST_CODEBOOKS:
        raise ValueError(f"quantizer.codebook_sizes has 1 to {MOST_CODEBOOKS} entries, got {len(sizes)}")
    return sizes


def residual(codebook_sizes: Sequence[int], dim: int, of: Any = DEFAULT, dropout: float = 1.0) -> ResidualQuantizer:
    """Levels in a row, each for what those before it left over, see :class:`~.quantize.residual.ResidualQuantizer`.

    Args: codebook_sizes: N of every level.  of: kind of the levels, or a section with settings of theirs.
          dropout: share of crops that keep a random number of levels in training.
    """
    return ResidualQuantizer(_levels(of, dim, codebook_sizes), dropout)


def grouped(
    codebook_sizes: Sequence[int], dim: int, groups: int = 2, of: Any = DEFAULT, dropout: float = 1.0
) -> GroupResidualQuantizer:
    """A residual quantizer for each group of channels, see :class:`~.quantize.residual.GroupResidualQuantizer`.

    Args: codebook_sizes: N of every level, the same in all groups.  dim: of all groups.  of, dropout: see
          :func:`residual`.
    """
    if not 1 <= groups * len(codebook_sizes) <= MOST_CODEBOOKS or dim % groups:
        raise ValueError(f"quantizer.groups splits {dim} channels evenly, into 1 or more groups, got {groups}")
    return GroupResidualQuantizer([_levels(of, dim // groups, codebook_sizes) for _ in range(groups)], dropout)


def product(
    of: Any = DEFAULT, groups: int | None = None, codebook_sizes: Sequence[int] = (), dim: int = 0
) -> ProductQuantizer:
    """Groups of channels side by side, see :class:`~.quantize.product.ProductQuantizer`.

    Args: of: kind of the groups, or a section with settings of theirs: any with one codebook.
          groups: their number; that of ``codebook_sizes`` if None.
          codebook_sizes: N of every group, for kinds with tables; others say themselves.
          dim: D of all groups, for kinds with tables.
    """
    count = len(codebook_sizes) if groups is None else groups
    if not 1 <= count <= MOST_CODEBOOKS:
        raise ValueError(f"quantizer.groups is 1 to {MOST_CODEBOOKS}, got {count}")
    made: list[Quantizer] = []
    for i in range(count):
        sizes = codebook_sizes[i : i + 1] if len(codebook_sizes) == count else codebook_sizes
        made.append(make_quantizer(of, "quantizer.of", dim=dim // count, codebook_sizes=tuple(sizes)))
    group = ProductQuantizer(made)
    if any(isinstance(own, CodebookQuantizer) for own in made) and group.dim != dim:
        raise ValueError(f"quantizer.groups splits {dim} channels evenly, got {count}")
    return group
