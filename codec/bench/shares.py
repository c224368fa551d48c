"""A sequence model's pictures at different numbers of tokens: every window alike, or shared among them by content.

::

    picture -> all tokens -> the first n of every window      -> file and pixels
                          -> as many in all, shared by content -> file and pixels
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ...tokenizers.image.sequence import ImageSequence
from ...tokenizers.tokens import Tokens
from ..container.fields import MAX_PIXELS
from ..container.write import write_tok
from ..errors import UsageError
from ..files import atomic_output
from ..image.levels import decode_pixels
from ..image.segments import image_header
from ..image.sequence import Shares
from ..media.read_image import Picture, read_image
from ..media.write_image import write_image
from ..metrics import picture as metrics_picture
from ..models import Model, load_model, pick_device
from ..provenance import as_json, commit, machine
from . import metrics
from .curves import bd_rate
from .inputs import picture_files
from .report import make_folder

COUNTS = (16, 32, 64, 128, 256)  # tokens of a window
SHARED_COUNTS = (12, *COUNTS[:-1], 200)  # so that curves of both kinds have a range in common
WAYS = ("alike", "shared")


@dataclass(frozen=True)
class Row:
    """One picture at one number of tokens a window, in the mean if they are shared."""

    picture: str
    way: str
    tokens: int
    bytes: int
    bpp: float
    psnr: float
    ms_ssim: float | None
    feature_distance: float | None


def bench_shares(
    folder: Path,
    out: Path,
    model: str | None = None,
    device: str = "auto",
    limit: int | None = None,
    show: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure a folder of pictures; write ``shares.json`` and a sheet of decoded pictures into ``out``.

    Args:   show: names of the pictures on the sheet; the first one if empty.
    Raises: a TokodecError: no pictures, or a model whose rate dial is another one.
    """
    device = pick_device(device)
    loaded = load_model(model or "image-1d", device)
    tokenizer = loaded.tokenizer
    if not isinstance(tokenizer, ImageSequence):
        raise UsageError(f"the rate dial of {tokenizer.name} is not a number of tokens")
    paths = picture_files(folder, limit)
    names = [path.name for path in paths]
    for name in show:
        if name not in names:
            raise UsageError(f"there is no {name} in {folder}")
    keys = tuple(metrics.METRICS.values())
    metrics.check_bench_extra(device, keys)
    make_folder(out)
    rows: list[Row] = []
    sheets: list[np.ndarray] = []
    console = Console(stderr=True)
    for path in track(paths, "pictures", console=console, transient=True, disable=not console.is_terminal):
        picture = read_image(path, str(path), MAX_PIXELS)
        x = metrics_picture.as_rgb(picture.pixels)
        shown = [x]
        for row, pixels in bench_picture(path.name, x, loaded, device):
            rows.append(row)
            if row.way == "alike":
                shown.append(pixels)
        if path.name in show or (not show and path == paths[0]):
            sheets.append(np.concatenate(shown, 1))
    report = {
        "machine": machine(device), "commit": commit(), "model": tokenizer.name, "weights": tokenizer.weights_hash,
        "means": [means(rows, way, n) for way in WAYS for n in counts_of(way, tokenizer)],
        "bd_rate": compare_ways(rows, tokenizer), "rows": [asdict(row) for row in rows],
    }  # fmt: skip
    with atomic_output(out / "shares.json", force=True) as file:
        file.write(as_json(report).encode())
    for i, sheet in enumerate(sheets):
        with atomic_output(out / f"sheet-{i + 1}.png", force=True) as file:
            write_image(Picture(sheet), file, ".png", str(out))
    show_table(report)
    return report


def counts_of(way: str, tokenizer: ImageSequence) -> list[int]:
    """Numbers of tokens that are tried, as far as the model has them."""
    chosen = COUNTS if way == "alike" else SHARED_COUNTS
    return sorted({min(n, tokenizer.config.tokens) for n in chosen})


def bench_picture(name: str, x: np.ndarray, model: Model, device: str) -> list[tuple[Row, np.ndarray]]:
    """All rows of one picture ``[H, W, 3]`` uint8, with what it decodes to."""
    tokenizer = model.tokenizer
    assert isinstance(tokenizer, ImageSequence)

    def build(tokens: Tokens, payloads: list[list[bytes]]) -> bytes:
        return write_tok(image_header(tokens, model, len(payloads)), payloads)

    tokens, errors = tokenizer.encode_tiled(torch.from_numpy(x.copy()))
    shares = Shares(tokens, errors, model, build)
    windows = math.prod(tokens.spec.grid)
    makers: dict[str, Callable[[int], Tokens]] = {
        "alike": tokens.levels,
        "shared": lambda n: shares.shared(n * windows),
    }
    found = []
    for way in WAYS:
        for n in counts_of(way, tokenizer):
            own = makers[way](n)
            size = len(shares.file(own))
            pixels = decode_pixels(own, model, 3, None)
            measured = metrics.measure(x, pixels, ("psnr", "ms_ssim", "feature_distance"), device)
            row = Row(
                name, way, n, size, 8 * size / (x.shape[0] * x.shape[1]), float(measured["psnr"] or 0.0),
                measured["ms_ssim"], measured["feature_distance"],
            )  # fmt: skip
            found.append((row, pixels))
    return found


def means(rows: Sequence[Row], way: str, tokens: int) -> dict[str, Any]:
    """Means over the pictures at one setting."""
    own = [row for row in rows if (row.way, row.tokens) == (way, tokens)]
    found: dict[str, Any] = {"way": way, "tokens": tokens, "pictures": len(own)}
    for key in ("bytes", "bpp", "psnr", "ms_ssim", "feature_distance"):
        values = [getattr(row, key) for row in own]
        found[key] = None if None in values else statistics.mean(values)
    return found


def compare_ways(rows: Sequence[Row], tokenizer: ImageSequence) -> dict[str, Any]:
    """What sharing takes more than windows that are alike, at equal mean PSNR, in percent (:func:`.curves.bd_rate`)."""
    curves = {}
    for way in WAYS:
        points = [means(rows, way, n) for n in counts_of(way, tokenizer)]
        curves[way] = [(point["bpp"], point["psnr"]) for point in points]
    return asdict(bd_rate(curves["alike"], curves["shared"]))


def show_table(report: dict[str, Any]) -> None:
    """A table on stdout."""
    table = Table(box=SIMPLE, title=f"{report['model']} {report['weights']}")
    for head in ("tokens", "way", "bytes", "bpp", "PSNR dB", "MS-SSIM", "feature distance"):
        table.add_column(head, justify="right")
    for row in report["means"]:
        ms_ssim, distance = row["ms_ssim"], row["feature_distance"]
        table.add_row(
            str(row["tokens"]), row["way"], f"{row['bytes']:.0f}", f"{row['bpp']:.4f}", f"{row['psnr']:.2f}",
            "-" if ms_ssim is None else f"{ms_ssim:.4f}", "-" if distance is None else f"{distance:.3f}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    percent = report["bd_rate"]["percent"]
    if percent is None:
        console.print(f"shared against alike: no figure, {report['bd_rate']['reason']}")
    else:
        console.print(f"shared against alike, bytes at equal PSNR: {percent:+.1f} %")
