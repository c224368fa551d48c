"""Grids of integers that were fitted to one clip, and the small networks beside them, as bytes. Exact on every machine.

A *group* is a pyramid of grids, coarse to fine, each of which has half the cells of the next along both sides, and a
number of *slots* over time. Every cell has a probability distribution from a small network, the *context net* of its
group, that reads what was decoded before: neighbours, the cell above in the pyramid, and the two slots before (as in
COOL-CHIC, Ladune et al. 2023, arXiv:2212.05458, and C3, Kim et al. 2023, arXiv:2312.02753, which walk cell by cell).
Here the cells of a slot are coded in four steps, so that all cells of a step are computed at once::

    0 2 0 2        step 0 sees the pyramid and the past, step 1 its four diagonal neighbours too,
    3 1 3 1        step 2 four neighbours, step 3 all eight
    0 2 0 2

Exactness: every number is a multiple of a power of two, and all that are added are small enough for float64 to hold
the sum without rounding, in whatever order it is taken (:func:`context`). What comes out are integers: the mean in
eighths and one of ``SCALES`` widths. They choose one of 360 tables (:func:`laplace_table`), which are made in integers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..tables import PRECISION, TOTAL, check_table

LIMIT = 127  # largest absolute value in a grid
REACH = 255  # largest absolute value of a coded number, and of a weight in its own steps
SCALES = 45  # widths b = 2^((i - 20) / 4) of a Laplace distribution
SCALE_ONE = 20  # the index of b = 1
MEAN_STEPS = 8  # means are multiples of 1/8
BITS = 8  # inputs and hidden values of a context net are multiples of 2^-8
MAX_EXPONENT = 12  # weights are multiples of 2^-12 at the finest
HIDDEN_MAX = 1 << 12
BLOCK = 1 << 16  # cells whose context is computed at once
STEPS = ((0, 0), (1, 1), (0, 1), (1, 0))  # parity of row and column
AROUND = ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))  # edges first, then corners
# Whether step i sees the neighbour: it is of an earlier step.
SEEN = tuple(
    tuple(STEPS.index(((a + dy) % 2, (b + dx) % 2)) < i for dy, dx in AROUND) for i, (a, b) in enumerate(STEPS)
)
STILL_FEATURES = 13
FEATURES = 18  # of a group with more than one slot
_FIXED = 62  # bits of the probabilities from which tables are made
_ROOTS = (65536, 77936, 92682, 110218)  # 2^(i/4) in 16 bits
Grid = npt.NDArray[np.int32]  # [slots, h, w]


@dataclass(frozen=True)
class Weights:
    """A tensor of a small network: ``integers * 2^-exponent``.

    Attributes:
        integers: any shape, int32, absolute values up to ``REACH``.
        exponent: 0..``MAX_EXPONENT``.
    """

    integers: npt.NDArray[np.int32]
    exponent: int

    def __post_init__(self) -> None:
        if not 0 <= self.exponent <= MAX_EXPONENT or np.abs(self.integers).max(initial=0) > REACH:
            raise ValueError(f"weights are -{REACH}..{REACH} times a power of two down to 2^-{MAX_EXPONENT}")

    @property
    def values(self) -> npt.NDArray[np.float64]:
        return self.integers.astype(np.float64) * 2.0**-self.exponent


def context_shapes(levels: int, slots: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors of a group's context net, in the order in which they are written."""
    features = FEATURES if slots > 1 else STILL_FEATURES
    return {
        "input": (hidden, features),
        "level": (levels, hidden),
        "step": (4, hidden),
        "output": (2, hidden),
        "skip": (2, features),
        "bias": (levels, 2),
    }


@cache
def logarithms() -> npt.NDArray[np.float64]:
    """``log2(1 + n)`` for n = 0, 1, ..., rounded to multiples of ``2^-BITS``; n is a sum of up to nine values."""
    n = np.arange(9 * LIMIT + 1, dtype=np.float64)
    return np.floor(np.log2(1 + n) * (1 << BITS) + 0.5) / (1 << BITS)


def context(
    net: dict[str, npt.NDArray[np.float64]], level: int, step: int, features: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Means in eighths and scale numbers of cells, from their ``features [n, F]``, multiples of 2^-8 up to 127.

    Exact: products are multiples of ``2^-(8 + 12)``, and a sum of at most 64 + 18 products below ``255 * 2^12`` stays
    below ``2^27``: 47 bits.
    """
    unit = 1 << BITS
    h = features @ net["input"].T + (net["level"][level] + net["step"][step])
    h = np.clip(np.floor(h * unit + 0.5) / unit, 0, HIDDEN_MAX)
    out = h @ net["output"].T + features @ net["skip"].T + net["bias"][level]  # [n, 2]
    mean = np.clip(np.floor(out[:, 0] * MEAN_STEPS + 0.5), -LIMIT * MEAN_STEPS, LIMIT * MEAN_STEPS)
    scale = np.clip(np.floor(out[:, 1] + 0.5), 0, SCALES - 1)
    return mean.astype(np.int64), scale.astype(np.int64)


def _exp(numerator: int, denominator: int) -> int:
    """``floor(exp(-numerator / denominator) * 2^62)``."""
    ctx = Context(prec=60)
    return int(ctx.multiply(ctx.exp(ctx.divide(Decimal(-numerator), Decimal(denominator))), Decimal(1 << _FIXED)))


@cache
def laplace_table(scale: int, offset: int) -> npt.NDArray[np.int64]:
    """Frequencies of -REACH..REACH for a Laplace distribution around ``offset / 8``, rounded to integers.

    With width b, f = offset / 8 and e(x) = exp(-x / b): the value 0 has what is left, n = 1, 2, ... has
    ``e(1/2 - f) e(1)^(n-1) (1 - e(1)) / 2`` and -n the same with +f. In units of 2^-62, each product rounded down.
    A value gets one more than its share of ``2^24 - 511``, rounded down; what is missing goes to 0.

    Args: scale 0..44; offset -4..3.
    """
    quarter, octave = (scale - SCALE_ONE) % 4, (scale - SCALE_ONE) // 4
    # x / b = x 2^16 / (root 2^octave), with x in sixteenths
    up, down = 1 << max(-octave, 0), 1 << max(octave, 0)
    width = 16 * _ROOTS[quarter] * down
    ratio = _exp(16 * 65536 * up, width)
    size = 2 * REACH + 1
    table = np.ones(size, dtype=np.int64)
    for sign in (1, -1):
        share = _exp((8 - sign * 2 * offset) * 65536 * up, width) * ((1 << _FIXED) - ratio) >> (_FIXED + 1)
        for n in range(1, REACH + 1):
            table[REACH + sign * n] += share * (TOTAL - size) >> _FIXED
            share = share * ratio >> _FIXED
    table[REACH] += TOTAL - int(table.sum())
    check_table(table)
    return table


class Tables(Sequence[Any]):
    """The coder's models for :func:`laplace_table`, made when they are first asked for: number 8 scale + offset + 4."""

    def __init__(self) -> None:
        self._models: dict[int, Any] = {}

    def __len__(self) -> int:
        return SCALES * MEAN_STEPS

    def __getitem__(self, number: Any) -> Any:  # a constriction model
        if number not in self._models:
            from ..coder import table_model

            self._models[number] = table_model(laplace_table(number // MEAN_STEPS, number % MEAN_STEPS - 4))
        return self._models[number]


TABLES = Tables()


def _steps(
    group: Sequence[Grid], weights: dict[str, Weights]
) -> Iterator[tuple[npt.NDArray[np.int32], npt.NDArray[np.int16], npt.NDArray[np.int16]]]:
    """Walk the cells of a group in order: a view of the cells of each step, their centres and their tables.

    What the context net sees is computed in blocks of rows, so that memory is some 24 bytes a cell.

    The view belongs to padded copies of the grids, which whoever walks fills or has filled: a decoder writes the values
    of a step before it asks for the next one. At the end ``group`` is filled from the copies.
    """
    net = {name: w.values for name, w in weights.items()}
    log = logarithms()
    slots = group[0].shape[0]
    above: Grid | None = None
    for level, grid in enumerate(group):
        _, h, w = grid.shape
        padded = np.zeros((slots + 2, h + 2, w + 2), dtype=np.int32)  # two empty slots before the first
        padded[2:, 1:-1, 1:-1] = grid
        for s in range(slots):
            now, before, earlier = padded[s + 2], padded[s + 1], padded[s]
            past_sum = _nine(np.abs(before)) if slots > 1 else None
            parent_sum = None if above is None else _nine(np.abs(above[s]))
            for step, (a, b) in enumerate(STEPS):
                cells = now[1 + a : h + 1 : 2, 1 + b : w + 1 : 2]
                if not cells.size:
                    continue
                rows, columns = cells.shape
                seen = {
                    i: now[1 + a + dy : h + 1 + dy : 2, 1 + b + dx : w + 1 + dx : 2]
                    for i, (dy, dx) in enumerate(AROUND)
                    if SEEN[step][i]
                }
                centres, tables = (np.empty(cells.size, dtype=np.int16) for _ in range(2))
                high = max(1, BLOCK // columns)
                for top in range(0, rows, high):
                    part = slice(top, min(top + high, rows))
                    x = np.zeros(((part.stop - top) * columns, net["input"].shape[1]))
                    edges, corners = (np.zeros((part.stop - top, columns), np.int64) for _ in range(2))
                    for i, value in seen.items():
                        x[:, i] = value[part].ravel()
                        (edges if i < 4 else corners)[...] += np.abs(value[part])
                    x[:, 8], x[:, 9] = log[edges].ravel(), log[corners].ravel()
                    if above is not None and parent_sum is not None:
                        parent = above[s, 1 : 1 + rows, 1 : 1 + columns][part]
                        x[:, 10], x[:, 11] = parent.ravel(), log[np.abs(parent)].ravel()
                        x[:, 12] = log[parent_sum[:rows, :columns][part]].ravel()
                    if past_sum is not None:
                        past, older = (p[1 + a : h + 1 : 2, 1 + b : w + 1 : 2][part] for p in (before, earlier))
                        x[:, 13], x[:, 14], x[:, 15] = past.ravel(), older.ravel(), log[np.abs(past)].ravel()
                        x[:, 16] = log[past_sum[a:h:2, b:w:2][part]].ravel()
                        x[:, 17] = log[np.abs(older)].ravel()
                    mean, scale = context(net, level, step, x)
                    centre = (mean + MEAN_STEPS // 2) // MEAN_STEPS
                    here = slice(top * columns, part.stop * columns)
                    centres[here] = centre
                    tables[here] = scale * MEAN_STEPS + (mean - centre * MEAN_STEPS + MEAN_STEPS // 2)
                yield cells, centres, tables
        grid[...] = padded[2:, 1:-1, 1:-1]
        above = padded[2:]


def _nine(padded: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Sums over 3 x 3 cells of ``[h + 2, w + 2]``, ``[h, w]``."""
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    total: npt.NDArray[np.int32] = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    return total


def _runs(tables: npt.NDArray[np.int16]) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Each table that occurs, in order, and the places of its cells."""
    order = np.argsort(tables, kind="stable")
    found = tables[order]
    begins = np.flatnonzero(np.diff(found, prepend=-1))
    for begin, end in zip(begins, [*begins[1:], len(found)], strict=True):
        yield int(found[begin]), order[begin:end]


def encode_grids(groups: Sequence[Sequence[Grid]], nets: Sequence[dict[str, Weights]]) -> bytes:
    """All grids of all groups, each ``[slots, h, w]`` in ``-LIMIT..LIMIT``, coarse to fine, as one stream."""
    from ..coder import IndexedEncoder

    encoder = IndexedEncoder(TABLES)
    for group, net in zip(groups, nets, strict=True):
        if any(np.abs(grid).max(initial=0) > LIMIT for grid in group):
            raise ValueError(f"values of a grid are -{LIMIT}..{LIMIT}")
        for cells, centre, tables in _steps(group, net):
            symbols = cells.ravel() - centre + REACH
            for table, places in _runs(tables):
                encoder.push(symbols[places], table)
    return encoder.finish()


def decode_grids(
    payload: bytes, shapes: Sequence[Sequence[tuple[int, int, int]]], nets: Sequence[dict[str, Weights]]
) -> list[list[Grid]]:
    """Inverse of :func:`encode_grids`. Raises ValueError for a payload that does not fit."""
    from ..coder import IndexedDecoder

    decoder = IndexedDecoder(payload, TABLES)
    groups = []
    for group_shapes, net in zip(shapes, nets, strict=True):
        group = [np.zeros(shape, dtype=np.int32) for shape in group_shapes]
        for cells, centre, tables in _steps(group, net):
            values = np.empty(cells.size, dtype=np.int64)
            for table, places in _runs(tables):
                values[places] = decoder.pull(len(places), table)
            values += centre - REACH
            if np.abs(values).max() > LIMIT:
                raise ValueError("a value of a grid is out of range")
            cells[...] = values.reshape(cells.shape)
        groups.append(group)
    decoder.finish()
    return groups


def weight_bits(integers: npt.NDArray[np.integer]) -> list[float]:
    """Bits of these numbers, around 0, with the table of every scale."""
    found, counts = np.unique(integers, return_counts=True)
    return [float(counts @ (PRECISION - np.log2(laplace_table(scale, 0)[found + REACH]))) for scale in range(SCALES)]


def encode_weights(tensors: Sequence[Weights]) -> bytes:
    """Exponent and scale of every tensor (one byte each), then all integers as one stream, tensor after tensor."""
    from ..coder import IndexedEncoder

    encoder = IndexedEncoder(TABLES)
    head = []
    for tensor in tensors:
        scale = int(np.argmin(weight_bits(tensor.integers)))
        head.append(struct.pack("<BB", tensor.exponent, scale))
        encoder.push(tensor.integers.ravel() + REACH, scale * MEAN_STEPS + 4)
    return b"".join([*head, encoder.finish()])


def decode_weights(data: bytes, shapes: Sequence[tuple[int, ...]]) -> list[Weights]:
    """Inverse of :func:`encode_weights`. Raises ValueError for data that do not fit."""
    from ..coder import IndexedDecoder

    if len(data) < 2 * len(shapes):
        raise ValueError("the weights end early")
    decoder = IndexedDecoder(data[2 * len(shapes) :], TABLES)
    tensors = []
    for i, shape in enumerate(shapes):
        exponent, scale = data[2 * i], data[2 * i + 1]
        if exponent > MAX_EXPONENT or scale >= SCALES:
            raise ValueError("a tensor has an exponent or a scale that there is none")
        n = int(np.prod(shape, dtype=np.int64))
        tensors.append(Weights(decoder.pull(n, scale * MEAN_STEPS + 4).reshape(shape) - REACH, exponent))
    decoder.finish()
    return tensors
