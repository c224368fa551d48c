"""Tokens of many media in shards: one rank of `codec tokenize ... --format webdataset`.

::

    listing -> windows of 64 samples -> readers (processes) -> batches of one size on the device -> writer (a thread)

A window is tokenized as a whole, or not at all if all of it is there already. So a batch holds the same samples when a
run goes on after a crash, and shards come out the same, byte for byte.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from ... import __version__
from ..console import EXIT_DAMAGED, EXIT_USER
from ..errors import UsageError, is_out_of_memory
from ..files import atomic_outputs, make_folder
from ..image.format import image_tokenizer
from ..media.kind import MODALITY_SUFFIXES, SUFFIXES_IN
from ..models import Model, load_model, pick_device
from ..options import CorpusOptions, TokenizeOptions
from ..progress import SILENT, Progress
from ..provenance import machine, versions
from ..registry import MODALITIES
from ..tokens import check_tokenizable, first_levels, tokenize_file
from .manifest import (
    SUCCESS,
    begin,
    codes_hash,
    errors_file,
    finish,
    rank_file,
    read_lines,
    shard_name,
    shards_of,
    write_json,
)
from .readers import MOST_PIXELS, Loaded, Readers, load, reason
from .shards import SHARD_SUFFIXES, ShardWriter, shard_writer
from .sources import Sample, list_samples
from .token_files import TOKEN_SUFFIXES
from .webdataset import check_key

if TYPE_CHECKING:
    from ...tokenizers.tokens import Tokens

WINDOW = 64  # samples that are batched, written and repeated together
BEHIND = 64  # samples that wait for the writer
READERS = ("pillow", "soundfile", "soxr", "av")  # whose versions decide samples, and so tokens


@dataclass
class Tally:
    """What a rank has done.

    Attributes:
        written: samples in shards, those of earlier runs included.  made: of this run.
        failed, damaged: samples in the errors.  shards: names and samples.
        waited: seconds for "readers", "device" and "writer".
    """

    written: int = 0
    made: int = 0
    failed: int = 0
    damaged: int = 0
    shards: list[tuple[str, int]] = field(default_factory=list)
    waited: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    begin: float = field(default_factory=time.monotonic)
    finished: bool = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.begin

    @property
    def exit_code(self) -> int:
        """0; 3 if samples are left out because of damage; 2 if some could not be read at all."""
        return EXIT_USER if self.failed > self.damaged else EXIT_DAMAGED if self.damaged else 0

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.waited[what] += time.monotonic() - start

    @property
    def note(self) -> str:
        """Speed, and what takes most of the time."""
        slowest = max(self.waited, key=self.waited.__getitem__, default="readers")
        share = self.waited[slowest] / max(1e-9, self.seconds)
        return f"{self.made / max(1e-9, self.seconds):.1f} samples/s, {share:.0%} of the time in the {slowest}"


def tokenize_corpus(
    sources: Sequence[str],
    folder: str | Path,
    options: CorpusOptions,
    tokenize: TokenizeOptions,
    progress: Progress = SILENT,
) -> Tally:
    """Tokenize all samples of a rank into shards; when the last rank has ended, the corpus is finished.

    Args:    sources: see :func:`.sources.list_samples`.  tokenize: the model may be left to the first medium.
    Returns: what was done; samples that fail or are damaged are in `errors-RRRR.jsonl`.
    Raises:  UsageError if the folder holds something else, was begun with other options, or has shards of this rank and
             ``options.resume`` is not set; MediaError if it cannot be written.
    """
    folder = Path(folder)
    rank, world = options.place
    model = load_model(tokenize.model or _default_model(sources), _device(tokenize.device))
    tokenize = replace(tokenize, model=model.tokenizer, device=str(model.tokenizer.device))
    check_tokenizable(model.tokenizer, tokenize)
    if options.digits:
        _ = model.trees  # refused now, and not once for each sample
    suffixes = (*MODALITY_SUFFIXES[model.tokenizer.modality], ".tok", *TOKEN_SUFFIXES)
    make_folder(folder)
    if not options.resume and (shards_of(folder, rank) or rank_file(folder, rank).is_file()):
        raise UsageError(f"{folder} has shards of rank {rank} already: --resume goes on with them")
    begin(folder, _fingerprint(model, options, tokenize, suffixes))
    for path in (folder / SUCCESS, rank_file(folder, rank)):
        path.unlink(missing_ok=True)
    tally = Tally()
    listing = list_samples(sources, suffixes, rank, world)
    with errors_file(folder, rank).open("w", encoding="utf-8", buffering=1) as errors:
        writer = _Writer(folder, options, model, tally, errors)
        with writer, contextlib.closing(Readers(options.workers, WINDOW)) as readers:
            for sample, loaded, tokens in _tokenized(listing, readers, model, tokenize, writer):
                writer.put(sample, loaded, tokens)
                progress.update(note=tally.note)
    about = {"machine": machine(str(model.tokenizer.device)), "versions": versions()}
    numbers = {name: getattr(tally, name) for name in ("written", "failed", "damaged", "shards", "seconds")}
    write_json(rank_file(folder, rank), {"rank": rank, **numbers, **about})
    if all(rank_file(folder, other).is_file() for other in range(world)):
        finish(folder)
        tally.finished = True
    return tally


def _default_model(sources: Sequence[str]) -> str:
    """The default for what the first medium is, by its suffix. Raises UsageError if there is none."""
    for sample in list_samples(sources, SUFFIXES_IN):
        suffix = Path(sample.source).suffix.lower()
        for modality, suffixes in MODALITY_SUFFIXES.items():
            if suffix in suffixes:
                return MODALITIES[modality].token_model
    raise UsageError(f"no pictures, sounds or videos in {', '.join(sources)}; of other files, name the --model")


def _device(device: str) -> str:
    """Of several GPUs, "auto" is the one of this rank on its machine."""
    import torch

    local = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or ""
    if device == "auto" and local.isdecimal() and torch.cuda.is_available():
        return f"cuda:{int(local) % torch.cuda.device_count()}"
    return pick_device(device)


def _fingerprint(
    model: Model, options: CorpusOptions, tokenize: TokenizeOptions, suffixes: tuple[str, ...]
) -> dict[str, Any]:
    """Everything that decides tokens, and which shard they are in."""
    tokenizer = model.tokenizer
    if not tokenizer.weights_hash:
        raise UsageError(f"the weights of {tokenizer.name} are in no file: save them first, see save_pretrained")
    installed = versions()
    return {
        "model": tokenizer.name,
        "weights_hash": tokenizer.weights_hash,
        "prior": None if options.format != "tok" else str(model.prior.hash),
        **{k: v for k, v in asdict(replace(tokenize, model=None)).items() if k not in ("model", "device")},
        **{name: getattr(options, name) for name in ("format", "shard_size", "pattern", "digits")},
        "world": options.place[1],
        "suffixes": suffixes,
        "tokodec": __version__,
        "readers": {name: installed.get(name) for name in READERS},
    }


# --------------------------------------------------------------------------------------------------------- tokenizing


def _tokenized(
    listing: Iterable[Sample], readers: Readers, model: Model, options: TokenizeOptions, writer: _Writer
) -> Iterator[tuple[Sample, Loaded, Tokens | str]]:
    """Samples with their tokens, or the reason why there are none, in their order."""
    pictures = model.tokenizer.modality == "image"
    call = functools.partial(load, pictures=pictures, max_pixels=options.max_pixels)
    crashed = Loaded(problem="the process that read it died: out of memory, or a fault of a decoder")
    samples = (sample for window in _windows(listing, writer) for sample in window)
    results = readers.map(call, samples, crashed)
    while window := _take(results, writer.tally):
        with writer.tally.waiting("device"):
            yield from _window_tokens(window, model, options)


def _take(results: Iterator[tuple[Sample, Loaded]], tally: Tally) -> list[tuple[Sample, Loaded]]:
    """The results of a window. All windows but the last are of one size, so these are the same samples."""
    with tally.waiting("readers"):
        return [found for _, found in zip(range(WINDOW), results, strict=False)]


def _windows(listing: Iterable[Sample], writer: _Writer) -> Iterator[list[Sample]]:
    """Samples in windows; those windows of which all is there already are left out. A key that comes again fails."""
    window: list[Sample] = []
    keys: set[str] = set()
    for sample in listing:
        if sample.key in keys:
            sample = replace(sample, problem=f"the key {sample.key} is there twice")
        keys.add(sample.key)
        window.append(sample)
        if len(window) == WINDOW:
            if not all(writer.has(sample) for sample in window):
                yield window
            window = []
    if not all(writer.has(sample) for sample in window):
        yield window


def _window_tokens(
    window: Sequence[tuple[Sample, Loaded]], model: Model, options: TokenizeOptions
) -> Iterator[tuple[Sample, Loaded, Tokens | str]]:
    made: dict[int, tuple[Loaded, Tokens | str]] = {}
    sizes: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, (sample, loaded) in enumerate(window):
        if loaded.pixels is not None and model.tokenizer.rate_control == "levels":
            sizes[loaded.pixels.shape].append(i)
        else:
            made[i] = loaded, _single(sample, loaded, model, options)
    for shape, numbers in sizes.items():
        most = max(1, MOST_PIXELS // (shape[0] * shape[1]))
        for k in range(0, len(numbers), most):
            batch = numbers[k : k + most]
            start = time.monotonic()
            tokens = _batch([window[i][1] for i in batch], model, options)
            share = (time.monotonic() - start) / len(batch)
            for i, found in zip(batch, tokens, strict=True):
                made[i] = replace(window[i][1], pixels=None, seconds=window[i][1].seconds + share), found
    for i, (sample, _) in enumerate(window):
        yield (sample, *made[i])


def _batch(items: Sequence[Loaded], model: Model, options: TokenizeOptions) -> list[Tokens | str]:
    """Tokens of pictures of one size: those that each has alone."""
    import torch

    from ...tokenizers.tokens import Tokens

    pixels = [torch.from_numpy(item.pixels) for item in items]
    try:
        with torch.no_grad():
            x = torch.stack(pixels).to(model.tokenizer.device).permute(0, 3, 1, 2)  # [B, C, H, W]
            made = model.tokenizer.encode(x.expand(-1, 3, -1, -1).float() / 255).to("cpu")
        made = first_levels(made, options.levels)
        return [Tokens(made.codes[i : i + 1], made.spec) for i in range(len(items))]
    except Exception as error:
        if len(items) > 1 and is_out_of_memory(error):
            return [tokens for item in items for tokens in _batch([item], model, options)]
        return [reason(error)] * len(items)


def _single(sample: Sample, loaded: Loaded, model: Model, options: TokenizeOptions) -> Tokens | str:
    """Tokens of what is in no batch."""
    import torch

    if loaded.problem:
        return loaded.problem
    try:
        if loaded.pixels is not None:
            tokens = image_tokenizer(model).encode_picture(torch.from_numpy(loaded.pixels), options.quality)
            return first_levels(tokens, options.levels)
        assert loaded.data is not None
        done = tokenize_file(loaded.data, options=options)
        return done.problems[0] if done.problems else done.tokens
    except Exception as error:  # as in the readers
        return reason(error)


# ------------------------------------------------------------------------------------------------------------ writing


class _Writer:
    """Shards of a rank, one after the other, written by a thread; samples that are there already are passed over."""

    def __init__(self, folder: Path, options: CorpusOptions, model: Model, tally: Tally, errors: TextIO) -> None:
        self.folder, self.options, self.model, self.tally, self.errors = folder, options, model, tally, errors
        self.rank = options.place[0]
        self._done: set[str] = set()
        for path in shards_of(folder, self.rank):
            keys = [row["key"] for row in read_lines(path)]
            self._done.update(keys)
            tally.shards.append((path.stem, len(keys)))
            tally.written += len(keys)
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[None]] = deque()
        self._open: tuple[ExitStack, list[BinaryIO], ShardWriter] | None = None
        self._samples = 0

    def has(self, sample: Sample) -> bool:
        return not sample.problem and sample.key in self._done

    def put(self, sample: Sample, loaded: Loaded, tokens: Tokens | str) -> None:
        """Hand a sample to the thread. Raises what an earlier one met there."""
        if self.has(sample):
            return
        self._waiting.append(self._thread.submit(self._write, sample, loaded, tokens))
        with self.tally.waiting("writer"):
            while len(self._waiting) > BEHIND or (self._waiting and self._waiting[0].done()):
                self._waiting.popleft().result()

    def _write(self, sample: Sample, loaded: Loaded, tokens: Tokens | str) -> None:
        if isinstance(tokens, str):
            self._fail(sample, tokens, loaded.damaged)
            return
        _, files, shard = self._open or self._begin()
        try:
            check_key(sample.key)
            shard.add(sample.key, tokens)
        except UsageError as error:
            self._fail(sample, str(error), False)
            return
        row = {
            "key": sample.key,
            "source": sample.source,
            "sha256": loaded.sha256,
            "codes": codes_hash(tokens),
            "device": str(self.model.tokenizer.device),
            "seconds": round(loaded.seconds, 6),
        }
        files[0].write((json.dumps(row) + "\n").encode())
        self._samples += 1
        self.tally.made += 1
        size, samples = self.options.most
        if self._samples >= samples or sum(file.tell() for file in files[1:]) >= size:
            self._end()

    def _fail(self, sample: Sample, problem: str, damaged: bool) -> None:
        self.errors.write(json.dumps({"key": sample.key, "source": sample.source, "reason": problem}) + "\n")
        self.tally.failed += 1
        self.tally.damaged += damaged

    def _begin(self) -> tuple[ExitStack, list[BinaryIO], ShardWriter]:
        name = shard_name(self.rank, len(self.tally.shards))
        paths = [self.folder / (name + suffix) for suffix in (".jsonl", *SHARD_SUFFIXES[self.options.format])]
        stack = ExitStack()
        files = stack.enter_context(atomic_outputs(paths, force=True))
        self._open = stack, files, shard_writer(self.options, files[1:], self.model)
        return self._open

    def _end(self) -> None:
        """Give a shard its name, if it has samples."""
        if self._open is None:
            return
        stack, _, shard = self._open
        if self._samples:
            shard.close()
            stack.close()
            self.tally.shards.append((shard_name(self.rank, len(self.tally.shards)), self._samples))
            self.tally.written += self._samples
        else:
            stack.__exit__(UsageError, UsageError("no samples"), None)
        self._open, self._samples = None, 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """End the last shard; after an error, leave nothing of it."""
        try:
            if error is None:
                for future in self._waiting:
                    future.result()
                self._thread.submit(self._end).result()
        except BaseException as late:
            kind, error = type(late), late
            raise
        finally:
            self._thread.shutdown()
            if error is not None and self._open is not None:
                with contextlib.suppress(type(error)):
                    self._open[0].__exit__(kind, error, trace)
