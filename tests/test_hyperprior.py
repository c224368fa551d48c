"""The hyperprior: latents to codes to bytes and back, the same integers everywhere.

Networks are tiny and random, with means and scales that vary from cell to cell. An oracle in NumPy's 64-bit integers
computes every step again, cell by cell, from the arrays of the file.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import Tensor

from tokodec.entropy import integer
from tokodec.entropy.coder import IndexedEncoder, TableEncoder
from tokodec.entropy.context.net import RoundedLinear
from tokodec.entropy.hyperprior import prior as hyperprior
from tokodec.entropy.hyperprior import walk as hyperprior_walk
from tokodec.entropy.hyperprior.export import export_hyperprior, normal_tables, scale_reach
from tokodec.entropy.hyperprior.net import (
    HATS,
    HyperNet,
    HyperShape,
    LogisticMixture,
    bits,
    compand,
    inside,
    normal_mass,
    quality_hats,
    scale_values,
)
from tokodec.entropy.hyperprior.prior import HYPERPRIOR_FILE, HyperPrior
from tokodec.entropy.hyperprior.walk import CODE_MAX, Walk, compand_integers
from tokodec.entropy.hyperprior.windows import places_of, shuffle
from tokodec.entropy.orders import CHECKERBOARD, FINE, Order
from tokodec.entropy.packed import file_hash
from tokodec.entropy.tables import TOTAL, check_table, frequency_table, table_bits

Arrays = dict[str, np.ndarray]
Grid = tuple[int, int]
Cell = tuple[int, int]
CPU = torch.device("cpu")
SHAPE = HyperShape(hyper=6, slices=(2, 3, 5), middle=(8, 10), features=9, width=16, hidden=24, blocks=2, head=8)
DEEP = HyperShape(
    hyper=6, slices=(2, 3, 5), middle=(8, 10), features=9, width=16, hidden=24, blocks=2, head=8, fine=2, state=12
)  # fmt: skip
GRIDS: list[Grid] = [(1, 1), (3, 5), (4, 9), (17, 6), (8, 4), (1, 2), (2, 1)]
SQUARE = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0), (0, 1), (1, -1), (1, 0), (1, 1)]
DIAMOND = [
    (-2, -1), (-2, 1), (-1, -2), (-1, 0), (-1, 2), (0, -1), (0, 1), (1, -2), (1, 0), (1, 2), (2, -1), (2, 1),
]  # fmt: skip


LOUD = {  # signs of what every four channels of the residual stream get from each layer
    "base.bias": [1, 1, -1, -1],
    "own.bias": [1, 0, -1, 0],
    "down.0.bias": [-1, 1, 1, -1],
    "down.1.bias": [0, -1, 0, 1],
}


@functools.cache
def net_of(shape: HyperShape = SHAPE, loud: bool = False) -> HyperNet:
    """A network of random weights, in float64, whose convolutions are exact.

    With ``loud`` every sum in the residual stream may reach its end, 128, and what is added later leads back.
    """
    torch.manual_seed(0)
    net = HyperNet(shape).double().eval()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith(".bias"):
                parameter.uniform_(-0.5, 0.5)
            if name.endswith("head.mean.weight"):
                parameter.mul_(20)
            elif name.endswith("head.scale.weight"):
                parameter.mul_(12)
            elif name.endswith("head.scale.bias"):
                parameter.add_(18)
            signs = next((own for end, own in LOUD.items() if loud and name.endswith(end)), None)
            if signs:
                parameter.copy_(126 * torch.tensor(signs).repeat(len(parameter) // 4))
    return net


@functools.cache
def prior_of(skip: int = 5, shape: HyperShape = SHAPE, loud: bool = False) -> HyperPrior:
    """Exported from :func:`net_of`. With ``skip`` -1 every code is coded, as in training."""
    return HyperPrior(export_hyperprior(net_of(shape, loud), skip=skip))


def draw(prior: HyperPrior, grid: Grid, seed: int = 1, most: float = 400.0) -> tuple[np.ndarray, np.ndarray]:
    """Latents y from small to large, multiples of 1/256, and hyper latents z, some beyond their range."""
    rng = np.random.default_rng(seed)
    shape = (prior.latents, *grid)
    y = rng.normal(size=shape) * np.exp(rng.uniform(np.log(0.3), np.log(most), shape))
    z = rng.normal(size=(prior.hyper, -(-grid[0] // 4), -(-grid[1] // 4))) * 15
    return (np.round(y * 256) / 256).astype(np.float32), z.astype(np.float32)


def draw_likely(prior: HyperPrior, grid: Grid, quality: int, seed: int = 1) -> Walk:
    """A walk of codes as the prior expects them."""
    rng = np.random.default_rng(seed)
    n = (-(-grid[0] // 4), -(-grid[1] // 4))
    z = np.stack([rng.choice(63, n, p=table / table.sum()) - 31 for table in prior.z_tables])
    spread, reach = torch.from_numpy(scale_values()), torch.from_numpy(prior.reach)

    def source(_: int, __: np.ndarray, mean: Tensor, scale: Tensor) -> Tensor:
        index = scale.long()
        code = (torch.from_numpy(rng.normal(size=mean.shape)) * spread[index]).round()
        code = torch.minimum(torch.maximum(code, 1 - reach[index]), reach[index] - 1)
        return torch.where(scale > prior.skip, code, 0).to(mean.dtype)

    return prior.walk(z, prior._walk(z, grid, quality, source, len(prior.slices)).codes, quality)


def same(a: Walk, b: Walk) -> bool:
    """Whether two walks found the same."""
    pairs: list[tuple[np.ndarray, np.ndarray]] = [(a.z, b.z), (a.codes, b.codes), (a.latents, b.latents)]
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


def same_steps(a: Walk, b: Walk) -> bool:
    steps = zip(a.steps, b.steps, strict=True)
    return all(
        s.layer == t.layer and np.array_equal(s.codes, t.codes) and np.array_equal(s.tables, t.tables)
        for s, t in steps
    )  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- oracle

Choice = Callable[[slice, Cell, np.ndarray, np.ndarray], np.ndarray]


def step_of(at: Cell, fine: bool) -> int:
    """The step in which a cell is coded: half of a checkerboard, or coarse to fine."""
    row, column = at[0] % 4, at[1] % 4
    if not fine:
        return (row + column) % 2
    if row % 2 and column % 2:
        return 3
    if row % 2 or column % 2:
        return 5 if row % 2 else 4
    return 2 if row != column else row // 2


LATTICE = [(dy, dx) for dy in range(-3, 4) for dx in range(-3, 4)]
FINE_WINDOWS = {  # what a cell knows within three rows and columns, by step
    1: [(-2, -2), (-2, 2), (2, -2), (2, 2)],
    2: [(-2, 0), (0, -2), (0, 2), (2, 0)],
    3: [(dy, dx) for dy, dx in LATTICE if dy % 2 and dx % 2],
    4: [(dy, dx) for dy, dx in LATTICE if (dy + dx) % 2],
    5: [(dy, dx) for dy, dx in LATTICE if dy % 2 or dx % 2],
}


def plain_compand(v: int) -> int:
    """Exact up to 48, then a unit for 4 up to 208, then a unit for 32 up to 1456; half up."""
    a, b, c = (min(max(v, -top), top) for top in (48, 208, 1456))
    return a + (b - a + 2) // 4 + (c - b + 16) // 32


def plain_hats(quality: int) -> np.ndarray:
    """Two of eight control points share 32, by their distance to the quality, half up."""
    left = min(quality * 7 // 10000, 6)
    hats = np.zeros(8, np.int64)
    right = (64 * (7 * quality - 10000 * left) + 10000) // 20000
    hats[left], hats[left + 1] = 32 - right, right
    return hats


@dataclass
class PlainWalk:
    """What the oracle found: ``[M, h, w]`` each, and the coded symbols of every step in order."""

    means: np.ndarray
    scales: np.ndarray
    codes: np.ndarray
    steps: list[tuple[int, list[int], list[int]]] = field(default_factory=list)  # slice, tables, codes

    @property
    def values(self) -> np.ndarray:
        """Latents in 16ths."""
        return self.means + 16 * self.codes


class Plain:
    """The oracle of one file."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = {name: array.astype(np.int64) for name, array in arrays.items()}
        self.slices = self.arrays["slices"].tolist()
        self.skip = int(self.arrays["skip"][0])
        self.blocks = sum(name.startswith("slices.0.head.up.") for name in arrays) // 3

    def linear(self, name: str, x: np.ndarray, low: int, high: int) -> np.ndarray:
        weight, bias, shift = (self.arrays[f"{name}.{part}"] for part in ("weight", "bias", "shift"))
        return np.clip((2 * (weight @ x + bias) + (1 << shift)) >> (shift + 1), low, high)

    @staticmethod
    def window(cells: dict[Cell, np.ndarray], at: Cell, offsets: list[Cell], channels: int) -> np.ndarray:
        outside = np.zeros(channels, np.int64)
        return np.concatenate([cells.get((at[0] + dy, at[1] + dx), outside) for dy, dx in offsets])

    def up(self, cells: dict[Cell, np.ndarray], name: str, low: int, high: int) -> dict[Cell, np.ndarray]:
        found = {}
        for (row, column), x in cells.items():
            parts = self.linear(name, x, low, high).reshape(4, -1)
            for i, part in enumerate(parts):
                found[2 * row + i // 2, 2 * column + i % 2] = part
        return found

    def features(self, z: np.ndarray, quality: int) -> dict[Cell, np.ndarray]:
        x = {at: np.concatenate([4 * z[(slice(None), *at)], plain_hats(quality)]) for at in np.ndindex(z.shape[1:])}
        n = len(z) + 8
        x = {at: self.linear("decoder.enter", self.window(x, at, SQUARE, n), 0, 255) for at in x}
        x = self.up(x, "decoder.up1", 0, 255)
        n = len(x[0, 0])
        x = {at: self.linear("decoder.mix", self.window(x, at, SQUARE, n), 0, 255) for at in x}
        return self.up(x, "decoder.up2", -127, 127)

    def head(self, name: str, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        top = 32767
        for j in range(self.blocks):
            hidden = self.linear(f"{name}.up.{j}", np.clip((s + 4) >> 3, -127, 127), 0, 255)
            s = np.clip(s + self.linear(f"{name}.down.{j}", hidden, -top, top), -top, top)
        hidden = self.linear(f"{name}.head", np.clip((s + 4) >> 3, -127, 127), 0, 255)
        return self.linear(f"{name}.mean", hidden, -top, top), self.linear(f"{name}.scale", hidden, 0, 63)

    def carried(
        self, name: str, state: dict[Cell, np.ndarray], last: dict[Cell, np.ndarray], n: int
    ) -> dict[Cell, np.ndarray]:
        """The state of the next slice, from the ``n`` channels of the last."""
        x = {at: np.concatenate([own, self.window(last, at, SQUARE, n)]) for at, own in state.items()}
        x = {at: self.linear(f"{name}.enter", row, 0, 255) for at, row in x.items()}
        inner = len(next(iter(x.values())))
        x = {at: self.linear(f"{name}.spatial", self.window(x, at, SQUARE, inner), 0, 255) for at in x}
        steps = {at: self.linear(f"{name}.expand", row, -254, 254) for at, row in x.items()}
        return {at: np.clip(own + steps[at], -127, 127) for at, own in state.items()}

    def walk(self, z: np.ndarray, grid: Grid, quality: int, choose: Choice) -> PlainWalk:
        """``choose``: channels of a slice, cell, means in 16ths, scales -> codes."""
        shape = (sum(self.slices), *grid)
        found = PlainWalk(np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64))
        features = self.features(z, quality)
        cells = list(np.ndindex(grid))
        known = {at: np.zeros(0, np.int64) for at in cells}
        begin = 0
        features = {at: features[at] for at in cells}
        for i, n in enumerate(self.slices):
            own = slice(begin, begin + n)
            if f"slices.{i}.state.enter.weight" in self.arrays:
                before = self.slices[i - 1] if i else 0
                features = self.carried(
                    f"slices.{i}.state", features, {at: known[at][len(known[at]) - before :] for at in cells}, before
                )
            fine = f"slices.{i}.own1.weight" in self.arrays
            latest: dict[Cell, np.ndarray] = {}
            for phase in range(6 if fine else 2):
                step = []
                first = dict(latest)
                for at in (at for at in cells if step_of(at, fine) == phase):
                    x = np.concatenate([features[at], self.window(known, at, SQUARE, begin)])
                    s = self.linear(f"slices.{i}.base", x, -32767, 32767)
                    if phase:
                        around = self.window(first, at, FINE_WINDOWS[phase] if fine else DIAMOND, n)
                        own_map = f"slices.{i}.own{phase}" if fine else f"slices.{i}.own"
                        s = np.clip(s + self.linear(own_map, around, -32767, 32767), -32767, 32767)
                    mean, scale = self.head(f"slices.{i}.head", s)
                    code = choose(own, at, mean, scale)
                    for array, row in zip((found.means, found.scales, found.codes), (mean, scale, code), strict=True):
                        array[(own, *at)] = row
                    latest[at] = np.array([plain_compand(int(v)) for v in mean + 16 * code])
                    step += [(t, c) for t, c in zip(scale.tolist(), code.tolist(), strict=True) if t > self.skip]
                step.sort(key=lambda entry: entry[0])  # by table, otherwise as they come
                found.steps.append((i, [t for t, _ in step], [c for _, c in step]))
            known = {at: np.concatenate([known[at], latest[at]]) for at in cells}
            begin += n
        return found

    def quantise(self, y: np.ndarray, z: np.ndarray, quality: int) -> PlainWalk:
        def choose(own: slice, at: Cell, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
            code = np.clip(np.round(y[(own, *at)] - mean / 16), -2047, 2047).astype(np.int64)
            return np.where(scale > self.skip, code, 0)

        z = np.clip(np.round(z), -31, 31).astype(np.int64)
        return self.walk(z, (y.shape[1], y.shape[2]), quality, choose)

    def payloads(self, walk: PlainWalk, z: np.ndarray, ends: list[int]) -> list[bytes]:
        """Symbol after symbol; payload j ends before slice ``ends[j]``."""
        reach = self.arrays["scale_reach"].tolist()
        starts = np.cumsum([0] + [2 * r + 1 for r in reach]).tolist()
        tables = [self.arrays["scale_tables"][a:b] for a, b in itertools.pairwise(starts)]
        found = []
        for begin, end in zip([0, *ends], ends, strict=False):
            encoder = TableEncoder()

            def push(symbol: int, table: np.ndarray, encoder: TableEncoder = encoder) -> None:
                encoder.push(np.array([symbol]), (table - 1).astype(np.float32)[None])

            if not begin:
                for channel, table in zip(z, self.arrays["z_tables"], strict=True):
                    for value in channel.ravel().tolist():
                        push(value + 31, table)
            for _, own, codes in (step for step in walk.steps if begin <= step[0] < end):
                excess = []
                for t, code in zip(own, codes, strict=True):
                    push(min(max(code, -reach[t]), reach[t]) + reach[t], tables[t])
                    if abs(code) >= reach[t]:
                        excess.append(abs(code) - reach[t])
                for more in excess:
                    push(more // 256, np.full(256, 1 << 16))
                    push(more % 256, np.full(256, 1 << 16))
            found.append(encoder.finish())
        return found


def pattern(salt: int, low: int, high: int, *shape: int) -> np.ndarray:
    """Integers in low..high that look random and are the same with every version of every library."""
    number = (np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(1000 * salt + 1)) * np.uint64(2654435761)
    number = (number ^ (number >> np.uint64(15))) * np.uint64(2246822519) % np.uint64(1 << 32) >> np.uint64(8)
    return (low + (number % np.uint64(high - low + 1)).astype(np.int64)).reshape(shape)


def literal_arrays(deep: bool = False) -> Arrays:
    """Two hyper channels and slices of one and two channels, written down by hand.

    ``deep``: the first slice is coded from coarse to fine, and a state is carried on.
    """
    arrays: Arrays = {}

    def linear(name: str, n_in: int, n_out: int, shift: int, weight: int = 40, bias: int = 1500) -> None:
        salt = 10 * len(arrays)
        arrays[f"{name}.weight"] = pattern(salt, -weight, weight, n_out, n_in).astype(np.int8)
        arrays[f"{name}.bias"] = pattern(salt + 1, -bias, bias, n_out).astype(np.int32)
        arrays[f"{name}.shift"] = (shift + pattern(salt + 2, -1, 1, n_out)).astype(np.uint8)

    linear("decoder.enter", 9 * (2 + 8), 4, 5)
    linear("decoder.up1", 4, 4 * 3, 5)
    linear("decoder.mix", 9 * 3, 5, 6)
    linear("decoder.up2", 5, 4 * 6, 6)
    for i, (before, n) in enumerate([(0, 1), (1, 2)]):
        linear(f"slices.{i}.base", 6 + 9 * before, 7, 2)
        if deep:
            linear(f"slices.{i}.state.enter", 6 + 9 * before, 8, 5)
            linear(f"slices.{i}.state.spatial", 9 * 8, 8, 6)
            linear(f"slices.{i}.state.expand", 8, 6, 6)
        for step in range(1, 6) if deep and not i else ():
            linear(f"slices.{i}.own{step}", len(FINE_WINDOWS[step]) * n, 7, 2)
        if not deep or i:
            linear(f"slices.{i}.own", 12 * n, 7, 2)
        linear(f"slices.{i}.head.up.0", 7, 9, 5)
        linear(f"slices.{i}.head.down.0", 9, 7, 2)
        linear(f"slices.{i}.head.head", 7, 8, 5)
        linear(f"slices.{i}.head.mean", 8, n, 6)
        linear(f"slices.{i}.head.scale", 8, n, 9, 40, 9000)
    reach = 2 + np.arange(64) // 2
    rows = [1 + 40 * np.exp2(-np.abs(np.arange(-r, r + 1)) * 8 // r).astype(np.int64) for r in reach.tolist()]
    arrays["scale_reach"] = reach.astype(np.int32)
    arrays["scale_tables"] = np.concatenate([frequency_table(row) for row in rows]).astype(np.int32)
    arrays["z_tables"] = np.stack([frequency_table(pattern(900 + k, 1, 50, 63)) for k in range(2)]).astype(np.int32)
    arrays["slices"] = np.array([1, 2], np.int32)
    arrays["skip"] = np.array([2], np.int32)
    return arrays


# ------------------------------------------------------------------------------------------------- parts of the nets


@pytest.mark.parametrize("order", [CHECKERBOARD, FINE])
def test_orders_name_every_cell_once_and_what_it_knows(order: Order) -> None:
    grid = (9, 14)
    steps = np.array([[step_of((r, c), order is FINE) for c in range(grid[1])] for r in range(grid[0])])
    assert order.n == steps.max() + 1
    for step in range(order.n):
        assert order.cells(grid, step).tolist() == np.flatnonzero(steps == step).tolist()
        windows = FINE_WINDOWS if order is FINE else {1: DIAMOND}
        assert order.offsets(step) == tuple(windows[step] if step else [])
    assert [order.cells((1, 1), step).size for step in range(order.n)] == [1] + [0] * (order.n - 1)


@pytest.mark.parametrize("order", [CHECKERBOARD, FINE])
@pytest.mark.parametrize(("h", "w"), [(4, 4), (8, 12), (4, 20)])
def test_merge_is_the_inverse_of_split(h: int, w: int, order: Order) -> None:
    x = torch.randn(2, h, w, 3, requires_grad=True)
    places = places_of(order, (h, w), CPU)
    parts = places.split(x)
    assert torch.equal(places.merge(parts, (h, w)), x)
    some = places.merge(parts[:-1], (h, w)).flatten(1, 2)
    for step, part in enumerate(parts):
        cells = order.cells((h, w), step)
        assert torch.equal(part, x.flatten(1, 2)[:, cells])
        known = places.windows(x, step)
        assert known.shape == (2, len(cells), 3 * len(order.offsets(step)))
        for k, cell in enumerate(cells.tolist()):
            for n, (dy, dx) in enumerate(order.offsets(step)):
                row, column = cell // w + dy, cell % w + dx
                inside_grid = 0 <= row < h and 0 <= column < w
                expected = x[:, row, column] if inside_grid else torch.zeros(2, 3)
                assert torch.equal(known[:, k, 3 * n : 3 * n + 3], expected)
        assert torch.equal(some[:, cells], part if step < order.n - 1 else torch.zeros_like(part))
    weight = torch.randn(2, h, w, 3)
    value = (places.merge([part * (k + 2) for k, part in enumerate(parts)], (h, w)) * weight).sum()
    value.backward()
    factor = torch.tensor([[[step_of((r, c), order is FINE)] for c in range(w)] for r in range(h)])
    expected = weight * (factor + 2)
    assert x.grad is not None
    assert torch.allclose(x.grad, expected.detach())


def test_shuffle_makes_two_rows_of_two_of_four_groups_of_channels() -> None:
    x = torch.randn(2, 3, 5, 4 * 6)
    found = shuffle(x)
    assert found.shape == (2, 6, 10, 6)
    for row, column in np.ndindex(6, 10):
        group = 2 * (row % 2) + column % 2
        assert torch.equal(found[:, row, column], x[:, row // 2, column // 2, 6 * group : 6 * group + 6])
    assert torch.equal(hyperprior_walk.shuffle_cells(x[1]), found[1])


def test_hats_of_every_quality() -> None:
    hats = quality_hats(torch.arange(10001)).numpy()
    assert hats.shape == (10001, HATS)
    assert hats.dtype == np.int64
    assert np.array_equal(hats, np.stack([plain_hats(q) for q in range(10001)]))
    assert (hats.sum(1) == 32).all()
    assert hats.min() == 0
    assert ((hats > 0).sum(1) <= 2).all()
    place = hats @ np.arange(8)  # in 32nds of the way from one control point to the next
    assert np.array_equal(place, (448 * np.arange(10001) + 10000) // 20000)
    for k in range(8):  # those between the ends lie between two hundredths
        assert hats[round(10000 * k / 7)].tolist() == [32 * (j == k) for j in range(8)]
    assert torch.equal(quality_hats(torch.tensor([[3, 10000], [0, 77]]))[1, 1], quality_hats(torch.tensor(77)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compander_in_integers_and_in_floats(dtype: torch.dtype) -> None:
    v = torch.arange(-3000, 3001)
    found = compand_integers(v.to(dtype))
    assert found.tolist() == [plain_compand(int(n)) for n in v]
    assert torch.equal(compand(v.to(dtype) / 16, True) * 16, found)
    assert (found[1:] >= found[:-1]).all()
    assert (found + found.flip(0)).abs().max() <= 1
    assert (found.min(), found.max()) == (-127, 127)
    small = v.abs() <= 48
    assert torch.equal(found[small], v[small].to(dtype))
    smooth = compand(v.to(dtype) / 16, False) * 16
    assert torch.equal(smooth, -smooth.flip(0))
    assert (smooth - found).abs().max() <= 0.5
    assert smooth[(v == 48) | (v == 208) | (v == 1456) | (v == 3000)].tolist() == [48, 88, 127, 127]


def test_compander_lets_gradients_through() -> None:
    x = torch.tensor([-100.0, -50.0, -5.0, 0.3, 2.0, 5.0, 50.0, 100.0], requires_grad=True)
    for rounding in (False, True):
        (grad,) = torch.autograd.grad(compand(x, rounding).sum(), x)
        assert grad.tolist() == [0, 1 / 32, 1 / 4, 1, 1, 1 / 4, 1 / 32, 0]


def test_a_clamp_that_can_be_left_again() -> None:
    x = torch.tensor([-2.0, -1.0, 0.5, 3.0, 4.0], requires_grad=True)
    assert inside(x, -1, 3).tolist() == [-1, -1, 0.5, 3, 3]
    for sign, passes in ((1.0, [0, 1, 1, 1, 1]), (-1.0, [1, 1, 1, 1, 0]), (0.0, [0] * 5)):
        (grad,) = torch.autograd.grad((sign * 2 * inside(x, -1, 3)).sum(), x)
        assert grad.tolist() == [sign * 2 * p for p in passes]


def test_density_of_the_hyper_latents_sums_to_one() -> None:
    torch.manual_seed(0)
    density = LogisticMixture(5).double().requires_grad_(False)
    for parameter in density.parameters():
        parameter.add_(torch.randn_like(parameter))
    z = torch.arange(-2000.0, 2001.0, dtype=torch.float64)[:, None].expand(-1, 5)
    mass = density(z)
    assert mass.shape == (4001, 5)
    assert torch.allclose(mass.sum(0), torch.ones(5, dtype=torch.float64), atol=1e-9)
    assert (mass[1800:2200] > 0).all()
    assert torch.allclose(density(z + 0.25)[500:3500].sum(0), torch.ones(5, dtype=torch.float64), atol=1e-9)
    plain = LogisticMixture(1).requires_grad_(False)  # -1, 0 and 1 with equal weight
    edges = [1 / (1 + math.exp(-x)) for x in (0.5, 1.5, 2.5, -0.5)]
    expected = (edges[0] - edges[3] + edges[1] - edges[0] + edges[2] - edges[1]) / 3
    assert float(plain(torch.tensor([[1.0]]))) == pytest.approx(expected, rel=1e-5)
    assert float(plain(torch.tensor([[30.0]]))) == pytest.approx(float(plain(torch.tensor([[-30.0]]))), rel=1e-3)


@pytest.mark.parametrize("scale", [0.06, 0.5, 3.0, 96.0])
def test_mass_of_a_normal_distribution(scale: float) -> None:
    value = torch.arange(-1000, 1001, dtype=torch.float64)
    mass = normal_mass(value, torch.tensor(scale, dtype=torch.float64))
    assert float(mass.sum()) == pytest.approx(1, abs=1e-12)
    assert torch.equal(mass, mass.flip(0))
    for v in (0, 1, 3):
        ends = [math.erf((v + side) / scale / math.sqrt(2)) for side in (-0.5, 0.5)]
        assert float(mass[1000 + v]) == pytest.approx((ends[1] - ends[0]) / 2, abs=1e-12)
    assert float(bits(mass)[1000]) == pytest.approx(-math.log2(float(mass[1000])))
    assert float(bits(torch.zeros(1))) == pytest.approx(-math.log2(1e-9))


def test_scales_are_geometric_and_tables_reach_five_of_them() -> None:
    scales, reach = scale_values(), scale_reach()
    assert scales[[0, -1]].tolist() == pytest.approx([0.06, 96])
    assert np.allclose(scales[1:] / scales[:-1], 1600 ** (1 / 63))
    assert reach.tolist() == [max(2, math.ceil(5 * s)) for s in scales]


def test_tables_are_those_of_normal_distributions() -> None:
    tables = normal_tables()
    assert len(tables) == 64
    for table, scale, reach in zip(tables, scale_values(), scale_reach(), strict=True):
        check_table(table)
        assert table.size == 2 * reach + 1
        assert np.abs(table - table[::-1]).max() <= 1
        codes = torch.arange(-reach, reach + 1, dtype=torch.float64)
        mass = normal_mass(codes, torch.tensor(scale, dtype=torch.float64)).numpy()
        assert np.allclose(table[1:-1] / TOTAL, mass[1:-1], rtol=1e-3, atol=2e-7)
        tail = (1 - math.erf((reach - 0.5) / scale / math.sqrt(2))) / 2
        assert table[-1] / TOTAL == pytest.approx(tail, rel=0.05, abs=2e-7)  # with all beyond


def test_counts_move_the_tables() -> None:
    counts = [np.zeros(2 * r + 1, np.int64) for r in scale_reach()]
    reach = scale_reach()
    for i, own in enumerate(counts[:40]):
        own[reach[i] + 1] = 6000  # all of them 1: half of that counts as -1
    tables, before = normal_tables(counts), normal_tables()
    for i, (table, old) in enumerate(zip(tables, before, strict=True)):
        check_table(table)
        assert np.abs(table - table[::-1]).max() <= 1
        if i >= 40:
            assert np.array_equal(table, old)
        else:
            expected = (old[reach[i] + 1] / TOTAL * 2000 + 3000) / 8000
            assert table[reach[i] + 1] / TOTAL == pytest.approx(expected, abs=1e-4)
    stiff = normal_tables(counts, weight=1e9)
    assert all(np.allclose(a, b, atol=TOTAL * 1e-4) for a, b in zip(stiff, before, strict=True))


def test_shapes_that_are_refused() -> None:
    assert HyperShape().latents == 256
    for slices in ((), (3, 0)):
        with pytest.raises(ValueError, match="at least one slice"):
            HyperShape(slices=slices)


# ------------------------------------------------------------------------------------------------------------- walks


@pytest.mark.parametrize("shape", [SHAPE, DEEP])
@pytest.mark.parametrize("loud", [False, True])
@pytest.mark.parametrize("grid", [(4, 4), (4, 12), (12, 8), (20, 4)])
def test_the_integers_are_what_the_rounding_network_computes(grid: Grid, loud: bool, shape: HyperShape) -> None:
    """Latents to the last bit, for two pictures of different qualities side by side, all slices coded or some."""
    net, prior = net_of(shape, loud), prior_of(-1, shape, loud)
    qualities = (0, 6543)
    drawn = [draw(prior, grid, seed) for seed in (1, 2)]
    y, z = (torch.from_numpy(np.stack(arrays)).double().permute(0, 2, 3, 1) for arrays in zip(*drawn, strict=True))
    walks = [prior.quantise(*own, q) for own, q in zip(drawn, qualities, strict=True)]
    assert all(np.abs(walk.codes).max() < CODE_MAX for walk in walks)  # the network knows no such bound
    for kept in (None, torch.tensor([3, 3]), torch.tensor([2, 1])):
        with torch.no_grad():
            y_hat, y_bits, z_bits = net(y, z, torch.tensor(qualities), True, kept)
        found = y_hat.permute(0, 3, 1, 2).numpy()
        assert (y_bits.shape, z_bits.shape) == ((2, 3), (2,))
        for b, walk in enumerate(walks):
            own = walk
            if kept is not None:
                own = prior.walk(walk.z, walk.codes[: [0, 2, 5, 10][int(kept[b])]], qualities[b])
                assert (y_bits[b] > 0).tolist() == [i < int(kept[b]) for i in range(3)]
            assert np.array_equal(found[b], own.latents.astype(np.float64))


def test_estimated_bits_are_those_of_the_tables() -> None:
    """Of codes that the model expects: tables are normal distributions but for their ends."""
    net, prior = net_of(), prior_of(skip=-1)
    walk = draw_likely(prior, (16, 20), 5000)
    with torch.no_grad():
        y, z = (torch.from_numpy(a)[None].permute(0, 2, 3, 1).double() for a in (walk.latents, walk.z))
        y_hat, y_bits, z_bits = net(y, z, torch.tensor([5000]), True)
    assert np.array_equal(y_hat[0].permute(2, 0, 1).numpy(), walk.latents.astype(np.float64))
    found = prior.bits(walk)
    found[0] -= float(z_bits)
    assert np.allclose(found, y_bits[0].numpy(), rtol=0.002)
    scales, exact = torch.from_numpy(scale_values()), np.zeros(3)  # of the very tables that are used
    for step in walk.steps:
        codes, tables = torch.from_numpy(step.codes).double(), torch.from_numpy(step.tables).long()
        exact[step.layer] += float(bits(normal_mass(codes, scales[tables])).sum())
    assert np.allclose(exact, y_bits[0].numpy(), rtol=1e-9)


def check_against_plain(prior: HyperPrior, grid: Grid, quality: int, seed: int = 1) -> PlainWalk:
    y, z = draw(prior, grid, seed, 2000)
    plain = Plain(prior.arrays())
    expected = plain.quantise(y, z, quality)
    walk = prior.quantise(y, z, quality)
    assert (walk.codes.dtype, walk.z.dtype, walk.latents.dtype) == (np.int64, np.int64, np.float32)
    assert np.array_equal(walk.codes, expected.codes)
    assert np.array_equal(walk.latents * 16, expected.values)
    found = [(s.layer, s.tables.tolist(), s.codes.tolist()) for s in walk.steps]
    assert found == expected.steps
    n = len(prior.slices)
    for layers in range(1, n + 1):
        ends = list(range(n - layers + 1, n + 1))
        assert prior.payloads(walk, layers) == plain.payloads(expected, walk.z, ends)
    # With means instead of the last slices.
    codes = walk.codes[: prior.slices[0]]

    def choose(own: slice, at: Cell, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return codes[(own, *at)] if own.start == 0 else 0 * mean

    short = prior.walk(walk.z, codes, quality)
    assert np.array_equal(short.latents * 16, plain.walk(walk.z, grid, quality, choose).values)
    return expected


@pytest.mark.parametrize("shape", [SHAPE, DEEP])
@pytest.mark.parametrize("grid", GRIDS)
def test_walks_in_plain_integers(grid: Grid, shape: HyperShape) -> None:
    """Codes, latents, the order of coding and every byte, from the arrays of the file."""
    expected = check_against_plain(prior_of(shape=shape), grid, 4321)
    if min(grid) > 2:
        assert len(np.unique(expected.scales)) > 20
        assert len(np.unique(expected.means)) > 40
        assert ((expected.scales <= 5) & (expected.scales > 0)).any()
    if grid == (17, 6):
        assert (expected.codes.min(), expected.codes.max()) == (-CODE_MAX, CODE_MAX)


def test_sums_that_reach_their_ends() -> None:
    """The residual stream is clamped after each sum."""
    expected = check_against_plain(prior_of(loud=True), (5, 6), 4321)
    assert not np.array_equal(expected.means, check_against_plain(prior_of(), (5, 6), 4321).means)


@pytest.mark.parametrize("quality", [0, 1, 5000, 9999, 10000])
def test_the_quality_changes_what_is_expected(quality: int) -> None:
    expected = check_against_plain(HyperPrior(literal_arrays()), (5, 6), quality)
    other = Plain(literal_arrays()).quantise(*draw(HyperPrior(literal_arrays()), (5, 6), 1, 2000), 2000)
    assert not np.array_equal(expected.means, other.means)


@pytest.mark.parametrize("slices", [(1,), (7, 1)])
@pytest.mark.parametrize("blocks", [0, 1])
def test_other_shapes_in_plain_integers(slices: tuple[int, ...], blocks: int) -> None:
    shape = HyperShape(
        hyper=1, slices=slices, middle=(5, 2), features=3, width=4, hidden=6, blocks=blocks, head=3
    )  # fmt: skip
    check_against_plain(prior_of(2, shape), (3, 5), 77)


@pytest.mark.parametrize("shape", [SHAPE, DEEP])
def test_nothing_sees_what_is_coded_later(shape: HyperShape) -> None:
    """Another latent changes no mean and no scale of earlier slices, of earlier steps, or of its own step."""
    prior, grid = prior_of(shape=shape), (7, 6)
    y, z = draw(prior, grid)
    plain = Plain(prior.arrays())
    before = plain.quantise(y, z, 3000)
    ends = np.cumsum(prior.slices)
    rng = np.random.default_rng(3)
    later = 0
    for _ in range(6):
        channel, cell = int(rng.integers(10)), (int(rng.integers(7)), int(rng.integers(6)))
        y2 = y.copy()
        y2[(channel, *cell)] += 40
        after = plain.quantise(y2, z, 3000)
        begin = int(np.searchsorted(ends, channel, side="right"))
        first, last = (0 if begin == 0 else int(ends[begin - 1])), int(ends[begin])
        fine = begin < shape.fine
        own = np.array([[step_of((r, c), fine) <= step_of(cell, fine) for c in range(6)] for r in range(7)])
        assert np.array_equal(before.means[:first], after.means[:first])
        assert np.array_equal(before.means[first:last, own], after.means[first:last, own])
        assert np.array_equal(before.scales[first:last, own], after.scales[first:last, own])
        assert np.array_equal(prior.quantise(y2, z, 3000).codes, after.codes)
        later += int(not np.array_equal(before.means[first:], after.means[first:]))
    assert later > 1


def test_latents_differ_by_half_a_step_at_most_or_are_the_mean() -> None:
    for skip in (-1, 5, 63):
        prior = prior_of(skip)
        y, z = draw(prior, (9, 10))
        walk = prior.quantise(y, z, 4321)
        plain = Plain(prior.arrays()).quantise(y, z, 4321)
        coded = plain.scales > skip
        assert np.abs(walk.codes).max() < CODE_MAX
        assert np.abs(walk.latents - y)[coded].max(initial=0) <= 0.5
        assert (walk.codes[~coded] == 0).all()
        assert np.array_equal(walk.latents[~coded] * 16, plain.means[~coded])
        assert sum(step.codes.size for step in walk.steps) == coded.sum()
        assert all((step.tables > skip).all() for step in walk.steps)
        if skip == 63:  # nothing but z takes bits
            payloads = prior.payloads(walk, 3)
            assert payloads[1:] == [b"", b""]
            assert prior.bits(walk)[1:].tolist() == [0, 0]
            assert np.array_equal(prior.decompress(payloads, (9, 10), 4321, 3).latents, walk.latents)
        else:
            assert 0 < coded.sum() < coded.size or skip < 0


@pytest.mark.parametrize("shape", [SHAPE, DEEP])
def test_free_cells_have_no_codes_and_decode_like_all_others(shape: HyperShape) -> None:
    prior, grid = prior_of(shape=shape), (9, 10)
    y, z = draw(prior, grid)
    free = np.zeros(grid, bool)
    free[2:7, 3:] = True
    walk, whole = prior.quantise(y, z, 4321, free), prior.quantise(y, z, 4321)
    assert not walk.codes[:, free].any()
    assert walk.codes[:, ~free].any()
    assert prior.bits(walk).sum() < 0.8 * prior.bits(whole).sum()
    back = prior.decompress(prior.payloads(walk, 3), grid, 4321, 3)
    assert same(back, walk)
    assert same(prior.quantise(y, z, 4321, np.zeros(grid, bool)), whole)
    with pytest.raises(ValueError, match="free cells"):
        prior.quantise(y, z, 4321, free.T)


def test_codes_and_hyper_latents_are_clamped() -> None:
    prior = prior_of(-1)
    shape = (10, 4, 5)
    for value, code in ((1e6, CODE_MAX), (-1e6, -CODE_MAX), (np.inf, CODE_MAX), (-np.inf, -CODE_MAX)):
        walk = prior.quantise(np.full(shape, value, np.float32), np.full((6, 1, 2), value, np.float32), 10000)
        assert (walk.codes == code).all()
        assert (walk.z == np.sign(code) * 31).all()
        back = prior.decompress(prior.payloads(walk, 2), (4, 5), 10000, 2)
        assert same(walk, back)
        assert np.isfinite(back.latents).all()
        assert np.array_equal(back.latents, prior.walk(walk.z, walk.codes, 10000).latents)
    z = np.array([0.49, 0.51, -0.51, -31.4, 31.6, 1e9], np.float32)[:, None, None]
    assert prior.quantise(np.zeros((10, 1, 1), np.float32), z, 0).z.ravel().tolist() == [0, 1, -1, -31, 31, 31]


# ------------------------------------------------------------------------------------------------------------- bytes


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (16, 20)])
def test_round_trip(grid: Grid) -> None:
    """Through bytes in every number of layers, and through codes."""
    for skip, most in ((5, 400.0), (-1, 3000.0), (20, 3.0)):
        prior = prior_of(skip)
        y, z = draw(prior, grid, seed=skip + 2, most=most)
        walk = prior.quantise(y, z, 2718)
        assert walk.latents.shape == y.shape
        assert same(walk, prior.quantise(y.astype(np.float64), np.asfortranarray(z), 2718))
        assert same(walk, prior.quantise(np.asfortranarray(y), z, 2718))
        again = prior.walk(walk.z, np.asfortranarray(walk.codes), 2718)
        assert same(walk, again)
        assert same_steps(walk, again)
        for layers in (1, 2, 3):
            payloads = prior.payloads(walk, layers)
            assert len(payloads) == layers
            assert prior.payloads(again, layers) == payloads
            assert same(walk, prior.decompress(payloads, grid, 2718, layers))


def test_a_prefix_of_the_payloads_is_a_prefix_of_the_slices() -> None:
    """Means stand for the rest."""
    prior, grid = prior_of(), (9, 7)
    walk = prior.quantise(*draw(prior, grid), 5000)
    ends = [0, 2, 5, 10]
    for layers in (1, 2, 3):
        payloads = prior.payloads(walk, layers)
        for n in range(1, layers + 1):
            found = prior.decompress(payloads[:n], grid, 5000, layers)
            channels = ends[3 - layers + n]
            assert found.codes.shape == (channels, *grid)
            assert np.array_equal(found.codes, walk.codes[:channels])
            assert np.array_equal(found.latents[:channels], walk.latents[:channels])
            assert same(found, prior.walk(walk.z, walk.codes[:channels], 5000))
            assert found.latents.shape == walk.latents.shape
    none = prior.walk(walk.z, walk.codes[:0], 5000)
    assert none.codes.shape == (0, *grid)
    assert np.array_equal(none.latents * 16, np.round(none.latents * 16))


def test_layers_hold_slices() -> None:
    prior = prior_of()
    assert [[list(r) for r in prior.layer_slices(n)] for n in (1, 2, 3)] == [
        [[0, 1, 2]], [[0, 1], [2]], [[0], [1], [2]],
    ]  # fmt: skip
    for n in (0, 4, -1):
        with pytest.raises(ValueError, match="layers are 1 to 3"):
            prior.layer_slices(n)


def test_size_is_what_the_tables_say() -> None:
    """Measured bytes against the ideal code length: within 0.1 % and two words; 1 % for codes that nobody expects."""
    prior = prior_of()
    for grid in ((2, 3), (24, 20)):
        unlikely = [prior.quantise(*draw(prior, grid, most=most), 5000) for most in (2.0, 400.0)]
        for walk, margin in ((draw_likely(prior, grid, 5000), 0.001), (unlikely[0], 0.01), (unlikely[1], 0.01)):
            found = prior.bits(walk)
            assert found.shape == (3,)
            assert found.min() > 10
            for layers in (1, 2, 3):
                sums = [found[list(slices)].sum() for slices in prior.layer_slices(layers)]
                for payload, expected in zip(prior.payloads(walk, layers), sums, strict=True):
                    assert len(payload) % 4 == 0
                    assert abs(len(payload) - expected / 8) <= 8 + margin * expected / 8


def test_bits_are_those_of_the_tables() -> None:
    prior = prior_of()
    y, z = draw(prior, (5, 6), most=3000)
    walk = prior.quantise(y, z, 5000)
    expected = np.zeros(3)
    for channel, table in zip(walk.z, prior.z_tables, strict=True):
        expected[0] += sum(table_bits(table)[v + 31] for v in channel.ravel())
    for layer, tables, codes in Plain(prior.arrays()).quantise(y, z, 5000).steps:
        for t, code in zip(tables, codes, strict=True):
            reach = int(prior.reach[t])
            expected[layer] += table_bits(prior.tables[t])[np.clip(code, -reach, reach) + reach]
            expected[layer] += 16 * (abs(code) >= reach)
    assert np.allclose(prior.bits(walk), expected)


def test_codes_beyond_their_table_survive() -> None:
    """With every scale at its smallest, tables end at 2."""
    net = HyperNet(SHAPE).double()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("head.scale.bias"):
                parameter.fill_(-1e3)
            if ".head." in name and "weight" in name:
                parameter.zero_()
    prior = HyperPrior(export_hyperprior(net, skip=-1))
    values = [0, 1, -1, 2, -2, 3, -3, 257, 258, -258, 259, 1000, 2046, -2046, 2047, -2047]
    codes = np.resize(np.array(values), (10, 7, 8))
    walk = prior.walk(np.zeros((6, 2, 2), np.int64), codes, 0)
    assert all((step.tables == 0).all() for step in walk.steps)
    for layers in (1, 2, 3):
        assert same(prior.decompress(prior.payloads(walk, layers), (7, 8), 0, layers), walk)


def test_a_code_beyond_all_codes_is_refused() -> None:
    """Two bytes of excess can say more than a code can be."""
    prior = HyperPrior(literal_arrays() | {"skip": np.array([-1], np.int32)})
    table = int(prior.walk(np.zeros((2, 1, 1), np.int64), np.zeros((3, 1, 1), np.int64), 0).steps[0].tables[0])
    reach = int(prior.reach[table])
    for sign in (-1, 1):
        for excess, fits in ((CODE_MAX - reach, True), (CODE_MAX - reach + 1, False), (65535, False)):
            encoder = IndexedEncoder(prior._models)  # of one code, the first slice
            for k in range(2):
                encoder.push(np.array([31]), 65 + k)
            encoder.push(np.array([reach + sign * reach]), table)
            encoder.push(np.array([excess >> 8, excess & 255]), 64)
            payload = encoder.finish()
            if fits:
                assert prior.decompress([payload], (1, 1), 0, 2).codes.tolist() == [[[sign * CODE_MAX]]]
            else:
                with pytest.raises(ValueError, match="larger than 2047"):
                    prior.decompress([payload], (1, 1), 0, 2)


LITERAL_PAYLOADS = [
    "00000002000b00016e910227aea3007b6a2edf5cad8e9aecbe44503535000000",
    "00000013dbf819d943fd01819ea10c000cfc0a00000003006bb92b0d8afe012cbd0003a3d66504c3d4030000",
]


def test_payloads_of_a_fixed_prior() -> None:
    """Other bytes here are another file format."""
    prior = HyperPrior(literal_arrays())
    z, y = pattern(500, -31, 31, 2, 2, 2), pattern(501, -640, 640, 3, 5, 6) / 64
    walk = prior.quantise(y, z, 3141)
    payloads = prior.payloads(walk, 2)
    assert [payload.hex() for payload in payloads] == LITERAL_PAYLOADS
    assert same(prior.decompress(payloads, (5, 6), 3141, 2), walk)


# --------------------------------------------------------------------------------------------------- same everywhere


def test_int8_products_are_those_of_float32_and_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the CPU has them; elsewhere float32 is compared with float64."""
    able = integer.int8_products(CPU)
    arrays = prior_of().arrays()
    grids: list[Grid] = [(1, 1), (3, 5), (12, 9)]
    found = []
    for int8, dtype in ((able, torch.float32), (False, torch.float32), (False, torch.float64)):
        monkeypatch.setattr(integer, "int8_products", lambda _, int8=int8: int8)
        monkeypatch.setattr(hyperprior, "exact_dtype", lambda _, dtype=dtype: dtype)
        prior = HyperPrior(arrays)
        assert prior.nets[1].base.int8 == int8
        assert prior.up2.weight.dtype == (torch.int8 if int8 else dtype)
        walks = [prior.quantise(*draw(prior, grid), 4000) for grid in grids]
        back = [prior.decompress(prior.payloads(w, 2), g, 4000, 2) for w, g in zip(walks, grids, strict=True)]
        assert all(map(same, walks, back))
        found.append((walks, [prior.payloads(walk, 3) for walk in walks]))
    for walks, payloads in found[1:]:
        assert all(map(same, walks, found[0][0]))
        assert payloads == found[0][1]


def test_results_do_not_depend_on_threads() -> None:
    prior = prior_of()
    y, z = draw(prior, (16, 12))
    threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            walk = prior.quantise(y, z, 4000)
            found.append((walk, prior.payloads(walk, 3)))
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(threads)
    assert same(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize("int8", [False, True])
def test_autocast_does_not_reach_the_integers(int8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    able = int8 and integer.int8_products(CPU)
    monkeypatch.setattr(integer, "int8_products", lambda _: able)
    prior = HyperPrior(prior_of().arrays())
    y, z = draw(prior, (8, 9))
    walk = prior.quantise(y, z, 4000)
    payloads = prior.payloads(walk, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert same(prior.quantise(y, z, 4000), walk)
        assert same(prior.walk(walk.z, walk.codes, 4000), walk)
        assert same(prior.decompress(payloads, (8, 9), 4000, 2), walk)


# -------------------------------------------------------------------------------------------------- damaged payloads


def decoded_or_refused(prior: HyperPrior, payloads: list[bytes], grid: Grid, layers: int) -> bool:
    """True if the payloads decode to codes in range, False if they are refused; anything else fails."""
    try:
        walk = prior.decompress(payloads, grid, 4321, layers)
    except ValueError:
        return False
    assert np.abs(walk.z).max() <= 31
    assert np.abs(walk.codes).max() <= CODE_MAX
    assert np.isfinite(walk.latents).all()
    again = prior.walk(walk.z, walk.codes, 4321)  # what was decoded is what this model can have made
    assert same(walk, again)
    return True


def test_damaged_payloads_decode_or_are_refused() -> None:
    prior, grid = HyperPrior(literal_arrays()), (2, 3)
    payloads = prior.payloads(draw_likely(prior, grid, 4321), 2)
    rng = np.random.default_rng(6)
    results = []
    for _ in range(80):
        some = [rng.bytes(int(rng.integers(0, 50))) for _ in range(2)]
        results.append(decoded_or_refused(prior, some, grid, 2))
    for _ in range(120):  # of the right form, so that some decode
        some = [rng.bytes(4 * int(rng.integers(1, 8))) for _ in range(int(rng.integers(1, 3)))]
        results.append(decoded_or_refused(prior, some, grid, len(some)))
    for k, payload in enumerate(payloads):
        for n in range(len(payload)):
            results.append(decoded_or_refused(prior, [*payloads[:k], payload[:n]], grid, 2))
            assert n % 4 == 0 or not results[-1]
        for bit in range(0, 8 * len(payload), 2):
            flipped = bytearray(payload)
            flipped[bit // 8] ^= 1 << bit % 8
            results.append(decoded_or_refused(prior, [*payloads[:k], bytes(flipped), *payloads[k + 1 :]], grid, 2))
    assert results.count(False) > len(results) // 3
    assert results.count(True) > 0
    assert decoded_or_refused(prior, payloads, grid, 2)


def test_payloads_that_hold_more_are_refused() -> None:
    prior, grid = prior_of(), (5, 6)
    payloads = prior.payloads(draw_likely(prior, grid, 4321), 3)
    for k in range(3):
        longer = [*payloads[:k], b"1234" + payloads[k], *payloads[k + 1 :]]
        with pytest.raises(ValueError, match="more than its symbols"):
            prior.decompress(longer, grid, 4321, 3)
    for other in ((5, 3), (1, 1)):
        for n in (1, 3):
            with pytest.raises(ValueError, match="more than its symbols"):
                prior.decompress(payloads[:n], other, 4321, 3)


@pytest.mark.parametrize("payload", [b"a", b"abc", b"abcde", b"abcd\0\0\0\0", b"\0\0\0\0"])
def test_a_payload_that_is_no_stream_is_refused(payload: bytes) -> None:
    prior, grid = prior_of(), (2, 2)
    good = prior.payloads(prior.quantise(*draw(prior, grid), 0), 2)
    for payloads in ([payload], [payload, good[1]], [good[0], payload]):
        with pytest.raises(ValueError, match="32-bit words"):
            prior.decompress(payloads, grid, 0, 2)


# --------------------------------------------------------------------------------------------------------- arguments


def test_latents_that_are_refused() -> None:
    prior = prior_of()
    y, z = draw(prior, (5, 6))
    for bad in (y[:9], np.concatenate([y, y[:1]]), y[0], y[None], y[:, 0]):
        with pytest.raises(ValueError, match=r"latents are \[10, h, w\]"):
            prior.quantise(bad, z, 0)
    for bad in (z[:5], z[:, :1], z[:, :, :1], z[0], z[None], np.concatenate([z, z], 1)):
        with pytest.raises(ValueError, match=r"do not fit a grid of \(5, 6\)"):
            prior.quantise(y, bad, 0)
    for empty in (y[:, :0], y[:, :, :0]):
        with pytest.raises(ValueError, match="at least one cell"):
            prior.quantise(empty, z[:, :0], 0)
    for quality in (-1, 10001):
        with pytest.raises(ValueError, match="quality is 0 to 10000"):
            prior.quantise(y, z, quality)
    for pair in ((np.where(y == y[3, 2, 1], np.nan, y), z), (y, np.where(z == z[1, 1, 1], np.nan, z))):
        with pytest.raises(ValueError, match="not numbers"):
            prior.quantise(*pair, 0)


def test_codes_that_are_refused() -> None:
    prior = prior_of()
    walk = prior.quantise(*draw(prior, (5, 6)), 0)
    for channels in (1, 3, 4, 6, 9):
        with pytest.raises(ValueError, match=r"end inside a slice; slices end at \[0, 2, 5, 10\]"):
            prior.walk(walk.z, walk.codes[:channels], 0)
    with pytest.raises(ValueError, match="11 channels"):
        prior.walk(walk.z, np.concatenate([walk.codes, walk.codes[:1]]), 0)
    for codes in (walk.codes[0], walk.codes[:, 0], walk.codes[None]):
        with pytest.raises(ValueError, match=r"codes are \[m, h, w\]"):
            prior.walk(walk.z, codes, 0)
    for z in (walk.z[:5], walk.z[:, :1], walk.z[0], walk.z[None]):
        with pytest.raises(ValueError, match="do not fit a grid"):
            prior.walk(z, walk.codes, 0)
    for value in (CODE_MAX + 1, -CODE_MAX - 1, 1 << 62, -(1 << 63)):
        bad = walk.codes.copy()
        bad[4, 2, 3] = value
        with pytest.raises(ValueError, match="codes at most 2047"):
            prior.walk(walk.z, bad, 0)
    for value in (32, -32, -(1 << 63)):
        bad = walk.z.copy()
        bad[4, 1, 1] = value
        with pytest.raises(ValueError, match="hyper latents are at most 31"):
            prior.walk(bad, walk.codes, 0)
    for codes in (walk.codes[:, :0], walk.codes[:, :, :0]):
        with pytest.raises(ValueError, match="at least one cell"):
            prior.walk(walk.z, codes, 0)


def test_a_code_where_none_can_be_is_refused() -> None:
    """Every place whose scale is skipped, and no other."""
    prior, grid = prior_of(), (4, 5)
    y, z = draw(prior, grid)
    walk = prior.quantise(y, z, 0)
    scales = Plain(prior.arrays()).quantise(y, z, 0).scales
    for place in zip(*np.nonzero(scales <= 5), strict=True):
        codes = walk.codes.copy()
        codes[place] = 1
        with pytest.raises(ValueError, match="not zero"):
            prior.walk(walk.z, codes, 0)


def test_numbers_of_payloads_that_are_refused() -> None:
    prior, grid = prior_of(), (3, 4)
    walk = prior.quantise(*draw(prior, grid), 0)
    payloads = prior.payloads(walk, 3)
    for some, layers in (([], 3), ([*payloads, b""], 3), (payloads, 2), (payloads[:2], 1)):
        with pytest.raises(ValueError, match=rf"1 to {layers} payloads make a file, got {len(some)}"):
            prior.decompress(some, grid, 0, layers)
    for layers in (0, 4):
        with pytest.raises(ValueError, match="layers are 1 to 3"):
            prior.decompress(payloads, grid, 0, layers)
        with pytest.raises(ValueError, match="layers are 1 to 3"):
            prior.payloads(walk, layers)
    for empty in ((0, 4), (3, 0), (-1, 4)):
        with pytest.raises(ValueError, match="at least one cell"):
            prior.decompress(payloads, empty, 0, 3)
    for quality in (-1, 10001):
        with pytest.raises(ValueError, match="quality is 0 to 10000"):
            prior.decompress(payloads, grid, quality, 3)
    for other in (prior.walk(walk.z, walk.codes[:5], 0), prior.decompress(payloads, grid, 0, 3)):
        with pytest.raises(ValueError, match="coded all slices"):  # or they would end too early
            prior.payloads(other, 3)


# ------------------------------------------------------------------------------------------------------ saved priors


def test_save_and_load(tmp_path: Path) -> None:
    prior = HyperPrior(prior_of().arrays())
    assert prior.hash == ""
    assert prior.wire_id == 3
    prior.save_pretrained(tmp_path)
    loaded = HyperPrior.from_pretrained(tmp_path)
    assert prior.hash == loaded.hash == file_hash(tmp_path / HYPERPRIOR_FILE)
    assert len(prior.hash) == 16
    assert (loaded.slices, loaded.hyper, loaded.latents, loaded.skip) == ((2, 3, 5), 6, 10, 5)
    assert loaded.codebook_sizes == prior.codebook_sizes == (63,) * 6 + (4095,) * 10
    walk = prior.quantise(*draw(prior, (5, 6)), 1234)
    assert same(loaded.decompress(prior.payloads(walk, 2), (5, 6), 1234, 2), walk)
    assert set(loaded.arrays()) == set(prior.arrays())
    for name, array in prior.arrays().items():
        assert np.array_equal(loaded.arrays()[name], array)
        assert loaded.arrays()[name].dtype == array.dtype
    (tmp_path / "again").mkdir()
    loaded.save_pretrained(tmp_path / "again")
    assert loaded.hash == prior.hash  # the same integers are the same file


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot read entropy model"):
        HyperPrior.from_pretrained(tmp_path)
    HyperPrior(literal_arrays()).save_pretrained(tmp_path)
    data = (tmp_path / HYPERPRIOR_FILE).read_bytes()
    for bad in (b"", data[:50], data[:-4], b"x" * 100):
        (tmp_path / HYPERPRIOR_FILE).write_bytes(bad)
        with pytest.raises(ValueError, match="cannot read entropy model"):
            HyperPrior.from_pretrained(tmp_path)
    for arrays in ({}, {"table.0": np.array([TOTAL], np.int32)}):
        save_file(arrays, str(tmp_path / HYPERPRIOR_FILE))
        with pytest.raises(ValueError, match="entropy model lacks"):
            HyperPrior.from_pretrained(tmp_path)


def test_flipped_bits_in_a_saved_prior_are_refused_or_change_the_hash(tmp_path: Path) -> None:
    prior = HyperPrior(literal_arrays())
    prior.save_pretrained(tmp_path)
    data = (tmp_path / HYPERPRIOR_FILE).read_bytes()
    refused = 0
    for at in range(0, len(data), 61):
        (tmp_path / HYPERPRIOR_FILE).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        try:
            assert HyperPrior.from_pretrained(tmp_path).hash != prior.hash
        except ValueError:
            refused += 1
    assert refused > len(data) // 61 // 4


def test_missing_and_foreign_arrays_are_refused() -> None:
    for arrays in (literal_arrays(True), literal_arrays()):
        for name in arrays:
            with pytest.raises(ValueError, match="entropy model"):
                HyperPrior({key: array for key, array in arrays.items() if key != name})
    layer = {f"slices.0.head.up.1.{part}": arrays[f"slices.0.head.up.0.{part}"] for part in ("weight", "bias", "shift")}
    with pytest.raises(ValueError, match="lacks"):  # the other half of the block
        HyperPrior(arrays | layer)
    for name in ("slices.2.base.weight", "other"):
        with pytest.raises(ValueError, match="no place"):
            HyperPrior(arrays | {name: np.zeros((1, 1), np.int8)})


def accepted(change: Callable[[np.ndarray], Any], which: str = "") -> list[str]:
    """Names of the arrays (those that end with ``which``) that can be changed so and no ValueError tells it."""
    found = []
    for name, array in literal_arrays(True).items():
        if name.endswith(which):
            try:
                HyperPrior(literal_arrays(True) | {name: np.asarray(change(array))})
            except ValueError:
                continue
            found.append(name)
    return found


CHANGES: dict[str, Callable[[np.ndarray], Any]] = {
    "no axes": lambda array: array.reshape(-1)[0],
    "one more axis": lambda array: array[None],
    "one axis less": lambda array: array.reshape(-1) if array.ndim > 1 else array[0],
    "one row less": lambda array: array[:-1],
    "one row more": lambda array: np.concatenate([array, array[-1:]]),
    "no rows": lambda array: array[:0],
    "float32": lambda array: array.astype(np.float32),
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_array_of_another_shape_or_type_is_refused(change: str) -> None:
    """When the prior is made, not when it is used."""
    assert accepted(CHANGES[change]) == []


def test_a_column_more_or_less_is_refused() -> None:
    for which in ("weight", "z_tables"):
        assert accepted(lambda array: array[:, :-1], which) == []
        assert accepted(lambda array: np.concatenate([array, array[:, :1]], 1), which) == []
        assert accepted(lambda array: array[:, :0], which) == []


def test_a_layer_of_another_width_is_refused() -> None:
    """Weight, bias and shift fit each other, but not their neighbours."""
    arrays = literal_arrays(True)
    layers = sorted({name.removesuffix(".weight") for name in arrays if name.endswith(".weight")})
    assert len(layers) == 4 + (5 + 9) + (1 + 9)
    for layer in layers:
        parts = [f"{layer}.{part}" for part in ("weight", "bias", "shift")]
        n = len(arrays[f"{layer}.shift"])
        choices: list[list[int]] = [[*range(n - 1)], [], [*range(n - 4)], [*range(n), 0]]
        for rows in choices:
            with pytest.raises(ValueError, match=r"fit|channels|empty"):
                HyperPrior(arrays | {name: arrays[name][np.array(rows, int)] for name in parts})


def test_no_channels_at_all_are_refused() -> None:
    arrays = literal_arrays()
    enter = arrays["decoder.enter.weight"].reshape(4, 9, 10)[:, :, 2:].reshape(4, -1)
    with pytest.raises(ValueError, match="hyper latents"):
        HyperPrior(arrays | {"z_tables": arrays["z_tables"][:0], "decoder.enter.weight": enter})
    rows = {f"decoder.enter.{part}": arrays[f"decoder.enter.{part}"][:0] for part in ("weight", "bias", "shift")}
    with pytest.raises(ValueError, match="is empty"):  # all fits together, with a width of 0
        HyperPrior(arrays | rows | {"decoder.up1.weight": arrays["decoder.up1.weight"][:, :0]})
    none = {name: array for name, array in arrays.items() if "slices." not in name}
    with pytest.raises(ValueError, match=r"."):
        HyperPrior(none | {"slices": np.zeros(0, np.int32)})


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("scale_reach", 5, 3), ("scale_reach", 0, 0), ("scale_reach", 0, -1), ("scale_reach", 63, CODE_MAX + 1),
        ("scale_tables", 7, 0), ("scale_tables", 7, -5), ("scale_tables", 9, 12345), ("scale_tables", -1, 12345),
        ("z_tables", 3, 0), ("z_tables", 70, 1), ("slices", 0, 2), ("slices", 1, 3), ("slices", 1, 0),
        ("slices", 1, -1), ("skip", 0, -2), ("skip", 0, 64), ("decoder.mix.shift", 0, 24),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(name: str, place: int, value: int) -> None:
    arrays = literal_arrays()
    arrays[name].reshape(-1)[place] = value
    with pytest.raises(ValueError, match=r"."):
        HyperPrior(arrays)


def with_reach(place: int, reach: int) -> Arrays:
    """With another reach of one table, and a table of that size."""
    arrays = literal_arrays()
    sizes = 2 * arrays["scale_reach"] + 1
    tables = np.split(arrays["scale_tables"], np.cumsum(sizes)[:-1])
    tables[place] = frequency_table(np.ones(2 * reach + 1, int)).astype(np.int32)
    arrays["scale_reach"][place] = reach
    return arrays | {"scale_tables": np.concatenate(tables)}


def test_reaches_that_are_refused() -> None:
    """A table of code 0 alone leaves no room for a sign, and one of more codes than there are no room for an excess."""
    for place in (0, 20, 63):
        for reach in (0, CODE_MAX + 1):
            with pytest.raises(ValueError, match="scale tables"):
                HyperPrior(with_reach(place, reach))
        for reach in (1, CODE_MAX):
            prior = HyperPrior(with_reach(place, reach) | {"skip": np.array([-1], np.int32)})
            walk = prior.quantise(*draw(prior, (5, 6), most=3000), 0)
            assert same(prior.decompress(prior.payloads(walk, 2), (5, 6), 0, 2), walk)


def test_weights_whose_sums_may_not_be_exact_are_refused() -> None:
    arrays = literal_arrays()
    for name in arrays:
        if name.endswith(".bias"):
            with pytest.raises(ValueError, match="not exact"):
                HyperPrior(arrays | {name: np.full_like(arrays[name], (1 << 24) - 1000)})


def test_inputs_that_may_be_255_are_counted_as_such() -> None:
    """A bias that is safe for inputs up to 127 and not for what a layer really gets."""
    arrays = literal_arrays()
    for name, most in (("decoder.up1", 255), ("decoder.mix", 255), ("decoder.up2", 255), ("slices.0.base", 127),
                       ("slices.1.own", 127), ("slices.0.head.up.0", 127), ("slices.1.head.down.0", 255),
                       ("slices.0.head.head", 127), ("slices.1.head.mean", 255), ("slices.1.head.scale", 255),
                       ("decoder.enter", 127)):  # fmt: skip
        weight, shift = (arrays[f"{name}.{part}"].astype(np.int64) for part in ("weight", "shift"))
        room = (1 << 24) - 1 - (1 << shift >> 1) - most * np.abs(weight).sum(1)
        assert (shift > 0).all()
        HyperPrior(arrays | {f"{name}.bias": room.astype(np.int32)})
        with pytest.raises(ValueError, match="not exact"):
            HyperPrior(arrays | {f"{name}.bias": (room + 1).astype(np.int32)})


# ------------------------------------------------------------------------------------------------------------ export


def test_export_holds_the_integers_of_every_layer() -> None:
    net, arrays = net_of(), prior_of().arrays()
    layers = {name: module for name, module in net.named_modules() if isinstance(module, RoundedLinear)}
    assert len(layers) == 4 + 3 * 9
    assert set(arrays) == {f"{n}.{part}" for n in layers for part in ("weight", "bias", "shift")} | {
        "slices", "skip", "scale_reach", "scale_tables", "z_tables",
    }  # fmt: skip
    for name, layer in layers.items():
        for part, value in layer.export().items():
            assert np.array_equal(arrays[f"{name}.{part}"], value)
    assert np.array_equal(arrays["scale_tables"], np.concatenate(normal_tables()))
    assert np.array_equal(arrays["scale_reach"], scale_reach())


def test_export_with_counts() -> None:
    net = net_of()
    z_counts = np.zeros((6, 63), np.int64)
    z_counts[2, 40] = 100000
    counts = [np.zeros(2 * r + 1, np.int64) for r in scale_reach()]
    counts[10][:] = 500
    plain, counted = export_hyperprior(net), export_hyperprior(net, z_counts, counts, skip=3)
    for arrays in (plain, counted):
        for table in arrays["z_tables"]:
            check_table(table)
    same_rows = [np.array_equal(a, b) for a, b in zip(plain["z_tables"], counted["z_tables"], strict=True)]
    assert same_rows == [True, True, False, True, True, True]
    assert counted["z_tables"][2, 40] > 0.99 * TOTAL
    assert np.array_equal(counted["scale_tables"], np.concatenate(normal_tables(counts)))
    assert not np.array_equal(counted["scale_tables"], plain["scale_tables"])
    assert (plain["skip"].tolist(), counted["skip"].tolist()) == ([0], [3])
    prior = HyperPrior(counted)
    walk = prior.quantise(*draw(prior, (5, 6)), 0)
    assert same(prior.decompress(prior.payloads(walk, 2), (5, 6), 0, 2), walk)
    with torch.no_grad():  # without counts: the density of training, of every value
        mass = net.density(torch.arange(-31.0, 32.0)[:, None].expand(-1, 6)).T.numpy()
    assert np.allclose(plain["z_tables"] / TOTAL, mass / mass.sum(1, keepdims=True), atol=1e-3)


@pytest.mark.parametrize("shape", [SHAPE, DEEP])
def test_training_goes_on_from_an_export(shape: HyperShape) -> None:
    """The same integers again, and a density close to the tables of z."""
    z_counts = np.round(1e6 * np.exp(-0.5 * ((np.arange(63) - 31 - np.arange(6)[:, None]) / 3) ** 2)).astype(np.int64)
    arrays = export_hyperprior(net_of(shape), z_counts, skip=5)
    assert HyperShape.of_export(arrays) == shape
    net = HyperNet(shape).double()
    net.load_export(arrays)
    again = HyperPrior(export_hyperprior(net, skip=5))
    prior = HyperPrior(arrays)
    for grid in ((3, 5), (8, 8)):
        walk = prior.quantise(*draw(prior, grid), 4000)
        assert same(again.quantise(*draw(prior, grid), 4000), walk)
        assert same_steps(again.quantise(*draw(prior, grid), 4000), walk)
    for old, new in zip(prior.z_tables, again.z_tables, strict=True):
        assert np.abs(old - new).sum() / TOTAL < 0.15
    assert all(p.grad is None for p in net.parameters())
    for bad, message in (
        (arrays | {"slices": np.array([2, 3, 4])}, "other channels"),
        (arrays | {"z_tables": arrays["z_tables"][:5]}, "other channels"),
        (arrays | {"decoder.mix.weight": arrays["decoder.mix.weight"][:-1]}, "decoder.mix of the entropy model has an"),
        ({name: array for name, array in arrays.items() if "head.up.1" not in name}, "lacks slices.0.head.up.1.weight"),
        ({}, "lacks decoder"),
    ):
        with pytest.raises(ValueError, match=message):
            net.load_export(bad)


# ---------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("shape", [SHAPE, DEEP])
def test_training_estimates_have_gradients_and_noise(shape: HyperShape) -> None:
    torch.manual_seed(0)
    net = HyperNet(shape)
    y = (3 * torch.randn(2, 8, 8, 10)).requires_grad_(True)
    z = torch.randn(2, 2, 2, 6).requires_grad_(True)
    for rounding in (False, True):
        y_hat, y_bits, z_bits = net(y, z, torch.tensor([0, 9000]), rounding)
        assert (y_hat.shape, y_bits.shape, z_bits.shape) == (y.shape, (2, 3), (2,))
        assert (y_bits > 0).all()
        assert float((y_hat - y).detach().abs().max()) <= 0.5 + 1e-5
        (y_bits.sum() + z_bits.sum() + y_hat.square().mean()).backward()
        gradients = {name: p.grad for name, p in net.named_parameters()}
        assert all(g is not None and bool(g.isfinite().all()) for g in gradients.values())
        silent = [name for name, g in gradients.items() if g is None or not bool(g.any())]
        assert silent == []
        assert y.grad is not None
        assert z.grad is not None
        assert bool(y.grad.any())
        assert bool(z.grad.any())
        net.zero_grad()
    with torch.no_grad():
        first, second = (net(y, z, torch.tensor([0, 9000]))[1:] for _ in range(2))
        assert not torch.equal(first[0], second[0])
        assert not torch.equal(first[1], second[1])
        net.eval()
        first, second = (net(y, z, torch.tensor([0, 9000]))[1] for _ in range(2))
        assert torch.equal(first, second)


def test_rounding_changes_little() -> None:
    """Weights of eight bits are close to those that were trained."""
    net = net_of()
    y, z = (torch.from_numpy(a)[None].permute(0, 2, 3, 1).double() for a in draw(prior_of(), (8, 8), most=3))
    with torch.no_grad():
        outs = [net(y, z, torch.tensor([5000]), rounding) for rounding in (False, True)]
    (a, bits_a, _), (b, bits_b, _) = outs
    assert float((a - b).abs().mean()) < 0.5
    assert torch.allclose(bits_a, bits_b, rtol=0.1)
