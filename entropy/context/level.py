"""One level of the context prior: its integer network, and the steps in which a grid is coded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..integer import (
    ACT_BITS,
    EXACT,
    LOGIT_BITS,
    LOGIT_MAX,
    STREAM_BITS,
    STREAM_MAX,
    ExactLinear,
    check_linear,
    exact_dtype,
    frequencies,
)
from ..recording import recording
from ..schedule import Schedule
from ..tree import CodeTree

Arrays = Mapping[str, npt.NDArray[Any]]
ROWS = 512  # cells whose tables are computed at once where all codes are known
GRAPH_AFTER = 2  # runs over a grid before CUDA graphs are captured for it
KEPT_GRIDS = 8
KEPT_NEIGHBOURS = 1 << 23  # of all kept grids together: 128 MiB for a level
STEP_ROWS = 1 << 13  # cells of a step whose tables are computed at once
Int64Array = npt.NDArray[np.int64]
Shares = npt.NDArray[np.float32]


class ContextLevel:
    """The integer network of one level.

    Args:
        arrays: the level's part of the prior's file; FORMAT.md lists them.
        sizes: codebook sizes of the levels that it sees, its own last.

    Raises: ValueError if the arrays do not fit each other, or if a sum could leave the exact range.
    """

    def __init__(self, arrays: Arrays, sizes: Sequence[int], device: torch.device) -> None:
        try:
            self._build(arrays, list(sizes), device)
        except KeyError as error:
            raise ValueError(f"the context model lacks {error}") from error

    def _build(self, arrays: Arrays, sizes: list[int], device: torch.device) -> None:
        self.device, self.sizes = device, sizes
        self.dtype = dtype = exact_dtype(device)
        used: set[str] = set()

        def take(name: str, dtype: type[np.integer], *shape: int | None) -> npt.NDArray[Any]:
            """An array of this type and shape; None in a shape is any size but 0."""
            array = arrays[name]
            used.add(name)
            fits = array.ndim == len(shape) and all(
                n == m or (m is None and n) for n, m in zip(array.shape, shape, strict=True)
            )
            if array.dtype != dtype or not fits:
                wanted = ", ".join("any" if n is None else str(n) for n in shape)
                raise ValueError(
                    f"context model: {name} is {array.dtype} {array.shape}, not {np.dtype(dtype)} [{wanted}]"
                )
            return array

        def parts(name: str, n_out: int | None, n_in: int) -> dict[str, npt.NDArray[Any]]:
            weight = take(f"{name}.weight", np.int8, n_out, n_in)
            return {
                "weight": weight,
                "bias": take(f"{name}.bias", np.int32, len(weight)),
                "shift": take(f"{name}.shift", np.uint8, len(weight)),
            }

        def linear(name: str, n_out: int | None, n_in: int, input_max: int, low: int, high: int) -> ExactLinear:
            input_min = 0 if input_max == 255 else -input_max
            return ExactLinear(
                parts(name, n_out, n_in), input_max, low, high, device=device, dtype=dtype, input_min=input_min
            )

        bases = tuple(int(b) for b in take("bases", np.int32, None))
        self.tree = CodeTree(bases, take("leaf", np.int32, sizes[-1]).astype(np.int64))
        period = take("period", np.int32, None)
        self.schedule = Schedule(tuple(int(p) for p in period), tuple(int(s) for s in take("steps", np.int32, None)))
        self.offsets = take("offsets", np.int32, None, len(period)).astype(np.int64)
        table = take("table", np.int8, sum(n + 1 for n in sizes) + 1, None)
        if table.min() < -127:
            raise ValueError("context model: the embedding table leaves -127..127")
        self.table = torch.from_numpy(table.astype(np.float32)).to(device, dtype)
        self.first_row = [int(row) for row in np.cumsum([0] + [n + 1 for n in sizes])]
        self.input = linear("input", None, len(self.offsets) * table.shape[1], 127, low=-STREAM_MAX, high=STREAM_MAX)
        width = self.input.n_out
        self.up: list[ExactLinear] = []
        self.down: list[ExactLinear] = []
        while f"up.{len(self.up)}.weight" in arrays:
            i = len(self.up)
            self.up.append(linear(f"up.{i}", None, width, 127, low=0, high=255))
            self.down.append(linear(f"down.{i}", width, self.up[i].n_out, 255, low=-STREAM_MAX, high=STREAM_MAX))
        self.head = [linear(f"head.{i}", None, width, 127, low=-(1 << 16), high=1 << 16) for i in range(len(bases))]
        hidden = [head.n_out for head in self.head]
        self.first_logits = linear("logits.0", bases[0], hidden[0], 255, low=-LOGIT_MAX, high=LOGIT_MAX)
        self.prefix, self.weight, self.bias = [], [], []
        before = 1
        for i in range(1, len(bases)):
            before *= bases[i - 1]
            prefix = take(f"prefix.{i}", np.int32, before, hidden[i])
            weight, bias, shift = check_linear(parts(f"logits.{i}", before * bases[i], hidden[i]), 255)
            scale = 2.0**-shift
            self.prefix.append(torch.from_numpy(prefix.clip(-EXACT, EXACT)).to(device, dtype))
            rows = (weight * scale[:, None]).reshape(before, bases[i], -1)
            self.weight.append(torch.from_numpy(rows).to(device, dtype))  # [prefixes, base, hidden]
            self.bias.append(torch.from_numpy((bias * scale + 0.5).reshape(before, bases[i])).to(device, dtype))
        if used != set(arrays):
            raise ValueError(f"context model: nobody needs {', '.join(sorted(set(arrays) - used))}")
        self._layouts: dict[tuple[int, ...], Layout] = {}
        self.graphs: dict[tuple[int, ...], StepGraphs] = {}
        self.runs: Counter[tuple[int, ...]] = Counter()

    def layout(self, grid: tuple[int, ...]) -> Layout:
        """Neighbours and steps of a grid; kept for the next call unless they are many."""
        if math.prod(grid) * len(self.offsets) > KEPT_NEIGHBOURS:
            return Layout(self, grid)
        if grid not in self._layouts:
            held = sum(layout.n for layout in self._layouts.values()) + math.prod(grid)
            if len(self._layouts) >= KEPT_GRIDS or held * len(self.offsets) > KEPT_NEIGHBOURS:
                for kept in (self._layouts, self.graphs, self.runs):
                    kept.clear()
            self._layouts[grid] = Layout(self, grid)
        return self._layouts[grid]

    def hidden(self, x: Tensor) -> Tensor:
        """Windows ``[n, P * F]`` to what the heads read, ``[n, C]``."""
        h = self.input(x)
        for up, down in zip(self.up, self.down, strict=True):
            h = h.add_(down(up(_activation(h)))).clamp_(-STREAM_MAX, STREAM_MAX)
        return _activation(h)

    def logits(self, a: Tensor, digit: int, prefix: Tensor | None = None) -> Tensor:
        """Logits ``[n, base]`` of a digit, after the digits before it as one number, ``prefix [n]``."""
        v = self.head[digit](a)
        if prefix is None:
            return self.first_logits(v.clamp_(0, 255))
        v = v.add_(self.prefix[digit - 1].index_select(0, prefix)).clamp_(0, 255)
        rows = self.weight[digit - 1].index_select(0, prefix)  # [n, base, hidden]
        out = torch.baddbmm(self.bias[digit - 1].index_select(0, prefix)[:, :, None], rows, v[:, :, None])
        return out[:, :, 0].floor_().clamp_(-LOGIT_MAX, LOGIT_MAX)

    def probabilities(self, a: Tensor) -> Tensor:
        """Probabilities of all codes, ``[n, N]`` float64: for estimates, not for the coder."""
        found = (self.logits(a, 0).double() * (math.log(2) / (1 << LOGIT_BITS))).softmax(-1)  # [n, bases[0]]
        for i, (prefix, weight, bias) in enumerate(zip(self.prefix, self.weight, self.bias, strict=True), 1):
            v = (self.head[i](a)[:, None] + prefix).clamp_(0, 255)  # [n, prefixes, hidden]
            logits = torch.einsum("nph,pbh->npb", v, weight).add_(bias).floor_()
            inner = (logits.double() * (math.log(2) / (1 << LOGIT_BITS))).softmax(-1)
            found = (found[:, :, None] * inner).flatten(1)
        leaf = torch.from_numpy(self.tree.leaf).to(self.device)
        found = found[:, leaf]
        return found / found.sum(-1, keepdim=True)


def _activation(h: Tensor) -> Tensor:
    return h.mul(2.0 ** (ACT_BITS - STREAM_BITS)).add_(0.5).floor_().clamp_(-127, 127)


class Layout:
    """What a level needs to know about a grid.

    Neighbours take 8 bytes for each of the P places that a cell looks at, so those of large grids are computed for the
    cells at hand; such a layout holds some 16 bytes a cell.

    Attributes:
        n: cells of the grid.
        kept: whether the neighbours of all cells are in memory.
        steps: flat indices of the cells of each step, on the host.
        cells: the same on the device.
        windows: ``[m * P]`` neighbours of the cells of each step, on the device, if they are kept.
    """

    def __init__(self, level: ContextLevel, grid: tuple[int, ...]) -> None:
        self.n, self.grid = math.prod(grid), grid
        self.offsets = torch.from_numpy(level.offsets).to(level.device)
        self.steps = list(level.schedule.run(grid))
        self.cells = [torch.from_numpy(step).to(level.device) for step in self.steps]
        self.kept = self.n * len(self.offsets) <= KEPT_NEIGHBOURS
        self._neighbours = self._look(torch.arange(self.n, device=level.device), self.offsets) if self.kept else None
        self.windows = [self.near(cells).view(-1) for cells in self.cells] if self.kept else []

    def near(self, cells: Tensor, places: Tensor | None = None) -> Tensor:
        """Flat indices ``[m, P]`` of the neighbours of some cells, n for those outside; of some ``places`` if given."""
        if self._neighbours is not None:
            found = self._neighbours[cells]
            return found if places is None else found[:, places]
        return self._look(cells, self.offsets if places is None else self.offsets[places])

    def _look(self, cells: Tensor, offsets: Tensor) -> Tensor:
        flat = torch.zeros(len(cells), len(offsets), dtype=torch.int64, device=cells.device)
        inside = torch.ones_like(flat, dtype=torch.bool)
        rest = self.n
        for size, along in zip(self.grid, offsets.T, strict=True):
            rest //= max(1, size)
            there = (cells // max(1, rest) % max(1, size))[:, None] + along
            inside &= (there >= 0) & (there < size)
            flat.mul_(size).add_(there)
        return flat.masked_fill_(~inside, self.n)

    @cached_property
    def order(self) -> Tensor:
        """The cells ``[n]`` in coding order."""
        return torch.cat(self.cells)

    @cached_property
    def _step_of(self) -> Tensor:
        found = self.order.new_full((self.n + 1,), len(self.steps))  # cells outside: never
        for step, cells in enumerate(self.cells):
            found[cells] = step
        return found

    @cached_property
    def _walk(self) -> Tensor:
        return self._known(self.order)

    def _known(self, cells: Tensor) -> Tensor:
        window = self.near(cells)
        return window + (self.n + 1) * (self._step_of[window] < self._step_of[cells][:, None])

    def walk(self, part: slice) -> Tensor:
        """For a coder that knows all codes: neighbours ``[m, P]`` of a part of the cells in coding order, n + 1 added
        to those that are coded in an earlier step."""
        return self._walk[part] if self.kept else self._known(self.order[part])


class LevelRun:
    """One level of one grid while it is coded: what is known so far.

    Args: codes: ``[k, n]`` of the other levels that it sees, -1 where one is missing.
    """

    def __init__(self, level: ContextLevel, codes: Tensor, grid: tuple[int, ...]) -> None:
        self.level, self.layout = level, level.layout(grid)
        # Sums of rows for each cell, the last one for cells outside: of the other levels, and with the own level's.
        self.coarser = level.table.new_empty(math.prod(grid) + 1, level.table.shape[1])  # [n + 1, F]
        self.map = torch.empty_like(self.coarser, dtype=torch.int8 if level.input.int8 else level.dtype)
        self.a = [self.map]  # what the heads read for the step at hand, blocks of [m, C]
        self.begin(codes)

    def begin(self, codes: Tensor) -> None:
        """Forget all codes of the own level, take others of the other levels."""
        table, first = self.level.table, self.level.first_row
        self.coarser.zero_()
        for own, start, end in zip(codes, first, first[1:], strict=False):
            self.coarser[:-1] += table.index_select(0, torch.where(own < 0, end - 1, own + start))
            self.coarser[-1] += table[end - 1]
        own_row = table[first[-1] - 1].expand_as(self.coarser).clone()
        own_row[-1] = table[-1]
        self.map.copy_(own_row.add_(self.coarser).clamp_(-127, 127))

    def tables(self, step: int, digit: int, prefix: Int64Array) -> Shares:
        """Tables ``[m, base]`` of a digit of the step's cells; digit 0 first. ``prefix [m]``: the digits before it."""
        if digit == 0:
            self.a = list(self._read(step, len(prefix)))
        before = torch.from_numpy(prefix).to(self.level.device).split(STEP_ROWS) if digit else [None] * len(self.a)
        found = [_to_host(frequencies(self.level.logits(a, digit, b))) for a, b in zip(self.a, before, strict=True)]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _read(self, step: int, n: int) -> Iterator[Tensor]:
        """What the heads read for the n cells of a step, in blocks."""
        if n <= STEP_ROWS and self.layout.kept:
            yield self.hidden(self.layout.windows[step], n)
            return
        for cells in self.layout.cells[step].split(STEP_ROWS):
            yield self.hidden(self.layout.near(cells).view(-1), len(cells))

    def put(self, step: int, codes: Int64Array) -> None:
        """From now on the step's cells are known to hold ``codes [m]``."""
        self.know(self.layout.cells[step], torch.from_numpy(codes).to(self.level.device))

    def hidden(self, window: Tensor, n: int) -> Tensor:
        """What the heads read for n cells with neighbours ``window [n * P]``, ``[n, C]``."""
        return self.level.hidden(self.map.index_select(0, window).view(n, -1))

    def all_tables(self, codes: Int64Array) -> Iterator[list[tuple[Int64Array, Shares]]]:
        """Digits and their tables for each step, all ``codes [n]`` of the level known: steps need not wait."""
        level, order = self.level, self.layout.order
        unknown = self.map.clone()
        self.know(order, torch.from_numpy(codes).to(level.device)[order])
        rows = torch.cat([unknown, self.map])
        cells = np.concatenate(self.layout.steps)
        rest, leaf = level.tree.code.size, level.tree.leaf[codes[cells]]
        digits: list[tuple[Int64Array, Int64Array]] = []  # of all cells, and those before them as one number
        for base in level.tree.bases:
            prefix = leaf // rest
            rest //= base
            digits.append((leaf // rest % base, prefix))
        found: list[list[Shares]] = [[] for _ in digits]
        for begin in range(0, len(cells), ROWS):
            part = slice(begin, begin + ROWS)
            a = level.hidden(rows.index_select(0, self.layout.walk(part).reshape(-1)).view(len(cells[part]), -1))
            for i, (_, prefix) in enumerate(digits):
                before = torch.from_numpy(prefix[part]).to(level.device) if i else None
                found[i].append(_to_host(frequencies(level.logits(a, i, before))))
        tables = [np.concatenate(parts) for parts in found]
        end = 0
        for step in self.layout.steps:
            begin, end = end, end + len(step)
            yield [(values[begin:end], own[begin:end]) for (values, _), own in zip(digits, tables, strict=True)]

    def know(self, cells: Tensor, codes: Tensor) -> None:
        """Put ``codes [m]`` into the map at ``cells [m]``."""
        rows = self.level.table.index_select(0, codes + self.level.first_row[-2])
        rows = rows.add_(self.coarser.index_select(0, cells)).clamp_(-127, 127)
        self.map.index_copy_(0, cells, rows.to(self.map.dtype))


class StepGraphs:
    """A :class:`LevelRun` whose steps are CUDA graphs: a step is some hundred small kernels, and launching them one by
    one takes longer than they run. Captured once for a level and a grid; one run at a time.
    """

    def __init__(self, level: ContextLevel, grid: tuple[int, ...]) -> None:
        self.level, self.n = level, math.prod(grid)
        none = torch.zeros(len(level.sizes) - 1, self.n, dtype=torch.int64, device=level.device)
        self.run = LevelRun(level, none, grid)
        self.layout = self.run.layout
        frequencies(level.logits(self.run.hidden(self.layout.windows[0], len(self.layout.steps[0])), 0))  # warm up
        self.tables_of: list[list[tuple[torch.cuda.CUDAGraph, Tensor, Tensor]]] = []
        self.puts: list[tuple[torch.cuda.CUDAGraph, Tensor]] = []
        pool = None
        for step, cells in enumerate(self.layout.cells):
            m = len(cells)
            digits = []
            for digit, base in enumerate(level.tree.bases):
                given = torch.zeros(m, dtype=torch.int64, pin_memory=True)
                found = torch.zeros(m, base, dtype=torch.float32, pin_memory=True)
                graph = torch.cuda.CUDAGraph()
                with recording(graph, pool):
                    if digit == 0:
                        a = self.run.hidden(self.layout.windows[step], m)
                        logits = level.logits(a, 0)
                    else:
                        logits = level.logits(a, digit, given.to(level.device, non_blocking=True))
                    found.copy_(frequencies(logits), non_blocking=True)
                pool = pool or graph.pool()
                digits.append((graph, given, found))
            self.tables_of.append(digits)
            codes = torch.zeros(m, dtype=torch.int64, pin_memory=True)
            graph = torch.cuda.CUDAGraph()
            with recording(graph, pool):
                self.run.know(cells, codes.to(level.device, non_blocking=True))
            self.puts.append((graph, codes))
        torch.cuda.current_stream(level.device).synchronize()

    def start(self, codes: Tensor) -> StepGraphs:
        """Begin a new run; ``codes [k, n]`` as for :class:`LevelRun`."""
        self.run.begin(codes)
        return self

    def tables(self, step: int, digit: int, prefix: Int64Array) -> Shares:
        """As :meth:`LevelRun.tables`; the array is overwritten by the next run."""
        graph, given, found = self.tables_of[step][digit]
        given.numpy()[:] = prefix
        graph.replay()
        torch.cuda.current_stream(self.level.device).synchronize()
        shares: Shares = found.numpy()
        return shares

    def put(self, step: int, codes: Int64Array) -> None:
        """As :meth:`LevelRun.put`."""
        graph, given = self.puts[step]
        given.numpy()[:] = codes  # the step's tables were waited for, so the last copy from here is done
        graph.replay()


def start_run(level: ContextLevel, codes: Tensor, grid: tuple[int, ...]) -> LevelRun | StepGraphs:
    """Begin to code a level: step by step, or with graphs on a GPU that has seen this grid before."""
    if level.device.type == "cuda" and level.layout(grid).kept:
        level.runs[grid] += 1
        if level.runs[grid] > GRAPH_AFTER and len(level.layout(grid).steps) <= 64:
            if grid not in level.graphs:
                level.graphs[grid] = StepGraphs(level, grid)
            return level.graphs[grid].start(codes)
    return LevelRun(level, codes, grid)


def _to_host(shares: Tensor) -> Shares:
    found: Shares = shares.cpu().numpy()
    return found
