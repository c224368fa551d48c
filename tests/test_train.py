"""Training: crops, losses, and one command that trains, evaluates and exports a model which codes files."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import tokodec
from tokodec.codec.metrics.features import FeatureDistance
from tokodec.tokenizers.api import Tokenizer
from tokodec.train import image as script
from tokodec.train.data.images import CropStore, list_images, read_rgb
from tokodec.train.loop import learning_rate
from tokodec.train.losses.adversarial import (
    AdversarialGuard,
    PatchDiscriminator,
    adaptive_weight,
    hinge_discriminator,
)
from tokodec.train.rate import residual_energies
from tokodec.train.recipe import RECIPES

ASSETS = Path(tokodec.__file__).parent / "assets"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small pictures of three sizes cut from a sample picture."""
    out = tmp_path_factory.mktemp("pictures")
    with Image.open(ASSETS / "kodim23.webp") as image:
        for i, (w, h) in enumerate([(192, 200), (260, 192), (192, 192)] * 2):
            image.crop((40 * i, 30 * i, 40 * i + w, 30 * i + h)).save(out / f"p{i}.png")
    return out


def position_picture(h: int, w: int) -> torch.Tensor:
    """uint8 [h, w, 3] whose red is the row, green the column and blue the width."""
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([rows, columns, torch.full_like(rows, w)], dim=-1).byte()


def test_crops_are_cut_from_one_place_of_one_picture() -> None:
    store = CropStore([position_picture(40, 60), position_picture(50, 33)], 32, "cpu", zoom=0.0)
    x = (store.batch(64) * 255).round().long()  # [64, 3, 32, 32]
    assert x.shape == (64, 3, 32, 32)
    assert set(x[:, 2].unique().tolist()) == {60, 33}
    for crop in x:
        assert len(crop[2].unique()) == 1
        rows, columns = crop[0], crop[1]
        if rows[0, 0] == rows[0, 1]:  # not turned
            assert (rows[1:] - rows[:-1] == 1).all()
        else:
            rows, columns = rows.T, columns.T
            assert (rows[1:] - rows[:-1]).abs().eq(1).all()
        assert ((columns[:, 1:] - columns[:, :-1]).abs() == 1).all()  # either way round: flips


def test_zoomed_crops_show_more_of_the_picture() -> None:
    store = CropStore([position_picture(120, 120)], 32, "cpu", zoom=1.0, max_zoom=2.0)
    spans = [float((x[1].max() - x[1].min()) * 255) for x in torch.cat([store.batch(4) for _ in range(20)])]
    assert max(spans) > 40
    assert min(spans) >= 28


def test_small_pictures_are_left_out_and_none_is_an_error() -> None:
    assert len(CropStore([position_picture(40, 40), position_picture(31, 90)], 32, "cpu")) == 1
    with pytest.raises(ValueError, match="at least 32"):
        CropStore([position_picture(31, 90)], 32, "cpu")


def test_pictures_are_listed_by_name(folder: Path, tmp_path: Path) -> None:
    assert [p.name for p in list_images([folder])] == [f"p{i}.png" for i in range(6)]
    assert [tuple(read_rgb(path).shape) for path in list_images([folder])[:2]] == [(200, 192, 3), (192, 260, 3)]
    with pytest.raises(FileNotFoundError, match="no folder"):
        list_images([tmp_path / "missing"])
    with pytest.raises(FileNotFoundError, match="no pictures"):
        list_images([tmp_path])


def test_learning_rate_warms_up_and_cools_down() -> None:
    rates = [learning_rate(step, share, 100, 0.4) for step, share in [(0, 0), (49, 0), (500, 0.5), (500, 0.8)]]
    assert rates == pytest.approx([0.01, 0.5, 1.0, 0.5])
    assert learning_rate(500, 1.0, 100, 0.4) == 0


def test_feature_distance_is_a_distance() -> None:
    metric = FeatureDistance("lite0")
    torch.manual_seed(0)
    with Image.open(ASSETS / "kodim23.webp") as image:
        x = torch.from_numpy(np.array(image.crop((0, 0, 128, 96)))).permute(2, 0, 1)[None].float() / 255
    near, far = x + 0.02 * torch.randn_like(x), x + 0.2 * torch.randn_like(x)
    same, small, large = metric(x, x), metric(x, near), metric(x, far)
    assert same.shape == (1,)
    assert float(same) == 0
    assert 0 < float(small) < float(large) <= 4
    x_hat = near.clone().requires_grad_(True)
    metric(x, x_hat).sum().backward()
    assert x_hat.grad is not None
    assert float(x_hat.grad.abs().sum()) > 0
    assert not metric.train().training  # batch norm must keep its statistics


def test_shifted_pictures_stay_aligned() -> None:
    x = position_picture(64, 80).permute(2, 0, 1)[None].float()
    seen = set()
    for _ in range(40):
        a, b = script.shifted(x, x + 1, 8)
        assert a.shape == (1, 3, 56, 72)
        assert torch.equal(a + 1, b)
        seen.add((int(a[0, 0, 0, 0]), int(a[0, 1, 0, 0])))
    assert len(seen) > 20
    assert max(max(place) for place in seen) <= 8
    assert script.shifted(x, x, 0)[0].shape == x.shape


def test_discriminator_learns_and_its_losses_have_the_right_sign() -> None:
    torch.manual_seed(0)
    critic = PatchDiscriminator(width=8)
    real, fake = torch.rand(4, 3, 64, 64), torch.full((4, 3, 64, 64), 0.5)
    assert critic(real).shape == (4, 1, 8, 8)
    optimizer = torch.optim.Adam(critic.parameters(), 1e-2)
    first = hinge_discriminator(critic(real), critic(fake)).item()
    for _ in range(60):
        loss = hinge_discriminator(critic(real), critic(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * first
    assert critic(real).mean().item() > critic(fake).mean().item()
    assert float(hinge_discriminator(torch.tensor([2.0]), torch.tensor([-2.0]))) == 0
    assert float(hinge_discriminator(torch.tensor([0.0]), torch.tensor([0.0]))) == 2


def test_adaptive_weight_equals_the_ratio_of_gradients_and_is_bounded() -> None:
    last = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    assert float(adaptive_weight((3 * last).sum(), last.sum(), last)) == pytest.approx(3, rel=1e-4)
    assert float(adaptive_weight((3 * last).sum(), (1e-9 * last).sum(), last, largest=7)) == 7


def test_guard_holds_a_winning_discriminator_back_with_hysteresis() -> None:
    guard = AdversarialGuard(won=0.9, fair=0.7, momentum=0.0)
    assert guard.update(0.8)
    assert not guard.update(0.95)
    assert not guard.update(0.8)  # still over "fair"
    assert guard.update(0.6)
    assert guard.held_steps == 2


def test_residual_energy_falls_level_by_level(tiny_model: Path) -> None:
    model = Tokenizer.from_pretrained(tiny_model)
    assert isinstance(model, script.ImageGrid)
    with Image.open(ASSETS / "kodim23.webp") as image:
        picture = torch.from_numpy(np.array(image.crop((0, 0, 130, 97))))
    (z_e,) = script.latents_of(model, [picture])
    assert z_e.shape == (1, model.config.dim, 6, 8)  # whole cells only
    energy = residual_energies(model.codebooks, [z_e])
    assert len(energy) == len(model.codebook_sizes)
    for k, found in enumerate(energy):
        rest = z_e - model.quantizer.decode(model.quantizer.search(z_e, k + 1))
        assert found == pytest.approx(float(rest.square().sum(1).mean().detach()), rel=1e-4)


def test_one_command_trains_evaluates_and_exports(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = yaml.safe_load((RECIPES / "image-grid.yaml").read_text())
    recipe["model"] |= {"channels": [8, 8, 8], "analysis_blocks": [1, 1, 1], "synthesis_blocks": [1, 1, 1]}
    recipe["model"] |= {"dim": 4, "codebook_sizes": [32, 16]}
    recipe["name"], recipe["cpu"] = "fitted", []
    recipe["data"] |= {"crop": 192, "holdout_every": 3}
    recipe["optim"] |= {"batch": 2, "warmup_steps": 5}
    recipe["sharp"]["adversarial_from"] = 0.0
    recipe["export"]["bpp_limits"] = [1.0, 1.0]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    out = tmp_path / "model"
    command = f"image --recipe {path} --data {folder} --test {folder} --minutes 0.1 --precision no --out {out}"
    monkeypatch.setattr(sys, "argv", command.split())
    script.main()
    lines = capsys.readouterr().out.splitlines()
    assert "4 pictures to train on, 2 held out" in lines[0]
    assert any("from here on with a discriminator" in line for line in lines)
    assert sum(bool(re.fullmatch(r" +test (faithful|sharp) [12] levels  .*", line)) for line in lines) == 4
    found = json.loads((out / "training.json").read_text())
    stages = [entry["stage"] for entry in found["history"]]
    assert "faithful" in stages
    assert "sharp" in stages
    assert [(row["synthesis"], row["levels"]) for row in found["test"]] == [
        ("faithful", 1), ("faithful", 2), ("sharp", 1), ("sharp", 2),
    ]  # fmt: skip
    assert all(row["bpp_estimated"] > 0 for row in found["test"])
    # What was exported codes a file.
    done = tokodec.encode_file(folder / "p0.png", tmp_path / "a.tok", model=str(out))
    assert done.levels == 2
    decoded = tokodec.decode_file(tmp_path / "a.tok", tmp_path / "a.png", model=str(out), synthesis="sharp")
    assert decoded.picture.pixels.shape == (200, 192, 3)

    # Resuming starts from these weights: the codebooks of a run without time are the released ones.
    again = tmp_path / "again"
    command = f"image --recipe {path} --data {folder} --minutes 0.02 --stages sharp --precision no --out {again}"
    monkeypatch.setattr(sys, "argv", [*command.split(), "--resume", str(out)])
    script.main()
    before, after = Tokenizer.from_pretrained(out).state_dict(), Tokenizer.from_pretrained(again).state_dict()
    assert torch.equal(before["quantizer.levels.0.basis"], after["quantizer.levels.0.basis"])
    assert torch.equal(before["analysis.1.weight"], after["analysis.1.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--set optim.speed=3", "the recipe has no optim.speed"),
        ("--set a.b.c=3", "the recipe has no a.b.c"),
        ("--recipe nothing", "no recipe nothing: give a file or one of "),
        ("--resume nothing --set data.crop=192", "no model 'nothing'"),
        ("--data {missing}", "no folder"),
        ("--set data.crop=256", "no picture is at least 256 x 256"),
        ("--out {taken}", "holds a model already"),
        ("--set data.crop=wide", "data.crop is a whole number, got 'wide'"),
        ("--set optim.betas=[0.9]", "optim.betas has 2 entries, got [0.9]"),
        ("--set faithful.pixel=l1", "faithful.pixel is mse or log-mse, got 'l1'"),
        ("--set data.crop=192 optim.batch=0", "optim.batch, warmup_steps and accumulate are 1 or more"),
        ("--set model.codebook_sizes=[16]", "export.bpp_limits has an entry for each of model.codebook_sizes"),
        ("--minutes -1", "--minutes is 0 or more, got -1"),
        ("--memory 0", "--memory is above 0, got 0"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    change: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    change = change.format(missing=tmp_path / "missing", taken=tiny_model)
    monkeypatch.setattr(sys, "argv", f"image --precision no --data {folder} --out {tmp_path / 'x'} {change}".split())
    with pytest.raises(SystemExit) as caught:
        script.main()
    assert caught.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "x").exists()


def test_a_model_with_one_synthesis_net_trains_one_stage(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "one"
    small = "channels=[8,8,8] analysis_blocks=[1,1,1] synthesis_blocks=[1,1,1] dim=4 codebook_sizes=[16]"
    sets = " ".join(f"model.{item}" for item in [*small.split(), "synthesis=[plain]"])
    rest = "data.crop=192 data.holdout_every=3 optim.batch=2 export.bpp_limits=[1.0]"
    command = f"image --data {folder} --minutes 0.02 --precision no --out {out} --set {sets} {rest}"
    monkeypatch.setattr(sys, "argv", command.split())
    script.main()
    assert {e["stage"] for e in json.loads((out / "training.json").read_text())["history"]} == {"faithful"}
    assert tokodec.encode_file(folder / "p0.png", model=str(out)).levels == 1
