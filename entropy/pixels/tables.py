"""Frequency tables of pixels, made with integers: mixtures of two logistic distributions of every scale and tail.

A table is for a scale in eighths of an octave, the part of a mean below one in eighths, and a tail. Its symbols are
``-reach..reach``, and one at each end for all that is further. Tables of larger scales are not needed: the lowest bits
of values that spread so far are as good as random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ..coder import table_model
from ..tables import TOTAL, Int64Array, frequency_table
from .net import MEAN_BITS, SCALE_BITS, TAIL_RATIO, TAIL_WEIGHTS, TAILS

SCALE_MIN, SCALE_MAX = -32, 31  # eighths of an octave: 1/16 to 15
FRACTIONS = 1 << MEAN_BITS
N_TABLES = (SCALE_MAX - SCALE_MIN + 1) * FRACTIONS * TAILS
EXP_BITS, EXP_STEP_BITS = 30, 10
# round(2^20 log2(e) 2^(-i / 8)): octaves that a distance of one scale is
OCTAVES = (1512775, 1387221, 1272087, 1166509, 1069694, 980913, 899502, 824847)
FLOOR = 1 << 8  # a symbol's least count, of 2^30


def table_number(scale: Int64Array, fraction: Int64Array, tail: Int64Array) -> Int64Array:
    return ((scale - SCALE_MIN) * FRACTIONS + fraction) * TAILS + tail


def reaches() -> Int64Array:
    """The largest symbol but one of every table, ``[N_TABLES]``."""
    scale = np.arange(N_TABLES) // (FRACTIONS * TAILS) + SCALE_MIN
    steps = 1 << (SCALE_MAX + 1 - SCALE_MIN) // 8  # of the smallest scale's octave in a scale of 2^4
    octave = (scale - SCALE_MIN) // (1 << SCALE_BITS)
    return 2 + 16 * (2 << octave) * 16 // steps


class PixelTables(Sequence[Any]):
    """Models of all tables by number, then those of ``bits`` random bits, made when they are wanted."""

    def __getitem__(self, number: Any) -> Any:
        return _model(number)

    def __len__(self) -> int:
        return N_TABLES + 24


def random_bits(bits: int) -> int:
    """Number of the table of so many random bits."""
    return N_TABLES + bits


@cache
def _model(number: int) -> Any:
    if number >= N_TABLES:
        bits = number - N_TABLES
        return table_model(np.full(1 << bits, TOTAL >> bits, dtype=np.int64))
    return table_model(pixel_table(number))


def pixel_table(number: int) -> Int64Array:
    """The frequency table of a number below ``N_TABLES``, ``[2 reach + 3]``."""
    rest, tail = divmod(number, TAILS)
    scale, fraction = divmod(rest, FRACTIONS)
    reach = int(_reaches()[number])
    edges = (2 * np.arange(-reach, reach + 2) - 1) * (FRACTIONS // 2) - fraction  # in eighths
    octave, part = divmod(scale + SCALE_MIN, 1 << SCALE_BITS)
    distance = edges * OCTAVES[part] * 2**4 >> MEAN_BITS + octave + 4  # in 2^-20 octaves
    narrow, wide = below(distance), below(distance // TAIL_RATIO)
    weight = TAIL_WEIGHTS[tail]
    total = (256 - weight) * narrow + weight * wide >> 8
    mass = np.diff(np.concatenate([[0], total, [1 << EXP_BITS]]))
    return frequency_table(mass + FLOOR)


def below(distance: Int64Array) -> Int64Array:
    """The logistic distribution below a distance in 2^-20 octaves: ``2^30 / (1 + 2^-distance)``, int64."""
    steps = np.minimum(np.abs(distance) >> 20 - EXP_STEP_BITS, 40 << EXP_STEP_BITS)
    power = _powers()[steps & (1 << EXP_STEP_BITS) - 1] >> (steps >> EXP_STEP_BITS)
    less = (power << EXP_BITS) // ((1 << EXP_BITS) + power)
    return np.where(distance < 0, less, (1 << EXP_BITS) - less)


@cache
def _powers() -> Int64Array:
    """``floor(2^(30 - i / 1024))``, int64: the 1024th root of a whole number is ten square roots."""
    powers = []
    for i in range(1 << EXP_STEP_BITS):
        power = 1 << (EXP_BITS << EXP_STEP_BITS) - i
        for _ in range(EXP_STEP_BITS):
            power = math.isqrt(power)
        powers.append(power)
    return np.array(powers, dtype=np.int64)


@cache
def _reaches() -> npt.NDArray[np.int64]:
    return reaches()
