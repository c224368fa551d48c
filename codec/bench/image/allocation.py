"""A sequence model's pictures at different numbers of tokens: every window alike, or tokens allocated by content.

::

    picture -> all tokens -> the first n of every window         -> file and pixels
                          -> as many in all, allocated by content -> file and pixels
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console

from ...console import names_in
from ...files import atomic_output, make_folder
from ...media.read_image import Picture
from ...media.write_image import write_image
from ...models import load_model, pick_device
from ...provenance import as_json, origin
from ..clips import files_in, read_photo
from ..contender import results
from ..curves import bd_rate, group_by, means
from ..metrics import METRICS, check_bench_extra, measure
from ..options import AllocationOptions
from ..report import print_table, said, signed, table_of, write_text
from ..run import Row
from .ours import prepare_tokens

# Tokens of a window; those of both ways have a range in common.
COUNTS = {"alike": (16, 32, 64, 128, 256), "shared": (12, 16, 32, 64, 128, 200)}
MEASURED = ("psnr", "ms_ssim", "feature_distance")


def bench_allocation(options: AllocationOptions) -> dict[str, Any]:
    """Measure a folder of pictures; write ``shares.json`` and sheets of decoded pictures into a folder: of those to
    show, of the first one if none is named.

    Raises: a TokodecError: no pictures, or a model whose rate control is another one.
    """
    device, out, show = pick_device(options.device), options.out, names_in(options.show)
    coders = prepare_tokens(options.model, device, COUNTS)
    tokenizer = load_model(coders[0].model, device).tokenizer
    paths = files_in(options.folder, "pictures", options.limit, show)
    check_bench_extra(device, MEASURED)
    make_folder(out)
    rows: list[Row] = []
    sheets: list[np.ndarray] = []
    for path in paths:
        clip = read_photo(path)
        shown = [clip.x]
        for result in results(clip, coders, []):
            size, x_hat = result.encoded.result.size, result.decoded.result
            row: Row = {"picture": clip.name, "way": result.codec.name, "tokens": int(result.setting.value)}
            row |= {"bytes": size, "bpp": 8 * size / clip.pixels}
            measured = measure(clip.x, x_hat, MEASURED, device)
            rows.append(row | {key: measured[key] for key in MEASURED})
            shown += [x_hat] if result.codec.name == "alike" else []
        if path.name in (show or [paths[0].name]):
            sheets.append(np.concatenate(shown, 1))
    table = [
        key | {"pictures": len(group)} | means(group, ("bytes", "bpp", *MEASURED))
        for key, group in group_by(rows, "way", "tokens")
    ]
    curves = [[(entry["bpp"], entry["psnr"]) for entry in table if entry["way"] == way] for way in COUNTS]
    report = {
        **origin(device), "model": tokenizer.name, "weights": tokenizer.weights_hash, "means": table,
        "bd_rate": asdict(bd_rate(*curves)), "rows": rows,
    }  # fmt: skip
    write_text(out / "shares.json", as_json(report))
    for i, sheet in enumerate(sheets):
        with atomic_output(out / f"sheet-{i + 1}.png", force=True) as file:
            write_image(Picture(sheet), file, ".png", str(out))
    show_means(report)
    return report


def show_means(report: dict[str, Any]) -> None:
    """A table on stdout."""
    metrics = [metric.column for metric in METRICS.values() if metric.key in MEASURED]
    columns = [("tokens", "{tokens}"), ("way", "{way}"), ("bytes", "{bytes:.0f}"), ("bpp", "{bpp:.4f}"), *metrics]
    console, rate = Console(), report["bd_rate"]
    print_table(console, table_of(report["means"], columns), f"{report['model']} {report['weights']}")
    figure = f"no figure, {rate['reason']}" if rate["percent"] is None else signed(rate["percent"], 1)
    said(console, f"shared against alike, bytes at equal PSNR: {figure}")
