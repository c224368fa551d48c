"""Tokens of many media in shards: one rank of `codec tokenize ... --format webdataset`.

::

    listing -> windows of 512 samples -> readers (processes) -> batches of one size on the device (threads)
            -> writer (a thread)

A window is tokenized as a whole, or not at all if all of it is there already. So a batch holds the same samples when a
run goes on after a crash, and shards come out the same, byte for byte.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from ... import __version__
from ..errors import UsageError
from ..media.kind import MODALITY_SUFFIXES, SUFFIXES_IN, media_kind
from ..models import Model, load_model, pick_device
from ..options import CorpusOptions, TokenizeOptions
from ..progress import SILENT, Progress
from ..provenance import machine, versions
from ..registry import MODALITIES
from ..tokens import check_tokenizable
from .device import WINDOW, Device, Pending
from .manifest import (
    ROWS,
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
from .places import Place, place_of
from .readers import Loaded, Readers, load, reader_versions
from .shards import SHARD_SUFFIXES, ShardWriter, shard_writer
from .sources import Rows, Sample, list_samples
from .tally import Tally
from .token_files import TOKEN_SUFFIXES
from .webdataset import check_key

if TYPE_CHECKING:
    from ...tokenizers.tokens import Tokens

AHEAD = 256  # samples that are read before it is their turn
BEHIND = 256  # samples that wait for the writer


def tokenize_corpus(
    sources: Sequence[str],
    folder: str | Path | Place,
    options: CorpusOptions,
    tokenize: TokenizeOptions,
    progress: Progress = SILENT,
    *,
    readers: Callable[[int, int, bool], Readers] = Readers,
) -> Tally:
    """Tokenize all samples of a rank into shards; when the last rank has ended, the corpus is finished.

    Args:    sources: see :func:`.sources.list_samples`.  tokenize: the model may be left to the first medium.
             readers: makes what reads the media, see :class:`.readers.Readers`.
    Returns: what was done; samples that fail or are damaged are in `errors-RRRR.jsonl`.
    Raises:  UsageError if the folder holds something else, was begun with other options, or has shards of this rank and
             ``options.resume`` is not set; MediaError if it cannot be written.
    """
    place = place_of(folder)
    rank, world = options.place
    model = load_model(tokenize.model or _default_model(sources), _device(tokenize.device))
    tokenize = replace(tokenize, model=model.tokenizer, device=str(model.tokenizer.device))
    check_tokenizable(model.tokenizer, tokenize)
    if options.digits:
        _ = model.trees  # refused now, and not once for each sample
    suffixes = (*MODALITY_SUFFIXES[model.tokenizer.modality], ".tok", *TOKEN_SUFFIXES)
    pictures = model.tokenizer.modality == "image"  # other media are only hashed: threads do
    place.make()
    if not options.resume and (shards_of(place, rank) or place.has(rank_file(rank))):
        raise UsageError(f"{place.name} has shards of rank {rank} already: --resume goes on with them")
    begin(place, _fingerprint(model, options, tokenize, suffixes))
    for name in (SUCCESS, rank_file(rank)):
        place.remove(name)
    tally = Tally()
    listing = list_samples(sources, suffixes, rank, world)
    with place.log(errors_file(rank)) as errors:
        writer = _Writer(place, options, model, tally, errors)
        with (
            writer,
            contextlib.closing(readers(options.workers, AHEAD, pictures)) as pool,
            contextlib.closing(Device(model, tokenize, pool.workers)) as device,
        ):
            for sample, loaded, tokens in _tokenized(listing, pool, device, writer):
                writer.put(sample, loaded, tokens)
                tally.computing = device.computing
                progress.update(note=tally.note)
    about = {"machine": machine(str(model.tokenizer.device)), "versions": versions()}
    counted = ("written", "failed", "damaged", "shards", "seconds", "computing")
    numbers = {name: getattr(tally, name) for name in counted}
    write_json(place, rank_file(rank), {"rank": rank, **numbers, **about})
    if len(place.names("_rank-", ".json")) == world:
        finish(place)
        tally.finished = True
    return tally


def _default_model(sources: Sequence[str]) -> str:
    """The default for what the first medium is: by its suffix, or in a parquet file by its content.

    Raises: UsageError if there is none.
    """
    with contextlib.closing(Rows()) as rows:
        for sample in map(rows.fill, list_samples(sources, SUFFIXES_IN)):
            if sample.data is not None:
                return MODALITIES[media_kind(sample.open())[0]].token_model
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
    return {
        "model": tokenizer.name,
        "weights_hash": tokenizer.weights_hash,
        "prior": None if options.format != "tok" else str(model.prior.hash),
        **{k: v for k, v in asdict(replace(tokenize, model=None)).items() if k not in ("model", "device")},
        **{name: getattr(options, name) for name in ("format", "shard_size", "pattern", "digits")},
        "world": options.place[1],
        "suffixes": suffixes,
        "tokodec": __version__,
        "readers": reader_versions(),
    }


# --------------------------------------------------------------------------------------------------------- tokenizing


def _tokenized(
    listing: Iterable[Sample], readers: Readers, device: Device, writer: _Writer
) -> Iterator[tuple[Sample, Loaded, Tokens | str]]:
    """Samples with their tokens, or the reason why there are none, in their order."""
    pictures = device.model.tokenizer.modality == "image"
    call = functools.partial(load, pictures=pictures, max_pixels=device.options.max_pixels)
    crashed = Loaded(problem="the process that read it died: out of memory, or a fault of a decoder")
    behind: deque[Pending] = deque()
    with contextlib.closing(Rows()) as rows:
        samples = (rows.fill(sample) for window in _windows(listing, writer) for sample in window)
        results = readers.map(call, samples, crashed)
        while window := device.window(results, writer.tally):
            behind.extend(window)
            while len(behind) > WINDOW or (behind and behind[0].done):
                yield _next(behind, writer.tally)
    while behind:
        yield _next(behind, writer.tally)


def _next(behind: deque[Pending], tally: Tally) -> tuple[Sample, Loaded, Tokens | str]:
    with tally.waiting("device"):
        return behind.popleft().result()


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


# ------------------------------------------------------------------------------------------------------------ writing


class _Writer:
    """Shards of a rank, one after the other, written by a thread; samples that are there already are passed over."""

    def __init__(self, place: Place, options: CorpusOptions, model: Model, tally: Tally, errors: TextIO) -> None:
        self.place, self.options, self.model, self.tally, self.errors = place, options, model, tally, errors
        self.rank, self._most = options.place[0], options.most
        self._device = str(model.tokenizer.device)
        self._done: set[str] = set()
        for name in shards_of(place, self.rank):
            keys = [row["key"] for row in read_lines(place, name)]
            self._done.update(keys)
            tally.shards.append((name.removesuffix(ROWS), len(keys)))
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
            "device": self._device,
            "seconds": round(loaded.seconds, 6),
        }
        files[0].write((json.dumps(row) + "\n").encode())
        self._samples += 1
        self.tally.count(tokens.spec)
        size, samples = self._most
        if self._samples >= samples or sum(file.tell() for file in files[1:]) >= size:
            self._end()

    def _fail(self, sample: Sample, problem: str, damaged: bool) -> None:
        self.errors.write(json.dumps({"key": sample.key, "source": sample.source, "reason": problem}) + "\n")
        self.tally.failed += 1
        self.tally.damaged += damaged

    def _begin(self) -> tuple[ExitStack, list[BinaryIO], ShardWriter]:
        name = shard_name(self.rank, len(self.tally.shards))
        names = [name + suffix for suffix in (ROWS, *SHARD_SUFFIXES[self.options.format])]
        stack = ExitStack()
        files = stack.enter_context(self.place.outputs(names))
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
