"""One HTML page for a benchmark: curves, tables, and pictures under a slider. Everything is inside the file."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from .curves import BD_METRICS, FEWEST
from .page_script import SCRIPT, STYLE

SHOWN = 768  # pixels: larger pictures are cut to their middle, so that the page stays small

# Colours that colour-blind readers tell apart (Okabe and Ito), on white and on black.
OURS = ("#d55e00", "#e69f00", "#b8860b")
PEERS = ("#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#8a8a8a", "#7a5cc2", "#2f9e9e")
METRICS = (
    ("psnr", "PSNR, dB", 2),
    ("ms_ssim_db", "MS-SSIM, dB", 2),
    ("ssimulacra2", "SSIMULACRA2", 1),
    ("feature_distance", "feature distance (Lite2, lower is better)", 4),
)
# Published curves that are drawn from the start; the others are a click away.
FIRST_SHOWN = (
    "VTM (VVC)", "BPG 4:4:4 (x265)", "AV1 (libaom)", "bmshj2018-hyperprior MSE (CompressAI)",
    "mbt2018-mean MSE (CompressAI)", "cheng2020-anchor MSE (CompressAI)", "elic2022 MSE (paper)",
    "elic2022 (paper, its MS-SSIM plot)",
)  # fmt: skip


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


def page(report: dict[str, Any], exhibits: Sequence[Exhibit]) -> str:
    """The page as text. ``report`` is what results.json holds, see :func:`~.image.bench_images`."""
    n = len(report["pictures"])
    title = f"{report['model']}: {n} picture{'s' * (n != 1)}"
    place = report["machine"] | report["versions"] | {key: report[key] for key in ("commit", "date")}
    facts = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in place.items())
    codecs = report["peers"] | report["compressai"]
    how = "".join(f"<li><b>{escape(k)}</b>: {escape(v)}</li>" for k, v in codecs.items())
    if report["published"]:
        how += f"<li><b>published points</b>: {escape(report['published'])}</li>"
    skipped = "".join(f"<p>Left out: {escape(reason)}</p>" for reason in report["skipped"])
    data = chart_data(report)
    pictures = "".join(figure(e) for e in exhibits)
    body = f"""<p>Sizes are those of whole files, headers included. A point of a curve is the mean over all
pictures at one setting of one codec.</p>
{skipped}
<h2>Rate and distortion</h2>
{chart(data, (0.1, 0.25, 0.5, 1, 2))}
{bd_section(report)}
{places_section(report)}
<h2>Pictures at equal bytes</h2>
<p>Pull the line to compare. The buttons choose what is left and right of it. Each other codec has the quality that
gives the largest file not above ours.</p>
{pictures}
{matched_section(report)}
{speed_section(report)}
<h2>Means of every curve</h2>
<details><summary>all settings of all codecs that were measured here</summary>{curves_table(report)}</details>
<h2>How it was measured</h2>
<ul>{how}</ul>
<dl>{facts}</dl>
"""
    return document(title, body, data)


def document(title: str, body: str, data: dict[str, Any], style: str = "", script: str = "") -> str:
    """A whole page. ``data``: what :func:`chart` draws.  style, script: more of both, after those of all pages."""
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")  # nothing in it may end the element
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
<script type="application/json" id="data">{text}</script>
<script>{SCRIPT}{script}</script>
</body>
</html>
"""


def chart(data: dict[str, Any], most: Sequence[float]) -> str:
    """Where the script draws ``data``, with its controls. most: ends of the axis of rates to choose from."""
    metrics = "".join(f'<option value="{m["key"]}">{escape(m["name"])}</option>' for m in data["metrics"])
    ends = "".join(f'<option value="{v}">{v}</option>' for v in most)
    groups = "".join(f'<option value="{escape(g)}">{escape(g)}</option>' for g in data.get("groups", ()))
    return f"""<div class="controls">
{f'<label>clips <select id="group">{groups}</select></label>' if groups else ""}
<label>metric <select id="metric">{metrics}</select></label>
<label>{escape(data["rate"]["name"])} <select id="axis"><option>linear</option><option>log</option></select></label>
<label>up to <select id="most"><option value="0">all</option>{ends}</select></label>
<span>Point at a curve for its numbers; a click on a name hides or shows it.</span>
</div>
<div id="chart"><svg></svg><div id="tip" hidden></div></div>
<noscript>The chart needs JavaScript; its numbers are in the tables below and in results.json.</noscript>
<div id="legend"></div>"""


def chart_data(report: dict[str, Any]) -> dict[str, Any]:
    """What the script draws: metrics that have points, and a series for each curve. No infinity, which JSON lacks."""
    curves = sorted(report["curves"], key=lambda c: FIRST_SHOWN.index(c["name"]) if c["name"] in FIRST_SHOWN else 99)
    curves.sort(key=lambda c: ("ours", "peer", "published").index(c["kind"]))  # else in their own order
    series = []
    colours = {"ours": iter(cycle(OURS)), "peer": iter(cycle(PEERS)), "published": iter(published_colours())}
    for curve in curves:
        points = [
            {key: value for key in ("setting", "bpp", *(m[0] for m in METRICS)) if finite(value := point.get(key))}
            for point in curve["points"]
        ]
        points.sort(key=lambda p: p["bpp"])
        shown = curve["kind"] != "published" or curve["name"] in FIRST_SHOWN
        entry = {"name": curve["name"], "kind": curve["kind"], "colour": next(colours[curve["kind"]])}
        series.append({**entry, "shown": shown, "points": points})
    measured = {key for s in series if s["kind"] != "published" for p in s["points"] for key in p}
    metrics = [{"key": key, "name": name, "digits": digits} for key, name, digits in METRICS if key in measured]
    return {
        "rate": {"key": "bpp", "name": "bits per pixel", "unit": "bpp", "digits": 4},
        "metrics": metrics or [{"key": "psnr", "name": "PSNR, dB", "digits": 2}],
        "series": series,
    }


def finite(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


def cycle(colours: Sequence[str]) -> list[str]:
    return [*colours] * 20


def published_colours() -> list[str]:
    """Paler than the others; those that are drawn from the start are far apart."""
    first = [f"hsl({i * 360 // len(FIRST_SHOWN)} 45% 50%)" for i in range(len(FIRST_SHOWN))]
    return first + [f"hsl({i * 137 % 360} 30% 58%)" for i in range(100)]


# ------------------------------------------------------------------------------------------------------------ tables


def html_table(names: Iterable[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """``rows``: class of the row, and its cells as HTML."""
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(
        f'<tr class="{kind}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" for kind, cells in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def percent(pair: dict[str, Any]) -> str:
    """A BD-rate with its range, or a dash that says why there is none when it is pointed at."""
    if pair["percent"] is None:
        return f'<span title="{escape(pair["reason"])}">-</span>'
    return f"{pair['percent']:+.1f} % <small>({pair['low']:.1f} to {pair['high']:.1f})</small>"


def bd_section(report: dict[str, Any]) -> str:
    """BD-rates against the codecs that were measured."""
    pairs = [pair for pair in report["bd_rate"]["pairs"] if pair["kind"] == "peer"]
    if not pairs:
        return ""
    found = list(dict.fromkeys(pair["metric"] for pair in pairs))
    cells = {(pair["ours"], pair["against"], pair["metric"]): percent(pair) for pair in pairs}
    rows = [
        ("", [escape(ours), escape(against), *(cells.get((ours, against, metric), "-") for metric in found)])
        for ours, against in dict.fromkeys((pair["ours"], pair["against"]) for pair in pairs)
    ]
    return f"""<h2>Bits that ours takes more (BD-rate)</h2>
<p>Negative: ours takes fewer. Mean over the range of the metric in brackets, which both curves have in common (MS-SSIM
in dB); by the package bjontegaard, method {escape(report["bd_rate"]["method"])}. A dash: fewer than {FEWEST} rising
points, or too little in common.</p>
{html_table(["ours", "against", *(BD_METRICS[metric] for metric in found)], rows)}"""


def places_section(report: dict[str, Any]) -> str:
    """Our place among the published curves: one list for each of our curves and each metric."""
    if not report["places"]:
        return ""
    lists = []
    for place in report["places"]:
        rows = [("", [escape(e["against"]), percent(e)]) for e in place["order"]]
        rows.insert(place["place"] - 1, ("own", [escape(place["ours"]), ""]))
        numbered = [(kind, [f"{i}. {cells[0]}", *cells[1:]]) for i, (kind, cells) in enumerate(rows, 1)]
        left_out = "; ".join(f"{escape(e['against'])}: {escape(e['reason'])}" for e in place["left_out"])
        more = f"<details><summary>{len(place['left_out'])} without a figure</summary>{left_out}</details>"
        head = f"{escape(place['ours'])}, {BD_METRICS[place['metric']]}: {place['place']} of {place['of']}"
        table = html_table(["", "bits ours takes more"], numbered)
        lists.append(f"<div><h3>{head}</h3>{table}{more if left_out else ''}</div>")
    return f"""<h2>Place among the published curves</h2>
<p>Ordered by our BD-rate against each. The ranges differ from pair to pair.</p>
<div class="columns">{"".join(lists)}</div>"""


def matched_section(report: dict[str, Any]) -> str:
    """Ours at each number of levels and the others at the same bytes, if our dial is levels."""
    groups = report["aggregates"]
    if not groups:
        return ""
    rows = []
    previous = None
    for g in groups:
        name = f"{g['codec']} {g['synthesis']}".strip()
        cells = [escape(name), str(g["levels"]), number(g["bytes"], 0), number(g["bpp"], 4), number(g["psnr"], 2)]
        cells += [number(g["ms_ssim"], 4), number(g["ssimulacra2"], 1), number(g["feature_distance"], 4)]
        cells += [number(g["encode_s"], 3), number(g["decode_s"], 3), f"{g['bytes_ratio']:.0%}"]
        cells.append("" if g["codec"] == report["model"] else f"{g['reached']} of {g['pictures']}")
        rows.append(("first" if previous not in (None, g["levels"]) else "", cells))
        previous = g["levels"]
    names = ["codec", "levels", "bytes", "bpp", "PSNR", "MS-SSIM", "SSIMULACRA2", "feature distance"]
    names += ["encode s", "decode s", "of our bytes", "reached"]
    return f"""<h2>Means at equal bytes</h2>
<p>Each other codec has, for each picture, the quality that gives the largest file not above ours. Reached: on how many
pictures its lowest quality is small enough.</p>
{html_table(names, rows)}"""


def speed_section(report: dict[str, Any]) -> str:
    """Seconds and memory of every codec."""
    weighed = {(e["codec"], e["synthesis"]): e for e in (report["memory"] or {"codecs": []})["codecs"]}
    timed = {(e["codec"], e["synthesis"]): e for e in report["speed"]}
    rows = []
    for key in dict.fromkeys([*weighed, *timed]):
        time, weight = timed.get(key, {}), weighed.get(key, {})
        random = " <small>(random weights)</small>" if time.get("random_weights") else ""
        name = escape(" ".join(key).strip()) + random
        cells = [name, number(time.get("encode_s"), 3), number(time.get("decode_s"), 3)]
        cells += [number(weight.get(key), 0) for key in ("encode_mib", "decode_mib", "gpu_mib")]
        rows.append(("", cells))
    place = report["machine"]
    where = place["device"] if place["device"] != "cpu" else place["processor"]
    about = f"Median over pictures and settings; {escape(where)}, {place['torch_threads']} threads for every codec."
    if report["memory"]:
        about += (
            f" Memory is the peak of a whole process that codes {escape(report['memory']['picture'])} once, Python and"
            " libraries included; start-up is one that only reads the picture."
        )
    if report["compressai"]:
        about += " CompressAI models have random weights here: they are there for their times only."
    names = ["codec", "encode s", "decode s", "encode MiB", "decode MiB", "GPU MiB"]
    return f"<h2>Seconds and memory for one picture</h2><p>{about}</p>{html_table(names, rows)}"


def curves_table(report: dict[str, Any]) -> str:
    """The means at every setting of every codec that was measured."""
    rows: list[tuple[str, list[str]]] = []
    for curve in report["curves"]:
        if curve["kind"] == "published":
            continue
        for i, p in enumerate(curve["points"]):
            cells = [escape(curve["name"]), escape(p["setting"]), number(p["bytes"], 0), number(p["bpp"], 4)]
            cells += [number(p["psnr"], 2), number(p["ms_ssim"], 4), number(p["ssimulacra2"], 1)]
            cells += [number(p["feature_distance"], 4), number(p["encode_s"], 3), number(p["decode_s"], 3)]
            rows.append(("first" if not i and rows else "", cells))
    names = ["codec", "setting", "bytes", "bpp", "PSNR", "MS-SSIM", "SSIMULACRA2", "feature distance", "encode s"]
    return html_table([*names, "decode s"], rows)


# ---------------------------------------------------------------------------------------------------------- pictures


def figure(exhibit: Exhibit) -> str:
    """A slider over two versions, and all versions below it with their bytes."""
    height, width = exhibit.versions[0].pixels.shape[:2]
    shown = min(width, SHOWN), min(height, SHOWN)
    cut = f", the middle {shown[0]} &times; {shown[1]} pixels" if shown != (width, height) else ""
    cards = "".join(
        f'<figure data-kind="{v.kind}"><img alt="{escape(v.label)}" src="{data_uri(v.pixels)}">'
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


def data_uri(pixels: np.ndarray) -> str:
    """The picture, or its middle, as a lossless WebP inside an address."""
    height, width = pixels.shape[:2]
    top, left = max(0, (height - SHOWN) // 2), max(0, (width - SHOWN) // 2)
    part = np.ascontiguousarray(pixels[top : top + SHOWN, left : left + SHOWN])
    buffer = io.BytesIO()
    Image.fromarray(part).save(buffer, "WEBP", lossless=True, quality=75, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
