"""Large codebooks: a code as two or three digits, so that no table has more than 256 entries.

A 16384-way table for every symbol costs more than all else in a decoder. So the codewords are put into a balanced tree
in which similar codewords share the leading digits: coarse to fine, as in hierarchical softmax (Morin and Bengio,
AISTATS 2005), but with the tree learned from the codewords. The same digits serve generators that predict a code in
steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

MAX_TABLE = 256  # entries

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CodeTree:
    """Codes 0..N-1 as digits.

    Attributes:
        bases: number of values of each digit, coarse to fine; 1 to 3 of them, at most ``MAX_TABLE`` each.
        leaf: ``[N]`` the place of each code among all ``prod(bases)``: its digits as one number, coarse digit first.

    Raises: ValueError if two codes share a leaf or one is out of range.
    """

    bases: tuple[int, ...]
    leaf: Int64Array

    def __post_init__(self) -> None:
        places = int(np.prod(self.bases, dtype=np.int64)) if self.bases else 0
        if not 1 <= len(self.bases) <= 3 or not 1 <= min(self.bases) <= max(self.bases) <= MAX_TABLE:
            raise ValueError(f"a code has 1 to 3 digits of 1 to {MAX_TABLE} values, got {self.bases}")
        leaf = self.leaf
        if leaf.ndim != 1 or not leaf.size or leaf.min() < 0 or leaf.max() >= places:
            raise ValueError(f"leaves must be in [0, {places})")
        if np.unique(leaf).size != leaf.size:
            raise ValueError("two codes share a leaf")

    @property
    def size(self) -> int:
        return self.leaf.size

    @cached_property
    def code(self) -> Int64Array:
        """``[prod(bases)]`` the code at each leaf, -1 where there is none."""
        code = np.full(int(np.prod(self.bases)), -1, dtype=np.int64)
        code[self.leaf] = np.arange(self.size)
        return code

    def used(self, digit: int) -> npt.NDArray[np.bool_]:
        """``[prefixes, bases[digit]]`` whether any code has this digit after this prefix."""
        rest = int(np.prod(self.bases[digit + 1 :], dtype=np.int64))
        return np.asarray((self.code >= 0).reshape(-1, self.bases[digit], rest).any(axis=2), dtype=np.bool_)

    def means(self, features: npt.NDArray[np.floating], digit: int) -> npt.NDArray[np.float64]:
        """Mean of ``features [N, D]`` over the codes below each value of a digit, ``[prefixes * bases[digit], D]``."""
        rest = int(np.prod(self.bases[digit + 1 :], dtype=np.int64))
        group = self.leaf // rest
        n = self.code.size // rest
        total = np.zeros((n, features.shape[1]))
        np.add.at(total, group, features)
        mean: npt.NDArray[np.float64] = total / np.maximum(np.bincount(group, minlength=n), 1)[:, None]
        return mean


def digit_bases(n: int) -> tuple[int, ...]:
    """Bases of the digits for N codes: powers of two that are as equal as they can be; N itself up to 256."""
    if not 1 <= n <= 1 << 24:
        raise ValueError(f"a codebook has 1 to 2^24 codes, got {n}")
    bits = (n - 1).bit_length()
    if bits <= 8:
        return (n,)
    digits = -(-bits // 8) if bits > 16 else 2
    return tuple(1 << (bits * (i + 1) // digits - bits * i // digits) for i in range(digits))


def balanced_tree(codewords: npt.NDArray[np.floating]) -> CodeTree:
    """Tree over ``codewords [N, D]``: every group is halved across its direction of largest variance.

    Halves are equal in number (the first gets the odd one), so that every table is full. With D = 0 codes keep their
    order.
    """
    n = len(codewords)
    bases = digit_bases(n)
    if len(bases) == 1:
        return CodeTree(bases, np.arange(n, dtype=np.int64))
    leaf = np.empty(n, dtype=np.int64)
    points = np.asarray(codewords, dtype=np.float64)
    groups = [(np.arange(n, dtype=np.int64), 0, int(np.prod(bases)))]
    while groups:
        members, start, room = groups.pop()
        if room == 1 or members.size <= 1:
            leaf[members] = start
            continue
        own = points[members]
        if own.shape[1] and (spread := own - own.mean(0)).any():
            axis = np.linalg.svd(spread.T @ spread, hermitian=True)[0][:, 0]
            members = members[np.argsort(own @ axis, kind="stable")]
        half = -(-members.size // 2)
        groups += [(members[:half], start, room // 2), (members[half:], start + room // 2, room // 2)]
    return CodeTree(bases, leaf)
