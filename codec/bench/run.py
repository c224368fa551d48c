"""The runner of the rate benchmarks: what those of pictures, sounds and videos have in common.

::

    file -> clip -> each contender at each of its settings -> files -> decoded, by each of its nets -> metrics -> rows
    rows -> results.csv after each clip; report -> results.json, index.html and tables on the terminal
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..errors import MediaError, UsageError
from ..files import make_folder
from ..provenance import origin
from .contender import Contender
from .memory import measure_peak_memory
from .report import Section, print_report, rows_as_csv, write_results, write_text

Row = dict[str, Any]  # a line of results.csv


@dataclass
class Findings:
    """What a run has gathered so far."""

    rows: list[Row] = field(default_factory=list)
    clips: list[Any] = field(default_factory=list)  # facts of those that were measured
    exhibits: list[Any] = field(default_factory=list)  # for the page
    skipped: list[str] = field(default_factory=list)  # why a clip was left out
    notes: list[str] = field(default_factory=list)


class Bench(ABC):
    """What one modality adds to :func:`run`. Its options are checked when it is made, its models loaded by
    :meth:`prepare`, with PyTorch's threads set."""

    things: ClassVar[str]  # "pictures"
    memory_clip: ClassVar[str] = "clip"  # key of the clip's name in the report's "memory"
    reader: tuple[str, Mapping[str, Any]]  # how another process reads a clip: "module:function" and its arguments
    device: str

    @abstractmethod
    def prepare(self) -> list[Contender]:
        """Load all contenders, in the order of the tables."""

    @abstractmethod
    def read(self, path: Path) -> Any:
        """A file as a clip, which has a ``name``. Raises MediaError."""

    @abstractmethod
    def facts(self, clip: Any) -> tuple[Any, str]:
        """What the report says of a clip, and its size in words."""

    @abstractmethod
    def measure(self, clip: Any, notes: list[str]) -> tuple[list[Row], Any]:
        """Rows of one clip, and what the page shows of it; None if nothing."""

    @abstractmethod
    def report(self, found: Findings) -> dict[str, Any]:
        """The modality's part of the report."""

    @abstractmethod
    def sections(self, report: Mapping[str, Any]) -> list[Section]:
        """What is printed, and shown on the page."""

    @abstractmethod
    def page(self, report: Mapping[str, Any], exhibits: Sequence[Any], sections: Sequence[Section]) -> str: ...

    def write_more(self, found: Findings, out: Path) -> str:
        """Write what only this modality writes; its name after a comma."""
        return ""


def run(bench: Bench, paths: Sequence[Path], out: Path, *, memory: bool, threads: int | None) -> dict[str, Any]:
    """Measure files; print tables and write the results.

    Args:    out: folder for results.csv (a row a clip and setting, written anew after each clip), results.json (means,
             comparisons, settings, machine) and index.html; made if missing, files of these names are replaced.
             memory: measure the peak memory of each codec in processes of its own, on the first clip.
             threads: of PyTorch; what it has now if None.
    Returns: what results.json holds.
    Raises:  a TokodecError. Files that cannot be read, or that a codec refuses, are named under "skipped".
    """
    import torch

    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; the results need a folder")
    found = Findings()
    first: Path | None = None
    with torch_threads(threads):
        codecs = bench.prepare()
        for number, path in enumerate(paths, 1):
            try:
                clip = bench.read(path)
                facts, size = bench.facts(clip)
                print(f"{number} of {len(paths)}: {path.name}, {size}", file=sys.stderr)
                notes: list[str] = []
                rows, exhibit = bench.measure(clip, notes)
            except MediaError as error:
                found.skipped.append(str(error))
                continue
            make_folder(out)
            first = first or path
            found.rows += rows
            found.notes += notes
            found.clips.append(facts)
            found.exhibits += [] if exhibit is None else [exhibit]
            write_text(out / "results.csv", rows_as_csv(found.rows))
        if first is None:
            raise MediaError(f"none of the {bench.things} can be read; the first: {found.skipped[0]}")
        measured = None
        if memory:
            peaks = measure_peak_memory(codecs, bench.reader, first, torch.get_num_threads())
            measured = {bench.memory_clip: first.name, "codecs": peaks}
        place = origin(bench.device)
    report = {**bench.report(found), "skipped": found.skipped, "memory": measured, **place}
    sections = bench.sections(report)
    write_results(out, rows_as_csv(found.rows), report, bench.page(report, found.exhibits, sections))
    print_report(sections, report, out, bench.write_more(found, out))
    return report


@contextmanager
def torch_threads(n: int | None) -> Iterator[None]:
    """Give PyTorch n threads on the CPU; the number before comes back. Raises UsageError for fewer than 1."""
    import torch

    if n is not None and n < 1:
        raise UsageError(f"threads must be at least 1, got {n}")
    before = torch.get_num_threads()
    torch.set_num_threads(n or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
