"""The prior of tokenizers that bring their tables along: one a level, and all levels in one payload.

Support, precision and exactness as in :mod:`.static`. Payload: level after level, each in raster order. A level for
each of some hundred latents would otherwise cost more in frames and words than its codes do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .prior import Codes
from .static import StaticPrior
from .tables import Int64Array, frequency_table

SPARE = 1024  # values on each side of a table that have no frequency of their own
UNIT = 1 << 20  # of counts: what a value outside has of the last frequency, UNIT / (2 * SPARE), is whole


def spread_table(frequencies: npt.NDArray[np.integer]) -> Int64Array:
    """A table of ``[n]`` values and of all others, ``[n + 1]``, to one of ``SPARE`` + n + ``SPARE`` values.

    The last frequency is shared alike among the values outside, so that a code is one symbol whatever its value.

    Raises: ValueError for what is no table.
    """
    q = np.asarray(frequencies, dtype=np.int64)
    if q.ndim != 1 or q.size < 2 or int(q.min()) < 1 or int(q.sum()) > 1 << 18:
        raise ValueError("a table is frequencies of 1 or more, the last one of all other values")
    outside = np.full(SPARE, q[-1] * (UNIT // (2 * SPARE)))
    return frequency_table(np.concatenate([outside, q[:-1] * UNIT, outside]))


class FactorizedPrior(StaticPrior):
    """Order-0 entropy model whose one payload holds all levels."""

    wire_id = 6
    file = ""

    def levels_in(self, layers: int) -> int:
        return len(self.tables)

    def layers(self, levels: int) -> int:
        return 1

    def compress(self, codes: Codes) -> list[bytes]:
        """Codes ``[K, *grid]`` of all levels to one payload."""
        if len(codes) != len(self.tables):
            raise ValueError(f"one payload holds all {len(self.tables)} levels, got {len(codes)}")
        return [self.compress_joint([codes])]

    def decompress(self, payloads: Sequence[bytes], grid: tuple[int, ...]) -> Codes:
        if len(payloads) != 1:
            raise ValueError(f"all levels are in one payload, got {len(payloads)}")
        return self.decompress_joint(payloads[0], [len(self.tables)], grid)[0]
