"""The two contracts: :class:`Tokens`, integer codes that know what they are, and :class:`Tokenizer`."""

from __future__ import annotations

import abc
import dataclasses
import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from . import variants, weights
from .budget import Budget
from .folders import CONFIG_FILE, find_model, read_config
from .registry import TOKENIZER_CLASSES
from .variants import BASE_HASH, LEFT, RIGHT

if TYPE_CHECKING:
    from .tokens import Tokens


# What settings of wrong types and numbers lead to.
BROKEN_SETTINGS = (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, AttributeError, AssertionError)
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
        with _settings(folder):
            config = config_class(**settings)
        (state, weights_hash), parts = weights.load_hashed(folder / weights.WEIGHTS_FILE), folder
        if "base" in found:
            parts = variants.find_base(folder, found["base"])
            base, base_hash = weights.load_hashed(parts / weights.WEIGHTS_FILE)
            variants.check_base(state, base_hash, folder)
            state = variants.merge(base, state)
        with _settings(folder), Budget(state):  # "meta" tensors would cost an import of 0.8 s
            model = model_class(config, found["name"])
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise ValueError(f"{folder / weights.WEIGHTS_FILE} does not fit its config.json: {first}") from error
        model.weights_hash = weights_hash
        model.load_parts(parts)
        return model.eval()


@contextmanager
def _settings(folder: Path) -> Iterator[None]:
    """Around what takes the settings of a ``config.json``, with the errors that wrong types and numbers lead to."""
    try:
        yield
    except BROKEN_SETTINGS as error:
        detail = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder / CONFIG_FILE}: {detail or type(error).__name__}") from error


def config_text(model: Tokenizer, base: str | None = None) -> str:
    """``config.json`` of a model. base: name of its base if it is a variant, see :mod:`.variants`."""
    entry: dict[str, Any] = {"class": type(model).__name__, "name": model.name}
    if base is not None:
        entry["base"] = base
    return json.dumps({**entry, "config": dataclasses.asdict(model.config)}, indent=2) + "\n"


def save_variant(model: Tokenizer, base: str, base_hash: str, change: dict[str, Tensor], folder: str | Path) -> None:
    """Write a variant's ``config.json`` and ``model.safetensors`` into ``folder`` (made if missing).

    Args:
        model: gives class, name and configuration.
        base: name of the base, a release or a folder beside ``folder``.
        base_hash: its weights hash.
        change: ``NAME``, or ``NAME.left`` and ``NAME.right``; see the module's text.
    """
    from .folders import CONFIG_FILE

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {**change, BASE_HASH: torch.tensor(list(bytes.fromhex(base_hash)), dtype=torch.uint8)}
    factors = tuple(name for name in change if name.endswith((LEFT, RIGHT)))
    weights.save(state, folder / weights.WEIGHTS_FILE, int8=factors)
    (folder / CONFIG_FILE).write_text(config_text(model, base))
