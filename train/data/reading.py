"""Media of folders and of WebDataset archives: listed in one order, decoded in parallel, as many as memory and time
allow; the others are for a stream (:mod:`.stream`)."""

from __future__ import annotations

import io
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

from ...codec.corpus.sources import INSIDE, Sample, expand, list_samples
from ...codec.errors import TokodecError

T = TypeVar("T")
WORKERS = min(32, os.cpu_count() or 1)


ARCHIVE = ".tar"


@dataclass(frozen=True)
class Member:
    """A medium in a WebDataset archive, where else the path of a file would be. It is read where it lies."""

    sample: Sample

    def __str__(self) -> str:
        return self.sample.source

    @property
    def name(self) -> str:
        return self.sample.source.rpartition(INSIDE)[2]

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix


Source = Path | Member


def opened(source: Source) -> Path | io.BytesIO:
    """What a decoder opens: a file by its path, the bytes of a member of an archive. Raises ValueError for a part of an
    archive that is known to be damaged."""
    if isinstance(source, Path):
        return source
    if source.sample.problem:
        raise ValueError(source.sample.problem)
    return source.sample.open()


def bytes_of(source: Source) -> int:
    """How long it is before it is decoded."""
    return source.stat().st_size if isinstance(source, Path) else (source.sample.place or (0, 0))[1]


def list_media(folders: Iterable[str | Path], suffixes: Collection[str], what: str) -> list[Source]:
    """All files with such suffixes below ``folders``, and in the WebDataset archives there or given by their names.

    They are sorted by name, so that the order is the same on every machine. Names of archives may be URLs and hold
    ranges, ``shard-{000..099}.tar``.

    Raises: FileNotFoundError if a folder is missing or there is no such file.
    """
    found: list[Source] = []
    for folder in map(str, folders):
        if folder.lower().endswith(ARCHIVE):
            archives = expand(folder)
        else:
            if not Path(folder).is_dir():
                raise FileNotFoundError(f"no folder {folder}")
            below = list(Path(folder).rglob("*"))
            found += [p for p in below if p.suffix.lower() in suffixes]
            archives = [str(p) for p in below if p.suffix.lower() == ARCHIVE]
        found += map(Member, list_samples(archives, tuple(suffixes)))
    if not found:
        raise FileNotFoundError(f"no {what} in {', '.join(map(str, folders))}")
    return sorted(found, key=lambda p: (p.name, str(p)))


def in_parallel(work: Callable[[T], Tensor], items: Iterable[T]) -> list[Tensor]:
    """``work`` of every item, in threads: decoders release the interpreter lock."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(work, items))


def default_bytes(device: torch.device) -> int:
    """Bytes of decoded media to hold at most: they lie in memory twice, once for crops, once for evaluations.

    A sixth of the memory that is free, shared by the processes of a machine, at most 1 GiB without a GPU; with one, at
    most half of what is free there.
    """
    most = psutil.virtual_memory().available // 6 // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(most, torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 2**30)


@dataclass(frozen=True)
class Limits:
    """What reading may take: bytes of decoded media, and seconds."""

    bytes: int
    seconds: float


@dataclass(frozen=True)
class Reading:
    """Decoded media by their place in the list of paths, and notes on what was not read.

    Attributes: left: places of what was not even tried, in random order.  tried: how many were.  failed: in vain.
    """

    media: dict[int, Tensor]
    notes: list[str]
    paths: Sequence[Source]
    read: Callable[[Source], Tensor]
    left: Sequence[int]
    tried: int
    failed: Sequence[int]

    def split(self, every: int) -> tuple[list[Tensor], list[Tensor]]:
        """Media to train on, and those at every such place, which are held out."""
        trained = dict.fromkeys(self.trained(every))
        return [self.media[i] for i in trained], [x for i, x in self.media.items() if i not in trained]

    def trained(self, every: int) -> list[int]:
        """Places of the media to train on."""
        kept = [i for i in self.media if not every or i % every]
        if every and len(kept) == len(self.media):  # what should be held out cannot be read
            del kept[0]
        return kept


def attempt(read: Callable[[Source], T], path: Source) -> tuple[T | None, str]:
    """A medium, or else why it cannot be read."""
    try:
        return read(path), ""
    except (OSError, ValueError, TokodecError) as error:
        reason = " ".join(str(error).split())
        return None, reason if str(path) in reason else f"{path}: {reason}"


def read_within(
    paths: Sequence[Source], read: Callable[[Source], Tensor], limits: Limits, seed: int = 0,
    again: tuple[int, Sequence[int]] | None = None,
) -> Reading:  # fmt: skip
    """Decode media until all are there or a limit is reached.

    The order is random, so that a part of a folder is a fair sample of it; the first medium is among them always.
    Files that cannot be read are left out with a note.

    Args:   again: how many were tried before and which failed: the same are read, without limits and notes.
    Raises: ValueError if none can be read, or one that could be before.
    """
    order = [i + 1 for i in torch.randperm(len(paths) - 1, generator=torch.Generator().manual_seed(seed)).tolist()]
    order.insert(0, 0)
    limits = limits if again is None else Limits(sys.maxsize, math.inf)
    todo = len(order) if again is None else again[0]
    failures: dict[int, str] = {} if again is None else dict.fromkeys(again[1], "")
    media: dict[int, Tensor] = {}
    begin, size, done = time.monotonic(), 0, 0
    with ThreadPoolExecutor(WORKERS) as pool:
        while done < todo and size < limits.bytes and (len(media) < 2 or time.monotonic() - begin < limits.seconds):
            chunk = order[done : min(todo, done + WORKERS)]
            wanted = [i for i in chunk if i not in failures]
            found = dict(zip(wanted, pool.map(lambda i: attempt(read, paths[i]), wanted), strict=True))
            for i in chunk:
                if size >= limits.bytes:
                    break
                done += 1
                medium, failure = found.get(i, (None, ""))
                if medium is not None:
                    media[i] = medium
                    size += medium.numel() * medium.element_size()
                elif again is None:
                    failures[i] = failure
                elif i not in failures:
                    raise ValueError(failure)
    if not media:
        raise ValueError(f"none of {len(paths)} files can be read: {next(iter(failures.values()))}")
    notes = []
    if failures and again is None:
        first = next(iter(failures.values()))
        notes.append(f"note: {len(failures)} of {len(paths)} files cannot be read and are left out: {first}")
    left = order[done:]
    if left and again is None:
        limit = "--memory" if size >= limits.bytes else "time"
        notes.append(
            f"note: {len(left)} of {len(paths)} files, drawn at random, are read on the way:"
            f" {size / 1e9:.2f} GB of the others reach the limit of {limit}"
        )
    return Reading(dict(sorted(media.items())), notes, paths, read, left, tried=done, failed=list(failures))
