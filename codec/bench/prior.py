"""The context prior beside the static one: bytes, integer tables, speed, and what one device makes of another's bytes.

::

    picture, .tok, tokens -> codes [k,h,w] -> segments -> each prior: payloads -> whole files with 1..k levels
                                                       -> context prior: integer tables -> one SHA-256 for all inputs

Files are built by the writer of the codec, so their sizes are those of `codec encode --no-metadata` for pictures
without alpha. With ``large``, coders of large codebooks are timed as well, on random codes.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.machinery
import importlib.util
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ... import __version__
from ...entropy.context import ContextPrior
from ...entropy.context_net import ContextNet, LevelShape
from ...entropy.prior import Codes, Prior, check_codes
from ...entropy.schedule import offsets_within, refinement
from ...entropy.static import StaticPrior
from ...tokenizers.api import TokenSpec, find_model
from ..container import ImageHeader, write_tok
from ..encode import segment_cells
from ..errors import FormatError, MediaError, ModelError, UsageError, WeightsMismatchError
from ..files import open_output
from ..media.image import IMAGE_SUFFIXES_IN
from ..models import TOKEN_MODELS, pick_device, weights_hash_of
from ..tokens import TOKEN_SUFFIXES, load_tokens, tokenize_file
from .nearest import one_line, quartiles
from .results import as_json, commit, machine

WARM_UP = 2  # round trips over a grid before the clock starts: 4 runs, CUDA graphs are captured on the third
LEAST_RUNS = 5
SEED = 0  # of the random weights and codes of the large codebooks
LARGE = {16384: LevelShape(), 262144: LevelShape(features=16, digit=32)}  # codewords -> network
LARGE_GRID = (64, 64)
LARGE_TABLES = 256 << 20  # bytes of tables, at most, for a peer that takes one for each symbol
SHARED_TABLES = 16  # of a peer whose symbols share tables

Columns = list[list[bytes]]  # payloads [s][k] of segment s and level k


@dataclass(frozen=True)
class Input:
    """Codes of one picture."""

    name: str
    codes: Codes  # [k, h, w]
    spec: TokenSpec

    def header(self, prior: Prior, layers: int) -> ImageHeader:
        """Header of a file with the first ``layers`` levels, as `codec encode` writes it."""
        height, width = self.spec.size
        return ImageHeader(
            model=self.spec.model, weights_hash=self.spec.weights_hash, prior=prior.wire_id, prior_hash=prior.hash,
            layers=layers, height=height, width=width, stride=self.spec.strides[0],
            segment=segment_cells(self.spec.strides[0]), channels=3,
        )  # fmt: skip

    def segments(self, prior: Prior) -> list[Codes]:
        """The codes in the parts that are coded on their own, ``[k, <=64, <=64]`` each."""
        header = self.header(prior, len(self.codes))
        boxes = map(header.segment_box, range(header.n_segments))
        return [self.codes[:, top:bottom, left:right] for top, left, bottom, right in boxes]

    def compress(self, prior: Prior) -> Columns:
        return [prior.compress(codes) for codes in self.segments(prior)]

    def bits(self, prior: Prior) -> np.ndarray:
        """What the prior estimates for each level, ``[k]`` float64."""
        total: np.ndarray = np.sum([prior.bits(codes) for codes in self.segments(prior)], axis=0)
        return total

    def file_bytes(self, prior: Prior, columns: Columns, layers: int) -> int:
        """Size of the whole file with the first ``layers`` levels."""
        return len(write_tok(self.header(prior, layers), [list(row) for row in zip(*columns, strict=True)][:layers]))


@dataclass(frozen=True)
class FileRow:
    """Files with so many levels; bytes are means over the inputs."""

    levels: int
    static_bytes: float  # of whole files
    context_bytes: float
    saved: float  # 1 - context / static
    payload_bytes: float  # of the context prior
    estimate_bytes: float  # its code length / 8
    payload_excess: float  # payload / estimate - 1
    file_excess: float  # whole file / estimate - 1


@dataclass(frozen=True)
class LevelRow:
    """One level alone, over all inputs."""

    level: int
    codes: int
    static_bits: float  # estimated, a code
    context_bits: float


@dataclass(frozen=True)
class SpeedRow:
    """The entropy part of all levels, warm. Milliseconds are of one input: median and quartiles over the inputs."""

    prior: str
    compress_ms: float
    compress_ms_25: float
    compress_ms_75: float
    decompress_ms: float
    decompress_ms_25: float
    decompress_ms_75: float
    compress_codes_s: float  # codes of all inputs / time of all inputs
    decompress_codes_s: float
    runs: int
    exact: int  # inputs whose codes came back


@dataclass(frozen=True)
class Agreement:
    """How many inputs two devices treat alike."""

    inputs: int
    bytes: int  # equal payloads
    there: int  # the first device's payloads give the codes on the second
    back: int  # and the other way round


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


# --------------------------------------------------------------------------------------------------- the inputs


def load_priors(name: str, device: str) -> tuple[Path, StaticPrior, ContextPrior]:
    """Folder of a model and both of its entropy models. Raises ModelError if it lacks one."""
    try:
        folder = find_model(name)
        static, context = StaticPrior.from_pretrained(folder), ContextPrior.from_pretrained(folder, device)
    except (OSError, ValueError) as error:
        raise ModelError(" ".join(str(error).split())) from error
    if static.codebook_sizes != context.codebook_sizes:
        raise ModelError(f"the entropy models in {folder} have different codebook sizes")
    return folder, static, context


def input_files(inputs: Sequence[Path], suffixes: Sequence[str], what: str) -> list[Path]:
    """Files in the order given; a folder stands for the files in it with one of the suffixes, by name.

    Raises: UsageError for a folder without any.
    """
    files = []
    for path in inputs:
        inside = [path]
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes and p.is_file())
        if not inside:
            raise UsageError(f"no {what} in {path}")
        files += inside
    return files


def read_input(path: Path, model: str | None, device: str, weights_hash: str, prior: Prior) -> Input:
    """Codes of a picture, a `.tok` file or a file of tokens. Raises a TokodecError if not whole, or another model's."""
    if path.suffix.lower() in TOKEN_SUFFIXES:
        tokens = load_tokens(path)
    else:
        done = tokenize_file(path, model=model, device=device)
        if done.problems:
            raise FormatError(f"{path}: {done.problems[0]}; only intact files are compared")
        tokens = done.tokens
    spec = tokens.spec
    if spec.weights_hash != weights_hash:
        raise WeightsMismatchError(
            f"{path}: tokens of {spec.model} {spec.weights_hash}, the model at hand has {weights_hash};"
            " give the right folder with --model"
        )
    found = Input(path.name, tokens.codes[0].numpy(), spec)
    if spec.modality != "image" or len(tokens.codes) != 1:
        raise MediaError(f"{path}: these are not the tokens of one picture")
    try:
        check_codes(found.codes, prior.codebook_sizes)
    except ValueError as error:
        raise MediaError(f"{path}: {error}") from error
    if found.header(prior, 1).grid != found.codes.shape[1:]:
        raise MediaError(f"{path}: these are not the tokens of one picture")
    return found


def read_inputs(paths: Sequence[Path], model: str | None, device: str, folder: Path, prior: Prior) -> list[Input]:
    """Raises a TokodecError for the first input that cannot be read, or if they have different numbers of levels."""
    weights_hash = weights_hash_of(folder)
    inputs = [read_input(path, model, device, weights_hash, prior) for path in paths]
    for path, found in zip(paths, inputs, strict=True):
        if len(found.codes) != len(inputs[0].codes):
            raise UsageError(
                f"{path} has {len(found.codes)} levels, {paths[0]} has {len(inputs[0].codes)}: give inputs of one kind"
            )
    return inputs


# ------------------------------------------------------------------------------------------------ bytes and tables


def rate_rows(inputs: Sequence[Input], static: Prior, context: Prior) -> tuple[list[FileRow], list[LevelRow]]:
    """Bytes for every number of levels, bits for every level."""
    levels = range(1, len(inputs[0].codes) + 1)
    columns = {prior: [found.compress(prior) for found in inputs] for prior in (static, context)}
    bits = {prior: np.array([found.bits(prior) for found in inputs]) for prior in (static, context)}  # [inputs, k]
    files = []
    for n in levels:
        whole = {
            prior: float(np.mean([i.file_bytes(prior, c, n) for i, c in zip(inputs, own, strict=True)]))
            for prior, own in columns.items()
        }
        payload = sum(len(p) for own in columns[context] for column in own for p in column[:n]) / len(inputs)
        estimate = float(bits[context][:, :n].sum()) / 8 / len(inputs)
        row = FileRow(
            levels=n, static_bytes=whole[static], context_bytes=whole[context],
            saved=1 - whole[context] / whole[static], payload_bytes=payload, estimate_bytes=estimate,
            payload_excess=ratio(payload, estimate) - 1, file_excess=ratio(whole[context], estimate) - 1,
        )  # fmt: skip
        files.append(row)
    cells = sum(found.codes[0].size for found in inputs)
    own = [LevelRow(n, cells, *(float(bits[p][:, n - 1].sum()) / cells for p in (static, context))) for n in levels]
    return files, own


def ratio(a: float, b: float) -> float:
    return a / b if b else math.nan


def table_hashes(inputs: Sequence[Input], context: ContextPrior) -> list[list[str]]:
    """SHA-256 of the integer tables of every input's segments."""
    return [[context.tables_hash(codes) for codes in found.segments(context)] for found in inputs]


def hash_of_hashes(hashes: Sequence[Sequence[str]]) -> str:
    """SHA-256 of all the hex digits in a row."""
    return hashlib.sha256("".join(one for own in hashes for one in own).encode("ascii")).hexdigest()


# ------------------------------------------------------------------------------------------------------- speed


def time_prior(name: str, prior: Prior, inputs: Sequence[Input], seconds: float) -> SpeedRow:
    """Time round trips of the entropy part: inputs of one size take turns for ``seconds``, each at least once."""
    groups: dict[tuple[int, ...], list[Input]] = {}
    for found in inputs:
        groups.setdefault(found.codes.shape, []).append(found)
    compress, decompress, codes, runs, exact = [], [], 0, 0, 0
    for group in groups.values():
        parts = [found.segments(prior) for found in group]
        for _ in range(WARM_UP):
            round_trip(prior, parts[0])
        trips: list[list[Trip]] = [[] for _ in group]
        begin, done = time.perf_counter(), 0
        while done < max(len(group), LEAST_RUNS) or time.perf_counter() - begin < seconds:
            trips[done % len(group)].append(round_trip(prior, parts[done % len(group)]))
            done += 1
        runs += done
        for found, own in zip(group, trips, strict=True):
            compress.append(1e3 * float(np.median([trip.compress_s for trip in own])))
            decompress.append(1e3 * float(np.median([trip.decompress_s for trip in own])))
            exact += all(trip.exact for trip in own)
            codes += found.codes.size
    rates = (1e3 * codes / sum(compress), 1e3 * codes / sum(decompress))
    return SpeedRow(name, *quartiles(compress), *quartiles(decompress), *rates, runs, exact)


class Trip(NamedTuple):
    """One round trip of one input."""

    compress_s: float
    decompress_s: float
    exact: bool


def round_trip(prior: Prior, segments: Sequence[Codes]) -> Trip:
    """Both directions give data of the host, so the wall clock is right on a GPU too."""
    start = time.perf_counter()
    columns = [prior.compress(codes) for codes in segments]
    middle = time.perf_counter()
    back = [prior.decompress(own, codes.shape[1:]) for own, codes in zip(columns, segments, strict=True)]
    end = time.perf_counter()
    exact = all(np.array_equal(a, b) for a, b in zip(segments, back, strict=True))
    return Trip(middle - start, end - middle, exact)


def agreement(inputs: Sequence[Input], first: Prior, second: Prior) -> Agreement:
    """Code each input with both and decode it with the other."""
    same = there = back = 0
    for found in inputs:
        ours, theirs = found.compress(first), found.compress(second)
        same += ours == theirs
        there += gives_codes(second, ours, found)
        back += gives_codes(first, theirs, found)
    return Agreement(len(inputs), same, there, back)


def gives_codes(prior: Prior, columns: Columns, found: Input) -> bool:
    """Whether the payloads are decoded to the input's codes."""
    try:
        return all(
            np.array_equal(prior.decompress(own, codes.shape[1:]), codes)
            for own, codes in zip(columns, found.segments(prior), strict=True)
        )
    except ValueError:  # with other tables a payload is seldom one at all
        return False


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
    return LargeRow(name, n, m, m / there, m / back_s, m / (there + back_s), pair.tables_mib)


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


def bench_prior(
    inputs: Sequence[Path],
    model: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    seconds: float = 0.5,
    large: bool = False,
    out: Path | None = None,
) -> dict[str, Any]:
    """Compare the two priors of a model on the codes of some inputs; print tables and write JSON.

    Args:    inputs: pictures, `.tok` files, files of tokens, or folders of them.  model: as everywhere.
             device: "auto", "cpu" or "cuda", of the context prior and of the analysis of pictures.
             threads: of PyTorch on the CPU.  seconds: how long each prior is timed on the inputs of each size, and each
             coder with each large codebook.  large: also time large codebooks.
             out: JSON file, replaced if it is there.
    Returns: what the JSON file holds.
    Raises:  a TokodecError: an input that cannot be read, is damaged or belongs to another model.
    """
    device = pick_device(device)
    if not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(f"seconds must be above 0, got {seconds}")
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, got {threads}")
    paths = input_files(inputs, (*IMAGE_SUFFIXES_IN, ".tok", *TOKEN_SUFFIXES), "pictures, .tok files or tokens")
    console = plain_console()
    with open_output(out, force=True) as file, torch_threads(threads), torch.no_grad():
        folder, static, context = load_priors(model or TOKEN_MODELS["image"], device)
        found = read_inputs(paths, model, device, folder, static)
        report: dict[str, Any] = {
            **origin(folder, static, context, device),
            "seconds": seconds,
            "seed": SEED,
            "segment": segment_cells(found[0].spec.strides[0]),
        }
        cells = sum(one.codes[0].size for one in found)
        said(console, f"{len(found)} inputs, {cells} cells, {len(found[0].codes)} levels; {where(report)}")
        said(console, f"{folder.name}: static prior {static.hash}, context prior {context.hash}")
        files, levels = rate_rows(found, static, context)
        print_rates(files, levels, console)
        hashes = table_hashes(found, context)
        total = hash_of_hashes(hashes)
        said(console, f"tables SHA-256 {total}")
        said(console, "")
        speeds = [time_prior(name, prior, found, seconds) for name, prior in (("static", static), ("context", context))]
        print_speed(speeds, len(found), console)
        both = agreement(found, context, context.to("cpu")) if device == "cuda" else None
        if both is not None:
            print_agreement(both, console)
        report |= {
            "inputs": [
                {"name": one.name, "grid": one.codes.shape[1:], "levels": len(one.codes), "tables_sha256": own}
                for one, own in zip(found, hashes, strict=True)
            ],
            "files": [asdict(row) for row in files],
            "levels": [asdict(row) for row in levels],
            "tables_sha256": total,
            "speed": [asdict(row) for row in speeds],
            "cuda_and_cpu": None if both is None else asdict(both),
        }
        if large:
            rows = [time_large(name, n, seconds, device) for n in LARGE for name in LARGE_CODERS]
            print_large(rows, console)
            report["large"] = [asdict(row) for row in rows]
        if file is not None:
            file.write(as_json(report).encode())
    return report


def origin(folder: Path, static: Prior, context: Prior, device: str) -> dict[str, Any]:
    """What was measured, where, and when: the start of a report."""
    return {
        "model": folder.name,
        "weights_hash": weights_hash_of(folder),
        "prior_hashes": {"static": static.hash, "context": context.hash},
        "machine": machine(device),
        "versions": package_versions(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def package_versions() -> dict[str, str | None]:
    """Of everything that bytes and times depend on; None for what is absent."""
    found: dict[str, str | None] = {"tokodec": __version__, "python": platform.python_version()}
    found |= {"torch": str(torch.__version__), "cuda": torch.version.cuda}
    for name in ("numpy", "constriction", "compressai"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def where(report: dict[str, Any]) -> str:
    """The machine in some words."""
    host = report["machine"]
    threads = f"{host['torch_threads']} thread{'s' * (host['torch_threads'] != 1)}"
    device = host["device"] if host["device"] != "cpu" else f"{host['processor']}, {threads}"
    return f"{device}, torch {report['versions']['torch']}"


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


def print_rates(files: Sequence[FileRow], levels: Sequence[LevelRow], console: Console) -> None:
    table = numbers(
        "bytes of a file, mean over the inputs", "\nlevels", "whole file\nstatic", "whole file\ncontext", "\nsaved",
        "payload\ncontext", "estimate\ncontext", "payload /\nestimate", "file /\nestimate",
    )  # fmt: skip
    for f in files:
        table.add_row(
            str(f.levels), f"{f.static_bytes:.1f}", f"{f.context_bytes:.1f}", f"{f.saved:.2%}",
            f"{f.payload_bytes:.1f}", f"{f.estimate_bytes:.1f}", f"{f.payload_excess:+.2%}", f"{f.file_excess:+.2%}",
        )  # fmt: skip
    console.print(table)
    said(console, "whole file: signature, header, chunk frames and CRCs, payloads of all segments, index, end")
    said(console, "payload: what the coder wrote, rounded up to 32-bit words; estimate: code length / 8, context prior")
    table = numbers("bits per code of each level alone", "level", "codes", "static", "context", "saved")
    for level in levels:
        table.add_row(*bits_row(str(level.level), level.codes, level.static_bits, level.context_bits))
    table.add_section()
    cells, static, context = levels[0].codes, *(sum(bits) for bits in zip(*map(bits_of, levels), strict=True))
    table.add_row(*bits_row("per cell", cells, static, context))
    console.print(table)
    said(console, "code lengths that the priors estimate: nothing of the file around them, no rounding of payloads")
    said(console, "")


def bits_of(row: LevelRow) -> tuple[float, float]:
    return row.static_bits, row.context_bits


def bits_row(name: str, codes: int, static: float, context: float) -> tuple[str, ...]:
    saved = "-" if not static else f"{1 - context / static:.2%}"
    return name, str(codes), f"{static:.3f}", f"{context:.3f}", saved


def print_speed(rows: Sequence[SpeedRow], inputs: int, console: Console) -> None:
    table = numbers(
        "entropy part of an input, all levels, warm: median over the inputs (quartiles)", "\nprior", "compress\nms",
        "\n25..75 %", "decompress\nms", "\n25..75 %", "compress\ncodes/s", "decompress\ncodes/s", "codes\ncame back",
    )  # fmt: skip
    for r in rows:
        table.add_row(
            r.prior,
            f"{r.compress_ms:.2f}", f"{r.compress_ms_25:.2f}..{r.compress_ms_75:.2f}",
            f"{r.decompress_ms:.2f}", f"{r.decompress_ms_25:.2f}..{r.decompress_ms_75:.2f}",
            f"{r.compress_codes_s:.0f}", f"{r.decompress_codes_s:.0f}", f"{r.exact} of {inputs}",
        )  # fmt: skip
    console.print(table)


def print_agreement(both: Agreement, console: Console) -> None:
    said(console, f"cuda and cpu: equal bytes for {both.bytes} of {both.inputs} inputs")
    said(console, f"payloads of cuda on the cpu: equal codes for {both.there} of {both.inputs} inputs")
    said(console, f"payloads of the cpu on cuda: equal codes for {both.back} of {both.inputs} inputs")


def print_large(rows: Sequence[LargeRow], console: Console) -> None:
    table = numbers(
        "large codebooks: codes per second", "\ncoder", "\ncodewords", "symbols\nat a time", "\ncompress",
        "\ndecompress", "\nboth", "tables of\n64x64, MiB",
    )  # fmt: skip
    for i, row in enumerate(rows):
        if i and row.codewords != rows[i - 1].codewords:
            table.add_section()
        rates = (row.compress_codes_s, row.decompress_codes_s, row.codes_s)
        table.add_row(
            row.coder, str(row.codewords), "-" if row.symbols is None else str(row.symbols),
            *("-" if rate is None else f"{rate:.0f}" for rate in rates),
            "-" if row.tables_mib is None else f"{row.tables_mib:.0f}",
        )  # fmt: skip
    console.print(table)
    said(console, "ours: random weights, 8 steps over a grid of 64 x 64, digits of at most 256 values")
    said(console, "peers: made-up tables, there before the clock starts; a table each: a grid needs all of them")
    for row in rows:
        if row.reason:
            said(console, f"{row.coder}, {row.codewords} codewords: {row.reason}")
