"""Timing on CPUs and GPUs."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from ..errors import UsageError

LEAST_RUNS = 5
WARM_UP = 2  # round trips over a grid before the clock starts: 4 runs, CUDA graphs are captured on the third
SEED = 0  # of random weights and codes
Search = Callable[[], Tensor]
OURS = "ours"


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def current(device: str) -> AbstractContextManager[Any]:
    """Make a device PyTorch's current one, if it is a GPU; what was before comes back."""
    return torch.cuda.device(device) if device.startswith("cuda") else nullcontext()


def triton_testing() -> Any:
    try:
        return importlib.import_module("triton.testing")
    except ImportError as error:
        raise UsageError(f"times on CUDA are taken with Triton: {one_line(error)}") from error


def time_ms(search: Search, seconds: float, device: str, estimate: float) -> tuple[float, float, float]:
    """Median and quartiles in milliseconds of a search that has run before.

    CUDA: events around each run, L2 flushed before it, as Triton's do_bench does. CPU: the wall clock.
    At least ``LEAST_RUNS`` runs; ``estimate`` is how many seconds one takes.
    """
    if device.startswith("cuda"):
        rep = 1e3 * max(seconds, 1.2 * LEAST_RUNS * estimate)
        found = triton_testing().do_bench(search, warmup=min(100.0, rep / 4), rep=rep, quantiles=[0.5, 0.25, 0.75])
        return found[0], found[1], found[2]
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < LEAST_RUNS or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        search()
        times.append(1e3 * (time.perf_counter() - start))
    return quartiles(times)


def quartiles(times: list[float]) -> tuple[float, float, float]:
    """Median, first and third quartile."""
    low, median, high = torch.tensor(times, dtype=torch.float64).quantile(torch.tensor([0.25, 0.5, 0.75]).double())
    return float(median), float(low), float(high)


def graph_ms(search: Search, seconds: float) -> float:
    """Median milliseconds of a search within replays of a CUDA graph: ten replays of as many searches as fit."""
    rep = max(20.0, 1e3 * seconds / 10)
    return float(triton_testing().do_bench_cudagraph(search, rep=rep, return_mode="median"))


def peak_mb(search: Search) -> float:
    """Most memory that PyTorch holds during a search, beyond what it holds before, in 10^6 bytes."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    search()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def one_line(error: Exception) -> str:
    """The start of a message, on one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 160 else text[:157] + "..."


def show_ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if value < 1000 else f"{value:.0f}"


def show_range(low: float | None, high: float | None) -> str:
    """Quartiles of milliseconds."""
    return "-" if low is None else f"{show_ms(low)}..{show_ms(high)}"


def torch_versions(*packages: str) -> dict[str, str | None]:
    """Of PyTorch with its build, of CUDA, and of packages that times depend on; None for what is absent."""
    found: dict[str, str | None] = {"torch": str(torch.__version__), "cuda": torch.version.cuda}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
