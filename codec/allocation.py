"""Levels for bytes: a signal in segments, each with its own number of levels, in a file of a wanted size.

Levels are bought one after another where they save the most squared error of the latents for their bits (greedy
Lagrangian allocation: Shoham and Gersho 1988), from one level everywhere on.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Levels = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]

TRIES = 6


def allocate(bits: Numbers, errors: Numbers, room: float) -> Levels:
    """How many levels each part of a signal gets.

    Args:    bits, errors: ``[..., K]``, bits of every level, and the error that is left after it.
             room: bits for all of them.
    Returns: levels ``[...]``, 1 at least.
    """
    flat_bits, flat_errors = bits.reshape(-1, bits.shape[-1]), errors.reshape(-1, bits.shape[-1])
    levels = np.ones(len(flat_bits), dtype=np.int64)
    left = room - flat_bits[:, 0].sum()

    def offer(i: int) -> tuple[float, int]:
        k = levels[i]
        return (flat_errors[i, k] - flat_errors[i, k - 1]) / max(flat_bits[i, k], 1e-9), i

    offers = [offer(i) for i in range(len(levels))] if bits.shape[-1] > 1 else []
    heapq.heapify(offers)
    while offers:
        _, i = heapq.heappop(offers)
        cost = flat_bits[i, levels[i]]
        if cost > left:
            continue
        left -= cost
        levels[i] += 1
        if levels[i] < bits.shape[-1]:
            heapq.heappush(offers, offer(i))
    return levels.reshape(bits.shape[:-1])


def fit(
    build: Callable[[Levels], bytes], bits: Numbers, errors: Numbers, most: int
) -> tuple[bytes, Levels]:
    """The file of at most ``most`` bytes whose latents have the least error, and its levels.

    Args:    build: makes the file with so many levels ``[...]`` of each part.  bits, errors: as of :func:`allocate`.
    Returns: with one level everywhere even if that takes more: the caller knows what to say then.
    """
    ones = np.ones(bits.shape[:-1], dtype=np.int64)
    smallest = build(ones)
    fixed = len(smallest) - math.ceil(bits[..., 0].sum() / 8)  # what is not codes, nearly
    room = 8.0 * (most - fixed)
    for step in range(TRIES if len(smallest) <= most else 0):
        levels = allocate(bits, errors, room)
        data = build(levels)
        if len(data) <= most:
            return data, levels
        # Payloads are rounded up to words, so a file is some bytes more or less than thought, the more so the more
        # segments it has, and other levels round otherwise: ever longer steps end it.
        room -= 8.0 * (len(data) - most) * 2**step
    return smallest, ones
