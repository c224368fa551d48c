"""Kinds of quantizers that a recipe or a ``config.json`` can name, one row each. Standard library only.

A section of settings chooses one::

    quantizer: {kind: fsq, levels: [8, 5, 5, 5]}
    quantizer: {kind: rvq, of: {kind: ema, decay: 0.95}, codebook_sizes: [1024, 1024, 512]}
    quantizer: {kind: external, class: vector_quantize_pytorch.ResidualVQ, codebook_size: 512, num_quantizers: 4}

Settings are the arguments of what a row names, so their meaning, defaults and sources are in its docstring. What a row
``fills``, such as the dimension, the model says where the section does not.

A package that is not ours adds a row with :func:`register_quantizer`, or with an entry point of the group
``tokodec.quantizers`` whose object is a :class:`QuantizerKind`. Any class at all is ``external``, by its name. But a
file chooses nothing that is imported: only packages that are known here, and classes that the user named in the
environment, separated by commas::

    TOKODEC_QUANTIZERS=my_package.MyQuantizer codec encode photo.png --model ./my-model
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

from .registry import add_entry_points, add_row
from .settings import converted

if TYPE_CHECKING:
    from .quantize.base import Quantizer

GROUP = "tokodec.quantizers"
ALLOWED = "TOKODEC_QUANTIZERS"
MOST_CODEBOOKS = 1024
MOST_NESTED = 3  # sections in sections

Section = dict[str, Any]  # "kind", and settings of it


@dataclass(frozen=True)
class QuantizerKind:
    """A kind of quantizers.

    Attributes:
        target: "module:name" of a class or function that makes one of its settings; with a leading dot inside this
            package.
        fills: settings that the model gives where the section does not: "dim", "codebook_size" (if the model has one
            codebook), "codebook_sizes", "groups".
    """

    target: str
    fills: tuple[str, ...] = ()


TABLE = ("dim", "codebook_size")
_KINDS = {
    "simvq": QuantizerKind(".quantize.simvq:SimVQ", TABLE),
    "vq": QuantizerKind(".quantize.vq:VQ", TABLE),
    "ema": QuantizerKind(".quantize.vq:EMAVQ", TABLE),
    "fullvq": QuantizerKind(".quantize.simvq:FullVQ", TABLE),
    "fsq": QuantizerKind(".quantize.fsq:FSQ"),
    "lfq": QuantizerKind(".quantize.binary:LFQ"),
    "bsq": QuantizerKind(".quantize.binary:BSQ"),
    "rvq": QuantizerKind(".combined:residual", ("dim", "codebook_sizes")),
    "grvq": QuantizerKind(".combined:grouped", ("dim", "codebook_sizes", "groups")),
    "pvq": QuantizerKind(".combined:product", ("dim", "codebook_sizes")),
    "external": QuantizerKind(".external:external", ("dim",)),
}
# Packages whose quantizers are known, and the extra that installs each.
KNOWN = {"vector_quantize_pytorch": "vector-quantize"}


def register_quantizer(name: str, kind: QuantizerKind) -> None:
    """Make the kind ``name`` known to recipes and models. Raises ValueError if another one has that name."""
    add_row(_KINDS, name, kind, "quantizer")


@functools.cache
def _add_installed() -> None:
    add_entry_points(GROUP, register_quantizer, QuantizerKind)


def quantizer_kinds() -> dict[str, QuantizerKind]:
    """All kinds by name: ours, registered ones, and those of installed packages."""
    _add_installed()
    return _KINDS


def check_allowed(name: str, at: str = "quantizer") -> None:
    """Raise ValueError unless a class "package.Class" may be imported for a recipe's or a model's sake."""
    package, _, rest = name.rpartition(".")
    if package in KNOWN and rest.isidentifier():
        return
    if name not in [own.strip() for own in os.environ.get(ALLOWED, "").split(",")]:
        known = " and ".join(KNOWN)
        raise ValueError(
            f"{at}.class {name!r} is not imported because a file says so: if you trust it, set {ALLOWED}={name}"
            f" (classes of {known} need no leave)"
        )


def describe(section: Mapping[str, Any] | str) -> str:
    """A section as a few words: "rvq of ema", "external vector_quantize_pytorch.ResidualVQ"."""
    if isinstance(section, str):
        return section
    words = [str(section.get("kind", "?"))]
    if "of" in section:
        words += ["of", describe(section["of"])]
    if "class" in section:
        words.append(str(section["class"]))
    if "levels" in section:
        words.append(" x ".join(map(str, section["levels"])))
    return " ".join(words)


def _target(kind: QuantizerKind) -> Any:
    module, _, name = kind.target.partition(":")
    return getattr(importlib.import_module(module, __package__), name)


def checked_section(section: Any, at: str = "quantizer", depth: int = MOST_NESTED) -> Section:
    """A section whose kind and settings are known and of the right types; a name alone is a section of its kind.

    Nothing is made yet, and no class of others imported.

    Raises: ValueError that names the setting.
    """
    section = {"kind": section} if isinstance(section, str) else section
    if not isinstance(section, dict) or not depth:
        raise ValueError(f"{at} is a section of settings with a kind, got {section!r:.80}")
    kinds = quantizer_kinds()
    if section.get("kind") not in list(kinds):
        raise ValueError(f"{at}.kind is one of {', '.join(kinds)}, got {section.get('kind')!r}")
    target = _target(kinds[section["kind"]])
    parameters = inspect.signature(target).parameters
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    found: Section = {"kind": section["kind"]}
    for name, value in section.items():
        if name == "kind":
            continue
        if name == "of":
            found[name] = checked_section(value, f"{at}.of", depth - 1)
        elif name == "class":
            found[name] = converted(str, value, f"{at}.class")
            check_allowed(found[name], at)
        elif name in parameters:
            found[name] = _plain(converted(hints[name], value, f"{at}.{name}"))
        elif open_ended:
            found[name] = value
        else:
            known = ", ".join(parameters) or "none"
            raise ValueError(f"{at} of kind {section['kind']} has an unknown setting {name}: known are {known}")
    if open_ended and "class" not in found:
        raise ValueError(f"{at}.class is missing: the name of a class, such as vector_quantize_pytorch.ResidualVQ")
    return found


def _plain(value: Any) -> Any:
    """As JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def make_quantizer(section: Section | str, at: str = "quantizer", **given: Any) -> Quantizer:
    """The quantizer of a section.

    Args:   given: what the model says of ``dim``, ``codebook_sizes`` and ``groups``.
    Raises: ValueError that names what is wrong, and begins with ``at``.
    """
    section = checked_section(section, at)
    kind = quantizer_kinds()[section["kind"]]
    sizes = given.get("codebook_sizes", ())
    if len(sizes) == 1:
        given["codebook_size"] = sizes[0]
    settings = {name: given[name] for name in kind.fills if name in given}
    settings |= {name: value for name, value in section.items() if name != "kind"}
    target = _target(kind)
    for name, parameter in inspect.signature(target).parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        if needed and name not in settings:
            raise ValueError(f"{at}.{name} is missing: the kind {section['kind']} needs it")
    try:
        made: Quantizer = target(**settings)
    except (TypeError, ValueError, AssertionError, ArithmeticError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(text if text.startswith(at) else f"{at} of kind {section['kind']}: {text}") from error
    if not 1 <= made.n_codebooks <= MOST_CODEBOOKS:
        raise ValueError(f"{at} has {made.n_codebooks} codebooks, 1 to {MOST_CODEBOOKS} are possible")
    return made
