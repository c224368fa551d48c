"""Training of the video tokenizer: clips, packed and not, cameras over pictures, and the one command that runs it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import zipfile
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tokodec.codec.files import atomic_output
from tokodec.codec.media.write_video import VideoWriter
from tokodec.entropy.context.prior import ContextPrior
from tokodec.entropy.static import StaticPrior
from tokodec.tests.resuming import assert_goes_on
from tokodec.tokenizers.image.grid import ImageGrid, ImageGridConfig
from tokodec.tokenizers.video.grid import VideoGrid, VideoGridConfig
from tokodec.train import prior as prior_script
from tokodec.train import video as script
from tokodec.train.data import video as data
from tokodec.train.data.images import CropStore
from tokodec.train.data.tokens import clip_views
from tokodec.train.data.video import ClipStore, Stills, list_clips, moved, pack, read_clip

SMALL = (
    "model.channels=[6,8,8] model.analysis_blocks=[1,1,1] model.analysis_time=[1,1] model.synthesis_blocks=[1,1,1] "
    "model.synthesis_time=[1,1] model.dim=4 model.codebook_sizes=[32,16] start=random data.frames=5 data.crop=32 "
    "data.holdout_every=3 optim.batch=2 optim.warmup_steps=5"
)


def moving(frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    """uint8 [T, H, W, 3]: a pattern that moves one pixel a frame, its number in the red of all pixels."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    planes = [torch.stack([torch.full_like(x, 8 * t), (x + t + seed) * 5 % 256, y * 3 % 256], 2) for t in range(frames)]
    return torch.stack(planes).byte()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small videos, the last one packed."""
    out = tmp_path_factory.mktemp("clips")
    for i, (frames, height, width) in enumerate(((12, 48, 64), (9, 40, 36), (7, 64, 48))):
        path = out / f"v{i}.mkv"
        rate = Fraction(25)
        with atomic_output(path, True) as file, VideoWriter(file, ".mkv", path.name, height, width, 1 / rate) as writer:
            for t, pixels in enumerate(moving(frames, height, width, i)):
                writer.write(pixels.numpy(), t / rate)
    pack(out / "v2.mkv", out / "v2.zip")
    (out / "v2.mkv").unlink()
    return out


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pictures")
    Image.fromarray(moving(1, 60, 80)[0].numpy()).save(out / "p.png")
    return out


# ---------------------------------------------------------------------------------------------------------------- data


def test_clips_are_read_packed_or_not(folder: Path) -> None:
    paths = list_clips([folder])
    assert [p.name for p in paths] == ["v0.mkv", "v1.mkv", "v2.zip"]
    clips = [read_clip(path) for path in paths]
    assert [tuple(c.shape) for c in clips] == [(12, 48, 64, 3), (9, 40, 36, 3), (7, 64, 48, 3)]
    for i, clip in enumerate(clips):
        assert clip.dtype == torch.uint8
        error = (clip.float() - moving(len(clip), clip.shape[1], clip.shape[2], i).float()).abs().mean()
        assert float(error) < 12  # colours at half the resolution
    small = read_clip(paths[0], 24)
    assert tuple(small.shape) == (12, 24, 32, 3)
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no clips in"):
        list_clips([folder / "empty"])
    with pytest.raises(FileNotFoundError, match="no folder"):
        list_clips([folder / "missing"])


def test_packed_clips_need_no_video_library(folder: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['av'] = None\n"
        "from pathlib import Path\n"
        "import tokodec.train.video\n"
        "from tokodec.train.data.video import read_clip\n"
        "print(tuple(read_clip(Path(sys.argv[1]) / 'v2.zip').shape))\n"
        "try: read_clip(Path(sys.argv[1]) / 'v0.mkv')\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True)
    first, second = done.stdout.splitlines() or [done.stderr, ""]
    assert first == "(7, 64, 48, 3)"
    assert second.endswith("videos are read with PyAV, which is missing here: pack the clips first")


def test_packing_twice_gives_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        words = ["video", str(folder), "--out", str(tmp_path / name), "--size", "32", "--quality", "70"]
        monkeypatch.setattr(sys, "argv", words)
        data.main()
        assert capsys.readouterr().out.splitlines()[-1].startswith("2 clips, 21 frames, ")
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("a", "b"))
    assert [p.name for p in first] == [p.name for p in second] == ["v0.zip", "v1.zip"]
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    with zipfile.ZipFile(first[0]) as archive:
        assert json.loads(archive.read("clip.json")) == {"height": 32, "width": 43, "rate": "25"}
    assert tuple(read_clip(first[0]).shape) == (12, 32, 43, 3)


def test_no_packed_clip_takes_the_place_of_another(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Clips keep their places below the folders; equal names and clips of an earlier run are refused."""
    clips, more, out = tmp_path / "clips", tmp_path / "more", tmp_path / "out"
    for place, name in ((clips / "a", "v0.mkv"), (clips / "b", "v1.mkv"), (more, "v0.mkv")):
        place.mkdir(parents=True)
        shutil.copy(folder / name, place / "v.mkv")

    def run(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["video", *map(str, words), "--out", str(out), "--size", "24"])
        with suppress(SystemExit):
            data.main()
        return capsys.readouterr().err

    assert run(clips) == ""
    assert [tuple(read_clip(out / name / "v.zip").shape) for name in "ab"] == [(12, 24, 32, 3), (9, 27, 24, 3)]
    before = (out / "a" / "v.zip").read_bytes()
    assert "v.zip exists already: use --force to replace it" in run(clips, more)
    assert not (out / "v.zip").exists()
    assert run(clips, more, "--force") == ""
    assert (out / "a" / "v.zip").read_bytes() == (out / "v.zip").read_bytes() == before
    shutil.copy(folder / "v1.mkv", clips / "a" / "v.mp4")
    assert "would both be" in run(clips, "--force")
    assert (out / "a" / "v.zip").read_bytes() == before


def test_what_is_no_clip_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"no zip")
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("clip.json", '{"height": 4, "width": 4, "rate": "25"}')
        archive.writestr("000000.webp", b"no picture")
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("clip.json", '{"height": 4, "width": 4, "rate": "25"}')
    for name, message in (("a.zip", "damaged"), ("b.mp4", "not a video"), ("c.zip", "damaged"), ("d.zip", "no frames")):
        with pytest.raises(ValueError, match=message) as caught:
            read_clip(tmp_path / name)
        assert name in str(caught.value)


def test_crops_are_those_of_the_clips() -> None:
    clip = moving(20, 40, 48)
    store = ClipStore([clip, moving(3, 99, 99), moving(20, 30, 99)], 5, 32, "cpu", speeds=(1, 2, 30), backwards=0.5)
    assert len(store) == 1
    seen = set()
    for x in store.batch(40):
        assert x.shape == (3, 5, 32, 32)
        times = (255 * x[0, :, 0, 0] / 8).round().long()
        steps = times.diff()
        assert len(steps.unique()) == 1
        seen.add(int(steps[0]))
        shown = (255 * x).round().byte().permute(1, 2, 3, 0)
        whole = clip[times]
        places = [whole[:, t : t + 32, l : l + 32] for t in range(9) for l in range(17)]  # noqa: E741
        assert any(torch.equal(shown, place) or torch.equal(shown, place.flip(2)) for place in places)
    assert seen == {1, 2, 4, -1, -2, -4}  # 30 is more than the clip has
    for wrong in ({"frames": 0}, {"speeds": ()}, {"size": 64}):
        settings = {"frames": 5, "size": 32, **wrong}
        with pytest.raises(ValueError, match=r"a crop has frames|no clip has"):
            ClipStore([clip], device="cpu", **settings)  # type: ignore[arg-type]


def test_a_camera_moves_over_pictures() -> None:
    picture = torch.rand(2, 3, 16, 16)
    motion = torch.zeros(2, 4, 4)
    motion[:, 1, 0] = 0.25  # four pixels to the right
    motion[:, 2, 1] = -0.125  # two pixels up
    motion[:, 3, 3] = torch.pi / 2
    x = moved(picture, motion)
    assert x.shape == (2, 3, 4, 16, 16)
    assert torch.allclose(x[:, :, 0], picture, atol=1e-5)
    assert torch.allclose(x[:, :, 1, :, :12], picture[..., 4:], atol=1e-5)
    assert torch.allclose(x[:, :, 2, 2:], picture[..., :14, :], atol=1e-5)
    assert torch.allclose(x[:, :, 3], picture.rot90(1, (2, 3)), atol=1e-4) or torch.allclose(
        x[:, :, 3], picture.rot90(-1, (2, 3)), atol=1e-4
    )
    stills = Stills(CropStore([moving(1, 50, 60)[0]], 32, "cpu"), 0.5)
    store = ClipStore([moving(5, 32, 32)], 5, 32, "cpu", stills)
    batch = store.batch(6)
    assert batch.shape == (6, 3, 5, 32, 32)
    assert 0 <= float(batch.min()) <= float(batch.max()) <= 1


# --------------------------------------------------------------------------------------------------------- one command


def command(*words: str) -> list[str]:
    return ["video", "--precision", "no", "--set", *SMALL.split(), *words]


@pytest.mark.usefixtures("_trains")
def test_one_command_trains_and_reports(
    folder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model"
    words = ["data.stills=0.5", "--data", str(folder), "--stills", str(pictures), "--test", str(folder)]
    monkeypatch.setattr(sys, "argv", command(*words, "--minutes", "0.04", "--out", str(out)))
    script.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 clips and 1 pictures to train on, 16 frames, 1 held out")
    row = re.compile(r" *\w+ \d levels  \d\.\d+ bpp  \d+\.\d+ dB  first frame \d+\.\d+ dB  worst frame \d+\.\d+ dB")
    assert all(row.fullmatch(line) for line in lines[-6:])
    found = json.loads((out / "training.json").read_text())
    assert [entry["levels"] for entry in found["test"]] == [1, 2]
    assert found["holdout"][1]["bpp"] <= found["holdout_without_rate_weight"][1]["bpp"]
    assert 0 < found["test"][0]["bpp"] < found["test"][1]["bpp"]
    assert len(found["history"][-1]["bits"]) == 2
    model = VideoGrid.from_pretrained(out)
    assert any(float(level.penalty.max()) > 0 for level in model.codebooks if level.penalty is not None)
    prior = StaticPrior.from_pretrained(out)
    assert prior.codebook_sizes == model.codebook_sizes == (32, 16)

    # Resuming starts from these weights: without a step they are the same.
    again = tmp_path / "again"
    words = ["--data", str(folder), "--minutes", "0", "--resume", str(out), "--out", str(again)]
    monkeypatch.setattr(sys, "argv", command(*words))
    script.main()
    assert VideoGrid.from_pretrained(again).weights_hash == model.weights_hash


@pytest.mark.usefixtures("_trains")
def test_a_run_that_is_told_to_end_goes_on(folder: Path, pictures: Path, tmp_path: Path) -> None:
    words = command("data.stills=0.5", "rounding.share=0.5", "--data", str(folder), "--stills", str(pictures))[1:]
    assert_goes_on(script.main, script.Trainer, words, tmp_path, (2, 2))


@pytest.mark.usefixtures("_trains")
def test_a_start_from_pictures_with_another_level(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(VideoGrid, "int8_largest", ImageGrid.int8_largest)  # so that both round alike
    monkeypatch.setattr(VideoGrid, "int8_codebooks", ImageGrid.int8_codebooks)
    image = ImageGrid(ImageGridConfig((6, 8, 8), (1, 1, 1), (1, 1, 1), 4, (32,), ("faithful",)), "pictures")
    image.save_pretrained(tmp_path / "image")
    words = [f"start={tmp_path / 'image'}", "export.rate_weight=0", "--data", str(folder), "--minutes", "0"]
    monkeypatch.setattr(sys, "argv", command(*words, "--out", str(tmp_path / "out")))
    script.main()
    assert "codebooks 2 to 2 start as k-means" in capsys.readouterr().out
    model = VideoGrid.from_pretrained(tmp_path / "out")
    image = ImageGrid.from_pretrained(tmp_path / "image")
    x = moving(1, 48, 48).permute(3, 0, 1, 2)[None].float() / 255
    assert torch.equal(model.encode(x).codes[:, :1, 0], image.encode(x[:, :, 0]).codes)


@pytest.mark.usefixtures("_trains")
def test_a_few_steps_bring_the_clip_nearer() -> None:
    """The loss and the gradients of all parts belong together."""
    torch.manual_seed(0)
    config = VideoGridConfig((6, 8, 8), (1, 1, 1), (1, 1), (1, 1, 1), (1, 1), 4, (32, 16))
    net = script.Autoencoder(VideoGrid(config).train())
    x = moving(5, 32, 32).permute(3, 0, 1, 2)[None].float() / 255
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    errors = []
    for _ in range(60):
        x_hat, commitment, codebook, _ = net(x, torch.tensor([2]))
        error = (x - x_hat).square().mean()
        optimizer.zero_grad()
        (10 * error.sqrt() + 0.25 * commitment + codebook).backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert np.mean(errors[-5:]) < 0.5 * errors[0]


@pytest.mark.usefixtures("_trains")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--set data.frames=6", "a crop has 1 \\+ 4 n frames"),
        ("--set data.crop=40", "whole cells of 16 pixels"),
        ("--set data.frames=41", "no clip has 41 frames"),
        ("--set loss.beauty=1", "the recipe has no loss.beauty"),
        ("--set start=nothing", "no model 'nothing'"),
        ("--data {missing}", "no folder"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(
    change: str, message: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = change.format(missing=tmp_path / "missing").replace("--set", f"--set {SMALL}").split()
    words += [] if "--data" in words else ["--data", str(folder)]
    monkeypatch.setattr(sys, "argv", ["video", *words, "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])


# --------------------------------------------------------------------------------------------------------------- prior


def small_model(folder: Path) -> VideoGrid:
    torch.manual_seed(0)
    sizes = VideoGridConfig((6, 8, 8), (1, 1, 1), (1, 1), (1, 1, 1), (1, 1), 4, (32, 16))
    VideoGrid(sizes, "small-video").save_pretrained(folder)
    return VideoGrid.from_pretrained(folder)


def test_a_prior_of_clips_learns_from_groups_of_pictures(folder: Path, tmp_path: Path) -> None:
    """From videos to integers over three axes, in fewer bits than order-0; walked through time or without it."""
    model, out = small_model(tmp_path / "model"), tmp_path / "prior"
    sets = [
        "net.radius=[2]", "net.features=[8]", "net.width=[16]", "net.hidden=[16]", "net.blocks=[1]", "net.digit=[16]",
        "data.views=6", "data.holdout_every=3", "optim.rows=256", "optim.lr=1.0e-2", "optim.warmup_steps=10",
        "optim.dropout=0.0",
    ]  # fmt: skip
    words = ["--data", str(folder), "--test", str(folder), "--tokenizer", str(tmp_path / "model")]
    words += ["--recipe", "context-video", "--steps", "400", "--device", "cpu"]
    prior_script.main([*words, "--out", str(out), "--set", *sets])
    log = json.loads((out / "training.json").read_text())
    assert log["test grids"] == 3
    assert sum(log["test"]["integers"]) < 0.9 * sum(log["test"]["order-0"])
    prior = ContextPrior.from_pretrained(out)
    assert prior.codebook_sizes == model.codebook_sizes
    assert prior.ndim == 3
    codes = model.encode(read_clip(folder / "v0.mkv").permute(3, 0, 1, 2)[None]).codes[0].numpy()
    assert np.array_equal(prior.decompress(prior.compress(codes), codes.shape[1:]), codes)


def test_views_of_a_clip_are_groups_of_pictures_changed(folder: Path, tmp_path: Path) -> None:
    model = small_model(tmp_path / "model")
    clip = read_clip(folder / "v0.mkv")
    generator = torch.Generator().manual_seed(0)
    parts = clip_views(model, clip, 0, generator, 9)
    assert [part.shape for part in parts] == [(2, 3, 3, 4), (2, 2, 3, 4)]
    assert np.array_equal(parts[0], model.encode(clip[:9].permute(3, 0, 1, 2)[None]).codes[0].numpy())
    views = clip_views(model, clip, 8, generator, 9)
    assert len(views) == 8
    assert all(view.shape[:2] == (2, 3) for view in views)
    assert len({view.tobytes() for view in views}) > 1
