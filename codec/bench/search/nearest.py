"""The nearest-codeword search beside what else does it: PyTorch, torch.compile, and the libraries that are installed.

::

    shape M x N x D -> z, codebook --> float64 brute force ------------------------> distance of the best codeword
                                   \\-> each peer: warm-up, time, graph, memory, indices -> wrong rows, ratios, floor

All peers get the same float32 tensors on the same device, with TF32 off for PyTorch's products, and give the index of
the nearest codeword of every row. What a library keeps between searches (an index, norms of the rows) is made before
the clock starts, which favours it.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import Tensor

from ....tokenizers.image.grid import ImageGrid
from ....tokenizers.quantize import nearest_codeword
from ....tokenizers.quantize.base import channels_last_rows
from ....tokenizers.quantize.nearest import choose_backend
from ...errors import MediaError, UsageError
from ...models import load_model, pick_device
from ...provenance import origin
from ..clips import files_in, read_photo
from ..options import NearestOptions
from ..report import json_file, plain_console, print_table, said, table_of, where
from ..timing import (
    OURS,
    current,
    graph_ms,
    one_line,
    peak_mb,
    show_ms,
    show_range,
    synchronize,
    time_ms,
    torch_versions,
    triton_testing,
)
from .peers import PACKAGES, PEERS, Case, Shape, best_distances, distances

if TYPE_CHECKING:
    from .peers import Peer


# M x N x D: rows, codewords, dimensions.
SHAPES = {
    "cuda": "262144x16384x8,262144x16384x64,262144x8192x256,65536x262144x16,1048576x1024x8,262144x1024x256,"
    "1048576x262144x16",
    "cpu": "16384x1024x8,16384x16384x8,16384x4096x64,4096x8192x256",
}
ONLY_OURS = 1 << 36  # scores (M * N) from which no peer is tried
PATIENCE = 2.0  # seconds: a peer that needs more for one search is skipped
CHECKED_ROWS = 65536  # checked rows at most where there are
LARGE_CODEBOOK = 262144  # so many codewords or more; below all rows are checked
ULPS = 4  # of float32: how much farther than the best a codeword may be
DEFAULT_CLOCK = 1.755e9  # Hz, an H100 SXM under load
GIB = 1 << 30


@dataclass
class Result:
    """One peer on one shape. None stands for what was not measured, ``reason`` or ``graph_reason`` says why."""

    peer: str
    backend: str | None = None  # of ours: "reference" or "triton"
    ms: float | None = None  # median
    ms_25: float | None = None  # quartiles
    ms_75: float | None = None
    graph_ms: float | None = None  # median of replays of a CUDA graph; L2 is not flushed between them
    tflops: float | None = None  # 2 M N D / time, in 10^12 a second
    peak_mb: float | None = None  # 10^6 bytes beyond the inputs, the indices included
    wrong: int | None = None  # rows whose codeword is ULPS or more farther than the best
    worst_ulp: float | None = None  # the largest excess over the best squared distance
    over_ours: float | None = None  # its time / our time
    of_floor: float | None = None  # floor / time
    reason: str | None = None
    graph_reason: str | None = None


@dataclass(frozen=True)
class Limits:
    """What the GPU can do at most, as measured at the start."""

    bytes_per_s: float  # read and written by a copy
    flop_per_s: float  # of a bf16 product of 8192 x 8192 random matrices
    processors: int
    clock_hz: float
    clock_source: str

    def floors(self, shape: Shape) -> dict[str, float]:
        """Milliseconds that a search must take at least by each of three limits.

        ``copy``: inputs read and indices written once. ``matmul``: a bf16 product with three more columns for the bias,
        padded to the next 16. ``compare``: one instruction a score, 64 a clock and multiprocessor.
        """
        m, n, d = shape
        columns = max(16, math.ceil((d + 4) / 16) * 16)
        return {
            "copy": 1e3 * (4 * (m + n) * d + 8 * m) / self.bytes_per_s,
            "matmul": 1e3 * 2 * m * n * columns / self.flop_per_s,
            "compare": 1e3 * m * n / (self.processors * 64 * self.clock_hz),
        }


@dataclass
class Measured:
    """A finished shape."""

    shape: Shape
    real: bool
    checked: int
    floors: dict[str, float] | None  # on CUDA
    results: list[Result] = field(default_factory=list)

    @property
    def floor(self) -> float | None:
        return max(self.floors.values()) if self.floors else None

    def as_json(self) -> dict[str, Any]:
        m, n, d = self.shape
        over = {result.peer: result.over_ours for result in self.results}
        return {
            "shape": str(self.shape), "m": m, "n": n, "d": d, "real": self.real, "checked": self.checked,
            "floor_ms": self.floor, "floors_ms": self.floors,
            "flash_kmeans_over_ours": over.get("flash-kmeans"), "cdist_over_ours": over.get("cdist"),
            "results": [asdict(result) for result in self.results],
        }  # fmt: skip


# --------------------------------------------------------------------------------------------------- the inputs


def parse_shapes(text: str) -> list[Shape]:
    """Shapes from "MxNxD,MxNxD". Raises UsageError."""
    shapes = []
    for part in text.split(","):
        found = re.fullmatch(r"([1-9][0-9]{0,11})x([1-9][0-9]{0,11})x([1-9][0-9]{0,11})", part.strip())
        if not found:
            raise UsageError(f"{part.strip()!r} is not a shape: write rows x codewords x dimensions, like 4096x1024x8")
        shapes.append(Shape(*map(int, found.groups())))
    return shapes


def image_latents(folder: Path) -> list[tuple[Tensor, Tensor]]:
    """What each level of ``image-grid`` searches for the pictures of a folder: (residual [M, D], codebook [N, D])."""
    model = load_model("image-grid").tokenizer
    assert isinstance(model, ImageGrid)
    rows = []
    for path in files_in(folder, "pictures", None):
        x = torch.from_numpy(read_photo(path).x.copy()).permute(2, 0, 1)[None].float() / 255  # [1, 3, H, W]
        height, width = (side // 16 * 16 for side in x.shape[2:])
        rows.append(channels_last_rows(model.latents(x[:, :, :height, :width])))
    residual, levels = torch.cat(rows), []
    for level in model.codebooks:
        codebook = level.codebook.detach()
        levels.append((residual, codebook))
        residual = residual - codebook[nearest_codeword(residual, codebook)]
    return levels


def read_latents(path: Path) -> tuple[Tensor, Tensor]:
    """``z [M, D]`` and ``codebook [N, D]`` as float32. Raises MediaError (unreadable), UsageError (they do not fit)."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except OSError as error:
        raise MediaError(f"cannot read {path}: {(error.strerror or 'no such file').lower()}") from error
    except SafetensorError as error:
        raise MediaError(f"cannot read {path}: it is not a safetensors file ({one_line(error)})") from error
    missing = [name for name in ("z", "codebook") if name not in tensors]
    if missing:
        raise UsageError(f"{path} holds no tensor {' and no '.join(missing)}: need z [M, D] and codebook [N, D]")
    z, codebook = tensors["z"], tensors["codebook"]
    fit = z.ndim == codebook.ndim == 2 and z.shape[1] == codebook.shape[1] and z.numel() and codebook.numel()
    if not fit or not (z.is_floating_point() and codebook.is_floating_point()):
        raise UsageError(
            f"{path}: need z [M, D] and codebook [N, D] of floats, got {list(z.shape)} and {list(codebook.shape)}"
        )
    z, codebook = z.float(), codebook.float()
    if not (z.isfinite().all() and codebook.isfinite().all()):
        raise UsageError(f"{path}: latents or codewords are not finite")
    return z, codebook


def make_case(shape: Shape, seed: int, device: str, real: tuple[Tensor, Tensor] | None = None) -> Case:
    """Inputs by a generator of their own, on the CPU: a shape gets the same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    try:
        if real is None:
            z = torch.randn(shape.m, shape.d, generator=generator)
            codebook = torch.randn(shape.n, shape.d, generator=generator)
        else:
            z, codebook = real
        z, codebook = z.to(device).contiguous(), codebook.to(device).contiguous()
    except RuntimeError as error:  # also what PyTorch raises where memory is short
        raise UsageError(f"cannot make the inputs of {shape}: {one_line(error)}") from error
    rows = None
    if shape.n >= LARGE_CODEBOOK and shape.m > CHECKED_ROWS:
        rows = torch.randperm(shape.m, generator=generator)[:CHECKED_ROWS].to(device)
    checked = z if rows is None else z[rows]
    return Case(shape, real is not None, z, codebook, rows=rows, best=best_distances(checked, codebook))


# ------------------------------------------------------------------------------------------------ right or wrong


def count_wrong(z: Tensor, codebook: Tensor, indices: Tensor, best: Tensor) -> tuple[int, float]:
    """How many rows got a wrong codeword, and the largest excess in ulp.

    A row is wrong if the squared distance of its codeword (float64) exceeds the best by ``ULPS`` units in the last
    place of float32 or more, a unit being the spacing of float32 numbers at the best distance; or if there is no
    codeword of that number. Ties and near ties are right, whichever codeword is chosen.
    """
    inside = (indices >= 0) & (indices < len(codebook))
    chosen = distances(z, codebook, torch.where(inside, indices, 0))  # a number outside would end the CUDA context
    single = best.float()
    spacing = torch.nextafter(single, torch.full_like(single, math.inf)).double() - single.double()
    excess = torch.where(inside, (chosen - best) / spacing, math.inf)  # [M] in ulp
    return int((~(excess < ULPS)).sum()), max(0.0, float(excess.max()))  # NaN is wrong, too


@contextmanager
def without_tf32() -> Iterator[None]:
    """TF32 off for products of float32; what was set before comes back."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def measure(peer: Peer, case: Case, seconds: float, device: str) -> Result:
    """Run one peer on one shape. Whatever it fails with becomes the reason of the result."""
    result = Result(peer.name)
    if peer.name == OURS:
        result.backend = choose_backend(case.z.device.type, case.z.device.index)
    m, n, d = case.shape
    try:
        if peer.name != OURS and m * n >= ONLY_OURS:
            result.reason = f"{m * n:.1e} scores: only ours is run at this size"
            return result
        search = peer.prepare(case.z, case.codebook)
        search()  # what happens only once: compilation, tuning, workspaces
        synchronize(device)
        begin = time.perf_counter()
        indices = search()
        synchronize(device)
        estimate = time.perf_counter() - begin
        if peer.name != OURS and estimate > PATIENCE:
            result.reason = f"one search takes {estimate:.1f} s, more than {PATIENCE:.0f} s"
            return result
        if indices.shape != (m,):
            result.reason = f"gave indices of shape {list(indices.shape)}"
            return result
        chosen = case.select(indices.long())
        wrong, worst = count_wrong(case.select(case.z), case.codebook, chosen, case.best)
        del indices, chosen  # or they would count as held before
        if device == "cuda" and peer.counted:
            result.peak_mb = peak_mb(search)
        ms, low, high = time_ms(search, seconds, device, estimate)
        result.wrong, result.worst_ulp = wrong, worst
        result.ms, result.ms_25, result.ms_75 = ms, low, high
        result.tflops = 2 * m * n * d / ms / 1e9
    except ImportError as error:
        result.reason = f"absent: {one_line(error)}"
        return result
    except Exception as error:
        result.reason = f"failed: {type(error).__name__}: {one_line(error)}"
        return result
    if device == "cuda" and peer.graph:
        try:
            result.graph_ms = graph_ms(search, seconds)
        except Exception as error:
            result.graph_reason = f"no graph: {type(error).__name__}: {one_line(error)}"
    return result


def find_limits() -> Limits:
    """Measure what the GPU copies and multiplies, and its clock."""
    bytes_per_s, clock, clock_source = copy_rate()
    flop_per_s = matmul_rate()
    torch.cuda.empty_cache()
    processors = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
    return Limits(bytes_per_s, flop_per_s, processors, clock, clock_source)


def copy_rate() -> tuple[float, float, str]:
    """Bytes read and written per second; the clock meanwhile and its source: one that idles clocks lower."""
    source = torch.zeros(GIB, dtype=torch.uint8, device="cuda")
    target = torch.zeros_like(source)
    ms = triton_testing().do_bench(lambda: target.copy_(source), warmup=50, rep=200, return_mode="median")
    for _ in range(200):  # a tenth of a second or more: still going on when the clock is read
        target.copy_(source)
    clock, clock_source = read_clock()
    torch.cuda.synchronize()
    return 2 * GIB / ms * 1e3, clock, clock_source


def matmul_rate(size: int = 8192) -> float:
    """FLOP per second of a square bf16 product."""
    generator = torch.Generator("cuda").manual_seed(0)
    a, b = (torch.randn(size, size, device="cuda", generator=generator).bfloat16() for _ in range(2))
    ms = triton_testing().do_bench(lambda: a @ b, warmup=50, rep=200, return_mode="median")
    return 2 * size**3 / ms * 1e3


def read_clock() -> tuple[float, str]:
    """Clock of the multiprocessors in Hz and where the number comes from."""
    try:
        mhz = torch.cuda.clock_rate()
        why = f"torch.cuda.clock_rate gave {mhz}"
        if mhz > 0:
            return mhz * 1e6, "torch.cuda.clock_rate"
    except Exception as error:  # needs NVML's package and a driver that answers; each fails in its own way
        why = one_line(error)
    khz = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "clock_rate", 0)
    return (khz * 1e3, f"device properties; {why}") if khz else (DEFAULT_CLOCK, f"assumed; {why}")


# ------------------------------------------------------------------------------------------------------- the whole


def bench_nearest(options: NearestOptions) -> dict[str, Any]:
    """Time and check the search beside its peers; print a table a shape and write JSON.

    A folder of pictures is as many shapes as ``image-grid`` has levels.

    Returns: what the JSON file holds.
    Raises:  a TokodecError: a device that is not there, a bad shape, an unreadable file. A peer that is absent or fails
             is a line of the table and no error.
    """
    seconds, seed, latents = options.seconds, options.seed, options.latents
    chosen = pick_device(options.device)
    device = chosen.partition(":")[0]
    if not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(f"seconds must be above 0, got {seconds}")
    todo: list[tuple[Shape, tuple[Tensor, Tensor] | None]] = [
        (shape, None) for shape in parse_shapes(options.shapes or SHAPES[device])
    ]
    if latents is not None:
        for real in image_latents(latents) if latents.is_dir() else [read_latents(latents)]:
            todo.append((Shape(len(real[0]), *real[1].shape), real))
    console = plain_console()
    with json_file(options.out) as write, torch.no_grad(), without_tf32(), current(chosen):
        limits = find_limits() if device == "cuda" else None
        place = origin(device)
        report: dict[str, Any] = {
            **place,
            "versions": place["versions"] | torch_versions(*PACKAGES),
            "limits": asdict(limits) if limits else None,
            "dtype": "float32",
            "seed": seed,
            "seconds": seconds,
            "latents": str(latents) if latents else None,
            "ulps": ULPS,
            "cases": [],
        }
        for line in headlines(report):
            said(console, line)
        known: set[str] = set()
        for shape, data in todo:
            measured = bench_case(make_case(shape, seed, device, data), limits, seconds, device, options.compile)
            print_case(measured, console, known)
            report["cases"].append(measured.as_json())
        if options.step:
            from . import step as nearest_step

            report["step"] = nearest_step.report_steps(nearest_step.SIZES[device], seconds, seed, device, console)
        if options.modules:
            from . import modules

            report["modules"] = modules.report_modules(modules.SIZES[device], seconds, seed, device, console)
        write(report)
    return report


def bench_case(
    case: Case, limits: Limits | None, seconds: float, device: str, compile_too: bool | None = None
) -> Measured:
    """All peers on one shape."""
    checked = len(case.best)
    measured = Measured(case.shape, case.real, checked, limits.floors(case.shape) if limits else None)
    for peer in PEERS:
        if peer.name == "compiled" and not (device == "cuda" if compile_too is None else compile_too):
            measured.results.append(Result(peer.name, reason="not asked for: --compile"))
            continue
        measured.results.append(measure(peer, case, seconds, device))
        if device == "cuda":
            torch.cuda.empty_cache()  # libraries with an allocator of their own need room too
    our_ms = next(result.ms for result in measured.results if result.peer == OURS)
    for result in measured.results:
        if result.ms is not None:
            result.over_ours = result.ms / our_ms if our_ms is not None else None
            result.of_floor = measured.floor / result.ms if measured.floor is not None else None
    return measured


def headlines(report: dict[str, Any]) -> list[str]:
    """Where and with what the numbers were measured."""
    versions = report["versions"]
    lines = [
        f"nearest-codeword search on {where(report)}",
        f"torch {versions['torch']}, triton {versions['triton'] or 'absent'}, seed {report['seed']}, {report['dtype']}",
    ]
    if limits := report["limits"]:
        lines.append(
            f"copies {limits['bytes_per_s'] / 1e9:.0f} GB/s, bf16 products {limits['flop_per_s'] / 1e12:.0f} TFLOP/s, "
            f"{limits['processors']} multiprocessors at {limits['clock_hz'] / 1e9:.3f} GHz ({limits['clock_source']})"
        )
    return lines


COLUMNS = (
    ("peer", "{name}"), ("median\nms", "{shown}"), ("25..75 %\nms", "{quartiles}"), ("graph\nms", "{graph}"),
    ("TFLOP/s", "{tflops:.3g}"), ("peak\nMB", "{peak_mb:.1f}"), ("wrong", "{wrong}"), ("rows\nchecked", "{checked}"),
    ("time /\nours", "{over_ours:.2f}"), ("of\nfloor", "{of_floor:.1%}"),
)  # fmt: skip


def print_case(measured: Measured, console: Console, known: set[str]) -> None:
    """The table of one shape, and below it the reasons for dashes that were not said before, which are ``known``."""
    title = f"{measured.shape}{' real' if measured.real else ''}"
    if measured.floors and measured.floor is not None:
        limit = max(measured.floors, key=measured.floors.__getitem__)
        title += f", floor {measured.floor:.3f} ms ({limit})"
    entries = [
        asdict(result) | {
            "name": f"{result.peer} ({result.backend})" if result.backend else result.peer,
            "shown": show_ms(result.ms), "quartiles": show_range(result.ms_25, result.ms_75),
            "graph": show_ms(result.graph_ms), "checked": None if result.wrong is None else measured.checked,
        }
        for result in measured.results
    ]  # fmt: skip
    print_table(console, table_of(entries, COLUMNS), title)
    for result in measured.results:
        for reason in (result.reason, result.graph_reason):
            line = f"{result.peer}: {reason}"
            if reason and line not in known:
                known.add(line)
                said(console, line)
