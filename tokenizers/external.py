"""Quantizers of other packages as ours: classes of `vector-quantize-pytorch`, and subclasses of our own contract.

Its settings are the arguments of the class. A release keeps its weights to the last bit, so that its codes stay those
of the module.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .adapters.base import needed
from .adapters.vq_pytorch import Codebooks
from .precision import no_autocast, whole_float32
from .quantize.base import Quantizer, QuantizerOutput, keep_codes
from .quantizers import KNOWN, check_allowed

LARGEST = 1 << 20  # number in its settings, as the largest codebook that can be coded


class ExternalQuantizer(Quantizer):
    """A module of `vector-quantize-pytorch` that takes latents of ``dim`` channels.

    Codes, quantized latents and gradients are the module's. So is its loss, weighted as it weights its parts itself:
    ``auxiliary_loss``. Codewords move as the module moves them, in training mode.

    Args:   module: one that :class:`~.adapters.vq_pytorch.Codebooks` knows.  dim: D.
    Raises: ValueError for another module.
    """

    whole_weights = True
    moves = True

    def __init__(self, module: nn.Module, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.codebook_sizes = tuple(int(n) for n in Codebooks(module).sizes)
        self.module = module

    @property
    def books(self) -> Codebooks:
        return Codebooks(self.module)

    def forward(self, z_e: Tensor, *, n_codes: Tensor | None = None) -> QuantizerOutput:
        with no_autocast(z_e.device):
            z_q, codes, loss = self.books.forward(z_e.float(), self.training)
            none = torch.zeros_like(loss)
            return keep_codes(self, z_e, QuantizerOutput(z_q.float(), codes, none, none, loss), n_codes)

    @torch.no_grad()
    def encode(self, z_e: Tensor) -> Tensor:
        with whole_float32(z_e.device):
            return self.books.encode(z_e.detach().float())

    def decode(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        with whole_float32(codes.device):
            return self.books.decode(codes).float()

    def tables(self) -> list[npt.NDArray[np.float32]] | None:
        return self.books.codewords()


def find_class(name: str) -> type[Any]:
    """The class "package.Class". Raises ValueError if it may not be imported, or is not there."""
    check_allowed(name)
    package, _, attribute = name.rpartition(".")
    try:
        module = needed(package, KNOWN[package]) if package in KNOWN else importlib.import_module(package)
    except ImportError as error:
        raise ValueError(f"quantizer.class {name}: {error}") from error
    found = getattr(module, attribute, None)
    if not inspect.isclass(found) or not issubclass(found, nn.Module):
        raise ValueError(f"quantizer.class {name} is no class of modules")
    return found


def external(dim: int | None = None, **settings: Any) -> Quantizer:
    """A quantizer by the name of its class.

    Args:   dim: D; given to the class if it takes one.
            settings: "class", "package.Class" of a subclass of :class:`~.quantize.base.Quantizer` or of a module that
                :class:`ExternalQuantizer` takes; all others are its arguments.
    Raises: ValueError for a class that may not be imported, or arguments that it does not take.
    """
    name = settings.pop("class")
    found = find_class(name)
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    for key, value in values.items():  # of sizes and numbers of layers, before the class makes lists of them
        if isinstance(value, int) and value > LARGEST:
            raise ValueError(f"quantizer.{key} is at most {LARGEST}, got {value}")
    parameters = inspect.signature(found).parameters
    if dim is not None and "dim" in parameters:
        values["dim"] = dim
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for key in values:
            if key not in parameters:
                raise ValueError(f"quantizer.{key} is no setting of {name}: those are {', '.join(parameters)}")
    made = found(**values)
    if isinstance(made, Quantizer):
        return made
    own: Any = values.get("dim") or made.dim
    return ExternalQuantizer(made, own)
