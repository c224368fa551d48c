"""What `codec bench image` prints and shows: tables, curves, and pictures under a slider."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from ..curves import BD_METRICS, FEWEST
from ..metrics import METRICS, Metric
from ..page import Chart, Page, colours, data_uri, page, points_of
from ..report import Cell, Section, Table, bd_cell, grouped, number, plural, where

SHOWN = 768  # pixels: larger pictures are cut to their middle, so that the page stays small
BPP = {"key": "bpp", "name": "bits per pixel", "unit": "bpp", "digits": 4}
CHARTED = (METRICS["psnr"], Metric("ms_ssim_db", "MS-SSIM, dB", "", 2), METRICS["ssimulacra2"], METRICS["features"])
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


@dataclass(frozen=True)
class Version:
    """One picture by one codec. psnr: None for the original.  pixels: ``[H, W, 3]`` uint8."""

    label: str
    kind: str  # "original", "ours" or "peer"
    bytes: int
    psnr: float | None
    pixels: np.ndarray


@dataclass(frozen=True)
class Exhibit:
    """A picture in all its versions, the original first. setting: of our files, e.g. "2 levels"."""

    name: str
    setting: str
    versions: list[Version]


def image_page(report: Mapping[str, Any], exhibits: Sequence[Exhibit], sections: Sequence[Section]) -> str:
    """The page as text. ``report`` is what results.json holds, see :func:`.bench.bench_images`."""
    pictures = "".join(figure(exhibit) for exhibit in exhibits)
    sources = report["peers"] | report["compressai"]
    if report["published"]:
        sources |= {"published points": report["published"]}
    html = f"""<h2>Pictures at equal bytes</h2>
<p>Pull the line to compare. The buttons choose what is left and right of it. Each other codec has the quality that
gives the largest file not above ours.</p>
{pictures}"""
    title = f"{report['model']}: {plural(len(report['pictures']), 'picture')}"
    return page(Page(title, LEAD, html, sources), report, chart_of(report), sections)


def chart_of(report: Mapping[str, Any]) -> Chart:
    """The metrics that have points, and a series for each curve."""
    curves = sorted(report["curves"], key=lambda c: FIRST_SHOWN.index(c["name"]) if c["name"] in FIRST_SHOWN else 99)
    curves.sort(key=lambda c: ("ours", "peer", "published").index(c["kind"]))  # else in their own order
    of_kind = {"ours": colours("ours"), "peer": colours("peer"), "published": published_colours()}
    keys = ("setting", "bpp", *(metric.key for metric in CHARTED))
    series = [
        {"name": curve["name"], "kind": curve["kind"], "colour": next(of_kind[curve["kind"]]),
         "shown": curve["kind"] != "published" or curve["name"] in FIRST_SHOWN,
         "points": points_of(curve["points"], "bpp", keys)}
        for curve in curves
    ]  # fmt: skip
    measured = {key for s in series if s["kind"] != "published" for point in s["points"] for key in point}
    return Chart(BPP, [m for m in CHARTED if m.key in measured] or CHARTED[:1], series, (0.1, 0.25, 0.5, 1, 2))


def published_colours() -> Iterator[str]:
    """Paler than the others; those that are drawn from the start are far apart."""
    yield from (f"hsl({i * 360 // len(FIRST_SHOWN)} 45% 50%)" for i in range(len(FIRST_SHOWN)))
    yield from (f"hsl({i * 137 % 360} 30% 58%)" for i in range(100))


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
    groups = report["aggregates"]
    cells = [
        [short_name(report, g["codec"], g["synthesis"]), str(g["levels"]), number(g["bytes"], 0), number(g["bpp"], 4),
         *(metric.text(g) for metric in METRICS.values()), number(g["encode_s"], 2), number(g["decode_s"], 2),
         f"{g['bytes_ratio']:.0%}" + "*" * (g["reached"] < g["pictures"]),
         "" if g["codec"] == report["model"] else f"{g['reached']} of {g['pictures']}"]
        for g in groups
    ]  # fmt: skip
    heads = ["codec", "levels", "bytes", "bpp", *(metric.head for metric in METRICS.values())]
    heads += ["enc.\ns|encode s", "dec.\ns|decode s", "of our\nbytes", "reached"]
    about = (
        "Each other codec has, for each picture, the quality that gives the largest file not above ours. Reached: on"
        " how many pictures its lowest quality is small enough; * where it is not on all."
    )
    table = Table(heads, grouped([g["levels"] for g in groups], cells), wide=1)
    return [Section(f"{title_of(report)} at equal bytes", about, [("", table)])]


def title_of(report: Mapping[str, Any]) -> str:
    effort = f", effort {report['effort']}" if report["effort"] else ""
    return f"{report['model']}{effort}: means over {plural(len(report['pictures']), 'picture')}"


def short_name(report: Mapping[str, Any], codec: str, synthesis: str) -> str:
    return f"{'ours' if codec == report['model'] else codec} {synthesis}".strip()


def curves_section(report: Mapping[str, Any], kind: str = "") -> Section:
    """The means at every setting of every codec that was measured, or of those of one kind."""
    curves = [c for c in report["curves"] if c["kind"] != "published" and kind in ("", c["kind"])]
    points = [(curve["name"], point) for curve in curves for point in curve["points"]]
    cells = [
        [name.replace(report["model"], "ours", 1), p["setting"], number(p["bytes"], 0), number(p["bpp"], 4),
         *(metric.text(p) for metric in METRICS.values()), number(p["encode_s"], 2), number(p["decode_s"], 2)]
        for name, p in points
    ]  # fmt: skip
    heads = ["codec", "setting", "bytes", "bpp", *(metric.head for metric in METRICS.values())]
    heads += ["enc.\ns|encode s", "dec.\ns|decode s"]
    table = [("", Table(heads, grouped([name for name, _ in points], cells)))]
    if kind:
        return Section(title_of(report), "", table)
    return Section("Means of every curve", "", table, page_only="all settings of all codecs that were measured here")


def speed_section(report: Mapping[str, Any]) -> Section:
    """Median seconds and peak memory of every codec."""
    measured = {(e["codec"], e["synthesis"]): e for e in (report["memory"] or {"codecs": []})["codecs"]}
    timed = {(e["codec"], e["synthesis"]): e for e in report["speed"]}
    rows = []
    for key in dict.fromkeys([*measured, *timed]):
        time, memory = timed.get(key, {}), measured.get(key, {})
        name = short_name(report, *key) + "*" * bool(time.get("random_weights"))
        cells = [name, number(time.get("encode_s"), 3), number(time.get("decode_s"), 3)]
        rows.append(("", [*cells, *(number(memory.get(key), 0) for key in ("encode_mib", "decode_mib", "gpu_mib"))]))
    about = f"Median over pictures and settings; {where(report)} for every codec."
    if report["memory"]:
        about += (
            f" Memory is the peak of a whole process that codes {report['memory']['picture']} once, Python and"
            " libraries included; start-up is one that only reads the picture."
        )
    if report["compressai"]:
        about += " * CompressAI with random weights: times only."
    heads = ["codec", "encode\ns", "decode\ns", "encode\nMiB", "decode\nMiB", "GPU\nMiB"]
    return Section("Seconds and memory for one picture", about, [("", Table(heads, rows))])


# ---------------------------------------------------------------------------------------------------------- pictures


def figure(exhibit: Exhibit) -> str:
    """A slider over two versions, and all versions below it with their bytes."""
    height, width = exhibit.versions[0].pixels.shape[:2]
    shown = min(width, SHOWN), min(height, SHOWN)
    cut = f", the middle {shown[0]} &times; {shown[1]} pixels" if shown != (width, height) else ""
    cards = "".join(
        f'<figure data-kind="{v.kind}"><img alt="{escape(v.label)}" src="{picture_uri(v.pixels)}">'
        f"<figcaption><b>{escape(v.label)}</b><br>{v.bytes:,} bytes{f', {v.psnr:.2f} dB' if v.psnr else ''}<br>"
        f'<button data-side="left">left</button><button data-side="right">right</button></figcaption></figure>'
        for v in exhibit.versions
    )
    return f"""<section>
<h3>{escape(exhibit.name)} <small>{width} &times; {height}{cut}, ours with {escape(exhibit.setting)}</small></h3>
<div class="slider" style="aspect-ratio:{shown[0]}/{shown[1]};max-width:{shown[0]}px">
<img class="right" alt="right"><img class="left" alt="left"><span class="line"></span>
<output class="left"></output><output class="right"></output>
<input type="range" min="0" max="100" step="0.1" value="50" aria-label="border between left and right">
</div>
<div class="cards">{cards}</div>
</section>
"""


def picture_uri(pixels: np.ndarray) -> str:
    """The picture, or its middle, as a lossless WebP inside an address."""
    height, width = pixels.shape[:2]
    top, left = max(0, (height - SHOWN) // 2), max(0, (width - SHOWN) // 2)
    part = np.ascontiguousarray(pixels[top : top + SHOWN, left : left + SHOWN])
    buffer = io.BytesIO()
    Image.fromarray(part).save(buffer, "WEBP", lossless=True, quality=75, method=4)
    return data_uri("image/webp", buffer.getvalue())
