"""The context prior beside the static one: bytes, integer tables, speed, and what one device makes of another's bytes.

::

    picture, .tok, tokens -> codes [k,h,w] -> segments -> each prior: payloads -> whole files with 1..k levels
                                                       -> context prior: integer tables -> one SHA-256 for all inputs

Files are built by the writer of the codec, so their sizes are those of `codec encode --no-metadata` for pictures
without alpha. With ``large``, coders of large codebooks are timed as well, on random codes.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from rich.console import Console

from ....entropy.context.prior import ContextPrior
from ....entropy.prior import Codes, Prior
from ...corpus.token_files import TOKEN_SUFFIXES
from ...errors import UsageError
from ...image.segments import segment_cells
from ...media.read_image import IMAGE_SUFFIXES_IN
from ...models import pick_device
from ...registry import MODALITIES
from ..inputs import input_files, load_priors, priors_origin, read_inputs
from ..options import PriorOptions
from ..report import json_file, plain_console, print_table, said, table_of, where
from ..run import torch_threads
from ..timing import LEAST_RUNS, SEED, WARM_UP, quartiles
from .large import LARGE, LARGE_CODERS, print_large, time_large

if TYPE_CHECKING:
    from ..inputs import Columns, Input


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


def bench_prior(options: PriorOptions) -> dict[str, Any]:
    """Compare the two priors of a model on the codes of some inputs; print tables and write JSON.

    The device is that of the context prior and of the analysis of pictures.

    Returns: what the JSON file holds.
    Raises:  a TokodecError: an input that cannot be read, is damaged or belongs to another model.
    """
    device, seconds = pick_device(options.device), options.seconds
    if not (math.isfinite(seconds) and seconds > 0):
        raise UsageError(f"seconds must be above 0, got {seconds}")
    paths = input_files(options.inputs, (*IMAGE_SUFFIXES_IN, ".tok", *TOKEN_SUFFIXES), "pictures, .tok files or tokens")
    console = plain_console()
    with torch_threads(options.threads), json_file(options.out) as write, torch.no_grad():
        folder, static, context = load_priors(options.model or MODALITIES["image"].token_model, device)
        found = read_inputs(paths, options.model, device, folder, static)
        report: dict[str, Any] = {
            **priors_origin(folder, static, context, device),
            "seconds": seconds,
            "seed": SEED,
            "segment": segment_cells(found[0].spec.strides[0]),
        }
        cells = sum(one.codes[0].size for one in found)
        place = f"{where(report)}, torch {report['versions']['torch']}"
        said(console, f"{len(found)} inputs, {cells} cells, {len(found[0].codes)} levels; {place}")
        said(console, f"{folder.name}: static prior {static.hash}, context prior {context.hash}")
        files, levels = rate_rows(found, static, context)
        print_rates(files, levels, console)
        hashes = table_hashes(found, context)
        total = hash_of_hashes(hashes)
        said(console, f"tables SHA-256 {total}")
        speeds = [time_prior(name, prior, found, seconds) for name, prior in (("static", static), ("context", context))]
        title = "entropy part of an input, all levels, warm: median over the inputs (quartiles)"
        print_table(console, table_of(map(asdict, speeds), SPEEDS), title)
        both = agreement(found, context, context.to("cpu")) if device.startswith("cuda") else None
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
        if options.large:
            rows = [time_large(name, n, seconds, device) for n in LARGE for name in LARGE_CODERS]
            print_large(rows, console)
            report["large"] = [asdict(row) for row in rows]
        write(report)
    return report


FILES = (
    ("levels", "{levels}"), ("file\nstatic", "{static_bytes:.1f}"), ("file\ncontext", "{context_bytes:.1f}"),
    ("saved", "{saved:.2%}"), ("payload\ncontext", "{payload_bytes:.1f}"),
    ("estimate\ncontext", "{estimate_bytes:.1f}"), ("payload /\nestimate", "{payload_excess:+.2%}"),
    ("file /\nestimate", "{file_excess:+.2%}"),
)  # fmt: skip
LEVELS = (
    ("level", "{level}"), ("codes", "{codes}"), ("static", "{static_bits:.3f}"), ("context", "{context_bits:.3f}"),
    ("saved", "{saved:.2%}"),
)  # fmt: skip
SPEEDS = (
    ("prior", "{prior}"),
    ("compress\nms", "{compress_ms:.2f}"), ("25..75 %", "{compress_ms_25:.2f}..{compress_ms_75:.2f}"),
    ("decompress\nms", "{decompress_ms:.2f}"), ("25..75 %", "{decompress_ms_25:.2f}..{decompress_ms_75:.2f}"),
    ("compress\ncodes/s", "{compress_codes_s:.0f}"), ("decompress\ncodes/s", "{decompress_codes_s:.0f}"),
    ("inputs whose\ncodes came back", "{exact}"),
)  # fmt: skip


def print_rates(files: Sequence[FileRow], levels: Sequence[LevelRow], console: Console) -> None:
    print_table(console, table_of(map(asdict, files), FILES), "bytes of a file, mean over the inputs")
    said(console, "file: signature, header, chunk frames and CRCs, payloads of all segments, index, end")
    said(console, "payload: what the coder wrote, rounded up to 32-bit words; estimate: code length / 8, context prior")
    entries = [asdict(row) for row in levels]
    total = {key: sum(entry[key] for entry in entries) for key in ("static_bits", "context_bits")}
    entries.append({"level": "per cell", "codes": levels[0].codes, **total})
    for entry in entries:
        entry["saved"] = 1 - entry["context_bits"] / entry["static_bits"] if entry["static_bits"] else None
    print_table(console, table_of(entries, LEVELS), "bits per code of each level alone")
    said(console, "code lengths that the priors estimate: nothing of the file around them, no rounding of payloads")


def print_agreement(both: Agreement, console: Console) -> None:
    said(console, f"cuda and cpu: equal bytes for {both.bytes} of {both.inputs} inputs")
    said(console, f"payloads of cuda on the cpu: equal codes for {both.there} of {both.inputs} inputs")
    said(console, f"payloads of the cpu on cuda: equal codes for {both.back} of {both.inputs} inputs")
