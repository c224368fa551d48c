"""Training fits the machine and the time: limits of reading, sizes without a GPU, recipes, and what the page says."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
import yaml
from PIL import Image
from torch import Tensor

import tokodec
from tokodec.codec.cli import app
from tokodec.train import image, loop
from tokodec.train import prior as prior_script
from tokodec.train.card import card_text, write_card
from tokodec.train.data.reading import Limits, Source, list_media, read_within
from tokodec.train.graphed import GraphedStep
from tokodec.train.recipe import RECIPES, Optim, as_values, change, checked, read_recipe
from tokodec.train.trainer import BaseTrainer, mean_rows

TRAIN = Path(tokodec.__file__).resolve().parent / "train"
SMALL = (
    "model.channels=[8,8,8] model.analysis_blocks=[1,1,1] model.synthesis_blocks=[1,1,1] model.dim=4"
    " model.codebook_sizes=[16] model.synthesis=[plain] export.bpp_limits=[9.0] data.holdout_every=3"
)
RECIPE_OF = {
    "audio-24k": "audio", "image-1d": "image_1d", "image-grid": "image", "image-photo": "photo",
    "image-photo-2": "photo", "image-photo-ms-ssim": "photo", "image-photo-2-ms-ssim": "photo", "video-grid": "video",
    "context": "prior", "context-audio": "prior", "context-video": "prior", "generator-audio": "generator",
    "generator-image": "generator", "image-lossless": "pixels", "video-motion": "video_motion",
    "compressai": "compressai", "image-hyperprior": "photo_compressai",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures of 300 x 280, and one file that is none."""
    out = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(9):
        Image.fromarray(rng.integers(0, 256, (280, 300, 3), dtype=np.uint8)).save(out / f"p{i}.png")
    (out / "p4b.png").write_bytes(b"no picture")
    return out


# ------------------------------------------------------------------------------------------------------------- reading


def number(path: Source) -> Tensor:
    """A medium of 100 bytes that says which it is."""
    if path.name == "4.bin":
        raise ValueError("damaged")
    return torch.full((100,), int(path.name.removesuffix(".bin")), dtype=torch.uint8)


def test_reading_stops_at_the_limit_of_memory_and_says_so() -> None:
    paths = [Path(f"{i}.bin") for i in range(200)]
    whole = read_within(paths, number, Limits(10**9, 60))
    assert list(whole.media) == [i for i in range(200) if i != 4]
    assert all(int(x[0]) == i for i, x in whole.media.items())
    assert whole.notes == ["note: 1 of 200 files cannot be read and are left out: 4.bin: damaged"]
    part = read_within(paths, number, Limits(5000, 60), seed=3)
    assert sum(x.numel() for x in part.media.values()) == 5000
    assert list(part.media) == sorted(part.media)
    assert 0 in part.media  # something is held out always
    assert max(part.media) > 120  # a sample, not the beginning
    note = r"1[45]\d of 200 files, drawn at random, are read on the way: .* limit of --memory"
    assert any(re.search(note, n) for n in part.notes)
    assert list(read_within(paths, number, Limits(5000, 60), seed=3).media) == list(part.media)
    slow = read_within(paths, number, Limits(10**9, 0.0))
    assert len(slow.media) < 200
    assert "limit of time" in slow.notes[-1]
    with pytest.raises(ValueError, match=r"none of 1 files can be read: 4.bin: damaged"):
        read_within([Path("4.bin")], number, Limits(1000, 60))


def test_held_out_media_are_those_at_every_nth_place() -> None:
    reading = read_within([Path(f"{i}.bin") for i in range(9)], number, Limits(10**9, 60))
    kept, held = reading.split(4)
    assert [int(x[0]) for x in held] == [0, 8]  # 4 cannot be read
    assert [int(x[0]) for x in kept] == [1, 2, 3, 5, 6, 7]


def test_media_are_listed_by_name(tmp_path: Path) -> None:
    for name in ("b/1.WAV", "a/2.wav", "a/0.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.name for p in list_media([tmp_path], {".wav"}, "sounds")] == ["1.WAV", "2.wav"]
    with pytest.raises(FileNotFoundError, match="no sounds in"):
        list_media([tmp_path / "a"], {".flac"}, "sounds")


# ------------------------------------------------------------------------------------------------------- without a GPU


@pytest.mark.usefixtures("_trains")
@pytest.mark.skipif(torch.cuda.is_available(), reason="sizes for a machine without a GPU")
def test_a_machine_without_a_gpu_gets_small_batches_and_an_estimate(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["image", "--data", str(folder), "--minutes", "0.02", "--out", str(out), "--memory", "0.0009", "--set"]
    monkeypatch.setattr(sys, "argv", [*words, *SMALL.split(), "optim.accumulate=3"])
    image.main()
    lines = capsys.readouterr().out.splitlines()
    assert any("limit of --memory" in line for line in lines)
    assert any("the middle 256 x 256 pixels" in line for line in lines)
    (estimate,) = (line for line in lines if " s to train: a step of " in line)
    assert "a step of 6 crops takes" in estimate  # three batches of two
    recipe = json.loads((out / "training.json").read_text())["recipe"]
    assert (recipe["optim"]["batch"], recipe["data"]["crop"]) == (2, 176)
    assert read_recipe("image-grid")["optim"]["batch"] == 64  # what a GPU gets
    assert loop.training_arguments(None, "x").parse_args(["--data", "a", "--out", "b"]).precision == "no"
    assert (out / "README.md").read_text().startswith("# image-grid\n")
    assert tokodec.encode_file(folder / "p0.png", model=str(out)).levels == 1

    # What was chosen for this machine gives way to --set.
    words = [word for word in words if word not in ("--memory", "0.0009")]
    monkeypatch.setattr(sys, "argv", [*words, *SMALL.split(), "optim.batch=3", "data.crop=192", "--force"])
    image.main()
    lines = capsys.readouterr().out.splitlines()
    assert any("cannot be read and are left out" in line and "p4b.png" in line for line in lines)
    recipe = json.loads((out / "training.json").read_text())["recipe"]
    assert (recipe["optim"]["batch"], recipe["data"]["crop"]) == (3, 192)


def test_accumulated_gradients_are_those_of_one_large_batch() -> None:
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    x = torch.randn(6, 3)
    trainer = BaseTrainer.__new__(BaseTrainer)
    trainer.optim, trainer.phases, trainer.losses = {"accumulate": 3}, [], {}
    batches = iter(x.split(2))
    monkey = GraphedStep(net, lambda batch: net(batch).square().mean(), (x[:2],), False)
    trainer.inputs = lambda: (next(batches),)  # type: ignore[method-assign]
    trainer.gradients(monkey)
    wanted = torch.autograd.grad(net(x).square().mean(), list(net.parameters()))
    assert torch.allclose(monkey.flat, torch.cat([g.flatten() for g in wanted]), atol=1e-6)
    assert float(trainer.losses["loss"]) == pytest.approx(float(net(x).square().mean().detach()), rel=1e-5)


def test_the_export_looks_at_as_much_as_the_time_allows() -> None:
    trainer = BaseTrainer.__new__(BaseTrainer)
    trainer.args = loop.training_arguments(None, "x").parse_args(["--data", "a", "--out", "b", "--minutes", "1"])
    assert trainer.some(range(100), 0.2, 2.0) == [0, 16, 33, 50, 66, 83]  # 12 s at 2 s each
    assert trainer.some(range(100), 0.2, 0.01) == list(range(100))
    assert trainer.some(range(100), 0.2, 1000.0) == [0]
    trainer.args.minutes = 0
    assert trainer.some(range(100), 0.2, 1000.0) == list(range(100))  # only an export: as long as it takes


# -------------------------------------------------------------------------------------------------------------- recipes


def test_every_recipe_is_one_of_a_trainer() -> None:
    assert sorted(RECIPE_OF) == sorted(path.stem for path in RECIPES.glob("*.yaml"))


@pytest.mark.parametrize("name", sorted(RECIPE_OF))
def test_recipes_fit_their_trainers_with_and_without_a_gpu(name: str) -> None:
    script = importlib.import_module(f"tokodec.train.{RECIPE_OF[name]}")
    recipe = read_recipe(name)
    checked(script.Recipe, recipe)
    change(recipe, recipe.get("cpu", []))
    checked(script.Recipe, recipe)
    again = json.loads(json.dumps(as_values(checked(script.Recipe, recipe))))  # as training.json has it
    assert checked(script.Recipe, again) == checked(script.Recipe, recipe)
    commented = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    assert "optim" in commented


@pytest.mark.parametrize(
    ("change_to", "message"),
    [
        ({"colour": 1}, "unknown setting optim.colour: known are batch, lr, "),
        ({"lr": "fast"}, "optim.lr is a number, got 'fast'"),
        ({"lr": float("nan")}, "optim.lr is a number, got nan"),
        ({"batch": 2.5}, "optim.batch is a whole number, got 2.5"),
        ({"batch": True}, "optim.batch is a whole number, got True"),
        ({"betas": 0.9}, "optim.betas is a list, got 0.9"),
        ({"betas": [0.9, "b"]}, "optim.betas is a number, got 'b'"),
        ({"cooldown": 0}, "cooldown is above 0"),
    ],
)
def test_settings_of_the_wrong_kind_are_named(change_to: dict, message: str) -> None:
    good = {"batch": 2, "lr": 1, "warmup_steps": 1, "cooldown": 0.5, "grad_clip": 1.0, "betas": [0.9, 0.99]}
    assert checked(Optim, good, "optim").lr == 1.0
    with pytest.raises(ValueError, match=re.escape(message)):
        checked(Optim, {**good, **change_to}, "optim")
    with pytest.raises(ValueError, match=r"the recipe lacks optim\.lr"):
        checked(Optim, {k: v for k, v in good.items() if k != "lr"}, "optim")


def test_a_file_that_is_no_recipe(tmp_path: Path) -> None:
    for text, message in (("a: [b=[1]]", "is no YAML"), ("- 1", "is no recipe")):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_recipe(str(tmp_path / "x.yaml"))


# ---------------------------------------------------------------------------------------------------- rows and the card


def test_means_are_taken_of_what_is_there() -> None:
    rows = [
        [{"levels": 1, "psnr": 20.0}, {"levels": 2, "psnr": 30.0, "ms": 0.5}],
        [{"levels": 1, "psnr": 22.0, "ms": 1.0}],
    ]
    assert mean_rows(rows) == [{"levels": 1, "psnr": 21.0, "ms": 1.0}, {"levels": 2, "psnr": 30.0, "ms": 0.5}]


def test_a_card_is_begun_and_never_overwritten(tmp_path: Path) -> None:
    results = {"minutes": 2.0, "machine": "CPU", "history": [1], "holdout": [{"levels": 1, "psnr": 20.125}]}
    assert write_card(tmp_path, "mine", results)
    text = (tmp_path / "README.md").read_text()
    assert text == card_text("mine", {"minutes": 2.0, "machine": "CPU"}, [{"levels": 1, "psnr": 20.125}])
    assert "minutes 2.0, machine CPU." in text
    assert text.endswith("| levels | psnr |\n| --- | --- |\n| 1 | 20.12 |\n")
    (tmp_path / "README.md").write_text("my own")
    assert not write_card(tmp_path, "mine", results)
    assert (tmp_path / "README.md").read_text() == "my own"


# ------------------------------------------------------------------------------------------------------------- the page


def commands() -> list[list[str]]:
    text = (TRAIN / "README.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_every_command_of_the_page_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules and subcommands exist and take these options, and recipes are there."""
    seen = set()
    for words in commands():
        if words[0] == "torchrun":
            words = ["python", *words[words.index("-m") :]]
        if words[2:3] == ["tokodec.train.trial"]:  # of another script, to which it gives the rest
            words = ["python", "-m", f"tokodec.train.{words[4]}", *words[5:], "--out", "out"]
        if words[:2] == ["python", "-m"]:
            script, given = importlib.import_module(words[2]), words[3:]
            taken: list[argparse.Namespace] = []
            monkeypatch.setattr(sys, "argv", [words[2], *given])
            if script is prior_script:
                monkeypatch.setattr(script, "run", lambda arguments, recipe, taken=taken: taken.append(arguments))
                monkeypatch.setattr(Path, "exists", lambda self: False)
                script.main(given)
                monkeypatch.undo()
            else:
                monkeypatch.setattr(
                    script, "run_script", lambda parser, _, taken=taken: taken.append(parser.parse_args())
                )
                script.main()
            assert read_recipe(taken[0].recipe)
            seen.add(words[2])
        elif words[0] == "codec":
            command: Any = typer.main.get_command(app)
            names = [w for w in words[1:] if not w.startswith("-")]
            while subcommands := getattr(command, "commands", None):
                command = subcommands[names.pop(0)]
            options = {o for p in command.params for o in p.opts}
            assert {w for w in words if w.startswith("--")} <= options
            seen.add(command.name)
        else:
            assert words[0] in ("pip", "cp")
    wanted = {
        f"tokodec.train.{name}" for name in ("image", "image_1d", "photo", "audio", "video", "generator", "prior")
    }
    assert wanted | {"image", "audio", "encode"} <= seen
