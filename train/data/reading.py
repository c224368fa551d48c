"""Media of folders: listed in one order, decoded in parallel, as many as memory and time allow."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil  # type: ignore[import-untyped]
import torch
from torch import Tensor

T = TypeVar("T")
WORKERS = min(32, os.cpu_count() or 1)


def list_media(folders: Iterable[str | Path], suffixes: Collection[str], what: str) -> list[Path]:
    """All files with such suffixes below ``folders``, sorted by name so that the order is the same on every machine.

    Raises: FileNotFoundError if a folder is missing or there is no such file.
    """
    paths: list[Path] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise FileNotFoundError(f"no folder {folder}")
        paths += [p for p in folder.rglob("*") if p.suffix.lower() in suffixes]
    if not paths:
        raise FileNotFoundError(f"no {what} in {', '.join(map(str, folders))}")
    return sorted(paths, key=lambda p: (p.name, str(p)))


def in_parallel(work: Callable[[T], Tensor], items: Iterable[T]) -> list[Tensor]:
    """``work`` of every item, in threads: decoders release the interpreter lock."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(work, items))


def default_bytes(device: torch.device) -> int:
    """Bytes of decoded media to hold at most: they lie in memory twice, once for crops, once for evaluations.

    A sixth of the memory that is free, at most 1 GiB without a GPU; with one, at most half of what is free there.
    """
    most = psutil.virtual_memory().available // 6
    return min(most, torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 2**30)


@dataclass(frozen=True)
class Limits:
    """What reading may take: bytes of decoded media, and seconds."""

    bytes: int
    seconds: float


@dataclass(frozen=True)
class Reading:
    """Decoded media by their place in the list of paths, and notes on what was left out."""

    media: dict[int, Tensor]
    notes: list[str]

    def split(self, every: int) -> tuple[list[Tensor], list[Tensor]]:
        """Media to train on, and those at every such place, which are held out."""
        kept = [x for i, x in self.media.items() if i % every]
        held = [x for i, x in self.media.items() if i % every == 0]
        if not held:  # what stood there cannot be read
            held = [kept.pop(0)]
        return kept, held


def read_within(
    paths: Sequence[Path], read: Callable[[Path], Tensor], limits: Limits, seed: int = 0,
    these: Sequence[int] | None = None,
) -> Reading:  # fmt: skip
    """Decode media until all are there or a limit is reached.

    The order is random, so that a part of a folder is a fair sample of it; the first medium is among them always.
    Files that cannot be read are left out with a note.

    Args:   these: places of the media to read, without regard to limits.
    Raises: ValueError if none can be read, or not all of these.
    """
    order = [i + 1 for i in torch.randperm(len(paths) - 1, generator=torch.Generator().manual_seed(seed)).tolist()]
    order.insert(0, 0)
    if these is not None:
        order, limits = list(these), Limits(sys.maxsize, math.inf)
    media: dict[int, Tensor] = {}
    failures: list[str] = []
    begin, size = time.monotonic(), 0

    def attempt(i: int) -> tuple[int, Tensor | None, str]:
        try:
            return i, read(paths[i]), ""
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            return i, None, reason if str(paths[i]) in reason else f"{paths[i]}: {reason}"

    with ThreadPoolExecutor(WORKERS) as pool:
        while order and size < limits.bytes and (len(media) < 2 or time.monotonic() - begin < limits.seconds):
            for i, medium, failure in pool.map(attempt, order[:WORKERS]):
                if medium is None:
                    failures.append(failure)
                elif size < limits.bytes:
                    media[i] = medium
                    size += medium.numel() * medium.element_size()
            del order[:WORKERS]
    if not media or (these is not None and failures):
        raise ValueError(f"none of {len(paths)} files can be read: {failures[0]}" if not media else failures[0])
    notes = []
    if failures:
        notes.append(f"note: {len(failures)} of {len(paths)} files cannot be read and are left out: {failures[0]}")
    if left := len(paths) - len(media) - len(failures):
        limit = "--memory" if size >= limits.bytes else "time"
        notes.append(
            f"note: {left} of {len(paths)} files, drawn at random, are left out:"
            f" {size / 1e9:.2f} GB reach the limit of {limit}"
        )
    return Reading(dict(sorted(media.items())), [] if these is not None else notes)
