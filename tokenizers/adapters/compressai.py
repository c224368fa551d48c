"""State dicts of CompressAI: checkpoints of its training scripts, weights of its zoo, names of older versions.

Source: Begaint et al. 2020, "CompressAI: a PyTorch library and evaluation platform for end-to-end compression
research", arXiv:2011.03029.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .base import needed

PREFIX, EXTRA = "compressai:", "compressai"
METRICS = ("mse", "ms-ssim")
# lambda of the qualities 1 to 8 of the zoo: bits a pixel for a unit of 255^2 * MSE, or of 1 - MS-SSIM.
LAMBDAS = {
    "mse": (0.0018, 0.0035, 0.0067, 0.0130, 0.0250, 0.0483, 0.0932, 0.1800),
    "ms-ssim": (2.40, 4.58, 8.73, 16.64, 31.73, 60.50, 115.37, 220.00),
}
DATA_PARALLEL = "module."
# What names were, twice, and are now: parameters of an entropy bottleneck, wherever it is, and skip connections.
PARAMETERS = re.compile(r"(?<![^.])_(bias|matri|factor)(?:x|es|ces|s)?\.?(\d+)$")
PLURAL = {"bias": "biases", "matri": "matrices", "factor": "factors"}


class ZooName(NamedTuple):
    """A model of the zoo. name: as CompressAI spells it.  quality: 1 to 8; 0 if none was said."""

    name: str
    quality: int

    @classmethod
    def of(cls, text: str) -> ZooName:
        """``compressai:NAME`` or ``compressai:NAME:QUALITY``. Raises ValueError for anything else."""
        name, _, quality = text.removeprefix(PREFIX).partition(":")
        if not text.startswith(PREFIX) or not name or not re.fullmatch(r"[1-8]?", quality):
            raise ValueError(f"a model of CompressAI is {PREFIX}NAME or {PREFIX}NAME:QUALITY, of 1 to 8, got {text!r}")
        return cls(name, int(quality or 0))

    def lmbda(self, metric: str) -> float:
        """lambda that the weights were trained for; 0 if the quality was not said."""
        return LAMBDAS[metric][self.quality - 1] if self.quality else 0.0


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the names of today: no ``module.`` of data-parallel training, no names of older versions."""

    def name_of(key: str) -> str:
        key = key.removeprefix(DATA_PARALLEL).replace(".downsample.", ".skip.")
        return PARAMETERS.sub(lambda m: f"{PLURAL[m[1]]}.{m[2]}", key)

    return {name_of(key): tensor for key, tensor in state.items()}


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The weights in a checkpoint of CompressAI, on the CPU, under the names of today; nothing is unpickled.

    Args:    path: ``.pth.tar`` of its training scripts, whose weights are in ``state_dict``, a ``.pth`` of weights
             alone, or ``.safetensors``.
    Raises:  FileNotFoundError if there is no such file; ValueError if it holds more than tensors and plain values, or
             no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint {path}")
    found: Any
    try:
        if path.suffix == ".safetensors":
            found = load_file(str(path))
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, ValueError, EOFError, KeyError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":  # whose module nothing here imports
            raise
        raise ValueError(
            f"{path} holds more than tensors and plain values, which may be code: save its state_dict alone"
        ) from error
    for key in ("state_dict", "network", "model_state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not found or not all(isinstance(t, Tensor) for t in found.values()):
        raise ValueError(f"{path} is no checkpoint of CompressAI: it has no state_dict of tensors")
    return renamed(found)


def zoo_model(name: ZooName, metric: str = "mse", pretrained: bool = True, default: int = 4) -> Any:
    """A model of CompressAI's zoo. Its weights are downloaded by CompressAI, unless it has them already.

    Args:   metric: "mse" or "ms-ssim", what the weights were trained for.  pretrained: random weights if False.
            default: quality, if the name says none.
    Raises: ValueError if the package is missing, has no such model or weights, or cannot download them.
    """
    zoo = needed("compressai.zoo", EXTRA)
    known = sorted(zoo.image_models)
    if name.name not in known:
        raise ValueError(f"CompressAI has no {name.name}: {', '.join(known)}")
    quality = name.quality or default
    try:
        return zoo.image_models[name.name](quality, metric, pretrained=pretrained).eval()
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        where = "CompressAI downloads its weights; give --checkpoint FILE where there is no network"
        raise ValueError(f"no {name.name} of quality {quality} for {metric}: {error} ({where})") from error


def part_of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries below ``prefix``, without it."""
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}


def constants(keys: Mapping[str, Tensor]) -> Iterator[str]:
    """Names of buffers that hold no weights: bounds and pedestals of parametrizations, and tables of coders."""
    for key in keys:
        if re.search(r"\.(pedestal|bound|target|scale_table|_quantized_cdf|_offset|_cdf_length|scale_bound)$", key):
            yield key
