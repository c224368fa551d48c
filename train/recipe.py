"""Recipes: YAML files of settings, by name or path, and changes to them from the command line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

RECIPES = Path(__file__).parent / "recipes"


def read_recipe(name: str) -> dict[str, Any]:
    """The recipe of that name in ``train/recipes``, or of that path. Raises ValueError if there is none."""
    path = Path(name) if Path(name).is_file() else RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise ValueError(f"no recipe {name}: give a file or one of {known}")
    recipe: dict[str, Any] = yaml.safe_load(path.read_text())
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


def _value(text: str) -> Any:
    """YAML, where also 1e-3 is a number."""
    value = yaml.safe_load(text)
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
