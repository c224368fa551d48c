"""Files of a model whose rate is set by a quality: rates, what a picture carries, damage, tokens; see test_photo.py.

Damage is handled as FORMAT.md says, whatever the entropy model: a coarser picture, named damage, or one error of ours.
"""

import io
import json
import random
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms

from tokodec.codec import cli
from tokodec.codec.container.chunks import ALPH, EXCT, HEAD, LAYR, pack_chunk, pack_layer_prefix
from tokodec.codec.container.fields import SIGNATURE, write_header
from tokodec.codec.container.read import read_tok
from tokodec.codec.container.write import write_tok
from tokodec.codec.corpus.token_files import load_tokens
from tokodec.codec.decode import decode_file, file_tokens
from tokodec.codec.encode import encode_file
from tokodec.codec.errors import FormatError, ModelError, RateError, UsageError
from tokodec.codec.image.canvas import Canvas
from tokodec.codec.image.format import Extras
from tokodec.codec.image.photo_file import LAYERS, PhotoFile, photo_file
from tokodec.codec.image.search import Within, search
from tokodec.codec.metrics.picture import as_rgb
from tokodec.codec.models import load_model
from tokodec.codec.tokens import tokenize_file
from tokodec.entropy.hyperprior.export import export_hyperprior
from tokodec.entropy.hyperprior.net import HyperNet, HyperShape
from tokodec.entropy.hyperprior.prior import HyperPrior
from tokodec.tokenizers.image.photo import ImagePhoto

LAYER_BYTES = 18  # what a layer of one segment costs beside its payload, word rounding apart


@dataclass
class Result:
    code: int
    out: bytes
    err: list[str]


Codec = Callable[..., Result]


@pytest.fixture
def codec(capsysbinary: pytest.CaptureFixture[bytes]) -> Codec:
    """Runs the command line in this process."""

    def call(*arguments: object) -> Result:
        capsysbinary.readouterr()
        code = cli.run([str(a) for a in arguments])
        out, err = capsysbinary.readouterr()
        return Result(code, out, err.decode().splitlines())

    return call


@pytest.fixture
def tiny(photo_model: Path) -> list[str]:
    return ["--model", str(photo_model), "--device", "cpu"]


@pytest.fixture(scope="module")
def model(photo_model: Path) -> ImagePhoto:
    tokenizer = load_model(str(photo_model)).tokenizer
    assert isinstance(tokenizer, ImagePhoto)
    return tokenizer


def smooth_noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """A picture-like array, uint8 [H, W, C]: noise at several scales."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(1, channels, height, width)
    for scale in (2, 5, 13, 40):
        small = torch.randn(1, channels, height // scale + 2, width // scale + 2, generator=generator)
        total += F.interpolate(small, (height, width), mode="bicubic") * scale**0.5
    total = 128 + 40 * total / total.std()
    return total[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A picture of 70 x 90 in a folder of its own."""
    path = tmp_path / "source.png"
    Image.fromarray(smooth_noise(70, 90)).save(path)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_user_error(result: Result, *words: str) -> None:
    """Exit code 2, nothing on stdout, one line on stderr that holds every one of ``words``."""
    assert result.code == 2, result.err
    assert result.out == b""
    assert len(result.err) == 1, result.err
    assert result.err[0].startswith("codec: ")
    assert "internal error" not in result.err[0]
    for word in words:
        assert word in result.err[0]


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as im:
        return np.asarray(im)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = float(np.square(a.astype(float) - b).mean())
    return float(10 * np.log10(255**2 / error)) if error else 99.0


# ----------------------------------------------------------------------------------------------- encode and decode


def test_encode_and_decode_at_a_quality(codec: Codec, tiny: list[str], source: Path) -> None:
    sizes, found = [], []
    for quality in ("0", "50", "62.5", "100"):
        tok, back = source.parent / f"{quality}.tok", source.parent / f"{quality}.png"
        done = codec("encode", source, "-o", tok, "-q", quality, *tiny)
        size = tok.stat().st_size
        assert (done.code, done.out) == (0, b"")
        assert done.err == [f"{source} -> {tok}: {size} bytes, {8 * size / 6300:.4f} bpp, quality {quality}"]
        header = read_tok(tok.read_bytes()).picture
        assert (header.model, header.prior, header.quality) == ("tiny-photo", 3, round(100 * float(quality)))
        done = codec("decode", tok, "-o", back, *tiny)
        assert (done.code, done.out) == (0, b"")
        assert done.err == [f"{tok} -> {back}: 90 x 70 pixels, 1 of 1 layers"]
        sizes.append(size)
        found.append(psnr(pixels_of(back), pixels_of(source)))
    assert sizes == sorted(set(sizes))
    assert found[0] + 1 < found[1] <= found[-1] + 0.2


def test_the_default_quality(codec: Codec, tiny: list[str], source: Path, photo_model: Path) -> None:
    assert codec("encode", source, *tiny).err[0].endswith("quality 50")
    assert codec("encode", source, "-o", source.parent / "50.tok", "-q", 50, *tiny).code == 0
    assert source.with_suffix(".tok").read_bytes() == (source.parent / "50.tok").read_bytes()
    made = encode_file(source, None, model=str(photo_model), device="cpu")
    assert made.quality == 50
    assert made.data == source.with_suffix(".tok").read_bytes()
    assert encode_file(source, None, model=str(photo_model), quality=3.21, device="cpu").quality == 3.21


def test_info(codec: Codec, tiny: list[str], source: Path) -> None:
    codec("encode", source, "-q", 33.25, *tiny)
    found = json.loads(codec("info", source.with_suffix(".tok"), "--json").out)
    assert (found["model"], found["prior"], found["quality"]) == ("tiny-photo", "hyperprior", 33.25)
    assert (found["layers"], len(found["layer_bytes"]), found["problems"]) == (1, 1, [])
    assert found["bytes"] == found["overhead_bytes"] + sum(found["layer_bytes"])
    plain = codec("info", source.with_suffix(".tok")).out.decode().splitlines()
    assert ["prior", "hyperprior"] in [line.split() for line in plain]
    assert ["quality", "33.25"] in [line.split() for line in plain]


def test_dials_and_nets_that_the_model_lacks(codec: Codec, tiny: list[str], source: Path) -> None:
    out = source.parent / "out.tok"
    assert_user_error(codec("encode", source, "-o", out, "--levels", 2, *tiny), "quality", "levels")
    for prior in ("context", "static"):
        done = codec("encode", source, "-o", out, "--prior", prior, *tiny)
        assert_user_error(done, f"no entropy model {prior!r}", "hyperprior")
    assert_user_error(
        codec("encode", source, "-o", out, "--prior", "best", *tiny), "no entropy model 'best', only 'hyperprior'"
    )
    for rate in ("-q 101", "-q -1", "-q nan", "--bpp 0", "--bytes 0", "-q 50 --bytes 100", "--bpp nan"):
        assert_user_error(codec("encode", source, "-o", out, *rate.split(), *tiny))
    assert names(source.parent) == ["source.png"]
    assert codec("encode", source, "-o", out, "--prior", "hyperprior", *tiny).code == 0
    back = source.parent / "back.png"
    assert_user_error(codec("decode", out, "-o", back, "--synthesis", "sharp", *tiny), "one synthesis net")
    assert_user_error(codec("decode", out, "-o", back, "--levels", 0, *tiny), "levels")
    tokens = source.parent / "out.npz"
    assert codec("tokenize", out, "-o", tokens, *tiny).code == 0
    assert_user_error(codec("detokenize", tokens, "-o", back, "--synthesis", "sharp", *tiny), "one synthesis net")
    assert names(source.parent) == ["out.npz", "out.tok", "source.png"]


def test_encoding_twice_gives_the_same_bytes(tiny: list[str], source: Path, photo_model: Path) -> None:
    first, second = (encode_file(source, None, model=str(photo_model), quality=70, device="cpu").data for _ in range(2))
    assert first == second


# ----------------------------------------------------------------------------------------------------------- rates


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 x 256 smooth noise."""
    path = tmp_path_factory.mktemp("large") / "large.png"
    Image.fromarray(smooth_noise(256, 256)).save(path)
    return path


@pytest.fixture(scope="module")
def limits(large: Path, photo_model: Path) -> tuple[int, int]:
    """Bytes of ``large`` at quality 0 and 99.99, the highest of codes."""
    return (
        len(encode_file(large, None, model=str(photo_model), quality=0, device="cpu").data),
        len(encode_file(large, None, model=str(photo_model), quality=99.99, device="cpu").data),
    )


@pytest.mark.parametrize("share", [0.0, 0.003, 0.05, 0.2, 0.5, 0.8, 0.97, 1.0])
def test_bytes_are_a_limit_that_is_nearly_reached(
    share: float, large: Path, limits: tuple[int, int], photo_model: Path
) -> None:
    most = round(limits[0] + share * (limits[1] - limits[0]))
    for rate in ({"size": most}, {"bpp": (8 * most + 7.9) / 256**2}):
        made = encode_file(large, None, model=str(photo_model), device="cpu", **rate)
        assert 0.97 * most <= len(made.data) <= most
        assert made.quality is not None
        assert made.data == encode_file(large, None, model=str(photo_model), quality=made.quality, device="cpu").data


def test_rates_beyond_the_range(
    codec: Codec, large: Path, limits: tuple[int, int], tiny: list[str], photo_model: Path, tmp_path: Path
) -> None:
    lossless = encode_file(large, None, model=str(photo_model), lossless=True, device="cpu").data
    more: tuple[dict[str, Any], ...] = ({"size": 10**12}, {"bpp": 1e300})
    for beyond in more:
        assert encode_file(large, None, model=str(photo_model), device="cpu", **beyond).data == lossless
    near = [encode_file(large, None, model=str(photo_model), max_error=error, device="cpu").data for error in (2, 1)]
    for most, data in ((len(near[0]), near[0]), (len(near[1]), near[1]), (len(lossless) - 1, near[1])):
        made = encode_file(large, None, model=str(photo_model), size=most, device="cpu")
        assert made.data == data
        assert made.lossless is False
    for rate in (("--bytes", limits[0] - 1), ("--bpp", 8 * (limits[0] - 1) / 256**2), ("--bytes", 1)):
        done = codec("encode", large, "-o", tmp_path / "x.tok", *rate, *tiny)
        assert_user_error(done, f"{limits[0]} bytes", str(limits[0] - 1) if rate[1] != 1 else "1")
    with pytest.raises(RateError):
        encode_file(large, None, model=str(photo_model), size=5, device="cpu")
    assert names(tmp_path) == []


def test_the_limit_counts_everything_in_the_file(tmp_path: Path, photo_model: Path) -> None:
    """Alpha and metadata too, beside which the codes may be small, and files of several segments."""
    pixels = smooth_noise(200, 180, 4)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png", icc_profile=bytes(range(256)) * 8)
    Image.fromarray(smooth_noise(40, 1100)).save(tmp_path / "wide.png")
    for name in ("a.png", "wide.png"):
        low, high = (
            len(encode_file(tmp_path / name, None, model=str(photo_model), quality=q, device="cpu").data)
            for q in (0, 99.99)
        )
        for most in np.linspace(low, high, 5).round().astype(int).tolist():
            made = encode_file(tmp_path / name, None, model=str(photo_model), size=most, device="cpu")
            assert 0.97 * most <= len(made.data) <= most


def test_few_qualities_are_tried(model: ImagePhoto) -> None:
    """Each costs a walk over the whole picture."""
    pixels = smooth_noise(256, 256)
    y = model.analyse_tiled(torch.from_numpy(pixels))
    low, high = (len(PhotoFile(Canvas(model, pixels, y), Extras()).at(q).data) for q in (0, 9999))
    for most in np.geomspace(low, high, 7).astype(int).tolist():
        files = PhotoFile(Canvas(model, pixels, y), Extras())
        search(files, Within(most))
        assert len(files.tried) <= 2 + Within.tries


def test_the_highest_quality_is_clear(photo_model: Path, tmp_path: Path) -> None:
    """45 dB or more, whatever the nets can do."""
    for i, pixels in enumerate((smooth_noise(256, 256), smooth_noise(40, 1100), smooth_noise(40, 50)[..., :1])):
        Image.fromarray(pixels.squeeze()).save(tmp_path / f"{i}.png")
        data = encode_file(tmp_path / f"{i}.png", model=str(photo_model), quality=100, device="cpu").data
        shown = decode_file(io.BytesIO(data), model=str(photo_model), device="cpu").picture.pixels
        assert psnr(as_rgb(pixels), as_rgb(shown)) >= 45
        assert np.abs(pixels.reshape(shown.shape).astype(int) - shown).max() <= 2
        with pytest.raises(UsageError, match="pixels and no codes"):
            file_tokens(read_tok(data), model=str(photo_model), device="cpu")


def test_windows_that_are_clear_keep_their_codes(model: ImagePhoto, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = smooth_noise(40, 1100)
    canvas = Canvas(model, pixels, model.analyse_tiled(torch.from_numpy(pixels)))

    def windows() -> list[float]:
        return [psnr(canvas.window_pixels(tile), canvas.decoded(tile, 10000)) for tile in canvas.windows]

    monkeypatch.setattr("tokodec.codec.image.photo_file.CLEAR", 0.0)
    PhotoFile(canvas, Extras()).at(10000)
    plain = windows()
    monkeypatch.setattr("tokodec.codec.image.photo_file.CLEAR", sum(plain) / 2)
    tok = read_tok(PhotoFile(canvas, Extras()).at(10000).data)
    worse = int(np.argmin(plain))
    assert [s for kind, _, s in tok.places if kind == EXCT] == [worse]
    assert windows()[worse] > max(plain)
    assert abs(windows()[1 - worse] - plain[1 - worse]) < 0.01  # its neighbour's codes changed


# ------------------------------------------------------------------------------------------- what a picture carries


def there_and_back(codec: Codec, tiny: list[str], path: Path, *options: object) -> tuple[Image.Image, list[str]]:
    """The decoded picture and what was said on the way, but for the reports of success."""
    encoded = codec("encode", path, *options, "--quiet", *tiny)
    back = path.parent / "back.png"
    decoded = codec("decode", path.with_suffix(".tok"), "-o", back, "--quiet", "--force", *tiny)
    assert (encoded.code, decoded.code) == (0, 0), encoded.err + decoded.err
    im = Image.open(back)
    im.load()
    return im, encoded.err + decoded.err


def test_gray(codec: Codec, tiny: list[str], tmp_path: Path) -> None:
    pixels = smooth_noise(70, 90, 1)[..., 0]
    Image.fromarray(pixels).save(tmp_path / "x.png")
    im, said = there_and_back(codec, tiny, tmp_path / "x.png")
    assert (im.mode, im.size, said) == ("L", (90, 70), [])
    Image.fromarray(np.stack([pixels] * 3, 2)).save(tmp_path / "rgb.png")
    rgb, _ = there_and_back(codec, tiny, tmp_path / "rgb.png")
    mean = np.asarray(rgb).astype(float).mean(2)
    assert float(np.abs(np.asarray(im) - mean).max()) <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_lossless(mode: str, codec: Codec, tiny: list[str], tmp_path: Path) -> None:
    pixels = smooth_noise(70, 90, 4 if mode == "RGBA" else 2)
    pixels[..., -1] |= 1  # what lies under fully transparent pixels is not kept, see test_pictures.py
    image = Image.fromarray(pixels)
    assert image.mode == mode
    image.save(tmp_path / "x.png")
    for options in ((), ("--bytes", 10**6, "--force")):
        im, said = there_and_back(codec, tiny, tmp_path / "x.png", *options)
        assert im.mode == mode
        assert all("of the 1000000 bytes" in line for line in said)  # more than it can use
        assert len(said) == bool(options)
        assert np.array_equal(np.asarray(im)[..., -1], np.asarray(image)[..., -1])


def test_alpha_may_be_coarser(codec: Codec, tiny: list[str], tmp_path: Path) -> None:
    """At most 12 levels at 50, opaque and transparent among them, in less than half of the bytes."""
    pixels = smooth_noise(90, 120, 4)
    pixels[:20, :, 3], pixels[-20:, :, 3] = 0, 255
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    back, _ = there_and_back(codec, tiny, tmp_path / "a.png", "--alpha-quality", 50, "--bytes", 9000)
    coarse, alpha = len((tmp_path / "a.tok").read_bytes()), np.asarray(back)[..., 3]
    assert coarse <= 9000
    assert len(np.unique(alpha)) <= 12
    assert int(np.abs(alpha.astype(int) - pixels[..., 3]).max()) <= 255 / 22 + 0.5
    assert np.array_equal(alpha[:20], pixels[:20, :, 3])
    assert np.array_equal(alpha[-20:], pixels[-20:, :, 3])
    chunk = [
        encode_file(tmp_path / "a.png", alpha_quality=q, model=tiny[1], device="cpu").data for q in (50, 100, None)
    ]
    sizes = [len(read_tok(data).payload(ALPH) or b"") for data in chunk]
    assert 2 * sizes[0] < sizes[1]
    assert chunk[1] == chunk[2]


def test_alpha_quality_that_makes_no_sense(tiny: list[str], source: Path, tmp_path: Path) -> None:
    done = encode_file(source, alpha_quality=50, model=tiny[1], device="cpu")
    assert done.notes == ["no alpha channel, for which alpha-quality is"]
    for options, said in (
        ({"alpha_quality": 101}, "alpha-quality is 0 to 100, got 101"),
        ({"alpha_quality": 0, "lossless": True}, "alpha-quality is for others"),
    ):
        with pytest.raises(UsageError, match=said):
            encode_file(source, model=tiny[1], device="cpu", **options)  # type: ignore[arg-type]
    sound = Path(__file__).resolve().parent.parent / "assets" / "ljspeech.ogg"
    with pytest.raises(UsageError, match="alpha-quality is not an option of audio-24k"):
        encode_file(sound, alpha_quality=0, device="cpu")


def test_colours_that_are_not_seen_cost_nothing(tiny: list[str], tmp_path: Path) -> None:
    """The same bytes whatever lies under transparent pixels; lossless files keep it."""
    pixels = smooth_noise(80, 96, 4)
    pixels[..., 3] = np.where(np.arange(96) < 60, 0, 255)
    found = []
    for seed in (0, 1):
        random = np.random.default_rng(seed).integers(0, 256, (80, 60, 3))
        pixels[:, :60, :3] = random
        Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
        found.append(encode_file(tmp_path / "a.png", model=tiny[1], device="cpu").data)
        whole = encode_file(tmp_path / "a.png", model=tiny[1], device="cpu", lossless=True).data
        back = decode_file(io.BytesIO(whole), model=tiny[1], device="cpu").picture.pixels
        assert np.array_equal(back, pixels[..., :3])
    assert found[0] == found[1]


def test_profile_and_exif(codec: Codec, tiny: list[str], tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[270] = "described"
    Image.fromarray(smooth_noise(70, 90)).save(tmp_path / "x.png", icc_profile=profile, exif=exif)
    im, said = there_and_back(codec, tiny, tmp_path / "x.png")
    assert im.info["icc_profile"] == profile
    assert im.getexif()[270] == "described"
    assert said == []
    im, said = there_and_back(codec, tiny, tmp_path / "x.png", "--no-metadata", "--force")
    assert im.info["icc_profile"] == profile  # it says what the numbers mean, and nothing about anybody
    assert 270 not in im.getexif()
    assert len(said) == 1
    assert "left out as asked" in said[0]


def test_16_bits_are_told(codec: Codec, tiny: list[str], tmp_path: Path) -> None:
    Image.fromarray(np.arange(2000, dtype=np.uint16).reshape(40, 50) * 32).save(tmp_path / "x.png")
    im, said = there_and_back(codec, tiny, tmp_path / "x.png")
    assert im.mode == "L"
    assert len(said) == 2
    assert all("8 bit" in line or "16" in line for line in said)
    assert json.loads(codec("info", tmp_path / "x.tok", "--json").out)["bit_depth"] == 16


@pytest.mark.parametrize("size", [(1, 1), (1, 1100), (1030, 3), (33, 20)])
def test_awkward_sizes(size: tuple[int, int], codec: Codec, tiny: list[str], tmp_path: Path) -> None:
    Image.fromarray(smooth_noise(*size)).save(tmp_path / "x.png")
    for quality in (0, 100):
        im, _ = there_and_back(codec, tiny, tmp_path / "x.png", "-q", quality, "--force")
        assert im.size == (size[1], size[0])


# ---------------------------------------------------------------------------------------------------------- layers


def test_layers_follow_the_size_of_a_segment(photo_model: Path, tmp_path: Path) -> None:
    """One layer up to 3000 bytes, two up to 16000, three up to 32000, then five: the mean of all segments counts."""
    torch.manual_seed(0)
    model = ImagePhoto.from_pretrained(photo_model)
    shape = HyperShape(6, (2, 2, 2, 2, 2), (8, 8), features=8, width=8, hidden=8, blocks=1, head=8)
    entropy = HyperPrior(export_hyperprior(HyperNet(shape)))
    entropy.save_pretrained(tmp_path)
    model.set_entropy(entropy)
    assert not model.weights_hash  # codes with another entropy model are those of another model
    model.weights_hash = "0123456789abcdef"
    rng = np.random.default_rng(0)
    seen = set()
    for h, w, spread in ((5, 7, 1), (20, 30, 1), (64, 64, 1), (64, 70, 1.3), (64, 64, 1.3), (64, 64, 2)):
        y = rng.normal(0, spread, (10, h, w)).astype(np.float32)
        walks = [
            entropy.quantise(part, np.zeros((6, -(-h // 4), -(-part.shape[2] // 4)), np.float32), 5000)
            for part in (y[..., :64], y[..., 64:])
            if part.size
        ]
        data = photo_file(model, walks, 5000, (16 * h, 16 * w), Extras(3, 8))
        header = read_tok(data).picture
        payload = len(data) - LAYER_BYTES * header.layers * len(walks)
        expected = {next(n for most, n in LAYERS if payload * scale / len(walks) <= most) for scale in (0.95, 1.05)}
        assert header.layers in expected
        seen.add(header.layers)
    assert seen == {1, 2, 3, 5}


def test_few_slices_make_few_layers(model: ImagePhoto) -> None:
    y = np.random.default_rng(0).normal(0, 1500, (10, 64, 64)).astype(np.float32)
    walk = model.entropy.quantise(y, np.zeros((6, 16, 16), np.float32), 5000)
    data = photo_file(model, [walk], 5000, (1024, 1024), Extras(3, 8))
    assert len(data) > LAYERS[2][0]
    assert read_tok(data).header.layers == 3


def test_fewer_layers_decode_to_a_coarser_picture(codec: Codec, tiny: list[str], golden: Path, tmp_path: Path) -> None:
    tok = golden / "photo" / "layers.tok"
    for levels in (1, 2, 3, 4):
        done = codec("decode", tok, "-o", tmp_path / f"{levels}.png", "--levels", levels, *tiny)
        assert done.code == 0
        assert done.err[-1].endswith(f"{min(levels, 3)} of 3 layers")
    full = pixels_of(golden / "photo" / "layers.png")
    near = [psnr(pixels_of(tmp_path / f"{levels}.png"), full) for levels in (1, 2, 3, 4)]
    assert near == sorted(near)
    assert near[0] < near[1] < near[2]


# --------------------------------------------------------------------------------------------------------- cut short


@dataclass
class Small:
    """A golden file, what it decodes to, and its chunks: (type, layer, segment) -> (start, end)."""

    data: bytes
    pixels: np.ndarray
    chunks: dict[tuple[bytes, int, int], tuple[int, int]]


def small(name: str, photo_model: Path) -> Small:
    data = (photo_model / f"{name}.tok").read_bytes()
    chunks, at = {}, len(SIGNATURE) + 1
    while at < len(data):
        kind, (length,) = data[at : at + 4], struct.unpack_from("<I", data, at + 4)
        layer, segment = (data[at + 8], data[at + 9]) if kind == LAYR else (0, 0)
        chunks[kind, layer, segment] = (at, at + 12 + length)
        at += 12 + length
    return Small(data, decode_file(io.BytesIO(data), model=str(photo_model), device="cpu").picture.pixels, chunks)


@pytest.fixture(scope="module")
def layers(photo_model: Path) -> Small:
    """One segment, three layers."""
    return small("layers", photo_model)


@pytest.fixture(scope="module")
def segments(photo_model: Path) -> Small:
    """Two segments, three layers."""
    return small("segments", photo_model)


def test_every_length_on_the_command_line(codec: Codec, tiny: list[str], layers: Small, tmp_path: Path) -> None:
    tok, back = tmp_path / "cut.tok", tmp_path / "back.png"
    whole_from = layers.chunks[LAYR, 0, 0][1]
    levels: list[int] = []
    near: dict[int, float] = {}
    for n in range(len(layers.data)):
        tok.write_bytes(layers.data[:n])
        done = codec("decode", tok, "-o", back, "--force", *tiny)
        if n < whole_from:
            assert_user_error(done, str(tok))
            assert not back.exists()
            continue
        assert (done.code, done.out) == (3, b"")
        assert all(line.startswith((f"codec: {tok}: ", f"{tok} -> ")) for line in done.err)
        levels.append(int(done.err[-1].split()[-4]))
        near.setdefault(levels[-1], psnr(pixels_of(back), layers.pixels))
    assert levels == sorted(levels)
    assert sorted(near) == [1, 2, 3]
    assert near[1] < near[2] + 0.1 < near[3]
    assert near[3] == 99  # only the end is missing


def test_every_length_of_two_segments(segments: Small, photo_model: Path) -> None:
    """Chunk by chunk, and a few bytes before and after the end of each."""
    ends = sorted({end + d for _, end in segments.chunks.values() for d in (-1, 0, 3)} & set(range(len(segments.data))))
    last_levels, last_near, refused = 0, 0.0, 0
    for n in ends:
        try:
            done = decode_file(io.BytesIO(segments.data[:n]), model=str(photo_model), device="cpu")
        except FormatError:
            refused += 1
            assert n < segments.chunks[LAYR, 0, 0][1]  # one segment in eight is enough
            continue
        assert done.problems
        assert done.levels >= last_levels
        near = psnr(done.picture.pixels, segments.pixels)
        assert near > last_near - 0.5
        last_levels, last_near = done.levels, near
        with pytest.raises(FormatError):
            decode_file(io.BytesIO(segments.data[:n]), model=str(photo_model), device="cpu", strict=True)
    assert refused
    assert (last_levels, last_near) == (3, 99)


# ----------------------------------------------------------------------------------------------------------- damage


def decoded_or_refused(data: bytes, whole: Small, model: Path) -> str:
    """ "same", "told" or "refused"; anything else fails."""
    try:
        done = decode_file(io.BytesIO(data), model=str(model), device="cpu", max_pixels=1 << 20)
    except (FormatError, ModelError) as error:
        return "refused" if "\n" not in str(error) else "an error of several lines"
    if done.problems:
        return "told"
    assert np.array_equal(done.picture.pixels, whole.pixels)
    return "same"


def test_every_flipped_byte(layers: Small, photo_model: Path) -> None:
    rng = random.Random(0)
    needed = layers.chunks[LAYR, 0, 0][1]  # without the first layer of the only segment nothing is left
    for at in range(len(layers.data)):
        changed = bytearray(layers.data)
        changed[at] ^= rng.randrange(1, 256)
        assert decoded_or_refused(bytes(changed), layers, photo_model) == ("told" if at >= needed else "refused")


def test_random_damage_of_two_segments(segments: Small, photo_model: Path) -> None:
    rng = random.Random(1)
    begin = segments.chunks[HEAD, 0, 0][1]
    found = []
    for i in range(120):
        changed = bytearray(segments.data)
        at = rng.randrange(begin, len(changed))
        if i % 3 == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif i % 3 == 1:
            changed[at : at + rng.randrange(1, 100)] = rng.randbytes(rng.randrange(100))
        else:
            del changed[at : at + rng.randrange(1, 300)]
        found.append(decoded_or_refused(bytes(changed), segments, photo_model))
    assert found.count("told") > 80


@pytest.mark.parametrize("segment", [0, 1])
def test_a_lost_first_layer_costs_its_segment(
    segment: int, codec: Codec, tiny: list[str], segments: Small, model: ImagePhoto, tmp_path: Path
) -> None:
    changed = bytearray(segments.data)
    changed[segments.chunks[LAYR, 0, segment][1] - 1] ^= 1
    tok, back = tmp_path / "x.tok", tmp_path / "x.png"
    tok.write_bytes(changed)
    done = codec("decode", tok, *tiny)
    assert done.code == 3
    assert any(line.startswith(f"codec: {tok}: segment {segment}: lost") for line in done.err)
    assert done.err[-1].endswith("0 of 3 layers")
    pixels = pixels_of(back)
    border = 16 * 64
    halo = 16 * model.synthesis_halo
    kept = slice(border + halo, None) if segment == 0 else slice(0, border - halo)
    lost = slice(0, border) if segment == 0 else slice(border, None)
    assert np.array_equal(pixels[:, kept], segments.pixels[:, kept])
    assert not np.array_equal(pixels[:, lost], segments.pixels[:, lost])
    assert_user_error(codec("decode", tok, "-o", tmp_path / "strict.png", "--strict", *tiny), str(tok))
    assert codec("tokenize", tok, *tiny).code == 3
    done = codec("detokenize", tmp_path / "x.npz", "-o", tmp_path / "tokens.png", *tiny)
    assert done.code == 0  # z of all segments: a prefix that is whole
    assert names(tmp_path) == ["tokens.png", "x.npz", "x.png", "x.tok"]


@pytest.mark.parametrize("layer", [1, 2])
def test_a_lost_later_layer_costs_what_builds_on_it(layer: int, segments: Small, photo_model: Path) -> None:
    start, end = segments.chunks[LAYR, layer, 0]
    data = segments.data[:start] + segments.data[end:]
    done = decode_file(io.BytesIO(data), model=str(photo_model), device="cpu")
    assert done.levels == layer
    assert any(f"segment 0: decoded from {layer} of 3 layers" in problem for problem in done.problems)
    coarse = decode_file(io.BytesIO(segments.data), model=str(photo_model), device="cpu", levels=layer)
    assert coarse.problems == []
    assert np.array_equal(done.picture.pixels[:, : 61 * 16], coarse.picture.pixels[:, : 61 * 16])
    assert np.array_equal(done.picture.pixels[:, 67 * 16 :], segments.pixels[:, 67 * 16 :])
    tok = read_tok(data)
    tokens, _ = file_tokens(tok, str(photo_model), "cpu")
    assert tokens.n_levels == (0, 8, 11)[layer]


def test_payloads_of_another_writer(layers: Small, photo_model: Path) -> None:
    """Right checksums around random words, or around another segment's payload: told, or codes."""
    rng = random.Random(2)
    found = []
    for _ in range(100):
        layer = rng.randrange(3)
        start, end = layers.chunks[LAYR, layer, 0]
        payload = rng.randbytes(rng.choice([0, 1, 4, 8, 40, 44, 400]))
        data = layers.data[:start] + pack_chunk(LAYR, pack_layer_prefix(layer, 0) + payload) + layers.data[end:]
        try:
            done = decode_file(io.BytesIO(data), model=str(photo_model), device="cpu")
        except FormatError:
            continue
        assert done.picture.pixels.shape == layers.pixels.shape
        found.append(bool(done.problems))
    assert sum(found) > 80


# ---------------------------------------------------------------------------------------------------- hostile headers


def with_head(data: bytes, payload: bytes) -> bytes:
    """``data`` with another header."""
    begin = len(SIGNATURE) + 1
    end = begin + 12 + int.from_bytes(data[begin + 4 : begin + 8], "little")
    return data[:begin] + pack_chunk(HEAD, payload) + data[end:]


def hostile(golden: Path) -> dict[str, tuple[bytes, str, str]]:
    """File, folder of the model, a word of the error."""
    data, grid = (golden / "photo" / "layers.tok").read_bytes(), (golden / "gray.tok").read_bytes()
    header = read_tok(data).picture

    def changed(**fields: Any) -> bytes:
        return with_head(data, write_header(replace(header, **fields)))

    return {
        "quality 10001": (with_head(data, write_header(header)[:-2] + struct.pack("<H", 10001)), "photo", "quality"),
        "64 layers": (changed(layers=64), "photo", "64 layers"),
        "4 layers": (changed(layers=4), "photo", "4 layers"),
        "segments of 32": (changed(segment=32), "photo", "segment"),
        "segments of 128": (changed(segment=128), "photo", "segment"),
        "stride 8": (changed(stride=8), "photo", "stride"),
        "static": (changed(prior=1), "photo", "static"),
        "context": (changed(prior=2), "photo", "context"),
        "weights": (changed(weights_hash="0" * 16), "photo", "weights"),
        "prior": (changed(prior_hash="0" * 16), "photo", "entropy model"),
        "the other model": (data, "tiny", "hyperprior"),
        "hyperprior of a grid": (
            with_head(grid, write_header(replace(read_tok(grid).header, prior=3))), "tiny", "hyperprior",
        ),
        "hyperprior of a grid, by a photo model": (
            with_head(grid, write_header(replace(read_tok(grid).header, prior=3))), "photo", "weights",
        ),
        "no released model": (data, "", "does not come with tokodec"),
    }  # fmt: skip


def test_hostile_headers_are_refused(codec: Codec, golden: Path, tmp_path: Path) -> None:
    tok = tmp_path / "x.tok"
    for name, (data, folder, word) in hostile(golden).items():
        tok.write_bytes(data)
        model = ["--model", golden / folder] if folder else []
        for arguments in (["decode", tok, "-o", tmp_path / "x.png"], ["tokenize", tok, "-o", tmp_path / "x.npz"]):
            done = codec(*arguments, *model, "--device", "cpu")
            assert done.code == 2, (name, done.err)
            assert_user_error(done, str(tok), word)
    assert names(tmp_path) == ["x.tok"]


def test_headers_that_lie_cost_time_and_memory_of_a_picture_only(
    layers: Small, photo_model: Path, golden: Path
) -> None:
    """What the reader cannot know to be wrong decodes to something, or is named."""
    header = read_tok(layers.data).picture
    before = time.process_time()
    lies: list[dict[str, Any]] = [
        {"layers": 2}, {"layers": 1}, {"quality": 0}, {"quality": 10000}, {"quality": 5001}, {"height": 1},
        {"width": 2000}, {"height": 500}, {"channels": 1}, {"alpha": 1}, {"bit_depth": 16}, {"stride": 15},
    ]  # fmt: skip
    for fields in lies:
        data = with_head(layers.data, write_header(replace(header, **fields)))
        try:
            done = decode_file(io.BytesIO(data), model=str(photo_model), device="cpu")
        except FormatError:
            continue
        assert done.problems or not set(fields) & {"layers", "height", "width", "alpha"}
    assert time.process_time() - before < 10


def test_folders_with_files_of_both_kinds(photo_model: Path, golden: Path, layers: Small, tmp_path: Path) -> None:
    """A left-over file of another entropy model does not change what a model is coded with."""
    files = [photo_model / name for name in ("config.json", "model.safetensors", "hyperprior.safetensors")]
    for path in (*files, golden / "tiny" / "prior.safetensors"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert decode_file(io.BytesIO(layers.data), model=str(tmp_path), device="cpu").problems == []
    lying = with_head(layers.data, write_header(replace(read_tok(layers.data).header, prior=1)))
    with pytest.raises(ModelError):
        decode_file(io.BytesIO(lying), model=str(tmp_path), device="cpu")


# ---------------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("options", [[], ["-q", "20"], ["-q", "99.99"]])
def test_tokenize_and_detokenize(suffix: str, options: list[str], codec: Codec, tiny: list[str], source: Path) -> None:
    folder = source.parent
    tok, made = source.with_suffix(".tok"), source.with_suffix("." + suffix)
    done = codec("tokenize", source, "--format", suffix, *options, *tiny)
    assert (done.code, done.err) == (0, [f"{source} -> {made}: codes 16 x 5 x 6"])
    assert load_tokens(made).spec.quality == (float(options[1]) if options else 50)
    codec("encode", source, *options, *tiny)
    codec("decode", tok, "-o", folder / "decoded.png", *tiny)
    for target in ("back.png", "back.tok"):
        assert codec("detokenize", made, "-o", folder / target, *tiny).code == 0
    assert np.array_equal(pixels_of(folder / "back.png"), pixels_of(folder / "decoded.png"))
    assert (folder / "back.tok").read_bytes() == tok.read_bytes()
    assert codec("tokenize", tok, "-o", folder / f"tok.{suffix}", *tiny).code == 0
    found, expected = load_tokens(folder / f"tok.{suffix}"), load_tokens(made)
    assert found.spec == expected.spec
    assert torch.equal(found.codes, expected.codes)


def test_quality_of_tokens_is_of_photo_models_only(
    codec: Codec, tiny_model: Path, photo_model: Path, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="quality does not set the rate of tiny: use levels"):
        tokenize_file(source, None, model=str(tiny_model), quality=50, device="cpu")
    for quality in (-1, 100.5, float("nan")):
        with pytest.raises(UsageError, match="quality is 0 to 100"):
            tokenize_file(source, None, model=str(photo_model), quality=quality, device="cpu")


def test_prefixes_of_tokens(codec: Codec, tiny: list[str], source: Path) -> None:
    """Those that end with a slice decode, others are refused in one line; a .tok file wants all of them."""
    folder = source.parent
    for levels, code in ((6, 0), (7, 2), (8, 0), (11, 0), (3, 2), (16, 0)):
        made = folder / f"{levels}.npz"
        assert codec("tokenize", source, "-o", made, "--levels", levels, *tiny).code == 0
        assert load_tokens(made).n_levels == levels
        done = codec("detokenize", made, "-o", folder / f"{levels}.png", *tiny)
        assert done.code == code
        if code:
            assert_user_error(done, "slice")
        done = codec("detokenize", made, "-o", folder / f"{levels}.tok", *tiny)
        if levels == 16:
            assert done.code == 0
        else:
            assert_user_error(done, "16 levels")
    assert [path.name for path in folder.glob("*.tok")] == ["16.tok"]


def test_tokens_that_are_refused(codec: Codec, tiny: list[str], source: Path) -> None:
    codec("tokenize", source, *tiny)
    with np.load(source.with_suffix(".npz")) as arrays:
        codes, spec = arrays["codes"], json.loads(str(arrays["spec"][()]))
    absent, other = codes.copy(), codes.copy()
    absent[0, 9, 2, 2] = -1
    other[0, 6:] = 2 * 2047
    bad = source.parent / "bad.npz"
    for changed, fields in (
        (codes, {"quality": None}),
        (codes, {"quality": 101}),
        (codes, {"quality": -1}),
        (codes, {"quality": float("nan")}),
        (codes, {"quality": "50"}),
        (codes, {"quality": [50]}),
        (codes, {"model": "other"}),
        (codes, {"weights_hash": "0" * 16}),
        (codes, {"channels": "gray"}),
        (codes, {"codebook_sizes": [*spec["codebook_sizes"][:-1], 16]}),
        (absent, {}),
        (np.concatenate([codes, codes]), {}),
        (codes - 64, {}),
    ):
        np.savez(bad, codes=changed, spec=np.array(json.dumps(spec | fields)))
        for target in ("x.png", "x.tok"):
            assert_user_error(codec("detokenize", bad, "-o", source.parent / target, *tiny))
    # Codes that a decoder can make, and no encoder would: a picture, or one line.
    np.savez(bad, codes=other, spec=np.array(json.dumps(spec)))
    done = codec("detokenize", bad, "-o", source.parent / "x.png", *tiny)
    assert done.code in (0, 2)
    assert not any("internal error" in line for line in done.err)


# ------------------------------------------------------------------------------------------- segments and progress


def test_two_segments_decode_like_their_tokens(segments: Small, model: ImagePhoto, photo_model: Path) -> None:
    tokens, _ = file_tokens(read_tok(segments.data), str(photo_model), "cpu")
    assert np.array_equal(model.decode_tiled(tokens).numpy(), segments.pixels)
    whole = (255 * model.decode(tokens)[0].permute(1, 2, 0)).round().numpy()
    assert float(np.abs(whole - segments.pixels).max()) <= 1


def test_progress_is_monotone_and_ends_at_1(photo_model: Path, tmp_path: Path) -> None:
    Image.fromarray(smooth_noise(20, 1100)).save(tmp_path / "x.png")
    encoded: list[float] = []
    encode_file(tmp_path / "x.png", tmp_path / "x.tok", model=str(photo_model), device="cpu", progress=encoded.append)
    decoded: list[float] = []
    decode_file(tmp_path / "x.tok", None, model=str(photo_model), device="cpu", progress=decoded.append)
    for shares in (encoded, decoded):
        assert len(shares) > 1
        assert shares == sorted(shares)
        assert shares[0] > 0
        assert shares[-1] == 1


def test_files_of_many_segments_have_an_index(tmp_path: Path, photo_model: Path, segments: Small) -> None:
    tok = read_tok(segments.data)
    assert tok.indexed
    rows = [[tok.payload(LAYR, k, s) or b"" for s in range(2)] for k in range(3)]
    assert write_tok(tok.picture, rows) == segments.data
