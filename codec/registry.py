"""What there is, one row each: modalities, entropy models, formats, models by default. Standard library only.

Packages that are not ours add entropy models and formats with :func:`register_prior` and :func:`register_format`, or
with entry points of the groups ``tokodec.priors`` (objects: :class:`PriorKind`) and ``tokodec.formats`` (names:
"modality.rate"; objects: the class of a :class:`~.contract.Format`). Tokenizers: see :mod:`..tokenizers.registry`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from ..tokenizers.registry import add_entry_points, add_row
from .errors import UsageError

if TYPE_CHECKING:
    from ..tokenizers.api import Tokenizer


@dataclass(frozen=True)
class Modality:
    """A kind of signal.

    Attributes:
        wire_id: in headers of `.tok` files.
        noun: for messages.
        suffix: of what is decoded where nobody says it.
        encode_model, token_model: defaults of `codec encode` and `codec tokenize`.
        generator: default of `codec generate`, None if there is none.
    """

    wire_id: int
    noun: str
    suffix: str
    encode_model: str
    token_model: str
    generator: str | None = None


MODALITIES = {
    "image": Modality(1, "a picture", ".png", "image-photo-2", "image-grid", generator="generator-image"),
    "audio": Modality(2, "a sound", ".wav", "audio-24k", "audio-24k", generator="generator-audio"),
    "video": Modality(3, "a video", ".mp4", "video-grid", "video-grid"),
}
MODALITY_NAMES = {modality.wire_id: name for name, modality in MODALITIES.items()}


@dataclass(frozen=True)
class PriorKind:
    """A kind of entropy model.

    Attributes:
        wire_id: in headers of `.tok` files; 64 to 255 are for packages that are not ours.
        file: its file in a model's folder; "" if it has none.
        target: "module:class", relative to the package `tokodec` if it begins with a dot; "" if it has none.
    """

    wire_id: int
    file: str
    target: str


_PRIORS = {  # best first
    "hyperprior": PriorKind(3, "hyperprior.safetensors", ".entropy.hyperprior.prior:HyperPrior"),
    "context": PriorKind(2, "context.safetensors", ".entropy.context.prior:ContextPrior"),
    "tail": PriorKind(4, "tail.safetensors", ".entropy.tail:TailPrior"),
    "static": PriorKind(1, "prior.safetensors", ".entropy.static:StaticPrior"),
    "fit": PriorKind(5, "", ""),  # segments hold networks of their own
    "factorized": PriorKind(6, "", ""),  # tables that are part of a tokenizer
}
_ADDED: dict[str, PriorKind] = {}
OTHERS = range(64, 256)  # wire ids for packages that are not ours

# (modality, what sets the rate of its models) -> "module:class" of the Format, relative to this package.
_FORMATS = {
    ("image", "levels"): ".image.levels:LevelsFormat",
    ("image", "quality"): ".image.quality:QualityFormat",
    ("image", "tokens"): ".image.sequence:SequenceFormat",
    ("audio", "levels"): ".audio.format:AudioFormat",
    ("video", "levels"): ".video.format:VideoFormat",
    ("video", "quality"): ".video.motion.format:MotionFormat",
    ("video", "fit"): ".video.fit.format:FittedFormat",
}

FITTED = "video-fit"  # no model: what decodes a video is in its file, video/fit/
TUNES = {"psnr": "image-photo-2", "ms-ssim": "image-photo-ms-ssim"}  # of `codec encode`: what pictures are best at
GENERATOR = "Generator"  # class of the models of `codec generate`


def register_prior(name: str, kind: PriorKind) -> None:
    """Make an entropy model known. Raises ValueError if its name or its wire id is taken, or the id is one of ours."""
    if kind.wire_id not in OTHERS:
        raise ValueError(f"wire ids of entropy models that are not ours are {OTHERS[0]} to {OTHERS[-1]}")
    if name in _PRIORS or kind.wire_id in {known.wire_id for other, known in _ADDED.items() if other != name}:
        raise ValueError(f"there is another entropy model {name!r}, or one with the wire id {kind.wire_id}")
    add_row(_ADDED, name, kind, "entropy model")


def register_format(modality: str, rate: str, target: str) -> None:
    """Make a format known: "module:class" of a :class:`~.contract.Format`. Raises ValueError if there is another."""
    if modality not in MODALITIES:
        raise ValueError(f"unknown modality {modality!r}")
    if _FORMATS.setdefault((modality, rate), target) != target:
        raise ValueError(f"there is another format of {modality} models whose rate is set by {rate!r}")


@functools.cache
def _add_installed() -> None:
    add_entry_points("tokodec.priors", register_prior, PriorKind)
    for point in entry_points(group="tokodec.formats"):
        modality, _, rate = point.name.partition(".")
        register_format(modality, rate, point.value)


def prior_kinds() -> dict[str, PriorKind]:
    """All kinds of entropy models by name, those first that a model which has several is used with."""
    _add_installed()
    return {**_ADDED, **_PRIORS}


def format_target(modality: str, rate: str) -> str:
    """ "module:class" of a format. Raises KeyError if there is none."""
    _add_installed()
    return _FORMATS[modality, rate]


class _PriorNames(Mapping[int, str]):
    """Names of entropy models by wire id. Installed packages are asked only for an id that is not ours."""

    def __getitem__(self, wire_id: int) -> str:
        for kinds in (_PRIORS, prior_kinds() if wire_id in OTHERS else {}):
            for name, kind in kinds.items():
                if kind.wire_id == wire_id:
                    return name
        raise KeyError(wire_id)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(kind.wire_id for kind in prior_kinds().values()))

    def __len__(self) -> int:
        return len(prior_kinds())


PRIOR_NAMES: Mapping[int, str] = _PriorNames()


def default_generator(modality: str) -> str:
    """The default of `codec generate`. Raises UsageError for a modality that has none."""
    name = MODALITIES[modality].generator
    if name is None:
        raise UsageError(f"no generator of {modality} comes with tokodec: name one with --model")
    return name


def choose_model(model: str | Tokenizer | None, tune: str | None, kind: str = "image") -> str | Tokenizer:
    """The model for what a file holds. Raises UsageError for an unknown ``tune``, or one that makes no sense."""
    if tune is None:
        return model or MODALITIES[kind].encode_model
    if model is not None:
        raise UsageError("give a model or what it is tuned for, not both")
    if tune not in TUNES:
        raise UsageError(f"unknown tune {tune!r}: use {' or '.join(TUNES)}")
    if kind != "image":
        raise UsageError("models are tuned for pictures only")
    return TUNES[tune]
