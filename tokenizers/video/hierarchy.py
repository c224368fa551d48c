"""In which order the frames between two that are known are coded, and after which others."""

from __future__ import annotations

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
