"""Tokens that priors learn from: of stored files, or of media that are tokenized on the way."""

from __future__ import annotations

import argparse
import functools
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
import torch.distributed
from torch import Tensor

from ..codec.audio.encode import segment_frames as sound_frames
from ..codec.video.segments import segment_frames as clip_frames
from ..tokenizers.api import Tokenizer
from ..tokenizers.tokens import TokenSpec
from .data.audio import list_sounds, read_mono
from .data.images import list_images, read_rgb
from .data.reading import WORKERS, in_parallel
from .data.tokens import Codes, TokenStore, clip_views, picture_views, read_token_files, sound_views
from .data.video import list_clips, read_clip
from .state import FOLDER, RandomNumbers, States, Told, read_tree, restore, write_tree

FPS = Fraction(25)  # of clips, in choosing their segments
TOKENIZING = 0.5  # of --minutes, at most
MOST_LEVELS = 32  # of a tokenizer: a context prior has a network for each


@dataclass(frozen=True)
class Data:
    """Views of media."""

    views: int  # of each medium: changed, and on a shifted grid
    holdout_every: int
    loss: float  # share of examples that see a random part of the codes


class Ranks:
    """The processes that torchrun started, or this one alone. They speak through files in the output folder."""

    def __init__(self) -> None:
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if self.world > 1:
            torch.distributed.init_process_group("gloo")

    def share(self, folder: Path, name: str, own: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """All processes' arrays together, on every process."""
        if self.world == 1:
            return own
        (folder / f".{name}-{self.rank}.safetensors").write_bytes(safetensors.numpy.save(own))
        torch.distributed.barrier()
        paths = [folder / f".{name}-{rank}.safetensors" for rank in range(self.world)]
        merged = {key: value for path in paths for key, value in safetensors.numpy.load_file(path).items()}
        torch.distributed.barrier()
        paths[self.rank].unlink()
        return merged


class Keeper:
    """The state of a run whose processes share nothing but the tokens that they learn from, see :mod:`.state`.

    Attributes:
        states: of this process.  tokens: file of the tokens of media, so that these are tokenized once.
        told: whether the run is to end.  often: seconds from one state to the next.
    """

    def __init__(self, arguments: argparse.Namespace, recipe: dict[str, Any], ranks: Ranks) -> None:
        names = ("seed", "minutes", "steps", "data", "tokens", "test", "tokenizer", "resume", "only")
        identity = {f"--{name}": as_text(getattr(arguments, name)) for name in names}
        identity |= {"recipe": recipe, "number of processes": ranks.world}
        self.top = arguments.out / FOLDER
        self.states = States(self.top / str(ranks.rank), identity, restart=arguments.restart)
        self.told, self.often = Told(), 60 * arguments.save_minutes or math.inf
        self.tokens = Tokens(self.top / "tokens.safetensors", self.states, arguments.restart)
        self.own: dict[str, Any] = {"random": RandomNumbers()}

    def save(self, trainer: Any) -> None:
        """Write the state; ends the run if it was told to end."""
        self.states.save({"trainer": trainer}, self.own)
        if self.told.signal:
            print(f"told to end: the same command goes on from {self.top}", flush=True)
            raise SystemExit(128 + self.told.signal)

    def go_on(self, trainer: Any, stores: dict[str, TokenStore]) -> None:
        """Go on from the state that was found, if there is one. stores: whose random numbers belong to it."""
        self.own |= {name: store.generator for name, store in stores.items()}
        if self.states.found is not None:
            state = self.states.load()
            trainer.load_state_dict(state["common"]["trainer"])
            restore(self.own, state["own"])
            print(f"goes on from {self.states.folder} after step {trainer.steps}", flush=True)

    def clear(self) -> None:
        """Remove all states: the run came to its end."""
        shutil.rmtree(self.top, ignore_errors=True)


class Tokens:
    """The codes of media, kept as a part of the state of a run."""

    def __init__(self, path: Path, states: States, restart: bool) -> None:
        self.path, self.states, self.restart = path, states, restart

    def read(self) -> dict[str, npt.NDArray[Any]] | None:
        """Those of this run, None if there are none. Raises ValueError if they are those of another run."""
        if self.restart or not self.path.is_file():
            return None
        tree = read_tree(self.path)
        self.states.refuse_others(tree["identity"])
        return {name: codes.numpy() for name, codes in tree["codes"].items()}

    def write(self, codes: dict[str, npt.NDArray[Any]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_tree({"identity": self.states.identity, "codes": codes}, self.path)


def as_text(value: Any) -> Any:
    """Arguments as JSON has them: paths as texts."""
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True)
class Source:
    """How the media of one modality become codes.

    Attributes: views: of a tokenizer, a medium, a number of views and a generator to codes ``[K, *grid]`` each.
    """

    listed: Callable[[Iterable[str | Path]], Sequence[Any]]
    read: Callable[[Any, Tokenizer], Tensor]
    views: Callable[[Any, Tensor, int, torch.Generator], list[Codes]]


def mono(path: Any, tokenizer: Tokenizer) -> Tensor:
    """A sound at the rate of its tokenizer."""
    rate = tokenizer.spec(tokenizer.strides).sample_rate
    assert rate is not None
    return read_mono(path, round(rate))


def segments_of_sounds(tokenizer: Tokenizer, sound: Tensor, views: int, generator: torch.Generator) -> list[Codes]:
    """Segments as files have them."""
    segment = sound_frames(tokenizer.sample_rate or 0, tokenizer.strides[0])
    return sound_views(tokenizer, sound, views, generator, segment=segment)


def segments_of_clips(tokenizer: Tokenizer, clip: Tensor, views: int, generator: torch.Generator) -> list[Codes]:
    """Segments as files of 25 frames a second have them."""
    segment = clip_frames(tokenizer, FPS, *clip.shape[1:3])
    return clip_views(tokenizer, clip, views, generator, segment=segment)


SOURCES = {
    "image": Source(list_images, lambda path, _: read_rgb(path), picture_views),
    "audio": Source(list_sounds, mono, segments_of_sounds),
    "video": Source(list_clips, lambda path, _: read_clip(path), segments_of_clips),
}


def read_grids(
    arguments: argparse.Namespace, data: Data, device: torch.device, ranks: Ranks, tokens: Tokens
) -> tuple[dict[str, list[Codes]], TokenSpec, Tokenizer | None]:
    """Grids "train", "held-out" and maybe "test", what they are tokens of, and the tokenizer if it is known."""
    tokenizer = None if arguments.tokenizer == "none" else Tokenizer.from_pretrained(arguments.tokenizer).to(device)
    if arguments.tokens:
        return *stored_grids(arguments, data, tokenizer), tokenizer
    if tokenizer is None or tokenizer.modality not in SOURCES or len(tokenizer.codebook_sizes) > MOST_LEVELS:
        raise ValueError("pictures, sounds and videos want a tokenizer for them; for other tokens use --tokens")
    shared = tokens.read()
    if shared is None:
        codes: dict[str, npt.NDArray[Any]] = {}
        seconds = TOKENIZING * 60 * arguments.minutes if arguments.steps is None else math.inf
        share = functools.partial(tokenize, tokenizer, codes=codes, rank=ranks.rank, world=ranks.world)
        share(arguments.data, data, seed=arguments.seed, seconds=seconds)
        if arguments.test:
            share(arguments.test, Data(0, 0, 0.0), seed=arguments.seed, seconds=math.inf)
        shared = ranks.share(arguments.out, "tokens", codes)
        if ranks.rank == 0:
            tokens.write(shared)
    grids: dict[str, list[Codes]] = {}
    for name in sorted(shared):
        grids.setdefault(name.split(".")[0], []).append(shared[name].astype(np.int64))
    return grids, tokenizer.spec(tokenizer.strides), tokenizer


def stored_grids(
    arguments: argparse.Namespace, data: Data, tokenizer: Tokenizer | None
) -> tuple[dict[str, list[Codes]], TokenSpec]:
    """The grids of files of tokens, and what they are tokens of."""
    every = data.holdout_every
    named, spec = read_token_files(arguments.tokens)
    grids = {
        "train": [codes for i, (_, codes) in enumerate(named) if i % every],
        "held-out": [codes for i, (_, codes) in enumerate(named) if i % every == 0],
    }
    if not grids["train"]:
        raise ValueError("the tokens of one file are too few: every held-out file needs others to learn from")
    if arguments.test:
        tests, other = read_token_files(arguments.test)
        if (other.model, other.weights_hash) != (spec.model, spec.weights_hash):
            raise ValueError(f"the test tokens are of another model, {other.model} {other.weights_hash}")
        grids["test"] = [codes for _, codes in tests]
    if tokenizer is not None and (tokenizer.name, tokenizer.weights_hash) != (spec.model, spec.weights_hash):
        raise ValueError(f"the tokens are of {spec.model} {spec.weights_hash}; give its --tokenizer, or none")
    return grids, spec


def tokenize(
    tokenizer: Tokenizer, folders: Sequence[str], data: Data, codes: dict[str, npt.NDArray[Any]], rank: int, world: int,
    seed: int, seconds: float,
) -> None:  # fmt: skip
    """Put the codes of this process's share of some media into ``codes``, in random order until the time is over.

    Names begin with "train", "held-out", or, where ``data.holdout_every`` is 0, "test".
    """
    source, device = SOURCES[tokenizer.modality], tokenizer.device
    generator = torch.Generator().manual_seed(seed + rank)
    paths, begin = source.listed(folders), time.monotonic()
    mine = list(range(rank, len(paths), world))
    order = mine[:1] + [mine[1 + i] for i in torch.randperm(max(0, len(mine) - 1), generator=generator).tolist()]
    done = 0
    while done < len(order) and (done < 2 or time.monotonic() - begin < seconds):
        chunk = order[done : done + WORKERS]
        media = in_parallel(lambda i: source.read(paths[i], tokenizer), chunk)
        for i, medium in zip(chunk, media, strict=True):
            name = "test" if not data.holdout_every else "train" if i % data.holdout_every else "held-out"
            # What is learned from may be tokenized in bfloat16; what is measured with is as files have it.
            half = device.type == "cuda" and tokenizer.modality == "image" and name == "train"
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                for found in source.views(tokenizer, medium, data.views if name == "train" else 0, generator):
                    codes[f"{name}.{i:08d}.{len(codes):08d}"] = np.ascontiguousarray(found, dtype=np.int32)
        done += len(chunk)
    if done < len(order):
        print(f"note: {len(order) - done} of {len(order)} files are left out: tokenizing takes long", flush=True)
