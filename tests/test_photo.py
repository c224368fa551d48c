"""The photo tokenizer: any size, tiles equal the whole, windows on their own, the quality dial, and what it refuses."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tokodec.entropy.hyperprior.export import export_hyperprior
from tokodec.entropy.hyperprior.net import Z_MAX, HyperNet, HyperShape
from tokodec.entropy.hyperprior.prior import HYPERPRIOR_FILE, HyperPrior
from tokodec.entropy.hyperprior.walk import CODE_MAX
from tokodec.tokenizers import weights
from tokodec.tokenizers.api import Tokenizer
from tokodec.tokenizers.image.grid import ImageGrid
from tokodec.tokenizers.image.layers import STRIDE
from tokodec.tokenizers.image.photo import DEFAULT_QUALITY, WINDOW, ImagePhoto, pad_to_cells
from tokodec.tokenizers.image.photo_nets import POINTS, Dial, ImagePhotoConfig
from tokodec.tokenizers.quantize.base import ABSENT
from tokodec.tokenizers.tokens import Tokens, TokenSpec

SIZES = [(1, 1), (17, 33), (70, 1100), (1, 300), (64, 64), (237, 177)]
HYPER, SLICE_ENDS = 6, (6, 8, 11, 16)  # levels of the fixture at which a slice ends, first those of z alone


@pytest.fixture(scope="module")
def model(photo_model: Path) -> ImagePhoto:
    return ImagePhoto.from_pretrained(photo_model)


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    """uint8 [H, W, C]: blobs and noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, channels, height // 9 + 1, width // 9 + 1, generator=generator)
    x = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    x = x + 0.1 * torch.randn(1, channels, height, width, generator=generator)
    return (255 * x[0].permute(1, 2, 0)).clamp(0, 255).byte()


def batch(pixels: Tensor) -> Tensor:
    """uint8 [H, W, 3] to [1, 3, H, W] in [0, 1]."""
    return pixels.permute(2, 0, 1)[None].float() / 255


def psnr(x: Tensor, x_hat: Tensor) -> float:
    return float(-10 * (x - x_hat).square().mean().log10())


def random_model(analysis: tuple[int, int], synthesis: tuple[int, int]) -> ImagePhoto:
    """Without an entropy model; blocks do something from the start."""
    torch.manual_seed(0)
    config = ImagePhotoConfig((8, 8), analysis, synthesis, latents=6, hyper=3, hyper_width=4)
    model = ImagePhoto(config)
    for name, parameter in model.named_parameters():
        if "expand" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


# ------------------------------------------------------------------------------------------------------ round trip


@pytest.mark.parametrize("size", SIZES)
def test_shapes(size: tuple[int, int], model: ImagePhoto) -> None:
    x = batch(picture(*size))
    tokens = model.encode(x, 60)
    h, w = grid = (-(-size[0] // 16), -(-size[1] // 16))
    sizes = (2 * Z_MAX + 1,) * 6 + (2 * CODE_MAX + 1,) * 10
    assert model.codebook_sizes == sizes
    assert tokens.codes.shape == (1, 16, h, w)
    assert tokens.codes.dtype == torch.int64
    assert tokens.spec == TokenSpec(
        "tiny-photo", model.weights_hash, "image", sizes, (16, 16), size, "rgb", quality=60.0
    )  # fmt: skip
    assert tokens.spec.grid == grid
    for levels in SLICE_ENDS:
        x_hat = model.decode(tokens.levels(levels))
        assert x_hat.shape == x.shape
        assert x_hat.dtype == torch.float32
        assert 0 <= float(x_hat.min()) <= float(x_hat.max()) <= 1


def test_hyper_latents_lie_in_every_fourth_cell_of_a_window(model: ImagePhoto) -> None:
    codes = model.encode(batch(picture(70, 1100))).codes[0]
    there = torch.zeros(codes.shape[1:], dtype=torch.bool)
    there[::4, ::4] = True  # windows begin at multiples of 64 cells
    assert bool((codes[:HYPER, there] >= 0).all())
    assert bool((codes[:HYPER, ~there] == ABSENT).all())
    assert bool((codes[HYPER:] >= 0).all())


def test_what_was_encoded_is_seen_again(model: ImagePhoto) -> None:
    """The fixture knows pictures a little: a picture comes back nearer than a flat one."""
    for seed in range(3):
        x = batch(picture(150, 130, seed=seed))
        assert psnr(x, model.decode(model.encode(x, 100))) > psnr(x, x.mean((2, 3), keepdim=True)) + 3


def test_borders_are_replicated(model: ImagePhoto) -> None:
    x = batch(picture(48, 64))
    cut = x[..., :41, :50]
    padded = cut[..., [min(y, 40) for y in range(48)], :][..., [min(c, 49) for c in range(64)]]
    assert torch.equal(pad_to_cells(cut), padded)
    assert torch.equal(model.encode(cut).codes, model.encode(padded).codes)


def test_batch_equals_single(model: ImagePhoto) -> None:
    x = torch.cat([batch(picture(70, 90, seed=i)) for i in range(3)])
    together = model.encode(x, 70)
    alone = [model.encode(one[None], 70) for one in x]
    assert torch.equal(together.codes, torch.cat([tokens.codes for tokens in alone]))
    x_hat = torch.cat([model.decode(tokens) for tokens in alone])
    torch.testing.assert_close(model.decode(together), x_hat, atol=1e-5, rtol=0)


def test_encode_twice_gives_the_same(model: ImagePhoto) -> None:
    x = batch(picture(120, 90))
    assert torch.equal(model.encode(x).codes, model.encode(x).codes)


# ----------------------------------------------------------------------------------------------------------- tiles


@pytest.mark.parametrize("cells", [1, 3, 8])
@pytest.mark.parametrize("size", [(1, 1), (16 * 9 + 5, 16 * 11 + 1), (1, 300), (237, 177)])
def test_tiles_equal_the_whole(size: tuple[int, int], cells: int, model: ImagePhoto) -> None:
    pixels = picture(*size)
    with torch.no_grad():
        whole = model.latents(pad_to_cells(batch(pixels)))[0].numpy()
    tiled = model.analyse_tiled(pixels, cells)
    assert tiled.dtype == np.float32
    np.testing.assert_allclose(tiled, whole, atol=1e-5, rtol=1e-4)
    for steps in (0, 5000):
        (_, walk), (_, expected) = (model.quantise_windows(y, steps)[0] for y in (tiled, whole))
        assert np.array_equal(walk.z, expected.z)
        assert np.array_equal(walk.codes, expected.codes)
        assert np.array_equal(walk.latents, expected.latents)
        x_hat = model.pixels(torch.from_numpy(walk.latents)[None], steps)[0, :, : size[0], : size[1]]
        for channels in (3, 1):
            one = x_hat if channels == 3 else x_hat.mean(0, keepdim=True)
            found = model.synthesise_tiled(walk.latents, steps, size, channels, cells)
            assert found.shape == (*size, channels)
            assert found.dtype == torch.uint8
            difference = found.int() - (255 * one.permute(1, 2, 0)).round().int()
            assert int(difference.abs().max()) <= 1


@pytest.mark.parametrize("depth", [(1, 1), (0, 0), (2, 0), (0, 2), (3, 1)])
def test_tiles_of_other_depths(depth: tuple[int, int]) -> None:
    model = random_model(depth, depth)
    pixels = picture(16 * 7 + 3, 16 * 8)
    with torch.no_grad():
        whole = model.latents(pad_to_cells(batch(pixels)))
        np.testing.assert_allclose(model.analyse_tiled(pixels, 2), whole[0].numpy(), atol=1e-5, rtol=1e-4)
        x_hat = (255 * model.pixels(whole, 5000)[0, :, :115].permute(1, 2, 0)).round().int()
        found = model.synthesise_tiled(whole[0].numpy(), 5000, (115, 128), cells=2)
    assert float(x_hat.float().std()) > 1
    assert int((found.int() - x_hat).abs().max()) <= 1


def test_decode_in_tiles_equals_decode(model: ImagePhoto) -> None:
    tokens = model.encode(batch(picture(70, 1100)), 80)
    whole = model.decode(tokens)[0]
    for channels, expected in ((3, whole), (1, whole.mean(0, keepdim=True))):
        found = model.decode_tiled(tokens, channels)
        assert found.shape == (70, 1100, channels)
        assert int((found.int() - (255 * expected.permute(1, 2, 0)).round().int()).abs().max()) <= 1


def test_gray_is_rgb_of_equal_channels(model: ImagePhoto) -> None:
    pixels = picture(50, 60, 1)
    assert np.array_equal(model.analyse_tiled(pixels), model.analyse_tiled(pixels.expand(-1, -1, 3)))


def test_progress_of_tiles(model: ImagePhoto) -> None:
    pixels = picture(100, 100)
    analysed: list[float] = []
    y = model.analyse_tiled(pixels, 3, analysed.append)
    made: list[float] = []
    model.synthesise_tiled(y, 0, (100, 100), cells=3, progress=made.append)
    for shares in (analysed, made):
        assert shares == [(i + 1) / 9 for i in range(9)]


# --------------------------------------------------------------------------------------------------- receptive field

DEPTHS = [(1, 1), (6, 3), (0, 0), (1, 0), (2, 0), (0, 2), (3, 2)]


def positive(net: nn.Module) -> None:
    """Positive weights: then no path from input to output cancels, and a gradient of zero means "no path"."""
    for parameter in net.parameters():
        with torch.no_grad():
            parameter.abs_().clamp_(max=0.05).add_(0.001)


def reach(influence: Tensor, centre: int) -> int:
    """Largest distance of a non-zero row or column of ``influence [n, n]`` from ``centre``."""
    touched = influence.abs() > 0
    places = [*touched.any(0).nonzero().flatten().tolist(), *touched.any(1).nonzero().flatten().tolist()]
    return max(abs(place - centre) for place in places)


@pytest.mark.parametrize("depth", DEPTHS)
def test_analysis_halo_is_the_receptive_field(depth: tuple[int, int]) -> None:
    """Exactly: a cell more would be waste, a cell less would be wrong."""
    model = random_model(depth, (0, 0)).double()
    positive(model.nets.analysis)
    n = 2 * model.analysis_halo + 3
    x = torch.ones(1, 3, STRIDE * n, STRIDE * n, dtype=torch.float64, requires_grad=True)
    model.latents(x)[0, :, n // 2, n // 2].sum().backward()
    assert x.grad is not None
    cells = x.grad[0].abs().sum(0).reshape(n, STRIDE, n, STRIDE).sum((1, 3))
    assert reach(cells, n // 2) == model.analysis_halo


@pytest.mark.parametrize("depth", DEPTHS)
def test_synthesis_halo_is_the_receptive_field(depth: tuple[int, int]) -> None:
    model = random_model((0, 0), depth).double()
    net = model.nets.synthesis
    positive(net)
    n = 2 * model.synthesis_halo + 3
    y = torch.ones(1, 6, n, n, dtype=torch.float64, requires_grad=True)
    at = STRIDE * (n // 2)
    net(y, torch.tensor([0.5], dtype=torch.float64))[..., at : at + STRIDE, at : at + STRIDE].sum().backward()
    assert y.grad is not None
    assert reach(y.grad[0].abs().sum(0), n // 2) == model.synthesis_halo


def test_halos_are_known_numbers(model: ImagePhoto) -> None:
    assert (model.analysis_halo, model.synthesis_halo) == (3, 3)
    released = ImagePhotoConfig()
    assert (released.analysis_blocks, released.synthesis_blocks) == ((6, 3), (6, 3))


@pytest.mark.parametrize("shape", [(70, 1100), (1100, 70)])
def test_windows_know_nothing_of_each_other(shape: tuple[int, int], model: ImagePhoto) -> None:
    """What is more than a halo away from the border of another window does not change its codes."""
    pixels = picture(*shape)
    codes = model.encode(batch(pixels), 70).codes[0]
    axis = 0 if shape[0] > shape[1] else 1
    border = STRIDE * WINDOW
    for begin, end, other in (
        (0, border - STRIDE * model.analysis_halo, slice(WINDOW, None)),
        (border + STRIDE * model.analysis_halo, max(shape), slice(0, WINDOW)),
    ):
        changed = pixels.clone()
        changed.narrow(axis, begin, end - begin).add_(100)
        found = model.encode(batch(changed), 70).codes[0]
        assert not torch.equal(found, codes)
        place = (slice(None), other, slice(None)) if axis == 0 else (slice(None), slice(None), other)
        assert torch.equal(found[place], codes[place])


def test_codes_of_a_window_are_those_of_its_latents_alone(model: ImagePhoto) -> None:
    """The entropy model and the hyper nets see zeros outside of the window."""
    y = model.analyse_tiled(picture(40, 1100))
    walks = model.quantise_windows(y, 5000)
    assert [tile.core for tile, _ in walks] == [(0, 0, 3, 64), (0, 64, 3, 69)]
    for (_, walk), part in zip(walks, (y[:, :, :64], y[:, :, 64:]), strict=True):
        alone = model.quantise(part, 5000)
        assert np.array_equal(alone.codes, walk.codes)
        assert np.array_equal(alone.z, walk.z)


# ----------------------------------------------------------------------------------------------------- quality dial


def test_more_quality_takes_more_bits_and_errs_less(model: ImagePhoto) -> None:
    pixels = picture(256, 256)
    y = model.analyse_tiled(pixels)
    bits, errors = [], []
    for quality in (0, 10, 25, 50, 75, 100):
        (_, walk), *_ = model.quantise_windows(y, 100 * quality)
        bits.append(float(model.entropy.bits(walk).sum()))
        with torch.no_grad():
            gain = model.nets.inverse_gain(torch.tensor([quality / 100]))
        y_hat = torch.from_numpy(walk.latents)[None] * gain
        errors.append(float((y_hat[0] - torch.from_numpy(y)).square().mean()))
    assert bits == sorted(bits)
    assert bits[-1] > 3 * bits[0]
    assert errors[-1] < errors[0] / 10


def test_dial_interpolates() -> None:
    torch.manual_seed(0)
    dial = Dial(5)
    nn.init.normal_(dial.points)
    places = torch.linspace(0, 1, POINTS)
    at = dial(places)
    assert at.shape == (POINTS, 5, 1, 1)
    torch.testing.assert_close(at[..., 0, 0], dial.points, atol=1e-5, rtol=0)
    assert torch.equal(dial(torch.tensor([0.0, 1.0]))[..., 0, 0], dial.points[[0, -1]])
    for share in (0.25, 0.5, 0.9):
        between = places[:-1] + share / (POINTS - 1)
        expected = torch.lerp(dial.points[:-1], dial.points[1:], share)
        torch.testing.assert_close(dial(between)[..., 0, 0], expected, atol=1e-5, rtol=0)


def test_dial_starts_as_a_straight_line() -> None:
    dial = Dial(3, -1.0, 2.0)
    quality = torch.tensor([0.0, 0.123, 0.5, 1.0])
    torch.testing.assert_close(dial(quality)[:, 0, 0, 0], 3 * quality - 1)
    assert not Dial(3)(quality).any()


def test_quality_is_kept_in_hundredths(model: ImagePhoto) -> None:
    x = batch(picture(64, 64))
    assert model.encode(x).spec.quality == DEFAULT_QUALITY
    for given, kept in ((0, 0), (100, 100), (33.333, 33.33), (0.004, 0), (5.5, 5.5), (57.29, 57.29)):
        tokens = model.encode(x, given)
        assert tokens.spec.quality == kept
        assert torch.equal(model.encode(x, kept).codes, tokens.codes)
        assert torch.equal(model.decode(model.encode(x, kept)), model.decode(tokens))


@pytest.mark.parametrize("quality", [-0.01, 100.01, float("nan"), float("inf"), 1e300])
def test_quality_out_of_range(quality: float, model: ImagePhoto) -> None:
    x = torch.zeros(1, 3, 16, 16)
    with pytest.raises(ValueError, match="quality is 0 to 100"):
        model.encode(x, quality)
    tokens = model.encode(x)
    for value in (quality, None):
        with pytest.raises(ValueError, match="quality is 0 to 100"):
            model.decode(Tokens(tokens.codes, dataclasses.replace(tokens.spec, quality=value)))


# ---------------------------------------------------------------------------------------------------------- prefixes


def test_prefix_that_ends_with_a_slice_is_a_coarser_picture(model: ImagePhoto) -> None:
    tokens = model.encode(batch(picture(150, 130)), 80)
    full = model.decode(tokens)
    near = [psnr(full, model.decode(tokens.levels(n))) for n in SLICE_ENDS[:-1]]
    assert near == sorted(near)
    assert torch.equal(model.decode(tokens.levels(16)), full)


@pytest.mark.parametrize("levels", [n for n in range(1, 16) if n not in SLICE_ENDS])
def test_prefix_inside_a_slice_is_refused(levels: int, model: ImagePhoto) -> None:
    tokens = model.encode(batch(picture(20, 20))).levels(levels)
    for decode in (model.decode, model.decode_tiled):
        with pytest.raises(ValueError, match="slice") as caught:
            decode(tokens)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("level", [0, 5, 6, 9, 15])
def test_absent_codes_are_refused(level: int, model: ImagePhoto) -> None:
    tokens = model.encode(batch(picture(40, 40)))
    codes = tokens.codes.clone()
    codes[0, level, 0, 0] = ABSENT
    with pytest.raises(ValueError, match="absent"):
        model.decode(Tokens(codes, tokens.spec))


def test_codes_that_this_model_cannot_have_made(model: ImagePhoto) -> None:
    """At quality 0 the fixture skips half of the codes: they are zero, and nothing else."""
    tokens = model.encode(batch(picture(40, 40)), 0)
    codes = tokens.codes.clone()
    codes[:, HYPER:] += 1
    with pytest.raises(ValueError, match="another model"):
        model.decode(Tokens(codes, tokens.spec))


# ------------------------------------------------------------------------------------------------------ save, load


def copied(photo_model: Path, folder: Path) -> Path:
    for name in (HYPERPRIOR_FILE, "config.json", weights.WEIGHTS_FILE):
        shutil.copy(photo_model / name, folder / name)
    return folder


def other_entropy(photo_model: Path, folder: Path) -> None:
    """Write an entropy model into ``folder`` that fits the nets, but is not theirs."""
    arrays = HyperPrior.from_pretrained(photo_model).arrays()
    HyperPrior(arrays | {"skip": arrays["skip"] - 1}).save_pretrained(folder)


def test_save_and_load(photo_model: Path, tmp_path: Path) -> None:
    """Saving what was loaded changes nothing: rounding to int8 and float16 is idempotent."""
    ImagePhoto.from_pretrained(photo_model).save_pretrained(tmp_path / "first")  # golden weights were rounded otherwise
    fresh = model = ImagePhoto.from_pretrained(tmp_path / "first")
    fresh.save_pretrained(tmp_path / "new" / "folder")
    loaded = Tokenizer.from_pretrained(tmp_path / "new" / "folder")
    assert isinstance(loaded, ImagePhoto)
    assert (loaded.config, loaded.name) == (model.config, model.name)
    assert loaded.weights_hash == fresh.weights_hash == weights.file_hash(tmp_path / "new/folder/model.safetensors")
    assert loaded.entropy.hash == model.entropy.hash == weights.file_hash(photo_model / HYPERPRIOR_FILE)
    assert bytes(loaded.entropy_hash.tolist()).hex() == model.entropy.hash
    assert not loaded.training
    x = batch(picture(90, 70))
    tokens = model.encode(x)
    assert torch.equal(loaded.encode(x).codes, tokens.codes)
    assert torch.equal(loaded.decode(loaded.encode(x)), model.decode(tokens))
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "config.json", HYPERPRIOR_FILE, weights.WEIGHTS_FILE,
    ]  # fmt: skip


def test_the_hash_of_the_weights_tells_entropy_models_apart(photo_model: Path, tmp_path: Path) -> None:
    """A file names the weights: it must not be decoded with another entropy model that fits them."""
    model = ImagePhoto.from_pretrained(photo_model)
    before = model.weights_hash
    arrays = model.entropy.arrays()
    model.set_entropy(HyperPrior(arrays | {"skip": arrays["skip"] - 1}))
    model.save_pretrained(tmp_path)
    assert model.weights_hash != before
    assert ImagePhoto.from_pretrained(tmp_path).entropy.skip == int(arrays["skip"][0]) - 1


def test_another_entropy_model_is_refused(photo_model: Path, tmp_path: Path) -> None:
    other_entropy(photo_model, copied(photo_model, tmp_path))
    with pytest.raises(ValueError, match="not the entropy model") as caught:
        Tokenizer.from_pretrained(tmp_path)
    assert str(tmp_path / HYPERPRIOR_FILE) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_damaged_entropy_model_is_refused(photo_model: Path, tmp_path: Path) -> None:
    path = copied(photo_model, tmp_path) / HYPERPRIOR_FILE
    data = path.read_bytes()
    for bad in (b"", data[:7], data[:100], data[:-1], b"\xff" * 100, data + b"x"):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=HYPERPRIOR_FILE) as caught:
            ImagePhoto.from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(ValueError, match=HYPERPRIOR_FILE) as caught:
        ImagePhoto.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_entropy_model_of_other_channels(model: ImagePhoto) -> None:
    torch.manual_seed(0)
    for hyper, slices in ((HYPER, (2, 3, 4)), (5, (2, 3, 5))):
        shape = HyperShape(hyper, slices, (8, 8), features=8, width=8, hidden=8, blocks=1, head=8)
        with pytest.raises(ValueError, match="other channels"):
            model.set_entropy(HyperPrior(export_hyperprior(HyperNet(shape))))
    assert model.entropy.slices == (2, 3, 5)


def test_without_an_entropy_model(tmp_path: Path) -> None:
    model = random_model((0, 0), (0, 0))
    with pytest.raises(ValueError, match="no entropy model"):
        model.encode(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="no entropy model"):
        model.save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"layers": 3}}, "unknown settings: layers"),
        ({"config": {"channels": [8, 8, 8]}}, "two entries"),
        ({"config": {"analysis_blocks": []}}, "two entries"),
        ({"config": {"channels": 8}}, r"config\.json"),
        ({"config": {"distortion": "beauty"}}, "unknown distortion 'beauty': mse or ms-ssim"),
        ({"config": {"rate_weights": [1.0]}}, "rate_weights are two positive numbers"),
        ({"config": {"rate_weights": [0, 1.0]}}, "rate_weights are two positive numbers"),
        ({"config": {"channels": [8, -16]}}, r"config\.json"),
        ({"config": {"channels": [8, 24]}}, "does not fit"),
        ({"config": {"latents": 11}}, "does not fit"),
        ({"config": {"latents": "ten"}}, r"config\.json"),
        ({"config": {"hyper": 5}}, "does not fit"),
        ({"config": {"synthesis_blocks": [2, 1]}}, "does not fit"),
        ({"class": "ImageGrid"}, "unknown settings"),
    ],
)
def test_bad_config_is_refused(change: dict[str, Any], message: str, photo_model: Path, tmp_path: Path) -> None:
    path = copied(photo_model, tmp_path) / "config.json"
    found = json.loads(path.read_text())
    found["config"] |= change.get("config", {})
    path.write_text(json.dumps(found | {k: v for k, v in change.items() if k != "config"}))
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_model_of_the_other_class(photo_model: Path, tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="holds a ImagePhoto, not a ImageGrid"):
        ImageGrid.from_pretrained(photo_model)
    with pytest.raises(ValueError, match="holds a ImageGrid, not a ImagePhoto"):
        ImagePhoto.from_pretrained(tiny_model)
    assert (ImageGrid.rate_control, ImagePhoto.rate_control) == ("levels", "quality")


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 4, 8, 8), (1, 3, 0, 8), (1, 3, 8, 0), (0, 3, 8, 8)])
def test_what_is_no_picture_batch(shape: tuple[int, ...], model: ImagePhoto) -> None:
    with pytest.raises(ValueError, match="pictures are a float tensor"):
        model.encode(torch.zeros(shape))


def test_pictures_that_are_not_numbers(model: ImagePhoto) -> None:
    x = torch.zeros(1, 3, 16, 16)
    x[0, 1, 3, 3] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite"):
        model.encode(x)


def test_tokens_of_another_model_are_refused(model: ImagePhoto) -> None:
    tokens = model.encode(torch.zeros(1, 3, 16, 16))
    spec = tokens.spec
    for other in (dataclasses.replace(spec, model="other"), dataclasses.replace(spec, weights_hash="0" * 16)):
        for decode in (model.decode, model.decode_tiled):
            with pytest.raises(ValueError, match="given to tiny-photo"):
                decode(Tokens(tokens.codes, other))


def test_tokens_check_themselves(model: ImagePhoto) -> None:
    tokens = model.encode(torch.zeros(1, 3, 20, 40))
    good = tokens.codes
    for codes, message in (
        (good.int(), "int64"),
        (good.float(), "int64"),
        (good[0], "shape"),
        (good[..., :2], "shape"),
        (good[:, :0], "0 levels"),
        (good.repeat(1, 2, 1, 1), "32 levels"),
        (good - 64, "level 1"),
        (torch.full_like(good, 2 * Z_MAX + 1), "level 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Tokens(codes, tokens.spec)


def test_wrong_configuration_class() -> None:
    with pytest.raises(ValueError, match="ImagePhotoConfig"):
        ImagePhoto({"latents": 4})  # type: ignore[arg-type]
