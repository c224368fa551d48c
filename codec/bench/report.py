"""What benchmarks write and print: sections of a report, once for the terminal and for the page, and files of results.

A :class:`Section` is made once from what results.json holds. :func:`print_report` shows it on a terminal of 80 columns,
:func:`.page.page` as HTML.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from ..files import atomic_output, open_output
from ..provenance import as_json


@dataclass(frozen=True)
class Cell:
    """A cell with more than text. small: what stands behind it.  hint: shown on the page when it is pointed at.  mark:
    its class there."""

    text: str
    small: str = ""
    hint: str = ""
    mark: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.small}".strip()


@dataclass(frozen=True)
class Table:
    """The first column goes to the left, the others to the right.

    heads: "narrow|wide" where the terminal and the page differ, narrow ones with line breaks.
    rows: class of the row, and its cells. A row of class "first" begins a group, one of class "own" is ours.
    wide: so many columns at the end are for the page only.  terse: what stands behind the text of cells, too.
    """

    heads: Sequence[str]
    rows: Sequence[tuple[str, Sequence[str | Cell]]]
    wide: int = 0
    terse: bool = False


@dataclass(frozen=True)
class Section:
    """A part of a report. about: what to know of its figures.  page_only: "" or the summary that hides it there."""

    title: str
    about: str
    tables: Sequence[tuple[str, Table]]  # each with a title of its own, or none
    notes: Sequence[str] = ()
    page_only: str = ""


# ------------------------------------------------------------------------------------------------------------- text


def plural(n: int, thing: str) -> str:
    return f"{n} {thing}{'s' * (n != 1)}"


def signed(percent: float | None, digits: int = 0) -> str:
    return "-" if percent is None else f"{percent:+.{digits}f} %"


def bd_cell(pair: Mapping[str, Any]) -> Cell:
    """A BD-rate and the range of the metric that it is the mean over, or a dash with the reason."""
    if pair["percent"] is None:
        return Cell("-", hint=pair["reason"])
    digits = 0 if pair.get("metric") == "ssimulacra2" else 1
    return Cell(signed(pair["percent"], 1), f"[{pair['low']:.{digits}f}, {pair['high']:.{digits}f}]")


def where(report: Mapping[str, Any]) -> str:
    """The machine in some words, e.g. "Intel Xeon, 1 thread"."""
    host = report["machine"]
    threads = plural(host["torch_threads"], "thread")
    return f"{host['device'] if host['device'] != 'cpu' else host['processor']}, {threads}"


Column = tuple[str, str | Callable[[Mapping[str, Any]], str | Cell]]


class _Dashes(Formatter):
    def format_field(self, value: Any, format_spec: str) -> str:
        return "-" if value is None else str(super().format_field(value, format_spec))


def table_of(entries: Iterable[Mapping[str, Any]], columns: Sequence[Column], group: str = "", wide: int = 0) -> Table:
    """A row for each entry.

    Args:    columns: heads, see :class:`Table`, and what a cell is: a format of the entry's fields, as "{bytes:.0f}",
             in which None becomes a dash, or a function of the entry.
             group: field whose change begins a group of rows; an entry with a true field "ours" is marked as ours.
    """
    rows: list[tuple[str, Sequence[str | Cell]]] = []
    last: Any = None
    for entry in entries:
        kind = "own" if entry.get("ours") is True else ""
        if group and rows and entry[group] != last:
            kind = "first"
        last = entry[group] if group else None
        cells = [_Dashes().vformat(cell, (), entry) if isinstance(cell, str) else cell(entry) for _, cell in columns]
        rows.append((kind, cells))
    return Table([head for head, _ in columns], rows, wide)


MEMORY: tuple[Column, ...] = tuple(
    (f"{step}\nMiB", f"{{{key}:.0f}}")
    for step, key in (("encode", "encode_mib"), ("decode", "decode_mib"), ("GPU", "gpu_mib"))
)


def memory_section(report: Mapping[str, Any]) -> list[Section]:
    """The memory of all codecs, if it was measured."""
    if not report["memory"]:
        return []
    (name,) = (report["memory"][key] for key in ("clip", "picture") if key in report["memory"])
    about = (
        f"Of a whole process that codes {name} once, Python and libraries included; start-up is one that only reads it."
    )
    table = table_of(report["memory"]["codecs"], [("codec", "{codec}"), *MEMORY])
    return [Section("Peak memory", about, [("", table)])]


# ---------------------------------------------------------------------------------------------------- the terminal


def plain_console() -> Console:
    """As wide as the terminal, or 120 columns where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=120)


def said(console: Console, line: str) -> None:
    """Print one line as it is."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def print_table(console: Console, table: Table, title: str = "", padding: int = 1) -> None:
    if title:
        said(console, title)
    rich = RichTable(box=SIMPLE, padding=(0, padding))
    shown = len(table.heads) - table.wide
    for i, head in enumerate(table.heads[:shown]):
        rich.add_column(head.partition("|")[0], justify="right" if i else "left", no_wrap=True, vertical="bottom")
    for kind, cells in table.rows:
        if kind == "first":
            rich.add_section()
        texts = (cell.text if table.terse and isinstance(cell, Cell) else str(cell) for cell in cells[:shown])
        rich.add_row(*map(Text, texts))
    console.print(rich)


def print_report(sections: Sequence[Section], report: Mapping[str, Any], out: Path, more: str = "") -> None:
    """All sections but those of the page, what was left out, and where the files are."""
    console = Console()
    for section in sections:
        if section.page_only:
            continue
        said(console, f"{section.title}. {section.about}".strip())
        for title, table in section.tables:
            print_table(console, table, title, padding=0)
        for note in section.notes:
            said(console, note)
    for note in report.get("notes", []):
        said(console, f"note: {note}")
    for reason in report["skipped"]:
        said(console, f"left out: {reason}")
    said(console, f"results.csv, results.json{more} and index.html are in {out}")


# ------------------------------------------------------------------------------------------------------------ files


def rows_as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with equal keys, at least one, as a table with a head."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


def write_results(out: Path, table: str, report: dict[str, Any], html: str) -> None:
    """results.csv, results.json and index.html in ``out``. Raises a TokodecError if they cannot be written."""
    for name, content in {"results.csv": table, "results.json": as_json(report), "index.html": html}.items():
        write_text(out / name, content)


def write_text(path: Path, text: str) -> None:
    """A file, whole or not at all; one of this name is replaced. Raises a TokodecError."""
    with atomic_output(path, force=True) as file:
        file.write(text.encode())


@contextmanager
def json_file(out: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Around a benchmark that writes one JSON file, or none: that it can be written is known before the work. What is
    given writes the report. Raises a TokodecError."""
    with open_output(out, force=True) as file:

        def write(report: dict[str, Any]) -> None:
            if file is not None:
                file.write(as_json(report).encode())

        yield write
