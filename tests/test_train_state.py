"""Training that ends too early goes on with the same command, to the same weights."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tokodec
from tokodec.tests.resuming import assert_goes_on, outcome, run, stopped
from tokodec.train import image
from tokodec.train.loop import optimizers_of
from tokodec.train.state import (
    FOLDER,
    Attributes,
    RandomNumbers,
    States,
    Told,
    read_plain,
    read_tree,
    restore,
    state_of,
    write_tree,
)

ASSETS = Path(tokodec.__file__).resolve().parent / "assets"
SMALL = (
    "model.channels=[8,8,8] model.analysis_blocks=[1,1,1] model.synthesis_blocks=[1,1,1] model.dim=4"
    " model.codebook_sizes=[16] model.synthesis=[plain,sharp] export.bpp_limits=[9.0] data.holdout_every=3"
    " sharp.adversarial=0.3 sharp.adversarial_from=0.0 optim.warmup_steps=2 optim.batch=2 data.crop=176"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six parts of a picture."""
    out = tmp_path_factory.mktemp("pictures")
    with Image.open(ASSETS / "kodim23.webp") as picture:
        for i in range(6):
            picture.crop((40 * i, 30 * i, 40 * i + 200, 30 * i + 190)).save(out / f"p{i}.png")
    return out


def words(folder: Path) -> list[str]:
    return ["--data", str(folder), "--set", *SMALL.split()]


# ------------------------------------------------------------------------------------------------------ parts and files


def test_a_tree_comes_back_from_its_file(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    tree = {
        "weights": {"a": shared.view(2, 3), "b": shared, "none": torch.zeros(0, 4, dtype=torch.bfloat16)},
        "numbers": [1, 2.5, -math.inf, math.nan, None, True, "text", (np.int64(3), np.arange(3))],
        "large": 2**100,
    }
    write_tree(tree, tmp_path / "x.safetensors")
    found = read_tree(tmp_path / "x.safetensors")
    assert torch.equal(found["weights"]["a"], shared.view(2, 3))
    assert found["weights"]["none"].shape == (0, 4)
    assert found["weights"]["none"].dtype == torch.bfloat16
    one, half, least, nan, *rest, (three, array) = found["numbers"]
    assert (one, half, least, math.isnan(nan), rest, three) == (1, 2.5, -math.inf, True, [None, True, "text"], 3)
    assert array.tolist() == [0, 1, 2]
    assert found["large"] == 2**100
    assert read_plain(tmp_path / "x.safetensors")["numbers"][:2] == [1, 2.5]
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_optimizers_go_on_as_they_were_and_in_place(tmp_path: Path) -> None:
    def made(seed: int) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)).to(memory_format=torch.channels_last)
        optim = {"lr": 0.01, "betas": [0.9, 0.99], "muon": 1.0, "weight_decay": 0.1}
        return net, optimizers_of(net.named_parameters(), optim, lambda name, p: p.ndim == 4)

    def step(net: nn.Module, optimizers: list[torch.optim.Optimizer], x: torch.Tensor) -> None:
        net.zero_grad()
        net(x).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()

    batches = torch.randn(4, 2, 3, 8, 8)
    net, optimizers = made(0)
    for x in batches[:2]:
        step(net, optimizers, x)
    write_tree(state_of([net, optimizers]), tmp_path / "x.safetensors")
    for x in batches[2:]:
        step(net, optimizers, x)
    for steps in (0, 1):  # an optimizer that has no moments yet, and one that has others
        other, its = made(1)
        step(other, its, batches[3]) if steps else None
        before = [p.data_ptr() for p in other.parameters()]
        restore([other, its], read_tree(tmp_path / "x.safetensors"))
        for x in batches[2:]:
            step(other, its, x)
        for mine, wanted in zip(other.parameters(), net.parameters(), strict=True):
            assert torch.equal(mine, wanted)
        assert [p.data_ptr() for p in other.parameters()] == before
    with pytest.raises(ValueError, match="other weights"):
        restore(nn.Linear(2, 2), state_of(nn.Linear(2, 2, bias=False)))
    with pytest.raises(ValueError, match=r"a tensor of \[2, 3\] is none of \[2, 2\]"):
        restore(nn.Linear(2, 2), state_of(nn.Linear(3, 2)))


def test_random_numbers_go_on(tmp_path: Path) -> None:
    class Holder:
        numpy = np.random.default_rng(3)
        torch = torch.Generator().manual_seed(3)
        array = np.arange(3)

    def drawn() -> list[float]:
        return [
            random.random(), float(np.random.standard_normal()), float(torch.rand(())),  # noqa: NPY002
            float(Holder.numpy.random()), float(torch.rand((), generator=Holder.torch)),
        ]  # fmt: skip

    drawn()
    own = Attributes(Holder, "numpy", "torch", "array")
    write_tree(state_of([RandomNumbers(), own]), tmp_path / "x.safetensors")
    wanted = drawn()
    Holder.array = np.zeros(3, dtype=np.int64)
    restore([RandomNumbers(), own], read_tree(tmp_path / "x.safetensors"))
    assert drawn() == wanted
    assert Holder.array.tolist() == [0, 1, 2]


def test_a_state_counts_once_all_processes_have_written(tmp_path: Path) -> None:
    def files() -> list[str]:
        return sorted(path.name for path in (tmp_path / FOLDER).iterdir())

    first = States(tmp_path / FOLDER, {"--seed": 1})
    assert first.found is None
    first.save({"x": 1}, {"y": 2})
    first.save({"x": 3}, {"y": 4})
    assert files() == ["000002.0-of-1.safetensors"]
    # One process of two was killed before it wrote the next one.
    write_tree({"common": {"identity": {"--seed": 1}}, "own": {}}, tmp_path / FOLDER / "000003.0-of-2.safetensors")
    again = States(tmp_path / FOLDER, {"--seed": 1})
    assert again.found is not None
    assert (again.found["common"]["x"], again.load()["own"]["y"], again.found) == (3, 4, None)
    with pytest.raises(ValueError, match=r"is the state of a run with another --seed: give another --out"):
        States(tmp_path / FOLDER, {"--seed": 2})
    assert States(tmp_path / FOLDER, {"--seed": 2}, restart=True).found is None
    again.save({"x": 5}, {"y": 6})
    assert files() == ["000004.0-of-1.safetensors"]
    (tmp_path / FOLDER / "000004.0-of-1.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="is damaged: --restart starts anew"):
        States(tmp_path / FOLDER, {"--seed": 1})
    again.clear()
    assert not (tmp_path / FOLDER).exists()


def test_a_second_signal_is_not_held_back() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # who starts tests in the background has it ignored
    told, before = Told(), signal.getsignal(signal.SIGINT)
    with told.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert told.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


# -------------------------------------------------------------------------------------------------------------- one run


@pytest.mark.usefixtures("_trains")
def test_a_run_that_is_told_to_end_goes_on_in_each_stage(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of six steps four are of the first stage; the last one that is told to end was to be exported only."""
    assert_goes_on(image.main, image.Trainer, words(folder), tmp_path, (2, 3, 1))
    text = capsys.readouterr().out
    assert "told to end after step 2: the same command goes on" in text
    assert f"goes on from {tmp_path / 'parts' / FOLDER} after step 2: 2 steps left to train" in text
    assert "after step 1: 1 steps left to train" in text
    assert "after step 2: 0 steps left to train" in text


DIES = f"""
import os, signal, sys
from pathlib import Path
from tokodec.train import image

def after_step(*args, after=image.Trainer.after_step):
    after(*args)
    if list(Path(sys.argv[-1], {FOLDER!r}).glob("0*")):
        os.kill(os.getpid(), signal.SIGKILL)

image.Trainer.after_step = after_step
image.main()
"""  # a run that is killed as soon as it has done a step after one that it can go on from


@pytest.mark.usefixtures("_trains")
def test_a_run_that_is_killed_goes_on(folder: Path, tmp_path: Path) -> None:
    command = [*words(folder), "--steps", "8", "--save-minutes", "0.00001", "--precision", "no", "--stages", "faithful"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    dies = [sys.executable, "-c", DIES, *command, "--out", str(parts)]
    with subprocess.Popen(dies, stdout=subprocess.DEVNULL) as process:
        run(image.main, *command, "--out", whole)
    assert process.returncode == -signal.SIGKILL
    assert not (parts / "training.json").exists()
    run(image.main, *command, "--out", parts)
    wanted, found = outcome(whole), outcome(parts)
    assert wanted == found
    entry = tokodec.encode_file(folder / "p1.png", model=str(whole))
    assert tokodec.encode_file(folder / "p1.png", model=str(parts)).data == entry.data


@pytest.mark.usefixtures("_trains")
def test_only_the_same_command_goes_on(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = [*words(folder), "--steps", "6", "--precision", "no"]
    stopped(image.main, image.Trainer, 1, *command, "--out", out)
    capsys.readouterr()
    with Image.open(folder / "p1.png") as picture:
        (tmp_path / "others").mkdir()
        for name in ("p1.png", "p2.png", "p3.png"):
            picture.save(tmp_path / "others" / name)
    for change, what in (
        (["--seed", "1"], "a run with another --seed"),
        (["optim.lr=1e-4"], "a run with another recipe"),
        (["--steps", "7"], "a run with another --steps"),
        (["--stages", "faithful"], "a run with another --stages"),
        (["--data", str(tmp_path / "others")], "a run with other media"),
    ):
        ends = [command[:2], command[2:]]
        given = [*command, *change] if change[0].startswith("--") else [*ends[0], *ends[1][:-4], *change, *ends[1][-4:]]
        with pytest.raises(SystemExit) as caught:
            run(image.main, *given, "--out", out)
        assert caught.value.code == 2
        assert f"{out / FOLDER} is the state of {what}: give another --out, or --restart" in capsys.readouterr().err
    run(image.main, *command, "--seed", 1, "--out", out, "--restart")
    assert json.loads((out / "training.json").read_text())["seed"] == 1
    with pytest.raises(SystemExit):  # it is finished now
        run(image.main, *command, "--seed", 1, "--out", out)
    assert "holds a model already: give another --out, or --force" in capsys.readouterr().err
