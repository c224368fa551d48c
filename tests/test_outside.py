"""A tokenizer from a package that is not ours goes through everything, and no line of the product knows of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokodec.codec import registry
from tokodec.codec.registry import PriorKind, register_format, register_prior
from tokodec.tokenizers.registry import TokenizerKind, register_tokenizer

TOY = Path(__file__).resolve().parent / "toy" / "toy_tokenizer.py"
SAVE = "import sys, toy_tokenizer; toy_tokenizer.BlockColours().save_pretrained(sys.argv[1])"
COMMANDS = """
import json, sys
from tokodec.codec.cli import run
for words in json.loads(sys.argv[1]):
    if code := run(words):
        sys.exit(code)
"""
DATASET = """
import sys, torch, tokodec
from tokodec.datasets import TokenDataset
dataset = TokenDataset(sys.argv[1], model=sys.argv[2], crop=32)
print(len(dataset), tuple(dataset[0].shape), dataset.codebook_sizes)
tokenizer = tokodec.load(sys.argv[2])
print(type(tokenizer).__name__, tuple(tokenizer.decode(dataset.tokens(0)).shape))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process in which the package of the toy is installed, and the toy nowhere else."""
    site = tmp_path_factory.mktemp("site")
    (site / TOY.name).write_text(TOY.read_text())
    info = site / "toy_tokenizer-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-tokenizer\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tokodec.tokenizers]\nBlockColours = toy_tokenizer:KIND\n")
    home = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), *home])}


@pytest.fixture(scope="module")
def model(installed: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "block-colours"
    python(installed, SAVE, folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(4):
        coarse = rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((83, 70), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


def python(environment: dict[str, str], code: str, *arguments: object, fails: bool = False) -> str:
    words = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


def codec(environment: dict[str, str], *commands: list[object], fails: bool = False) -> str:
    """Commands of `codec` one after the other, in one process."""
    return python(environment, COMMANDS, json.dumps([[str(word) for word in words] for words in commands]), fails=fails)


def test_the_toy_is_a_page() -> None:
    assert len(TOY.read_text().splitlines()) < 100


def test_files(installed: dict[str, str], model: Path, pictures: Path, tmp_path: Path) -> None:
    """Encode, info, decode, at every number of levels; without an entropy model codes have fixed lengths."""
    source, commands, sizes = pictures / "0.png", [], []
    for levels in (1, 2):
        tok, back = tmp_path / f"{levels}.tok", tmp_path / f"{levels}.png"
        commands += [
            ["encode", source, "-m", model, "--levels", levels, "-o", tok],
            ["info", tok, "--json"],
            ["decode", tok, "-m", model, "-o", back],
        ]
    for levels, line in zip((1, 2), codec(installed, *commands).splitlines(), strict=True):
        told = json.loads(line)
        assert (told["model"], told["prior"], told["stride"], told["layers"]) == ("block-colours", "static", 8, levels)
        sizes.append(sum(told["layer_bytes"]))
        error = np.asarray(Image.open(tmp_path / f"{levels}.png")).astype(float) - np.asarray(Image.open(source))
        blocks = error[:64, :80].reshape(8, 8, 10, 8, 3).mean((1, 3))
        assert np.abs(blocks).max() <= 255 / (10 if levels == 1 else 30) + 1.5  # half a step
    cells = 9 * 11
    assert sizes[0] * 8 == pytest.approx(cells * np.log2(125), abs=64)
    assert sizes[1] * 8 == pytest.approx(cells * np.log2(125 * 27), abs=128)
    line = codec(installed, ["decode", tmp_path / "2.tok", "-o", tmp_path / "x.png"], fails=True)
    assert line.count("\n") == 1
    assert "give its folder with --model" in line


def test_tokens_and_corpora(installed: dict[str, str], model: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "0.npz"
    codec(
        installed,
        ["tokenize", pictures / "0.png", "-m", model, "-o", out],
        *(["detokenize", out, "-m", model, "-o", tmp_path / f"back{suffix}"] for suffix in (".png", ".tok")),
        ["decode", tmp_path / "back.tok", "-m", model, "-o", tmp_path / "again.png"],
        *(["tokenize", pictures, "-m", model, "-o", tmp_path / name] for name in ("corpus.tar", "corpus.bin")),
    )
    with np.load(out) as arrays:
        assert arrays["codes"].shape == (1, 2, 9, 11)
    first, second = (np.asarray(Image.open(tmp_path / name)) for name in ("back.png", "again.png"))
    assert np.array_equal(first, second)
    assert min((tmp_path / name).stat().st_size for name in ("corpus.tar", "corpus.bin")) > 0
    told = python(installed, DATASET, pictures, model).splitlines()
    assert told == ["4 (2, 4, 4) (125, 27)", "BlockColours (1, 3, 32, 32)"]


def test_a_prior_is_trained_and_used(installed: dict[str, str], model: Path, pictures: Path, tmp_path: Path) -> None:
    train = "import sys; from tokodec.train.prior import main; main(sys.argv[1:])"
    small = ["net.width=[16]", "net.hidden=[32]", "net.features=[8]", "net.digit=[8]", "data.views=1", "optim.rows=256"]
    words = ["--data", pictures, "--tokenizer", model, "--minutes", 0.1, "--out", tmp_path / "prior", "--device", "cpu"]
    told = python(installed, train, *words, "--set", "data.holdout_every=2", *small)
    assert "order-0" in told
    folder = tmp_path / "with-prior"
    folder.mkdir()
    for path in (*model.iterdir(), tmp_path / "prior" / "context.safetensors"):
        (folder / path.name).write_bytes(path.read_bytes())
    commands = []
    for name, own in (("context", folder), ("static", model)):
        tok = tmp_path / f"{name}.tok"
        commands += [["encode", pictures / "0.png", "-m", own, "-o", tok], ["info", tok, "--json"]]
        commands += [["decode", tok, "-m", own, "-o", tmp_path / f"{name}.png"]]
    told = codec(installed, *commands)
    assert [json.loads(line)["prior"] for line in told.splitlines()] == ["context", "static"]
    assert (tmp_path / "context.png").read_bytes() == (tmp_path / "static.png").read_bytes()


def test_a_benchmark(installed: dict[str, str], model: Path, pictures: Path, tmp_path: Path) -> None:
    words = ["bench", "image", pictures, "-m", model, "--against", "jpeg", "--metrics", "psnr", "--limit", 2]
    codec(installed, [*words, "--no-memory", "-o", tmp_path / "out"])
    assert "block-colours" in (tmp_path / "out" / "results.json").read_text()


# ---------------------------------------------------------------------------------------------------------- registries


def test_names_are_taken_once() -> None:
    with pytest.raises(ValueError, match="another tokenizer class called 'ImageGrid'"):
        register_tokenizer("ImageGrid", TokenizerKind("elsewhere", "image"))
    register_tokenizer("ImageGrid", TokenizerKind(".image.grid", "image"))  # the same once more
    for name, kind in (("context", PriorKind(64, "x.safetensors", "x:X")), ("mine", PriorKind(2, "x", "x:X"))):
        with pytest.raises(ValueError, match=r"another entropy model|wire ids"):
            register_prior(name, kind)
    with pytest.raises(ValueError, match="another format of image"):
        register_format("image", "levels", "elsewhere:Format")
    with pytest.raises(ValueError, match="unknown modality"):
        register_format("smell", "levels", "elsewhere:Format")


def test_an_entropy_model_of_others_has_a_number_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_ADDED", {})
    register_prior("mine", PriorKind(70, "mine.safetensors", "my_package:Mine"))
    assert registry.PRIOR_NAMES[70] == "mine"
    assert next(iter(registry.prior_kinds())) == "mine"  # it is what a model that has it is used with
    with pytest.raises(ValueError, match="wire id 70"):
        register_prior("other", PriorKind(70, "other.safetensors", "my_package:Other"))
    with pytest.raises(KeyError):
        registry.PRIOR_NAMES[71]
