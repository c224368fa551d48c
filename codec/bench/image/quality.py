"""What a number of quality means: PSNR on a folder of pictures, whether it rises on each, and what generations lose.

::

    picture -> whole file at each quality -> decoded -> PSNR               -> mean, lowest and highest of the pictures
    picture -> file -> decoded -> file -> decoded ... at one quality       -> PSNR against the picture after each
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from ...console import number_list
from ...errors import UsageError
from ...metrics.picture import psnr
from ...provenance import origin
from ...settings import Setting
from ..clips import Photo, files_in, read_photo
from ..options import QualityOptions
from ..report import json_file, print_table, said, table_of
from ..run import Row
from .ours import PhotoCoder, prepare

HIGHEST = 99.0  # dB that a picture without any error counts as


def bench_quality(options: QualityOptions) -> dict[str, Any]:
    """Measure a folder of pictures; print two tables.

    Raises: a TokodecError: no pictures, or a model whose rate is no quality.
    """
    qualities = number_list(options.qualities, "qualities") if options.qualities else []
    paths = files_in(options.folder, "pictures", options.limit)
    coder = prepare(options.model, options.device, [*qualities, options.again], strict=True)
    if coder.by_levels:
        raise UsageError(f"the rate of {coder.name} is no quality")
    with json_file(options.out) as write:
        rows: list[Row] = []
        lost: list[Row] = []
        for path in paths:
            clip = read_photo(path)
            rows += [{"picture": clip.name, "quality": q, **once(coder, clip, q)[1]} for q in sorted(set(qualities))]
            now = clip
            for n in range(options.generations):
                x_hat, measured = once(coder, now, options.again, clip)
                lost.append({"picture": clip.name, "generation": n + 1, **measured})
                now = Photo(clip.name, x_hat)
        report = {
            **origin(coder.device), "model": coder.name, "pictures": len(paths),
            "qualities": by(rows, "quality"), "rows": rows,
            "quality_again": options.again, "generations": by(lost, "generation"), "generation_rows": lost,
        }  # fmt: skip
        write(report)
    show(report, lost)
    return report


def once(coder: PhotoCoder, clip: Photo, quality: float, source: Photo | None = None) -> tuple[np.ndarray, Row]:
    """A clip there and back, and how far that is from ``source``, the clip itself if None."""
    coded = coder.encode(clip, Setting("quality", quality))
    x_hat = coder.decode(coded)
    near = min(HIGHEST, psnr((source or clip).x, x_hat))
    return x_hat, {"bytes": coded.size, "bpp": 8 * coded.size / clip.pixels, "psnr": near}


def by(rows: Sequence[Row], key: str) -> list[Row]:
    """Means, lowest and highest PSNR of the pictures for each value, and how many have less PSNR than at the one before
    and by how much at most."""
    found: list[Row] = []
    before: dict[str, float] = {}
    for value in sorted({row[key] for row in rows}):
        group = [row for row in rows if row[key] == value]
        near = {row["picture"]: row["psnr"] for row in group}
        falls = [before[name] - near[name] for name in before if near[name] < before[name]]
        found.append({
            key: value, "bpp": float(np.mean([row["bpp"] for row in group])), "psnr": float(np.mean([*near.values()])),
            "lowest": min(near.values()), "highest": max(near.values()), "falls": len(falls),
            "most": max(falls, default=0.0),
        })  # fmt: skip
        before = near
    return found


def show(report: dict[str, Any], lost: Sequence[Row]) -> None:
    """Tables on stdout: PSNR in dB, how many pictures have less than in the row above, and by how much at most."""
    console = Console()
    shared = [
        ("bpp", "{bpp:.3f}"), ("dB", "{psnr:.2f}"), ("lowest", "{lowest:.2f}"), ("highest", "{highest:.2f}"),
        ("fall", "{falls}"), ("by", "{most:.2f}"),
    ]  # fmt: skip
    title = f"{report['model']}, {report['pictures']} pictures"
    if report["qualities"]:
        print_table(console, table_of(report["qualities"], [("quality", "{quality:g}"), *shared]), title)
    if report["generations"]:
        columns = [("time", "{generation}"), *shared]
        print_table(console, table_of(report["generations"], columns), f"{title}, quality {report['quality_again']:g}")
        ends = {row["picture"]: row["psnr"] for row in lost}
        first = {row["picture"]: row["psnr"] for row in lost if row["generation"] == 1}
        losses = [first[name] - ends[name] for name in ends]
        said(console, f"lost after the first generation: {np.mean(losses):.2f} dB, at most {max(losses):.2f}")
