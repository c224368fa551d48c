"""Settings by name, as YAML and JSON have them, checked against type hints. Standard library only."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def checked(kind: type[T], values: Any, at: str = "") -> T:
    """Make the dataclass ``kind`` of a recipe's values: sections become dataclasses, lists become tuples.

    Args:   at: name of the section, for messages.
    Raises: ValueError that names the first setting that is unknown, missing or of another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{at} is a section of a recipe, got {values!r}")
    names, types_of = {key_of(f.name): f for f in dataclasses.fields(kind)}, get_type_hints(kind)  # type: ignore[arg-type]
    prefix = f"{at}." if at else ""
    for name in values:
        if name not in names:
            raise ValueError(f"the recipe has an unknown setting {prefix}{name}: known are {', '.join(names)}")
    for name, field in names.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ValueError(f"the recipe lacks {prefix}{name}")
    own = {name: names[name].name for name in values}
    return kind(**{own[name]: converted(types_of[own[name]], value, prefix + name) for name, value in values.items()})


def key_of(field: str) -> str:
    """The setting of a field: ``lambda_`` is ``lambda``, which Python keeps for itself."""
    return field.removesuffix("_")


def converted(hint: Any, value: Any, at: str) -> Any:
    """``value`` as the type ``hint``. Raises ValueError if it is none."""
    origin, inner = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return checked(hint, value, at)  # type: ignore[arg-type]
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{at} is {' or '.join(map(str, inner))}, got {value!r}")
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else converted(next(t for t in inner if t is not type(None)), value, at)
    if hint is Any:
        return value
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{at} is a section of settings, got {value!r}")
        return value
    if origin in (tuple, Sequence):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{at} is a list, got {value!r}")
        inner = inner if origin is tuple else (*inner, ...)
        if inner[1:] != (...,) and len(value) != len(inner):
            raise ValueError(f"{at} has {len(inner)} entries, got {value!r}")
        each = inner[:1] * len(value) if inner[1:] == (...,) else inner
        return tuple(converted(t, v, at) for t, v in zip(each, value, strict=True))
    numeric = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and numeric and math.isfinite(value):
        return float(value)
    if hint is float or not isinstance(value, hint) or (hint is int and not numeric):
        raise ValueError(f"{at} is {_NOUNS.get(hint, hint.__name__)}, got {value!r}")
    return value


_NOUNS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
