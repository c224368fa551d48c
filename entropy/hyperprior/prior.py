"""The entropy model of a hyperprior codec, in integers: latents <-> codes <-> bytes, the same on every machine.

:mod:`.net` is the network while it is trained and says what it computes. Here it runs on the exact layers
of :mod:`..integer`, slice after slice and in each the cells in their order (:mod:`..orders`), with the same steps in
the encoder (which knows the latents), the decoder (which knows the bytes) and when codes are given.

Unlike other priors this one is also the quantiser: a code is what is left of a latent after the mean that the model
expects there, rounded. So it maps latents to codes and back (:class:`Walk`), and means, multiples of 1/16, make the
reconstruction ``code + mean`` exact too.

A code is coded with one of ``SCALES`` static tables, that of its scale; codes of the smallest scales are zero and take
no bits. Codes that reach the end of a table are followed by their excess in 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..coder import IndexedDecoder, IndexedEncoder, table_model
from ..context.net import part_of
from ..integer import ExactLinear, OneThread, exact_dtype
from ..orders import CHECKERBOARD, FINE
from ..prior import read_prior_arrays, save_prior
from ..tables import TOTAL, check_table, table_bits
from .graphs import WalkGraphs
from .net import (
    HATS,
    MEAN_BITS,
    QUALITY_STEPS,
    SCALES,
    SQUARE,
    Z_BITS,
    Z_MAX,
    own_name,
    told,
)
from .walk import CODE_MAX, Codes, Layout, Linears, Source, Step, Walk, WalkRun, runs_of, shuffle_cells, square

if TYPE_CHECKING:
    from typing_extensions import Self

HYPERPRIOR_FILE = "hyperprior.safetensors"
KEPT_GRIDS = 8  # of which places, and graphs on a GPU, are kept
GRAPH_AFTER = 2  # walks over a grid before CUDA graphs are captured for it
EXCESS_BITS = 16  # of a code beyond its table: two bytes, each with a flat table


class HyperPrior:
    """See the module's text.

    Args:    arrays: layers as :func:`~.export.export_hyperprior` writes them.  device: where the networks run.
    Raises:  ValueError for arrays that do not fit together, or a layer whose sums could be inexact.
    """

    wire_id = 3  # of the file format, see FORMAT.md
    file = HYPERPRIOR_FILE

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]], device: str | torch.device = "cpu") -> None:
        self._arrays = dict(arrays)
        self.hash = ""
        self.device = torch.device(device)
        self.dtype = exact_dtype(self.device)
        try:
            self.slices = tuple(int(n) for n in self._integers("slices", 1))
            z_tables = self._integers("z_tables", 2)
            reach = self._integers("scale_reach", 1)
            flat = self._integers("scale_tables", 1)
            skip = self._integers("skip", 1)
            kinds = self._integers("kinds", 1) if "kinds" in arrays else np.zeros(1, np.int64)
            blocks = sum(name.startswith("slices.0.head.up.") and name.endswith(".weight") for name in arrays)
            self.enter = self._layer("decoder.enter", 127, 0, 255)
            self.up1 = self._layer("decoder.up1", 255, 0, 255, 0)
            self.mix = self._layer("decoder.mix", 255, 0, 255, 0)
            self.up2 = self._layer("decoder.up2", 255, -127, 127, 0)
            names = [f"slices.{i}" for i in range(len(self.slices))]
            orders = [FINE if f"{name}.{own_name(FINE, 1)}.weight" in arrays else CHECKERBOARD for name in names]
            state = "slices.0.state.enter.weight" in arrays
            self.nets = [
                Linears(self._layer, name, blocks, order, state) for name, order in zip(names, orders, strict=True)
            ]
        except KeyError as error:
            raise ValueError(f"the entropy model lacks {error}") from error
        layers = 4 + sum(order.n + 3 + 2 * blocks + 3 * state for order in orders)
        if len(arrays) != 5 + ("kinds" in arrays) + 3 * layers:
            raise ValueError("the entropy model holds arrays that have no place in it")
        if len(skip) != 1 or not -1 <= skip[0] < SCALES:
            raise ValueError("the entropy model does not say which scales are skipped")
        if len(kinds) != 1 or kinds[0] < 0:
            raise ValueError("the entropy model does not say how many kinds of grids it knows")
        self.skip, self.kinds = int(skip[0]), int(kinds[0])
        self.hyper = len(z_tables)
        self.starts = [0, *np.cumsum(self.slices).tolist()]  # first channel of each slice, and their number
        self.layouts: dict[tuple[int, int], Layout] = {}
        self._check(reach, flat, z_tables)
        ends = np.cumsum(2 * reach + 1)
        self.reach = reach
        self.tables = [flat[e - n : e] for e, n in zip(ends, 2 * reach + 1, strict=True)]
        self.z_tables = list(z_tables)
        for table in (*self.tables, *self.z_tables):
            check_table(table)

    def _check(
        self, reach: npt.NDArray[np.int64], flat: npt.NDArray[np.int64], z_tables: npt.NDArray[np.int64]
    ) -> None:
        """Raise ValueError unless shapes fit together."""
        if len(reach) != SCALES or reach.min() < 1 or reach.max() > CODE_MAX or flat.size != (2 * reach + 1).sum():
            raise ValueError("the scale tables of the entropy model do not fit together")
        if not self.hyper or z_tables.shape[1] != 2 * Z_MAX + 1:
            raise ValueError("the tables of the hyper latents have another size")
        if self.enter.n_in != len(SQUARE) * (self.hyper + HATS + self.kinds):
            raise ValueError("the hyper decoder does not fit its tables")
        widths = [(self.enter.n_out, self.up1.n_in), (self.mix.n_out, self.up2.n_in)]
        widths += [(4 * self.mix.n_in, len(SQUARE) * self.up1.n_out), (self.up2.n_out % 4, 0)]
        if not self.slices or min(self.slices) < 1 or any(a != b for a, b in widths):
            raise ValueError("the layers of the hyper decoder do not fit together")
        features = self.up2.n_out // 4
        before = 0
        for i, (n, net) in enumerate(zip(self.slices, self.nets, strict=True)):
            last = self.slices[i - 1] if i else 0
            if net.base.n_in != features + len(SQUARE) * before or not net.reads(n):
                raise ValueError("a slice of the entropy model does not fit the others")
            if net.state is not None and not net.state.fits(features, last):
                raise ValueError("the state of the entropy model does not fit its slices")
            if net.mean.n_out != n or net.scale.n_out != n:
                raise ValueError("a slice of the entropy model has other channels")
            if not net.fits():
                raise ValueError("the layers of a slice do not fit together")
            before += n

    def _integers(self, name: str, ndim: int) -> npt.NDArray[np.int64]:
        array = self._arrays[name]
        if array.ndim != ndim or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{name} of the entropy model is not integers of {ndim} axes, but {array.shape}")
        return array.astype(np.int64)

    def _layer(self, name: str, input_max: int, low: int, high: int, input_min: int | None = None) -> ExactLinear:
        arrays = part_of(self._arrays, name)
        layer = ExactLinear(arrays, input_max, low, high, device=self.device, dtype=self.dtype, input_min=input_min)
        if not layer.n_in or not layer.n_out:
            raise ValueError(f"{name} of the entropy model is empty")
        return layer

    @cached_property
    def _models(self) -> list[Any]:
        """Coder models: the scales, then a flat one for excess bytes, then the channels of z."""
        flat = np.full(256, TOTAL // 256, dtype=np.int64)
        return [table_model(t) for t in (*self.tables, flat, *self.z_tables)]

    @property
    def latents(self) -> int:
        """M, channels of the latents."""
        return sum(self.slices)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Of every level of tokens: z's channels, then y's."""
        return (2 * Z_MAX + 1,) * self.hyper + (2 * CODE_MAX + 1,) * self.latents

    @property
    def steps(self) -> list[tuple[int, int]]:
        """Slice and step of all steps of a walk."""
        return [(i, step) for i, net in enumerate(self.nets) for step in range(net.order.n)]

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device = "cpu") -> Self:
        """Load ``hyperprior.safetensors`` of a model folder. Raises ValueError if it is missing or damaged."""
        arrays, found = read_prior_arrays(folder, cls.file)
        prior = cls(arrays, device)
        prior.hash = found
        return prior

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the prior's file into ``folder`` and take its hash."""
        self.hash = save_prior(self.arrays(), self.wire_id, Path(folder) / self.file)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return self._arrays

    def on(self, device: torch.device) -> Self:
        """This model if it is on such a device, else its copy there."""
        if self.device.type == device.type:
            return self
        moved = type(self)(self._arrays, device)
        moved.hash = self.hash
        return moved

    # ---------------------------------------------------------------- the walk

    def layout(self, grid: tuple[int, int]) -> Layout:
        """The grid's layout on the device; the last ones are kept."""
        if grid not in self.layouts:
            if len(self.layouts) >= KEPT_GRIDS:
                self.layouts.pop(next(iter(self.layouts)))
            self.layouts[grid] = Layout(grid, self.device, {net.order for net in self.nets})
        return self.layouts[grid]

    def inputs(self, z: Codes, quality: int, kind: int = 0) -> npt.NDArray[np.float32]:
        """What the hyper decoder reads: z ``[hyper, hz, wz]`` and what it is told, ``[hz, wz, all of them]``."""
        hats = told(torch.tensor(quality), torch.tensor(kind), self.kinds).numpy().astype(np.float32)
        hats = np.broadcast_to(hats, (*z.shape[1:], HATS + self.kinds))
        return np.concatenate([z.transpose(1, 2, 0) * np.float32(2**Z_BITS), hats], 2).astype(np.float32)

    def features(self, x: Tensor) -> Tensor:
        """The hyper decoder: what :meth:`inputs` makes to ``[4 hz, 4 wz, F]``."""
        h, w = x.shape[:2]
        x = self.enter(square(x)).view(h, w, -1)
        x = shuffle_cells(self.up1(x.view(h * w, -1)).view(h, w, -1))
        x = self.mix(square(x)).view(2 * h, 2 * w, -1)
        return shuffle_cells(self.up2(x.view(4 * h * w, -1)).view(2 * h, 2 * w, -1))

    @contextmanager
    def _exactly(self) -> Iterator[None]:
        """One thread, no gradients, and no autocast, which would round the products."""
        with OneThread(), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            yield

    def _check_walk(self, z: Codes, grid: tuple[int, int], quality: int, kind: int) -> None:
        """Raise ValueError for what cannot be walked over."""
        if not 0 <= kind < max(1, self.kinds):
            raise ValueError(f"kinds of grids are 0 to {max(1, self.kinds) - 1}, got {kind}")
        if not 0 <= quality <= QUALITY_STEPS:
            raise ValueError(f"quality is 0 to {QUALITY_STEPS} hundredths, got {quality}")
        if min(grid) < 1:
            raise ValueError(f"a grid has at least one cell, got {grid}")
        if z.shape != (self.hyper, -(-grid[0] // 4), -(-grid[1] // 4)):
            raise ValueError(f"hyper latents of shape {z.shape} do not fit a grid of {grid}")

    def _graphs(self, grid: tuple[int, int]) -> WalkGraphs | None:
        """CUDA graphs of a walk over a grid that this GPU has seen a few times; None on a CPU."""
        if self.device.type != "cuda":
            return None
        self.layout(grid).walks += 1
        if self.layout(grid).walks <= GRAPH_AFTER:
            return None
        if self.layout(grid).graphs is None:
            self.layout(grid).graphs = WalkGraphs(self, grid)
        return self.layout(grid).graphs

    def _walk(self, z: Codes, grid: tuple[int, int], quality: int, source: Source, slices: int, kind: int = 0) -> Walk:
        self._check_walk(z, grid, quality, kind)
        h, w = grid
        run = WalkRun(self, grid)
        run.begin(torch.from_numpy(self.inputs(z, quality, kind)).to(self.device, self.dtype))
        codes = np.zeros((sum(self.slices[:slices]), h * w), dtype=np.int64)
        for i, step in self.steps:
            mean, scale = run.predict(i, step)
            code = None
            if i < slices:
                cells = run.layout.cells[self.nets[i].order][step]
                code = source(i, cells, mean, scale)
                begin = self.starts[i]
                codes[begin : begin + self.slices[i], cells] = code.T.cpu().numpy()
            run.take(i, step, mean, code)
        return Walk(z, codes.reshape(len(codes), h, w), run.latents().cpu().numpy())

    def code_of(self, y: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """Codes of latents in quantiser steps: the rest after the mean, rounded, or zero for skipped scales."""
        code = (y - mean * 2.0**-MEAN_BITS).round().clamp_(-CODE_MAX, CODE_MAX)
        return torch.where(scale > self.skip, code, 0.0)

    def quantise(
        self,
        y: npt.NDArray[np.floating],
        z: npt.NDArray[np.floating],
        quality: int,
        free: npt.NDArray[np.bool_] | None = None,
        kind: int = 0,
    ) -> Walk:
        """Latents ``y [M, h, w]`` in quantiser steps and hyper latents ``z [hyper, h/4, w/4]`` (rounded up) to codes.

        Args:   quality: 0 to 10000, hundredths.
                free: ``[h, w]``, cells that need not come near their latents: all their codes are 0, which is cheap.
                kind: of the grid, if the model tells several apart.
        Raises: ValueError for shapes that do not fit, or latents that are not numbers.
        """
        if y.ndim != 3 or len(y) != self.latents:
            raise ValueError(f"latents are [{self.latents}, h, w], got {y.shape}")
        if np.isnan(y).any() or np.isnan(z).any():
            raise ValueError("some latents are not numbers")
        if free is not None and free.shape != y.shape[1:]:
            raise ValueError(f"free cells are [h, w], got {free.shape} for latents {y.shape}")
        grid = (y.shape[1], y.shape[2])
        values = torch.from_numpy(np.ascontiguousarray(y)).to(self.device, self.dtype).flatten(1).T  # [h w, M]
        steps: list[Step] = []

        def source(i: int, cells: npt.NDArray[np.int64], mean: Tensor, scale: Tensor) -> Tensor:
            part = values[torch.from_numpy(cells).to(self.device), self.starts[i] : self.starts[i + 1]]
            code = self.code_of(part, mean, scale)
            if free is not None:
                code[torch.from_numpy(free.reshape(-1)[cells]).to(self.device)] = 0
            steps.append(self._step(i, code, scale))
            return code

        codes = np.clip(np.round(z), -Z_MAX, Z_MAX).astype(np.int64)
        with self._exactly():
            graphs = self._graphs(grid) if free is None else None
            if graphs is not None:
                self._check_walk(codes, grid, quality, kind)
                return Walk(codes, *graphs.encode(self.inputs(codes, quality, kind), values))
            walk = self._walk(codes, grid, quality, source, len(self.slices), kind=kind)
        walk.steps = steps
        return walk

    def walk(self, z: Codes, codes: Codes, quality: int, kind: int = 0) -> Walk:
        """Codes ``[m, h, w]`` of the first slices, as :meth:`quantise` made them, to latents.

        Raises: ValueError for codes that this model cannot have made.
        """
        if codes.ndim != 3:
            raise ValueError(f"codes are [m, h, w], got {codes.shape}")
        slices = self._whole_slices(len(codes))
        if any(a.size and not -top <= a.min() <= a.max() <= top for a, top in ((z, Z_MAX), (codes, CODE_MAX))):
            raise ValueError(f"hyper latents are at most {Z_MAX} and codes at most {CODE_MAX}")
        values = torch.from_numpy(np.ascontiguousarray(codes)).to(self.device, self.dtype).flatten(1).T
        steps: list[Step] = []

        def source(i: int, cells: npt.NDArray[np.int64], mean: Tensor, scale: Tensor) -> Tensor:
            code = values[torch.from_numpy(cells).to(self.device), self.starts[i] : self.starts[i + 1]]
            if bool(((scale <= self.skip) & (code != 0)).any()):
                raise ValueError("a code that is always zero here is not zero: these codes are another model's")
            steps.append(self._step(i, code, scale))
            return code

        with self._exactly():
            walk = self._walk(z, (codes.shape[1], codes.shape[2]), quality, source, slices, kind=kind)
        walk.steps = steps
        return walk

    def _whole_slices(self, channels: int) -> int:
        """Number of slices that ``channels`` channels make. Raises ValueError if they end inside one."""
        ends = [0, *np.cumsum(self.slices).tolist()]
        if channels not in ends:
            raise ValueError(f"{channels} channels of codes end inside a slice; slices end at {ends}")
        return ends.index(channels)

    def _step(self, i: int, code: Tensor, scale: Tensor) -> Step:
        tables = scale.to(torch.uint8).cpu().numpy().reshape(-1)
        flat = code.to(torch.int16).cpu().numpy().reshape(-1)
        order = self._order(tables)
        return Step(i, flat[order], tables[order])

    def _order(self, tables: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """The places that are coded, by table, then in order."""
        order = np.argsort(tables, kind="stable")
        return order[int((tables <= self.skip).sum()) :]

    # ---------------------------------------------------------------- bytes

    def layer_slices(self, layers: int) -> list[range]:
        """The slices that each of ``layers`` layers of a file holds: the last ones have one each."""
        n = len(self.slices)
        if not 1 <= layers <= n:
            raise ValueError(f"layers are 1 to {n}, got {layers}")
        first = n - layers + 1
        return [range(first), *(range(i, i + 1) for i in range(first, n))]

    def payloads(self, walk: Walk, layers: int) -> list[bytes]:
        """What :meth:`quantise` or :meth:`walk` made of all slices as so many payloads; the first starts with z.

        Raises: ValueError for another walk, or another number of layers.
        """
        if len(walk.steps) != len(self.steps):
            raise ValueError("payloads need a walk that coded all slices")
        found = []
        for j, slices in enumerate(self.layer_slices(layers)):
            encoder = IndexedEncoder(self._models)
            if j == 0:
                for k, channel in enumerate(walk.z):
                    encoder.push(channel.reshape(-1) + Z_MAX, SCALES + 1 + k)
            for step in walk.steps:
                if step.layer in slices:
                    self._push(encoder, step)
            found.append(encoder.finish())
        return found

    def _push(self, encoder: IndexedEncoder, step: Step) -> None:
        reach = self.reach[step.tables]
        inside = np.clip(step.codes, -reach, reach)
        for table, part in runs_of(step.tables):
            encoder.push(inside[part] + self.reach[table], table)
        far = np.abs(step.codes) >= reach
        if far.any():
            excess = np.abs(step.codes[far]) - reach[far]
            encoder.push(np.stack([excess >> 8, excess & 255], 1).reshape(-1), SCALES)

    def decompress(
        self, payloads: Sequence[bytes], grid: tuple[int, int], quality: int, layers: int, kind: int = 0
    ) -> Walk:
        """The first payloads of a file of ``layers`` layers, back; means stand for the slices that are missing.

        Raises: ValueError if a payload is not one that :meth:`payloads` makes for this grid and quality.
        """
        groups = self.layer_slices(layers)[: len(payloads)]
        if not groups or len(payloads) > layers:
            raise ValueError(f"1 to {layers} payloads make a file, got {len(payloads)}")
        if min(grid) < 1:  # before something is pulled for it
            raise ValueError(f"a grid has at least one cell, got {grid}")
        decoders = [IndexedDecoder(payload, self._models) for payload in payloads]
        shape = (-(-grid[0] // 4), -(-grid[1] // 4))
        n = shape[0] * shape[1]
        z = np.stack([decoders[0].pull(n, SCALES + 1 + k) for k in range(self.hyper)]).astype(np.int64) - Z_MAX
        layer_of = {i: j for j, slices in enumerate(groups) for i in slices}

        def source(i: int, cells: npt.NDArray[np.int64], mean: Tensor, scale: Tensor) -> Tensor:
            tables = scale.to(torch.uint8).cpu().numpy().reshape(-1)
            flat: npt.NDArray[np.int32] = np.empty(tables.size, dtype=np.int32)
            order = np.argsort(tables, kind="stable")
            flat[order] = self.pull(decoders[layer_of[i]], np.bincount(tables, minlength=SCALES))
            return torch.from_numpy(flat).to(self.device, self.dtype).view(mean.shape)

        with self._exactly():
            z = z.reshape(self.hyper, *shape)
            graphs = self._graphs(grid) if len(layer_of) == len(self.slices) else None
            if graphs is None:
                walk = self._walk(z, grid, quality, source, len(layer_of), kind=kind)
            else:
                self._check_walk(z, grid, quality, kind)
                found = graphs.decode(self.inputs(z, quality, kind), lambda i, n: self.pull(decoders[layer_of[i]], n))
                walk = Walk(z, *found)
        for decoder in decoders:
            decoder.finish()
        return walk

    def pull(self, decoder: IndexedDecoder, counts: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
        """The next codes, sorted by scale: ``counts [SCALES]`` of each; those of skipped scales are zero.

        Raises: ValueError for a code that no encoder makes.
        """
        n = int(counts.sum())
        codes: npt.NDArray[np.int32] = np.zeros(n, dtype=np.int32)
        begin = int(counts[: self.skip + 1].sum())
        coded = codes[begin:]
        for table in range(self.skip + 1, SCALES):
            end = begin + int(counts[table])
            if end > begin:
                codes[begin:end] = decoder.pull(end - begin, table)
            begin = end
        reach = np.repeat(self.reach[self.skip + 1 :].astype(np.int32), counts[self.skip + 1 :])
        coded -= reach
        far = np.flatnonzero(np.abs(coded) >= reach)
        if far.size:
            parts = decoder.pull(2 * far.size, SCALES).reshape(-1, 2)
            coded[far] += np.sign(coded[far]) * (256 * parts[:, 0] + parts[:, 1])
            if int(np.abs(coded[far]).max()) > CODE_MAX:
                raise ValueError(f"a code is larger than {CODE_MAX}")
        return codes

    def expected(self, grid: tuple[int, int], quality: int, kind: int = 0) -> Walk:
        """Latents ``[M, h, w]`` of a grid of which nothing is known: means, after the likeliest hyper latents."""
        likely = np.array([int(table.argmax()) - Z_MAX for table in self.z_tables], dtype=np.int64)
        z = np.broadcast_to(likely[:, None, None], (self.hyper, -(-grid[0] // 4), -(-grid[1] // 4)))
        return self.walk(z.copy(), np.zeros((0, *grid), dtype=np.int64), quality, kind)

    def bits(self, walk: Walk) -> npt.NDArray[np.float64]:
        """Ideal code length in bits of every slice, z with the first: ``[slices]``."""
        found = np.zeros(len(self.slices))
        for k, channel in enumerate(walk.z):
            found[0] += table_bits(self.z_tables[k])[channel.reshape(-1) + Z_MAX].sum()
        lengths = self._lengths
        for step in walk.steps:
            reach = self.reach[step.tables]
            inside = np.clip(step.codes, -reach, reach) + reach + lengths[1][step.tables]
            found[step.layer] += lengths[0][inside].sum() + EXCESS_BITS * (np.abs(step.codes) >= reach).sum()
        return found

    @cached_property
    def _lengths(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Code lengths of all scale tables in one row, and where each table begins."""
        sizes = [len(t) for t in self.tables]
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        return np.concatenate([table_bits(t) for t in self.tables]), starts
