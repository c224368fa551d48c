"""The shape of the house: no import circles, wings that know only what lies below, files and signatures of a size that
a reader can hold. `tests/test_package.py` has the rules between the top folders."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("codec", "entropy", "tokenizers", "train")
SOURCES = [ROOT / "__init__.py", *(p for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py")))]
def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


NAMES = {path: _module(path) for path in SOURCES}
MOST_LINES = 500
# Files that are longer, each with the reason why it is one concept.
LONG = {
    "tokenizers/quantize/nearest_triton.py": "the kernels of one search, whose constants and layouts belong together",
}
MOST_PARAMETERS = 10
MOST_POSITIONAL = 5
# Kernels take pointers, strides and sizes; layers of PyTorch are positional everywhere.
KERNELS = {"tokenizers/quantize/nearest_triton.py", "tokenizers/quantize/triton_launch.py"}
VARIADIC = {"Sequential", "view", "permute", "reshape", "pack", "add_row", "max", "min", "hypot", "gcd", "zip"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> Iterator[str]:
    """Modules of ours that a file imports, wherever in the file: at the top, for types only, or in a function."""
    package = path.relative_to(ROOT).parts[:-1]
    modules = set(NAMES.values())
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *([node.module] if node.module else [])]
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                yield whole if whole in modules else ".".join(base)


ARROWS = {NAMES[path]: {name for name in imported(path) if name != NAMES[path]} for path in SOURCES}


def test_there_is_no_import_circle() -> None:
    """Also none through imports for types or inside functions: they only hide it."""
    done: set[str] = set()
    for start in ARROWS:
        path: list[str] = []

        def walk(name: str, path: list[str] = path) -> None:
            assert name not in path, " -> ".join([*path[path.index(name) :], name])
            if name in done:
                return
            path.append(name)
            for other in sorted(ARROWS.get(name, ())):
                walk(other)
            path.pop()
            done.add(name)

        walk(start)


def test_a_circle_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARROWS, "codec.errors", {"codec.files"})
    with pytest.raises(AssertionError, match=r"codec\.errors -> codec\.files"):
        test_there_is_no_import_circle()


def test_only_the_command_line_knows_the_benchmarks() -> None:
    for name, others in ARROWS.items():
        if not name.startswith("codec.bench") and name != "codec.cli":
            assert not [other for other in others if other.startswith("codec.bench")], name
    assert "codec.bench.cli" in ARROWS["codec.cli"]
    assert not [name for name in ARROWS if name.startswith("codec.bench") and "codec.cli" in ARROWS[name]]


def test_wings_do_not_know_those_who_choose_among_them() -> None:
    """The front of the codec knows formats; a format knows its wing, and a video the sound and stills that it holds."""
    front = {f"codec.{name}" for name in ("encode", "decode", "tokens", "info", "formats", "cli", "datasets")}
    wings = {"image": set(), "audio": set(), "video": {"audio", "image"}}
    for name, others in ARROWS.items():
        wing = name.split(".")[1] if name.count(".") > 1 else ""
        if name.startswith("codec.") and wing in wings:
            assert not others & front, name
            known = {other.split(".")[1] for other in others if other.startswith("codec.") and other.count(".") > 1}
            assert not known & set(wings) - {wing} - wings[wing], name


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_have_a_size_that_can_be_read(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert (lines > MOST_LINES) == (relative(path) in LONG), f"{lines} lines"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_signatures_can_be_remembered(path: Path) -> None:
    """At most ten parameters, and calls in which nobody has to count places."""
    if relative(path) in KERNELS:
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            count = len(names) - (names[:1] in (["self"], ["cls"]))
            assert count <= MOST_PARAMETERS, f"line {node.lineno}: {node.name} has {count} parameters"
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            count = sum(not isinstance(a, ast.Starred) for a in node.args)
            assert count <= MOST_POSITIONAL or called in VARIADIC, f"line {node.lineno}: {called} with {count} places"
