"""The HTML page of a rate benchmark: curves, exhibits and the sections of its report. Everything is inside the file."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from typing import Any

import numpy as np

from .metrics import Metric
from .report import Cell, Section, Table

# Colours that colour-blind readers tell apart (Okabe and Ito), on white and on black.
OURS = ("#d55e00", "#e69f00", "#b8860b")
PEERS = ("#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#8a8a8a", "#7a5cc2", "#2f9e9e")


BPP = {"key": "bpp", "name": "bits per pixel", "unit": "bpp", "digits": 4}
KBPS = {"key": "kbps", "name": "kbit/s", "unit": "kbit/s", "digits": 2}


@dataclass(frozen=True)
class Version:
    """A clip by one codec. kind: "original", "ours" or "peer".  media: what shows or plays it, HTML.  note: its bytes
    and quality.  still: a frame of a video, ``[H, W, 3]`` uint8."""

    label: str
    kind: str
    media: str
    note: str = ""
    still: np.ndarray | None = None


@dataclass(frozen=True)
class Exhibit:
    """A clip in all its versions, the original first. layout: class of the article.  above, below: HTML around the
    cards of the versions, with ``more`` at the end of each.  group: what it is sorted by."""

    name: str
    about: str
    versions: Sequence[Version]
    layout: str
    above: str = ""
    below: str = ""
    more: str = ""
    group: str = ""

    @property
    def html(self) -> str:
        cards = "".join(
            f'<figure class="{v.kind}" data-kind="{v.kind}">{v.media}<figcaption><b>{escape(v.label)}</b>'
            f"{f'<br>{v.note}' if v.note else ''}{self.more}</figcaption></figure>"
            for v in self.versions
        )
        head = f"<h3>{escape(self.name)} <small>{escape(self.about)}</small></h3>"
        return f"""<article class="{self.layout}">
{head}{self.above}
<div class="cards">{cards}</div>
{self.below}</article>
"""


@dataclass(frozen=True)
class Chart:
    """What the script draws. rate: the horizontal axis.  metrics: the vertical one, to choose from.  series: see
    :func:`draw`.  ends: of the axis of rates, to choose from.  groups: points belong to one of them, and one is drawn
    at a time."""

    rate: Mapping[str, Any]
    metrics: Sequence[Metric]
    series: Sequence[Mapping[str, Any]]
    ends: Sequence[float]
    groups: Sequence[str] = ()

    @property
    def data(self) -> dict[str, Any]:
        metrics = [{"key": m.key, "name": m.axis, "digits": m.digits} for m in self.metrics]
        groups = {"groups": list(self.groups)} if self.groups else {}
        return {"rate": dict(self.rate), "metrics": metrics, "series": list(self.series), **groups}


def draw(
    curves: Iterable[tuple[str, str, Sequence[Mapping[str, Any]]]], rate: str, keys: Sequence[str],
    shown: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Series of a chart from name, kind and entries of each curve: points with the finite ones of ``keys`` (JSON has no
    infinity), rising in ``rate``. shown: names of the published curves that are drawn from the start."""
    palettes = {"ours": cycle(OURS), "peer": cycle(PEERS), "published": pale_colours(len(shown))}
    series = []
    for name, kind, entries in curves:
        points = [{key: entry[key] for key in keys if finite(entry.get(key))} for entry in entries]
        points.sort(key=lambda point: point[rate])
        drawn = kind != "published" or name in shown
        series.append(
            {"name": name, "kind": kind, "colour": next(palettes[kind]), "shown": drawn, "points": points}
        )
    return series


def pale_colours(first: int) -> Iterator[str]:
    """Of published curves, the first ones far apart."""
    yield from (f"hsl({i * 360 // first} 45% 50%)" for i in range(first))
    yield from (f"hsl({i * 137 % 360} 30% 58%)" for i in range(100))


def finite(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


@dataclass(frozen=True)
class Page:
    """What a page shows beside its chart and sections. lead: what the figures are.  exhibits: after a heading and what
    to do with them.  sources: name and description of everything that was measured.  style, script: more of both, after
    those of all pages."""

    title: str
    lead: str
    exhibits: tuple[str, str, Sequence[Exhibit]]
    sources: Mapping[str, str]
    style: str = ""
    script: str = ""


def page(what: Page, report: Mapping[str, Any], chart: Chart, sections: Sequence[Section]) -> str:
    """The page as text. ``report`` is what results.json holds."""
    place = report["machine"] | report["versions"] | {key: report[key] for key in ("commit", "date")}
    facts = "".join(f"<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>" for k, v in place.items())
    how = "".join(f"<li><b>{escape(k)}</b>: {escape(v)}</li>" for k, v in what.sources.items())
    notes = "".join(f"<p>Note: {escape(note)}</p>" for note in report.get("notes", []))
    notes += "".join(f"<p>Left out: {escape(reason)}</p>" for reason in report["skipped"])
    heading, hint, exhibits = what.exhibits
    text = json.dumps(chart.data, allow_nan=False).replace("<", "\\u003c")  # nothing in it may end the element
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{escape(what.title)}</title>
<style>{STYLE}{what.style}</style>
</head>
<body>
<h1>{escape(what.title)}</h1>
<p>{escape(what.lead)}</p>
{notes}
<h2>Rate and distortion</h2>
{chart_html(chart)}
<h2>{escape(heading)}</h2>
<p>{escape(hint)}</p>
{"".join(exhibit.html for exhibit in exhibits)}
{"".join(section_html(section) for section in sections)}
<h2>How it was measured</h2>
<ul>{how}</ul>
<dl>{facts}</dl>
<script type="application/json" id="data">{text}</script>
<script>{SCRIPT}{what.script}</script>
</body>
</html>
"""


def chart_html(chart: Chart) -> str:
    """Where the script draws, with its controls."""
    metrics = "".join(f'<option value="{m.key}">{escape(m.axis)}</option>' for m in chart.metrics)
    ends = "".join(f'<option value="{v}">{v}</option>' for v in chart.ends)
    groups = "".join(f'<option value="{escape(g)}">{escape(g)}</option>' for g in chart.groups)
    return f"""<div class="controls">
{f'<label>clips <select id="group">{groups}</select></label>' if groups else ""}
<label>metric <select id="metric">{metrics}</select></label>
<label>{escape(chart.rate["name"])} <select id="axis"><option>linear</option><option>log</option></select></label>
<label>up to <select id="most"><option value="0">all</option>{ends}</select></label>
<span>Point at a curve for its numbers; a click on a name hides or shows it.</span>
</div>
<div id="chart"><svg></svg><div id="tip" hidden></div></div>
<noscript>The chart needs JavaScript; its numbers are in the tables below and in results.json.</noscript>
<div id="legend"></div>"""


def section_html(section: Section) -> str:
    tables = "".join(
        "<div>" + (f"<h3>{escape(title)}</h3>" if title else "") + table_html(table) + "</div>"
        for title, table in section.tables
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in section.notes)
    if len(section.tables) > 1:
        tables = f'<div class="columns">{tables}</div>'
    body = f"<p>{escape(section.about)}</p>{tables}" + (f"<ul>{notes}</ul>" if notes else "")
    if section.page_only:
        body = f"<details><summary>{escape(section.page_only)}</summary>{body}</details>"
    return f"<h2>{escape(section.title)}</h2>\n{body}\n"


def table_html(table: Table) -> str:
    head = "".join(f"<th>{escape(wide_head(name))}</th>" for name in table.heads)
    body = "".join(
        f'<tr class="{kind}">' + "".join(f"<td>{cell_html(cell)}</td>" for cell in cells) + "</tr>"
        for kind, cells in table.rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def wide_head(head: str) -> str:
    narrow, _, wide = head.partition("|")
    return wide or narrow.replace("\n", " ")


def cell_html(cell: str | Cell) -> str:
    if isinstance(cell, str):
        return escape(cell)
    title = f' title="{escape(cell.hint)}"' if cell.hint else ""
    small = f" <small>{escape(cell.small)}</small>" if cell.small else ""
    return f'<span class="{cell.mark}"{title}>{escape(cell.text)}</span>{small}'


def data_uri(kind: str, data: bytes) -> str:
    """Data inside an address, e.g. of kind "image/png"."""
    return f"data:{kind};base64," + base64.b64encode(data).decode()


# ------------------------------------------------------------------------------------------------- style and script

STYLE = """
:root{--paper:#fff;--ink:#1a1a1a;--faint:#ddd;--box:#f4f4f4;color-scheme:light dark}
@media (prefers-color-scheme:dark){:root{--paper:#161616;--ink:#e8e8e8;--faint:#3a3a3a;--box:#242424}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper)}
body{max-width:1040px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}h3{font-size:1rem}h3 small{font-weight:normal;opacity:.75}
button,select{font:inherit;color:inherit}
.controls{display:flex;flex-wrap:wrap;gap:.4rem 1.4rem;align-items:baseline;font-size:14px}
#chart{position:relative}#chart svg{display:block;width:100%;height:auto;touch-action:pan-y}
svg text{font-size:13px;fill:var(--ink)}svg .grid{stroke:var(--faint)}
svg .curve{fill:none;stroke-width:1.8}svg .ours{stroke-width:3}svg .published{stroke-width:1.4;stroke-dasharray:5 4}
@media (max-width:640px){svg text{font-size:24px}}
svg .faded{opacity:.25}
#tip{position:absolute;pointer-events:none;background:#000d;color:#fff;font-size:13px;line-height:1.35}
#tip{padding:.3em .6em;border-radius:4px;white-space:pre;z-index:1}
#legend div{display:flex;flex-wrap:wrap;gap:.25rem .4rem;align-items:center;margin:.35rem 0;font-size:13px}
#legend b{font-weight:600;margin-right:.3rem}
#legend button{border:1px solid var(--faint);border-radius:1em;background:var(--box);padding:.05em .7em;cursor:pointer}
#legend button[aria-pressed=false]{opacity:.45;text-decoration:line-through}
#legend i{display:inline-block;width:.75em;height:.75em;border-radius:50%;margin-right:.4em}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:.25em .6em;text-align:right}th:first-child,td:first-child{text-align:left;white-space:nowrap}
thead th{border-bottom:2px solid var(--ink);vertical-align:bottom}tr.first td{border-top:1px solid var(--faint)}
tr.own td{font-weight:700;background:var(--box)}
.columns{display:flex;flex-wrap:wrap;gap:0 2.5rem;align-items:start}
.slider{position:relative;overflow:hidden;user-select:none}
.slider img{position:absolute;inset:0;width:100%;height:100%}
.slider input{position:absolute;inset:0;width:100%;height:100%;margin:0;opacity:0;cursor:ew-resize}
.slider .line{position:absolute;top:0;bottom:0;width:2px;margin-left:-1px;background:#fff;box-shadow:0 0 3px #000}
.slider:focus-within .line{width:4px;margin-left:-2px}
.slider output{position:absolute;top:8px;padding:0 .5em;background:#000a;color:#fff;font-size:13px;border-radius:3px}
.slider output.left{left:8px}.slider output.right{right:8px}
article{margin-top:1.5rem}article h3{margin-bottom:.3rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:.9rem;margin-top:.6rem}
.pictures .cards{grid-template-columns:repeat(auto-fill,minmax(140px,1fr))}
.cards figure{margin:0;background:var(--box);border-radius:6px;overflow:hidden}.cards img{width:100%;display:block}
.sounds .ours,.videos .ours{outline:2px solid #d55e00}
figcaption{font-size:13px;line-height:1.4;padding:.3em .7em}.cards button{margin:.2em .3em 0 0}
.cards button[aria-pressed=true]{font-weight:700;outline:2px solid currentColor}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;font-size:13px}dd{margin:0;overflow-wrap:anywhere}
details{margin-top:1rem}li{font-size:14px}
"""

# Data come from the element #data: {rate: {key, name, unit, digits}, metrics: [{key, name, digits}],
# series: [{name, kind, colour, shown, points}]}. Where there are groups too, each point has one, and one is drawn.
SCRIPT = """
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const W = 1000, H = 560, LEFT = 62, RIGHT = 16, TOP = 14, BOTTOM = 46;
const rate = data.rate.key;
const state = {metric: data.metrics[0].key, log: false, most: 0, group: data.groups ? data.groups[0] : undefined};
const tip = document.getElementById("tip"), chart = document.getElementById("chart");
const SVG = chart.querySelector("svg").namespaceURI;
let dots = [];  // what is drawn: {x, y, series, point} in units of the drawing

function svg(tag, attributes, text) {
  const element = document.createElementNS(SVG, tag);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  if (text !== undefined) element.textContent = text;
  return element;
}

function ticks(low, high, about) {
  const span = high - low || 1, power = 10 ** Math.floor(Math.log10(span / about));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => span / s <= about);
  const found = [];
  const last = Math.ceil(high / step - 1e-9);
  for (let i = Math.floor(low / step + 1e-9); i <= last; i++) found.push(+(i * step).toFixed(9));
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
    for (const m of [1, 2, 5]) found.push(+(m * 10 ** e).toPrecision(3));
  const first = Math.max(0, found.findLastIndex(v => v <= low)), last = found.findIndex(v => v >= high);
  return found.slice(first, last < 0 ? found.length : last + 1);
}

function draw() {
  const metric = data.metrics.find(m => m.key === state.metric);
  const lines = data.series.filter(s => s.shown)
    .map(series => ({series, points: series.points.filter(
      p => p.group === state.group && Number.isFinite(p[metric.key]) && p[rate] > 0)}))
    .filter(line => line.points.length);
  const most = state.most || Infinity;
  const inside = lines.flatMap(line => line.points.filter(p => p[rate] <= most));
  const label = `${metric.name} over ${data.rate.name}`;
  const root = svg("svg", {viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": label});
  dots = [];
  if (!inside.length) root.append(svg("text", {x: W / 2, y: H / 2, "text-anchor": "middle"}, "nothing to show"));
  else {
    const rates = inside.map(p => p[rate]), values = inside.map(p => p[metric.key]);
    const right = state.most ? Math.max(state.most, Math.min(...rates) * 2) : Math.max(...rates);
    const xs = state.log ? logTicks(Math.min(...rates), right) : ticks(0, right, 8);
    const ys = ticks(Math.min(...values), Math.max(...values), 8);
    const scale = state.log ? Math.log : v => v, x0 = scale(xs[0]), x1 = scale(state.most ? right : xs.at(-1));
    const x = v => LEFT + (scale(v) - x0) / (x1 - x0 || 1) * (W - LEFT - RIGHT);
    const y = v => H - BOTTOM - (v - ys[0]) / (ys.at(-1) - ys[0] || 1) * (H - TOP - BOTTOM);
    for (const v of ys) {
      root.append(svg("line", {class: "grid", x1: LEFT, x2: W - RIGHT, y1: y(v), y2: y(v)}));
      root.append(svg("text", {x: LEFT - 8, y: y(v) + 4, "text-anchor": "end"}, v));
    }
    for (const v of xs.filter(v => x(v) <= W - RIGHT + 1)) {
      root.append(svg("line", {class: "grid", x1: x(v), x2: x(v), y1: TOP, y2: H - BOTTOM}));
      root.append(svg("text", {x: x(v), y: H - BOTTOM + 18, "text-anchor": "middle"}, v));
    }
    root.append(svg("text", {x: (LEFT + W) / 2, y: H - 6, "text-anchor": "middle"}, data.rate.name));
    const clip = svg("clipPath", {id: "area"});
    clip.append(svg("rect", {x: LEFT - 6, y: TOP - 6, width: W - LEFT - RIGHT + 12, height: H - TOP - BOTTOM + 12}));
    const area = svg("g", {"clip-path": "url(#area)"});
    root.append(clip, area);
    const order = {published: 0, peer: 1, ours: 2};  // ours on top
    for (const {series, points} of lines.sort((a, b) => order[a.series.kind] - order[b.series.kind])) {
      const group = svg("g", {"data-series": series.name});
      const path = points.map(p => `${x(p[rate]).toFixed(1)},${y(p[metric.key]).toFixed(1)}`).join(" ");
      group.append(svg("polyline", {class: `curve ${series.kind}`, points: path, stroke: series.colour}));
      for (const point of points) {
        const dot = {x: x(point[rate]), y: y(point[metric.key]), series, point, group};
        const r = series.kind === "ours" ? 5 : series.kind === "peer" ? 3.5 : 2.5;
        group.append(svg("circle", {cx: dot.x, cy: dot.y, r, fill: series.colour}));
        if (point[rate] <= right * 1.001) dots.push(dot);
      }
      area.append(group);
    }
  }
  chart.replaceChildren(root, tip);
  tip.hidden = true;
}

function hover(event) {
  const box = chart.getBoundingClientRect(), unit = W / box.width;
  const x = (event.clientX - box.left) * unit, y = (event.clientY - box.top) * unit;
  let best = null, least = 40;
  for (const dot of dots) {
    const distance = Math.hypot(dot.x - x, dot.y - y);
    if (distance < least) [best, least] = [dot, distance];
  }
  for (const dot of dots) dot.group.classList.toggle("faded", best !== null && dot.series !== best.series);
  tip.hidden = best === null;
  if (best === null) return;
  const metric = data.metrics.find(m => m.key === state.metric), {series, point} = best;
  const kind = series.kind === "published" ? "\\npublished point" : point.setting ? "\\n" + point.setting : "";
  const place = `${point[rate].toFixed(data.rate.digits)} ${data.rate.unit}`;
  tip.textContent = `${series.name}${kind}\\n${place}\\n${metric.name}: ` +
    point[metric.key].toFixed(metric.digits);
  tip.style.left = Math.min(best.x / unit + 12, box.width - tip.offsetWidth) + "px";
  tip.style.top = Math.max(0, best.y / unit - tip.offsetHeight - 8) + "px";
}

function legend() {
  const kinds = {ours: "ours", peer: "measured here", published: "published"};
  for (const kind in kinds) {
    const group = data.series.filter(s => s.kind === kind);
    if (!group.length) continue;
    const row = document.createElement("div"), name = document.createElement("b");
    name.textContent = kinds[kind];
    row.append(name);
    const buttons = group.map(series => {
      const button = document.createElement("button"), mark = document.createElement("i");
      mark.style.background = series.colour;
      button.append(mark, series.name);
      button.show = shown => { series.shown = shown; button.setAttribute("aria-pressed", shown); };
      button.show(series.shown);
      button.addEventListener("click", () => { button.show(!series.shown); draw(); });
      return button;
    });
    row.append(...buttons);
    for (const [text, shown] of group.length > 3 ? [["all", true], ["none", false]] : []) {
      const button = document.createElement("button");
      button.textContent = text;
      button.addEventListener("click", () => { for (const b of buttons) b.show(shown); draw(); });
      row.append(button);
    }
    document.getElementById("legend").append(row);
  }
}

for (const key of ["metric", "axis", "most", "group"])
  document.getElementById(key)?.addEventListener("change", event => {
    const value = event.target.value;
    if (key === "axis") state.log = value === "log"; else state[key] = key === "most" ? +value : value;
    draw();
  });
chart.addEventListener("pointermove", hover);
chart.addEventListener("pointerleave", () => {
  tip.hidden = true;
  for (const dot of dots) dot.group.classList.remove("faded");
});
const ourMost = Math.max(0, ...data.series.filter(s => s.kind === "ours").flatMap(s => s.points.map(p => p[rate])));
const options = [...document.getElementById("most").options];
const fitting = options.find(option => +option.value >= 1.2 * ourMost) || options[0];
fitting.selected = true;
state.most = +fitting.value;
legend();
draw();

for (const section of document.querySelectorAll("article.pictures")) {
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
  choose("left", cards.find(card => card.dataset.kind === "ours"));
  choose("right", cards.find(card => card.dataset.kind === "peer") || cards[0]);
  move();
}
"""
