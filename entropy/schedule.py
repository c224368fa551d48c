"""Coding schedules: which cells of a level are coded together, and which of their neighbours they may see.

A schedule is data. It numbers the steps of a tile of ``period`` cells; the tile repeats over the grid. All cells of one
step are coded at once, given everything that was coded before: all coarser levels, and the earlier steps of their own.
An axis of period 0 is walked one cell after another (frames in time, or all axes for raster order); the tile's steps
then run inside each position of that axis. Encoder and decoder run the same list, so a prior is as causal as this file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Schedule:
    """Order of the cells of one level.

    Attributes:
        period: cells of the tile along each axis of the grid; 0 for an axis that is walked cell by cell.
        steps: the step of every cell of the tile in raster order, from 0 on, none left out. An axis of period 0
            counts as one cell of the tile.

    Raises: ValueError if they contradict each other.
    """

    period: tuple[int, ...]
    steps: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.period or min(self.period) < 0:
            raise ValueError(f"a period is one number >= 0 for each axis, got {self.period}")
        cells = int(np.prod(self.tile))
        if len(self.steps) != cells or sorted(set(self.steps)) != list(range(len(set(self.steps)))):
            raise ValueError(f"a tile of {cells} cells wants steps 0..S for each cell, got {self.steps}")

    @property
    def ndim(self) -> int:
        return len(self.period)

    @property
    def tile(self) -> tuple[int, ...]:
        """Cells of the tile along each axis."""
        return tuple(max(1, p) for p in self.period)

    @property
    def walked(self) -> tuple[int, ...]:
        """The axes that are walked cell by cell."""
        return tuple(axis for axis, p in enumerate(self.period) if p == 0)

    @property
    def n_steps(self) -> int:
        """Steps of one tile; a grid takes so many for each position of the walked axes."""
        return max(self.steps) + 1

    def phase(self, cells: Int64Array) -> Int64Array:
        """Number of each cell ``[..., ndim]`` inside its tile, ``[...]``."""
        number = np.zeros(cells.shape[:-1], dtype=np.int64)
        for axis, size in enumerate(self.tile):
            number = number * size + (cells[..., axis] % size)
        return number

    def visible(self, offsets: Int64Array) -> BoolArray:
        """Whether the cell at ``offsets [P, ndim]`` from a cell is coded in an earlier step: ``[phases, P]``."""
        tile = np.array(list(itertools.product(*map(range, self.tile))), dtype=np.int64)  # [phases, ndim]
        own = np.array(self.steps, dtype=np.int64)
        there = own[self.phase(tile[:, None] + offsets)]  # [phases, P]
        earlier = there < own[:, None]
        for axis in reversed(self.walked):  # the first walked axis decides first
            earlier = np.where(offsets[:, axis] == 0, earlier, offsets[:, axis] < 0)
        return earlier

    def run(self, grid: Sequence[int]) -> Iterator[Int64Array]:
        """Flat indices of the cells of ``grid`` that are coded together, step by step, each in raster order."""
        if len(grid) != self.ndim:
            raise ValueError(f"a schedule for {self.ndim} axes cannot run over a grid of {tuple(grid)}")
        flat = np.arange(int(np.prod(grid)), dtype=np.int64)
        if not flat.size:
            return
        cells = np.stack(np.unravel_index(flat, tuple(grid)), axis=-1)  # [n, ndim]
        keys = [np.array(self.steps, dtype=np.int64)[self.phase(cells)]]
        keys += [cells[:, axis] for axis in reversed(self.walked)]
        order = np.lexsort(keys)  # stable: raster order inside a step
        sorted_keys = np.stack([key[order] for key in keys])
        starts = np.flatnonzero((np.diff(sorted_keys, axis=1) != 0).any(0)) + 1
        yield from np.split(order, starts)


def raster(ndim: int) -> Schedule:
    """One cell after another: the most context and the most steps."""
    return Schedule((0,) * ndim, (0,))


def refinement(ndim: int, n_steps: int, walked: int = 0) -> Schedule:
    """From a sparse lattice to a dense one in 2, 4 or 8 steps; 1 step codes all cells at once.

    Args: walked: so many leading axes are walked cell by cell first (frames in time).

    In the plane the tile is that of ordered dithering (Bayer 1973): the first half of the steps fills one colour of a
    checkerboard, sparse to dense, so that the last half of the cells sees all four neighbours. 2 steps are the
    checkerboard of He et al., CVPR 2021 (arXiv:2103.15306). The first steps of 8 are small and code little without
    context.
    """
    axes = ndim - walked
    if axes < 1 or n_steps not in (1, 2, 4, 8):
        raise ValueError(f"refinement takes 1, 2, 4 or 8 steps over at least one axis, got {n_steps} over {axes}")
    rank = _dither_rank(axes)  # [4 or 8, ...]
    if n_steps == 1:
        steps = np.zeros_like(rank)
    elif n_steps < 8:
        steps = rank * n_steps // rank.size
    else:
        # Shares of the cells: 1/16, 1/16, 1/16, 1/16, 1/8, 1/8, 1/4, 1/4.
        bounds = np.array([1, 2, 3, 4, 6, 8, 12, 16]) * rank.size // 16
        steps = np.searchsorted(bounds, rank, side="right")
    steps = np.unique(steps, return_inverse=True)[1].reshape(rank.shape)  # a small tile may leave steps empty
    return Schedule((0,) * walked + rank.shape, tuple(int(s) for s in steps.ravel()))


def _dither_rank(axes: int) -> Int64Array:
    """Order of the cells of a tile, sparse to dense: ``[8]`` for a line, ``[4, ...]`` otherwise."""
    if axes == 1:
        return np.array([0, 4, 2, 6, 1, 5, 3, 7], dtype=np.int64)
    cells = np.array(list(itertools.product(range(4), repeat=axes)), dtype=np.int64)  # [4**axes, axes]
    rank = np.zeros(len(cells), dtype=np.int64)
    for bit in range(2):  # the finest bit of the coordinates decides first
        bits = cells >> bit & 1
        parity = bits.sum(1) % 2
        rank = rank * 2 + parity
        for axis in range(axes - 1, 0, -1):
            rank = rank * 2 + bits[:, axis]
    return rank.reshape((4,) * axes)


def offsets_within(radius: float, scale: Sequence[float]) -> Int64Array:
    """Offsets ``[P, ndim]`` of the neighbours in an ellipsoid, the cell itself among them, nearest first.

    Args: radius: in cells along an axis of scale 1.  scale: how much farther than one a cell counts along each axis.
    """
    reach = [int(radius / s + 1e-9) for s in scale]
    found = np.array(list(itertools.product(*(range(-r, r + 1) for r in reach))), dtype=np.int64)
    distance = (found * np.asarray(scale)) ** 2
    total = distance.sum(1)
    found, total = found[total <= radius**2 + 1e-9], total[total <= radius**2 + 1e-9]
    return found[np.lexsort((*found.T[::-1], total))]
