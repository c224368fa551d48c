"""What the search is worth end to end: steps with the search of this package beside the same with plain products.

::

    step = quantizer, net or encode -> search swapped in -> warm-up -> memory -> times -> share of the search -> ratio

The peer is what one writes without this package: ``argmin(|c|^2 / 2 - z.c)`` in float32, in blocks of rows. Times run
from an idle device to an idle device, so what the host needs to launch a step counts as well.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from ....tokenizers.image.grid import ImageGrid, ImageGridConfig
from ....tokenizers.image.layers import STRIDE, channels_last
from ....tokenizers.quantize import codebook as codebook_module
from ....tokenizers.quantize import nearest as nearest_module
from ....tokenizers.quantize.nearest import Backend, Metric, choose_backend
from ....tokenizers.quantize.residual import ResidualQuantizer
from ....tokenizers.quantize.simvq import SimVQ
from ..report import print_table, said, table_of
from ..timing import LEAST_RUNS, OURS, Search, one_line, peak_mb, quartiles, show_ms, show_range, synchronize

WARM_UP = 5  # steps at least; as many more as fit into the seconds that are timed
SCORES = 1 << 24  # of one block of the peer
MATMUL = "matmul"
# As train/recipes/image-grid.yaml; its first stage trains one synthesis net.
NET = ImageGridConfig(codebook_sizes=(8192, 4096, 2048, 2048), synthesis=("faithful",))


@dataclass(frozen=True)
class Sizes:
    """What is measured; the dropout of levels is the quantizer's default, as in training."""

    dim: int = 64
    codebook_sizes: tuple[int, ...] = (16384, 4096, 4096, 4096)
    grid: tuple[int, int, int] = (64, 16, 16)  # batch, h, w of the latents that the quantizer alone is trained on
    encode: tuple[tuple[int, int, int], ...] = ((1, 32, 48), (64, 16, 16))  # one picture of 768 x 512; that batch
    net: ImageGridConfig = NET
    crops: tuple[int, int] = (64, 256)  # batch, side


SIZES = {"cuda": Sizes(), "cpu": Sizes(crops=(1, 64))}


@dataclass
class StepResult:
    """One step with one search. None stands for what was not measured, ``reason`` says why."""

    step: str
    rows: int  # M of each search
    search: str
    backend: str | None = None  # of ours
    ms: float | None = None  # median
    ms_25: float | None = None  # quartiles
    ms_75: float | None = None
    peak_mb: float | None = None  # 10^6 bytes beyond what is held between steps
    search_share: float | None = None  # of the step's time; subtractions between levels are not search
    over_ours: float | None = None  # its time / our time
    reason: str | None = None


# ------------------------------------------------------------------------------------------------- the two searches


def matmul_codeword(
    z: Tensor, codebook: Tensor, metric: Metric = "l2", penalty: Tensor | None = None, backend: Backend = "auto"
) -> Tensor:
    """Indices ``[M]`` int64 of ``codebook [N, D]`` for ``z [M, D]``.

    The peer of :func:`~....tokenizers.quantize.nearest.nearest_codeword`.
    """
    if metric != "l2":
        raise ValueError(f"the peer knows metric 'l2', not {metric!r}")
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        z, codebook = z.float(), codebook.float()
        bias = codebook.square().sum(-1) / 2  # [N]
        if penalty is not None:
            bias = bias + penalty / 2
        blocks = z.split(max(1, SCORES // len(codebook)))
        return torch.cat([torch.addmm(bias, block, codebook.T, alpha=-1).argmin(-1) for block in blocks])


def subtract_codewords(z: Tensor, codebook: Tensor, indices: Tensor, backend: str = "auto") -> Tensor:
    return z - codebook[indices]


@contextmanager
def search_by(name: str, calls: list[tuple[Mark, Mark]] | None = None) -> Iterator[None]:
    """Quantizers search by ``name`` inside; what was there before comes back. ``calls`` gets start and end of each."""
    search: Callable[..., Any] = nearest_module.nearest_codeword
    subtract: Callable[..., Any] = nearest_module._subtract_codewords
    if name == MATMUL:
        search, subtract = matmul_codeword, subtract_codewords
    plain = search
    if calls is not None:

        def search(z: Tensor, *rest: Any) -> Tensor:
            start = mark(z.device.type)
            indices = plain(z, *rest)
            calls.append((start, mark(z.device.type)))
            return indices

    with (
        patch.object(codebook_module, "nearest_codeword", search),  # training, and levels that stand alone
        patch.object(nearest_module, "nearest_codeword", search),  # residual_codewords, by which all levels encode
        patch.object(nearest_module, "_subtract_codewords", subtract),
    ):
        yield


# --------------------------------------------------------------------------------------------------------- the steps


def make_quantizer(sizes: Sizes, device: str) -> ResidualQuantizer:
    return ResidualQuantizer([SimVQ(n, sizes.dim) for n in sizes.codebook_sizes]).to(device)


def make_latents(sizes: Sizes, grid: tuple[int, int, int], device: str) -> Tensor:
    """``[B, D, h, w]`` of the same distribution as the codewords of an untrained SimVQ."""
    batch, h, w = grid
    return (torch.randn(batch, sizes.dim, h, w) * sizes.dim**-0.5).to(device)


def quantizer_step(sizes: Sizes, device: str) -> Search:
    """Forward, losses and backward of the quantizer alone; the step gives its loss."""
    quantizer = make_quantizer(sizes, device).train()
    z_e = make_latents(sizes, sizes.grid, device).requires_grad_()

    def step() -> Tensor:
        z_e.grad = None
        quantizer.zero_grad(set_to_none=True)
        out = quantizer(z_e)
        loss = out.z_q.square().mean() + out.commitment_loss + out.codebook_loss
        loss.backward()
        return loss.detach()

    return step


def net_step(sizes: Sizes, device: str) -> Search:
    """One step of the first stage of train/image.py, less MS-SSIM and the guard against bad gradients.

    Latents of random weights lie close together, so that most cells choose alike, and young weights change fast. So the
    last convolution is scaled to give latents the spread of the codewords, and the optimizer works at learning rate 0:
    both searches see the same latents in every step.
    """
    net = channels_last(ImageGrid(sizes.net).to(device)).train()
    synthesis = net.synthesis[sizes.net.synthesis[0]]
    trained = nn.ModuleList([net.analysis, net.quantizer, synthesis])
    optimizer = torch.optim.AdamW(
        trained.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=0.0, fused=device == "cuda"
    )
    batch, side = sizes.crops
    x = F.interpolate(torch.rand(batch, 3, side // 8, side // 8), size=(side, side), mode="bilinear")
    x = x.to(device).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        z_e = net.analysis(2 * x - 1)  # [B, D, h, w]
        scale = z_e.std((0, 2, 3)) * sizes.net.dim**0.5  # [D]
        last = net.analysis[-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        last.bias.copy_((last.bias - z_e.mean((0, 2, 3))) / scale)
        last.weight /= scale[:, None, None, None]

    def step() -> Tensor:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True):
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                out = net.quantizer(net.analysis(2 * x - 1))
                x_hat = (synthesis(out.z_q) + 1) / 2
            loss = 100 * F.mse_loss(x_hat.float(), x) + out.commitment_loss + out.codebook_loss
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
        return loss.detach()

    return step


def encode_step(sizes: Sizes, grid: tuple[int, int, int], device: str) -> Search:
    """Inference: latents to the codes of all levels."""
    quantizer = make_quantizer(sizes, device).eval()
    z_e = make_latents(sizes, grid, device)
    return lambda: quantizer.encode(z_e)


def steps(sizes: Sizes, device: str) -> list[tuple[str, int, Callable[[], Search]]]:
    """Name, rows and maker of all that is measured."""
    batch, h, w = sizes.grid
    crops, side = sizes.crops
    return [
        ("quantizer, training", batch * h * w, partial(quantizer_step, sizes, device)),
        ("net, training", crops * (side // STRIDE) ** 2, partial(net_step, sizes, device)),
        *(("quantizer, encode", math.prod(grid), partial(encode_step, sizes, grid, device)) for grid in sizes.encode),
    ]


# -------------------------------------------------------------------------------------------------- time and memory

Mark = float | torch.cuda.Event


def mark(device: str) -> Mark:
    """A moment: an event in the stream, or the wall clock."""
    if device != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between_ms(start: Mark, end: Mark) -> float:
    """Milliseconds; CUDA events must have happened."""
    if isinstance(start, float) or isinstance(end, float):
        assert isinstance(start, float)
        assert isinstance(end, float)
        return 1e3 * (end - start)
    return start.elapsed_time(end)


def time_steps(step: Search, seconds: float, device: str, least: int = LEAST_RUNS) -> list[float]:
    """Milliseconds of each of ``least`` or more steps, the device being idle before and after each."""
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < least or time.perf_counter() - begin < seconds:
        synchronize(device)
        start = mark(device)
        step()
        end = mark(device)
        synchronize(device)
        times.append(between_ms(start, end))
    return times


def measure_step(result: StepResult, make: Callable[[], Search], seconds: float, seed: int, device: str) -> None:
    """Fill in a result. Whatever it fails with becomes its reason."""
    calls: list[tuple[Mark, Mark]] = []
    try:
        with torch.random.fork_rng([torch.cuda.current_device()] if device == "cuda" else []), torch.enable_grad():
            torch.manual_seed(seed)  # both searches start from the same weights
            step = make()
            with search_by(result.search):
                time_steps(step, seconds, device, WARM_UP)
                if device == "cuda":
                    result.peak_mb = peak_mb(step)
                ms, low, high = quartiles(time_steps(step, seconds, device))
            with search_by(result.search, calls):  # on its own, as watching costs time too
                total = sum(time_steps(step, seconds / 4, device))
        result.ms, result.ms_25, result.ms_75 = ms, low, high
        result.search_share = sum(between_ms(start, end) for start, end in calls) / total
    except Exception as error:
        result.reason = f"failed: {type(error).__name__}: {one_line(error)}"


def bench_steps(sizes: Sizes, seconds: float, seed: int, device: str) -> list[StepResult]:
    """All steps with both searches, ours first."""
    results: list[StepResult] = []
    for name, rows, make in steps(sizes, device):
        index = torch.cuda.current_device() if device == "cuda" else None
        pair = StepResult(name, rows, OURS, choose_backend(device, index)), StepResult(name, rows, MATMUL)
        for result in pair:
            measure_step(result, make, seconds, seed, device)
            if device == "cuda":
                torch.cuda.empty_cache()
            if result.ms is not None and pair[0].ms is not None:
                result.over_ours = result.ms / pair[0].ms
        results += pair
    return results


COLUMNS = (
    ("step, search", "{step}, {name}"), ("rows", "{rows}"), ("median\nms", "{shown}"), ("25..75 %\nms", "{quartiles}"),
    ("peak\nMB", "{peak_mb:.1f}"), ("search\nof step", "{search_share:.1%}"), ("time /\nours", "{over_ours:.2f}"),
)  # fmt: skip


def named_result(result: StepResult) -> dict[str, Any]:
    """A result as the table shows it."""
    name = f"{result.search} ({result.backend})" if result.backend else result.search
    times = {"shown": show_ms(result.ms), "quartiles": show_range(result.ms_25, result.ms_75)}
    return asdict(result) | {"name": name} | times


def report_steps(sizes: Sizes, seconds: float, seed: int, device: str, console: Console) -> dict[str, Any]:
    """Measure, print, and return what goes into the JSON file."""
    results = bench_steps(sizes, seconds, seed, device)
    autocast = "bf16" if device == "cuda" else "off"
    title = f"steps: quantizer {sizes.codebook_sizes} x {sizes.dim}, net {sizes.net.codebook_sizes} x {sizes.net.dim}"
    title += f", {sizes.crops[0]} crops of {sizes.crops[1]}, autocast {autocast}"
    print_table(console, table_of(map(named_result, results), COLUMNS), title)
    for result in results:
        if result.reason:
            said(console, f"{result.step}, {result.search}: {result.reason}")
    return {"sizes": asdict(sizes), "autocast": autocast, "results": [asdict(result) for result in results]}
