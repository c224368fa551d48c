"""References in docstrings lead somewhere: those of ``:mod:``, ``:class:``, ``:func:``, ``:meth:`` and ``:data:``."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tokodec

ROOT = Path(tokodec.__file__).resolve().parent
FILES = sorted(path for part in ("codec", "entropy", "tokenizers", "train") for path in (ROOT / part).rglob("*.py"))
ROLE = re.compile(r":(mod|class|func|meth|attr|data|exc):`([^`]*)`", re.S)


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Every string of a file that stands alone, with the name of the class around it."""

    def walk(node: ast.AST, owner: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            string = child.value if isinstance(child, ast.Expr) else None
            if isinstance(string, ast.Constant) and isinstance(string.value, str):
                yield owner, string.value
            yield from walk(child, child.name if isinstance(child, ast.ClassDef) else owner)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), "")


def absolute(name: str, package: str) -> str:
    """``..data`` as the name from the root; a name without dots in front stays."""
    dots = len(name) - len(name.lstrip("."))
    if not dots:
        return name
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - dots + 1], name.lstrip(".")])


def found(name: str) -> bool:
    """Whether a module, or something in it, has that absolute name."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(parts[:n]))
        except ModuleNotFoundError:
            continue
        return has(thing, parts[n:])
    return False


def has(thing: Any, parts: list[str]) -> bool:
    for part in parts:
        if hasattr(thing, part):
            thing = getattr(thing, part)
        else:  # set when it is made: a dataclass's field, or what a class only declares
            known = {name for base in getattr(thing, "__mro__", ()) for name in vars(base).get("__annotations__", {})}
            return part in known and part == parts[-1]
    return True


def leads_nowhere(path: Path) -> list[str]:
    """The references of a file that name nothing: from its package, in its module, or in the class around them."""
    module = ".".join(["tokodec", *path.relative_to(ROOT).with_suffix("").parts])
    package = module.removesuffix(".__init__") if path.name == "__init__.py" else module.rpartition(".")[0]
    text, lost = path.read_text(encoding="utf-8"), list[str]()
    if not ROLE.search(text):
        return []
    loaded = importlib.import_module(module.removesuffix(".__init__"))
    for owner, docstring in docstrings(path):
        for role, target in ROLE.findall(docstring):
            name = "".join(target.split()).lstrip("!~")
            own = name.split(".")
            inside = role != "mod" and (has(loaded, own) or (owner and has(getattr(loaded, owner, None), own)))
            set_there = role == "attr" and f"self.{name}" in text
            if not (inside or set_there or found(absolute(name, package))):
                lost.append(f":{role}:`{target}`")
    return lost


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_references_lead_somewhere(path: Path) -> None:
    assert not leads_nowhere(path)


def test_what_is_not_there_is_not_found() -> None:
    assert found("tokodec.train.loop.Pace.seconds")
    assert not found("tokodec.train.loop.Pace.hours")
    assert not found("tokodec.train.loops")
    assert absolute("..tokenizers.variants", "tokodec.train") == "tokodec.tokenizers.variants"
    assert absolute(".reading.list_media", "tokodec.train.data") == "tokodec.train.data.reading.list_media"
