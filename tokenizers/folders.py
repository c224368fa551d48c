"""Folders of models: where a release name, a path or `hf:USER/MODEL` leads, and what its `config.json` says. No torch.

How a model is named says where it is looked for, so that no file that happens to lie somewhere changes what a command
loads::

    image-photo             a release: it comes with the package, whatever the working directory holds
    ./mine  runs/mine       a folder: what has a path separator, begins with a dot, or is a :class:`~pathlib.Path`
    hf:user/model           a model of the Hugging Face hub: only this asks the network

A folder may also be one that another library wrote, see :mod:`.adapters`.

Names that files bring along (the header of a `.tok` file, the spec of tokens, the window of a generator) are looked up
among the releases alone, see :func:`is_release`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .registry import foreign_class, tokenizer_kinds

ASSETS = Path(__file__).resolve().parent.parent / "assets"
CONFIG_FILE = "config.json"
CURVES_FILE = "curves.csv"  # of a folder that a training run writes to
HUB = "hf:"


def released_models(classes: Collection[str] | None = None) -> list[str]:
    """Names of the models of these classes that come with the package; tokenizers, where nothing else is said."""
    classes = tokenizer_kinds() if classes is None else classes
    folders = [p.parent for p in ASSETS.glob(f"*/{CONFIG_FILE}")]
    return sorted(folder.name for folder in folders if class_of(folder) in classes)


def class_of(folder: Path) -> str:
    """The class that the ``config.json`` of a released model names."""
    return str(json.loads((folder / CONFIG_FILE).read_text())["class"])


def is_release(name: str, classes: Collection[str] | None = None) -> bool:
    """Whether a model of that name comes with the package: the only kind that a file may lead to."""
    return name in released_models(classes)


def is_path(name: str | Path) -> bool:
    """Whether this names a folder, and neither a release nor a model of the hub; see the module's text."""
    if isinstance(name, Path):
        return True
    separators = {"/", os.sep, os.altsep or os.sep}
    return name.startswith(".") or (not name.startswith(HUB) and any(mark in name for mark in separators))


def as_text(name: str | Path) -> str:
    """The same model as text: a path without a separator, which would be the name of a release, gets one."""
    if isinstance(name, str) or is_path(str(name)):
        return str(name)
    return f"{os.curdir}{os.sep}{name}"


def find_model(name: str | Path, classes: Collection[str] | None = None, **hub: Any) -> Path:
    """Find the folder of a model by release name, path or `hf:USER/MODEL`; the module's text says which is which.

    Args:   classes: only releases of these count, tokenizers by default; what a folder holds, its reader will tell.
            hub: for `snapshot_download`, such as ``revision``; other models have none of it.
    Raises: FileNotFoundError, with the way to say what was probably meant. Whatever is not there asks no network.
    """
    if hub and not str(name).startswith(HUB):
        said = " and ".join(sorted(hub))
        raise ValueError(f"{said} of {str(name)!r}: only models of the hub, {HUB}USER/MODEL, have it")
    if is_path(name):
        path = Path(name)
        if (path / CONFIG_FILE).is_file():
            return path
        hint = f"; a model of the Hugging Face hub is {HUB}{name}" if str(name).count("/") == 1 else ""
        if (path / CURVES_FILE).is_file():
            hint = "; the run there writes its weights at its first evaluation"
        raise FileNotFoundError(f"no model in the folder {str(name)!r}: it has no {CONFIG_FILE}{hint}")
    name = str(name)
    if name.startswith(HUB):
        return _from_hub(name.removeprefix(HUB), **hub)
    released = released_models(classes)
    if name in released:
        return ASSETS / name
    here = f"; the folder of that name is {as_text(Path(name))}" if (Path(name) / CONFIG_FILE).is_file() else ""
    known = f" or one of {', '.join(released)}" if released else ""
    raise FileNotFoundError(f"no model {name!r}: give the path of a folder with a {CONFIG_FILE}{known}{here}")


def _from_hub(name: str, **hub: Any) -> Path:
    """Folder of a model of the Hugging Face hub, "user/model". Raises FileNotFoundError."""
    if name.count("/") != 1:
        raise FileNotFoundError(f"no model {HUB + name!r}: models of the Hugging Face hub are {HUB}USER/MODEL")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        hint = "to load models from the Hugging Face hub, pip install 'tokodec[hub]'"
        raise FileNotFoundError(f"no model {HUB + name!r}: {hint}") from None
    # No pickles, no code: only what a model folder may hold.
    return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "README.md"], **hub))


def parse_json(text: str | bytes) -> Any:
    """What a file's JSON says. Raises ValueError, also for lists in lists that are deeper than Python goes."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_config(folder: Path, classes: Collection[str] | None = None) -> dict[str, Any]:
    """Parsed ``config.json`` of a model of one of these classes, its shape checked. Raises ValueError.

    That of a folder of another library is what "config" holds, beside the class that reads it and the folder's name.
    """
    classes = tokenizer_kinds() if classes is None else classes
    path = folder / CONFIG_FILE
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if isinstance(found, dict) and "class" not in found and (foreign := foreign_class(found)) in classes:
        return {"class": foreign, "name": name_of(folder), "config": found}
    keys = {"class", "name", "config"}
    if not isinstance(found, dict) or set(found) - {"base"} != keys or not isinstance(found["config"], dict):
        raise ValueError(f"{path} must hold exactly 'class', 'name' and 'config', and 'base' if it is a variant")
    if not all(isinstance(text, str) for text in (found["class"], found["name"], found.get("base", ""))):
        raise ValueError(f"{path}: 'class', 'name' or 'base' is not a text")
    if found["class"] not in classes:
        raise ValueError(f"{path} names an unknown class {found['class']!r}; known: {', '.join(classes)}")
    return found


def name_of(folder: Path) -> str:
    """What a folder of another library is called in files: "user/model" if it comes from the hub, else its own name."""
    folder = folder.absolute()
    name = folder.name
    if folder.parent.name == "snapshots":  # of the hub's cache: models--user--model/snapshots/COMMIT
        name = folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    return re.sub(r"[^A-Za-z0-9._/-]", "-", name).lstrip("._/-")[:64] or "model"
