"""One device beside the CPU: whether each reads the other's files to the same codes, and how long it takes.

::

    picture, quality -> file made on the CPU, file made on the device -> codes of both files on both
    .tok file                                                        -> its codes on both

The SHA-256 over the codes of all files is equal on all machines for equal files in equal order.
"""

from __future__ import annotations

import hashlib
import io
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ...tokenizers.image.photo import ImagePhoto
from ..container.read import read_tok
from ..decode import decode_file, file_tokens
from ..encode import encode_file
from ..errors import MediaError, UsageError
from ..files import open_output
from ..media.audio import AUDIO_SUFFIXES_IN
from ..media.kind import Kind, media_kind
from ..media.read_image import IMAGE_SUFFIXES_IN
from ..media.read_video import VIDEO_SUFFIXES_IN
from ..models import load_model, pick_device
from ..provenance import as_json, commit, machine
from ..registry import MODALITIES
from .inputs import picture_files

KINDS: dict[Kind, str] = {"image": "pictures", "audio": "sounds", "video": "videos"}
SUFFIXES = {*IMAGE_SUFFIXES_IN, *AUDIO_SUFFIXES_IN, *VIDEO_SUFFIXES_IN}
WARM_UP = 4  # round trips over a size before the clock starts: graphs are captured on the third walk
RUNS = 5  # of which the median is taken
BATCH = 8


@dataclass(frozen=True)
class Row:
    """One picture at one quality, or one .tok file. Seconds are medians of :data:`RUNS`."""

    name: str
    quality: float | None
    height: int
    width: int
    bytes_cpu: int  # of the file made on the CPU
    same_file: bool | None  # whether the device makes the same one; None without a picture
    same_codes: bool  # of every file, read on both
    encode_s: float | None  # on the device
    decode_s: float  # on the device: file in memory to pixels in the CPU's memory
    decode_cpu_s: float


def folder_kind(folder: Path) -> Kind:
    """What a folder is about: what its first .tok file holds, or if it has none, its first media file."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in files:
        if path.suffix == ".tok":
            return MODALITIES[read_tok(read_bytes(path)).header.modality]  # type: ignore[return-value]
    return next((media_kind(path)[0] for path in files if path.suffix.lower() in SUFFIXES), "image")


def read_bytes(path: Path) -> bytes:
    """Raises MediaError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise MediaError(f"cannot read {path}: {error}") from error


def timed(run: Callable[[], object], runs: int = RUNS) -> float:
    """Median seconds."""
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def codes_of(data: bytes, model: str | None, device: str) -> np.ndarray:
    """All codes of a file, ``[K, h, w]``."""
    tokens, _ = file_tokens(read_tok(data), model, device)
    return tokens.codes[0].cpu().numpy()


def bench_file(
    name: str, source: bytes | None, data: bytes, quality: float | None, model: str | None, device: str
) -> tuple[Row, np.ndarray]:
    """Measure one file. source: the picture that it was made of on the CPU, None if there is only the file."""
    header = read_tok(data).picture
    codes = codes_of(data, model, "cpu")
    same_file, encode_s, same = None, None, np.array_equal(codes, codes_of(data, model, device))
    if source is not None:

        def encode() -> bytes:
            return encode_file(io.BytesIO(source), None, model=model, quality=quality, device=device).data

        theirs = encode()
        same_file = theirs == data
        same &= np.array_equal(codes_of(theirs, model, device), codes_of(theirs, model, "cpu"))
        encode_s = timed(encode)
    decode_s = timed(lambda: decode_file(io.BytesIO(data), model=model, device=device))
    cpu_s = timed(lambda: decode_file(io.BytesIO(data), model=model, device="cpu"), 1)
    return Row(
        name, quality, header.height, header.width, len(data), same_file, bool(same), encode_s, decode_s, cpu_s
    ), codes  # fmt: skip


def batch_decode(files: Sequence[bytes], model: ImagePhoto) -> Callable[[], None]:
    """Decoding files of one size and quality: the entropy model a file after the other, pixels in one batch."""
    toks = [read_tok(data) for data in files]

    def run() -> None:
        latents = []
        for tok in toks:
            header = tok.picture
            walk = model.entropy.decompress(
                tok.segment_payloads(0, header.layers), header.grid, header.quality, header.layers
            )
            latents.append(walk.latents)
        x = model.pixels(torch.from_numpy(np.stack(latents)).to(model.device), toks[0].picture.quality)
        (x * 255).round().byte().cpu()

    return run


def bench_devices(
    folder: Path,
    qualities: Sequence[float],
    model: str | None,
    device: str,
    limit: int | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Measure, print tables, and return what the JSON file ``out`` gets.

    Args:    folder: with pictures, or with .tok files if it holds any.
    Raises:  a TokodecError: nothing there, or a model whose rate dial is not a quality.
    """
    device = pick_device(device)
    name = model or MODALITIES["image"].encode_model
    tokenizer = load_model(name, device).tokenizer
    if not isinstance(tokenizer, ImagePhoto):
        raise UsageError(f"{tokenizer.name} has no quality for a rate dial")
    files = sorted(folder.glob("*.tok"))[:limit] if folder.is_dir() else []
    paths = [] if files else picture_files(folder, limit)
    console, digest = Console(), hashlib.sha256()
    rows: list[Row] = []
    groups: dict[tuple[float, int, int], list[bytes]] = {}
    seen: set[tuple[int, int]] = set()
    work: list[tuple[str, Path, float | None]] = [(p.name, p, None) for p in files]
    work += [(p.name, p, quality) for p in paths for quality in qualities]
    for label, path, quality in work:
        source = read_bytes(path)
        data = (
            source
            if quality is None
            else encode_file(io.BytesIO(source), None, model=name, quality=quality, device="cpu").data
        )
        picture = None if quality is None else source
        extent = (read_tok(data).picture.height, read_tok(data).picture.width)
        if extent not in seen:
            for _ in range(WARM_UP):
                decode_file(io.BytesIO(data), model=model, device=device)
        seen.add(extent)
        row, codes = bench_file(label, picture, data, quality, name, device)
        digest.update(codes.astype("<i4").tobytes())
        rows.append(row)
        header = read_tok(data).picture
        if header.n_segments == 1:
            groups.setdefault((header.quality / 100, *extent), []).append(data)
    batches = []
    for (quality, height, width), members in groups.items():
        if len(members) >= BATCH:
            seconds = timed(batch_decode(members[:BATCH], tokenizer))
            size = {"quality": quality, "height": height, "width": width}
            batches.append({**size, "batch": BATCH, "pictures_per_s": BATCH / seconds})
    report = {
        "machine": machine(device), "commit": commit(), "model": tokenizer.name, "weights": tokenizer.weights_hash,
        "codes_sha256": digest.hexdigest(), "rows": [asdict(row) for row in rows], "batches": batches,
    }  # fmt: skip
    show(report, rows, console)
    if out is not None:
        with open_output(out, force=True) as file:
            assert file is not None
            file.write(as_json(report).encode())
    return report


def show(report: dict[str, Any], rows: Sequence[Row], console: Console) -> None:
    """Tables on stdout: means over the files of a quality."""
    table = Table(box=SIMPLE, title=f"{report['model']} on {report['machine']['device']} beside the CPU")
    for head in ("quality", "files", "bpp", "same file", "same codes", "encode ms", "decode ms", "most", "CPU ms"):
        table.add_column(head, justify="right")
    for quality in sorted({row.quality for row in rows}, key=lambda q: -1 if q is None else q):
        group = [row for row in rows if row.quality == quality]
        decode = [1e3 * row.decode_s for row in group]
        encode = [1e3 * row.encode_s for row in group if row.encode_s is not None]
        table.add_row(
            "-" if quality is None else f"{quality:g}", str(len(group)),
            f"{statistics.mean(8 * r.bytes_cpu / (r.height * r.width) for r in group):.3f}",
            str(sum(bool(row.same_file) for row in group)) if encode else "-",
            str(sum(row.same_codes for row in group)),
            f"{statistics.mean(encode):.1f}" if encode else "-",
            f"{statistics.mean(decode):.1f}", f"{max(decode):.1f}",
            f"{1e3 * statistics.mean(row.decode_cpu_s for row in group):.0f}",
        )  # fmt: skip
    console.print(table)
    for entry in report["batches"]:
        console.print(
            f"{entry['batch']} files of {entry['width']}x{entry['height']} at quality {entry['quality']:g},"
            f" pixels in one batch: {entry['pictures_per_s']:.0f} pictures/s"
        )
    console.print(f"codes SHA-256 {report['codes_sha256']}")
