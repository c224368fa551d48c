"""The folder of a run as a model, while the run goes on or was stopped; and trials of a trainer on a machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from typer.testing import CliRunner

import tokodec
from tokodec.codec.bench import ours
from tokodec.codec.bench.image.bench import bench_images
from tokodec.codec.bench.options import ImageOptions
from tokodec.codec.cli import app
from tokodec.codec.decode import decode_file
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import ModelError, UsageError
from tokodec.tests.resuming import run, stopped
from tokodec.tokenizers.folders import CURVES_FILE
from tokodec.tokenizers.image.grid import ImageGrid
from tokodec.train import image, image_1d, trial

ASSETS = Path(tokodec.__file__).resolve().parent / "assets"
SMALL = (
    "model.channels=[8,8,8] model.analysis_blocks=[1,1,1] model.synthesis_blocks=[1,1,1] model.dim=4"
    " model.codebook_sizes=[16] export.bpp_limits=[9.0] data.holdout_every=3 optim.warmup_steps=2 optim.batch=1"
    " data.crop=176"
)
SMALL_1D = (
    "model.width=16 model.heads=2 model.analysis_blocks=1 model.synthesis_blocks=1 model.tokens=20 model.dim=4"
    " model.codebook_size=16 model.smooth=8 data.holdout_every=2 optim.batch=2 quantized_from=0.0"
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pictures")
    with Image.open(ASSETS / "kodim23.webp") as picture:
        for i in range(4):
            picture.crop((40 * i, 30 * i, 40 * i + 280, 30 * i + 280)).save(out / f"p{i}.png")
    return out


@pytest.mark.usefixtures("_trains")
def test_the_folder_of_a_run_is_a_model(pictures: Path, tmp_path: Path) -> None:
    """One that was stopped in its first stage: files, and a benchmark, which keeps to the weights it began with."""
    out = tmp_path / "out"
    stopped(image.main, image.Trainer, 3, "--data", pictures, "--steps", 8, "--out", out, "--set", *SMALL.split())
    assert (out / "state").is_dir()
    assert not (out / "training.json").exists()
    one, other = ImageGrid.from_pretrained(out).synthesis.values()
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))  # none is without training

    tok = tmp_path / "p.tok"
    tok.write_bytes(encode_file(pictures / "p0.png", model=str(out)).data)
    assert decode_file(tok, model=str(out)).picture.pixels.shape == (280, 280, 3)

    copy = Path(ours.as_it_is_now(str(out)))
    assert copy.parent != out.parent
    shutil.rmtree(out / "state")
    results = bench_images(
        ImageOptions(folder=pictures, out=tmp_path / "bench", against="", model=str(out), metrics="psnr", memory=False,
                     limit=1, device="cpu")
    )  # fmt: skip
    assert results["model"] == "image-grid"
    (out / "model.safetensors").unlink()  # as if another check wrote it just now
    assert ours.load_ours(str(out), "image", "cpu")[0] == str(copy)


def test_a_run_without_weights_says_so(tmp_path: Path) -> None:
    (tmp_path / CURVES_FILE).write_text("step\n")
    with pytest.raises(ModelError, match="the run there writes its weights at its first evaluation"):
        encode_file(ASSETS / "kodim23.webp", model=str(tmp_path))
    assert ours.as_it_is_now(str(tmp_path)) == str(tmp_path)
    assert ours.as_it_is_now("image-grid") == "image-grid"


def test_benchmarks_take_a_model_by_one_name(tmp_path: Path) -> None:
    for modality in ("image", "audio", "video"):
        found = CliRunner().invoke(app, ["bench", modality, str(tmp_path), "--model", str(tmp_path / "none")])
        assert isinstance(found.exception, UsageError), found.output  # there are no media; the option is known


def test_spans_that_overlap_count_once() -> None:
    assert trial.covered([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4
    assert trial.covered([]) == 0


@pytest.mark.usefixtures("_trains")
def test_the_speed_of_a_trainer(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "WARM_UP", 1)
    words = ["--data", str(pictures), "--set", *SMALL_1D.split()]
    row = trial.speed("image_1d", 2, words)
    assert (row["trainer"], row["crops a step"]) == ("image_1d", 2)
    assert row["crops/s"] == pytest.approx(2 * row["steps/s"])
    assert row["steps/s"] > 0
    assert float(row["device busy"].rstrip("%")) > 0
    assert row.keys() == set(trial.COLUMNS)
    assert trial.table(["a", "b"], [[1, 0.12345]]).splitlines() == ["| a | b |", "| --- | --- |", "| 1 | 0.1235 |"]


@pytest.mark.usefixtures("_trains")
def test_a_trial_of_going_on(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its three processes are three runs in this one."""
    asked = []

    def in_this_process(words: list[str]) -> Any:
        asked.append(words[1])
        try:
            if words[2] == "until":
                AcceleratorState._reset_state(True)
                trial.until(int(words[4]), words[5], words[6:])
            else:
                run(image_1d.main, *words[3:])
        except SystemExit as ended:
            return SimpleNamespace(returncode=ended.code)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", in_this_process)
    monkeypatch.setattr("tokodec.train.loop.STEPS_A_CHECK", 1)
    found = trial.resume("image_1d", 4, ["--data", str(pictures), "--set", *SMALL_1D.split()])
    assert len(asked) == 3
    assert found["apart"] == 0.0
    assert [entry["losses"] for entry in found["whole"]] == [entry["losses"] for entry in found["parts"]]
