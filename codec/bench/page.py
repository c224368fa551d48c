"""The HTML page of a rate benchmark: curves, exhibits and the sections of its report. Everything is inside the file."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from pathlib import Path
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
    curves: Iterable[tuple[str, str, Sequence[Mapping[str, Any]]]],
    rate: str,
    keys: Sequence[str],
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
        series.append({"name": name, "kind": kind, "colour": next(palettes[kind]), "shown": drawn, "points": points})
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
    style, script = beside(__file__)
    text = json.dumps(chart.data, allow_nan=False).replace("<", "\\u003c")  # nothing in it may end the element
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{escape(what.title)}</title>
<style>
{style}{what.style}</style>
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
<script>
{script}{what.script}</script>
</body>
</html>
"""


def beside(module: str) -> tuple[str, str]:
    """The style and the script of a module's page, which lie beside it."""
    css, js = (Path(module).with_suffix(suffix).read_text(encoding="utf-8") for suffix in (".css", ".js"))
    return css, js


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
