"""What the machine must hold: the peak memory of processes, each of which does one thing, and their seconds.

Figures are of whole processes, Python and libraries included. :func:`measure_peak_memory` runs encoding and decoding of
one clip by one contender each in a process of its own; one that only starts and reads the clip is the floor to compare
with. :func:`bench_processes` runs whole `codec` commands.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ..errors import TokodecError, UsageError
from ..settings import Setting
from .clips import read_photo
from .contender import Coded, Contender
from .options import ProcessOptions
from .report import print_table, table_of

START = "start-up"
# What a process begins with: at its end it writes its peak memory in KiB. The kernel's figure for children (ru_maxrss)
# will not do on Linux: it starts from what the parent held.
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
"""
_COMMAND = _PROBE + "from tokodec.codec.cli import main\nmain()\n"
_CHILD = _PROBE + "from tokodec.codec.bench.memory import child\nchild(*sys.argv[1:])\n"


@dataclass(frozen=True)
class Run:
    """One finished process: wall-clock seconds, processor seconds (user and system), peak resident memory."""

    command: str
    seconds: float
    cpu: float
    mib: float
    printed: str


def run_process(name: str, code: str, arguments: Sequence[str]) -> Run:
    """Run Python ``code`` in a process of its own. Raises TokodecError, with its last line on stderr, if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "peak"
        before, begin = os.times(), time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, str(report), *arguments], capture_output=True, text=True, errors="replace"
        )
        seconds, after = time.perf_counter() - begin, os.times()
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise TokodecError(f"{name} failed: {last}")
        cpu = after.children_user + after.children_system - before.children_user - before.children_system
        return Run(name, seconds, cpu, int(report.read_text()) / 1024, done.stdout)


# ------------------------------------------------------------------------------------------------------ contenders


def measure_peak_memory(
    contenders: Sequence[Contender], reader: tuple[str, Mapping[str, Any]], source: Path, threads: int
) -> list[dict[str, Any]]:
    """Peak memory of every contender at one of its settings, see :class:`~.contender.Spec`.

    Args:    reader: "module:function" that reads a clip, and its arguments after the path.  source: the clip's file.
             threads: of PyTorch.
    Returns: dicts with "codec", "synthesis" (the variant), "encode_mib", "decode_mib" (peak resident memory of the
             process) and "gpu_mib" (what PyTorch held on the GPU at most, None on the CPU); the first is :data:`START`.
    Raises:  TokodecError if a process fails.
    """
    start, _ = run_step({"reader": reader}, "start", source, Path())
    found = [{"codec": START, "synthesis": "", "encode_mib": start, "decode_mib": start, "gpu_mib": None}]
    with tempfile.TemporaryDirectory() as folder:
        coded = Path(folder) / "coded"
        for contender in contenders:
            if (spec := contender.spec()) is None:
                continue
            job = {"reader": reader, "factory": spec.factory, "arguments": spec.arguments, "threads": threads}
            job |= {"codec": contender.name, "setting": asdict(spec.setting)}
            encode_mib, gpu_encode = run_step(job, "encode", source, coded)
            for variant in contender.variants:
                decode_mib, gpu_decode = run_step(job | {"variant": variant}, "decode", source, coded)
                gpu = None if gpu_encode is None or gpu_decode is None else max(gpu_encode, gpu_decode)
                names = {"codec": contender.name, "synthesis": variant}
                found.append(names | {"encode_mib": encode_mib, "decode_mib": decode_mib, "gpu_mib": gpu})
    return found


def run_step(job: dict[str, Any], step: str, source: Path, coded: Path) -> tuple[float, float | None]:
    """MiB of one process that does a step of a job, in memory and on the GPU."""
    name = f"measuring {job.get('codec', START)}"
    done = run_process(name, _CHILD, [json.dumps(job), step, str(source), str(coded)])
    return done.mib, json.loads(done.printed.splitlines()[-1])


def child(text: str, step: str, source: str, coded: str) -> None:
    """Do one step of one contender in the process that is measured; print the peak on the GPU in MiB, or null."""
    job = json.loads(text)
    file = Path(coded)
    contender: Contender | None = None
    if step != "start":
        make = named(job["factory"])  # imports PyTorch where it is needed
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(job["threads"])
        contender = make(**job["arguments"])
    if step == "decode":
        assert contender is not None
        found = json.loads(file.read_text())
        contender.decode(Coded(tuple(map(bytes.fromhex, found["files"])), found["size"]), job["variant"])
    else:
        name, arguments = job["reader"]
        clip = named(name)(Path(source), **arguments)
        if contender is not None:
            done = contender.encode(clip, Setting(**job["setting"]))
            file.write_text(json.dumps({"files": [data.hex() for data in done.files], "size": done.size}))
    print(json.dumps(gpu_mib()))


def named(name: str) -> Any:
    """What "module:name" stands for, a module of the benchmarks."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(f"{__package__}.{module}"), function)


def gpu_mib() -> float | None:
    """The most that PyTorch held on the GPU; None if it did not use one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return float(torch.cuda.max_memory_allocated() / 2**20)


# ------------------------------------------------------------------------------------------------- whole commands


def run_codec(*arguments: str) -> Run:
    """Run a `codec` command. Raises TokodecError if it fails."""
    return replace(run_process(f"codec {' '.join(arguments)}", _COMMAND, arguments), command=arguments[0])


def write_large(path: Path, megapixels: float, picture: Path | None = None) -> None:
    """Write a PPM of about so many million pixels, 4:3, row by row, so that one of any size can be made; seed 0.

    It holds a picture beside its mirror images, with a little noise, or gradients, edges and noise.
    """
    height = max(1, round((megapixels * 1e6 * 3 / 4) ** 0.5))
    width = max(1, round(megapixels * 1e6 / height))
    rng = np.random.default_rng(0)
    columns = np.arange(width, dtype=np.int64)
    x = None if picture is None else read_photo(picture).x
    with path.open("wb") as file:
        file.write(f"P6\n{width} {height}\n255\n".encode())
        for row in range(height):
            if x is None:
                base = (columns // 7 + row // 5 + 40 * ((columns // 97 + row // 61) % 3)) % 224
                pixels = base[:, None] + np.array([0, 8, 16]) + rng.integers(0, 16, (width, 1))
            else:
                part = x[mirrored(row, x.shape[0])][mirrored(columns, x.shape[1])]
                pixels = np.clip(part + rng.integers(-2, 3, part.shape), 0, 255)
            file.write(pixels.astype(np.uint8).tobytes())


def mirrored(place: Any, n: int) -> Any:
    """Places of a row that goes on as in a mirror at both ends of its n pixels."""
    return np.minimum(place % (2 * n), 2 * n - 1 - place % (2 * n))


def bench_processes(options: ProcessOptions) -> list[Run]:
    """Time and measure `codec --help`, `encode`, `info` and `decode` on a file, or a picture made of it or of nothing
    that has so many megapixels; print a table.

    Raises: UsageError if neither is given.
    """
    picture, megapixels = options.picture, options.megapixels
    if picture is None and megapixels is None:
        raise UsageError("give a picture or --megapixels")
    more = ["--device", options.device, *(["--model", options.model] if options.model else [])]
    with tempfile.TemporaryDirectory() as folder:
        source = picture
        if source is None or megapixels is not None:
            source = Path(folder) / "large.ppm"
            write_large(source, megapixels or 0, picture)
        tok, out = str(Path(folder) / "a.tok"), str(Path(folder) / "a.png")
        runs = [
            run_codec("--help"),
            run_codec("encode", str(source), "-o", tok, *more),
            run_codec("info", tok),
            run_codec("decode", tok, "-o", out, *more),
        ]
    columns = [("command", "codec {command}"), ("seconds", "{seconds:.2f}"), ("CPU seconds", "{cpu:.2f}")]
    table = table_of(map(vars, runs), [*columns, ("peak MiB", "{mib:.0f}")])
    print_table(Console(), table, f"whole processes on {source.name}, {os.cpu_count()} CPUs")
    return runs
