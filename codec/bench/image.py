"""Rate and distortion of a picture model beside JPEG, WebP and AVIF at the same number of bytes.

::

    picture -> RGB -> our file with 1..K levels -> decoded by every synthesis net  -> metrics -> a row each
                   -> each peer's file, the largest not above ours -> decoded      -> metrics -> a row

Sizes are those of whole files. Every codec gets the same 8-bit RGB pixels without alpha and metadata, from memory.
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import io
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ..decode import decode_file
from ..encode import MAX_PIXELS, encode_file
from ..errors import MediaError, UsageError
from ..files import atomic_output
from ..media.image import IMAGE_SUFFIXES_IN, read_image
from ..models import DEFAULT_MODELS, load_model, pick_device
from . import metrics
from .page import Exhibit, Version, page
from .peers import PeerSearch, decode_peer, find_peers

EXHIBITS = 3  # pictures shown on the page
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Row:
    """One picture coded one way; a line of results.csv."""

    picture: str
    codec: str  # name of our model, or of the peer
    synthesis: str  # our synthesis net; empty for a peer
    levels: int  # levels in our file; for a peer, in the file of ours that it is matched with
    quality: int | None  # the peer's setting
    bytes: int  # of the whole file
    bpp: float
    psnr: float
    ms_ssim: float | None
    ssimulacra2: float | None
    feature_distance: float
    encode_s: float
    decode_s: float
    reached: bool  # False if the peer's file of lowest quality is larger than ours
    bytes_ratio: float  # to our file


# What is averaged over pictures; the rest of a row says which group it belongs to.
MEANS = (
    "bytes", "bpp", "psnr", "ms_ssim", "ssimulacra2", "feature_distance", "encode_s", "decode_s", "bytes_ratio",
)  # fmt: skip


@dataclass(frozen=True)
class Coder:
    """Our codec, ready to run."""

    model: str
    name: str
    levels: int
    synthesis: tuple[str, ...]
    device: str


def bench_images(
    folder: Path, out: Path, against: list[str], model: str | None, device: str, limit: int | None = None
) -> dict[str, Any]:
    """Measure a model on the pictures of a folder; print a table and write the results.

    Args:    folder: pictures directly in it are taken, in the order of their names.
             out: folder for results.csv (a row a picture), results.json (means, settings, machine) and index.html;
             made if missing, files of these names are replaced.  against: names of peers, see :data:`~.peers.PEERS`.
             model: name, folder or hub id, the default for pictures if None.  device: "auto", "cpu" or "cuda".
             limit: only the first so many pictures.
    Returns: what results.json holds.
    Raises:  a TokodecError: no picture, an unknown peer or model, the `bench` extra missing. A picture that cannot be
             read is left out and named under "skipped".
    """
    from rich.console import Console
    from rich.progress import track

    paths = picture_files(folder, limit)
    peers = find_peers(against)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; the results need a folder")
    coder = prepare(model, device)
    metrics.check_bench_extra(coder.device)

    shown = {round(i * (len(paths) - 1) / max(1, EXHIBITS - 1)) for i in range(EXHIBITS)}
    rows: list[Row] = []
    exhibits: list[Exhibit] = []
    skipped: list[str] = []
    for i, path in enumerate(track(paths, "measuring", console=Console(stderr=True), transient=True)):
        try:
            x = metrics.as_rgb(read_image(path, str(path), MAX_PIXELS).pixels)
        except MediaError as error:
            skipped.append(str(error))
            continue
        searches = [PeerSearch(peer, x) for peer in peers]
        found = list(bench_picture(path.name, x, coder, searches))
        rows += [row for row, _ in found]
        if i in shown:
            exhibits.append(exhibit(path, x, found, coder))
    if not rows:
        raise MediaError(f"none of the pictures in {folder} can be read; the first: {skipped[0]}")

    report: dict[str, Any] = {
        "model": coder.name,
        "pictures": list(dict.fromkeys(row.picture for row in rows)),
        "skipped": skipped,
        "aggregates": aggregate(rows),
        "peers": {peer.name: peer.settings for peer in peers},
        "machine": machine(coder.device),
        "versions": versions(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    write_results(out, report, rows, exhibits)
    print_report(report, out)
    return report


def picture_files(folder: Path, limit: int | None) -> list[Path]:
    """Pictures in a folder by suffix, sorted. Raises UsageError if there are none."""
    if limit is not None and limit < 1:
        raise UsageError(f"the limit must be at least 1, got {limit}")
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES_IN and p.is_file())
    if not paths:
        raise UsageError(f"no pictures in {folder}")
    return paths[:limit]


def prepare(model: str | None, device: str) -> Coder:
    """Load the model and run it once, so that no measured time holds what happens only once."""
    from ...tokenizers.image.grid import ImageGrid

    model = model or DEFAULT_MODELS["image"]
    device = pick_device(device)
    tokenizer = load_model(model, device).tokenizer
    if not isinstance(tokenizer, ImageGrid):
        raise UsageError(f"{tokenizer.name} is not a model for pictures")
    coder = Coder(model, tokenizer.name, len(tokenizer.codebook_sizes), tokenizer.config.synthesis, device)
    for synthesis in coder.synthesis:
        round_trip(np.zeros((64, 64, 3), np.uint8), coder, 1, synthesis)
    return coder


def round_trip(x: np.ndarray, coder: Coder, levels: int, synthesis: str) -> tuple[bytes, np.ndarray]:
    data, _ = encode_ours(x, coder, levels)
    return data, decode_ours(data, coder, synthesis)[0]


def encode_ours(x: np.ndarray, coder: Coder, levels: int) -> tuple[bytes, float]:
    """Our file, and the seconds it took."""
    source = io.BytesIO(b"P6\n%d %d\n255\n" % (x.shape[1], x.shape[0]) + x.tobytes())
    start = time.perf_counter()
    encoded = encode_file(source, model=coder.model, levels=levels, device=coder.device)
    return encoded.data, time.perf_counter() - start


def decode_ours(data: bytes, coder: Coder, synthesis: str) -> tuple[np.ndarray, float]:
    """Pixels ``[H, W, 3]`` uint8, and the seconds they took."""
    start = time.perf_counter()
    decoded = decode_file(io.BytesIO(data), model=coder.model, synthesis=synthesis, device=coder.device)
    return decoded.picture.pixels, time.perf_counter() - start


def bench_picture(
    name: str, x: np.ndarray, coder: Coder, searches: list[PeerSearch]
) -> Iterable[tuple[Row, np.ndarray]]:
    """Rows of one picture with the decoded pixels: for each number of levels ours by every synthesis net, the peers."""

    def row(
        codec: str, synthesis: str, size: int, x_hat: np.ndarray, encode_s: float, decode_s: float, quality: int | None
    ) -> Row:
        return Row(
            picture=name,
            codec=codec,
            synthesis=synthesis,
            levels=levels,
            quality=quality,
            bytes=size,
            bpp=8 * size / (x.shape[0] * x.shape[1]),
            psnr=metrics.psnr(x, x_hat),
            ms_ssim=metrics.ms_ssim(x, x_hat),
            ssimulacra2=metrics.ssimulacra2(x, x_hat),
            feature_distance=metrics.feature_distance(x, x_hat, coder.device),
            encode_s=encode_s,
            decode_s=decode_s,
            reached=size <= len(data),
            bytes_ratio=size / len(data),
        )

    for levels in range(1, coder.levels + 1):
        data, encode_s = encode_ours(x, coder, levels)
        for synthesis in coder.synthesis:
            x_hat, decode_s = decode_ours(data, coder, synthesis)
            yield row(coder.name, synthesis, len(data), x_hat, encode_s, decode_s, None), x_hat
        for search in searches:
            file, _ = search.nearest(len(data))
            x_hat, decode_s = decode_peer(file.data)
            yield row(search.peer.name, "", len(file.data), x_hat, file.encode_s, decode_s, file.quality), x_hat


def exhibit(path: Path, x: np.ndarray, found: list[tuple[Row, np.ndarray]], coder: Coder) -> Exhibit:
    """What the page shows of a picture: the original, ours by every synthesis net, and AVIF or the last peer.

    It is shown at the fewest levels whose size the peer can reach, at all levels if there are none.
    """
    peers = list(dict.fromkeys(row.codec for row, _ in found if not row.synthesis))
    peer = "avif" if "avif" in peers else peers[-1] if peers else None
    fair = [row.levels for row, _ in found if row.codec == peer and row.reached and not row.synthesis]
    levels = min(fair, default=coder.levels)
    versions = [Version("original", path.stat().st_size, None, x)]
    for row, x_hat in reversed(found):
        if row.levels == levels and (row.synthesis or row.codec == peer):
            label = f"{row.codec} {row.synthesis}" if row.synthesis else row.codec.upper()
            versions.append(Version(label, row.bytes, row.psnr, x_hat))
    # The peer comes last: ours are what the page is about.
    versions.sort(key=lambda v: peer is not None and v.label == peer.upper())
    return Exhibit(path.name, levels, versions)


def aggregate(rows: list[Row]) -> list[dict[str, Any]]:
    """Means over pictures for each codec, synthesis net and number of levels, in the order of the rows.

    A metric that some pictures are too small for is averaged over the others, and None if there are none.
    """
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.codec, row.synthesis, row.levels), []).append(row)
    result = []
    for (codec, synthesis, levels), group in groups.items():
        entry: dict[str, Any] = {"codec": codec, "synthesis": synthesis, "levels": levels, "pictures": len(group)}
        entry["reached"] = sum(row.reached for row in group)
        for name in MEANS:
            values = [value for row in group if (value := getattr(row, name)) is not None]
            entry[name] = float(np.mean(values)) if values else None
        result.append(entry)
    return result


def machine(device: str) -> dict[str, Any]:
    """Where the seconds were measured."""
    import torch

    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor,
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
    }


def versions() -> dict[str, str]:
    """Of everything that bytes, pixels and metrics depend on."""
    found = {"tokodec": __version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "pillow", "constriction", "ssimulacra2"):
        found[package] = version(package)
    return found


def commit() -> str | None:
    """Commit of the source tree that runs, with "-dirty" if tracked files differ; None outside a checkout."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def write_results(out: Path, report: dict[str, Any], rows: list[Row], exhibits: list[Exhibit]) -> None:
    """results.csv, results.json and index.html. Raises a TokodecError if they cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {out}: {(error.strerror or str(error)).lower()}") from error
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, [field.name for field in dataclasses.fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    texts = {
        "results.csv": table.getvalue(),
        "results.json": json.dumps(_finite(report), indent=2, allow_nan=False) + "\n",
        "index.html": page(report, exhibits),
    }
    for name, text in texts.items():
        with atomic_output(out / name, force=True) as file:
            file.write(text.encode())


def _finite(value: Any) -> Any:
    """JSON has no infinity, which is the PSNR of a perfect copy: None there."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_report(report: dict[str, Any], out: Path) -> None:
    """The means as a table that fits 80 columns."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    n = len(report["pictures"])
    table = Table(title=f"{report['model']}: means over {n} picture{'s' * (n != 1)}", box=SIMPLE, padding=0)
    table.add_column("\ncodec", no_wrap=True)
    for name in (
        "\nlevels", "\nbytes", "\nbpp", "PSNR\ndB", "MS-\nSSIM", "SSIMU-\nLACRA2", "feat.\ndist.", "enc.\ns", "dec.\ns",
        "of our\nbytes",
    ):  # fmt: skip
        table.add_column(name, justify="right", no_wrap=True)
    for i, e in enumerate(report["aggregates"]):
        if i and e["levels"] != report["aggregates"][i - 1]["levels"]:
            table.add_section()
        missed = " " if e["reached"] == e["pictures"] else "*"
        table.add_row(
            f"ours {e['synthesis']}" if e["synthesis"] else e["codec"],
            str(e["levels"]),
            f"{e['bytes']:.0f}",
            f"{e['bpp']:.4f}",
            f"{e['psnr']:.2f}",
            "-" if e["ms_ssim"] is None else f"{e['ms_ssim']:.4f}",
            "-" if e["ssimulacra2"] is None else f"{e['ssimulacra2']:.1f}",
            f"{e['feature_distance']:.4f}",
            f"{e['encode_s']:.2f}",
            f"{e['decode_s']:.2f}",
            f"{e['bytes_ratio']:.0%}{missed}",
        )
    console = Console()
    console.print(table)
    if any(e["reached"] < e["pictures"] for e in report["aggregates"]):
        console.print("* on some pictures even the lowest quality takes more bytes than ours", highlight=False)
    for reason in report["skipped"]:
        console.print(f"left out: {reason}", highlight=False, markup=False)
    where = f"results.csv, results.json and index.html are in {out}"
    console.print(where, highlight=False, markup=False, soft_wrap=True)
