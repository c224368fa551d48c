"""The two contracts: :class:`Tokens`, integer codes that know what they are, and :class:`Tokenizer`."""

from __future__ import annotations

import abc
import dataclasses
import importlib
import json
import operator
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from . import variants, weights
from .budget import Budget
from .folders import CONFIG_FILE, find_model, read_config
from .precision import require_float32
from .quantize.base import Quantizer, QuantizerOutput
from .registry import load_class
from .stamp import Stamp, samples
from .tokens import Tokens, TokenSpec
from .variants import BASE_HASH, LEFT, RIGHT

MIN_RATE, MAX_RATE = 1e-3, 1e6  # samples or frames a second that a spec may say

# What settings of wrong types and numbers lead to.
BROKEN_SETTINGS = (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, AttributeError, AssertionError)
T = TypeVar("T", bound="Tokenizer")


class Output(NamedTuple):
    """What a tokenizer returns in training.

    Attributes:
        x_hat: the signal that came back, in the shape of ``x``, float32. Not clamped, which would cut gradients off.
        codes: int64 ``[B, K, *grid]``, ``ABSENT`` for levels that quantizer dropout left out.
        losses: scalars of the quantizer, to be weighted and added to a loss of ``x_hat``: "commitment" pulls the
            analysis net to the codewords, "codebook" the codewords to it, "auxiliary" is what else a quantizer needs.
    """

    x_hat: Tensor
    codes: Tensor
    losses: dict[str, Tensor]

    @classmethod
    def of(cls, x_hat: Tensor, out: QuantizerOutput) -> Output:
        losses = {
            "commitment": out.commitment_loss, "codebook": out.codebook_loss, "auxiliary": out.auxiliary_loss,
        }  # fmt: skip
        return cls(x_hat, out.codes, losses)


class Tokenizer(nn.Module, abc.ABC):
    """A signal becomes :class:`Tokens` and comes back.

    Subclasses take one frozen dataclass as configuration, name it in ``config_class``, and list in ``int8_weights`` the
    prefixes of parameters that are released as int8 per output channel (the rest is released as float16), in
    ``int8_largest`` the largest of these integers, and in ``half_weights`` prefixes among them that stay float16.
    ``int8_codebooks``: the largest integer of a codeword, which has a step of its own; 0: float16. Those with
    ``whole_weights`` are released as they are.

    What tokens mean is said by class attributes, from which :meth:`spec` is made: ``modality``, ``strides``, ``first``
    (see :class:`~.tokens.TokenSpec`), ``channels`` (meanings that the channels of a signal can have, the usual one
    first), ``sample_rate`` (None if signals have rates of their own, or none), and ``varies``: the fields of a spec
    beside its size that differ from signal to signal.
    """

    config_class: ClassVar[type[Any]]
    int8_weights: ClassVar[tuple[str, ...]] = ()
    int8_largest: ClassVar[int] = 127
    half_weights: tuple[str, ...] = ()
    int8_codebooks: ClassVar[int] = 0
    whole_weights: ClassVar[bool] = False
    modality: ClassVar[str]
    strides: tuple[int, ...]
    first: ClassVar[int | None] = None
    channels: ClassVar[tuple[str, ...]] = ("rgb",)
    sample_rate: float | None = None
    varies: ClassVar[tuple[str, ...]] = ()
    rate_control: ClassVar[str] = "levels"  # what sets the rate of encode()
    needs_prior: ClassVar[bool] = False  # whether its codes cannot be coded with fixed lengths

    extra: ClassVar[str] = ""  # of the package, that its class needs

    name: str
    #: Prefixes of weights that only decoding uses: codes mean the same without them.
    synthesis_weights: ClassVar[tuple[str, ...]] = ("synthesis.",)

    def __init__(self, config: Any, name: str) -> None:
        super().__init__()
        if type(config) is not self.config_class:
            raise ValueError(f"{type(self).__name__} wants a {self.config_class.__name__}, got {type(config).__name__}")
        self.config: Any = config
        self.name = name
        self._weights_hash, self._stamp = "", Stamp({})
        self._source: Path | None = None  # folder that the weights came from

    @property
    def weights_hash(self) -> str:
        """Of the file that the weights are those of, see :class:`~.tokens.TokenSpec`; "" if they are in no file.

        It becomes "" for good when weights were changed in memory: by an optimizer, `load_state_dict`, a cast, or in
        any other way that :class:`~.stamp.Stamp` notices. A move to another device is no change.
        """
        if self._weights_hash and not self._stamp.holds(self._weights()):
            self._weights_hash = ""
        return self._weights_hash

    @weights_hash.setter
    def weights_hash(self, value: str) -> None:
        self._weights_hash = value
        self._stamp = Stamp(self._weights() if value else {})

    def _weights(self) -> dict[str, Tensor]:
        return self.state_dict(keep_vars=True)

    def _apply(self: T, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> T:
        """Move or cast all weights. The hash stays if they are the same afterwards."""
        held = self.weights_hash
        before = samples(self._weights().values()) if held else []
        super()._apply(fn, recurse)
        if held:
            after = self._weights().values()
            known = not any(t.is_meta for t in after)
            same = known and all(map(_same, before, samples(after)))
            self.weights_hash = held if same else ""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For copies and other processes, where weights lie elsewhere."""
        return {**self.__dict__, "_weights_hash": self.weights_hash, "_stamp": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.weights_hash = self._weights_hash

    @property
    def source(self) -> Path | None:
        """The folder that the weights came from, where its entropy models are too; None if there is none."""
        return self._source

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def require_float32(self) -> None:
        """Raise DtypeError unless all weights are float32: codes and signals are made in it alone."""
        require_float32(self, self.name)

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

    def spec(self, size: tuple[int, ...], **about: Any) -> TokenSpec:
        """Say what the tokens of a signal mean.

        Args:
            size: lengths along the grid axes: (H, W) of a picture, (n,) samples, (T, H, W) of a clip.
            about: what else differs from signal to signal, by the names of the fields of a :class:`~.tokens.TokenSpec`
                that are in ``varies``: ``quality`` (0 to 100), ``channels`` (one of the class attribute's) or
                ``sample_rate`` (frames a second, or None).
        Raises: ValueError for a size of another rank, another field, or a value out of its range.
        """
        if unknown := set(about) - set(self.varies):
            raise ValueError(f"tokens of {self.name} do not differ in {', '.join(sorted(unknown))}")
        size = tuple(operator.index(n) for n in size)
        if len(size) != len(self.strides) or min(size) < 0:
            raise ValueError(f"a signal of {self.name} has {len(self.strides)} lengths, got {size}")
        fields = {"channels": self.channels[0], "sample_rate": self.sample_rate, **about}
        if fields["channels"] not in self.channels:
            raise ValueError(f"channels of {self.name} are {', '.join(self.channels)}, got {fields['channels']!r}")
        if "quality" in self.varies and not _within(fields.get("quality"), 0, 100):
            raise ValueError(f"quality is 0 to 100, got {fields.get('quality')!r}")
        rate = fields["sample_rate"]
        if rate is not None and not _within(rate, MIN_RATE, MAX_RATE):
            raise ValueError(f"sample_rate is {MIN_RATE:g} to {MAX_RATE:g} a second, got {rate!r}")
        return TokenSpec(
            model=self.name,
            weights_hash=self.weights_hash,
            modality=self.modality,
            codebook_sizes=self.codebook_sizes,
            strides=self.strides,
            size=size,
            first=self.first,
            **fields,
        )

    def accepts(self, spec: TokenSpec) -> bool:
        """Whether this model, with these weights, makes tokens that say this of themselves: all of it, no less."""
        return self._mismatch(spec) is None

    def _mismatch(self, spec: TokenSpec) -> str | None:
        """What a spec says that this model's tokens do not, None if nothing."""
        try:
            own = self.spec(spec.size, **{name: getattr(spec, name) for name in self.varies})
        except (TypeError, ValueError) as error:  # a value of another type, or out of its range
            return str(error)
        names = [field.name for field in dataclasses.fields(spec)]
        return next((f"{n} is {getattr(own, n)}, not {getattr(spec, n)}" for n in names
                     if getattr(own, n) != getattr(spec, n)), None)  # fmt: skip

    def codewords(self) -> list[npt.NDArray[np.float32]] | None:
        """The table ``[N_k, D]`` of every codebook, coarse to fine; None if codes are no numbers of codewords."""
        return None

    def forward(self, x: Tensor) -> Output:
        """A signal to codes and back in one differentiable pass, for training; ``encode`` and ``decode`` have no
        gradients.

        Gradients pass through the choice of codes as through the identity (straight-through, or as the quantizer is
        set), so analysis, codewords and synthesis all learn. Nets compute in the precision of what surrounds the call,
        the quantizer in float32. In training mode levels are dropped at random where the quantizer does so. Codes are
        those of the nearest codewords: `encode` may also weigh their bits, look along several paths, or keep the codes
        of the moment before.

        Args:   x: as for `encode`; values are not looked at.
        Raises: NotImplementedError by models whose quantizer is part of an entropy model (`image-photo`).

        ``encode_codes(x) -> codes`` and ``decode_codes(codes, size) -> x_hat`` of models with a quantizer are what
        `encode` and `decode` compute, by tensors alone: `torch.compile(fullgraph=True)` and `torch.export` take them.
        Traced code looks at no values, takes the settings of TF32 that it finds, and an exported graph is called
        outside of autocast; export under `torch.no_grad()`, or PyTorch cannot save the graph.
        """
        raise NotImplementedError(f"{self.name} has no quantizer of its own to train through, see train/")

    def check_levels(self, levels: int | None) -> int:
        """A number of levels, all if None. Raises ValueError for one that the model does not have."""
        most = len(self.codebook_sizes)
        if levels is not None and not 1 <= levels <= most:
            raise ValueError(f"levels must be 1 to {most}, got {levels}")
        return most if levels is None else levels

    def check_tokens(self, tokens: Tokens) -> None:
        """Raise ValueError unless ``tokens`` come from this model with these weights; see :meth:`accepts`."""
        if not isinstance(tokens, Tokens):
            raise ValueError(
                f"decode takes Tokens, got a {type(tokens).__name__}; codes alone are Tokens(codes, model.spec(size))"
            )
        self.require_float32()
        spec = tokens.spec
        if (spec.model, spec.weights_hash) != (self.name, self.weights_hash):
            raise ValueError(
                f"tokens of {spec.model} {spec.weights_hash or '(unsaved)'}"
                f" given to {self.name} {self.weights_hash or '(unsaved)'}"
            )
        if wrong := self._mismatch(spec):
            raise ValueError(f"the tokens do not say what {self.name} makes: {wrong}")

    def save_pretrained(self, folder: str | Path) -> str:
        """Write ``config.json`` and ``model.safetensors`` into ``folder`` (made if missing), and entropy models.

        Weights are rounded on the way (int8 or float16, see ``int8_weights``): load them back to use what was released.
        :attr:`weights_hash` is that of the file only if rounding left all as it is.

        Entropy models of the folder that the weights came from are copied, as long as codes mean the same as there:
        only weights that decoding alone uses are others. Else a warning says that there are none.

        Returns: the hash of the weights that were written.
        """
        folder = Path(folder)
        source = self._read_source()
        quantizers = {name + ".": m for name, m in self.named_modules() if isinstance(m, Quantizer)}
        training = {prefix + name for prefix, m in quantizers.items() for name in m.training_buffers}
        with weights.together(folder) as beside:
            self.save_parts(beside)
            weights.save(
                {name: tensor for name, tensor in self.state_dict().items() if name not in training},
                beside / weights.WEIGHTS_FILE,
                int8=self.int8_weights,
                largest=self.int8_largest,
                half=self.half_weights,
                codebooks=self.int8_codebooks,
                whole=self.whole_weights,
                exact=tuple(prefix for prefix, m in quantizers.items() if m.whole_weights),
            )
            (beside / CONFIG_FILE).write_text(config_text(self))
            written, weights_hash = weights.load_hashed(beside / weights.WEIGHTS_FILE)
            self._copy_priors(folder, beside, source, written)
        own = self.state_dict()
        self.weights_hash = weights_hash if all(_same(own[name].cpu(), t) for name, t in written.items()) else ""
        return weights_hash

    def _read_source(self) -> tuple[dict[str, Tensor], Path] | None:
        """The weights that this model was loaded from, and the folder of the parts beside them, if they are there."""
        if self._source is None:
            return None
        try:
            state, _, parts = _read_weights(self._source, read_config(self._source))
        except ValueError:  # the folder is gone or another by now
            return None
        return state, parts

    def _copy_priors(
        self, folder: Path, beside: Path, source: tuple[dict[str, Tensor], Path] | None, now: dict[str, Tensor]
    ) -> None:
        """Copy the entropy models of the source, if codes of the weights that were written ``now`` mean the same.

        Args: folder: where they are wanted.  beside: where they are written, with all that goes there.
        """
        if self._source is None or self._source.resolve() == folder.resolve():
            return
        before, parts = source or ({}, self._source)
        there = {path.name for place in (folder, beside) for path in place.glob("*.safetensors")}
        priors = [path for path in sorted(parts.glob("*.safetensors")) if path.name not in there]
        coding = [name for name in now if not name.startswith(self.synthesis_weights)]
        if source is not None and all(name in before and _same(before[name], now[name]) for name in coding):
            for path in priors:
                shutil.copyfile(path, beside / path.name)
        elif priors or source is None:
            warnings.warn(f"{folder} has no entropy model: those of {self._source} are of other codes", stacklevel=3)

    def push_to_hub(self, repo_id: str, **more: Any) -> Any:
        """Upload what :meth:`save_pretrained` writes, with a model card, to the Hugging Face hub.

        >>> tokenizer.push_to_hub("me/my-vq", private=True, model_card_kwargs={"license": "mit"})

        Args:    more: as `huggingface_hub.ModelHubMixin.push_to_hub` takes it; ``model_card_kwargs`` are fields of the
                 card's metadata. A README.md in the folder that the model was loaded from is its card.
        Returns: where it is.
        Raises:  ValueError if `huggingface_hub` is missing, and its own errors.
        """
        try:
            hub = importlib.import_module(".hub", __package__)
        except ImportError as error:
            raise ValueError(f"to publish models, pip install 'tokodec[hub]' ({error})") from error
        return hub.HubTokenizer(self).push_to_hub(repo_id, **more)

    def load_code(self, name: str) -> str:
        """What loads this model again, as an expression of Python for its card."""
        return f'tokodec.load("{name}")'

    def save_parts(self, folder: Path) -> None:
        """Write what a model has beside its weights; called before the weights are written."""

    def load_parts(self, folder: Path) -> None:
        """Load what :meth:`save_parts` wrote. Raises ValueError if it is missing, damaged or another model's."""

    @classmethod
    def from_pretrained(cls: type[T], name: str | Path, **hub: Any) -> T:
        """Load a model by the name of a release (variants as well), a folder, or `hf:USER/MODEL`.

        Args:
            hub: of a model of the Hugging Face hub, what `snapshot_download` takes: ``revision``, ``token``,
                ``cache_dir``, ``local_files_only``, ``force_download``.
        Raises:
            FileNotFoundError: nothing of that name; the message lists the released models.
            ValueError: the folder is damaged, or holds another class than ``cls``.
        """
        folder = find_model(name, **hub)
        found = load_class(read_config(folder)["class"])
        if not issubclass(found, cls):
            raise ValueError(f"{folder} holds a {found.__name__}, not a {cls.__name__}")
        model: T = found.load(folder)
        return model.eval()

    @classmethod
    def load(cls: type[T], folder: Path) -> T:
        """The model in a folder, whose ``config.json`` names this class. Override it to load weights in another way.

        Raises: ValueError if the folder is damaged.
        """
        found = read_config(folder)
        config_class = cls.config_class
        known = {field.name for field in dataclasses.fields(config_class)}
        unknown = set(found["config"]) - known
        if unknown:
            raise ValueError(f"{folder / CONFIG_FILE} has unknown settings: {', '.join(sorted(unknown))}")
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in found["config"].items()}
        with _settings(folder):
            config = config_class(**settings)
        state, weights_hash, parts = _read_weights(folder, found)
        with _settings(folder), Budget(state):  # "meta" tensors would cost an import of 0.8 s
            model = cls(config, found["name"])
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise ValueError(f"{folder / weights.WEIGHTS_FILE} does not fit its config.json: {first}") from error
        model.weights_hash, model._source = weights_hash, folder
        model.load_parts(parts)
        return model


def _read_weights(folder: Path, config: dict[str, Any]) -> tuple[dict[str, Tensor], str, Path]:
    """Weights in a folder, variants merged; their hash; and the folder that holds the parts beside them.

    Raises: ValueError if they are missing or damaged.
    """
    state, weights_hash = weights.load_hashed(folder / weights.WEIGHTS_FILE)
    if "base" not in config:
        return state, weights_hash, folder
    parts = variants.find_base(folder, config["base"])
    base, base_hash = weights.load_hashed(parts / weights.WEIGHTS_FILE)
    variants.check_base(state, base_hash, folder)
    return variants.merge(base, state), weights_hash, parts


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have one type and the same values."""
    return a.dtype == b.dtype and torch.equal(a, b)


def _within(value: Any, low: float, high: float) -> bool:
    """Whether this is a number in that range; NaN is not, nor is True."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


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
    config = dataclasses.asdict(model.config)
    if config.get("quantizer", "") is None:  # that of the class: the key says what differs
        del config["quantizer"]
    return json.dumps({**entry, "config": config}, indent=2) + "\n"


def save_variant(model: Tokenizer, base: str, base_hash: str, change: dict[str, Tensor], folder: str | Path) -> None:
    """Write a variant's ``config.json`` and ``model.safetensors`` into ``folder`` (made if missing).

    Args:
        model: gives class, name and configuration.
        base: name of the base, a release or a folder beside ``folder``.
        base_hash: its weights hash.
        change: ``NAME``, or ``NAME.left`` and ``NAME.right``; see the module's text.
    """
    state = {**change, BASE_HASH: torch.tensor(list(bytes.fromhex(base_hash)), dtype=torch.uint8)}
    factors = tuple(name for name in change if name.endswith((LEFT, RIGHT)))
    with weights.together(Path(folder)) as beside:
        weights.save(state, beside / weights.WEIGHTS_FILE, int8=factors)
        (beside / CONFIG_FILE).write_text(config_text(model, base))
