"""What a run leaves for those who watch it: curves, a page, TensorBoard, and alarms in words."""

from __future__ import annotations

import csv
import math
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from tokodec.tests.resuming import run, stopped
from tokodec.train import audio, image, image_1d
from tokodec.train.losses.adversarial import AdversarialGuard
from tokodec.train.state import read_tree, state_of, write_tree
from tokodec.train.watch import CURVES, PAGE, Watch, alarms_of, chart, numbers_of, pixels, shown

ENTRY: dict[str, Any] = {
    "step": 20, "share": 0.5, "seconds": 3.0, "losses": {"loss": 1.5, "norm": 0.25}, "collapse": False,
    "rows": [{"levels": 1, "psnr": 20.0}, {"levels": 2, "synthesis": "sharp", "psnr": 22.5, "ms_ssim": 0.5}],
    "usage": [0.5, 1.0], "log_cost": -0.5,
}  # fmt: skip


class Board:
    """Stands for the writer of TensorBoard."""

    made: list[Board] = []  # noqa: RUF012

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge_step, self.closed = folder, purge_step, False
        self.scalars: list[tuple[str, float, int]] = []
        self.images: list[tuple[str, tuple[int, ...], int]] = []
        Board.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def add_image(self, name: str, picture: np.ndarray, step: int, dataformats: str) -> None:
        assert dataformats == "HWC"
        self.images.append((name, picture.shape, step))

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def _board(monkeypatch: pytest.MonkeyPatch) -> None:
    Board.made = []
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Board  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / CURVES).open(newline="") as file:
        return list(csv.DictReader(file))


def test_numbers_are_named_by_what_they_are_of() -> None:
    assert list(numbers_of(ENTRY)) == [
        ("psnr", "1 levels", 20.0), ("psnr", "2 levels sharp", 22.5), ("ms_ssim", "2 levels sharp", 0.5),
        ("usage", "codebook 1", 0.5), ("usage", "codebook 2", 1.0), ("log_cost", "", -0.5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "waited", "said"),
    [
        ({}, 0.05, None),
        ({"losses": {"loss": math.nan}}, 0.0, "a loss is not finite"),
        ({"losses": {"loss": math.inf}}, 0.0, "a loss is not finite"),
        ({"collapse": True}, 0.0, "it may be collapsing"),
        ({"losses": {"right": 0.97}}, 0.0, "the discriminator has won"),
        ({"losses": {"right": 0.9}}, 0.0, None),
        ({}, 0.25, "training waits for media, 25 % of its time"),
    ],
)
def test_alarms_are_in_words(change: dict[str, Any], waited: float, said: str | None) -> None:
    found = list(alarms_of(ENTRY | change, waited).values())
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


@pytest.mark.usefixtures("_board")
def test_curves_a_page_and_tensorboard(tmp_path: Path) -> None:
    lines: list[str] = []
    watch = Watch(tmp_path, "a <run>", lines.append)
    watch.begin()
    for step in range(1, 40):
        watch.follow((step, float(step), step / 40, "first"), {"loss": torch.tensor(2.0 / step)})
    picture = np.full((8, 12, 3), 200, np.uint8)
    samples = [("clip 1", picture, picture // 2)]
    collapsed = ENTRY | {"collapse": True}
    watch.checked((40, 40.0, 1.0, "first"), ENTRY, samples, 0.0)
    watch.checked((41, 41.0, 1.0, "first"), collapsed, samples, 0.0)
    watch.checked((42, 42.0, 1.0, "first"), collapsed, samples, 0.0)
    watch.checked((43, 43.0, 1.0, "first"), ENTRY, samples, 0.0)
    watch.checked((44, 44.0, 1.0, "first"), collapsed, samples, 0.0)
    assert len(lines) == 2  # an alarm is said when it comes, not as long as it is there
    assert lines[0].startswith("warning: a codebook uses few")
    rows = rows_of(tmp_path)
    losses = [(int(r["step"]), float(r["value"])) for r in rows if (r["name"], r["of"]) == ("loss", "training")]
    assert losses[:3] == [(n, pytest.approx(2 / n)) for n in (10, 20, 30)]  # every ten seconds
    assert [r["value"] for r in rows if r["of"] == "2 levels sharp" and r["name"] == "psnr"] == ["22.5"] * 5
    text = (tmp_path / PAGE).read_text()
    assert "a &lt;run&gt;" in text
    assert "class='alarm'>a codebook uses few" in text
    assert text.count("<img src='data:image/webp;base64,") == 2
    assert not re.search(r"https?://|<script", text)
    assert {"first psnr", "first loss", "first usage"} <= set(re.findall(r"<b>(.*?)</b>", text))
    (board,) = Board.made
    assert ("first/psnr/1 levels", 20.0, 40) in board.scalars
    assert board.images[0] == ("held-out/clip 1", (8, 24, 3), 40)
    watch.close()
    assert board.closed


@pytest.mark.usefixtures("_board")
def test_what_came_after_the_state_is_made_again(tmp_path: Path) -> None:
    watch = Watch(tmp_path, "run", print)
    watch.begin()
    watch.checked((20, 3.0, 0.5, ""), ENTRY, [], 0.0)
    write_tree(state_of(watch), tmp_path / "x.safetensors")
    before = rows_of(tmp_path)
    watch.checked((40, 6.0, 1.0, ""), ENTRY, [], 0.0)
    again = Watch(tmp_path, "run", print)
    again.load_state_dict(read_tree(tmp_path / "x.safetensors"))
    again.begin()
    assert rows_of(tmp_path) == before
    assert Board.made[-1].purge_step == 21


def test_a_chart_has_a_line_for_each_and_leaves_out_what_is_not_finite() -> None:
    line = [(0.0, 1.0), (1.0, math.nan), (2.0, math.inf), (3.0, 2.0)]
    text = chart("loss", {"a<b": line, "": [(i / 100, 1.5) for i in range(10000)]})
    first, second = re.findall(r"points='([^']*)'", text)
    assert first == "10.0,190.0 22.0,10.0"
    assert 300 < len(second.split()) < 900
    assert "a&lt;b 2" in text
    assert "1 to 2, 0.0 to 100.0 min" in text
    assert chart("none", {"": [(0.0, math.nan)]})


def test_pixels_are_rounded_and_clipped() -> None:
    x = torch.tensor([-1.0, 0.5, 2.0]).view(1, 3, 1, 1).expand(1, 3, 2, 4)
    assert pixels(x).shape == (2, 4, 3)
    assert pixels(x)[0, 0].tolist() == [0, 128, 255]


def test_pictures_clips_and_sounds_are_shown() -> None:
    picture = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1).expand(1, 3, 4, 6)
    name, first, second = shown("a", picture, 1 - picture)
    assert (name, first.shape) == ("a", (4, 6, 3))
    assert (first[0, 0].tolist(), second[0, 0].tolist()) == ([0, 128, 255], [255, 128, 0])
    clip = torch.stack([picture, 0 * picture], 2)
    assert not shown("a", clip, clip)[1].any()  # the last frame
    tone = torch.sin(torch.arange(24000) * 0.3)[None, None]
    _, first, second = shown("a", tone, tone / 100)
    assert first.shape == second.shape == (256, 94, 3)
    assert first.max() > second.max() > 0  # on one scale


SETS = (
    "model.width=16 model.heads=2 model.analysis_blocks=1 model.synthesis_blocks=1 model.tokens=20 model.dim=4"
    " model.codebook_size=16 model.smooth=8 data.holdout_every=2 optim.batch=1 quantized_from=0.0"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of noise, black pictures, and sounds."""
    out = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    for name in ("pictures", "black", "sounds"):
        (out / name).mkdir()
    for i in range(4):
        pixels = rng.integers(0, 256, (280, 280, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(out / "pictures" / f"{i}.png")
        Image.fromarray(0 * pixels).save(out / "black" / f"{i}.png")
        soundfile.write(str(out / "sounds" / f"{i}.wav"), 0.1 * rng.standard_normal(12000), 24000)
    return out


def run_1d(folder: Path, out: Path, *sets: str) -> None:
    run(image_1d.main, "--data", folder, "--steps", 8, "--out", out, "--set", *SETS.split(), *sets)


@pytest.mark.usefixtures("_trains")
def test_a_loss_that_is_not_finite_is_said(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = image_1d.Trainer.loss
    monkeypatch.setattr(image_1d.Trainer, "loss", lambda self, *inputs: math.nan * loss(self, *inputs))
    run_1d(folders / "pictures", tmp_path / "out")
    assert capsys.readouterr().out.count("warning: a loss is not finite") == 1


@pytest.mark.usefixtures("_trains")
@pytest.mark.parametrize("quantizer", ["model.codebook_size=32", "model.quantizer={kind: fsq, levels: [8, 4]}"])
def test_a_collapse_is_said(
    quantizer: str, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Black pictures need 8 codewords at most, one for each token, of 32."""
    monkeypatch.setattr(image_1d.Trainer, "evaluations", 2)
    monkeypatch.setattr(image_1d, "STARTS", 2)
    run_1d(folders / "black", tmp_path / "out", quantizer, "optim.batch=9", "model.tokens=8")
    assert capsys.readouterr().out.count("warning: a codebook uses few of its codewords") == 1


@pytest.mark.usefixtures("_trains")
def test_a_discriminator_of_sounds_that_has_won_is_said(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio, "TELLING", 0.0)
    monkeypatch.setattr(audio, "told_apart", lambda real, fake: torch.ones(()))
    sets = (
        "model.analysis_channels=[8,16] model.analysis_blocks=[1,1] model.synthesis_channels=[16,16]"
        " model.synthesis_blocks=[1,1] model.dim=8 model.codebook_sizes=[16] data.seconds=0.1 data.holdout_every=2"
        " optim.batch=1 optim.discriminators_width=2 data.kept=[] loss.adversarial_from=0.0"
    )
    run(audio.main, "--data", folders / "sounds", "--steps", 2, "--out", tmp_path / "out", "--set", *sets.split())
    assert capsys.readouterr().out.count("warning: the discriminator has won") == 1


@pytest.mark.usefixtures("_trains")
def test_a_discriminator_of_pictures_that_has_won_is_said(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def certain(self: image.Trainer, x: torch.Tensor, x_hat: torch.Tensor) -> torch.Tensor:
        self.right.fill_(1.0)
        return self.discriminator(x_hat).mean()

    monkeypatch.setattr(image.Trainer, "judge", certain)
    monkeypatch.setattr(image, "GUARDED_EVERY", 1)
    monkeypatch.setattr(image, "AdversarialGuard", lambda: AdversarialGuard(momentum=0.0))
    sets = (
        "model.channels=[8,8,8] model.analysis_blocks=[1,1,1] model.synthesis_blocks=[1,1,1] model.dim=4"
        " model.codebook_sizes=[16] export.bpp_limits=[9.0] data.holdout_every=3 sharp.adversarial_from=0.0"
        " sharp.adversarial=0.3 optim.batch=1 data.crop=176"
    )
    words = ["--data", folders / "pictures", "--steps", 4, "--out", tmp_path / "out", "--stages", "sharp"]
    run(image.main, *words, "--set", *sets.split())
    assert capsys.readouterr().out.count("warning: the discriminator has won") == 1


@pytest.mark.usefixtures("_trains", "_board")
def test_a_run_can_be_watched_and_goes_on(folders: Path, tmp_path: Path) -> None:
    words = ["--data", folders / "pictures", "--steps", 4, "--out", tmp_path / "out", "--set", *SETS.split()]
    stopped(image_1d.main, image_1d.Trainer, 2, *words)
    assert [row["step"] for row in rows_of(tmp_path / "out") if row["name"] == "psnr"] == ["2"]
    run(image_1d.main, *words)
    psnr = [row for row in rows_of(tmp_path / "out") if row["name"] == "psnr"]
    assert [(row["step"], row["of"]) for row in psnr] == [(str(n), "16 tokens") for n in (2, 3, 4)]
    assert (tmp_path / "out" / PAGE).read_text().count("<img ") == 4
