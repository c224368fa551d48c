"""The image tokenizer: any size, prefixes, tiles equal the whole, exact receptive fields, and what it refuses."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save_file
from torch import Tensor, nn

from tokodec.entropy import packed
from tokodec.tokenizers import weights
from tokodec.tokenizers.api import Tokenizer
from tokodec.tokenizers.image.grid import ImageGrid, ImageGridConfig
from tokodec.tokenizers.image.layers import STRIDE
from tokodec.tokenizers.image.tiling import decode_tiled, encode_tiled, tiles
from tokodec.tokenizers.tokens import Tokens, TokenSpec

SIZES = [(1, 1), (1, 2000), (2000, 1), (637, 477), (16, 16), (17, 15), (64, 48)]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> ImageGrid:
    return ImageGrid.from_pretrained(tiny_model)


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


def random_model(analysis: tuple[int, ...], synthesis: tuple[int, ...]) -> ImageGrid:
    torch.manual_seed(0)
    model = ImageGrid(
        ImageGridConfig(
            channels=(8, 8, 8), analysis_blocks=analysis, synthesis_blocks=synthesis, dim=4, codebook_sizes=(64, 32)
        )
    )
    for name, parameter in model.named_parameters():
        if "pointwise" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


# ------------------------------------------------------------------------------------------------------ round trip


@pytest.mark.parametrize("size", SIZES)
def test_shapes(size: tuple[int, int], model: ImageGrid) -> None:
    x = batch(picture(*size))
    tokens = model.encode(x)
    grid = (-(-size[0] // 16), -(-size[1] // 16))
    assert tokens.codes.shape == (1, 3, *grid)
    assert tokens.codes.dtype == torch.int64
    assert tokens.spec == TokenSpec("tiny", model.weights_hash, "image", (64, 32, 16), (16, 16), size, "rgb")
    assert tokens.spec.grid == grid
    for levels in (1, 2, 3):
        x_hat = model.decode(tokens.levels(levels))
        assert x_hat.shape == x.shape
        assert x_hat.dtype == torch.float32
        assert 0 <= float(x_hat.min()) <= float(x_hat.max()) <= 1


def test_codes_are_diverse(model: ImageGrid) -> None:
    """The fixture must not test the codec with a few codes over and over."""
    tokens = model.encode(batch(picture(800, 800)))
    for k, n in enumerate(model.codebook_sizes):
        assert tokens.codes[:, k].unique().numel() > n / 2


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_prefix_of_levels(levels: int, model: ImageGrid) -> None:
    x = batch(picture(100, 130))
    assert torch.equal(model.encode(x, levels=levels).codes, model.encode(x).codes[:, :levels])
    assert torch.equal(model.encode(x, levels=levels).codes, model.encode(x).levels(levels).codes)


def test_borders_are_replicated(model: ImageGrid) -> None:
    """The last cells see the border again and again, and the rest of the picture is what it is without padding."""
    x = batch(picture(48, 64))
    cut = x[..., :41, :50]
    padded = cut[..., [min(y, 40) for y in range(48)], :][..., [min(c, 49) for c in range(64)]]
    assert torch.equal(model.encode(cut).codes, model.encode(padded).codes)


def test_batch_equals_single(model: ImageGrid) -> None:
    x = torch.cat([batch(picture(70, 90, seed=i)) for i in range(3)])
    together = model.encode(x)
    alone = [model.encode(one[None]) for one in x]
    assert torch.equal(together.codes, torch.cat([tokens.codes for tokens in alone]))
    x_hat = torch.cat([model.decode(tokens) for tokens in alone])
    torch.testing.assert_close(model.decode(together), x_hat, atol=1e-5, rtol=0)


def test_synthesis_nets_differ_and_the_first_is_the_default(model: ImageGrid) -> None:
    tokens = model.encode(batch(picture(64, 64)))
    assert torch.equal(model.decode(tokens), model.decode(tokens, "faithful"))
    assert not torch.equal(model.decode(tokens), model.decode(tokens, "sharp"))


def test_absent_levels_decode_like_a_prefix(model: ImageGrid) -> None:
    tokens = model.encode(batch(picture(64, 64)))
    codes = tokens.codes.clone()
    codes[:, 2] = -1
    assert torch.equal(model.decode(Tokens(codes, tokens.spec)), model.decode(tokens.levels(2)))


def test_encode_twice_gives_the_same(model: ImageGrid) -> None:
    x = batch(picture(120, 90))
    assert torch.equal(model.encode(x).codes, model.encode(x).codes)


# ----------------------------------------------------------------------------------------------------------- tiles


@pytest.mark.parametrize("cells", [1, 3, 8])
@pytest.mark.parametrize("size", [(1, 1), (16 * 9 + 5, 16 * 11 + 1), (1, 300), (237, 177)])
def test_tiled_equals_whole(size: tuple[int, int], cells: int, model: ImageGrid) -> None:
    pixels = picture(*size)
    whole = model.encode(batch(pixels))
    tiled = encode_tiled(model, pixels, cells)
    assert tiled.spec == whole.spec
    assert torch.equal(tiled.codes, whole.codes)
    x_hat = (model.decode(whole)[0].permute(1, 2, 0) * 255).round().int()
    for channels in (3, 1):
        expected = x_hat if channels == 3 else (model.decode(whole)[0].mean(0)[..., None] * 255).round().int()
        found = decode_tiled(model, whole, channels, cells=cells)
        assert found.shape == (*size, channels)
        assert found.dtype == torch.uint8
        assert int((found.int() - expected).abs().max()) <= 1


@pytest.mark.parametrize("depth", [(1, 1, 1), (2, 1, 0), (0, 0, 2), (3, 0, 0), (0, 2, 1)])
def test_tiles_of_other_depths(depth: tuple[int, int, int]) -> None:
    model = random_model(depth, depth)
    pixels = picture(16 * 7 + 3, 16 * 6)
    tokens = encode_tiled(model, pixels, 2)
    assert torch.equal(tokens.codes, model.encode(batch(pixels)).codes)
    whole = (model.decode(tokens)[0].permute(1, 2, 0) * 255).round().int()
    assert int((decode_tiled(model, tokens, cells=2).int() - whole).abs().max()) <= 1


def test_gray_is_rgb_of_equal_channels(model: ImageGrid) -> None:
    pixels = picture(50, 60, 1)
    assert torch.equal(encode_tiled(model, pixels).codes, encode_tiled(model, pixels.expand(-1, -1, 3)).codes)


def test_tiles_cover_every_cell_once() -> None:
    for h, w, halo, cells in ((1, 1, 2, 4), (7, 5, 1, 3), (64, 65, 3, 64), (4, 4, 0, 2)):
        seen = torch.zeros(h, w, dtype=torch.int64)
        for tile in tiles(h, w, halo, cells):
            t, le, b, r = tile.core
            seen[t:b, le:r] += 1
            ot, ol, ob, right = tile.outer
            assert (ot, ol) == (max(0, t - halo), max(0, le - halo))
            assert (ob, right) == (min(h, b + halo), min(w, r + halo))
            patch = torch.arange(h * w).reshape(h, w)[ot:ob, ol:right]
            rows, columns = tile.inner
            assert torch.equal(patch[rows, columns], torch.arange(h * w).reshape(h, w)[t:b, le:r])
        assert bool((seen == 1).all())


# --------------------------------------------------------------------------------------------------- receptive field

DEPTHS = [(1, 1, 1), (2, 4, 2), (0, 0, 0), (2, 0, 0), (0, 1, 2), (3, 3, 3), (0, 0, 1)]


def smooth_activations(net: nn.Module) -> None:
    """Positive weights: then no path from input to output cancels, and a gradient of zero means "no path"."""
    for parameter in net.parameters():
        with torch.no_grad():
            parameter.abs_().add_(0.01)


def reach(influence: Tensor, centre: int) -> int:
    """Largest distance of a non-zero row or column of ``influence [n, n]`` from ``centre``."""
    touched = influence.abs() > 0
    places = [*touched.any(0).nonzero().flatten().tolist(), *touched.any(1).nonzero().flatten().tolist()]
    return max(abs(place - centre) for place in places)


@pytest.mark.parametrize("depth", DEPTHS)
def test_analysis_halo_is_the_receptive_field(depth: tuple[int, int, int]) -> None:
    """From the gradient of one cell: no further than the halo, and the halo is at most a cell too large."""
    model = random_model(depth, (0, 0, 0)).double()
    smooth_activations(model.analysis)
    n = 2 * model.analysis_halo + 5
    x = torch.ones(1, 3, STRIDE * n, STRIDE * n, dtype=torch.float64, requires_grad=True)
    model.latents(x)[0, :, n // 2, n // 2].sum().backward()
    assert x.grad is not None
    cells = x.grad[0].abs().sum(0).reshape(n, STRIDE, n, STRIDE).sum((1, 3))
    assert model.analysis_halo - 1 <= reach(cells, n // 2) <= model.analysis_halo


@pytest.mark.parametrize("depth", DEPTHS)
def test_synthesis_halo_is_the_receptive_field(depth: tuple[int, int, int]) -> None:
    model = random_model((0, 0, 0), depth).double()
    net = model.synthesis["faithful"]
    smooth_activations(net)
    n = 2 * model.synthesis_halo + 5
    z_q = torch.ones(1, 4, n, n, dtype=torch.float64, requires_grad=True)
    at = STRIDE * (n // 2)
    net(z_q)[..., at : at + STRIDE, at : at + STRIDE].sum().backward()
    assert z_q.grad is not None
    assert model.synthesis_halo - 1 <= reach(z_q.grad[0].abs().sum(0), n // 2) <= model.synthesis_halo


def test_halos_are_known_numbers(model: ImageGrid) -> None:
    assert (model.analysis_halo, model.synthesis_halo) == (2, 3)
    released = ImageGridConfig()
    assert (released.analysis_blocks, released.synthesis_blocks) == ((2, 4, 2), (2, 4, 3))


def test_a_far_pixel_changes_no_code(model: ImageGrid) -> None:
    n = 2 * model.analysis_halo + 7
    x = batch(picture(STRIDE * n, STRIDE * n))
    codes = model.encode(x).codes
    changed = x.clone()
    middle = STRIDE * (n // 2)
    changed[..., middle : middle + STRIDE, middle : middle + STRIDE] = 1 - changed[..., middle, middle, None, None]
    different = (model.encode(changed).codes != codes).any(1)[0]
    assert bool(different.any())
    assert reach(different.int(), n // 2) <= model.analysis_halo


def test_a_far_code_changes_no_pixel(model: ImageGrid) -> None:
    n = 2 * model.synthesis_halo + 7
    tokens = model.encode(batch(picture(STRIDE * n, STRIDE * n)))
    codes = tokens.codes.clone()
    codes[..., n // 2, n // 2] = (codes[..., n // 2, n // 2] + 7) % 16
    difference = (model.decode(Tokens(codes, tokens.spec)) - model.decode(tokens)).abs()[0].sum(0)
    cells = difference.reshape(n, STRIDE, n, STRIDE).sum((1, 3))
    assert float(cells[n // 2, n // 2]) > 0
    assert reach(cells, n // 2) <= model.synthesis_halo


# ------------------------------------------------------------------------------------------------------ save, load


def test_save_and_load(tmp_path: Path, model: ImageGrid) -> None:
    fresh = random_model((1, 1, 1), (1, 1, 1))
    assert fresh.weights_hash == ""
    written = fresh.save_pretrained(tmp_path)
    assert fresh.weights_hash == ""  # its weights are not those that were rounded
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, ImageGrid)
    assert loaded.config == fresh.config
    assert loaded.name == fresh.name == "image-grid"
    assert loaded.weights_hash == written == weights.file_hash(tmp_path / weights.WEIGHTS_FILE)
    assert not loaded.training
    again = ImageGrid.from_pretrained(tmp_path)
    x = batch(picture(40, 40))
    assert torch.equal(again.encode(x).codes, loaded.encode(x).codes)


def test_saving_what_was_loaded_changes_no_code(tmp_path: Path, tiny_model: Path) -> None:
    """Rounding to int8 and float16 is idempotent."""
    ImageGrid.from_pretrained(tiny_model).save_pretrained(tmp_path / "first")  # whose steps were finer
    model = ImageGrid.from_pretrained(tmp_path / "first")
    x = batch(picture(90, 70))
    model.save_pretrained(tmp_path / "second")
    assert torch.equal(ImageGrid.from_pretrained(tmp_path / "second").encode(x).codes, model.encode(x).codes)


def test_hash_follows_the_weights(tmp_path: Path) -> None:
    hashes = set()
    for i in range(3):
        model = random_model((0, 0, 0), (0, 0, 0))
        with torch.no_grad():
            level = model.codebooks[0]
            level.set_codewords(level.codebook + 0.01 * i)
        hashes.add(model.save_pretrained(tmp_path))
    assert len(hashes) == 3


def copied(tiny_model: Path, folder: Path) -> Path:
    for path in tiny_model.iterdir():
        shutil.copy(path, folder / path.name)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"layers": 3}}, "unknown settings: layers"),
        ({"class": "AudioGrid"}, "unknown class"),
        ({"class": "os.system"}, "unknown class"),
        ({"extra": 1}, "exactly"),
        ({"config": {"channels": [8, 8]}}, "three entries"),
        ({"config": {"channels": 8}}, "config.json"),
        ({"config": {"channels": [8, 8, -8]}}, "config.json"),
        ({"config": {"channels": [8, 8, 16]}}, "does not fit"),
        ({"config": {"codebook_sizes": []}}, "at least one"),
        ({"config": {"codebook_sizes": [0, 32, 16]}}, "positive"),
        ({"config": {"codebook_sizes": [64, 32]}}, "does not fit"),
        ({"config": {"dim": "four"}}, "config.json"),
        ({"config": {"synthesis": []}}, "at least one"),
    ],
)
def test_bad_config_is_refused(change: dict[str, Any], message: str, tiny_model: Path, tmp_path: Path) -> None:
    path = copied(tiny_model, tmp_path) / "config.json"
    found = json.loads(path.read_text())
    found["config"] |= change.get("config", {})
    path.write_text(json.dumps(found | {k: v for k, v in change.items() if k != "config"}))
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', '{"class": "ImageGrid", "name": "x", "config": 3}'])
def test_config_that_is_no_json_object(text: str, tiny_model: Path, tmp_path: Path) -> None:
    (copied(tiny_model, tmp_path) / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        Tokenizer.from_pretrained(tmp_path)


def test_damaged_weights_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    path = copied(tiny_model, tmp_path) / weights.WEIGHTS_FILE
    data = path.read_bytes()
    for bad in (b"", data[:7], data[:100], data[:-1], b"\xff" * 100, b"\x80\x04pickle", data + b"x"):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="cannot read weights"):
            ImageGrid.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="cannot read weights"):
        ImageGrid.from_pretrained(tmp_path)


def test_weights_that_do_not_fit_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    path = copied(tiny_model, tmp_path) / weights.WEIGHTS_FILE
    good = from_bytes(packed.read(path))
    kernel = next(name for name, tensor in good.items() if tensor.dtype == torch.int8)
    scale = kernel + weights.SCALE
    for changed in (
        {name: tensor for name, tensor in good.items() if name != kernel},
        {name: tensor for name, tensor in good.items() if name != scale},
        good | {scale: good[scale][:-1].clone()},
        good | {kernel: good[kernel][:1].clone(), scale: good[scale][:1].clone()},
        good | {"unknown": torch.zeros(3)},
    ):
        save_file(changed, str(path))
        with pytest.raises(ValueError, match=weights.WEIGHTS_FILE) as caught:
            ImageGrid.from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)


def test_no_such_model(tmp_path: Path) -> None:
    for name in ("no-such-model", str(tmp_path)):
        with pytest.raises(FileNotFoundError, match="no model"):
            Tokenizer.from_pretrained(name)


def test_int8_weights_are_within_their_bound() -> None:
    torch.manual_seed(0)
    weight = torch.randn(20, 7, 3, 3) * torch.logspace(-4, 3, 20)[:, None, None, None]
    weight[4] = 0
    values, step = weights.quantize_int8(weight)
    assert values.dtype == torch.int8
    assert values.shape == weight.shape
    assert step.shape == (20,)
    error = (weights.dequantize_int8(values, step) - weight).flatten(1).abs().amax(1)
    largest = weight.flatten(1).abs().amax(1)
    assert bool((error <= largest / 254 * (1 + 1e-5)).all())
    assert int(values.abs().max()) == 127
    assert not values[4].any()
    again, _ = weights.quantize_int8(weights.dequantize_int8(values, step))
    assert torch.equal(again, values)


@pytest.mark.parametrize("largest", [1, 31, 63])
def test_coarser_steps_are_within_their_bound(largest: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight = torch.randn(20, 7, 3, 3) * torch.logspace(-4, 3, 20)[:, None, None, None]
    values, step = weights.quantize_int8(weight, largest)
    assert values.dtype == torch.int8
    assert values.flatten(1).abs().amax(1).tolist() == [largest] * 20
    error = (weights.dequantize_int8(values, step) - weight).flatten(1).abs().amax(1)
    assert bool((error <= weight.flatten(1).abs().amax(1) / (2 * largest) * (1 + 1e-5)).all())
    weights.save({"a.w": weight, "b.w": weight}, tmp_path / "x.safetensors", ("a.",), largest)
    found = weights.load(tmp_path / "x.safetensors")
    assert torch.equal(found["a.w"], weights.dequantize_int8(values, step))
    assert torch.equal(found["b.w"], weight.half().float())


@pytest.mark.parametrize("largest", [0, -1, 128])
def test_steps_that_are_no_int8_are_refused(largest: int) -> None:
    with pytest.raises(ValueError, match="1 to 127"):
        weights.quantize_int8(torch.zeros(2, 2), largest)


def test_a_class_says_how_coarse_its_steps_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageGrid, "int8_largest", 31)
    random_model((1, 1, 1), (1, 1, 1)).save_pretrained(tmp_path)
    raw = from_bytes(packed.read(tmp_path / weights.WEIGHTS_FILE))
    nets = {name: t for name, t in raw.items() if t.dtype == torch.int8 and name.startswith(ImageGrid.int8_weights)}
    assert {int(tensor.abs().max()) for tensor in nets.values()} == {31}
    assert ImageGrid.from_pretrained(tmp_path).weights_hash != ""


def test_what_is_saved_as_what(tiny_model: Path, tmp_path: Path) -> None:
    ImageGrid.from_pretrained(tiny_model).save_pretrained(tmp_path)
    raw = from_bytes(packed.read(tmp_path / weights.WEIGHTS_FILE))
    for name, tensor in raw.items():
        if name.endswith(weights.SCALE):
            assert tensor.dtype == torch.float32
        elif (name.startswith(("analysis.", "synthesis.")) and tensor.ndim > 1) or name.endswith(weights.TABLES):
            assert tensor.dtype == torch.int8
        else:
            assert tensor.dtype == torch.float16
    assert not any("usage" in name for name in raw)  # telemetry stays at home
    assert all(tensor.dtype == torch.float32 for tensor in weights.load(tiny_model / weights.WEIGHTS_FILE).values())


def test_what_stays_float16_and_codewords_with_steps_of_their_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {"a.w": torch.randn(4, 5), "a.b.w": torch.randn(4, 5), "levels.0.basis": torch.randn(6, 3)}
    path = tmp_path / "x.safetensors"
    weights.save(state, path, ("a.",), 7, ("a.b.",), codebooks=15)
    raw = from_bytes(packed.read(path))
    assert {name: str(t.dtype) for name, t in raw.items() if not name.endswith(weights.SCALE)} == {
        "a.w": "torch.int8", "a.b.w": "torch.float16", "levels.0.basis": "torch.int8",
    }  # fmt: skip
    found = weights.load(path)
    assert torch.equal(found["a.b.w"], state["a.b.w"].half().float())
    basis = weights.dequantize_int8(*weights.quantize_int8(state["levels.0.basis"], 15))
    assert torch.equal(found["levels.0.basis"], basis)


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 4, 8, 8), (1, 3, 0, 8), (1, 3, 8, 0), (0, 3, 8, 8)])
def test_what_is_no_picture_batch(shape: tuple[int, ...], model: ImageGrid) -> None:
    with pytest.raises(ValueError, match="pictures are a float tensor"):
        model.encode(torch.zeros(shape))


def test_levels_out_of_range(model: ImageGrid) -> None:
    x = torch.zeros(1, 3, 16, 16)
    for levels in (0, 4, -1):
        with pytest.raises(ValueError, match="levels must be 1 to 3"):
            model.encode(x, levels=levels)
        with pytest.raises(ValueError, match="levels must be 1 to 3"):
            model.encode(x).levels(levels)
    with pytest.raises(ValueError, match="levels must be 1 to 2"):
        model.encode(x, levels=2).levels(3)


def test_unknown_synthesis(model: ImageGrid) -> None:
    with pytest.raises(ValueError, match="faithful, sharp"):
        model.decode(model.encode(torch.zeros(1, 3, 16, 16)), "blurred")


def test_tokens_of_another_model_are_refused(model: ImageGrid) -> None:
    tokens = model.encode(torch.zeros(1, 3, 16, 16))
    spec = tokens.spec
    for other in (dataclasses.replace(spec, model="other"), dataclasses.replace(spec, weights_hash="0" * 16)):
        with pytest.raises(ValueError, match="given to tiny"):
            model.decode(Tokens(tokens.codes, other))


def test_wrong_configuration_class() -> None:
    with pytest.raises(ValueError, match="ImageGridConfig"):
        ImageGrid({"dim": 4})  # type: ignore[arg-type]


def test_tokens_check_themselves(model: ImageGrid) -> None:
    spec = model.spec((20, 40))  # a grid of 2 x 3
    good = torch.zeros(1, 3, 2, 3, dtype=torch.int64)
    assert Tokens(good, spec).n_levels == 3
    assert Tokens(good[:, :1] - 1, spec).n_levels == 1  # absent codes are allowed
    assert Tokens(good[:0], spec).n_levels == 3
    for codes, message in (
        (good.int(), "int64"),
        (good.float(), "int64"),
        (good[0], "shape"),
        (good[..., :2], "shape"),
        (good.transpose(2, 3), "shape"),
        (good[:, :0], "0 levels"),
        (good.repeat(1, 2, 1, 1), "6 levels"),
        (good - 2, "level 1"),
        (good + 16, "level 3"),
        (good + 64, "level 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Tokens(codes, spec)


def test_spec_says_how_large_the_grid_is() -> None:
    spec = TokenSpec("m", "", "image", (4,), (16, 8), (17, 16), "rgb")
    assert spec.grid == (2, 2)
    with pytest.raises(ValueError, match="zip"):
        _ = dataclasses.replace(spec, size=(17,)).grid


def test_tokens_move_and_are_frozen(model: ImageGrid) -> None:
    tokens = model.encode(torch.zeros(1, 3, 16, 16))
    assert torch.equal(tokens.to("cpu").codes, tokens.codes)
    with pytest.raises(dataclasses.FrozenInstanceError):
        tokens.codes = tokens.codes  # type: ignore[misc]


def test_state_of_a_loaded_model(tiny_model: Path) -> None:
    model = ImageGrid.from_pretrained(tiny_model)
    assert model.device.type == "cpu"
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        assert not tensor.is_meta, name
    assert all(parameter.requires_grad for parameter in model.parameters())  # it can be trained on
    assert [codebook.codebook.shape for codebook in model.codebooks] == [(64, 4), (32, 4), (16, 4)]


def test_a_hub_name_loads_through_the_hub_if_it_is_installed(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str]]] = []

    def snapshot_download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tiny_model)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    assert Tokenizer.from_pretrained("hf:somebody/tiny").name == "tiny"
    assert asked == [("somebody/tiny", ["*.json", "*.safetensors", "README.md"])]  # nothing that could be run
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match=r"tokodec\[hub\]"):
        Tokenizer.from_pretrained("hf:somebody/tiny")
