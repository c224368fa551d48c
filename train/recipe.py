"""Recipes: YAML files of settings, by name or path, changed from the command line and checked before data is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ..tokenizers.settings import checked, key_of

__all__ = ["RECIPES", "Optim", "Rounding", "as_values", "change", "checked", "read_recipe"]

RECIPES = Path(__file__).parent / "recipes"


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


def as_values(recipe: Any) -> dict[str, Any]:
    """The values that :func:`checked` makes a recipe of; settings that had their defaults are among them."""
    return dataclasses.asdict(recipe, dict_factory=lambda items: {key_of(name): value for name, value in items})


def _value(text: str) -> Any:
    """YAML, where also 1e-3 is a number."""
    try:
        value = yaml.safe_load(text)
        return float(value) if isinstance(value, str) else value
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} is no value of a setting") from error
    except ValueError:
        return value
