"""Which pair of signals two channels are coded as, segment by segment: middle and side, or left and right.

What is coded has noise. Of middle and side it goes into both channels, so a channel that is silent beside a loud one
would be heard: some 10 dB below it. Such segments are coded as left and right.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..media.audio import Samples

LEFT_RIGHT = 0x80  # of the first byte of a segment's payload: its signals are left and right
# Coding gain is in the product of the two energies. Left and right are taken where theirs is smaller by this factor,
# where a channel is 15 dB below the other, and kept until 12 dB: each change begins the nets anew.
TAKE, KEEP = 8.0, 4.0


def to_middle_side(x: Samples) -> Samples:
    """``[2, n]`` left and right to ``(l + r) / 2`` and ``(l - r) / 2``; twice its output is undone by itself."""
    return np.stack([x[0] + x[1], x[0] - x[1]]) * np.float32(0.5)


class StereoSegments:
    """Middle and side in, runs of segments of one pair of signals out.

    Args:       n: samples of a segment.
    Attributes: left_right: of each segment that was given out, whether its signals are left and right.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.left_right: list[bool] = []
        self._rest: Samples = np.zeros((2, 0), dtype=np.float32)

    def push(self, signals: Samples, last: bool = False) -> Iterator[Samples]:
        """The next middle and side ``[2, n]`` to whole segments, and with ``last`` all that is left.

        Yields: ``[2, n]`` of one pair of signals each; that of the last one is ``left_right[-1]``.
        """
        x = np.concatenate([self._rest, signals], axis=1)
        end = x.shape[1] if last else x.shape[1] // self.n * self.n
        self._rest = x[:, end:]
        begin, pair = 0, self.left_right[-1] if self.left_right else False
        for at in range(0, end, self.n):
            now = self._choose(x[:, at : min(at + self.n, end)], pair)
            if now != pair and at > begin:
                yield self._signals(x[:, begin:at], pair)
                begin = at
            pair = now
            self.left_right.append(now)
        if end > begin:
            yield self._signals(x[:, begin:end], pair)

    @staticmethod
    def _choose(middle_side: Samples, before: bool) -> bool:
        """Whether a segment is better coded as left and right."""
        middle, side = middle_side.astype(np.float64)
        left, right = middle + side, middle - side
        pairs = np.array([[middle @ middle, side @ side], [left @ left, right @ right]])
        if not pairs.any():
            return before
        return bool(pairs[1].prod() * (KEEP if before else TAKE) < 4 * pairs[0].prod())

    @staticmethod
    def _signals(middle_side: Samples, left_right: bool) -> Samples:
        return 2 * to_middle_side(middle_side) if left_right else middle_side
