"""What every benchmark writes: its files, and where and with what its numbers came about."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__

ROOT = Path(__file__).resolve().parents[1]


def machine(device: str) -> dict[str, Any]:
    """Where the seconds were measured."""
    import torch

    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor,
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
    }


def versions() -> dict[str, str]:
    """Of everything that bytes, pixels, times and metrics depend on, as far as it is installed."""
    found = {"tokodec": __version__, "python": platform.python_version()}
    for package in (
        "torch", "numpy", "pillow", "constriction", "ssimulacra2", "pillow-heif", "pillow-jxl-plugin", "bjontegaard",
        "compressai", "av", "soundfile", "soxr", "visqol-python", "pesq", "pystoi", "speechmos", "onnxruntime",
        "transformers",
    ):  # fmt: skip
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Commit of the source tree that runs, with "-dirty" if tracked files differ; None outside a checkout."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def as_json(report: dict[str, Any]) -> str:
    """The text of a report: a line for every entry, and for every item of its lists; seven digits of a number count."""
    lines = []
    for key, value in finite(report).items():
        text = json.dumps(_short(value), allow_nan=False)
        if isinstance(value, list) and value:
            text = "[\n" + ",\n".join("  " + json.dumps(_short(item), allow_nan=False) for item in value) + "\n ]"
        lines.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _short(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        return {key: _short(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_short(v) for v in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def finite(value: Any) -> Any:
    """JSON has no infinity, which is e.g. the PSNR of a perfect copy: None there."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def origin(device: str) -> dict[str, Any]:
    """Where, with what and when numbers came about, for a report."""
    return {
        "machine": machine(device),
        "versions": versions(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
