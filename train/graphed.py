"""Training steps as CUDA graphs: thousands of small kernels, launched as one.

A photo codec's step is thousands of kernels of a few microseconds, and Python takes longer to launch them one by one
than the GPU to run them (`train/RUNS.md`). Recorded once, they are launched together. Gradients of all processes are
averaged between the graph and the optimizer, in one piece, so no data-parallel wrapper is needed. The optimizers' step
is a graph of its own: Muon alone is two thousand kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed
from torch import Tensor, nn

from ..entropy.recording import recording
from .loop import step_where_finite

UPDATES_AS_THEY_ARE = 3


class GraphedStep:
    """Forward and backward pass of a loss; gradients lie in one flat buffer.

    Args:
        module: whose parameters get gradients.
        loss: inputs to a scalar; it must not wait for the device.
        inputs: tensors of the shapes and types that all later inputs have; the step keeps copies.
        graphs: record CUDA graphs; else (and on the CPU) every step runs as it is.
    """

    def __init__(self, module: nn.Module, loss: Callable[..., Tensor], inputs: Sequence[Tensor], graphs: bool) -> None:
        self.module, self.loss = module, loss
        self.inputs = [x.clone() for x in inputs]
        self.graphs = graphs and self.inputs[0].is_cuda
        parameters = list(module.parameters())
        self.flat = torch.zeros(sum(p.numel() for p in parameters), device=self.inputs[0].device)
        begin = 0
        for p in parameters:
            p.grad = self.flat[begin : begin + p.numel()].as_strided(p.shape, p.stride())
            begin += p.numel()
        self.recorded: dict[object, tuple[torch.cuda.CUDAGraph, Tensor]] = {}

    def _run(self, settings: tuple[object, ...]) -> Tensor:
        self.flat.zero_()
        loss = self.loss(*self.inputs, *settings)
        loss.backward()
        return loss.detach()

    def _record(self, settings: tuple[object, ...]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries choose their kernels and take their workspaces
            for _ in range(3):
                self._run(settings)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with recording(graph):
            loss = self._run(settings)
        return graph, loss

    def __call__(self, inputs: Sequence[Tensor], *settings: object) -> Tensor:
        """The loss; the mean gradients of all processes are in ``flat`` and in the parameters' ``grad``."""
        for held, new in zip(self.inputs, inputs, strict=True):
            held.copy_(new)
        if self.graphs:
            if settings not in self.recorded:
                self.recorded[settings] = self._record(settings)
            graph, loss = self.recorded[settings]
            graph.replay()
        else:
            loss = self._run(settings)
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(self.flat)
            self.flat /= torch.distributed.get_world_size()
        return loss

    def clip(self, most: float) -> Tensor:
        """Scale the gradients to a norm of at most ``most``, to zero if it is not finite; the norm before."""
        norm = self.flat.norm()
        scaled = self.flat * (most / (norm + 1e-6)).clamp(max=1.0)
        self.flat.copy_(torch.where(norm.isfinite(), scaled, 0.0))
        return norm


class GraphedUpdate:
    """Clip the gradients of a :class:`GraphedStep` and step its optimizers; see :func:`~.loop.step_where_finite`.

    Args:
        compute: whose gradients they are, always in the same memory.
        optimizers: of :func:`~tokodec.train.loop.optimizers_of`, whose rates are tensors on a GPU.
        most: norm that gradients are scaled to, see :meth:`GraphedStep.clip`.
    """

    def __init__(self, compute: GraphedStep, optimizers: Sequence[torch.optim.Optimizer], most: float) -> None:
        self.compute, self.optimizers, self.most = compute, optimizers, most
        self.recorded: torch.cuda.CUDAGraph | None = None
        self.norm = torch.tensor(math.nan)
        self.steps = 0

    def _run(self) -> Tensor:
        norm = self.compute.clip(self.most)
        step_where_finite(self.optimizers, norm)
        return norm

    def __call__(self) -> Tensor:
        """The norm of the gradients before. The first steps, in which optimizers make their state, run as they are."""
        self.steps += 1
        if not self.compute.graphs or self.steps <= UPDATES_AS_THEY_ARE:
            return self._run()
        if self.recorded is None:
            self.recorded = torch.cuda.CUDAGraph()
            with recording(self.recorded):
                self.norm = self._run()
        self.recorded.replay()
        return self.norm
