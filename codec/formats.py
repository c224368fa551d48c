"""The :class:`~.contract.Format` of a file or of a model, loaded on first use."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING

from .container.fields import FIT, Header
from .errors import ModelError
from .registry import format_target

if TYPE_CHECKING:
    from ..tokenizers.api import Tokenizer
    from .contract import Format


@functools.cache
def _load(target: str) -> Format:
    module, name = target.split(":")
    found: Format = getattr(importlib.import_module(module, __package__), name)()
    return found


def format_of(tokenizer: Tokenizer) -> Format:
    """The format of what a tokenizer makes. Raises ModelError if there is none."""
    try:
        return _load(format_target(tokenizer.modality, tokenizer.rate_control))
    except KeyError:
        what = f"{tokenizer.modality} whose rate is set by {tokenizer.rate_control}"
        raise ModelError(f"{tokenizer.name} is a model for {what}, of which there are no files") from None


def fitted_format() -> Format:
    """The format of videos that need no model."""
    return _load(format_target("video", "fit"))


def needs_model(header: Header) -> bool:
    """Whether a file is decoded by a model that it does not hold."""
    return header.prior != FIT
