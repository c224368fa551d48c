"""Residual search along several paths: the codeword that is nearest now need not lead to the nearest sum.

Level by level the best few of all continuations are kept::

    paths [b] x codewords of the next level [N] -> errors [b N] -> the b smallest

With one path it is the search of :func:`~.nearest.residual_codewords`. Bitstream-compatible.

Source: multipath search, Barnes, Rizvi and Nasrabadi 1996, "Advances in residual vector quantization: a review",
IEEE Trans. Image Processing 5(2), section V; beam search for sums of codewords: Babenko and Lempitsky 2014, "Additive
quantization for extreme vector compression", CVPR, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..precision import no_autocast
from . import nearest_cpu
from .nearest_cpu import Prepared

# Errors of a block: 4 MiB of float32 stay in the caches of a server core, GPUs want more work at a time.
BLOCK = {"cpu": 1 << 20, "cuda": 1 << 26}


class _Level(NamedTuple):
    """A codebook and what makes its errors: ``|z - c|^2 = |z - center|^2 + 2 ((z - center) @ columns + bias)``."""

    codebook: Tensor  # [N, D]
    penalty: Tensor | None  # [N]
    columns: Tensor  # [D, N'], N' >= N
    bias: Tensor  # [N'], infinite for what cannot be chosen
    center: Tensor | float  # [D]


def _level(codebook: Tensor | Prepared, penalty: Tensor | None) -> _Level:
    if isinstance(codebook, Prepared):
        if penalty is not None:
            raise ValueError("a prepared codebook has a penalty of its own")
        center = 0.0 if codebook.table is None else codebook.table.center
        return _Level(codebook.codebook.float(), codebook.penalty, codebook.columns, codebook.bias, center)
    codewords = codebook.detach().float()
    bias = codewords.square().sum(1) / 2
    if penalty is not None:
        penalty = penalty.detach().float()
        bias = bias + penalty / 2
    valid = bias.isfinite()
    codewords = torch.where(valid[:, None], codewords, 0.0)
    return _Level(codewords, penalty, -codewords.T, torch.where(valid, bias, torch.inf), 0.0)


def beam_codewords(
    z: Tensor,
    codebooks: Sequence[Tensor | Prepared],
    beams: int,
    seen: int | None = None,
    penalties: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Indices ``[M, K]`` int64 of a residual search that keeps ``beams`` paths.

    Args:
        z: ``[M, D]`` latent vectors, searched in float32.
        codebooks: K codebooks ``[N_k, D]``, coarse to fine; on a CPU :func:`~.nearest.prepare_codebook` makes them
            quick to search for few rows.
        beams: paths that are kept, 1 or more. Time and memory grow with their number.
        seen: the first so many levels are those of the nearest sum of so many codewords that was found, for codes that
            will be cut off there; the levels after them go on from it. None: all K are of the nearest sum.
        penalties: for each level None or ``[N_k]``, added to squared distances. A prepared codebook has its own.

    A row with a NaN or an infinity gets zeros; a codeword with one is never chosen where there is another.
    Errors of paths are compared as float32 has them: those that differ by less than its rounding can come either way.
    """
    if beams < 1 or (seen is not None and seen < 1):
        raise ValueError(f"paths and levels are counted from 1, got {beams} and {seen}")
    penalties = [None] * len(codebooks) if penalties is None else penalties
    with torch.no_grad(), no_autocast(z.device):
        z = z.detach().float()
        if torch.compiler.is_compiling():
            tables = [own.detach() for own in codebooks if isinstance(own, Tensor)]
            if len(tables) < len(codebooks):
                raise ValueError("traced code searches codebooks, not prepared ones")
            added = [own.new_zeros(len(own)) if p is None else p for own, p in zip(tables, penalties, strict=True)]
            return _operator(z, tables, added, beams, seen)
        return _search_blocks(z, [_level(*own) for own in zip(codebooks, penalties, strict=True)], beams, seen)


def _search_blocks(z: Tensor, levels: Sequence[_Level], beams: int, seen: int | None) -> Tensor:
    """As :func:`beam_codewords`, block by block of rows. Call it under ``no_grad``, without autocast."""
    if not levels or not len(z):
        return torch.zeros(len(z), len(levels), dtype=torch.int64, device=z.device)
    largest = max(own.columns.shape[1] for own in levels)
    rows = max(1, BLOCK.get(z.device.type, BLOCK["cpu"]) // (beams * largest))
    cut = len(levels) if seen is None else min(seen, len(levels))
    found = []
    for block in z.split(rows):
        codes, rest = _search(block, levels[:cut], beams)
        if cut < len(levels):
            codes = torch.cat([codes, _search(rest, levels[cut:], beams)[0]], 1)
        found.append(codes)
    return torch.cat(found)


# One opaque operator to torch.compile, as the search of one codebook is.
@torch.library.custom_op("tokodec::beam_codewords", mutates_args=())
def _operator(
    z: Tensor, codebooks: Sequence[Tensor], penalties: Sequence[Tensor], beams: int, seen: int | None
) -> Tensor:
    with torch.no_grad(), no_autocast(z.device):
        levels = [_level(*own) for own in zip(codebooks, penalties, strict=True)]
        return _search_blocks(z, levels, beams, seen)


@_operator.register_fake
def _(z: Tensor, codebooks: Sequence[Tensor], penalties: Sequence[Tensor], beams: int, seen: int | None) -> Tensor:
    return z.new_empty(z.shape[0], len(codebooks), dtype=torch.int64)


def _search(z: Tensor, levels: Sequence[_Level], beams: int) -> tuple[Tensor, Tensor]:
    """The best path's codes ``[M, K]`` and what they leave of ``z [M, D]``."""
    m, dim = z.shape
    exact = nearest_cpu._float32_is_float32(z.device.type)
    residual = z[:, None]  # [M, b, D]
    penalties = z.new_zeros(m, 1)  # [M, b] of the codewords so far
    codes = z.new_zeros(m, 1, 0, dtype=torch.int64)  # [M, b, k]
    for own in levels:
        paths = residual - own.center
        columns, bias = (own.columns, own.bias) if exact else (own.columns.double(), own.bias.double())
        scores = torch.addmm(bias, paths.reshape(-1, dim).to(columns.dtype), columns).view(m, paths.shape[1], -1)
        # |residual - codeword|^2 = |residual - center|^2 + 2 score
        errors = 2 * scores + (paths.square().sum(2) + penalties)[:, :, None]
        n = errors.shape[2]
        found, best = errors.flatten(1).topk(min(beams, paths.shape[1] * n), dim=1, largest=False)  # [M, b']
        there = found.isfinite()  # not so where fewer codewords can be chosen than paths are kept
        parent, code = best // n, torch.where(there, best % n, 0)
        codes = torch.cat([codes.gather(1, parent[:, :, None].expand(-1, -1, codes.shape[2])), code[:, :, None]], 2)
        codewords = torch.where(there[:, :, None], own.codebook[code], 0.0)
        residual = residual.gather(1, parent[:, :, None].expand(-1, -1, dim)) - codewords
        penalties = torch.where(there, penalties.gather(1, parent), torch.inf)
        if own.penalty is not None:
            penalties = penalties + own.penalty[code]
    last = (residual.square().sum(2) + penalties).argmin(1)[:, None, None]
    return (
        codes.gather(1, last.expand(-1, 1, codes.shape[2]))[:, 0],
        residual.gather(1, last.expand(-1, 1, dim))[:, 0],
    )
