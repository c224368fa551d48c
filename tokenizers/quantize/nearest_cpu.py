"""Exact nearest-codeword search in plain PyTorch: float32 with a proven error bound, float64 where that cannot decide.

1. ``_scan``: scores ``|c|^2 / 2 - z.c`` of a block of rows and all codewords in float32; for each row the best codeword
   and how far behind the second best is. A row is settled if this exceeds what rounding can do (``_errors``).
2. ``_decide``: the same in float64 for the other rows, few as a rule. Codewords that may still be the best are compared
   by their float64 distances, computed as the definition says.

For a few rows what step 1 needs of the codebook costs more than the step: :func:`prepare` computes it once, for any
rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

# Scores of a block of step 1: 2^20 float32 are 4 MiB and stay in the level-2 caches of two server cores. Blocks of a
# quarter lose a tenth to the cost of starting operations, blocks of four times that a fifth to slower memory, and more
# to the first touch of their pages.
SCAN_SCORES = 1 << 20
# Codewords of a block: with more, blocks have so few rows that products wait for the codebook.
SCAN_CODEWORDS = 4096
# Float64 scores, or elements of gathered codewords, of a block of step 2.
DECIDE_SCORES = 1 << 20
# Rows of a block: more do not pay; from WIDE dimensions on, where the product is what takes time, fewer slow it down.
MAX_ROWS = 4096
WIDE_ROWS = 512
WIDE = 48
# Codewords that decide what is taken from all latents and codewords.
CENTER_SAMPLE = 64
# Candidates a row in step 2 from which it pays to look for equal codewords.
CROWD = 4

Norms = TypeVar("Norms", float, Tensor)


@dataclass(frozen=True)
class _Table:
    """A codebook made ready for products: ``[latents, 1] @ rows.T`` are scores."""

    rows: Tensor  # [N', D + 1] -(c - center), then the bias; N' is N rounded up to whole groups
    center: Tensor  # [D], taken from latents and codewords: distances stay, scores and their errors shrink
    norm: float  # largest |c - center| of a codeword that can be chosen; the bias of the others is infinite
    bias: float  # largest |bias| of these
    dot: bool


@dataclass(frozen=True)
class Prepared:
    """A codebook, and what searches of few rows by distance need of it."""

    codebook: Tensor  # [N, D]
    penalty: Tensor | None  # [N] float32
    valid: Tensor  # [N] whether a codeword can be chosen
    table: _Table | None  # of float32; None if no codeword is valid
    columns: Tensor  # [D, N'] the table's codewords, contiguous, which halves the time of a product with few rows
    bias: Tensor  # [N'] the table's


def prepare(codebook: Tensor, penalty: Tensor | None = None) -> Prepared:
    """Compute once what :func:`search_prepared` needs of ``codebook [N, D]`` and ``penalty [N]``, types as in search.

    Call it under ``no_grad``, without autocast. The arguments are not copied and must not change.
    """
    valid = _valid(codebook, penalty)
    if not valid.any():
        return Prepared(codebook, penalty, valid, None, columns=codebook.T, bias=codebook[:, 0])
    table = _table(codebook, valid, penalty, _center(codebook, valid), norms=None, dot=False)
    columns = table.rows.T.contiguous()  # [D + 1, N']
    return Prepared(codebook, penalty, valid, replace(table, rows=columns.T), columns=columns[:-1], bias=columns[-1])


def search_prepared(z: Tensor, prepared: Prepared) -> Tensor:
    """Indices ``[M]`` int64 of the codewords nearest to ``z [M, D]`` float32, those of :func:`search`.

    Call it as :func:`search`. All scores are kept, and codewords that are within the error of a row's best are compared
    in float64. One bound serves all rows: the farthest one's.
    """
    table, codebook, penalty = prepared.table, prepared.codebook, prepared.penalty
    m = len(z)
    if table is None or not m:
        return torch.zeros(m, dtype=torch.long, device=z.device)
    if m * len(table.rows) > SCAN_SCORES or not _float32_is_float32(z.device.type):
        return search(z[None], codebook[None], False, None if penalty is None else penalty[None])[0]
    latents = z - table.center  # [M, D]
    kind, count = torch.finfo(torch.float32), z.shape[1] + 3
    norm = float(torch.linalg.vector_norm(latents, dim=-1).amax())
    norm = norm * (1 + count * kind.eps) + count * math.sqrt(kind.tiny)  # as in _norms
    scale, error = _bounds(norm, table)
    indices = torch.zeros(m, dtype=torch.long, device=z.device)
    if scale < kind.max / 16:  # neither infinities nor NaN
        scores = torch.addmm(prepared.bias, latents, prepared.columns)  # [M, N']
        # The limit is rounded: by half a unit of a best score, which is no more than twice the scale, or of the error.
        limits = scores.amin(-1, keepdim=True) + (error * (1 + 4 * kind.eps) + 2 * kind.eps * scale)
        pairs = (scores <= limits).nonzero()  # [P, 2], row by row
        if len(pairs) == m:  # nothing is in question, since every row has its best
            return pairs[:, 1]
        row, column = pairs.unbind(1)
        indices[row] = column
        rows = (torch.bincount(row, minlength=m) > 1).nonzero()[:, 0]
    else:
        rows = torch.arange(m, device=z.device)
    errors = _errors(_norms(z[rows], table.center), table)
    _decide(z, codebook, prepared.valid, penalty, table=table, rows=rows, errors=errors, indices=indices)
    return indices


def search(z: Tensor, codebook: Tensor, dot: bool = False, penalty: Tensor | None = None) -> Tensor:
    """Find the nearest codeword of every latent vector, exactly as brute force in float64 finds it.

    Args:
        z: ``[G, M, D]`` latent vectors of G independent searches; float32, bfloat16 or float16, any strides.
        codebook: ``[G, N, D]`` codewords of these types or float64, N >= 1.
        dot: rank by the largest inner product instead of the smallest squared distance.
        penalty: ``[G, N]`` float32, added to the squared distances; not with ``dot``.

    Returns:
        indices ``[G, M]`` int64. Equal float64 scores go to the smaller index. A row of ``z`` with a NaN or an infinity
        gets index 0; a codeword with one, or with such a penalty, is never chosen (index 0 if there is no other).

    Call it under ``no_grad``, without autocast. Runs on any device; block sizes are chosen for CPUs.
    Cost: O(M N D) time in float32, about thrice that again for rows that float32 leaves open, more only for rows that
    have many exact ties; O(M + N D) memory beyond the inputs and one block of scores.
    """
    indices = torch.zeros(z.shape[:2], dtype=torch.long, device=z.device)
    for i in range(z.shape[0]):
        _search(z[i], codebook[i], dot, None if penalty is None else penalty[i], indices[i])
    return indices  # [G, M]


def _search(z: Tensor, codebook: Tensor, dot: bool, penalty: Tensor | None, indices: Tensor) -> None:
    """One search: z [M, D], codebook [N, D], penalty [N]; writes indices [M], which holds zeros."""
    valid = _valid(codebook, penalty)
    if not len(z) or not valid.any():
        return
    dtype = torch.float32 if _float32_is_float32(z.device.type) else torch.float64
    center = z.new_zeros(z.shape[1], dtype=torch.float32) if dot else _center(codebook, valid)
    norms = _norms(z, center.to(dtype))  # [M]
    table = _table(codebook, valid, penalty, center.to(dtype), norms=norms, dot=dot)
    errors = _errors(norms, table)
    rows = (~(_scan(z, table, indices) > errors)).nonzero()[:, 0]  # written so that NaN, from overflow, is not settled
    if len(rows):
        _decide(z, codebook, valid, penalty, table=table, rows=rows, errors=errors[rows], indices=indices)


def _valid(codebook: Tensor, penalty: Tensor | None) -> Tensor:
    """Which codewords [N] can be chosen: those that are finite, as their penalty is."""
    valid = torch.linalg.vector_norm(codebook, math.inf, dim=-1).isfinite()  # [N], one pass
    return valid if penalty is None else valid & penalty.isfinite()


def _center(codebook: Tensor, valid: Tensor) -> Tensor:
    """Medians [D] float32 of a sample: quick, and unlike a mean not led astray by one codeword far off."""
    sample = valid.nonzero()[:, 0]
    return codebook[sample[:: math.ceil(len(sample) / CENTER_SAMPLE)]].float().median(0).values


def _float32_is_float32(device: str) -> bool:
    """Whether matrix products of float32 are computed in float32, not in TF32 or bfloat16 as settings allow."""
    backend = torch.backends.cuda if device == "cuda" else torch.backends.mkldnn
    return backend.matmul.fp32_precision in ("none", "ieee")


def _norms(z: Tensor, center: Tensor) -> Tensor:
    """Upper bounds on |z - center| of every row [M], in the type of center; infinite or NaN if z is, or on overflow."""
    norms = torch.empty(len(z), dtype=center.dtype, device=z.device)
    rows = max(1, SCAN_SCORES // max(1, z.shape[1]))
    for i in range(0, len(z), rows):
        torch.linalg.vector_norm(z[i : i + rows] - center, dim=-1, out=norms[i : i + rows])
    kind, count = torch.finfo(center.dtype), z.shape[1] + 3
    return norms.mul_(1 + count * kind.eps).add_(count * math.sqrt(kind.tiny))  # squares may have underflowed


def _table(
    codebook: Tensor, valid: Tensor, penalty: Tensor | None, center: Tensor, norms: Tensor | None, dot: bool
) -> _Table:
    """Center the codewords [N, D] in the type of center, compute their biases in float64.

    norms: of the rows [M] that will be searched, upper bounds; None for a table that serves any rows.
    """
    n, dim = codebook.shape
    width = _group(n) * math.ceil(n / _group(n))
    rows = torch.zeros(width, dim + 1, dtype=center.dtype, device=center.device)
    codewords = torch.sub(center, codebook, out=rows[:n, :dim])  # [N, D]
    if not valid.all():
        codewords.masked_fill_(~valid[:, None], 0)
    lengths = torch.linalg.vector_norm(codewords, dim=-1, dtype=torch.float64)  # [N]
    bias = torch.zeros_like(lengths) if dot else lengths.square() / 2
    if penalty is not None:
        bias += torch.where(valid, penalty.double() / 2, 0.0)
    if norms is not None:
        # No row scores more than bias + |z||c| or less than bias - |z||c|. Codewords that lose to another by this alone
        # (a penalty of 1e30, a codeword far off) go now: a bound for them would be useless for the others.
        finite = norms[norms.isfinite()].double()
        longest = finite.amax() if len(finite) else center.new_zeros(())
        reach = longest * lengths
        best = (bias + reach)[valid].amin()
        doubt = 1e-9 * (bias.abs() + reach + best.abs()) + (dim + 4) * 2.0**-50 * longest.square()
        valid = valid & ~(bias - reach - best > doubt)  # [N]
        if not valid.all():
            codewords.masked_fill_(~valid[:, None], 0)
    rows[:, dim] = math.inf
    rows[:n, dim] = torch.where(valid, bias, math.inf)
    return _Table(rows, center, float(lengths[valid].amax()), float(bias[valid].abs().amax()), dot)


def _group(n: int) -> int:
    """Codewords that share one minimum in step 1: N is rounded up to whole groups."""
    return 16 if n < 4096 else 32


def _errors(norms: Tensor, table: _Table) -> Tensor:
    """Twice the bound on the error of a score in every row [M] float64; infinite where scores may overflow.

    A score sums D + 1 products in any order, so its error is at most gamma_{D+1} sum_i |x_i y_i|, where gamma_n =
    n u / (1 - n u) and u is the unit roundoff (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section
    3.1). z - center, c - center and the bias are themselves rounded, a factor 1 + u each, and the bias is that of a
    rounded codeword: gamma_{D+4}. Cauchy-Schwarz: sum_i |x_i y_i| <= |z||c| + |bias|. Numbers below the normal ones add
    their own size. Last, the float64 distances that define the answer are off by a gamma_{D+3} of float64.
    """
    scale, errors = _bounds(norms.double(), table)
    return torch.where(scale < torch.finfo(table.rows.dtype).max / 16, errors, math.inf)


def _bounds(norms: Norms, table: _Table) -> tuple[Norms, Norms]:
    """The scale of scores and twice the bound on their error, which holds unless they overflow, by norms in float64."""
    count = table.rows.shape[1] + 3
    kind = torch.finfo(table.rows.dtype)
    scale = norms * table.norm + table.bias
    unit, unit64 = kind.eps / 2, 2.0**-53
    errors = count * unit / (1 - count * unit) * scale + count * kind.tiny * (1 + norms + table.norm)
    errors = errors + 4 * count * unit64 * (scale if table.dot else (norms + table.norm) ** 2 + table.bias)
    return scale, 2 * errors


def _scan(z: Tensor, table: _Table, indices: Tensor) -> Tensor:
    """Write the index of the best score of every row; return the gaps [M] between the two best scores."""
    best, second = torch.full((2, len(z)), math.inf, dtype=table.rows.dtype, device=z.device)  # [M] each
    for start in range(0, len(table.rows), SCAN_CODEWORDS):
        _scan_codewords(z, table, start, best, second=second, indices=indices)
    return second.sub_(best)


def _scan_codewords(z: Tensor, table: _Table, first: int, best: Tensor, second: Tensor, indices: Tensor) -> None:
    """Update the two best scores [M] and the index of the best by the block of codewords that starts at first."""
    codewords = table.rows[first : first + SCAN_CODEWORDS].T  # [D + 1, N'] of this block
    m, dim = z.shape
    n = codewords.shape[1]
    group = _group(n)
    rows = min(m, MAX_ROWS, max(SCAN_SCORES // n, WIDE_ROWS if dim >= WIDE else 1))
    latents = best.new_ones(rows, dim + 1)  # the last column stays 1 and meets the biases
    scores = best.new_empty(rows, n)
    minima = best.new_empty(rows, n // group)
    every = torch.arange(rows, device=z.device)
    for start in range(0, m, rows):
        r = min(rows, m - start)
        here = slice(start, start + r)
        torch.sub(z[here], table.center, out=latents[:r, :dim])
        torch.mm(latents[:r], codewords, out=scores[:r])  # [r, N']
        # Group i holds codewords i, i + N'/group, ...: the minima of all groups are elementwise minima of long vectors.
        members = scores[:r].view(r, group, -1)  # [r, group, N'/group]
        torch.amin(members, 1, out=minima[:r])  # [r, N'/group]
        low, which = minima[:r].min(-1)  # [r]
        rival = minima[:r].scatter_(1, which[:, None], math.inf).amin(-1)
        inside = members[every[:r], :, which]  # [r, group]
        member = inside.min(-1).indices
        rival = torch.minimum(rival, inside.scatter_(1, member[:, None], math.inf).amin(-1))
        index = torch.add(which, member, alpha=n // group)
        if first:
            rival = torch.minimum(rival, torch.maximum(low, best[here]))
            index = torch.where(low < best[here], index + first, indices[here])
        torch.minimum(best[here], low, out=best[here])
        torch.minimum(second[here], rival, out=second[here])
        indices[here] = index


def _decide(
    z: Tensor,
    codebook: Tensor,
    valid: Tensor,
    penalty: Tensor | None,
    table: _Table,
    rows: Tensor,
    errors: Tensor,
    indices: Tensor,
) -> None:
    """Write the indices of rows [U] by the float64 distances to the codewords that their scores leave in question."""
    n, dim = codebook.shape
    size = max(1, min(DECIDE_SCORES // n, DECIDE_SCORES // max(1, dim)))
    center = table.center.double()
    norms = torch.cat([_norms(z[block], center) for block in rows.split(size)])  # [U]
    first = int(valid.int().argmax())
    fine: _Table | None = None
    for block, norm, error in zip(rows.split(size), norms.split(size), errors.split(size), strict=True):
        indices[block] = 0
        keep = norm.isfinite()
        latents = z[block].double()  # [r, D]
        if table.dot:  # all inner products with a row of zeros are equal
            zero = keep & ~latents.any(-1)
            indices[block[zero]] = first
            keep &= ~zero
        block, latents, error = block[keep], latents[keep], error[keep]
        row, column = _candidates(latents, table, error)
        if len(row) > CROWD * len(block) or not error.isfinite().all():
            if fine is None:
                fine = _table(codebook, valid, penalty, center, norms=norms, dot=table.dot)
                fine.rows[:n, dim].masked_fill_(_repeats(codebook, penalty), math.inf)
            row, column = _candidates(latents, fine, _errors(norm[keep], fine))
        distances = torch.empty(len(row), dtype=torch.float64, device=z.device)  # [P]
        step = max(1, DECIDE_SCORES // max(1, dim))
        for start in range(0, len(row), step):
            here = slice(start, start + step)
            a, b = latents[row[here]], codebook[column[here]].double()  # [p, D]
            distances[here] = -(a * b).sum(-1) if table.dot else (a - b).square().sum(-1)
        if penalty is not None:
            distances += penalty[column]
        best = distances.new_full((len(block),), math.inf).scatter_reduce_(0, row, distances, "amin")
        nearest = distances == best[row]
        indices[block] = torch.full_like(block, n).scatter_reduce_(0, row[nearest], column[nearest], "amin")


def _candidates(latents: Tensor, table: _Table, errors: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs (row, codeword) such that the codeword may be the nearest of that row, rows in order."""
    centered = (latents - table.center).to(table.rows.dtype)
    scores = torch.addmm(table.rows[:, -1], centered, table.rows[:, :-1].T)  # [r, N']
    row, column = (scores <= scores.amin(-1, keepdim=True) + errors[:, None]).nonzero(as_tuple=True)
    return row, column


def _repeats(codebook: Tensor, penalty: Tensor | None) -> Tensor:
    """Which codewords [N] equal one of smaller index, penalty included."""
    keys = codebook.double() if penalty is None else torch.cat([codebook.double(), penalty[:, None].double()], 1)
    which = torch.unique(keys, dim=0, return_inverse=True)[1]  # [N]
    number = torch.arange(len(keys), device=keys.device)
    return torch.full_like(number, len(keys)).scatter_reduce_(0, which, number, "amin")[which] != number
