"""Effort: codes are better by what the model was trained for, never worse, and still those of an ordinary file."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from tokodec.codec import cli
from tokodec.codec.bench.image.bench import load_reused
from tokodec.codec.bench.image.ours import prepare
from tokodec.codec.bench.image.peers import find_peers
from tokodec.codec.decode import decode_file
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import RateError, UsageError
from tokodec.codec.image.canvas import Canvas, grown
from tokodec.codec.image.refine import Refiner
from tokodec.codec.models import load_model
from tokodec.codec.options import EFFORTS
from tokodec.codec.progress import SILENT, Progress, as_progress
from tokodec.entropy.hyperprior.relaxed import RelaxedPrior
from tokodec.entropy.hyperprior.walk import Walk
from tokodec.tokenizers.folders import ASSETS
from tokodec.tokenizers.image.photo import ImagePhoto
from tokodec.tokenizers.image.tiling import Tile


def tokenizer(name: str) -> ImagePhoto:
    found = load_model(name).tokenizer
    assert isinstance(found, ImagePhoto)
    return found


@pytest.fixture(scope="module")
def model(photo_model: Path) -> ImagePhoto:
    return tokenizer(str(photo_model))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A picture of 70 x 90: its grid of 5 x 6 cells is not one of whole hyper cells."""
    Image.fromarray(smooth_noise(70, 90)).save(tmp_path / "source.png")
    return tmp_path / "source.png"


def smooth_noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    """A picture-like array, uint8 [H, W, C]: noise at several scales."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(1, channels, height, width)
    for scale in (2, 5, 13, 40):
        small = torch.randn(1, channels, height // scale + 2, width // scale + 2, generator=generator)
        total += F.interpolate(small, (height, width), mode="bicubic") * scale**0.5
    total = 128 + 40 * total / total.std().nan_to_num(1)
    return total[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


Walks = list[tuple[Tile, Walk]]


def refiner_of(model: ImagePhoto, pixels: np.ndarray, n_steps: int, steps: int) -> tuple[Refiner, Walks]:
    latents = model.analyse_tiled(torch.from_numpy(pixels))
    walks = model.quantise_windows(latents, steps)
    return Refiner(held(Canvas(model, pixels, latents), walks), n_steps), walks


def held(canvas: Canvas, walks: Walks) -> Canvas:
    for tile, walk in walks:
        canvas.hold(tile, walk.latents)
    return canvas


def refine(refiner: Refiner, walks: Walks, steps: int, progress: Progress = SILENT) -> list[Walk]:
    """All windows after each other, as a file does it."""
    n = len(walks)
    return [
        refiner.refine(tile, walk, steps, progress.part(i / n, (i + 1) / n)) for i, (tile, walk) in enumerate(walks)
    ]


def whole_cost(refiner: Refiner, walks: list[Walk], tiles: list[Tile], steps: int) -> float:
    """Bits and lambda times the distortion of the whole decoded picture, by the decoder's own functions."""
    latents = held(refiner.canvas, list(zip(tiles, walks, strict=True))).known((0, 0, *refiner.canvas.grid))
    height, width, channels = refiner.canvas.pixels.shape
    x_hat = refiner.model.synthesise_tiled(latents, steps, (height, width), channels)
    pair = (torch.from_numpy(refiner.canvas.pixels), x_hat)
    x, x_hat = (p.permute(2, 0, 1)[None].expand(-1, 3, -1, -1).float() / 255 for p in pair)
    error = float(refiner.distortion(x, x_hat)) * height * width
    bits = sum(float(refiner.model.entropy.bits(walk).sum()) for walk in walks)
    return bits + refiner.weight(steps) * error


# ----------------------------------------------------------------------------------------------- the relaxed prior


@pytest.mark.parametrize("size", [(70, 90), (128, 64), (5, 200)])
def test_the_relaxed_prior_is_the_twin_of_the_integers(size: tuple[int, int], model: ImagePhoto) -> None:
    """At latents that were decoded nothing is left to round, so that it must give them back, and nearly their bits."""
    pixels = smooth_noise(*size)
    latents = model.analyse_tiled(torch.from_numpy(pixels))
    relaxed = RelaxedPrior(model.entropy)
    for steps in (1000, 9000):
        walk = model.quantise(latents, steps)
        y, z = torch.from_numpy(walk.latents), torch.from_numpy(walk.z).float()
        y_hat, bits = relaxed(y, z, steps, torch.zeros_like(y))
        assert float((y_hat - y).abs().max()) < 0.2  # means of what is not coded, in float
        assert float(bits) == pytest.approx(float(model.entropy.bits(walk).sum()), rel=0.1)
        free = np.zeros(walk.latents.shape[1:], dtype=bool)
        free[:, 2:4] = True
        walk = model.quantise(latents, steps, free)  # whatever y is there
        y, z = torch.from_numpy(np.where(free, 50, walk.latents)), torch.from_numpy(walk.z).float()
        y_hat, bits = relaxed(y, z, steps, torch.zeros_like(y), torch.from_numpy(free))
        assert float((y_hat - torch.from_numpy(walk.latents)).abs().max()) < 0.2
        assert float(bits) == pytest.approx(float(model.entropy.bits(walk).sum()), rel=0.1)


def test_slopes_of_the_relaxed_prior_say_what_a_change_costs(model: ImagePhoto) -> None:
    latents = model.analyse_tiled(torch.from_numpy(smooth_noise(70, 90)))
    torch.manual_seed(0)
    relaxed = RelaxedPrior(model.entropy)
    y = (torch.from_numpy(latents)[None] * model.nets.gain(torch.tensor([0.5]))).detach()[0].requires_grad_()
    z = (torch.rand(6, 2, 2) * 4 - 2).requires_grad_()
    nothing = torch.zeros_like(y)
    slopes = torch.autograd.grad(relaxed(y, z, 5000, nothing)[1], [y, z])
    for way_y, way_z in ((slopes[0], torch.zeros_like(z)), (torch.zeros_like(y), slopes[1])):
        size = float(way_y.norm() + way_z.norm())
        found = [relaxed(y + e * way_y / size, z + e * way_z / size, 5000, nothing)[1] for e in (0.02, -0.02)]
        assert float((found[0] - found[1]).detach()) / 0.04 == pytest.approx(size, rel=0.1)


# ------------------------------------------------------------------------------------------------------ the descent


@pytest.mark.parametrize(
    ("name", "steps", "least"),
    [
        ("image-photo", 5000, 0.01),
        ("image-photo-2", 5000, 0.01),
        ("image-photo-2", 2000, 0.002),  # where most codes are zero, so that a pull towards zero is soon too strong
        ("image-photo-ms-ssim", 5000, 0.02),
    ],
)
def test_a_released_model_gains_on_a_sample_picture(name: str, steps: int, least: float) -> None:
    with Image.open(ASSETS / "kodim05.webp") as im:
        pixels = np.array(im.convert("RGB"))[120:288, 200:368]
    refiner, walks = refiner_of(tokenizer(name), pixels, 4, steps)
    tiles, before = [tile for tile, _ in walks], [walk for _, walk in walks]
    after = refine(refiner, walks, steps)
    costs = [whole_cost(refiner, found, tiles, steps) for found in (before, after)]
    assert math.log(costs[0] / costs[1]) > least


def test_more_steps_gain_more(model: ImagePhoto) -> None:
    """Also where gradients are switched off."""
    costs = []
    for n_steps in (2, 8, 24):
        refiner, walks = refiner_of(model, smooth_noise(128, 128), n_steps, 5000)
        with torch.no_grad():
            costs.append(whole_cost(refiner, refine(refiner, walks, 5000), [tile for tile, _ in walks], 5000))
    assert costs[2] < costs[1] < costs[0] < whole_cost(refiner, [w for _, w in walks], [t for t, _ in walks], 5000)


@pytest.mark.parametrize("metric", ["mse", "ms-ssim"])
@pytest.mark.parametrize("size", [(1, 1), (40, 1100, 1), (1045, 90)])
def test_windows_of_any_size_are_never_worse(metric: str, size: tuple[int, ...], model: ImagePhoto) -> None:
    """Also a window of a few cells at the border, grey pictures, and those that MS-SSIM is not defined for."""
    ends = (0.001, 0.2) if metric == "mse" else (2.5, 250.0)
    other = ImagePhoto(replace(model.config, distortion=metric, rate_weights=ends), model.name)
    other.nets.load_state_dict(model.nets.state_dict())
    other.set_entropy(model.entropy)
    refiner, walks = refiner_of(other, smooth_noise(*size), 3, 5000)
    assert len(walks) == (1 if max(size) < 1024 else 2)
    shares: list[float] = []
    after = refine(refiner, walks, 5000, as_progress(shares.append))
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert len(shares) == 3 * len(walks)
    if size != (1, 1):
        assert any(walk is not kept for walk, (_, kept) in zip(after, walks, strict=True))
    canvas = held(refiner.canvas, walks)
    for (tile, before), walk in zip(walks, after, strict=True):
        least = refiner.cost(before, tile, 5000)
        canvas.hold(tile, walk.latents)
        assert refiner.cost(walk, tile, 5000) <= least
    if metric == "mse":  # which adds up over windows
        tiles = [tile for tile, _ in walks]
        total = [whole_cost(refiner, found, tiles, 5000) for found in ([w for _, w in walks], after)]
        assert total[1] <= total[0] * (1 + 1e-6)


def test_codes_that_a_descent_made_worse_are_not_taken(model: ImagePhoto, monkeypatch: pytest.MonkeyPatch) -> None:
    refiner, walks = refiner_of(model, smooth_noise(70, 90), 1, 5000)
    for bad in (40.0, math.nan):
        y = torch.full((10, 5, 6), bad)
        monkeypatch.setattr(refiner, "descend", lambda *_, y=y: (y, torch.zeros(6, 2, 2)))
        assert refine(refiner, walks, 5000) == [walk for _, walk in walks]


def test_boxes_grow_inside_the_grid() -> None:
    assert grown((0, 64, 64, 70), (100, 70), 2) == (0, 62, 66, 70)
    assert grown((64, 0, 66, 5), (66, 5), 2, 12) == (54, 0, 66, 5)
    assert grown((0, 0, 3, 3), (30, 30), 2, 12) == (0, 0, 12, 12)


# -------------------------------------------------------------------------------------------------------- whole files


def test_files_decode_to_what_was_chosen(source: Path, model: ImagePhoto, photo_model: Path) -> None:
    pixels = np.array(Image.open(source))
    for quality in (0, 60):
        plain, done = (
            encode_file(source, None, model=str(photo_model), quality=quality, effort=e, device="cpu") for e in (0, 2)
        )
        assert (done.quality, done.notes) == (quality, [])
        assert done.data != plain.data
        (source.parent / "a.tok").write_bytes(done.data)
        decoded = decode_file(source.parent / "a.tok", model=str(photo_model), strict=True)
        refiner, walks = refiner_of(model, pixels, EFFORTS[2], 100 * quality)
        (walk,) = refine(refiner, walks, 100 * quality)
        x_hat = model.synthesise_tiled(walk.latents, 100 * quality, (70, 90))
        assert np.array_equal(decoded.picture.pixels, x_hat.numpy())


def test_no_effort_is_the_default(source: Path, photo_model: Path) -> None:
    default = encode_file(source, None, model=str(photo_model), quality=60, device="cpu").data
    none, little = (
        encode_file(source, None, model=str(photo_model), quality=60, device="cpu", effort=e).data for e in (0, 1)
    )
    assert none == default
    assert little != default


def test_rates_are_met_with_effort(tmp_path: Path, photo_model: Path) -> None:
    path, name = tmp_path / "large.png", str(photo_model)
    Image.fromarray(smooth_noise(192, 192)).save(path)
    low, high = (len(encode_file(path, None, model=name, quality=q, device="cpu").data) for q in (0, 99.99))
    for share in (0.1, 0.6):
        most = round(low + share * (high - low))
        made = encode_file(path, None, model=name, size=most, effort=2, device="cpu")
        assert 0.97 * most <= len(made.data) <= most
        assert made.quality is not None
        assert made.data == encode_file(path, None, model=name, quality=made.quality, effort=2, device="cpu").data
    assert len(encode_file(path, None, model=name, size=low, effort=1, device="cpu").data) <= low
    assert encode_file(path, None, model=name, size=10**9, effort=1, device="cpu").quality == 100
    with pytest.raises(RateError, match="smallest file"):
        encode_file(path, None, model=name, size=40, effort=1, device="cpu")


def test_mistakes(
    source: Path, photo_model: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "x.tok"
    for model, effort, said in (
        (photo_model, 11, "0 to 10, got 11"),
        (photo_model, -1, "0 to 10, got -1"),
        (tiny_model, 3, "effort is not an option of tiny"),
    ):
        assert cli.run(["encode", str(source), "-o", str(out), "-m", str(model), "--effort", str(effort)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    assert cli.run(["encode", str(source), "-o", str(out), "-m", str(photo_model), "--effort", "much"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not out.exists()
    with pytest.raises(UsageError, match="effort"):
        prepare(str(tiny_model), "cpu", strict=True, effort=1)


# -------------------------------------------------------------------------------------------------- reuse of curves


def test_curves_of_peers_are_reused_only_where_they_compare(tmp_path: Path) -> None:
    (peer,) = find_peers(["webp"])
    points = [{"setting": f"quality {i}", "bpp": 0.1 * i, "psnr": 30.0 + i} for i in range(1, 5)]
    good = {
        "peers": {"webp": peer.described}, "pictures": ["a.webp"], "curves": [{"name": "webp", "points": points}],
        "commit": "c", "date": "d", "machine": {},
    }  # fmt: skip
    path = tmp_path / "results.json"

    def load(change: dict[str, object], pictures: list[str], key: str) -> list[object]:
        path.write_text(json.dumps(good | change))
        return [curve.points for curve in load_reused(path, [peer], pictures, [key]).curves]

    assert load({}, ["a.png"], "psnr") == [points]
    bad: list[tuple[dict[str, object], list[str], str, str]] = [
        ({}, ["b.png"], "psnr", "other pictures"),
        ({}, ["a.png"], "ms_ssim", "lacks a metric"),
        ({"peers": {"webp": "an older one"}}, ["a.png"], "psnr", "settings and libraries"),
        ({"curves": []}, ["a.png"], "psnr", "settings and libraries"),
        ({"curves": 1}, ["a.png"], "psnr", "no results.json"),
    ]
    for change, pictures, key, said in bad:
        with pytest.raises(UsageError, match=said):
            load(change, pictures, key)
    path.write_text("[]")
    with pytest.raises(UsageError, match=r"no results\.json"):
        load_reused(path, [peer], ["a.png"], ["psnr"])
