"""What a user waits for and what the machine must hold: whole processes of `codec`, start-up of Python included."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ..errors import TokodecError, UsageError
from ..media.image import Picture, write_image


@dataclass(frozen=True)
class Run:
    """One finished process: wall-clock seconds, processor seconds (user and system), peak resident memory."""

    command: str
    seconds: float
    cpu: float
    mib: float


def run_codec(*arguments: str) -> Run:
    """Run `codec` with ``arguments`` in a process of its own. Raises TokodecError if it fails."""
    code = "from tokodec.codec.cli import main; main()"
    begin = time.perf_counter()
    line = [sys.executable, "-c", code, *arguments]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stderr is not None
    message = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begin
    if process.returncode:
        raise TokodecError(f"codec {' '.join(arguments)} failed: {message.strip().splitlines()[-1] if message else ''}")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return Run(arguments[0], seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 2**20)


def synthetic_picture(megapixels: float) -> Picture:
    """A picture of about so many million pixels, 4:3, with gradients, edges and noise in every tile; seed 0."""
    height = max(1, round((megapixels * 1e6 * 3 / 4) ** 0.5))
    width = max(1, round(megapixels * 1e6 / height))
    rng = np.random.default_rng(0)
    columns = np.arange(width, dtype=np.int64)
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    for row in range(height):  # row by row: the picture itself is all that is allocated
        base = (columns // 7 + row // 5 + 40 * ((columns // 97 + row // 61) % 3)) % 224
        pixels[row] = base[:, None] + np.array([0, 8, 16]) + rng.integers(0, 16, (width, 1))
    return Picture(pixels)


def bench_processes(picture: Path | None, megapixels: float | None, model: str | None, device: str) -> list[Run]:
    """Time and weigh `codec --help`, `encode`, `info` and `decode` on a file or on a synthetic picture; prints a table.

    Raises: UsageError unless one of ``picture`` and ``megapixels`` is given.
    """
    if (picture is None) == (megapixels is None):
        raise UsageError("give a picture or --megapixels")
    more = ["--model", model] if model else []
    with tempfile.TemporaryDirectory() as folder:
        source = picture
        if source is None:
            source = Path(folder) / "synthetic.ppm"
            write_image(synthetic_picture(megapixels or 0), source, ".ppm", str(source))
        tok, out = str(Path(folder) / "a.tok"), str(Path(folder) / "a.png")
        runs = [
            run_codec("--help"),
            run_codec("encode", str(source), "-o", tok, "--device", device, *more),
            run_codec("info", tok),
            run_codec("decode", tok, "-o", out, "--device", device, *more),
        ]
    table = Table(title=f"whole processes on {source.name}, {os.cpu_count()} CPUs")
    for heading in ("command", "seconds", "CPU seconds", "peak MiB"):
        table.add_column(heading, justify="left" if heading == "command" else "right")
    for run in runs:
        table.add_row(f"codec {run.command}", f"{run.seconds:.2f}", f"{run.cpu:.2f}", f"{run.mib:.0f}")
    Console().print(table)
    return runs
