"""`codec tokenize` into shards beside the loop that one writes first: samples and hours a second, how busy the device.

::

    loop      for each file: open it (Pillow, soundfile), tokenizer.encode of it alone, np.save of the codes
    shards    codec tokenize --workers N: readers in processes, batches on the device, one writer

Both are timed end to end, with the start of the readers; the model has run once before. Then codes are
written in every format of shards, beside integers that are packed to ceil(log2 N) bits each.
"""

from __future__ import annotations

import importlib.util
import os
import random
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...tokenizers.api import Tokenizer
from ..console import whole_numbers
from ..corpus.manifest import Corpus
from ..corpus.run import tokenize_corpus
from ..corpus.shards import SHARD_SUFFIXES, shard_writer
from ..corpus.sources import list_samples
from ..corpus.tally import Tally
from ..errors import TokodecError, UsageError
from ..media.kind import MODALITY_SUFFIXES
from ..models import Model, load_model, pick_device
from ..options import CORPUS_FORMATS, CorpusOptions, TokenizeOptions
from ..provenance import origin
from ..registry import MODALITIES
from .options import CorpusBenchOptions
from .report import Column, json_file, plain_console, print_table, said, table_of, where
from .run import torch_threads
from .timing import synchronize


@dataclass(frozen=True)
class Row:
    """One way over the files.

    Attributes:
        cpu: seconds of cores, of all processes; as many samples a core could do no faster on an idle machine.
        busy: share of the time in which the device computes.  times: as fast as the loop.
    """

    way: str
    workers: int | None
    samples: int
    failed: int
    seconds: float
    samples_s: float
    hours_s: float  # of sounds
    busy: float
    cpu: float
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
    ("cores,\nseconds", "{cpu:.1f}"),
    ("times\nthe loop", "{times:.2f}"),
)


SIZES: tuple[Column, ...] = (
    ("shards", "{format}"),
    ("bytes", "{bytes}"),
    ("bits a code", "{bits:.2f}"),
    ("of packed\nintegers", "{packed:.3f}"),
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
        model = load_model(name, device)
        tokenizer = model.tokenizer
        warm_up(tokenizer)
        listing = scratch / "files.txt"
        listing.write_text("".join(f"{path.resolve()}\n" for path in paths))
        rows = [time_loop(paths[: options.loop], tokenizer, scratch)]
        rows += [time_shards(listing, scratch / f"shards-{n}", n, name, device) for n in workers]
        report = {**origin(device), "model": tokenizer.name, "files": len(paths), "seed": options.seed}
        report |= {"crops": options.crops, "side": None if options.crops is None else options.side}
        shards = Corpus(scratch / f"shards-{workers[0]}")
        report["sizes"] = sizes(shards, min(len(shards), options.sizes), model, scratch)
        report["rows"] = [asdict(replace(row, times=row.samples_s / rows[0].samples_s)) for row in rows]
        write(report)
    console = plain_console()
    said(console, f"{report['model']} on {where(report)}, {report['files']} files")
    print_table(console, table_of(report["rows"], COLUMNS))
    if report["sizes"]:
        print_table(console, table_of(report["sizes"], SIZES))


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
    with ThreadPoolExecutor() as threads:
        while made < n:
            with Image.open(chance.choice(paths)) as file:
                picture = file.convert("RGB")
            small += min(picture.size) < side
            if small > len(paths) + 100:
                raise UsageError(f"the pictures of {source} are smaller than {side} pixels")
            if min(picture.size) < side:
                continue
            saving = []
            for _ in range(min(50, n - made)):
                x, y = chance.randint(0, picture.width - side), chance.randint(0, picture.height - side)
                path = folder / f"{made // 1000:03}" / f"{made:07}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                saving.append(threads.submit(picture.crop((x, y, x + side, y + side)).save, path))
                made += 1
            for future in saving:
                future.result()


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


class Clock:
    """Seconds since it was made, and those of cores."""

    def __init__(self) -> None:
        self._begin, self._cpu = time.perf_counter(), sum(os.times()[:4])

    def row(self, way: str, workers: int | None, samples: int, failed: int, *, hours: float, computing: float) -> Row:
        """Samples that were made by now; processes that helped have ended."""
        seconds, cpu = time.perf_counter() - self._begin, sum(os.times()[:4]) - self._cpu
        return Row(
            way=way, workers=workers, samples=samples, failed=failed, seconds=seconds, samples_s=samples / seconds,
            hours_s=hours / seconds, busy=computing / seconds, cpu=cpu,
        )  # fmt: skip


def time_loop(paths: Sequence[Path], tokenizer: Tokenizer, scratch: Path) -> Row:
    device = str(tokenizer.device)
    computing, hours, failed = 0.0, 0.0, 0
    clock = Clock()
    for i, path in enumerate(paths):
        try:
            x = read(path, tokenizer).to(device)
            start = time.perf_counter()
            tokens = tokenizer.encode(x)
            synchronize(device)
            computing += time.perf_counter() - start
            np.save(scratch / f"{i}.npy", tokens.codes.cpu().numpy())
        except (TokodecError, OSError, ValueError):
            failed += 1
            continue
        hours += tokens.spec.size[0] / tokens.spec.sample_rate / 3600 if tokens.spec.sample_rate else 0.0
    return clock.row("loop", None, len(paths) - failed, failed, hours=hours, computing=computing)


def time_shards(listing: Path, out: Path, workers: int, model: str, device: str) -> Row:
    clock = Clock()
    done: Tally = tokenize_corpus(
        [str(listing)],
        out,
        CorpusOptions(workers=workers, rank=0, world=1),
        TokenizeOptions(model=model, device=device),
    )
    return clock.row("shards", workers, done.made, done.failed, hours=done.hours, computing=done.computing)


def sizes(corpus: Corpus, samples: int, model: Model, scratch: Path) -> list[dict[str, Any]]:
    """Bytes of so many samples as a shard of each format whose packages are there, all that belongs to it included."""
    codes = packed = 0
    for i in range(samples):
        _, tokens = corpus.sample(i)
        codes += tokens.codes.numel()
        bits = [(n - 1).bit_length() for n in tokens.spec.codebook_sizes[: tokens.n_levels]]
        packed += sum(bits) * tokens.codes[:, 0].numel()
    rows: list[dict[str, Any]] = []
    for format in CORPUS_FORMATS if samples else ():
        if format == "parquet" and importlib.util.find_spec("pyarrow") is None:
            continue
        paths = [scratch / f"{format}{suffix}" for suffix in SHARD_SUFFIXES[format]]
        with ExitStack() as stack:
            files: list[Any] = [stack.enter_context(path.open("w+b")) for path in paths]
            writer = shard_writer(CorpusOptions(format=format), files, model)
            for i in range(samples):
                writer.add(*corpus.sample(i))
            writer.close()
        size = sum(path.stat().st_size for path in paths)
        rows.append({"format": format, "bytes": size, "bits": 8 * size / codes, "packed": 8 * size / packed})
    return rows
