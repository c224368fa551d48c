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


@dataclass(frozen=True)
class Run:
    """One finished process: wall-clock seconds, processor seconds (user and system), peak resident memory."""

    command: str
    seconds: float
    cpu: float
    mib: float


# What the process runs: `codec`, and at its end one line with its peak memory in KiB. The kernel's figure for children
# (ru_maxrss) will not do on Linux: it starts from what the parent held.
_PROBE = """
import atexit, pathlib, resource, sys
def peak():
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage // 1024 if sys.platform == "darwin" else usage
report = pathlib.Path(sys.argv.pop(1))
atexit.register(lambda: report.write_text(str(peak())))
from tokodec.codec.cli import main
main()
"""


def run_codec(*arguments: str) -> Run:
    """Run `codec` with ``arguments`` in a process of its own. Raises TokodecError if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "peak"
        before = os.times()
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, str(report), *arguments], capture_output=True, text=True, errors="replace"
        )
        seconds = time.perf_counter() - begin
        after = os.times()
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise TokodecError(f"codec {' '.join(arguments)} failed: {last}")
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        return Run(arguments[0], seconds, cpu, int(report.read_text()) / 1024)


def write_synthetic(path: Path, megapixels: float) -> None:
    """Write a PPM of about so many million pixels, 4:3, with gradients, edges and noise in every tile; seed 0.

    Row by row, so that a picture of any size can be made.
    """
    height = max(1, round((megapixels * 1e6 * 3 / 4) ** 0.5))
    width = max(1, round(megapixels * 1e6 / height))
    rng = np.random.default_rng(0)
    columns = np.arange(width, dtype=np.int64)
    with path.open("wb") as file:
        file.write(f"P6\n{width} {height}\n255\n".encode())
        for row in range(height):
            base = (columns // 7 + row // 5 + 40 * ((columns // 97 + row // 61) % 3)) % 224
            pixels = base[:, None] + np.array([0, 8, 16]) + rng.integers(0, 16, (width, 1))
            file.write(pixels.astype(np.uint8).tobytes())


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
            write_synthetic(source, megapixels or 0)
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
