"""Coders with one large codebook: ours, constriction and CompressAI, timed on random codes."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console

from ....entropy.context.net import ContextNet, LevelShape
from ....entropy.context.prior import ContextPrior
from ....entropy.schedule import offsets_within, refinement
from ..report import print_table, said, table_of
from ..timing import LEAST_RUNS, SEED, WARM_UP, one_line

LARGE = {16384: LevelShape(), 262144: LevelShape(features=16, digit=32)}  # codewords -> network
LARGE_GRID = (64, 64)
LARGE_TABLES = 256 << 20  # bytes of tables, at most, for a peer that takes one for each symbol
SHARED_TABLES = 16  # of a peer whose symbols share tables


@dataclass(frozen=True)
class LargeRow:
    """One coder with one large codebook. None stands for what was not measured, ``reason`` says why."""

    coder: str
    codewords: int
    symbols: int | None = None  # coded at a time
    compress_codes_s: float | None = None
    decompress_codes_s: float | None = None
    codes_s: float | None = None  # of compress and decompress together
    tables_mib: float | None = None  # what the tables of a grid of 64 x 64 codes take, 2^20 bytes
    reason: str | None = None


# ------------------------------------------------------------------------------------------------ large codebooks


class Pair(NamedTuple):
    """What is timed: ``decompress(compress())`` gives ``codes``."""

    codes: np.ndarray
    compress: Callable[[], Any]
    decompress: Callable[[Any], Any]
    tables_mib: float


# Makes the pair for so many codewords on a device, or says why there is none. ImportError: a package is missing.
Prepare = Callable[[int, str], Pair | str]


def large_ours(n: int, device: str) -> Pair | str:
    """A context prior of one level with random weights, its network included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        axes = len(LARGE_GRID)
        net = ContextNet(
            [np.zeros((n, 0))], [refinement(axes, 8)], [offsets_within(3, (1.0,) * axes)], [LARGE[n]]
        )  # fmt: skip
    prior = ContextPrior(net.export(), device)
    codes = np.random.default_rng(SEED).integers(0, n, (1, *LARGE_GRID))
    mib = 4 * codes.size * sum(prior.levels[0].tree.bases) / 2**20
    return Pair(codes, lambda: prior.compress(codes), lambda found: prior.decompress(found, LARGE_GRID), mib)


def large_constriction(n: int, device: str) -> Pair | str:
    """A float32 table for each symbol; the tables are there before the clock starts."""
    import constriction

    rng = np.random.default_rng(SEED)
    m = max(1, min(256, LARGE_TABLES // 4 // (4 * n)))
    tables = rng.random((m, n), dtype=np.float32)
    tables /= tables.sum(1, keepdims=True)
    codes = rng.integers(0, n, m).astype(np.int32)
    model = constriction.stream.model.Categorical(perfect=False)

    def compress() -> Any:
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(codes, model, tables)
        return coder.get_compressed()

    def decompress(words: Any) -> Any:
        return constriction.stream.stack.AnsCoder(words).decode(model, tables)

    return Pair(codes, compress, decompress, 4 * n * math.prod(LARGE_GRID) / 2**20)


def compressai_ans() -> Any:
    """The coder of CompressAI without the package around it, which would import much that a coder does not need."""
    package = importlib.util.find_spec("compressai")
    places = None if package is None else package.submodule_search_locations
    spec = importlib.machinery.PathFinder.find_spec("compressai.ans", list(places or []))
    if spec is None or spec.loader is None:
        raise ImportError("No module named 'compressai.ans'")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def large_compressai(n: int, symbols: int, tables: int) -> Pair | str:
    """``symbols`` codes that take turns with ``tables`` CDFs of 16 bits, made before the clock starts."""
    ans = compressai_ans()
    if n + 1 >= 1 << 16:  # one more for its escape symbol
        return f"impossible: its CDFs have 16 bits, too few for {n} codes"
    rng = np.random.default_rng(SEED)
    shares = rng.multinomial((1 << 16) - (n + 1), np.full(n + 1, 1 / (n + 1)), size=tables) + 1
    cdfs = [[0, *np.cumsum(row).tolist()] for row in shares]
    codes = rng.integers(0, n, symbols)
    wanted, indexes = codes.tolist(), (np.arange(symbols) % tables).tolist()
    sizes, offsets = [n + 2] * tables, [0] * tables

    def compress() -> Any:
        encoder = ans.BufferedRansEncoder()
        encoder.encode_with_indexes(wanted, indexes, cdfs, sizes, offsets)
        return encoder.flush()

    def decompress(payload: Any) -> Any:
        return ans.RansDecoder().decode_with_indexes(payload, indexes, cdfs, sizes, offsets)

    held = tables if tables < symbols else math.prod(LARGE_GRID)
    return Pair(codes, compress, decompress, 4 * (n + 2) * held / 2**20)


LARGE_CODERS: dict[str, Prepare] = {
    "ours, network included": large_ours,
    "constriction, a table each": large_constriction,
    "compressai, a table each": lambda n, device: large_compressai(n, 256, 256),
    f"compressai, {SHARED_TABLES} tables": lambda n, device: large_compressai(n, math.prod(LARGE_GRID), SHARED_TABLES),
}


def time_large(name: str, n: int, seconds: float, device: str) -> LargeRow:
    """Run one coder with n codewords. Whatever it fails with becomes the reason of the row."""
    try:
        pair = LARGE_CODERS[name](n, device)
        if isinstance(pair, str):
            return LargeRow(name, n, reason=pair)
        times: list[tuple[float, float]] = []
        begin, warm_up = time.perf_counter(), WARM_UP
        while len(times) < LEAST_RUNS or time.perf_counter() - begin < seconds:
            start = time.perf_counter()
            payload = pair.compress()
            middle = time.perf_counter()
            back = pair.decompress(payload)
            times.append((middle - start, time.perf_counter() - middle))
            if not np.array_equal(back, pair.codes):
                return LargeRow(name, n, reason="failed: other codes came back")
            if warm_up:
                warm_up -= 1
                times.clear()
                begin = time.perf_counter()
    except ImportError as error:
        return LargeRow(name, n, reason=f"absent: {one_line(error)}")
    except Exception as error:
        return LargeRow(name, n, reason=f"failed: {type(error).__name__}: {one_line(error)}")
    there, back_s = (float(np.median(own)) for own in zip(*times, strict=True))
    m = pair.codes.size
    return LargeRow(
        name, n, m, compress_codes_s=m / there, decompress_codes_s=m / back_s, codes_s=m / (there + back_s),
        tables_mib=pair.tables_mib,
    )  # fmt: skip


COLUMNS = (
    ("coder", "{coder}"), ("codewords", "{codewords}"), ("symbols\nat a time", "{symbols}"),
    ("compress", "{compress_codes_s:.0f}"), ("decompress", "{decompress_codes_s:.0f}"), ("both", "{codes_s:.0f}"),
    ("tables of\n64x64, MiB", "{tables_mib:.0f}"),
)  # fmt: skip


def print_large(rows: Sequence[LargeRow], console: Console) -> None:
    print_table(console, table_of(map(asdict, rows), COLUMNS, "codewords"), "large codebooks: codes per second")
    said(console, "ours: random weights, 8 steps over a grid of 64 x 64, digits of at most 256 values")
    said(console, "peers: made-up tables, there before the clock starts; a table each: a grid needs all of them")
    for row in rows:
        if row.reason:
            said(console, f"{row.coder}, {row.codewords} codewords: {row.reason}")
