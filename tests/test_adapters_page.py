"""What adapters/README.md and its example say is true: the Python runs, and entropy models save what the table says."""

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import tokodec
from tokodec.codec.cli import run
from tokodec.tests.adapted_models import saved, tiny_codec, tiny_quantizer
from tokodec.tokenizers.folders import ASSETS

PAGE = Path(tokodec.__file__).parent / "tokenizers" / "adapters" / "README.md"
SOUND, PICTURE, TABLE = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("code", [SOUND, PICTURE, TABLE], ids=["sound", "picture", "table"])
def test_twenty_lines(code: str) -> None:
    assert len(code.splitlines()) <= 20


def test_sound(here: Path) -> None:
    saved(tiny_codec("dac"), here / "my-dac")
    t = np.arange(3 * 16000) / 16000
    (here / "songs").mkdir()
    for path in ("song.wav", "songs/a.wav"):
        soundfile.write(here / path, 0.3 * np.sin(2 * np.pi * 300 * t), 16000)
    names: dict[str, Any] = {"x": torch.rand(2, 1, 1000) - 0.5}
    exec(SOUND, names)
    assert names["sound"].samples.shape == (1, 32000)
    assert names["x_hat"].shape == (2, 1, 1000)
    assert names["dataset"][0].shape == (3, 100)
    shell = re.findall(r"^codec (.*?)(?: +#.*)?$", PAGE.read_text(), re.M)
    for line in shell:
        words = [word.replace("hf:facebook/encodec_24khz", "./my-dac") for word in line.split()]
        words = ["1" if word == "10" else "2" if word == "20" else word for word in words]
        assert run([*words, "--force"] if words[0] in ("encode", "prior") else words) == 0, line


def test_picture(here: Path) -> None:
    torch.manual_seed(0)
    Image.open(ASSETS / "kodim05.webp").convert("RGB").resize((80, 56)).save(here / "photo.png")
    names: dict[str, Any] = {"x": torch.rand(4, 3, 64, 64)}
    exec(PICTURE, names)
    assert names["picture"].pixels.shape == (56, 80, 3)
    assert set(names["out"].losses) == {"commitment", "codebook", "auxiliary"}
    names["loss"].backward()
    assert json.loads((here / "my-vq" / "config.json").read_text())["class"] == "VQImage"


def test_table(here: Path) -> None:
    torch.manual_seed(0)
    table = torch.randn(500, 8) * torch.linspace(1, 0.1, 8)
    quantizer = tiny_quantizer("ResidualVQ")
    names: dict[str, Any] = {"quantizer": quantizer, "table": table}
    exec(TABLE, names)
    with torch.no_grad():
        wanted = quantizer(table[None])[0][0]
    assert torch.allclose(names["vectors"], wanted, atol=1e-6)
    assert sum(map(len, names["payloads"])) < 500 * 3 * 4 / 8  # of codes of 4 bits


@pytest.mark.usefixtures("_trains")
def test_the_example(here: Path, counted_time: Callable[[ModuleType, float], AbstractContextManager[None]]) -> None:
    """A few steps: files of all three kinds decode to the same pixels, and static tables take fewer bytes."""
    from tokodec.train import adapted, prior

    rng = np.random.default_rng(0)
    for folder in ("data", "test"):
        (here / folder).mkdir()
        for i in range(9 if folder == "data" else 1):
            coarse = rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)
            Image.fromarray(coarse).resize((128, 96), Image.Resampling.BICUBIC).save(here / folder / f"{i}.png")
    words = ["--data", "data", "--test", "test", "--minutes", "0.1", "--prior-minutes", "0.1", "--device", "cpu"]
    with counted_time(adapted, 1.0), counted_time(prior, 0.6):
        adapted.main([*words, "--out", "vq"])
    found = json.loads((here / "vq" / "measured.json").read_text())
    assert found["steps"] == 5
    fixed, static, context = (found[name] for name in ("fixed lengths", "static tables", "context prior"))
    assert fixed["psnr"] == static["psnr"] == context["psnr"]
    assert static["bytes"] < fixed["bytes"]
    assert fixed["bytes"] == pytest.approx(16 * 12 * 4 * 9 / 8, abs=150)
