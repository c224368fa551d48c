"""Folders of models: where a name, a folder or a hub id leads, and what its `config.json` says. No torch."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .registry import tokenizer_kinds

ASSETS = Path(__file__).resolve().parent.parent / "assets"
CONFIG_FILE = "config.json"


def released_models(classes: Collection[str] | None = None) -> list[str]:
    """Names of the models of these classes that come with the package; tokenizers, where nothing else is said."""
    classes = tokenizer_kinds() if classes is None else classes
    folders = [p.parent for p in ASSETS.glob(f"*/{CONFIG_FILE}")]
    return sorted(folder.name for folder in folders if class_of(folder) in classes)


def class_of(folder: Path) -> str:
    """The class that the ``config.json`` of a released model names."""
    return str(json.loads((folder / CONFIG_FILE).read_text())["class"])


def find_model(name: str | Path, classes: Collection[str] | None = None) -> Path:
    """Folder of a model given by folder, release name or hub id. Raises FileNotFoundError.

    Args:   classes: only releases of these count, tokenizers by default; what a folder holds, its reader will tell.
    """
    path = Path(name)
    if (path / CONFIG_FILE).is_file():
        return path
    released = released_models(classes)
    if str(name) in released:
        return ASSETS / str(name)
    if str(name).count("/") == 1 and not path.exists():
        try:
            from huggingface_hub import snapshot_download
        except ImportError:
            hint = "; to load it from the Hugging Face hub, pip install 'tokodec[hub]'"
        else:
            # No pickles, no code: only what a model folder may hold.
            return Path(snapshot_download(str(name), allow_patterns=["*.json", "*.safetensors", "README.md"]))
    else:
        hint = ""
    known = f" or one of {', '.join(released)}" if released else ""
    raise FileNotFoundError(f"no model {str(name)!r}: give a folder with a {CONFIG_FILE}{known}{hint}")


def read_config(folder: Path, classes: Collection[str] | None = None) -> dict[str, Any]:
    """Parsed ``config.json`` of a model of one of these classes, its shape checked. Raises ValueError."""
    classes = tokenizer_kinds() if classes is None else classes
    path = folder / CONFIG_FILE
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    keys = {"class", "name", "config"}
    if not isinstance(found, dict) or set(found) - {"base"} != keys or not isinstance(found["config"], dict):
        raise ValueError(f"{path} must hold exactly 'class', 'name' and 'config', and 'base' if it is a variant")
    if not isinstance(found["name"], str) or not isinstance(found.get("base", ""), str):
        raise ValueError(f"{path}: 'name' or 'base' is not a text")
    if found["class"] not in classes:
        raise ValueError(f"{path} names an unknown class {found['class']!r}; known: {', '.join(classes)}")
    return found
