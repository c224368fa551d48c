"""What `tokodec.accelerate` is worth: quantizers of `vector-quantize-pytorch` alone and accelerated.

::

    module, rows -> alone: time, memory, indices --.
                 -> accelerated: time, memory, indices --> ratio; rows that differ, and what float64 says of them

Encoding is a pass in evaluation mode; training is forward and backward with the running means of the codewords. In
encoding every level's choice is held against a search in float64 among the codewords and rows that the level itself
compared. Where the two modules choose differently, the squared distances of both codewords to the row are computed in
float64, of the first level alone, as its residual is the same.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from ....tokenizers.adapters.accelerate import accelerate
from ...errors import UsageError
from ..report import print_table, said, table_of
from ..timing import OURS, Search, one_line, peak_mb, quartiles, show_ms, show_range
from .peers import best_distances, distances
from .step import WARM_UP, time_steps

ALONE = "alone"


@dataclass(frozen=True)
class Case:
    """A quantizer of ``levels`` codebooks ``[n, d]`` on m rows: VectorQuantize of one level, ResidualVQ of more."""

    m: int
    n: int
    d: int
    levels: int = 1

    @property
    def name(self) -> str:
        size = f"{self.n} x {self.d}"
        return f"VectorQuantize {size}" if self.levels == 1 else f"ResidualVQ {self.levels} x {size}"

    def make(self) -> Any:
        try:
            library: Any = importlib.import_module("vector_quantize_pytorch")
        except ImportError as error:
            raise UsageError(f"--modules needs vector-quantize-pytorch: {one_line(error)}") from error
        if self.levels == 1:
            return library.VectorQuantize(dim=self.d, codebook_size=self.n)
        return library.ResidualVQ(dim=self.d, codebook_size=self.n, num_quantizers=self.levels)


SIZES = {
    "cuda": (Case(262144, 1024, 256, 8), Case(262144, 16384, 8)),
    "cpu": (Case(4096, 1024, 64, 4), Case(4096, 4096, 8)),
}


@dataclass
class ModuleResult:
    """One module on one case. None stands for what was not measured, ``reason`` says why.

    Attributes:
        wrong: codes of all levels whose codeword is farther in float64 than the nearest one; of encoding only.
        differ: rows of the first level whose index is not that of the other module.
        worse: of these, where this module's codeword is farther than the other's in float64.
    """

    module: str
    rows: int
    step: str
    who: str
    ms: float | None = None
    ms_25: float | None = None
    ms_75: float | None = None
    peak_mb: float | None = None  # 10^6 bytes beyond what is held between steps
    over_ours: float | None = None
    wrong: int | None = None
    differ: int | None = None
    worse: int | None = None
    reason: str | None = None


def encode_search(module: Any, x: Tensor) -> Search:
    module.eval()

    def search() -> Tensor:
        with torch.no_grad():
            indices: Tensor = module(x)[1]
        return indices

    return search


def training_search(module: Any, x: Tensor) -> Search:
    module.train()
    x = x.clone().requires_grad_()

    def search() -> Tensor:
        x.grad = None
        z_q, indices, loss = module(x)
        (z_q.square().mean() + loss.sum()).backward()
        made: Tensor = indices
        return made

    return search


STEPS: dict[str, Callable[[Any, Tensor], Search]] = {"encode": encode_search, "training": training_search}


def first_level(indices: Tensor) -> Tensor:
    """Indices ``[M]`` of ``[1, M]`` or ``[1, M, K]``."""
    return indices[0] if indices.ndim == 2 else indices[0, :, 0]


def count_farther(module: Any, x: Tensor) -> int:
    """Codes of one pass in evaluation mode whose codeword is not the nearest in float64, level by level."""
    found = []

    def check(book: Any, given: tuple[Tensor], made: tuple[Tensor, ...]) -> None:
        rows, codebook = given[0].flatten(0, -2), book.embed[0]
        found.append(int((distances(rows, codebook, made[1].flatten()) > best_distances(rows, codebook)).sum()))

    books = [part for part in module.modules() if hasattr(part, "embed")]
    hooks = [book.register_forward_hook(check) for book in books]
    with torch.no_grad():
        module.eval()(x)
    for hook in hooks:
        hook.remove()
    assert len(found) == len(books)
    return sum(found)


def bench_case(case: Case, seconds: float, seed: int, device: str) -> list[ModuleResult]:
    """Both modules on both steps, ours first."""
    results = []
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, case.m, case.d, generator=generator).to(device)
    with torch.random.fork_rng([torch.cuda.current_device()] if device == "cuda" else []), torch.enable_grad():
        torch.manual_seed(seed)
        plain = case.make()
        levels = [plain] if case.levels == 1 else list(plain.layers)
        for k, level in enumerate(levels):  # of the rows' distribution, each level finer than the one before
            level.codebook = torch.randn(case.n, case.d) * 0.8**k
        plain = plain.to(device)
        for step, make in STEPS.items():
            pair, chosen = [], {}
            for who in (OURS, ALONE):
                result = ModuleResult(case.name, case.m, step, who)
                module = copy.deepcopy(plain)
                try:
                    module = accelerate(module) if who == OURS else module
                    search = make(module, x)
                    chosen[who] = first_level(search())
                    time_steps(search, seconds / 4, device, WARM_UP)
                    if device == "cuda":
                        result.peak_mb = peak_mb(search)
                    result.ms, result.ms_25, result.ms_75 = quartiles(time_steps(search, seconds, device))
                    if step == "encode":
                        result.wrong = count_farther(module, x)
                except Exception as error:
                    result.reason = f"failed: {type(error).__name__}: {one_line(error)}"
                pair.append(result)
                del module
                if device == "cuda":
                    torch.cuda.empty_cache()
            compare(pair, chosen, x[0], levels[0].codebook.detach().to(device))
            results += pair
    return results


def compare(pair: list[ModuleResult], chosen: dict[str, Tensor], x: Tensor, codebook: Tensor) -> None:
    """Fill in the ratios, and whose codewords are nearer where the two differ."""
    if pair[0].ms is not None:
        for result in pair:
            result.over_ours = None if result.ms is None else result.ms / pair[0].ms
    if len(chosen) < 2:
        return
    differ = chosen[OURS] != chosen[ALONE]
    ours, alone = (distances(x[differ], codebook, chosen[who][differ]) for who in (OURS, ALONE))
    for result, worse in zip(pair, (ours > alone, alone > ours), strict=True):
        result.differ, result.worse = int(differ.sum()), int(worse.sum())


COLUMNS = (
    ("step", "{step}"), ("", "{who}"), ("median\nms", "{shown}"),
    ("25..75 %\nms", "{quartiles}"), ("peak\nMB", "{peak_mb:.1f}"), ("time /\nours", "{over_ours:.2f}"),
    ("codes not\nfloat64's", "{wrong}"), ("rows that\ndiffer", "{differ}"), ("farther in\nfloat64", "{worse}"),
)  # fmt: skip


def report_modules(
    cases: tuple[Case, ...], seconds: float, seed: int, device: str, console: Console
) -> list[dict[str, Any]]:
    """Measure, print, and return what goes into the JSON file."""
    report = []
    for case in cases:
        results = bench_case(case, seconds, seed, device)
        shown = [asdict(r) | {"shown": show_ms(r.ms), "quartiles": show_range(r.ms_25, r.ms_75)} for r in results]
        title = f"{case.name} of vector-quantize-pytorch on {case.m} rows, ours: tokodec.accelerate"
        print_table(console, table_of(shown, COLUMNS), title)
        for result in results:
            if result.reason:
                said(console, f"{result.module}, {result.step}, {result.who}: {result.reason}")
        report += [asdict(result) for result in results]
    return report
