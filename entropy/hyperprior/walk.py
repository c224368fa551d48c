"""One walk through the slices of a hyperprior: predict, quantise or decode, step by step, in exact integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..integer import ACT_BITS, STREAM_BITS, STREAM_MAX, ExactLinear
from .net import (
    DIAMOND,
    KNEES,
    MEAN_BITS,
    SCALES,
    SQUARE,
)

if TYPE_CHECKING:
    from .graphs import WalkGraphs
    from .prior import HyperPrior


CODE_MAX = 2047  # codes are -CODE_MAX..CODE_MAX
Codes = npt.NDArray[np.int64]


@dataclass
class Step:
    """What one step of the walk coded: the codes of one slice and half, by table."""

    layer: int  # slice
    codes: npt.NDArray[np.int32]  # [n] those that are coded, sorted by table
    tables: npt.NDArray[np.int64]  # [n] their scales


@dataclass
class Walk:
    """Result of a walk over the steps.

    Attributes:
        z: ``[hyper, ceil(h/4), ceil(w/4)]`` int64.
        codes: ``[m, h, w]`` int64, of the slices that were coded.
        latents: ``[M, h, w]`` float32, code + mean, multiples of 1/16.
        steps: what went through the coder.
    """

    z: Codes
    codes: Codes
    latents: npt.NDArray[np.float32]
    steps: list[Step] = field(default_factory=list)


# What gives a step its codes: (slice, cells of the step, means [n, c], scales [n, c]) -> codes [n, c] int.
Source = Callable[[int, npt.NDArray[np.int64], Tensor, Tensor], Tensor]


class Linears:
    """The exact layers of one slice."""

    def __init__(self, make: Callable[..., ExactLinear], name: str, blocks: int) -> None:
        self.base = make(f"{name}.base", 127, -STREAM_MAX, STREAM_MAX)
        self.own = make(f"{name}.own", 127, -STREAM_MAX, STREAM_MAX)
        self.up = [make(f"{name}.head.up.{j}", 127, 0, 255) for j in range(blocks)]
        self.down = [make(f"{name}.head.down.{j}", 255, -STREAM_MAX, STREAM_MAX, 0) for j in range(blocks)]
        self.head = make(f"{name}.head.head", 127, 0, 255)
        self.mean = make(f"{name}.head.mean", 255, -STREAM_MAX, STREAM_MAX, 0)
        self.scale = make(f"{name}.head.scale", 255, 0, SCALES - 1, 0)

    def fits(self) -> bool:
        """Whether each layer takes what the one before makes."""
        width, head = self.base.n_out, self.head.n_out
        return (
            all(layer.n_out == width for layer in (self.own, *self.down))
            and all(layer.n_in == width for layer in (self.head, *self.up))
            and all(down.n_in == up.n_out for up, down in zip(self.up, self.down, strict=True))
            and self.mean.n_in == self.scale.n_in == head
        )

    def __call__(self, stream: Tensor) -> tuple[Tensor, Tensor]:
        """Stream ``[n, C]`` to means in 16ths and scales, ``[n, c]`` each."""
        for up, down in zip(self.up, self.down, strict=True):
            stream = (stream + down(up(_act(stream)))).clamp_(-STREAM_MAX, STREAM_MAX)
        hidden = self.head(_act(stream))
        return self.mean(hidden), self.scale(hidden)


def _act(stream: Tensor) -> Tensor:
    return (stream * 2.0 ** (ACT_BITS - STREAM_BITS) + 0.5).floor_().clamp_(-127, 127)


def compand_integers(latents: Tensor) -> Tensor:
    """Latents in 16ths to what the nets see, -127..127; the integers of :func:`~.hyperprior_net.compand`."""
    inner, total, edge = torch.zeros_like(latents), torch.zeros_like(latents), 0
    for width, slope in KNEES:
        edge += width
        outer = latents.clamp(-edge, edge)
        total += ((outer - inner) / slope + 0.5).floor_() if slope > 1 else outer - inner
        inner = outer
    return total


class Layout:
    """Where the cells of a grid are.

    Attributes:
        cells: those of both halves of the checkerboard in raster order; cell (0, 0) is of the first.  index: the same
            on the device.
        around: places of the window of each cell of the second half in a map with a border of two, ``[cells, P]``.
    """

    def __init__(self, grid: tuple[int, int], device: torch.device) -> None:
        h, w = grid
        parity = (np.add.outer(np.arange(h), np.arange(w)) % 2).reshape(-1)
        self.cells = [np.flatnonzero(parity == phase) for phase in (0, 1)]
        self.index = [torch.from_numpy(cells).to(device) for cells in self.cells]
        rows, columns = np.divmod(self.cells[1], w)
        around = np.stack([(rows + 2 + dy) * (w + 4) + columns + 2 + dx for dy, dx in DIAMOND], 1)
        self.around = torch.from_numpy(around.astype(np.int64)).to(device)
        self.walks = 0  # how often a GPU has walked here
        self.graphs: WalkGraphs | None = None


class WalkRun:
    """A walk under way: means and scales of a step, given the latents of the steps before.

    Nothing in it waits for the device. Latents are in 16ths.
    """

    def __init__(self, prior: HyperPrior, grid: tuple[int, int]) -> None:
        self.prior, self.grid = prior, grid
        self.layout = prior.layout(grid)
        first = prior.nets[0].base
        self.small = torch.int8 if first.int8 else prior.dtype  # of what the nets read
        cells = grid[0] * grid[1]
        self.known = torch.zeros(cells, prior.latents, dtype=prior.dtype, device=prior.device)
        self.seen = torch.zeros(*grid, prior.latents, dtype=self.small, device=prior.device)  # companded
        self.features = self.base = torch.zeros(0, device=prior.device)

    def begin(self, x: Tensor) -> None:
        """Take what :meth:`HyperPrior.inputs` made."""
        h, w = self.grid
        self.features = self.prior.features(x)[:h, :w].reshape(h * w, -1).to(self.small)

    def predict(self, i: int, phase: int) -> tuple[Tensor, Tensor]:
        """Means in 16ths and scales of one half of a slice's cells, ``[n, c]`` each."""
        h, w = self.grid
        net, begin, n = self.prior.nets[i], self.prior.starts[i], self.prior.slices[i]
        if phase == 0:
            seen = self.seen[:, :, :begin]
            self.base = net.base(torch.cat([self.features, square(seen)], 1) if i else self.features)  # [h w, C]
        stream = self.base[self.layout.index[phase]]
        if phase:
            own = compand_integers(self.known[:, begin : begin + n]).to(self.small)
            own = F.pad(own.view(h, w, n), (0, 0, 2, 2, 2, 2)).view(-1, n)[self.layout.around]  # [cells, P, n]
            stream = (stream + net.own(own.flatten(1))).clamp_(-STREAM_MAX, STREAM_MAX)
        return net(stream)

    def take(self, i: int, phase: int, mean: Tensor, code: Tensor | None) -> None:
        """Go on with the codes ``[n, c]`` of a step, or with its means."""
        begin, end = self.prior.starts[i], self.prior.starts[i + 1]
        part = self.known[:, begin:end]
        part[self.layout.index[phase]] = mean if code is None else mean + code * 2**MEAN_BITS
        if phase == 0:
            part.index_fill_(0, self.layout.index[1], 0)  # not known yet
        else:
            self.seen[:, :, begin:end] = compand_integers(part).view(*self.grid, -1).to(self.small)

    def latents(self) -> Tensor:
        """What is known, ``[M, h, w]`` float32."""
        return (self.known.float() * 2.0**-MEAN_BITS).T.reshape(-1, *self.grid).contiguous()


def runs_of(tables: npt.NDArray[np.int64]) -> Iterator[tuple[int, slice]]:
    """Sorted ``tables [n]`` as (table, its places)."""
    if not tables.size:
        return
    edges = np.flatnonzero(np.diff(tables)) + 1
    for begin, end in zip([0, *edges.tolist()], [*edges.tolist(), tables.size], strict=True):
        yield int(tables[begin]), slice(begin, end)


def square(x: Tensor) -> Tensor:
    """``[h, w, C]`` to the 3 x 3 windows ``[h w, 9 C]``, zeros outside."""
    h, w, _ = x.shape
    padded = F.pad(x, (0, 0, 1, 1, 1, 1))
    return torch.cat([padded[1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w] for dy, dx in SQUARE], 2).view(h * w, -1)


def shuffle_cells(x: Tensor) -> Tensor:
    """``[h, w, 4 C] -> [2 h, 2 w, C]``."""
    h, w, c = x.shape
    return x.view(h, w, 2, 2, c // 4).permute(0, 2, 1, 3, 4).reshape(2 * h, 2 * w, c // 4)
