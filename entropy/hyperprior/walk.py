"""One walk through the slices of a hyperprior: predict, quantise or decode, step by step, in exact integers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ..integer import ACT_BITS, STREAM_BITS, STREAM_MAX, ExactLinear
from ..orders import Order
from .net import KNEES, MEAN_BITS, SCALES, SQUARE, STATE_STEP, own_name

CODE_MAX = 2047  # codes are -CODE_MAX..CODE_MAX
Codes = npt.NDArray[np.int64]


class Networks(Protocol):
    """What a walk asks of the entropy model that it is a walk of, see :class:`~.prior.HyperPrior`."""

    device: torch.device
    dtype: torch.dtype
    slices: tuple[int, ...]
    starts: list[int]
    nets: list[Linears]
    hyper: int
    kinds: int
    skip: int

    @property
    def latents(self) -> int: ...
    @property
    def steps(self) -> Sequence[tuple[int, int]]: ...
    def layout(self, grid: tuple[int, int]) -> Layout: ...
    def features(self, x: Tensor) -> Tensor: ...
    def code_of(self, values: Tensor, mean: Tensor, scale: Tensor) -> Tensor: ...


@dataclass
class Step:
    """What one step of the walk coded: the codes of one step of a slice, by table."""

    layer: int  # slice
    codes: npt.NDArray[np.int16]  # [n] those that are coded, sorted by table
    tables: npt.NDArray[np.uint8]  # [n] their scales


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

    @property
    def grid(self) -> tuple[int, int]:
        """h and w."""
        return self.codes.shape[1], self.codes.shape[2]

    def coded(self) -> Walk:
        """What goes through the coder alone, a tenth of the memory: no codes and no latents."""
        nothing = (0, *self.grid)
        return Walk(self.z, np.empty(nothing, np.int64), np.empty(nothing, np.float32), self.steps)


# What gives a step its codes: (slice, cells of the step, means [n, c], scales [n, c]) -> codes [n, c] int.
Source = Callable[[int, npt.NDArray[np.int64], Tensor, Tensor], Tensor]


class State:
    """The exact layers that carry the state on to a slice; see :class:`~.net.StateBlock`."""

    def __init__(self, make: Callable[..., ExactLinear], name: str) -> None:
        self.enter = make(f"{name}.enter", 127, 0, 255)
        self.spatial = make(f"{name}.spatial", 255, 0, 255, 0)
        self.expand = make(f"{name}.expand", 255, -STATE_STEP, STATE_STEP, 0)

    def fits(self, features: int, last: int) -> bool:
        """Whether the layers take each other's outputs, a state of ``features`` and a slice of ``last`` channels."""
        inner = self.enter.n_out
        return (
            self.enter.n_in == features + len(SQUARE) * last
            and self.spatial.n_in == len(SQUARE) * inner
            and self.spatial.n_out == self.expand.n_in == inner
            and self.expand.n_out == features
        )

    def __call__(self, state: Tensor, small: Tensor, last: Tensor | None, grid: tuple[int, int]) -> Tensor:
        """State ``[h w, F]`` and the last slice's channels ``[h, w, c]``, companded, to the next state ``[h w, F]``.

        Args: small: the state in the type of ``last``.
        """
        x = self.enter(small if last is None else torch.cat([small, square(last)], 1))
        x = self.expand(self.spatial(square(x.view(*grid, -1))))
        return (state + x).clamp_(-127, 127)


class Linears:
    """The exact layers of one slice."""

    def __init__(self, make: Callable[..., ExactLinear], name: str, blocks: int, order: Order, state: bool) -> None:
        self.order = order
        self.state = State(make, f"{name}.state") if state else None
        self.base = make(f"{name}.base", 127, -STREAM_MAX, STREAM_MAX)
        names = [own_name(order, step) for step in range(1, order.n)]
        self.own = [make(f"{name}.{own}", 127, -STREAM_MAX, STREAM_MAX) for own in names]
        self.up = [make(f"{name}.head.up.{j}", 127, 0, 255) for j in range(blocks)]
        self.down = [make(f"{name}.head.down.{j}", 255, -STREAM_MAX, STREAM_MAX, 0) for j in range(blocks)]
        self.head = make(f"{name}.head.head", 127, 0, 255)
        self.mean = make(f"{name}.head.mean", 255, -STREAM_MAX, STREAM_MAX, 0)
        self.scale = make(f"{name}.head.scale", 255, 0, SCALES - 1, 0)

    def fits(self) -> bool:
        """Whether each layer takes what the one before makes."""
        width, head = self.base.n_out, self.head.n_out
        return (
            all(layer.n_out == width for layer in (*self.own, *self.down))
            and all(layer.n_in == width for layer in (self.head, *self.up))
            and all(down.n_in == up.n_out for up, down in zip(self.up, self.down, strict=True))
            and self.mean.n_in == self.scale.n_in == head
        )

    def reads(self, channels: int) -> bool:
        """Whether the maps of the slice's own cells take ``channels`` of them."""
        known = [len(self.order.offsets(step)) for step in range(1, self.order.n)]
        return all(own.n_in == n * channels for own, n in zip(self.own, known, strict=True))

    def __call__(self, stream: Tensor) -> tuple[Tensor, Tensor]:
        """Stream ``[n, C]`` to means in 16ths and scales, ``[n, c]`` each."""
        for up, down in zip(self.up, self.down, strict=True):
            stream = (stream + down(up(_act(stream)))).clamp_(-STREAM_MAX, STREAM_MAX)
        hidden = self.head(_act(stream))
        return self.mean(hidden), self.scale(hidden)


def _act(stream: Tensor) -> Tensor:
    return (stream * 2.0 ** (ACT_BITS - STREAM_BITS) + 0.5).floor_().clamp_(-127, 127)


def compand_integers(latents: Tensor) -> Tensor:
    """Latents in 16ths to what the nets see, -127..127; the integers of :func:`~.net.compand`."""
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
        cells: of each order, those of its steps in raster order.  index: the same on the device.
        around: of each order and step, places of the window of each cell in a map with a border of the order's reach,
            ``[cells, P]``.
    """

    def __init__(self, grid: tuple[int, int], device: torch.device, orders: Iterable[Order]) -> None:
        self.cells: dict[Order, list[npt.NDArray[np.int64]]] = {}
        self.index: dict[Order, list[Tensor]] = {}
        self.around: dict[Order, list[Tensor]] = {}
        for order in orders:
            steps = range(order.n)
            self.cells[order] = [order.cells(grid, step) for step in steps]
            self.index[order] = [torch.from_numpy(cells).to(device) for cells in self.cells[order]]
            self.around[order] = [self._windows(grid, order, step).to(device) for step in steps]
        self.walks = 0  # how often a GPU has walked here
        self.graphs: Any = None  # of the walks over this grid, once there are some; see graphs.py

    def _windows(self, grid: tuple[int, int], order: Order, step: int) -> Tensor:
        border, width = order.reach, grid[1] + 2 * order.reach
        rows, columns = np.divmod(self.cells[order][step], grid[1])
        places = [(rows + border + dy) * width + columns + border + dx for dy, dx in order.offsets(step)]
        return torch.from_numpy(np.stack(places, 1).astype(np.int64) if places else np.zeros((len(rows), 0), np.int64))


class WalkRun:
    """A walk under way: means and scales of a step, given the latents of the steps before.

    Nothing in it waits for the device. Latents are in 16ths.
    """

    def __init__(self, prior: Networks, grid: tuple[int, int]) -> None:
        self.prior, self.grid = prior, grid
        self.layout = prior.layout(grid)
        first = prior.nets[0].base
        self.small = torch.int8 if first.int8 else prior.dtype  # of what the nets read
        cells = grid[0] * grid[1]
        self.known = torch.zeros(cells, prior.latents, dtype=prior.dtype, device=prior.device)
        self.seen = torch.zeros(*grid, prior.latents, dtype=self.small, device=prior.device)  # companded
        self.state = self.features = self.base = torch.zeros(0, device=prior.device)

    def begin(self, x: Tensor) -> None:
        """Take what :meth:`~.prior.HyperPrior.inputs` made."""
        h, w = self.grid
        self.state = self.prior.features(x)[:h, :w].reshape(h * w, -1)
        self.features = self.state.to(self.small)

    def predict(self, i: int, step: int) -> tuple[Tensor, Tensor]:
        """Means in 16ths and scales of the cells of one step of a slice, ``[n, c]`` each."""
        h, w = self.grid
        net, begin, n = self.prior.nets[i], self.prior.starts[i], self.prior.slices[i]
        order = net.order
        if step == 0:
            if net.state is not None:
                last = self.seen[:, :, self.prior.starts[i - 1] : begin] if i else None
                self.state = net.state(self.state, self.features, last, self.grid)
                self.features = self.state.to(self.small)
            seen = self.seen[:, :, :begin]
            self.base = net.base(torch.cat([self.features, square(seen)], 1) if i else self.features)  # [h w, C]
        stream = self.base[self.layout.index[order][step]]
        if step:
            own = compand_integers(self.known[:, begin : begin + n]).to(self.small)
            edge = order.reach
            own = F.pad(own.view(h, w, n), (0, 0, edge, edge, edge, edge)).view(-1, n)
            own = own[self.layout.around[order][step]]  # [cells, P, n]
            stream = (stream + net.own[step - 1](own.flatten(1))).clamp_(-STREAM_MAX, STREAM_MAX)
        return net(stream)

    def take(self, i: int, step: int, mean: Tensor, code: Tensor | None) -> None:
        """Go on with the codes ``[n, c]`` of a step, or with its means."""
        begin, end = self.prior.starts[i], self.prior.starts[i + 1]
        part, order = self.known[:, begin:end], self.prior.nets[i].order
        if step == 0:
            part.zero_()  # what an earlier walk knew
        part[self.layout.index[order][step]] = mean if code is None else mean + code * 2**MEAN_BITS
        if step == order.n - 1:
            self.seen[:, :, begin:end] = compand_integers(part).view(*self.grid, -1).to(self.small)

    def latents(self) -> Tensor:
        """What is known, ``[M, h, w]`` float32."""
        return (self.known.float() * 2.0**-MEAN_BITS).T.reshape(-1, *self.grid).contiguous()


def runs_of(tables: npt.NDArray[np.integer]) -> Iterator[tuple[int, slice]]:
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
