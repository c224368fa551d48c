"""Media and token files in folders as a dataset of codes, for generators that are trained with PyTorch.

::

    folders -> files, in the same order everywhere -> tokens (made once, if there is a cache) -> levels, window -> codes
    codes of several files -> torch.utils.data.DataLoader stacks them, or SequenceCollate makes a batch of sequences
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, get_worker_info

from ..tokenizers.api import Tokenizer
from ..tokenizers.folders import as_text
from ..tokenizers.image.photo import DEFAULT_QUALITY
from ..tokenizers.sequence import Pattern, SequenceBatch, Sequencer, pad_sequences
from ..tokenizers.tokens import Tokens, TokenSpec
from .contract import Tokenless
from .corpus.manifest import MANIFEST, Corpus
from .corpus.megatron import sequencer_maker
from .corpus.places import place_of
from .corpus.remote import is_url
from .corpus.token_files import TOKEN_SUFFIXES, dump_tokens, load_tokens
from .errors import MediaError, TokodecError, UsageError, WeightsMismatchError
from .files import atomic_output, make_folder
from .formats import format_of
from .media.kind import MODALITY_SUFFIXES
from .models import load_model, pick_device
from .options import CorpusOptions
from .tokens import tokenize_file

__all__ = ["SequenceCollate", "ShardSampler", "TokenDataset"]

CACHE_SUFFIX = ".tokens"  # a .npz file, not called so: a dataset over a folder around the cache must not find it
CACHE_VERSION = 1  # another one where the same file would give other codes with the same weights


class TokenDataset(Dataset[Tensor]):
    """Codes of the files in folders: ``dataset[i]`` is ``[K, *grid]`` int64, ``dataset.tokens(i)`` says what they mean.

    Files are pictures, sounds or videos, whichever the model is for, `.tok` files and token files (`.npz`,
    `.safetensors`) of the model; all others are ignored. An item is a file. A folder or URL of shards that `codec
    tokenize` wrote, in any format, stands for its samples, which come after all files; see :class:`ShardSampler`. Of a
    sound in stereo an item is the middle, (left + right) / 2. Folders come in the order given, the files below each by
    their path in it. Works with any number of workers, which use the CPU unless ``device`` says otherwise: make the
    tokens first with :meth:`fill_cache` where there is a GPU.

    Args:
        folders: one or several; files as well.
        model: release name, path of a folder, or `hf:USER/MODEL`, see :mod:`..tokenizers.folders`; or a tokenizer.
        levels: keep so many, coarse to fine; None: all that a file has.
        crop: a window of this size: seconds, rounded to whole frames, or pixels (height and width, or one number for
            both), of videos frames before them, as many as whole cells have. A window is cut out of the codes of the
            whole signal, at a whole cell; of videos from their first frame on, without which others mean nothing.
        generator: None: the window is the middle; else it is anywhere. Each worker goes on from it in its own way, in
            every epoch anew.
        quality: 0 to 100, for models whose rate it sets.
        cache: folder in which tokens are kept (made if missing; it can be deleted at any time). Whatever its levels and
            windows, a file is tokenized once for a model: until its path, size or time of change is another.
        device: "auto" (a GPU if there is one, but not in workers), "cpu" or "cuda".

    Raises: UsageError if no file is found or an argument makes no sense, ModelError if there is no such model. Reading
            an item raises a :class:`~.errors.TokodecError` that names the file if it is unreadable, damaged, another
            model's, of other levels than asked for, or smaller than the crop.
    """

    def __init__(
        self,
        folders: str | Path | Sequence[str | Path],
        model: str | Path | Tokenizer = "image-grid",
        levels: int | None = None,
        crop: float | tuple[int, ...] | None = None,
        cache: str | Path | None = None,
        device: str = "auto",
        *,
        generator: torch.Generator | None = None,
        quality: float | None = None,
    ) -> None:
        self.model = model if isinstance(model, Tokenizer) else as_text(model)
        tokenizer = load_model(self.model, pick_device(_device(device))).tokenizer
        self.device = device
        self.quality = quality
        self.generator = generator
        if quality is not None and tokenizer.rate_control != "quality":
            raise UsageError(f"quality does not set the rate of {tokenizer.name}: use {tokenizer.rate_control}")
        self._spec = _smallest_spec(tokenizer, quality)
        if levels is not None and not 1 <= levels <= len(self._spec.codebook_sizes):
            raise UsageError(f"levels of {tokenizer.name} are 1 to {len(self._spec.codebook_sizes)}, got {levels}")
        self.levels = levels
        self.window = None if crop is None else _window(crop, self._spec)  # in cells
        if generator is not None and crop is None:
            raise UsageError("a generator chooses windows: give the size of the crop as well")
        self.cache = None if cache is None else Path(cache)
        given = [folders] if isinstance(folders, (str, Path)) else folders
        wanted = (*MODALITY_SUFFIXES[self._spec.modality], ".tok", *TOKEN_SUFFIXES)
        shards = [folder for folder in given if is_url(folder) or place_of(folder).has(MANIFEST)]
        self.corpora = [self._corpus(folder) for folder in shards]
        self.files = [path for folder in given if folder not in shards for path in _files(Path(folder), wanted)]
        self.left_out: dict[Path, str] = {}
        if not len(self):
            raise UsageError(f"no files for {tokenizer.name} in {', '.join(map(str, given)) or 'no folder'}")
        self._own: tuple[int, torch.Generator] | None = None

    def __len__(self) -> int:
        return len(self.files) + sum(map(len, self.corpora))

    def __getitem__(self, i: int) -> Tensor:
        return self.tokens(i).codes[0]

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """N of every codebook, coarse to fine."""
        return self._spec.codebook_sizes

    def tokens(self, i: int) -> Tokens:
        """Item i with the spec that says what its codes mean, a batch of one."""
        i = range(len(self))[i]
        path: str | Path
        if i < len(self.files):
            path = self.files[i]
            tokens = _one_signal(self._whole(path), path)
        else:
            path, tokens = self._sample(i - len(self.files))
        if self.levels is not None:
            if tokens.n_levels < self.levels:
                raise UsageError(f"{path}: holds {tokens.n_levels} of {self.levels} levels")
            tokens = tokens.levels(self.levels)
        return tokens if self.window is None else self._cut(tokens, self.window, path)

    @property
    def parts(self) -> list[range]:
        """Numbers of items that lie together: all files, and each shard."""
        lengths = [len(self.files), *(n for corpus in self.corpora for _, n in corpus.shards)]
        return [range(end - n, end) for n, end in zip(lengths, accumulate(lengths), strict=True) if n]

    def spec(self, grid: Sequence[int]) -> TokenSpec:
        """What codes ``[B, K, *grid]`` of this model mean, whoever made them: so that a generator's can be decoded."""
        return dataclasses.replace(self._spec, size=self._spec.span(grid))

    def sequencer(self, pattern: Pattern = "levels", digits: bool = False) -> Sequencer:
        """What makes sequences of the items. digits: large codes as two or three ids, see :mod:`.corpus`."""
        return sequencer_maker(pattern, digits, self.model, _device(self.device))(self._spec)

    def fill_cache(self, progress: Callable[[float], None] | None = None, *, leave_out: bool = False) -> int:
        """Tokenize what the cache lacks, in this process; returns the number of files that were tokenized.

        Args:    progress: called with the share that is done.
                 leave_out: files of which no item can be made go from ``files`` to ``left_out``, with the reason.
        Raises:  UsageError without a cache, else what reading an item raises.
        """
        if self.cache is None:
            raise UsageError("there is no cache to fill: name a folder for it")
        made = 0
        for i, path in enumerate(self.files):
            try:
                if path.suffix.lower() not in TOKEN_SUFFIXES and self._cached(self._cache_file(path)) is None:
                    self._whole(path)
                    made += 1
                if leave_out:
                    self.tokens(i)
            except TokodecError as error:
                if not leave_out:
                    raise
                self.left_out[path] = str(error)
            if progress is not None:
                progress((i + 1) / len(self.files))
        self.files = [path for path in self.files if path not in self.left_out]
        return made

    # ---------------------------------------------------------------- from file to tokens

    def _corpus(self, folder: str | Path) -> Corpus:
        corpus = Corpus(folder)
        made = corpus.fingerprint["model"], corpus.fingerprint["weights_hash"]
        if made != (self._spec.model, self._spec.weights_hash):
            own = f"{self._spec.model} {self._spec.weights_hash}"
            raise WeightsMismatchError(f"{folder}: tokens of {made[0]} {made[1]}, not of {own}")
        if corpus.fingerprint["format"] == "tok":
            corpus.model = load_model(self.model)
        return corpus

    def _sample(self, i: int) -> tuple[str, Tokens]:
        """Sample i of all corpora, and what messages call it."""
        for corpus in self.corpora:
            if i < len(corpus):
                break
            i -= len(corpus)
        key, tokens = corpus.sample(i)
        path = f"{corpus.place.name}/{key}"
        return path, _one_signal(self._check(tokens, path), path)

    def _whole(self, path: Path) -> Tokens:
        """All tokens of a file, from the cache if it has them."""
        if path.suffix.lower() in TOKEN_SUFFIXES:
            return self._check(load_tokens(path), path)
        kept = None if self.cache is None else self._cache_file(path)
        if kept is not None and (found := self._cached(kept)) is not None:
            return found
        quality = None if path.suffix.lower() == ".tok" else self.quality
        done = tokenize_file(path, model=self.model, quality=quality, device=_device(self.device))
        if done.problems:
            raise MediaError(f"{path}: {done.problems[0]}")
        tokens = self._check(done.tokens, path)
        if kept is not None:
            make_folder(kept.parent)
            with atomic_output(kept, force=True) as file:
                file.write(dump_tokens(tokens, ".npz"))
        return tokens

    def _check(self, tokens: Tokens, path: str | Path) -> Tokens:
        spec, own = tokens.spec, self._spec
        if (spec.model, spec.weights_hash) != (own.model, own.weights_hash):
            raise WeightsMismatchError(
                f"{path}: tokens of {spec.model} {spec.weights_hash}, not of {own.model} {own.weights_hash}"
            )
        if (spec.codebook_sizes, spec.strides) != (own.codebook_sizes, own.strides):
            raise MediaError(f"{path}: the tokens do not say what {own.model} makes: {spec}")
        return tokens

    def _cache_file(self, path: Path) -> Path:
        assert self.cache is not None
        try:
            found = path.stat()
        except OSError as error:
            raise MediaError(f"cannot read {path}: {error.strerror}") from error
        spec = self._spec
        state = [str(path.resolve()), found.st_size, found.st_mtime_ns, spec.model, spec.weights_hash, self.quality]
        key = hashlib.sha256(json.dumps([CACHE_VERSION, *state]).encode()).hexdigest()
        return self.cache / key[:2] / f"{key[2:32]}{CACHE_SUFFIX}"

    def _cached(self, kept: Path) -> Tokens | None:
        """Tokens that were kept; None if there are none, or they cannot be read: they are made anew then."""
        try:
            return self._check(load_tokens(kept), kept) if kept.is_file() else None
        except TokodecError:
            return None

    # ---------------------------------------------------------------- windows

    def _cut(self, tokens: Tokens, window: tuple[int, ...], path: str | Path) -> Tokens:
        spec, size = tokens.spec, self.spec(window).size
        codes = tokens.codes
        for axis, (cells, n, wanted) in enumerate(zip(window, spec.size, size, strict=True)):
            if n < wanted:
                has, wants = (" x ".join(map(str, s)) for s in (spec.size, size))
                unit = "samples" if spec.modality == "audio" else "pixels"
                raise UsageError(f"{path}: {has} {unit}, less than the crop of {wants}")
            room = (n - wanted) // spec.strides[axis]  # cells that are not all signal stay outside
            of_frames = spec.modality == "video" and axis == 0
            codes = codes.narrow(2 + axis, 0 if of_frames else self._offset(room), cells)
        return Tokens(codes.contiguous(), dataclasses.replace(spec, size=self.spec(window).size))

    def _offset(self, room: int) -> int:
        if self.generator is None:
            return room // 2
        worker = get_worker_info()
        if worker is None:
            own = self.generator
        else:  # all workers start with the same state, but each has a seed of its own in every epoch
            if self._own is None or self._own[0] != worker.seed:
                seed = (self.generator.initial_seed() + worker.seed) % (1 << 63)
                self._own = worker.seed, torch.Generator().manual_seed(seed)
            own = self._own[1]
        return int(torch.randint(room + 1, (), generator=own))


class ShardSampler(Sampler[int]):
    """Items of a :class:`TokenDataset` for one rank, in a new order in each epoch, that goes on where it was stopped.

    Shards come in random order, and so do the items of each, so few shards are open at a time. Each rank has a stretch
    of this order, all of one length: at most ``world - 1`` items are left out of an epoch. Workers of a DataLoader
    share what the sampler of their process gives.

    Args: rank, world: as in :class:`~.options.CorpusOptions`.  seed: of all ranks.  shuffle: else in their order.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        *,
        rank: int | None = None,
        world: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        self.parts, self.seed, self.shuffle = dataset.parts, seed, shuffle
        self.rank, world = CorpusOptions(rank=rank, world=world).place
        self.length = len(dataset) // world
        self.epoch = self.taken = 0

    def __len__(self) -> int:
        """Items of this rank in a whole epoch."""
        return self.length

    def __iter__(self) -> Iterator[int]:
        begin, end = self.rank * self.length + self.taken, (self.rank + 1) * self.length
        at = 0
        for number in self._order(len(self.parts), -1):
            part = self.parts[number]
            if at < end and at + len(part) > begin:
                for i in self._order(len(part), number)[max(0, begin - at) : end - at]:
                    self.taken += 1
                    yield part[i]
            at += len(part)
        self.epoch, self.taken = self.epoch + 1, 0

    def _order(self, n: int, part: int) -> list[int]:
        if not self.shuffle:
            return list(range(n))
        seed = hashlib.sha256(json.dumps([self.seed, self.epoch, part]).encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(seed, "big") >> 1)
        return torch.randperm(n, generator=generator).tolist()

    def state_dict(self, taken: int | None = None) -> dict[str, int]:
        """Where the epoch stands. taken: items that were used; by default those that were given out, of which a
        DataLoader with workers holds some back."""
        return {"epoch": self.epoch, "taken": self.taken if taken is None else taken}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next epoch begins there."""
        self.epoch, self.taken = state["epoch"], state["taken"]


class SequenceCollate:
    """``collate_fn`` of a DataLoader: codes ``[K, *grid]`` of any grids to sequences, padded to the longest.

    The batch has ids, a mask and labels for causal language models, see :class:`~..tokenizers.sequence.SequenceBatch`.
    """

    def __init__(self, sequencer: Sequencer) -> None:
        self.sequencer = sequencer

    def __call__(self, items: Sequence[Tensor]) -> SequenceBatch:
        sizes = self.sequencer.codebook_sizes
        sequences = []
        for codes in items:
            grid = tuple(codes.shape[1:])
            spec = TokenSpec(
                "", "", "", sizes, strides=(1,) * len(grid), size=grid, channels=""
            )  # sequences ask for sizes and grid alone
            sequences.append(self.sequencer.flatten(Tokens(codes[None], spec))[0])
        return pad_sequences(sequences)


def _device(device: str) -> str:
    """ "auto" in a worker is the CPU: a forked process cannot use the GPU of its parent."""
    return "cpu" if device == "auto" and get_worker_info() is not None else device


def _files(folder: Path, wanted: tuple[str, ...]) -> list[Path]:
    """Files below a folder with a wanted suffix, in an order that is the same on every machine; a file is itself."""
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}")
    found = [p for p in folder.rglob("*") if p.suffix.lower() in wanted and p.name[0] != "." and p.is_file()]
    return sorted(found, key=lambda p: p.relative_to(folder).parts)


def _smallest_spec(tokenizer: Tokenizer, quality: float | None) -> TokenSpec:
    """The spec of a signal of one cell."""
    wing = format_of(tokenizer)
    if isinstance(wing, Tokenless):
        raise UsageError(f"{tokenizer.name}: {wing.reason}")
    about = {"quality": DEFAULT_QUALITY if quality is None else quality} if "quality" in tokenizer.varies else {}
    return tokenizer.spec(tokenizer.strides, **about)


def _window(crop: float | tuple[int, ...], spec: TokenSpec) -> tuple[int, ...]:
    """A crop in cells. Raises UsageError."""
    if spec.modality == "audio":
        if isinstance(crop, (tuple, list)) or not math.isfinite(crop) or crop <= 0:
            raise UsageError(f"a crop of {spec.model} is in seconds, got {crop}")
        return (max(1, round(crop * (spec.sample_rate or 0) / spec.strides[0])),)
    sides = tuple(crop) if isinstance(crop, (tuple, list)) else (crop,) * len(spec.strides)
    if len(sides) == len(spec.strides) and all(n >= 1 and n % 1 == 0 for n in sides):
        grid = dataclasses.replace(spec, size=tuple(map(int, sides))).grid
        if spec.span(grid) == sides:
            return grid
    what = f"a multiple of {spec.strides[-1]} pixels"
    if spec.modality == "video":
        what = f"{spec.span((1, 1, 1))[0]} + n times {spec.strides[0]} frames, and {what} twice"
    raise UsageError(f"a crop of {spec.model} is {what}, got {crop}")


def _one_signal(tokens: Tokens, path: str | Path) -> Tokens:
    """The one signal of a file, or the middle of a sound in stereo. Raises UsageError for others."""
    if len(tokens.codes) == 1:
        return tokens
    if tokens.spec.channels == "mid-side":
        return Tokens(tokens.codes[:1], dataclasses.replace(tokens.spec, channels="mono"))
    raise UsageError(f"{path}: holds {len(tokens.codes)} signals, an item of a dataset is one")
