"""The :class:`Format` of a file or of a model, loaded on first use."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING

from .errors import ModelError
from .registry import FITTED, MODALITY_NAMES, PRIOR_NAMES, format_target, prior_kinds

if TYPE_CHECKING:
    from .container.fields import Header
    from .contract import Format
    from .models import Model


@functools.cache
def _load(target: str) -> Format:
    module, name = target.split(":")
    found: Format = getattr(importlib.import_module(module, __package__), name)()
    return found


def format_of(modality: str, layout: str, name: str) -> Format:
    """The format of a modality's files with a layout. Raises ModelError, which calls the model ``name``."""
    try:
        return _load(format_target(modality, layout))
    except KeyError:
        raise ModelError(f"{name}: no format for {modality} with such an entropy model") from None


def format_of_model(model: Model) -> Format:
    """The format of the files that a model makes."""
    layout = next(kind.layout for kind in prior_kinds().values() if kind.wire_id == model.prior.wire_id)
    return format_of(model.tokenizer.modality, layout, model.tokenizer.name)


def format_of_header(header: Header) -> Format:
    """The format of a file."""
    layout = prior_kinds()[PRIOR_NAMES[header.prior]].layout
    return format_of(MODALITY_NAMES[header.modality], layout, header.model)


def fitted_format() -> Format:
    """The format of videos that need no model."""
    return format_of("video", "fit", FITTED)
