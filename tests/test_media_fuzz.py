"""A few mutated files of each container, see media_fuzz.py; and the valid ones, so that it is known to read them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("media_fuzz", Path(__file__).with_name("media_fuzz.py"))
assert _spec is not None
assert _spec.loader is not None
media_fuzz = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(media_fuzz)
NAMES: list[str] = media_fuzz.NAMES


@pytest.mark.parametrize("name", NAMES)
def test_valid_files_are_read(name: str) -> None:
    assert any(unit in media_fuzz.read(media_fuzz.sample(name)) for unit in ("frames", "samples", "pixels"))


def test_mutated_files_are_read_or_refused_by_name() -> None:
    cases = [f"{name}:{seed}" for name in NAMES for seed in range(5)]
    assert [(case, said) for case, said, well in media_fuzz.in_child(cases) if not well] == []


def test_a_case_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal and an error without a name are found, and what follows is run."""
    script = tmp_path / "fuzz.py"
    bad = "case == 'a.wav:1' and os.kill(os.getpid(), 11)\n        {'': 0}['x' * (case == 'a.wav:2')]\n        print("
    text = Path(str(media_fuzz.__file__)).read_text()
    script.write_text(text.replace("print(read(", f"{bad}read(", 1))
    monkeypatch.setattr(media_fuzz, "__file__", str(script))
    found = [(case, said) for case, said, well in media_fuzz.in_child([f"a.wav:{i}" for i in range(4)]) if not well]
    assert found == [("a.wav:1", "exit -11: "), ("a.wav:2", "exit 1: KeyError: 'x'")]
