"""The whole state of a training run, so that the same command goes on where a run ended too early.

``OUT/state/NUMBER.RANK-of-PROCESSES.safetensors`` are a file for each process, tensors as safetensors and all else as
JSON in its metadata. What is the same in all processes (weights, optimizers, schedules, the time that has passed) is in
the file of the first one; the others hold random numbers and the place in the data. A state counts once the files of
all processes are there; then those before it go. ``save_state`` of accelerate pickles optimizers and random numbers,
and nothing here is ever unpickled.

Tensors are loaded into the memory where they are, so that what was recorded as a CUDA graph still sees them.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import singledispatch
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.distributed
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FOLDER = "state"
NAME = r"(\d+)\.(\d+)-of-(\d+)\.safetensors"  # of a file: number, rank and number of processes
TENSOR = "$tensor"  # in JSON, where a tensor belongs: its name
ABOUT = "state"  # name of the JSON in the metadata
SIGNALS = (signal.SIGTERM, signal.SIGINT)


# ---- a part of a run to a tree of dicts, lists, tensors and plain values, and back


@singledispatch
def state_of(part: Any) -> Any:
    """The state of a part of a run: what its ``state_dict`` gives, or the part itself if it is a plain value."""
    return part.state_dict() if hasattr(part, "state_dict") else part


@singledispatch
def restore(part: Any, state: Any) -> None:
    """Bring a part back to what :func:`state_of` gave. Raises KeyError and ValueError if it is another part's."""
    if hasattr(part, "load_state_dict"):
        part.load_state_dict(state)


@state_of.register
def _(part: dict) -> Any:
    return {name: state_of(own) for name, own in part.items()}


@restore.register
def _(part: dict, state: Any) -> None:
    for name, own in part.items():
        restore(own, state[name])


@state_of.register(list)
@state_of.register(tuple)
def _(part: Sequence[Any]) -> Any:
    return [state_of(own) for own in part]


@restore.register(list)
@restore.register(tuple)
def _(part: Sequence[Any], state: Any) -> None:
    for own, saved in zip(part, state, strict=True):
        restore(own, saved)


@restore.register
@torch.no_grad()
def _(part: Tensor, state: Tensor) -> None:
    if part.shape != state.shape:
        raise ValueError(f"a tensor of {list(state.shape)} is none of {list(part.shape)}")
    part.copy_(state)


@state_of.register
def _(part: nn.Module) -> Any:
    """Weights and all buffers, also those that are not saved with a model."""
    return {**dict(part.named_parameters()), **dict(part.named_buffers())}


@restore.register
def _(part: nn.Module, state: Any) -> None:
    own = state_of(part)
    if own.keys() != state.keys():
        raise ValueError(f"other weights: {min(own.keys() ^ state.keys())}")
    restore(own, state)


@state_of.register
def _(part: torch.optim.Optimizer) -> Any:
    groups = [{k: v for k, v in group.items() if k in ("lr", "base")} for group in part.param_groups]
    return {"groups": groups, "state": [dict(part.state.get(p, {})) for p in _parameters(part)]}


@restore.register
@torch.no_grad()
def _(part: torch.optim.Optimizer, state: Any) -> None:
    for group, saved in zip(part.param_groups, state["groups"], strict=True):
        for name, value in saved.items():
            if isinstance(group[name], Tensor):
                group[name].copy_(value)
            else:
                group[name] = value
    for p, saved in zip(_parameters(part), state["state"], strict=True):
        own = part.state[p]
        for name, value in saved.items():
            if name not in own:  # before the first step
                same = value.shape == p.shape
                own[name] = torch.empty_like(p if same else value, dtype=value.dtype, device=p.device)
            own[name].copy_(value)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


@state_of.register
def _(part: torch.Generator) -> Any:
    return part.get_state()


@restore.register
def _(part: torch.Generator, state: Any) -> None:
    part.set_state(state)


@state_of.register
def _(part: np.random.Generator) -> Any:
    return part.bit_generator.state


@restore.register
def _(part: np.random.Generator, state: Any) -> None:
    part.bit_generator.state = state


class Attributes:
    """Attributes of an object as a part: tensors are restored in place, arrays and plain values are replaced."""

    def __init__(self, of: Any, *names: str) -> None:
        self.of, self.names = of, names

    def state_dict(self) -> dict[str, Any]:
        return {name: state_of(getattr(self.of, name)) for name in self.names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.names:
            own = getattr(self.of, name)
            if isinstance(own, np.ndarray):
                setattr(self.of, name, state[name].numpy())
            elif isinstance(own, Tensor | nn.Module | torch.Generator | np.random.Generator):
                restore(own, state[name])
            else:
                setattr(self.of, name, state[name])


class RandomNumbers:
    """The generators of a process that everybody shares: Python's, NumPy's, and those of torch."""

    def state_dict(self) -> dict[str, Any]:
        _, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 (libraries use it)
        numpy = {"keys": np.asarray(keys).tolist(), "rest": [int(position), int(has_gauss), float(cached)]}
        cuda = {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}
        return {"python": random.getstate(), "numpy": numpy, "torch": torch.get_rng_state(), **cuda}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        np.random.set_state(  # noqa: NPY002
            ("MT19937", np.array(state["numpy"]["keys"], np.uint32), *state["numpy"]["rest"])
        )
        torch.set_rng_state(state["torch"])
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"])


# ---- a tree to a file


def _split(value: Any, tensors: dict[str, Tensor]) -> Any:
    """A tree as JSON takes it; its tensors go to ``tensors``."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()  # of its own memory, as the format wants it
        return {TENSOR: name}
    if isinstance(value, dict):
        return {name: _split(own, tensors) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [_split(own, tensors) for own in value]
    return value


def _joined(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {TENSOR}:
            return tensors[value[TENSOR]]
        return {name: _joined(own, tensors) for name, own in value.items()}
    return [_joined(own, tensors) for own in value] if isinstance(value, list) else value


def write_tree(tree: Any, path: Path) -> None:
    """Write a tree of dicts, lists, tensors and plain values; the file appears whole or not at all."""
    tensors: dict[str, Tensor] = {}
    about = json.dumps(_split(tree, tensors))
    beside = path.with_name(f".{path.name}.tmp")
    save_file(tensors, str(beside), metadata={ABOUT: about})
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    beside.replace(path)


def read_plain(path: Path) -> Any:
    """What :func:`write_tree` wrote, without its tensors."""
    with safe_open(str(path), "pt") as file:
        return json.loads(file.metadata()[ABOUT])


def read_tree(path: Path) -> Any:
    """What :func:`write_tree` wrote; tuples are lists now, arrays are tensors."""
    return _joined(read_plain(path), load_file(str(path)))


# ---- the states of a run


class States:
    """The states of a run in a folder of their own.

    Args:
        identity: what must be the same for a run to go on, by what it is called.
        rank, processes: of this run.  restart: do not go on from a state that is there.

    Attributes: found: plain values of the state to go on from: ``common`` and ``own``; None if there is none.

    Raises: ValueError if the state there is that of another run, or damaged.
    """

    def __init__(
        self, folder: Path, identity: dict[str, Any], rank: int = 0, processes: int = 1, restart: bool = False
    ) -> None:
        self.folder, self.rank, self.processes = folder, rank, processes
        self.identity = json.loads(json.dumps(identity))
        self.number = max((number for number, *_ in self._files().values()), default=0)
        self.found: dict[str, Any] | None = None
        complete = {} if restart else self._complete()
        if not complete:
            return
        self.read_from = complete
        try:
            self.found = self._read(read_plain)
        except Exception as error:  # whatever a damaged file leads to
            raise ValueError(f"{self.folder} is damaged: --restart starts anew ({error})") from error
        self.refuse_others(self.found["common"]["identity"])

    def refuse_others(self, identity: dict[str, Any]) -> None:
        """Raise ValueError if a state is of another run."""
        if others := [name for name, value in self.identity.items() if identity.get(name) != value]:
            raise self.of_another(f"another {' and another '.join(others)}")

    def of_another(self, what: str) -> ValueError:
        """The error about a state that is of a run with something else."""
        return ValueError(
            f"{self.folder} is the state of a run with {what}: give another --out, or --restart to start anew"
        )

    def _files(self) -> dict[Path, tuple[int, int, int]]:
        """Number, rank and number of processes of every file."""
        names = {path: re.fullmatch(NAME, path.name) for path in self.folder.glob("*.safetensors")}
        return {path: (int(m[1]), int(m[2]), int(m[3])) for path, m in names.items() if m}

    def _complete(self) -> dict[str, Path]:
        """The files of the last complete state: that of the first process, and that of this one."""
        places = {place: path for path, place in self._files().items()}
        for number, rank, n in sorted(places, reverse=True):
            if rank == 0 and all((number, other, n) in places for other in range(n)):
                return {"common": places[number, 0, n], "own": places[number, min(self.rank, n - 1), n]}
        return {}

    def _read(self, read: Callable[[Path], Any]) -> dict[str, Any]:
        return {name: read(path)[name] for name, path in self.read_from.items()}

    def load(self) -> dict[str, Any]:
        """The state to go on from, with its tensors; from here on it is no longer :attr:`found`."""
        self.found = None
        return self._read(read_tree)

    def save(self, common: dict[str, Any], own: dict[str, Any]) -> None:
        """Write a state, all processes together, and then remove those before it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.number += 1
        tree = {"own": state_of(own)}
        if not self.rank:
            tree["common"] = {"identity": self.identity, **state_of(common)}
        write_tree(tree, self.folder / f"{self.number:06d}.{self.rank}-of-{self.processes}.safetensors")
        if self.processes > 1:
            torch.distributed.barrier()
        if not self.rank:
            for path, (number, *_) in self._files().items():
                if number != self.number:
                    path.unlink()

    def clear(self) -> None:
        """Remove all states: the run came to its end."""
        if not self.rank:
            shutil.rmtree(self.folder, ignore_errors=True)


class Told:
    """SIGTERM and SIGINT, noted so that a run can write its state first; a second one ends it at once.

    Attributes: signal: number of the one that came, or 0.
    """

    def __init__(self) -> None:
        self.signal = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}

        def note(number: int, _: FrameType | None) -> None:
            self.signal = number
            for own, handler in before.items():
                signal.signal(own, handler)

        try:
            for number in SIGNALS:
                signal.signal(number, note)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
