"""One HTML page for a benchmark: rate curves, means, and pictures under a slider. Everything is inside the file."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image

SHOWN = 768  # pixels: larger pictures are cut to their middle, so that the page stays small

# Colours that colour-blind readers tell apart (Okabe and Ito), on white and on black.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#999999", "#e69f00", "#56b4e9")
METRICS = (
    ("psnr", "PSNR, dB", "higher is better", "{:.2f}"),
    ("ms_ssim", "MS-SSIM", "higher is better", "{:.4f}"),
    ("ssimulacra2", "SSIMULACRA2", "higher is better", "{:.1f}"),
    ("feature_distance", "feature distance (Lite2)", "lower is better", "{:.4f}"),
)


@dataclass(frozen=True)
class Version:
    """One picture by one codec. psnr: None for the original.  pixels: ``[H, W, 3]`` uint8."""

    label: str
    bytes: int
    psnr: float | None
    pixels: np.ndarray


@dataclass(frozen=True)
class Exhibit:
    """A picture in all its versions, the original first. levels: of our files."""

    name: str
    levels: int
    versions: list[Version]


def page(report: dict[str, Any], exhibits: list[Exhibit]) -> str:
    """The page as text. ``report`` is what results.json holds, see :func:`~.image.bench_images`."""
    groups = report["aggregates"]
    n = len(report["pictures"])
    title = f"{report['model']}: {n} picture{'s' * (n != 1)}"
    peers = "".join(f"<li><b>{escape(k)}</b>: {escape(v)}</li>" for k, v in report["peers"].items())
    place = report["machine"] | report["versions"] | {key: report[key] for key in ("commit", "date")}
    facts = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in place.items())
    series = {series_name(g): None for g in groups}
    colours = dict(zip(series, COLOURS * (1 + len(series) // len(COLOURS)), strict=False))
    legend = "".join(f'<span><i style="background:{c}"></i>{escape(s)}</span>' for s, c in colours.items())
    charts = "".join(chart(groups, colours, key, name, hint) for key, name, hint, _ in METRICS)
    skipped = "".join(f"<p>Left out: {escape(reason)}</p>" for reason in report["skipped"])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p>Sizes are those of whole files, headers included. Each peer has, for each picture, the quality that gives the largest
file not above ours. A hollow point means that on some pictures even its lowest quality takes more.</p>
{skipped}
<h2>Rate and distortion</h2>
<p class="legend">{legend}</p>
<div class="charts">{charts}</div>
<h2>Pictures</h2>
<p>Pull the line to compare. The buttons choose what is left and right of it.</p>
{"".join(figure(e) for e in exhibits)}
<h2>Means over the pictures</h2>
<div class="wide">{table(groups)}</div>
<h2>How it was measured</h2>
<ul>{peers}</ul>
<dl>{facts}</dl>
<script>{SCRIPT}</script>
</body>
</html>
"""


def series_name(group: dict[str, Any]) -> str:
    return f"{group['codec']} {group['synthesis']}".strip()


def table(groups: list[dict[str, Any]]) -> str:
    """The means as an HTML table."""
    names = ["codec", "levels", "bytes", "bpp", *(m[1] for m in METRICS)]
    names += ["encode s", "decode s", "of our bytes", "reached"]
    rows = []
    previous = None
    for g in groups:
        cells = [escape(series_name(g)), str(g["levels"]), f"{g['bytes']:.0f}", f"{g['bpp']:.4f}"]
        cells += ["-" if g[key] is None else form.format(g[key]) for key, _, _, form in METRICS]
        cells += [f"{g['encode_s']:.3f}", f"{g['decode_s']:.3f}", f"{g['bytes_ratio']:.0%}"]
        cells.append("" if g["synthesis"] else f"{g['reached']} of {g['pictures']}")
        first = ' class="first"' if previous not in (None, g["levels"]) else ""
        previous = g["levels"]
        rows.append(f"<tr{first}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    head = "".join(f"<th>{name}</th>" for name in names)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


# ------------------------------------------------------------------------------------------------------------ charts

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 300, 56, 14, 34, 42


def chart(groups: list[dict[str, Any]], colours: dict[str, str], key: str, name: str, hint: str) -> str:
    """One metric over bits per pixel as inline SVG; nothing if no picture has the metric."""
    points: dict[str, list[tuple[float, float, bool]]] = {}
    for g in groups:
        if g[key] is not None and math.isfinite(g[key]):
            points.setdefault(series_name(g), []).append((g["bpp"], g[key], g["reached"] == g["pictures"]))
    if not points:
        return ""
    flat = [p for line in points.values() for p in line]
    xs, ys = ticks(0, max(p[0] for p in flat)), ticks(min(p[1] for p in flat), max(p[1] for p in flat))

    def x(value: float) -> float:
        return LEFT + (value - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (value - ys[0]) / (ys[-1] - ys[0]) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="18" class="name">{escape(name)} ({hint})</text>']
    for v in ys:
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:g}</text>')
    for v in xs:
        parts.append(f'<text x="{x(v):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{v:g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">bits per pixel</text>')
    for series, line in points.items():
        colour = colours[series]
        # A peer that cannot get small enough writes the same file for several sizes: one point for them.
        line = sorted(set(line))
        path = " ".join(f"{x(bpp):.1f},{y(value):.1f}" for bpp, value, _ in line)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for bpp, value, reached in line:
            text = f"{escape(series)}: {bpp:.4f} bpp, {value:.4g}"
            fill = colour if reached else "var(--paper)"
            parts.append(
                f'<circle cx="{x(bpp):.1f}" cy="{y(value):.1f}" r="4" fill="{fill}" stroke="{colour}" stroke-width="2">'
                f"<title>{text}</title></circle>"
            )
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">{"".join(parts)}</svg>'


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers, the first not above ``low``, the last not below ``high``."""
    span = high - low or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(m for m in (1, 2, 5, 10) if span / (m * step) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


# ---------------------------------------------------------------------------------------------------------- pictures


def figure(exhibit: Exhibit) -> str:
    """A slider over two versions, and all versions below it with their bytes."""
    height, width = exhibit.versions[0].pixels.shape[:2]
    shown = min(width, SHOWN), min(height, SHOWN)
    cut = f", the middle {shown[0]} &times; {shown[1]} pixels" if shown != (width, height) else ""
    plural = "s" * (exhibit.levels != 1)
    cards = "".join(
        f'<figure><img alt="{escape(v.label)}" src="{data_uri(v.pixels)}">'
        f"<figcaption><b>{escape(v.label)}</b><br>{v.bytes:,} bytes{f', {v.psnr:.2f} dB' if v.psnr else ''}<br>"
        f'<button data-side="left">left</button><button data-side="right">right</button></figcaption></figure>'
        for v in exhibit.versions
    )
    return f"""<section>
<h3>{escape(exhibit.name)} <small>{width} &times; {height}{cut}, ours with {exhibit.levels} level{plural}</small></h3>
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


STYLE = """
:root{--paper:#fff;--ink:#1a1a1a;--faint:#ddd;color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--paper:#161616;--ink:#e8e8e8;--faint:#3a3a3a}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper)}
body{max-width:980px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}h3 small{font-weight:normal;opacity:.75}
.legend span{margin-right:1.2em;white-space:nowrap}
.legend i{display:inline-block;width:.8em;height:.8em;border-radius:50%;margin-right:.4em}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(400px,100%),1fr));gap:1rem}
svg text{font-size:12px;fill:var(--ink)}svg .name{font-size:13px;font-weight:600}svg .grid{stroke:var(--faint)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:.25em .6em;text-align:right}th:first-child,td:first-child{text-align:left;white-space:nowrap}
thead th{border-bottom:2px solid var(--ink);vertical-align:bottom}tr.first td{border-top:1px solid var(--faint)}
.slider{position:relative;overflow:hidden;user-select:none}
.slider img{position:absolute;inset:0;width:100%;height:100%}
.slider input{position:absolute;inset:0;width:100%;height:100%;margin:0;opacity:0;cursor:ew-resize}
.slider .line{position:absolute;top:0;bottom:0;width:2px;margin-left:-1px;background:#fff;box-shadow:0 0 3px #000}
.slider:focus-within .line{width:4px;margin-left:-2px}
.slider output{position:absolute;top:8px;padding:0 .5em;background:#000a;color:#fff;font-size:13px;border-radius:3px}
.slider output.left{left:8px}.slider output.right{right:8px}
.cards{display:flex;flex-wrap:wrap;gap:.8rem;margin-top:.6rem}
.cards figure{margin:0;flex:1 1 150px;max-width:230px}.cards img{width:100%;display:block}
figcaption{font-size:13px;line-height:1.4}button{font:inherit;margin:.2em .3em 0 0}
button[aria-pressed=true]{font-weight:700;outline:2px solid currentColor}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;font-size:13px}dd{margin:0}
"""

SCRIPT = """
for (const section of document.querySelectorAll("section")) {
  const slider = section.querySelector(".slider"), range = slider.querySelector("input");
  const cards = [...section.querySelectorAll("figure")];
  const move = () => {
    slider.querySelector("img.left").style.clipPath = `inset(0 ${100 - range.value}% 0 0)`;
    slider.querySelector(".line").style.left = range.value + "%";
  };
  const choose = (side, card) => {
    slider.querySelector("img." + side).src = card.querySelector("img").src;
    slider.querySelector("output." + side).textContent = card.querySelector("b").textContent;
    for (const other of cards)
      other.querySelector(`[data-side=${side}]`).setAttribute("aria-pressed", other === card);
  };
  for (const card of cards)
    for (const button of card.querySelectorAll("button"))
      button.addEventListener("click", () => choose(button.dataset.side, card));
  range.addEventListener("input", move);
  choose("left", cards[0]);
  choose("right", cards[Math.min(1, cards.length - 1)]);
  move();
}
"""
