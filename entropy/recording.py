"""Recording CUDA graphs while others come and go."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def recording(graph: torch.cuda.CUDAGraph, pool: Any = None) -> Iterator[None]:
    """Record what is launched inside into ``graph``. pool: memory of graphs that never run at the same time.

    Python may collect garbage at any moment, a graph that was given up among it, and to free a graph while another is
    recorded spoils the recording. So there is no collection until it is over.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, pool=pool):
            yield
    finally:
        if collecting:
            gc.enable()
