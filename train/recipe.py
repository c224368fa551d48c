"""Recipes: YAML files of settings, by name or path, changed from the command line and checked before data is read."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

RECIPES = Path(__file__).parent / "recipes"

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Optim:
    """Steps and their size."""

    batch: int  # crops a process and step
    lr: float
    warmup_steps: int
    cooldown: float  # the last share of the time, in which the learning rate falls linearly to zero
    grad_clip: float
    betas: tuple[float, float]
    muon: float = 0.0  # learning rate of Muon for matrices, times lr; 0: AdamW for all
    weight_decay: float = 0.0  # of matrices
    accumulate: int = 1  # batches whose gradients make one step

    def __post_init__(self) -> None:
        if min(self.batch, self.warmup_steps, self.accumulate) < 1 or self.cooldown <= 0:
            raise ValueError("optim.batch, warmup_steps and accumulate are 1 or more, and cooldown is above 0")


@dataclasses.dataclass(frozen=True)
class Rounding:
    """Training with weights rounded as a release rounds them."""

    share: float  # of the time, at the end


def read_recipe(name: str) -> dict[str, Any]:
    """The recipe of that name in ``train/recipes``, or of that path. Raises ValueError if there is none."""
    path = Path(name) if Path(name).is_file() else RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise ValueError(f"no recipe {name}: give a file or one of {known}")
    try:
        recipe = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} is no recipe: it has no settings by name")
    return recipe


def change(recipe: dict[str, Any], items: Iterable[str]) -> None:
    """Apply changes like ``optim.lr=1e-3`` in place. Raises ValueError for a setting that the recipe lacks."""
    for item in items:
        key, _, value = item.partition("=")
        *parents, leaf = key.split(".")
        node: Any = recipe
        for parent in parents:
            node = node.get(parent, {}) if isinstance(node, dict) else {}
        if not isinstance(node, dict) or leaf not in node:
            raise ValueError(f"the recipe has no {key}")
        node[leaf] = _value(value)


def checked(kind: type[T], values: Any, at: str = "") -> T:
    """Make the dataclass ``kind`` of a recipe's values: sections become dataclasses, lists become tuples.

    Args:   at: name of the section, for messages.
    Raises: ValueError that names the first setting that is unknown, missing or of another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{at} is a section of a recipe, got {values!r}")
    names, types_of = {_key(f.name): f for f in dataclasses.fields(kind)}, get_type_hints(kind)  # type: ignore[arg-type]
    prefix = f"{at}." if at else ""
    for name in values:
        if name not in names:
            raise ValueError(f"the recipe has an unknown setting {prefix}{name}: known are {', '.join(names)}")
    for name, field in names.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ValueError(f"the recipe lacks {prefix}{name}")
    own = {name: names[name].name for name in values}
    return kind(**{own[name]: _converted(types_of[own[name]], value, prefix + name) for name, value in values.items()})


def as_values(recipe: Any) -> dict[str, Any]:
    """The values that :func:`checked` makes a recipe of; settings that had their defaults are among them."""
    return dataclasses.asdict(recipe, dict_factory=lambda items: {_key(name): value for name, value in items})


def _key(field: str) -> str:
    """The setting of a field: ``lambda_`` is ``lambda``, which Python keeps for itself."""
    return field.removesuffix("_")


def _converted(hint: Any, value: Any, at: str) -> Any:
    """``value`` as the type ``hint``. Raises ValueError if it is none."""
    origin, inner = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return checked(hint, value, at)  # type: ignore[arg-type]
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{at} is {' or '.join(map(str, inner))}, got {value!r}")
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else _converted(next(t for t in inner if t is not type(None)), value, at)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{at} is a list, got {value!r}")
        if inner[1:] != (...,) and len(value) != len(inner):
            raise ValueError(f"{at} has {len(inner)} entries, got {value!r}")
        each = inner[:1] * len(value) if inner[1:] == (...,) else inner
        return tuple(_converted(t, v, at) for t, v in zip(each, value, strict=True))
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and numeric and math.isfinite(value):
        return float(value)
    if hint is float or not isinstance(value, hint) or (hint is int and not numeric):
        raise ValueError(f"{at} is {_NOUNS.get(hint, hint.__name__)}, got {value!r}")
    return value


_NOUNS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def _value(text: str) -> Any:
    """YAML, where also 1e-3 is a number."""
    try:
        value = yaml.safe_load(text)
        return float(value) if isinstance(value, str) else value
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} is no value of a setting") from error
    except ValueError:
        return value
