"""What `codec bench image` prints."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import UsageError
from ..files import atomic_output
from ..provenance import as_json
from .curves import BD_METRICS

METRIC_COLUMNS = (
    ("psnr", "PSNR\ndB", "{:.2f}"),
    ("ms_ssim", "MS-\nSSIM", "{:.4f}"),
    ("ssimulacra2", "SSIMU-\nLACRA2", "{:.1f}"),
    ("feature_distance", "feat.\ndist.", "{:.4f}"),
)


def print_report(report: dict[str, Any], out: Path) -> None:
    """Means, BD-rates, places, times and memory as tables that fit 80 columns."""
    console = Console()
    n = len(report["pictures"])
    effort = f", effort {report['effort']}" if report.get("effort") else ""
    title = f"{report['model']}{effort}: means over {n} picture{'s' * (n != 1)}"
    console.print(matched_table(report, title) if report["aggregates"] else our_table(report, title))
    if any(e["reached"] < e["pictures"] for e in report["aggregates"]):
        console.print("* on some pictures even the lowest quality takes more bytes than ours", highlight=False)
    pairs = report["bd_rate"]["pairs"]
    if any(pair["kind"] == "peer" for pair in pairs):
        console.print(bd_table(report))
    for place in report["places"]:
        name = f"{place['ours']}, {BD_METRICS[place['metric']]}"
        text = f"place {place['place']} of {place['of']} among the published curves, by the bits that ours takes more"
        console.print(f"{name}: {text}", highlight=False)
        for i, entry in enumerate(place["order"], 1):
            number = i + (i >= place["place"])
            console.print(f"  {number:2d}  {entry['against']}: {entry['percent']:+.1f} %", highlight=False)
    console.print(speed_table(report))
    for reason in report["skipped"]:
        console.print(f"left out: {reason}", highlight=False, markup=False)
    where = f"results.csv, results.json and index.html are in {out}"
    console.print(where, highlight=False, markup=False, soft_wrap=True)


def new_table(title: str, *columns: str) -> Table:
    """The first column to the left, the others to the right."""
    table = Table(title=title, box=SIMPLE, padding=0)
    for i, column in enumerate(columns):
        table.add_column(column, no_wrap=True, justify="right" if i else "left")
    return table


def metric_cells(entry: dict[str, Any]) -> list[str]:
    return ["-" if entry[key] is None else form.format(entry[key]) for key, _, form in METRIC_COLUMNS]


def matched_table(report: dict[str, Any], title: str) -> Table:
    """Ours at each number of levels, and the peers at the same bytes."""
    metric_names = [name for _, name, _ in METRIC_COLUMNS]
    columns = ["\ncodec", "\nlevels", "\nbytes", "\nbpp", *metric_names, "enc.\ns", "dec.\ns", "of our\nbytes"]
    table = new_table(title, *columns)
    for i, e in enumerate(report["aggregates"]):
        if i and e["levels"] != report["aggregates"][i - 1]["levels"]:
            table.add_section()
        missed = " " if e["reached"] == e["pictures"] else "*"
        table.add_row(
            f"ours {e['synthesis']}" if e["codec"] == report["model"] else e["codec"],
            str(e["levels"]),
            f"{e['bytes']:.0f}",
            f"{e['bpp']:.4f}",
            *metric_cells(e),
            f"{e['encode_s']:.2f}",
            f"{e['decode_s']:.2f}",
            f"{e['bytes_ratio']:.0%}{missed}",
        )
    return table


def our_table(report: dict[str, Any], title: str) -> Table:
    """Ours at each setting."""
    table = new_table(title, "\nsetting", "\nbytes", "\nbpp", *(m[1] for m in METRIC_COLUMNS), "enc.\ns", "dec.\ns")
    for curve in report["curves"]:
        for p in curve["points"] if curve["kind"] == "ours" else ():
            name = p["setting"] + curve["name"].removeprefix(report["model"])
            seconds = [f"{p['encode_s']:.2f}", f"{p['decode_s']:.2f}"]
            table.add_row(name, f"{p['bytes']:.0f}", f"{p['bpp']:.4f}", *metric_cells(p), *seconds)
    return table


def bd_table(report: dict[str, Any]) -> Table:
    """BD-rate of each of our curves against each peer that was measured."""
    pairs = [pair for pair in report["bd_rate"]["pairs"] if pair["kind"] == "peer"]
    found = list(dict.fromkeys(pair["metric"] for pair in pairs))
    title = escape("BD-rate: bits that ours takes more [range of the metric]")
    table = new_table(title, "ours", "against", *(BD_METRICS[metric] for metric in found))
    cells = {(pair["ours"], pair["against"], pair["metric"]): bd_text(pair) for pair in pairs}
    for ours, against in dict.fromkeys((pair["ours"], pair["against"]) for pair in pairs):
        name = ours.removeprefix(report["model"] + " ")
        table.add_row(name, against, *(cells.get((ours, against, metric), "-") for metric in found))
    if any(pair["percent"] is None for pair in pairs):
        table.caption = "-: the curves have too little in common; results.json says why"
    return table


def bd_text(pair: dict[str, Any]) -> str:
    """E.g. "-12.3 % [26.1, 38.0]"; a dash if there is no figure."""
    if pair["percent"] is None:
        return "-"
    digits = 0 if pair["metric"] == "ssimulacra2" else 1
    return f"{pair['percent']:+.1f} % [{pair['low']:.{digits}f}, {pair['high']:.{digits}f}]"


def speed_table(report: dict[str, Any]) -> Table:
    """Median seconds and peak memory of every codec."""
    place = report["machine"]
    where = place["device"] if place["device"] != "cpu" else place["processor"]
    threads = place["torch_threads"]
    title = f"one picture, {where}, {threads} thread{'s' * (threads != 1)}"
    columns = ["codec", "encode s\nmedian", "decode s\nmedian", "encode\nMiB", "decode\nMiB", "GPU\nMiB"]
    table = new_table(title, *columns)
    weighed = {(e["codec"], e["synthesis"]): e for e in (report["memory"] or {"codecs": []})["codecs"]}
    timed = {(e["codec"], e["synthesis"]): e for e in report["speed"]}
    random = False
    for key in dict.fromkeys([*weighed, *timed]):
        name = f"ours {key[1]}".strip() if key[0] == report["model"] else key[0]
        cells = ["-"] * 5
        if key in timed:
            cells[:2] = [f"{timed[key]['encode_s']:.3f}", f"{timed[key]['decode_s']:.3f}"]
            random = random or timed[key]["random_weights"]
            name += "*" * timed[key]["random_weights"]
        if key in weighed:
            e = weighed[key]
            cells[2:] = [f"{e['encode_mib']:.0f}", f"{e['decode_mib']:.0f}"]
            cells.append("-" if e["gpu_mib"] is None else f"{e['gpu_mib']:.0f}")
        table.add_row(name, *cells)
    if random:
        table.caption = "* CompressAI with random weights: times only"
    return table


def make_folder(out: Path) -> None:
    """The folder for results. Raises UsageError if it cannot be made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {out}: {(error.strerror or str(error)).lower()}") from error


def rows_as_csv(rows: Sequence[Any]) -> str:
    """Instances of one dataclass, at least one, as a table with a head."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, [field.name for field in dataclasses.fields(rows[0])], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    return table.getvalue()


def write_results(out: Path, table: str, report: dict[str, Any], html: str) -> None:
    """results.csv, results.json and index.html in ``out``. Raises a TokodecError if they cannot be written."""
    for name, content in {"results.csv": table, "results.json": as_json(report), "index.html": html}.items():
        write_text(out / name, content)


def write_text(path: Path, text: str) -> None:
    """A file, whole or not at all; one of this name is replaced. Raises a TokodecError."""
    with atomic_output(path, force=True) as file:
        file.write(text.encode())
