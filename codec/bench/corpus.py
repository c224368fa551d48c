"""`codec tokenize` into shards beside the loop that one writes first: samples and hours a second, how busy the device.

::

    loop      for each file: open it (Pillow, soundfile), tokenizer.encode of it alone, torch.save of the codes
    shards    codec tokenize --workers N: readers in processes, batches on the device, one writer

Both are timed end to end, with the start of the readers; the model is loaded and has run once before.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...tokenizers.api import Tokenizer
from ..console import whole_numbers
from ..corpus.run import tokenize_corpus
from ..corpus.sources import list_samples
from ..corpus.tally import Tally
from ..errors import TokodecError, UsageError
from ..media.kind import MODALITY_SUFFIXES
from ..models import load_model, pick_device
from ..options import CorpusOptions, TokenizeOptions
from ..provenance import origin
from ..registry import MODALITIES
from .options import CorpusBenchOptions
from .report import Column, json_file, plain_console, print_table, said, table_of, where
from .run import torch_threads
from .timing import synchronize


@dataclass(frozen=True)
class Row:
    """One way over the files. busy: share of the time in which the device computes.  times: as fast as the loop."""

    way: str
    workers: int | None
    samples: int
    failed: int
    seconds: float
    samples_s: float
    hours_s: float  # of sounds
    busy: float
    times: float | None = None


COLUMNS: tuple[Column, ...] = (
    ("way", "{way}"),
    ("workers", "{workers}"),
    ("samples", "{samples}"),
    ("failed", "{failed}"),
    ("seconds", "{seconds:.1f}"),
    ("samples/s", "{samples_s:.1f}"),
    ("hours/s", "{hours_s:.3g}"),
    ("device\ncomputes", "{busy:.0%}"),
    ("times\nthe loop", "{times:.2f}"),
)


def bench_corpus(options: CorpusBenchOptions) -> None:
    workers = whole_numbers(options.workers, "--workers")
    device = pick_device(options.device)
    with (
        json_file(options.out) as write,
        tempfile.TemporaryDirectory() as temporary,
        torch_threads(options.threads),
    ):
        scratch = Path(temporary)
        folder = options.folder
        if options.crops is not None:
            folder = scratch / "crops"
            make_crops(options.folder, folder, options.crops, options.side, options.seed)
        modality, paths = media_in(folder)
        paths = paths[: options.limit]
        name = options.model or MODALITIES[modality].token_model
        tokenizer = load_model(name, device).tokenizer
        warm_up(tokenizer)
        listing = scratch / "files.txt"
        listing.write_text("".join(f"{path.resolve()}\n" for path in paths))
        rows = [time_loop(paths[: options.loop], tokenizer, scratch)]
        rows += [time_shards(listing, scratch / f"shards-{n}", n, name, device) for n in workers]
        report = {**origin(device), "model": tokenizer.name, "files": len(paths), "seed": options.seed}
        report |= {"crops": options.crops, "side": None if options.crops is None else options.side}
        report["rows"] = [asdict(replace(row, times=row.samples_s / rows[0].samples_s)) for row in rows]
        write(report)
    console = plain_console()
    said(console, f"{report['model']} on {where(report)}, {report['files']} files")
    print_table(console, table_of(report["rows"], COLUMNS))


def media_in(folder: Path) -> tuple[str, list[Path]]:
    """Of the modality that most of its files have, in the order of `codec tokenize`."""
    suffixes = {modality: MODALITY_SUFFIXES[modality] for modality in ("image", "audio")}
    found = {m: [Path(s.source) for s in list_samples([str(folder)], own)] for m, own in suffixes.items()}
    modality = max(found, key=lambda modality: len(found[modality]))
    if not found[modality]:
        raise UsageError(f"no pictures or sounds in {folder}")
    return modality, found[modality]


def make_crops(source: Path, folder: Path, n: int, side: int, seed: int) -> None:
    """PNGs of ``side`` x ``side`` pixels, cut out anywhere of the pictures of a folder; 50 from each that is opened."""
    modality, paths = media_in(source)
    if modality != "image":
        raise UsageError(f"crops are of pictures, and {source} holds sounds")
    chance = random.Random(seed)
    made = small = 0
    while made < n:
        with Image.open(chance.choice(paths)) as file:
            picture = file.convert("RGB")
        small += min(picture.size) < side
        if small > len(paths) + 100:
            raise UsageError(f"the pictures of {source} are smaller than {side} pixels")
        if min(picture.size) < side:
            continue
        for _ in range(min(50, n - made)):
            x, y = chance.randint(0, picture.width - side), chance.randint(0, picture.height - side)
            path = folder / f"{made // 1000:03}" / f"{made:07}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.crop((x, y, x + side, y + side)).save(path)
            made += 1


def warm_up(tokenizer: Tokenizer) -> None:
    """The first call of a device takes seconds."""
    size = [4 * stride for stride in tokenizer.strides]
    tokenizer.encode(torch.zeros(1, 3 if tokenizer.modality == "image" else 1, *size, device=tokenizer.device))


def read(path: Path, tokenizer: Tokenizer) -> torch.Tensor:
    """A file as the loop reads it: ``[1, 3, H, W]`` uint8, or ``[1, 1, n]`` float32 at the rate of the model."""
    if tokenizer.modality == "image":
        with Image.open(path) as file:
            return torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)[None]
    import soundfile
    import soxr

    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = soxr.resample(samples.mean(1), rate, tokenizer.sample_rate)
    return torch.from_numpy(mono)[None, None]


def time_loop(paths: Sequence[Path], tokenizer: Tokenizer, scratch: Path) -> Row:
    device = str(tokenizer.device)
    computing, hours, failed = 0.0, 0.0, 0
    begin = time.perf_counter()
    for i, path in enumerate(paths):
        try:
            x = read(path, tokenizer).to(device)
            start = time.perf_counter()
            tokens = tokenizer.encode(x)
            synchronize(device)
            computing += time.perf_counter() - start
            torch.save(tokens.codes.cpu(), scratch / f"{i}.pt")
        except (TokodecError, OSError, ValueError):
            failed += 1
            continue
        hours += tokens.spec.size[0] / tokens.spec.sample_rate / 3600 if tokens.spec.sample_rate else 0.0
    seconds = time.perf_counter() - begin
    done = len(paths) - failed
    return Row("loop", None, done, failed, seconds, done / seconds, hours / seconds, computing / seconds)


def time_shards(listing: Path, out: Path, workers: int, model: str, device: str) -> Row:
    begin = time.perf_counter()
    done: Tally = tokenize_corpus(
        [str(listing)],
        out,
        CorpusOptions(workers=workers, rank=0, world=1),
        TokenizeOptions(model=model, device=device),
    )
    seconds = time.perf_counter() - begin
    rates = done.made / seconds, done.hours / seconds, done.computing / seconds
    return Row("shards", workers, done.made, done.failed, seconds, *rates)
