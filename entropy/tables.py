"""Counts -> integer frequency tables. The only place where statistics become numbers that the coder sees.

Why integers: an arithmetic coder needs both sides to hold the same probabilities to the last bit; one float that rounds
differently on the decoder's machine ruins the rest of the stream. So a table is made once, in integer arithmetic,
stored as integers and hashed. Every table obeys

* support: all symbols 0..N-1, no frequency is zero, so any sequence of codes can be coded;
* precision: frequencies sum to exactly ``2**PRECISION``;
* no certainty: with N >= 2 no frequency is ``2**PRECISION``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

PRECISION = 24  # bits; what constriction's default coder uses
TOTAL = 1 << PRECISION

Int64Array = npt.NDArray[np.int64]


def frequency_table(counts: npt.ArrayLike) -> Int64Array:
    """Turn counts into frequencies that sum to ``2**PRECISION``, none zero.

    Every symbol gets 1; the rest is shared in proportion to the counts, rounded down, and what rounding left over goes
    to the largest remainders (equal ones: smaller symbol first). Integer arithmetic throughout.

    Args:    counts ``[N]`` integers >= 0, sum > 0 and < 2**39, 1 <= N <= 2**20.
    Returns: ``[N]`` int64.
    Raises:  ValueError if the counts are not such.
    """
    c = np.asarray(counts)
    if c.ndim != 1 or not np.issubdtype(c.dtype, np.integer) or not 1 <= c.size <= 1 << 20:
        raise ValueError(f"counts must be integers [N] with 1 <= N <= 2^20, got {c.dtype} {c.shape}")
    c = c.astype(np.int64)
    total = int(c.sum())
    if c.min() < 0 or c.max() >= 1 << 39 or not 0 < total < 1 << 39:  # the sum of larger counts may wrap round
        raise ValueError("counts must be >= 0 with a sum in [1, 2^39)")
    free = TOTAL - c.size
    share, remainder = np.divmod(c * free, total)
    table: Int64Array = 1 + share
    left = TOTAL - int(table.sum())
    table[np.argsort(-remainder, kind="stable")[:left]] += 1
    check_table(table)
    return table


def check_table(table: npt.NDArray[np.integer]) -> None:
    """Raise ValueError unless ``table [N]`` is a valid frequency table."""
    if table.ndim != 1 or table.size < 1 or not np.issubdtype(table.dtype, np.integer):
        raise ValueError(f"a frequency table is integer [N], got {table.dtype} {table.shape}")
    if int(table.min()) < 1 or int(table.astype(np.int64).sum()) != TOTAL:
        raise ValueError(f"frequencies must be >= 1 and sum to 2^{PRECISION}")


def table_bits(table: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """Ideal code length of every symbol in bits, ``[N]`` float64."""
    return PRECISION - np.log2(table.astype(np.float64))
