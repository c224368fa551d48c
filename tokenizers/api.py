"""The two contracts: :class:`Tokens`, integer codes that know what they are, and :class:`Tokenizer`."""

from __future__ import annotations

import abc
import dataclasses
import importlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from . import variants, weights
from .quantize.base import ABSENT

ASSETS = Path(__file__).resolve().parent.parent / "assets"
CONFIG_FILE = "config.json"

# config.json names a class of this table; nothing else is ever imported because a file says so.
TOKENIZER_CLASSES = {
    "ImageGrid": "image.grid",
    "ImagePhoto": "image.photo",
    "ImageSequence": "image.sequence",
    "AudioGRVQ": "audio.grvq",
    "VideoGrid": "video.grid",
}


@dataclass(frozen=True)
class TokenSpec:
    """What the integers of a :class:`Tokens` mean.

    Attributes:
        model: name of the tokenizer, e.g. "image-grid".
        weights_hash: first 8 bytes of the SHA-256 of its unpacked weights file, as 16 hex digits; "" if never saved.
        modality: "image", "audio" or "video".
        codebook_sizes: N_k of every codebook, coarse to fine, in the order of ``codes``.
        strides: signal samples a grid cell spans, one number per grid axis.
        size: length of the original signal along the grid axes, e.g. (H, W); the last cells may be padding.
        channels: meaning of the signal's channels, e.g. "rgb".
        sample_rate: samples (audio) or frames (video) per second; None for pictures.
        quality: 0 to 100, what the signal was encoded with, for models whose rate dial it is; else None.
        first: what the first cell of the first axis spans if that is not its stride: 1 where the first frame of a video
            stands alone; else None.
    """

    model: str
    weights_hash: str
    modality: str
    codebook_sizes: tuple[int, ...]
    strides: tuple[int, ...]
    size: tuple[int, ...]
    channels: str
    sample_rate: float | None = None
    quality: float | None = None
    first: int | None = None

    @property
    def grid(self) -> tuple[int, ...]:
        """Cells along every axis: ``ceil(size / stride)``; with ``first``, ``1 + ceil((size - first) / stride)``."""
        return tuple(-(-(n + m) // s) for n, m, s in zip(self.size, self._missing, self.strides, strict=True))

    def span(self, grid: Sequence[int]) -> tuple[int, ...]:
        """Size of a signal that fills so many cells along every axis: the inverse of :attr:`grid`."""
        return tuple(n * s - m for n, m, s in zip(grid, self._missing, self.strides, strict=True))

    @property
    def _missing(self) -> tuple[int, ...]:
        """What the first cell of each axis lacks of a stride."""
        first = self.strides[0] if self.first is None else self.first
        return (self.strides[0] - first, *[0] * (len(self.strides) - 1))


@dataclass(frozen=True)
class Tokens:
    """Codes of a batch of signals of one size.

    Attributes:
        codes: ``[B, K, *grid]`` int64, coarse to fine; ``ABSENT`` (-1) marks a code that was dropped or lost.
        spec: what they mean; ``K`` may be smaller than ``len(spec.codebook_sizes)``, a prefix of the levels.

    Raises: ValueError if the codes do not fit the spec.
    """

    codes: Tensor
    spec: TokenSpec

    def __post_init__(self) -> None:
        codes, spec = self.codes, self.spec
        if codes.dtype != torch.int64:
            raise ValueError(f"codes must be int64, got {codes.dtype}")
        if codes.ndim != 2 + len(spec.strides) or tuple(codes.shape[2:]) != spec.grid:
            raise ValueError(f"codes of shape {tuple(codes.shape)} do not fit a grid of {spec.grid}")
        if not 1 <= codes.shape[1] <= len(spec.codebook_sizes):
            raise ValueError(f"{codes.shape[1]} levels of codes, the spec has {len(spec.codebook_sizes)}")
        for k in range(codes.shape[1]):
            level = codes[:, k]
            if level.numel() and not ABSENT <= int(level.min()) <= int(level.max()) < spec.codebook_sizes[k]:
                raise ValueError(f"level {k + 1} holds a code outside [0, {spec.codebook_sizes[k]})")

    @property
    def n_levels(self) -> int:
        return self.codes.shape[1]

    def levels(self, n: int) -> Tokens:
        """The first ``n`` levels, a coarser version of the same signal."""
        if not 1 <= n <= self.n_levels:
            raise ValueError(f"levels must be 1 to {self.n_levels}, got {n}")
        return Tokens(self.codes[:, :n], self.spec)

    def to(self, device: torch.device | str) -> Tokens:
        return Tokens(self.codes.to(device), self.spec)


T = TypeVar("T", bound="Tokenizer")


class Tokenizer(nn.Module, abc.ABC):
    """A signal becomes :class:`Tokens` and comes back.

    Subclasses take one frozen dataclass as configuration, name it in ``config_class``, and list in ``int8_weights`` the
    prefixes of parameters that are released as int8 per output channel (the rest is released as float16), in
    ``int8_largest`` the largest of these integers, and in ``half_weights`` prefixes among them that stay float16.
    ``int8_codebooks``: the largest integer of a codeword, which has a step of its own; 0: float16.
    """

    config_class: ClassVar[type[Any]]
    int8_weights: ClassVar[tuple[str, ...]] = ()
    int8_largest: ClassVar[int] = 127
    half_weights: tuple[str, ...] = ()
    int8_codebooks: ClassVar[int] = 0
    modality: ClassVar[str]
    dial: ClassVar[str] = "levels"  # the rate dial of encode(): "levels" or "quality"

    name: str
    weights_hash: str

    def __init__(self, config: Any, name: str) -> None:
        super().__init__()
        if type(config) is not self.config_class:
            raise ValueError(f"{type(self).__name__} wants a {self.config_class.__name__}, got {type(config).__name__}")
        self.config: Any = config
        self.name = name
        self.weights_hash = ""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    @abc.abstractmethod
    def codebook_sizes(self) -> tuple[int, ...]:
        """N of every codebook, coarse to fine."""

    @abc.abstractmethod
    def encode(self, x: Tensor) -> Tokens:
        """Signal to tokens."""

    @abc.abstractmethod
    def decode(self, tokens: Tokens) -> Tensor:
        """Tokens to signal."""

    def check_tokens(self, tokens: Tokens) -> None:
        """Raise ValueError unless ``tokens`` come from this model with these weights."""
        spec = tokens.spec
        if (spec.model, spec.weights_hash) != (self.name, self.weights_hash):
            raise ValueError(
                f"tokens of {spec.model} {spec.weights_hash or '(unsaved)'}"
                f" given to {self.name} {self.weights_hash or '(unsaved)'}"
            )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``folder`` (made if missing).

        Weights are rounded on the way (int8 or float16, see ``int8_weights``): load them back to use what was released.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.save_parts(folder)
        weights.save(
            self.state_dict(), folder / weights.WEIGHTS_FILE, self.int8_weights, self.int8_largest, self.half_weights,
            self.int8_codebooks,
        )  # fmt: skip
        (folder / CONFIG_FILE).write_text(config_text(self))
        self.weights_hash = weights.file_hash(folder / weights.WEIGHTS_FILE)

    def save_parts(self, folder: Path) -> None:
        """Write what a model has beside its weights; called before the weights are written."""

    def load_parts(self, folder: Path) -> None:
        """Load what :meth:`save_parts` wrote. Raises ValueError if it is missing, damaged or another model's."""

    @classmethod
    def from_pretrained(cls: type[T], name: str | Path) -> T:
        """Load a model by the name of a release, a folder, or a Hugging Face hub id ("user/model"); variants as well.

        Raises:
            FileNotFoundError: nothing of that name; the message lists the released models.
            ValueError: the folder is damaged, or holds another class than ``cls``.
        """
        folder = find_model(name)
        found = read_config(folder)
        module = importlib.import_module("." + TOKENIZER_CLASSES[found["class"]], package=__package__)
        model_class = getattr(module, found["class"])
        if not issubclass(model_class, cls):
            raise ValueError(f"{folder} holds a {found['class']}, not a {cls.__name__}")
        config_class = model_class.config_class
        known = {field.name for field in dataclasses.fields(config_class)}
        unknown = set(found["config"]) - known
        if unknown:
            raise ValueError(f"{folder / CONFIG_FILE} has unknown settings: {', '.join(sorted(unknown))}")
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in found["config"].items()}
        try:
            model = model_class(config_class(**settings), found["name"])  # "meta" tensors would cost an import of 0.8 s
        except (TypeError, RuntimeError) as error:  # a setting of the wrong type or sign
            raise ValueError(f"{folder / CONFIG_FILE}: {str(error).splitlines()[0]}") from error
        (state, weights_hash), parts = weights.load_hashed(folder / weights.WEIGHTS_FILE), folder
        if "base" in found:
            parts = variants.find_base(folder, found["base"])
            base, base_hash = weights.load_hashed(parts / weights.WEIGHTS_FILE)
            variants.check_base(state, base_hash, folder)
            state = variants.merge(base, state)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise ValueError(f"{folder / weights.WEIGHTS_FILE} does not fit its config.json: {first}") from error
        model.weights_hash = weights_hash
        model.load_parts(parts)
        return model.eval()


def released_models(classes: Collection[str] = tuple(TOKENIZER_CLASSES)) -> list[str]:
    """Names of the models of these classes that come with the package; tokenizers, where nothing else is said."""
    folders = [p.parent for p in ASSETS.glob(f"*/{CONFIG_FILE}")]
    return sorted(folder.name for folder in folders if class_of(folder) in classes)


def class_of(folder: Path) -> str:
    """The class that the ``config.json`` of a released model names."""
    return str(json.loads((folder / CONFIG_FILE).read_text())["class"])


def find_model(name: str | Path, classes: Collection[str] = tuple(TOKENIZER_CLASSES)) -> Path:
    """Folder of a model given by folder, release name or hub id. Raises FileNotFoundError.

    Args:   classes: only releases of these count; what a folder holds, its reader will tell.
    """
    path = Path(name)
    if (path / CONFIG_FILE).is_file():
        return path
    released = released_models(classes)
    if str(name) in released:
        return ASSETS / str(name)
    if str(name).count("/") == 1 and not path.exists():
        try:
            from huggingface_hub import snapshot_download
        except ImportError:
            hint = "; to load it from the Hugging Face hub, pip install 'tokodec[hub]'"
        else:
            # No pickles, no code: only what a model folder may hold.
            return Path(snapshot_download(str(name), allow_patterns=["*.json", "*.safetensors", "README.md"]))
    else:
        hint = ""
    known = f" or one of {', '.join(released)}" if released else ""
    raise FileNotFoundError(f"no model {str(name)!r}: give a folder with a {CONFIG_FILE}{known}{hint}")


def config_text(model: Tokenizer, base: str | None = None) -> str:
    """``config.json`` of a model. base: name of its base if it is a variant, see :mod:`.variants`."""
    entry: dict[str, Any] = {"class": type(model).__name__, "name": model.name}
    if base is not None:
        entry["base"] = base
    return json.dumps({**entry, "config": dataclasses.asdict(model.config)}, indent=2) + "\n"


def read_config(folder: Path, classes: Collection[str] = tuple(TOKENIZER_CLASSES)) -> dict[str, Any]:
    """Parsed ``config.json`` of a model of one of these classes, its shape checked. Raises ValueError."""
    path = folder / CONFIG_FILE
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    keys = {"class", "name", "config"}
    if not isinstance(found, dict) or set(found) - {"base"} != keys or not isinstance(found["config"], dict):
        raise ValueError(f"{path} must hold exactly 'class', 'name' and 'config', and 'base' if it is a variant")
    if not isinstance(found["name"], str) or not isinstance(found.get("base", ""), str):
        raise ValueError(f"{path}: 'name' or 'base' is not a text")
    if found["class"] not in classes:
        raise ValueError(f"{path} names an unknown class {found['class']!r}; known: {', '.join(classes)}")
    return found
