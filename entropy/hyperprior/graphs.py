"""Walks of a hyperprior as CUDA graphs: hundreds of small kernels, launched as one between two words with the host.

Captured once for a grid; one walk at a time. Codes, latents and bytes are those of the plain walk
(:mod:`.walk`), which runs the same layers in the same order.

Codes are sorted by scale on the device, so that the host, which has the arithmetic coder, gets no more than how many
codes each scale has, and gives back the codes in that order.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..recording import recording
from .net import HATS, SCALES
from .walk import Networks, Step, WalkRun

# (slice, codes of each scale [SCALES]) -> the codes, sorted by scale
Pull = Callable[[int, npt.NDArray[np.int64]], npt.NDArray[np.int32]]
Found = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], list[Step]]


class WalkGraphs:
    """Graphs of :class:`~.walk.WalkRun` over one grid, for the decoder and, once it is asked for, the encoder."""

    def __init__(self, prior: Networks, grid: tuple[int, int]) -> None:
        self.prior, self.grid = prior, grid
        self.run = WalkRun(prior, grid)
        device = prior.device
        shape = (-(-grid[0] // 4), -(-grid[1] // 4))
        self.given = torch.zeros(*shape, prior.hyper + HATS + prior.kinds, pin_memory=True)
        self.order = prior.steps
        sizes = [len(self._index(k)) * prior.slices[i] for k, (i, _) in enumerate(self.order)]
        self.bounds = torch.arange(SCALES + 1, dtype=torch.uint8, device=device)
        self.edges = [torch.zeros(SCALES + 1, dtype=torch.int64, pin_memory=True) for _ in sizes]
        self.symbols = [torch.zeros(n, dtype=torch.int16, pin_memory=True) for n in sizes]
        self.codes = torch.zeros(prior.latents, grid[0] * grid[1], dtype=torch.int16, device=device)
        self.codes_out = torch.zeros(prior.latents, *grid, dtype=torch.int16, pin_memory=True)
        self.latents_out = torch.zeros(prior.latents, *grid, dtype=torch.float32, pin_memory=True)
        self.values = torch.zeros(grid[0] * grid[1], prior.latents, dtype=prior.dtype, device=device)
        self.encoder: torch.cuda.CUDAGraph | None = None
        self._warm_up()
        self.pool = torch.cuda.graph_pool_handle()
        self.decoder: list[torch.cuda.CUDAGraph] = []
        last: tuple[Tensor, Tensor] | None = None
        for k in range(len(self.order) + 1):
            graph = torch.cuda.CUDAGraph()
            with recording(graph, self.pool):
                if k == 0:
                    self.run.begin(self.given.to(device, prior.dtype, non_blocking=True))
                else:
                    assert last is not None
                    self._put(k - 1, *last)
                if k < len(self.order):
                    last = self._look(k)
                else:
                    self._finish()
            self.decoder.append(graph)

    def _index(self, k: int) -> Tensor:
        """The cells of a step of the walk."""
        i, step = self.order[k]
        return self.run.layout.index[self.prior.nets[i].order][step]

    def _warm_up(self) -> None:
        """One walk as it is: libraries choose their kernels and take their workspaces."""
        side = torch.cuda.Stream(self.prior.device)
        side.wait_stream(torch.cuda.current_stream(self.prior.device))
        with torch.cuda.stream(side):
            self.run.begin(self.given.to(self.prior.device, self.prior.dtype, non_blocking=True))
            for k in range(len(self.order)):
                self._put(k, *self._look(k))
            self._finish()
        torch.cuda.current_stream(self.prior.device).wait_stream(side)
        side.synchronize()

    def _look(self, k: int) -> tuple[Tensor, Tensor]:
        """Means of a step, and the order of its codes by scale; their numbers go to the host."""
        mean, scale = self.run.predict(*self.order[k])
        tables, order = torch.sort(scale.to(torch.uint8).flatten(), stable=True)
        self.edges[k].copy_(torch.searchsorted(tables, self.bounds), non_blocking=True)
        return mean, order

    def _put(self, k: int, mean: Tensor, order: Tensor) -> None:
        """Codes of a step from the host."""
        code = torch.empty(mean.numel(), dtype=torch.int16, device=mean.device)
        code.index_copy_(0, order, self.symbols[k].to(mean.device, non_blocking=True))
        self._take(k, mean, code.view(mean.shape))

    def _take(self, k: int, mean: Tensor, code: Tensor) -> None:
        i, step = self.order[k]
        begin, end = self.prior.starts[i], self.prior.starts[i + 1]
        self.codes[begin:end, self._index(k)] = code.T.to(torch.int16)
        self.run.take(i, step, mean, code.to(self.prior.dtype))

    def _finish(self) -> None:
        self.codes_out.copy_(self.codes.view(self.codes_out.shape), non_blocking=True)
        self.latents_out.copy_(self.run.latents(), non_blocking=True)

    def _wait(self) -> None:
        torch.cuda.current_stream(self.prior.device).synchronize()

    def decode(self, x: npt.NDArray[np.float32], pull: Pull) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Codes and latents, ``[M, h, w]`` each, of what ``pull`` says. x: see :meth:`~.prior.HyperPrior.inputs`."""
        self._wait()
        self.given.numpy()[:] = x
        for k, (i, _) in enumerate(self.order):
            self.decoder[k].replay()
            self._wait()
            self.symbols[k].numpy()[:] = pull(i, np.diff(self.edges[k].numpy()))
        self.decoder[-1].replay()
        self._wait()
        return self.codes_out.numpy().astype(np.int64), self.latents_out.numpy().copy()

    def _capture_encoder(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with recording(graph, self.pool):
            self.run.begin(self.given.to(self.prior.device, self.prior.dtype, non_blocking=True))
            for k, (i, step) in enumerate(self.order):
                mean, scale = self.run.predict(i, step)
                part = self.values[self._index(k), self.prior.starts[i] : self.prior.starts[i + 1]]
                code = self.prior.code_of(part, mean, scale)
                tables, order = torch.sort(scale.to(torch.uint8).flatten(), stable=True)
                self.edges[k].copy_(torch.searchsorted(tables, self.bounds), non_blocking=True)
                self.symbols[k].copy_(code.flatten()[order].to(torch.int16), non_blocking=True)
                self._take(k, mean, code)
            self._finish()
        return graph

    def encode(self, x: npt.NDArray[np.float32], values: Tensor) -> Found:
        """Codes, latents and what goes through the coder. values: latents ``[h w, M]`` in quantiser steps."""
        if self.encoder is None:
            self.encoder = self._capture_encoder()
        self._wait()
        self.given.numpy()[:] = x
        self.values.copy_(values)
        self.encoder.replay()
        self._wait()
        steps = []
        for k, (i, _) in enumerate(self.order):
            counts = np.diff(self.edges[k].numpy())
            begin = int(counts[: self.prior.skip + 1].sum())
            tables = np.repeat(np.arange(SCALES, dtype=np.uint8), counts)[begin:]
            steps.append(Step(i, self.symbols[k].numpy()[begin:].copy(), tables))
        return self.codes_out.numpy().astype(np.int64), self.latents_out.numpy().copy(), steps
