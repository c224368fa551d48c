"""README.md is true: its commands and its Python run on small media, its table says what is released, its links lead
somewhere, and a stranger can read it."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import typer.main
from PIL import Image

from tokodec.codec.cli import app, run
from tokodec.codec.models import list_generators, list_models
from tokodec.codec.registry import FITTED, MODALITIES
from tokodec.tokenizers.folders import ASSETS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]
SET_UP = [line for line in SHELL if line.startswith("python3 -m venv ")]  # .ci/run runs these in a fresh environment
COMMANDS = [shlex.split(line, comments=True) for line in SHELL if line not in SET_UP]
PROSE = re.sub(r"```.*?```", "", README, flags=re.S)
NAMED = sorted({words[1] for words in COMMANDS} | {"bench", "demo", "detokenize", "models"})
FOLDERS = ("assets", "codec", "entropy", "tests", "tokenizers", "train")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
WEIGHTS = ("model", "hyperprior", "motion", "context", "tail", "pixels")


@pytest.fixture
def media(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the README speaks of, in the working folder: a photograph, a folder of two, a sound, a clip."""
    photo = Image.open(ASSETS / "kodim05.webp").convert("RGB").resize((192, 128))
    (tmp_path / "photos").mkdir()
    for name in ("photo.jpg", "photos/a.jpg", "photos/b.jpg"):
        photo.save(tmp_path / name, quality=95)
    sound, rate = soundfile.read(str(ASSETS / "ljspeech.ogg"), frames=30000, dtype="float32")
    soundfile.write(str(tmp_path / "speech.wav"), sound, rate)
    with av.open(str(tmp_path / "clip.mp4"), "w") as file:
        pictures = file.add_stream("libx264", rate=Fraction(10))
        pictures.width, pictures.height, pictures.pix_fmt = photo.width, photo.height, "yuv420p"
        speech = file.add_stream("aac", rate=rate, layout="mono")
        for i in range(6):
            frame = av.VideoFrame.from_ndarray(np.roll(np.asarray(photo), i, 1), format="rgb24")
            file.mux(pictures.encode(frame))
        samples = av.AudioFrame.from_ndarray(sound[None, : rate // 2].copy(), format="fltp", layout="mono")
        samples.sample_rate = rate
        file.mux(speech.encode(samples))
        for stream in (pictures, speech):
            file.mux(stream.encode(None))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_is_a_command_for_everything() -> None:
    assert len(SET_UP) == 2
    assert len(COMMANDS) == 10
    assert {words[0] for words in COMMANDS} == {"codec"}


def test_the_commands_run(media: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One after another, as they stand there: some read what others have written."""
    for words in COMMANDS:
        assert run(words[1:]) == 0, (words, capsys.readouterr().err)
        out = capsys.readouterr().out
        if words[1] == "info":
            assert json.loads(out)["model"] == MODALITIES["image"].encode_model
    sizes = {path.name: path.stat().st_size for path in media.iterdir() if path.is_file()}
    assert {"photo.tok", "back.png", "speech.tok", "clip.tok", "corpus.tar"} <= set(sizes)
    assert sizes["small.tok"] <= 2000 < sizes["photo.tok"]
    assert sizes["tiny.tok"] < sizes["small.tok"]
    assert soundfile.info(str(media / "part.wav")).duration == pytest.approx(0.5)
    assert sorted(path.name for path in (media / "samples").iterdir()) == [
        "sample-1.png", "sample-2.png", "samples.png",
    ]  # fmt: skip


def test_the_python_runs(media: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names: dict[str, object] = {"__name__": "example"}
    exec(compile(code, "README.md", "exec"), names)
    assert getattr(names["tokens"], "codes").shape == (1, 4, 4, 6)  # noqa: B009
    assert getattr(names["x_hat"], "shape") == (1, 3, 64, 96)  # noqa: B009
    assert getattr(names["picture"], "pixels").shape == (128, 192, 3)  # noqa: B009


@pytest.mark.parametrize("name", NAMED)
def test_commands_explain_themselves(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """And know every option that the README gives them."""
    assert f"`{name}`" in PROSE or [words for words in COMMANDS if words[1] == name]
    assert run([name, "--help"]) == 0
    text = capsys.readouterr().out
    for words in COMMANDS:
        for option in words[2:] if words[1] == name else ():
            assert not option.startswith("-") or re.search(rf"(?<!\w){option}\b", text), option


def table() -> dict[str, list[str]]:
    """Rows of the table of models by name: card, purpose, MiB, headline."""
    rows = re.findall(r"^\| \[([\w-]+)\]\((.+?)\) \| (.+?) \| (.+?) \| (.+?) \|$", README, re.M)
    return {name: cells for name, *cells in rows}


def test_the_table_has_every_model() -> None:
    names = {path.parent.name for path in ASSETS.glob("*/README.md")} | {FITTED}
    assert {entry["name"] for entry in list_models() + list_generators()} < names
    assert sorted(table()) == sorted(names)


@pytest.mark.parametrize("name", sorted(table()))
def test_a_row_says_what_the_card_says(name: str) -> None:
    """The size is that of the files, and what is printed in bold is a figure of the card."""
    card, _, size, headline = table()[name]
    files = [ASSETS / name / f"{part}.safetensors" for part in WEIGHTS]
    total = sum(path.stat().st_size for path in files if path.exists()) / 2**20
    assert size.lstrip("+") == (f"{total:.1f}" if total else "none")
    figures = re.findall(r"\*\*(.+?)\*\*", headline)
    assert figures
    text = (ROOT / card).read_text(encoding="utf-8")
    for figure in figures:
        for number in re.findall(r"\d+(?:\.\d+)?", figure):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d]|\.\d)", text), f"{number} is not in {card}"


def test_a_stranger_can_read_it() -> None:
    """Short, a sentence a line, no line of prose that is wider than the code."""
    lines = README.splitlines()
    assert len(lines) <= 130
    for line in PROSE.splitlines():
        if not line.startswith(("|", "![")):
            assert len(line) <= 120, line
            assert not re.search(r"[a-z)]\. [A-Z]", re.sub(r"^- \*\*.*?\*\*", "", line)), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not re.match(r"https?:|#", target):
            assert (page.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_are_named_are_there(page: Path) -> None:
    """Folders and files of code, from the root, from the part of the package that the page is about, or beside it.

    RUNS.md tells what was.
    """
    places = [ROOT, page.parent, *(ROOT / part for part in FOLDERS)]
    text = page.read_text(encoding="utf-8") if page.name != "RUNS.md" else ""
    for name in re.findall(r"`([\w*][\w./*-]*(?:\.(?:py|md|yaml)|/))`", text):
        assert [found for place in places for found in place.glob(name.rstrip("/"))], name
    for name in re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+)`", text):
        assert (ROOT / name).exists(), name


# ------------------------------------------------------------------------------------------- commands of all pages

RELEASED = {entry["name"] for entry in list_models() + list_generators()} | {FITTED}
MODELS = ("--model", "-m", "--tokenizer", "--resume", "--also")
CURRENT = [page for page in PAGES if page.name not in ("CHANGELOG.md", "RUNS.md")]


def commands(page: Path) -> list[list[str]]:
    """Lines of shell and code in sentences that call `codec` or a module of ours, as words."""
    text = page.read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines()]
    lines += re.findall(r"`((?:codec|python -m tokodec|torchrun) [^`]*)`", re.sub(r"```.*?```", "", text, flags=re.S))
    found = []
    for line in lines:
        words = shlex.split(line.replace("...", ""), comments=True)
        if "-m" in words[:4] and words[0] in ("python", "torchrun"):
            words = words[words.index("-m") + 1 :]
        if words and (words[0] == "codec" or words[0].startswith("tokodec.")):
            found.append(words)
    return found


def options_of(words: list[str], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The options that a command takes."""
    if words[0] == "tokodec.train.trial" and len(words) > 2:  # it hands on those of the trainer that it names
        own = options_of(words[:1], monkeypatch)
        return own | options_of([f"tokodec.train.{words[2]}"], monkeypatch)
    if words[0] == "codec":
        command: Any = typer.main.get_command(app)
        for name in words[1:]:
            if name.startswith("-") or not hasattr(command, "commands"):
                break
            assert name in command.commands, words
            command = command.commands[name]
        return {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
    parsers: list[argparse.ArgumentParser] = []

    def parse(self: argparse.ArgumentParser, *_: object) -> None:
        parsers.append(self)
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse)
        with pytest.raises(SystemExit):
            importlib.import_module(words[0]).main()
    return set(parsers[0]._option_string_actions)


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_of_pages_take_what_they_are_given(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands and their options are there, and a model is a release, a path, or capitals that stand for one."""
    for words in commands(page):
        known = options_of(words, monkeypatch)
        for option, value in zip(words, [*words[1:], ""], strict=True):
            if option.startswith("-") and not option[1:].isdigit():
                assert option.split("=")[0] in known | {"--help"}, words
            if option in MODELS and value and not value.isupper():
                assert value in RELEASED or "/" in value, words
