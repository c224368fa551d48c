"""Orders in which the cells of a slice of a hyperprior are coded, and what a cell sees of those before it.

An order is the same in every 4 x 4 cells of a grid, so it goes on for ever in all directions. ``CHECKERBOARD`` has two
steps. ``FINE`` goes from coarse to fine in six, as pictures are sent progressively: one cell of 16, the one in the
middle between four of those, then the rest of every second row and column, then the centres between these, then what
is left. Each cell but the first ones is predicted from neighbours on all sides::

    CHECKERBOARD  0 1 0 1     FINE  0 4 2 4
                  1 0 1 0           5 3 5 3
                  0 1 0 1           2 4 1 4
                  1 0 1 0           5 3 5 3
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PERIOD = 4
Offsets = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Order:
    """Steps of the cells of every 4 x 4, row by row, and how many rows and columns away a cell looks."""

    steps: tuple[tuple[int, ...], ...]
    reach: int

    @property
    def n(self) -> int:
        """Number of steps."""
        return 1 + max(map(max, self.steps))

    def cells(self, grid: tuple[int, int], step: int) -> npt.NDArray[np.int64]:
        """The cells of a step in raster order, as places in the flat grid; there may be none in a small one."""
        rows, columns = (np.arange(n) % PERIOD for n in grid)
        return np.flatnonzero(np.array(self.steps)[rows[:, None], columns] == step)

    def offsets(self, step: int) -> Offsets:
        """Rows and columns from a cell of a step to the cells that it knows, in raster order.

        They are the same for all cells of a step: an order in which they are not is none of ours.
        """
        around = range(-self.reach, self.reach + 1)
        found = {
            tuple(
                (dy, dx) for dy in around for dx in around if self.steps[(r + dy) % PERIOD][(c + dx) % PERIOD] < step
            )
            for r, row in enumerate(self.steps)
            for c, own in enumerate(row)
            if own == step
        }
        assert len(found) == 1, "cells of one step see different neighbours"
        return found.pop()


CHECKERBOARD = Order(((0, 1, 0, 1), (1, 0, 1, 0), (0, 1, 0, 1), (1, 0, 1, 0)), reach=2)
FINE = Order(((0, 4, 2, 4), (5, 3, 5, 3), (2, 4, 1, 4), (5, 3, 5, 3)), reach=3)
