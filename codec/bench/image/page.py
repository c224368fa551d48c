"""What `codec bench image` prints and shows: tables, curves, and pictures under a slider."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from ..curves import BD_METRICS, FEWEST
from ..metrics import METRICS, Metric
from ..page import BPP, Chart, Exhibit, Page, Version, data_uri, draw, page
from ..report import MEMORY, Cell, Section, Table, bd_cell, plural, table_of, where

SHOWN = 768  # pixels: larger pictures are cut to their middle, so that the page stays small
CHARTED = (METRICS["psnr"], Metric("ms_ssim_db", "MS-SSIM, dB", "", 2), METRICS["ssimulacra2"], METRICS["features"])
MEASURED = (
    ("bytes", "{bytes:.0f}"), ("bpp", "{bpp:.4f}"), *(metric.column for metric in METRICS.values()),
    ("enc.\ns|encode s", "{encode_s:.2f}"), ("dec.\ns|decode s", "{decode_s:.2f}"),
)  # fmt: skip
# Published curves that are drawn from the start; the others are a click away.
FIRST_SHOWN = (
    "VTM (VVC)", "BPG 4:4:4 (x265)", "AV1 (libaom)", "bmshj2018-hyperprior MSE (CompressAI)",
    "mbt2018-mean MSE (CompressAI)", "cheng2020-anchor MSE (CompressAI)", "elic2022 MSE (paper)",
    "elic2022 (paper, its MS-SSIM plot)",
)  # fmt: skip
LEAD = (
    "Sizes are those of whole files, headers included. A point of a curve is the mean over all pictures at one setting"
    " of one codec."
)
HINT = (
    "Pull the line to compare. The buttons choose what is left and right of it. Each other codec has the quality that"
    " gives the largest file not above ours."
)


def image_page(report: Mapping[str, Any], exhibits: Sequence[Exhibit], sections: Sequence[Section]) -> str:
    """The page as text. ``report`` is what results.json holds, see :func:`.bench.bench_images`."""
    sources = report["peers"] | report["compressai"]
    if report["published"]:
        sources |= {"published points": report["published"]}
    title = f"{report['model']}: {plural(len(report['pictures']), 'picture')}"
    what = Page(title, LEAD, ("Pictures at equal bytes", HINT, exhibits), sources)
    return page(what, report, chart_of(report), sections)


def chart_of(report: Mapping[str, Any]) -> Chart:
    """The metrics that have points, and a series for each curve."""
    curves = sorted(report["curves"], key=lambda c: FIRST_SHOWN.index(c["name"]) if c["name"] in FIRST_SHOWN else 99)
    curves.sort(key=lambda c: ("ours", "peer", "published").index(c["kind"]))  # else in their own order
    keys = ("setting", "bpp", *(metric.key for metric in CHARTED))
    series = draw(((c["name"], c["kind"], c["points"]) for c in curves), "bpp", keys, FIRST_SHOWN)
    measured = {key for s in series if s["kind"] != "published" for point in s["points"] for key in point}
    return Chart(BPP, [m for m in CHARTED if m.key in measured] or CHARTED[:1], series, (0.1, 0.25, 0.5, 1, 2))


# --------------------------------------------------------------------------------------------------------- sections


def sections(report: Mapping[str, Any]) -> list[Section]:
    """All tables; what was not measured is left out."""
    found = bd_section(report) + places_section(report)
    found += matched_section(report) if report["aggregates"] else [curves_section(report, "ours")]
    return [*found, speed_section(report), curves_section(report)]


def bd_section(report: Mapping[str, Any]) -> list[Section]:
    """BD-rates against the codecs that were measured."""
    pairs = [pair for pair in report["bd_rate"]["pairs"] if pair["kind"] == "peer"]
    metrics = list(dict.fromkeys(pair["metric"] for pair in pairs))
    cells = {(pair["ours"], pair["against"], pair["metric"]): bd_cell(pair) for pair in pairs}
    rows = [
        ("", [ours.removeprefix(report["model"] + " "), against,
              *(cells.get((ours, against, metric), "-") for metric in metrics)])
        for ours, against in dict.fromkeys((pair["ours"], pair["against"]) for pair in pairs)
    ]  # fmt: skip
    about = (
        "Negative: ours takes fewer. Mean over the range of the metric in brackets, which both curves have in common"
        f" (MS-SSIM in dB); by the package bjontegaard, method {report['bd_rate']['method']}. A dash: fewer than"
        f" {FEWEST} rising points, or too little in common; results.json says which."
    )
    table = Table(["ours", "against", *(BD_METRICS[metric] for metric in metrics)], rows)
    return [Section("Bits that ours takes more (BD-rate)", about, [("", table)])] if pairs else []


def places_section(report: Mapping[str, Any]) -> list[Section]:
    """Our place among the published curves: a list for each of our curves and each metric."""
    tables, left_out = [], []
    for place in report["places"]:
        rows: list[tuple[str, list[str | Cell]]] = [("", [e["against"], bd_cell(place | e)]) for e in place["order"]]
        rows.insert(place["place"] - 1, ("own", [place["ours"], ""]))
        numbered = [(kind, [f"{i}. {cells[0]}", *cells[1:]]) for i, (kind, cells) in enumerate(rows, 1)]
        title = f"{place['ours']}, {BD_METRICS[place['metric']]}: place {place['place']} of {place['of']}"
        tables.append((title, Table(["", "bits ours takes more"], numbered)))
        if place["left_out"]:
            reasons = "; ".join(f"{entry['against']}: {entry['reason']}" for entry in place["left_out"])
            left_out.append(f"{title}, without a figure: {reasons}")
    if not tables:
        return []
    about = "Ordered by our BD-rate against each. The ranges differ from pair to pair."
    found = [Section("Place among the published curves", about, tables)]
    if left_out:
        summary = "curves that have too little in common with ours"
        found.append(Section("Published curves without a figure", "", [], left_out, page_only=summary))
    return found


def matched_section(report: Mapping[str, Any]) -> list[Section]:
    """Ours at each number of levels and the others at the same bytes."""
    entries = [
        g | {
            "name": short_name(report, g["codec"], g["synthesis"]), "star": "*" * (g["reached"] < g["pictures"]),
            "count": "" if g["codec"] == report["model"] else f"{g['reached']} of {g['pictures']}",
        }
        for g in report["aggregates"]
    ]  # fmt: skip
    columns = [("codec", "{name}"), ("levels", "{levels}"), *MEASURED, ("of our\nbytes", "{bytes_ratio:.0%}{star}")]
    about = (
        "Each other codec has, for each picture, the quality that gives the largest file not above ours. Reached: on"
        " how many pictures its lowest quality is small enough; * where it is not on all."
    )
    table = table_of(entries, [*columns, ("reached", "{count}")], "levels", wide=1)
    return [Section(f"{title_of(report)} at equal bytes", about, [("", table)])]


def title_of(report: Mapping[str, Any]) -> str:
    effort = f", effort {report['effort']}" if report["effort"] else ""
    return f"{report['model']}{effort}: means over {plural(len(report['pictures']), 'picture')}"


def short_name(report: Mapping[str, Any], codec: str, synthesis: str) -> str:
    return f"{'ours' if codec == report['model'] else codec} {synthesis}".strip()


def curves_section(report: Mapping[str, Any], kind: str = "") -> Section:
    """The means at every setting of every codec that was measured, or of those of one kind."""
    curves = [c for c in report["curves"] if c["kind"] != "published" and kind in ("", c["kind"])]
    entries = [
        point | {"name": curve["name"].replace(report["model"], "ours", 1)}
        for curve in curves
        for point in curve["points"]
    ]
    table = [("", table_of(entries, [("codec", "{name}"), ("setting", "{setting}"), *MEASURED], "name"))]
    if kind:
        return Section(title_of(report), "", table)
    return Section("Means of every curve", "", table, page_only="all settings of all codecs that were measured here")


def speed_section(report: Mapping[str, Any]) -> Section:
    """Median seconds and peak memory of every codec."""
    keys = ("encode_s", "decode_s", "encode_mib", "decode_mib", "gpu_mib")
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in [*(report["memory"] or {"codecs": []})["codecs"], *report["speed"]]:
        merged.setdefault((entry["codec"], entry["synthesis"]), dict.fromkeys(keys)).update(entry)
    for key, entry in merged.items():
        entry["name"] = short_name(report, *key) + "*" * bool(entry.get("random_weights"))
    about = f"Median over pictures and settings; {where(report)} for every codec."
    if report["memory"]:
        about += (
            f" Memory is the peak of a whole process that codes {report['memory']['picture']} once, Python and"
            " libraries included; start-up is one that only reads the picture."
        )
    if report["compressai"]:
        about += " * CompressAI with random weights: times only."
    columns = [("codec", "{name}"), ("encode\ns", "{encode_s:.3f}"), ("decode\ns", "{decode_s:.3f}"), *MEMORY]
    return Section("Seconds and memory for one picture", about, [("", table_of(merged.values(), columns))])


# ---------------------------------------------------------------------------------------------------------- pictures


def version(label: str, kind: str, size: int, quality: float | None, pixels: np.ndarray) -> Version:
    """A picture ``[H, W, 3]`` uint8 by one codec, its bytes and PSNR, None of the original; the page has its middle."""
    height, width = pixels.shape[:2]
    top, left = max(0, (height - SHOWN) // 2), max(0, (width - SHOWN) // 2)
    buffer = io.BytesIO()
    part = np.ascontiguousarray(pixels[top : top + SHOWN, left : left + SHOWN])
    Image.fromarray(part).save(buffer, "WEBP", lossless=True, quality=75, method=4)
    uri = data_uri("image/webp", buffer.getvalue())
    image = f'<img alt="{escape(label)}" src="{uri}">'
    return Version(label, kind, image, f"{size:,} bytes" + (f", {quality:.2f} dB" if quality else ""))


def slider(name: str, size: tuple[int, int], setting: str, versions: Sequence[Version]) -> Exhibit:
    """A slider over two versions of a picture, and all of them below it. size: height and width.  setting: of ours."""
    height, width = size
    shown = min(width, SHOWN), min(height, SHOWN)
    cut = f", the middle {shown[0]} x {shown[1]} pixels" if shown != (width, height) else ""
    above = f"""
<div class="slider" style="aspect-ratio:{shown[0]}/{shown[1]};max-width:{shown[0]}px">
<img class="right" alt="right"><img class="left" alt="left"><span class="line"></span>
<output class="left"></output><output class="right"></output>
<input type="range" min="0" max="100" step="0.1" value="50" aria-label="border between left and right">
</div>"""
    buttons = '<br><button data-side="left">left</button><button data-side="right">right</button>'
    about = f"{width} x {height}{cut}, ours with {setting}"
    return Exhibit(name, about, versions, "pictures", above=above, more=buttons)
