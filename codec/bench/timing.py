"""Timing on CPUs and GPUs, and how times are shown."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ..errors import UsageError

LEAST_RUNS = 5
Search = Callable[[], Tensor]
OURS = "ours"


# -------------------------------------------------------------------------------------------------- time and memory


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


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


WARM_UP = 2  # round trips over a grid before the clock starts: 4 runs, CUDA graphs are captured on the third
SEED = 0  # of the random weights and codes of the large codebooks


# ------------------------------------------------------------------------------------------------------- the whole


@contextmanager
def torch_threads(n: int | None) -> Iterator[None]:
    """PyTorch with n threads on the CPU; the number before comes back."""
    before = torch.get_num_threads()
    if n is not None:
        torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------------ printing


def plain_console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=120)


def said(console: Console, line: str) -> None:
    """Print one line as it is."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def numbers(title: str, first: str, *headings: str) -> Table:
    """An empty table: a column of names, then columns of numbers."""
    table = Table(title=title, box=SIMPLE, padding=(0, 1), title_justify="left")
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
