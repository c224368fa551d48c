"""Names in docstrings, as in ``:func:`.curves.BdRate```, are those of things that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import tokodec

ROOT = Path(tokodec.__file__).resolve().parent
FOLDERS = ("codec", "entropy", "tokenizers", "train")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
ROLE = re.compile(r":(mod|func|class|meth|attr|data|exc):`~?(\.*)([\w.]+)`")


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def names_in(path: Path) -> set[str]:
    """Functions, classes, and all that is assigned or imported."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.id if isinstance(node, ast.Name) else node.attr)
    return found


NAMES = {module_of(path): names_in(path) for path in FILES}


def there(module: str, role: str, dots: str, name: str) -> bool:
    """Whether a name is in this module, or, with dots, in that which they lead to from here."""
    parts = name.split(".")
    if parts[0] == "tokodec":
        dots, parts, module = ".", parts[1:], ""
    if not dots:
        return role == "mod" or {parts[0], parts[-1]} & NAMES[module] != set()
    package = module.split(".") if (ROOT / module.replace(".", "/")).is_dir() else module.split(".")[:-1]
    parts = [*filter(None, package[: len(package) - len(dots) + 1]), *parts]
    every = {".".join(parts[:i]): parts[i:] for i in range(1, len(parts) + 1)}
    packages = {known[: len(outer)] for known in NAMES for outer in every if known.startswith(f"{outer}.")}
    if role == "mod":
        return ".".join(parts) in NAMES or ".".join(parts) in packages
    return any(rest and rest[0] in NAMES.get(outer, set()) for outer, rest in every.items())


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_what_is_named_is_there(path: Path) -> None:
    module = module_of(path)
    wrong = [m[0] for m in ROLE.finditer(path.read_text(encoding="utf-8")) if not there(module, *m.groups())]
    assert wrong == []


def test_a_name_that_is_gone_is_found() -> None:
    assert there("codec.video.refine", "mod", "..", "image.refine")
    assert not there("codec.video.refine", "mod", ".", "refine_sound")
    assert there("codec.generate.files", "class", "..", "errors.TokodecError")
    assert not there("codec.generate.files", "class", ".", "errors.TokodecError")
    assert not there("codec.video.fit.optimize", "func", ".", "fit_video.bit_cost")
