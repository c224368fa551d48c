"""What adapters share: weights kept to the last bit, exact arithmetic, and folders of other libraries.

A folder of `transformers` or `diffusers` stays as it is: its own library reads its `config.json` and its safetensors
file, whose hash is in headers. Nothing pickled is read, and no code of the folder runs.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...entropy.packed import hash_of
from .. import weights
from ..api import BROKEN_SETTINGS, Tokenizer
from ..budget import Budget
from ..folders import read_config
from ..image.base import ImageTokenizer
from ..inputs import check_pixels, to_pictures
from ..tokens import Tokens

T = TypeVar("T", bound="ForeignFolder")


def needed(module: str, extra: str) -> Any:
    """A module of another package. Raises ValueError with what to install if it is not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0].replace("_", "-")
        raise ValueError(f"this model needs the package {package}: pip install 'tokodec[{extra}]' ({error})") from error


@contextmanager
def _silent(package: str, extra: str) -> Iterator[None]:
    """While `transformers` or `diffusers` show no progress bars and log errors only."""
    logging = needed(f"{package}.utils.logging", extra)
    bar, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


class WholeWeights(Tokenizer):
    """A tokenizer that is saved as it is, so that its codes stay those of the modules it is made of.

    Weights that are in no file have the hash of the one that :meth:`save_pretrained` would write.
    """

    whole_weights: ClassVar[bool] = True

    @property
    def weights_hash(self) -> str:
        held = Tokenizer.weights_hash.fget(self)  # type: ignore[attr-defined]
        if not held:
            held = hash_of(weights.whole_bytes(self.state_dict()))
            self.weights_hash = held
        return str(held)

    @weights_hash.setter
    def weights_hash(self, value: str) -> None:
        Tokenizer.weights_hash.fset(self, value)  # type: ignore[attr-defined]


class AdaptedImage(ImageTokenizer):
    """Pictures through ``encode_codes`` and ``decode_codes``; pixels of 0 to 1 become ``pixels`` before the nets."""

    pixels: tuple[float, float] = (0.0, 1.0)

    def encode_codes(self, x: Tensor) -> Tensor:
        """Pictures ``[B, 3, H, W]`` in [0, 1], of whole cells, to codes ``[B, K, h, w]``."""
        raise NotImplementedError

    def decode_codes(self, codes: Tensor) -> Tensor:
        """Codes ``[B, k, h, w]``, the first k levels, to pictures ``[B, 3, H, W]``, about in [0, 1]."""
        raise NotImplementedError

    @torch.no_grad()
    def encode(self, x: Tensor, levels: int | None = None) -> Tokens:
        """Pictures ``[B, 3, H, W]`` in [0, 1] or uint8 to tokens; edges are repeated to whole cells.

        Raises: ValueError for other shapes, types or ranges, see :mod:`..inputs`.
        """
        x = to_pictures(x, self.device)
        check_pixels(x)
        size = tuple(x.shape[2:])
        below, right = (-n % s for n, s in zip(size, self.strides, strict=True))
        codes = self.encode_codes(F.pad(x, (0, right, 0, below), mode="replicate"))
        return Tokens(codes[:, : self.check_levels(levels)], self.spec(size))

    @torch.no_grad()
    def decode(self, tokens: Tokens) -> Tensor:
        """Tokens to pictures ``[B, 3, H, W]``, about in [0, 1]. Raises ValueError if they are another model's."""
        self.check_tokens(tokens)
        height, width = tokens.spec.size
        return self.decode_codes(tokens.codes.to(self.device))[..., :height, :width]

    def to_net(self, x: Tensor) -> Tensor:
        low, high = self.pixels
        return x * (high - low) + low

    def from_net(self, x: Tensor) -> Tensor:
        low, high = self.pixels
        return (x - low) / (high - low)


def _again(kind: type[T], folder: Path, weights_hash: str, device: torch.device) -> T:
    """A model in another process. Raises ValueError if the folder holds other weights by now."""
    model = kind.load(folder).to(device).eval()
    if model.weights_hash != weights_hash:
        raise ValueError(f"{folder} holds other weights by now: {model.weights_hash}, not {weights_hash}")
    return model


@dataclass(frozen=True)
class Foreign:
    """The configuration of a model of another library is its own business."""


class ForeignFolder(Tokenizer):
    """A model of another library, in a folder that this library wrote.

    Attributes:
        module: where its class is, "package.module:Class".  file: of its weights.
    """

    config_class = Foreign
    module: ClassVar[str]
    file: ClassVar[str] = weights.WEIGHTS_FILE

    net: Any  # the module of the other library

    def __init__(self, net: Any, name: str) -> None:
        super().__init__(Foreign(), name)
        self.net = net

    @classmethod
    def load(cls: type[T], folder: Path) -> T:
        found = read_config(folder)
        path = folder / cls.file
        if not path.is_file():
            raise ValueError(f"no {cls.file} in {folder}: only safetensors weights are read, save the model as such")
        package, _, attribute = cls.module.partition(":")
        original = getattr(needed(package, cls.extra), attribute)
        try:
            weights_hash = weights.file_hash(path)
            with safe_open(path, "pt") as file:
                names = file.keys()
                shapes = {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names}
            with _silent(package, cls.extra), Budget(shapes):
                net, report = original.from_pretrained(
                    folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **cls.float32()
                )
        except (OSError, SafetensorError, *BROKEN_SETTINGS) as error:
            raise ValueError(f"{folder} is no {attribute}: {' '.join(str(error).split())[:200]}") from error
        if lacks := [*report["missing_keys"], *report["mismatched_keys"]]:
            raise ValueError(f"{path} does not fit its config.json: {sorted(map(str, lacks))[0]}")
        model = cls(net, found["name"])
        model.weights_hash, model._source = weights_hash, folder
        return model

    @classmethod
    def float32(cls) -> dict[str, Any]:
        """What its library wants to hear for weights of float32."""
        return {"dtype": torch.float32}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        other = type(self)(copy.deepcopy(self.net, memo), self.name)
        other.weights_hash, other._source = self.weights_hash, self._source
        return other.train(self.training)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Another process reads the folder again: modules with parametrizations cannot be pickled."""
        if self._source is None or not self.weights_hash:
            return super().__reduce_ex__(protocol)
        return _again, (type(self), self._source, self.weights_hash, self.device)

    def save_pretrained(self, folder: str | Path) -> str:
        """Write the folder as the other library does, with the entropy models of codes that mean the same."""
        folder = Path(folder)
        before = self.weights_hash
        with weights.together(folder) as beside, _silent(self.module.partition(":")[0], self.extra):
            self.net.save_pretrained(beside)
            self.weights_hash = weights.file_hash(beside / self.file)
            if self._source is not None and self.weights_hash == before:
                self._copy_priors(folder, beside, (self.state_dict(), self._source), self.state_dict())
        return self.weights_hash
