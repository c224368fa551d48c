"""Inference as CUDA graphs: a net's kernels, launched as one.

At a batch of one picture a GPU takes less time for a net's hundred small kernels than Python to launch them (H100:
3.6 ms for the synthesis net of image-photo at 768x512, nearly all of it launching; `codec bench devices`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from ..entropy.recording import recording

AFTER = 2  # plain calls with inputs of a shape before its graph is recorded
KEPT = 4  # shapes
MOST = 1 << 21  # numbers in all inputs, beyond which launching does not matter and a graph would hold much memory

Function = Callable[..., Tensor]
Replay = Callable[..., Tensor]


def record(function: Function, inputs: tuple[Tensor, ...]) -> Replay:
    """``function`` as a CUDA graph for inputs of these shapes."""
    held = tuple(x.clone() for x in inputs)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries choose their kernels and take their workspaces
        function(*held)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with recording(graph):
        out = function(*held)

    def replay(*inputs: Tensor) -> Tensor:
        for mine, theirs in zip(held, inputs, strict=True):
            mine.copy_(theirs)
        graph.replay()
        return out.clone()

    return replay


class Graphed:
    """A function of tensors, without gradients, that is recorded for shapes that come again; on the CPU as it is.

    What the function reads beside its inputs must stay where it is in memory, or :meth:`forget` be called.
    """

    def __init__(self, function: Function) -> None:
        self.function = function
        self.calls: Counter[tuple[object, ...]] = Counter()
        self.recorded: dict[tuple[object, ...], Replay] = {}

    def forget(self) -> None:
        """Start anew: weights have moved."""
        self.calls.clear()
        self.recorded.clear()

    def __call__(self, *inputs: Tensor) -> Tensor:
        if not inputs[0].is_cuda or sum(x.numel() for x in inputs) > MOST or torch.is_grad_enabled():
            return self.function(*inputs)
        key = tuple((tuple(x.shape), x.dtype) for x in inputs)
        self.calls[key] += 1
        if self.calls[key] <= AFTER:
            return self.function(*inputs)
        if key not in self.recorded:
            if len(self.recorded) >= KEPT:
                self.recorded.pop(next(iter(self.recorded)))
            self.recorded[key] = record(self.function, inputs)
        return self.recorded[key](*inputs)
