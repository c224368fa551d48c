"""Sounds on one device beside the CPU: whether each reads the other's files to the same codes.

::

    sound -> file made on the CPU, file made on the device -> codes of both files on both

The SHA-256 over the codes of all files of the CPU is equal on all machines for equal files in equal order.
"""

from __future__ import annotations

import hashlib
import io
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from ..audio.decode import audio_tokenizer
from ..container.read import read_tok
from ..decode import decode_file, file_tokens
from ..encode import encode_file
from ..files import open_output
from ..models import load_model, pick_device
from ..provenance import as_json, commit, machine
from ..registry import MODALITIES
from .clips import clip_files


@dataclass(frozen=True)
class SoundRow:
    """One sound. Codes and files of the device beside those of the CPU."""

    name: str
    seconds: float
    bytes_cpu: int
    same_codes: bool  # of both files, read on both devices
    codes: int  # of the file made on the CPU
    analysed_alike: int  # codes that the device's own file has as well; near ties of the nets may fall the other way
    encode_s: float
    decode_s: float  # on the device


def bench_sound(name: str, source: bytes, kbps: float, model: str, device: str) -> tuple[SoundRow, np.ndarray]:
    """Measure one file of a sound; its codes ``[signals, K, t]`` as the CPU makes and reads them."""

    def encode(where: str) -> bytes:
        return encode_file(io.BytesIO(source), None, model=model, kbps=kbps, device=where).data

    def codes(data: bytes, where: str) -> np.ndarray:
        return file_tokens(read_tok(data), model, where)[0].codes.cpu().numpy()

    ours, theirs = encode("cpu"), encode(device)
    begin = time.perf_counter()
    encode(device)
    encode_s = time.perf_counter() - begin
    read, own = codes(ours, "cpu"), codes(theirs, "cpu")
    same = np.array_equal(read, codes(ours, device)) and np.array_equal(own, codes(theirs, device))
    begin = time.perf_counter()
    sound = decode_file(io.BytesIO(ours), model=model, device=device).sound
    decode_s = time.perf_counter() - begin
    levels = min(read.shape[1], own.shape[1])  # the size of a file may have room for others
    alike = int((read[:, :levels] == own[:, :levels]).sum())
    seconds = sound.samples.shape[1] / sound.sample_rate
    return SoundRow(name, seconds, len(ours), bool(same), read.size, alike, encode_s, decode_s), read


def bench_sound_devices(
    folder: Path, kbps: float, model: str | None, device: str, limit: int | None = None, out: Path | None = None
) -> dict[str, Any]:
    """Measure, print a table, and return what the JSON file ``out`` gets.

    Raises: a TokodecError: nothing there, or a model that is not for sounds.
    """
    device, name = pick_device(device), model or MODALITIES["audio"].encode_model
    tokenizer = audio_tokenizer(load_model(name, device))
    console, digest, rows = Console(), hashlib.sha256(), []
    for path in clip_files(folder, limit):
        row, codes = bench_sound(path.name, path.read_bytes(), kbps, name, device)
        digest.update(codes.astype("<i4").tobytes())
        rows.append(row)
    report: dict[str, Any] = {
        "machine": machine(device), "commit": commit(), "model": tokenizer.name, "weights": tokenizer.weights_hash,
        "kbps": kbps, "codes_sha256": digest.hexdigest(), "rows": [asdict(row) for row in rows],
    }  # fmt: skip
    seconds = sum(row.seconds for row in rows)
    table = Table(box=SIMPLE, title=f"{tokenizer.name} on {report['machine']['device']} beside the CPU")
    for head in ("files", "same codes", "analysed alike", "kbit/s", "encode, of real time", "decode"):
        table.add_column(head, justify="right")
    table.add_row(
        str(len(rows)), str(sum(row.same_codes for row in rows)),
        f"{sum(row.analysed_alike for row in rows)} of {sum(row.codes for row in rows)}",
        f"{8e-3 * sum(row.bytes_cpu for row in rows) / seconds:.3f}",
        f"{sum(row.encode_s for row in rows) / seconds:.4f}", f"{sum(row.decode_s for row in rows) / seconds:.4f}",
    )  # fmt: skip
    console.print(table)
    console.print(f"codes SHA-256 {report['codes_sha256']}")
    if out is not None:
        with open_output(out, force=True) as file:
            assert file is not None
            file.write(as_json(report).encode())
    return report
