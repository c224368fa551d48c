"""Training from models of CompressAI, and of models with its contract; most of it without CompressAI."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import tokodec
from tokodec.tests.compression_models import Tiny, checkpoint
from tokodec.tests.resuming import assert_goes_on, run
from tokodec.tokenizers.adapters.compressai import read_checkpoint
from tokodec.tokenizers.image.hyperprior import ImageHyperprior
from tokodec.train import compressai as script
from tokodec.train import photo_compressai
from tokodec.train.compressai import RateDistortionLoss, bits_of
from tokodec.train.data.images import as_input, read_rgb

pytestmark = pytest.mark.usefixtures("_trains")
OWN = "tokodec.tests.compression_models"
SMALL = ["data.crop=64", "data.holdout_every=3", "optim.batch=2", "optim.warmup_steps=2"]
ENTROPY = [
    "entropy.slices=[2,3]", "entropy.middle=[8,8]", "entropy.features=8", "entropy.width=16", "entropy.hidden=16",
    "entropy.blocks=1", "entropy.head=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six smooth pictures, in the layout of CompressAI's ImageFolder: four to train on, two to test with."""
    out = tmp_path_factory.mktemp("pictures")
    for i in range(6):
        wave = np.sin(np.arange(80)[:, None, None] / (5 + i) + np.arange(70)[None, :, None] / 9 + np.arange(3))
        place = out / ("train" if i < 4 else "test") / f"p{i}.png"
        place.parent.mkdir(exist_ok=True)
        Image.fromarray((127 + 100 * wave).astype(np.uint8)).save(place)
    return out


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A checkpoint of a small mean-scale hyperprior, as data-parallel training left it."""
    path = tmp_path / "best.pth.tar"
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": t for key, t in checkpoint().items()}}, path)
    return path


def refused(main: Callable[[], None], capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a command that ends with code 2."""
    with pytest.raises(SystemExit) as ended:
        run(main, *words)
    assert ended.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


# ------------------------------------------------------------------------------- an exact codec of a checkpoint


def words_of(folder: Path, weights: Path) -> list[str]:
    words = ["--model", "compressai:mbt2018-mean:4", "--checkpoint", str(weights), "--data", str(folder)]
    return [*words, "--set", *SMALL, *ENTROPY]


def test_a_checkpoint_becomes_a_codec_with_files(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(photo_compressai.main, *words_of(folder, weights), "--steps", 3, "--out", out)
    log = json.loads((out / "training.json").read_text())
    assert (log["pictures"], len(log["test"]), log["recipe"]["entropy"]["hyper"]) == (2, 6, 8)
    assert log["recipe"]["model"]["weights"] == str(weights)
    assert log["recipe"]["entropy"]["slices"] == [2, 3, 7]
    model: Any = tokodec.load(out, "cpu")
    assert type(model) is ImageHyperprior
    assert (model.config.architecture, model.config.channels, model.config.latents) == ("mbt2018-mean", 8, 12)
    # Weights of before, moved by a few steps.
    for key, t in checkpoint().items():
        if key.startswith(("g_a", "g_s", "h_a")) and "pedestal" not in key and "bound" not in key:
            moved = (model.nets.get_parameter(key) - t).abs().max()
            assert 0 < moved < 0.05, key
    picture = folder / "test" / "p5.png"
    tokodec.encode_file(picture, tmp_path / "a.tok", model=str(out), quality=30)
    tokens = tokodec.tokenize_file(picture, model=str(out), quality=30).tokens
    assert tokens.codes.unique().numel() > 1
    assert model.decode(tokens).shape == (1, 3, 80, 70)
    assert not tokodec.decode_file(tmp_path / "a.tok", model=str(out)).problems
    # It goes on from its own folder, and does not overwrite it.
    again = ["--resume", out, "--data", folder, "--set", *SMALL, *ENTROPY, "--steps", 1]
    run(photo_compressai.main, *again, "--out", tmp_path / "again")
    assert "holds a model already" in refused(photo_compressai.main, capsys, *again, "--out", out)


def test_a_run_that_is_told_to_end_goes_on(folder: Path, weights: Path, tmp_path: Path) -> None:
    words = [*words_of(folder, weights), "optim.muon=1", "rounding.share=0.5"]
    assert_goes_on(photo_compressai.main, photo_compressai.Trainer, words, tmp_path, (3,))


def test_what_a_codec_cannot_start_from(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def line(*words: object) -> str:
        return refused(photo_compressai.main, capsys, "--data", folder, "--out", tmp_path / "out", *words)

    assert "training knows no ssf2020 of CompressAI: bmshj2018" in line("--model", "compressai:ssf2020")
    assert "a model of CompressAI is compressai:NAME" in line("--model", "mbt2018")
    assert "no checkpoint" in line("--checkpoint", tmp_path / "none.pth.tar")
    wrong = line("--model", "compressai:cheng2020-anchor", "--checkpoint", weights, "--set", *ENTROPY)
    assert "as many channels as the nets" in wrong
    assert "is not of bmshj2018" not in wrong
    assert "no folder" in line("--checkpoint", weights, "--data", tmp_path / "nothing")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------- models with the contract


def test_the_loss_is_rate_and_distortion() -> None:
    out: dict[str, Any] = {
        "x_hat": torch.rand(2, 3, 176, 192),
        "likelihoods": {"y": torch.full((2, 5), 0.25), "z": torch.full((3,), 0.5)},
    }
    x = torch.rand(2, 3, 176, 192)
    assert float(bits_of(out["likelihoods"])) == 23
    found = RateDistortionLoss(0.1)(out, x)
    mse = float((out["x_hat"] - x).square().mean())
    assert float(found["loss"]) == pytest.approx(23 / (2 * 176 * 192) + 0.1 * 255**2 * mse)
    similar = RateDistortionLoss(10, "ms-ssim")(out, x)
    assert float(similar["loss"]) == pytest.approx(float(similar["bpp_loss"] + 10 * (1 - similar["ms_ssim_loss"])))
    losses = pytest.importorskip("compressai.losses")
    for metric in ("mse", "ms-ssim"):
        ours, theirs = (kind(0.05, metric)(out, x) for kind in (RateDistortionLoss, losses.RateDistortionLoss))
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert float(ours[name]) == pytest.approx(float(value), rel=1e-4), name


def of_class(folder: Path, *sets: str, name: str = "Tiny") -> list[str]:
    return ["--model", f"{OWN}.{name}", "--data", str(folder), "--set", *SMALL, "optim.lr=1e-2", *sets]


def test_the_class_of_a_paper_trains(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its loss falls, its quantiles move by their own loss, tables are made at the end; no file format is claimed."""
    out = tmp_path / "out"
    run(script.main, *of_class(folder, "model.arguments={M: 8}"), "--steps", 30, "--out", out)
    text = capsys.readouterr().out
    assert "no .tok files of this model: Tiny" in text
    log = json.loads((out / "training.json").read_text())
    x = as_input(read_rgb(folder / "train" / "p0.png"), torch.device("cpu"))[..., :64, :64]
    untrained = float(RateDistortionLoss(0.013)(Tiny(8).eval()(x), x)["loss"])
    assert log["holdout"][0]["loss"] < 0.4 * untrained
    assert len(log["test"]) == 1
    assert log["test"][0]["psnr"] > 10
    state = read_checkpoint(out / script.WEIGHTS)
    assert state.keys() == Tiny(8).state_dict().keys()
    place, quantiles = state["entropy_bottleneck.place"], state["entropy_bottleneck.quantiles"]
    assert (place[:, 0, 0] < 0.4).all()
    moved = 0.5 - quantiles[:, 0, 1]
    assert ((moved > 0.01) & (moved < 0.04)).all()  # towards the place, by at most aux_lr a step or so
    assert torch.equal(quantiles[:, 0, [0, 2]], torch.tensor([[-10.0, 10.0]]).expand(8, 2))
    names = {row["name"] for row in csv.DictReader((out / "curves.csv").open())}
    assert {"loss", "aux", "psnr", "bpp_estimated"} <= names
    # Its weights are a start; the folder is not overwritten.
    more = of_class(
        folder, "model.arguments={M: 8}", "criterion.class=" + OWN + ".Halved", "criterion.arguments={weight: 2}"
    )
    assert "holds a model already" in refused(script.main, capsys, *more, "--out", out)
    run(script.main, *more, "--checkpoint", out / script.WEIGHTS, "--steps", 1, "--out", tmp_path / "more")
    run(
        script.main,
        *of_class(folder, "model.arguments={M: 8}"),
        "--resume",
        out,
        "--steps",
        1,
        "--out",
        tmp_path / "on",
    )


def test_such_a_run_goes_on(folder: Path, tmp_path: Path) -> None:
    assert_goes_on(script.main, script.Trainer, of_class(folder), tmp_path, (3,))


def test_what_is_no_model(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def line(*words: str) -> str:
        return refused(script.main, capsys, *words, "--steps", 1, "--out", tmp_path / "out")

    assert "no class no_such_package.Model" in line("--model", "no_such_package.Model", "--data", str(folder))
    assert "no class Model" in line("--model", "Model", "--data", str(folder))
    assert f"{OWN}.Tiny does not take" in line(*of_class(folder, "model.arguments={N: 8}"))
    assert "Nothing does not return x_hat and likelihoods" in line(*of_class(folder, name="Nothing"))
    assert "unknown metric 'psnr'" in line(*of_class(folder, "criterion.arguments={metric: psnr}"))
    path = tmp_path / "other.pth"
    torch.save(Tiny(9).state_dict(), path)
    assert f"{path} is not of {OWN}.Tiny" in line(*of_class(folder), "--checkpoint", str(path))
    assert f"no checkpoint {folder}" in line(*of_class(folder), "--resume", str(folder))
    assert "data.crop is a multiple of 64 pixels" in line(*of_class(folder, "data.crop=100"))
    if not script.importlib.util.find_spec("compressai"):
        assert "this model needs the package compressai" in line("--data", str(folder))


# --------------------------------------------------------------------------------------------- CompressAI itself


@pytest.mark.parametrize("name", ["bmshj2018-factorized", "mbt2018-mean"])
def test_models_of_the_zoo(name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A small one is trained; its own library reads what it left. Fixed tables have files; others become exact."""
    models = pytest.importorskip("compressai.models")
    kind = {"bmshj2018-factorized": models.FactorizedPrior, "mbt2018-mean": models.MeanScaleHyperprior}[name]
    torch.manual_seed(0)
    path, out = tmp_path / "small.pth", tmp_path / "out"
    torch.save(kind(8, 12).state_dict(), path)
    words = ["--model", f"compressai:{name}", "--data", folder]
    run(script.main, *words, "--checkpoint", path, "--steps", 3, "--out", out, "--set", *SMALL)
    net = kind.from_state_dict(load_file(str(out / script.WEIGHTS))).eval()
    coded = net.compress(torch.rand(1, 3, 64, 64))
    assert net.decompress(coded["strings"], coded["shape"])["x_hat"].shape == (1, 3, 64, 64)
    picture = folder / "test" / "p4.png"
    if name == "bmshj2018-factorized":
        tokodec.encode_file(picture, tmp_path / "a.tok", model=str(out))
        assert not tokodec.decode_file(tmp_path / "a.tok", model=str(out)).problems
    else:
        assert "takes the tables of its gaussian_conditional from" in capsys.readouterr().out
        assert not (out / "config.json").exists()
    more = [
        "--checkpoint",
        out / script.WEIGHTS,
        "--steps",
        2,
        "--out",
        tmp_path / "exact",
        "--set",
        *SMALL,
        *ENTROPY,
    ]
    run(photo_compressai.main, *words, *more)
    assert tokodec.encode_file(picture, model=str(tmp_path / "exact")).data


def test_their_entropy_models_around_our_nets_train(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressai")
    sizes = "{channels: [8, 8], analysis_blocks: [1, 1], synthesis_blocks: [1, 1], latents: 6, hyper: 4}"
    words = ["--model", "tokodec.train.compression_model.PhotoMeanScale", "--data", folder, "--steps", 2]
    run(script.main, *words, "--out", tmp_path / "out", "--set", *SMALL, f"model.arguments={sizes}")
    assert (tmp_path / "out" / script.WEIGHTS).is_file()
