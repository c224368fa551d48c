"""In which order the frames between two that are known are coded, and after which others."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple


class Between(NamedTuple):
    """A frame and its two references. level: 1 for the first that is coded."""

    frame: int
    earlier: int
    later: int
    level: int


def between(earlier: int, later: int) -> list[Between]:
    """The frames between two others, level by level, each in the middle of its references.

    >>> [b.frame for b in between(0, 8)]
    [4, 2, 6, 1, 3, 5, 7]
    """
    spans, level, found = [(earlier, later)], 1, list[Between]()
    while spans:
        spans = [span for span in spans if span[1] - span[0] > 1]
        middles = [(low + high) // 2 for low, high in spans]
        found += [Between(m, low, high, level) for m, (low, high) in zip(middles, spans, strict=True)]
        spans = [part for m, (low, high) in zip(middles, spans, strict=True) for part in ((low, m), (m, high))]
        level += 1
    return found


class Turn(NamedTuple):
    """A frame, its references, one or two, and how far down the hierarchy it is."""

    frame: int
    references: tuple[int, ...]
    level: int


def turns(n: int, step: int) -> list[Turn]:
    """The frames between 0 and ``n``, which are known: each ``step``-th after the one before it, then those between.

    >>> [turn.frame for turn in turns(8, 4)]
    [4, 2, 1, 3, 6, 5, 7]
    >>> turns(8, 4)[0], turns(8, 8)[0]
    (Turn(frame=4, references=(0,), level=1), Turn(frame=4, references=(0, 8), level=1))
    """
    steps = range(step, n, step)
    found = [Turn(at, (at - step,), 1) for at in steps]
    for low, high in pairwise([0, *steps, n]):
        found += [Turn(b.frame, (b.earlier, b.later), b.level + bool(steps)) for b in between(low, high)]
    return found
