"""Kinds of tokenizers by the class that `config.json` names, one row each. Standard library only.

A package that is not ours adds a row with :func:`register_tokenizer`, or with an entry point of the group
``tokodec.tokenizers`` whose name is the class and whose object is a :class:`TokenizerKind`::

    [project.entry-points."tokodec.tokenizers"]
    MyTokenizer = "my_package.kinds:MY_TOKENIZER"

Nothing else is ever imported because a file says so.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar

GROUP = "tokodec.tokenizers"


@dataclass(frozen=True)
class TokenizerKind:
    """Where a class of tokenizers is, and what must be known of it before it is imported.

    Attributes:
        module: that defines the class; with a leading dot inside this package.
        modality: "image", "audio" or "video".
        rate_control: what sets the rate, by which its format is chosen: "levels" (a number of them), "quality" or
            "tokens" (their number), or what a format of others is registered for.
        quantizer: of its models whose `config.json` names none, for lists; "" if it is not of a kind.
        foreign: a key of `config.json` and its value in folders of another library, which name no class of ours, such
            as ("model_type", "encodec"); ("", "") if there are none.
    """

    module: str
    modality: str
    rate_control: str = "levels"
    foreign: tuple[str, str] = ("", "")
    quantizer: str = ""


_KINDS = {
    "ImageGrid": TokenizerKind(".image.grid", "image", quantizer="rvq of simvq"),
    "ImagePhoto": TokenizerKind(".image.photo", "image", "quality"),
    "ImageHyperprior": TokenizerKind(".image.hyperprior", "image", "quality"),
    "ImageSequence": TokenizerKind(".image.sequence", "image", "tokens"),
    "AudioGRVQ": TokenizerKind(".audio.grvq", "audio", quantizer="grvq of simvq"),
    "VideoGrid": TokenizerKind(".video.grid", "video", quantizer="rvq of simvq"),
    "VideoMotion": TokenizerKind(".video.motion", "video", "quality"),
    "VQImage": TokenizerKind(".adapters.vq_pytorch", "image"),
    "VQAudio": TokenizerKind(".adapters.vq_pytorch", "audio"),
    "VQVideo": TokenizerKind(".adapters.vq_pytorch", "video"),
    "Encodec": TokenizerKind(".adapters.encodec", "audio", foreign=("model_type", "encodec")),
    "Dac": TokenizerKind(".adapters.dac", "audio", foreign=("model_type", "dac")),
    "Mimi": TokenizerKind(".adapters.mimi", "audio", foreign=("model_type", "mimi")),
    "FactorizedImage": TokenizerKind(".adapters.factorized", "image"),
    "VQGAN": TokenizerKind(".adapters.vqgan", "image", foreign=("_class_name", "VQModel")),
}

K = TypeVar("K")


def add_row(rows: dict[str, K], name: str, row: K, what: str) -> None:
    """Add a row to a registry. Raises ValueError if another one has its name."""
    if rows.setdefault(name, row) != row:
        raise ValueError(f"there is another {what} called {name!r}")


def add_entry_points(group: str, add: Callable[[str, K], None], kind: type[K]) -> None:
    """Add what installed packages offer in an entry-point group. Raises ValueError for what is no ``kind``."""
    for point in entry_points(group=group):
        row = point.load()
        if not isinstance(row, kind):
            raise ValueError(f"entry point {point.name} of {group} is not a {kind.__name__}: {point.value}")
        add(point.name, row)


def register_tokenizer(name: str, kind: TokenizerKind) -> None:
    """Make the class ``name`` known to ``config.json``. Raises ValueError if another class has that name."""
    add_row(_KINDS, name, kind, "tokenizer class")


@functools.cache
def _add_installed() -> None:
    add_entry_points(GROUP, register_tokenizer, TokenizerKind)


def tokenizer_kinds() -> dict[str, TokenizerKind]:
    """All kinds by the names of their classes: ours, registered ones, and those of installed packages."""
    _add_installed()
    return _KINDS


def foreign_class(config: dict[str, Any]) -> str | None:
    """The class of ours that reads a folder of another library, by its `config.json`; None if there is none."""
    for name, kind in tokenizer_kinds().items():
        key, value = kind.foreign
        if key and config.get(key) == value:
            return name
    return None


def load_class(name: str) -> type[Any]:
    """The class of a kind. Raises ValueError for an unknown one or if its module lacks it."""
    kind = tokenizer_kinds().get(name)
    if kind is None:
        raise ValueError(f"unknown tokenizer class {name!r}; known: {', '.join(_KINDS)}")
    found = getattr(importlib.import_module(kind.module, package=__package__), name, None)
    if found is None:
        raise ValueError(f"the module {kind.module} has no class {name}")
    loaded: type[Any] = found
    return loaded
